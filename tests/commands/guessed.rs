//! Guessing of API keys and of the password of the Redis protocol, from one address.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::{SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::support::{
    http::{Http, request},
    server::{Home, KEY},
};

/// Far more than an address may try that has presented no right secret, and fewer than one that has.
const GUESSES: usize = 60;

/// Wrong secrets of an unproven address that are compared at once; one more for each second.
const COMPARED_MAX: usize = 20;

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(120);

/// Runs `guess` for each number, all at once. Returns what came of each, and for how long it went on.
fn all_at_once<T: Send + 'static>(guess: impl Fn(usize) -> T + Clone + Send + 'static) -> (Vec<T>, Duration) {
    let began = Instant::now();
    let guesses: Vec<_> = (0..GUESSES)
        .map(|n| {
            let guess = guess.clone();
            thread::spawn(move || guess(n))
        })
        .collect();
    (guesses.into_iter().map(|one| one.join().expect("no panic")).collect(), began.elapsed())
}

fn ask(http: &mut Http, key: &str) -> (u16, String) {
    http.send(&request("GET", "/v1/users", "").replace(KEY, key)).expect("sent");
    let (status, body) = http.answer().expect("an answer");
    (status, String::from_utf8(body).expect("text"))
}

fn compared_at_most(compared: usize, took: Duration) {
    let allowed = COMPARED_MAX + usize::try_from(took.as_secs()).unwrap() + 1;
    assert!(compared <= allowed, "{compared} of {GUESSES} guesses were compared, and {allowed} may be in {took:?}");
}

/// Wrong secrets are reported, but not one by one and not as they are.
fn reported(home: &Home, began: Instant) {
    let log = home.log_once(|log| log.contains("wrong API keys or passwords were presented"));
    let lines = log.lines().filter(|line| line.contains("wrong API keys or passwords were presented")).count();
    let most = 1 + usize::try_from(began.elapsed().as_secs() / 10).unwrap();
    assert!((1..=most).contains(&lines), "{lines} lines:\n{log}");
    assert!(log.contains("127.0.0.1") && !log.contains("a-wrong-secret"), "{log}");
}

#[test]
fn guessing_of_api_keys_is_limited_and_clients_behind_the_address_keep_working() {
    let (home, began) = (Home::new(), Instant::now());
    let server = home.start();
    let connect = {
        let address = server.address;
        move || Http::connect(address).expect("a connection")
    };
    let without = request("GET", "/v1/users", "").replace(&format!("authorization: Bearer {KEY}\r\n"), "");
    let mut http = connect();
    http.send(&without).unwrap();
    let (status, body) = http.answer().unwrap();
    let missing = String::from_utf8(body).unwrap();
    assert!(status == 401 && missing.contains("an API key is needed"), "{status} {missing}");
    let (status, wrong) = ask(&mut http, "a-wrong-secret");
    assert!(status == 401 && wrong.contains("none of this server's"), "{status} {wrong}");

    let (answers, took) = all_at_once(move |n| ask(&mut connect(), &format!("a-wrong-secret-{n}")));
    compared_at_most(answers.iter().filter(|(status, _)| *status == 401).count(), took);
    for (status, body) in answers.iter().filter(|(status, _)| *status != 401) {
        assert!(*status == 429 && body.contains("too_many_wrong_keys"), "{status} {body}");
    }
    let asked = Instant::now();
    let mut working = connect();
    while ask(&mut working, KEY).0 != 200 {
        assert!(asked.elapsed() < PATIENCE, "a new connection never gets in");
        thread::sleep(Duration::from_millis(100));
    }
    // From here on the address is proven, and as many guesses lock none of its clients out.
    let (answers, _) = all_at_once(move |n| ask(&mut connect(), &format!("another-wrong-secret-{n}")).0);
    assert!(answers.iter().all(|status| *status == 401), "{answers:?}");
    assert_eq!(ask(&mut connect(), KEY).0, 200, "over a new connection");
    assert_eq!(ask(&mut working, KEY).0, 200, "over the connection that has shown a right key");
    reported(&home, began);
}

/// A backend that was given a wrong key, and tries again and again.
#[test]
fn wrong_key_that_is_repeated_locks_nobody_out() {
    let home = Home::new();
    let server = home.start();
    let address = server.address;
    let (answers, _) = all_at_once(move |_| ask(&mut Http::connect(address).unwrap(), "a-wrong-secret").0);
    assert!(answers.iter().all(|status| *status == 401), "{answers:?}");
    assert_eq!(ask(&mut Http::connect(address).unwrap(), KEY).0, 200);
}

/// A connection that speaks the Redis protocol.
pub struct Redis(BufReader<TcpStream>);

fn address_of(home: &Home) -> SocketAddr {
    let ready: Value = serde_json::from_str(&fs::read_to_string(home.path("ready")).unwrap()).unwrap();
    ready["wire"].as_str().unwrap().parse().unwrap()
}

impl Redis {
    /// Connects to the port in the ready file of a server.
    pub fn of(home: &Home) -> Self {
        Self::connect(address_of(home))
    }

    fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).expect("a connection");
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self(BufReader::new(stream))
    }

    /// Sends a command; returns the first line of the reply.
    pub fn ask(&mut self, words: &[&str]) -> String {
        let text = words
            .iter()
            .fold(format!("*{}\r\n", words.len()), |text, word| format!("{text}${}\r\n{word}\r\n", word.len()));
        self.0.get_mut().write_all(text.as_bytes()).expect("sent");
        let mut line = String::new();
        self.0.read_line(&mut line).expect("an answer");
        line.trim_end().to_owned()
    }
}

#[test]
fn guessing_of_the_redis_password_is_limited_and_clients_behind_the_address_keep_working() {
    let (home, began) = (Home::with("wire: { port: 0, password: 'open sesame at once' },"), Instant::now());
    let server = home.start();
    let address = address_of(&home);
    let (answers, took) = all_at_once(move |n| Redis::connect(address).ask(&["AUTH", &format!("a-wrong-secret-{n}")]));
    compared_at_most(answers.iter().filter(|answer| answer.starts_with("-WRONGPASS")).count(), took);
    for answer in answers.iter().filter(|answer| !answer.starts_with("-WRONGPASS")) {
        assert!(answer.starts_with("-ERR too many wrong passwords came from this address"), "{answer}");
    }
    let asked = Instant::now();
    let mut working = Redis::connect(address);
    while working.ask(&["AUTH", "open sesame at once"]) != "+OK" {
        assert!(asked.elapsed() < PATIENCE, "a new connection never gets in");
        thread::sleep(Duration::from_millis(100));
        working = Redis::connect(address);
    }
    let wrong = move |n| Redis::connect(address).ask(&["AUTH", &format!("another-wrong-secret-{n}")]);
    let (answers, _) = all_at_once(wrong);
    assert!(answers.iter().all(|answer| answer.starts_with("-WRONGPASS")), "{answers:?}");
    assert_eq!(Redis::connect(address).ask(&["AUTH", "open sesame at once"]), "+OK", "over a new connection");
    assert_eq!(working.ask(&["PING"]), "+PONG");
    assert_eq!(working.ask(&["AUTH", "open sesame at once"]), "+OK", "where the right one was shown before");
    reported(&home, began);
    drop(server);
}
