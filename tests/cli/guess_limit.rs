//! Tests the limit on guesses of API keys and of the Redis password, per client address.

use std::{
    thread,
    time::{Duration, Instant},
};

use crate::{
    WAIT_TIMEOUT,
    support::{
        http::{Http, request},
        resp::RespClient,
        server::{Home, KEY},
    },
};

/// Far more guesses than an address may make before it presents a valid secret, and fewer than it may make afterwards.
const GUESSES: usize = 60;

/// Wrong secrets that the server compares at once for an address without a valid secret. Each second allows one more.
const COMPARED_MAX: usize = 20;

/// Runs `guess` for each number, on concurrent threads. Returns the results, and the time that all took.
fn run_concurrently<T: Send + 'static>(guess: impl Fn(usize) -> T + Clone + Send + 'static) -> (Vec<T>, Duration) {
    let began = Instant::now();
    let guesses: Vec<_> = (0..GUESSES)
        .map(|n| {
            let guess = guess.clone();
            thread::spawn(move || guess(n))
        })
        .collect();
    (guesses.into_iter().map(|guess| guess.join().expect("the thread does not panic")).collect(), began.elapsed())
}

/// Requests the list of users with `key`. Returns status and body.
fn list_users(http: &mut Http, key: &str) -> (u16, String) {
    http.send(&request("GET", "/v1/users", "").replace(KEY, key)).expect("the request is sent");
    let (status, body) = http.response().expect("a response");
    (status, String::from_utf8(body).expect("text"))
}

/// Asserts that the server compared no more guesses than it may in `took`.
fn assert_comparisons_limited(compared: usize, took: Duration) {
    let allowed = COMPARED_MAX + usize::try_from(took.as_secs()).unwrap() + 1;
    assert!(
        compared <= allowed,
        "{compared} of {GUESSES} guesses were compared, expected at most {allowed} in {took:?}"
    );
}

/// Asserts that the log reports wrong secrets: at most once in 10 s, with the address, without the secrets.
fn assert_guesses_logged(home: &Home, began: Instant) {
    let log = home.wait_for_log(|log| log.contains("wrong API keys or passwords were presented"));
    let reports: Vec<_> =
        log.lines().filter(|line| line.contains("wrong API keys or passwords were presented")).collect();
    assert!(reports.iter().all(|line| line.contains("INFO")), "a mistake of a peer is no warning: {reports:?}");
    let lines = reports.len();
    let lines_max = 1 + usize::try_from(began.elapsed().as_secs() / 10).unwrap();
    assert!((1..=lines_max).contains(&lines), "{lines} lines, expected 1 to {lines_max}:\n{log}");
    assert!(log.contains("127.0.0.1") && !log.contains("a-wrong-secret"), "{log}");
}

#[test]
fn api_key_guesses_are_limited_and_other_clients_of_the_address_keep_access() {
    let (home, began) = (Home::new(), Instant::now());
    let server = home.start();
    let connect = {
        let address = server.address;
        move || Http::connect(address).expect("a connection")
    };
    let without_key = request("GET", "/v1/users", "").replace(&format!("authorization: Bearer {KEY}\r\n"), "");
    let mut http = connect();
    http.send(&without_key).unwrap();
    let (status, body) = http.response().unwrap();
    let missing = String::from_utf8(body).unwrap();
    assert!(status == 401 && missing.contains("an API key is required"), "{status} {missing}");
    let (status, wrong) = list_users(&mut http, "a-wrong-secret");
    assert!(status == 401 && wrong.contains("not one of this server's"), "{status} {wrong}");

    let (responses, took) = run_concurrently(move |n| list_users(&mut connect(), &format!("a-wrong-secret-{n}")));
    assert_comparisons_limited(responses.iter().filter(|(status, _)| *status == 401).count(), took);
    for (status, body) in responses.iter().filter(|(status, _)| *status != 401) {
        assert!(*status == 429 && body.contains("too_many_wrong_keys"), "{status} {body}");
    }
    let waiting_since = Instant::now();
    let mut working = connect();
    while list_users(&mut working, KEY).0 != 200 {
        assert!(waiting_since.elapsed() < WAIT_TIMEOUT, "expected a new connection with the valid key to be accepted");
        thread::sleep(Duration::from_millis(100));
    }
    // The address has now presented the valid key. As many guesses no longer lock out its clients.
    let (responses, _) = run_concurrently(move |n| list_users(&mut connect(), &format!("another-wrong-secret-{n}")).0);
    assert!(responses.iter().all(|status| *status == 401), "{responses:?}");
    assert_eq!(list_users(&mut connect(), KEY).0, 200, "expected a new connection to be accepted");
    assert_eq!(list_users(&mut working, KEY).0, 200, "expected the connection with the valid key to keep access");
    assert_guesses_logged(&home, began);
}

/// A backend with a wrong key in its configuration repeats that key. The server does not treat repeats as guesses.
#[test]
fn repeated_wrong_key_does_not_lock_out_the_address() {
    let home = Home::new();
    let server = home.start();
    let address = server.address;
    let (responses, _) =
        run_concurrently(move |_| list_users(&mut Http::connect(address).unwrap(), "a-wrong-secret").0);
    assert!(responses.iter().all(|status| *status == 401), "{responses:?}");
    assert_eq!(list_users(&mut Http::connect(address).unwrap(), KEY).0, 200);
}

#[test]
fn redis_password_guesses_are_limited_and_other_clients_of_the_address_keep_access() {
    let (home, began) =
        (Home::with_settings("redisProtocol: { port: 0, password: 'open sesame at once' },"), Instant::now());
    let server = home.start();
    let address = home.redis_protocol_address();
    let (responses, took) =
        run_concurrently(move |n| RespClient::connect(address).call(&["AUTH", &format!("a-wrong-secret-{n}")]));
    assert_comparisons_limited(responses.iter().filter(|response| response.starts_with("-WRONGPASS")).count(), took);
    for response in responses.iter().filter(|response| !response.starts_with("-WRONGPASS")) {
        assert!(response.starts_with("-ERR too many wrong passwords came from this address"), "{response}");
    }
    let waiting_since = Instant::now();
    let mut working = RespClient::connect(address);
    while working.call(&["AUTH", "open sesame at once"]) != "+OK" {
        assert!(
            waiting_since.elapsed() < WAIT_TIMEOUT,
            "expected a new connection with the valid password to be accepted"
        );
        thread::sleep(Duration::from_millis(100));
        working = RespClient::connect(address);
    }
    let guess = move |n| RespClient::connect(address).call(&["AUTH", &format!("another-wrong-secret-{n}")]);
    let (responses, _) = run_concurrently(guess);
    assert!(responses.iter().all(|response| response.starts_with("-WRONGPASS")), "{responses:?}");
    assert_eq!(
        RespClient::connect(address).call(&["AUTH", "open sesame at once"]),
        "+OK",
        "expected a new connection to be accepted"
    );
    assert_eq!(working.call(&["PING"]), "+PONG");
    assert_eq!(
        working.call(&["AUTH", "open sesame at once"]),
        "+OK",
        "expected the connection with the valid password to keep access"
    );
    assert_guesses_logged(&home, began);
    drop(server);
}
