//! Tasks of the server that panic: each is named by `/readyz`, and starts again, or the server stops in order.
//!
//! Only builds with seeded panics have them (`--features planted-bugs`).

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::support::{
    http::Http,
    receiver::Receiver,
    server::{Home, Server},
    socket::{Event, Socket},
};

/// Longer than any answer may take, and than the longest pause before a task starts again.
const PATIENCE: Duration = Duration::from_secs(120);

/// A home whose servers have tasks that panic for as long as a file is there, which is not there yet.
fn home(settings: &str, parts: &[&str]) -> (Home, PathBuf) {
    let mut home = Home::with(settings);
    let file = home.path("panic");
    home.set_variable("PLANTED_PANIC", &parts.join(","));
    home.set_variable("PLANTED_PANIC_WHILE", file.to_str().expect("a path of the test's"));
    (home, file)
}

/// What `/readyz` says, once `wanted` holds.
fn readiness(server: &Server, home: &Home, wanted: impl Fn(u16, &str) -> bool) -> String {
    let end = Instant::now() + PATIENCE;
    let mut last = String::new();
    while Instant::now() < end {
        // The accept loop may be one that panics.
        if let Ok((status, text)) = Http::connect(server.address).and_then(|mut http| http.call("GET", "/readyz", "")) {
            last = String::from_utf8(text).expect("text");
            if wanted(status, &last) {
                return last;
            }
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("{last}\n{}", home.log());
}

/// Has the tasks panic until each is named as not ready, and then waits until all are ready again.
fn panics_and_recovers(server: &Server, home: &Home, file: &PathBuf, parts: &[&str]) {
    fs::write(file, "").expect("a file");
    readiness(server, home, |status, text| {
        status == 503 && parts.iter().all(|part| text.contains(&format!("{part}: ")))
    });
    fs::remove_file(file).expect("a file");
    readiness(server, home, |status, _| status == 200);
    for part in parts {
        let line = |line: &str| line.contains("ERROR") && line.contains("ended unexpectedly") && line.contains(part);
        home.log_once(|log| log.lines().any(line));
    }
}

fn restarts(server: &Server) -> u64 {
    let (_, text) =
        Http::connect(server.address).expect("a connection").call("GET", "/metrics", "").expect("an answer");
    let text = String::from_utf8(text).expect("text");
    let count = text.lines().find_map(|line| line.strip_prefix("mesa_task_restarts_total "));
    count.expect("the counter").parse().expect("a number")
}

#[tokio::test(flavor = "multi_thread")]
async fn task_that_panics_is_not_ready_by_name_and_starts_again() {
    let parts = [
        "accept_loop",
        "redis_protocol",
        "redis_protocol_portals",
        "upkeep",
        "webhook_delivery",
        "webhook_watch",
        "webhook_metrics",
    ];
    let receiver = Receiver::start();
    let settings = format!(
        "wire: {{ port: 0 }}, portal: {{ enabled: true, webhook: {{ url: '{}', secret: 'sixteen-bytes-xx', allowPrivate: \
         true, undeliveredAfter: 100 }} }},",
        receiver.url()
    );
    let (home, file) = home(&settings, &parts);
    let server = home.start();
    panics_and_recovers(&server, &home, &file, &parts);
    assert!(restarts(&server) >= parts.len() as u64);
    // Each of them works: HTTP and WebSocket, the Redis protocol, the webhook and its watch.
    let mut http = Http::connect(server.address).expect("a connection");
    http.dispatch(&json!(1), &["alice".to_owned()]).expect("an answer");
    let end = Instant::now() + PATIENCE;
    while !receiver.events().iter().any(|event| event["type"] == "undelivered") {
        assert!(Instant::now() < end, "{}", home.log());
        std::thread::sleep(Duration::from_millis(10));
    }
    let mut alice = Socket::connect(server.address, "alice").await.expect("a session");
    while !matches!(alice.event().await.expect("a message"), Event::Message(_)) {}
    let ready: Value = serde_json::from_slice(&fs::read(home.path("ready")).expect("a file")).expect("JSON");
    let address: SocketAddr = ready["wire"].as_str().expect("an address").parse().expect("an address");
    let mut redis = TcpStream::connect(address).expect("a connection");
    redis.set_read_timeout(Some(PATIENCE)).expect("a socket");
    redis.write_all(b"*1\r\n$4\r\nPING\r\n").expect("sent");
    let mut pong = [0; 7];
    redis.read_exact(&mut pong).expect("an answer");
    assert_eq!(&pong, b"+PONG\r\n");
    server.terminate();
    assert_eq!(server.process.wait(PATIENCE).code(), Some(0), "{}", home.log());
}

#[test]
fn fetching_of_token_keys_that_panics_is_not_ready_and_is_repeated() {
    // Takes connections and answers nothing: the request lasts until its panic.
    let keys = TcpListener::bind("127.0.0.1:0").expect("a port");
    let (home, file) = home("", &["authentication"]);
    let config = format!(
        "{{ host: '127.0.0.1', port: 0, sync: {{ enabled: true }}, authentication: {{ jwt: {{ algorithms: ['RS256'], jwks: \
         {{ url: 'http://{}/', allowPrivate: true, timeout: 400, retryInterval: 100 }} }} }} }}",
        keys.local_addr().expect("an address")
    );
    fs::write(home.path("config.json5"), config).expect("the configuration is written");
    fs::write(&file, "").expect("a file");
    let server = home.start();
    let asks = || {
        let token = "eyJhbGciOiJSUzI1NiIsImtpZCI6ImsifQ.e30.AA";
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        _ = runtime.block_on(Socket::connect(server.address, token));
    };
    readiness(&server, &home, |status, text| status == 503 && text.contains("authentication: "));
    fs::remove_file(&file).expect("a file");
    readiness(&server, &home, |status, _| {
        asks();
        status == 200
    });
    home.log_once(|log| log.contains("cannot be fetched"));
}

/// Dispatches to users of whom one is connected; returns the status, and how that one's connection ended.
async fn dispatch_that_ends_the_server(part: &str, users: usize) -> (u16, Value, String) {
    let mut home = Home::new();
    home.set_variable("PLANTED_PANIC", part);
    let server = home.start();
    let mut user = Socket::connect(server.address, "alice").await.expect("a session");
    let address = server.address;
    let dispatching = tokio::task::spawn_blocking(move || {
        let users: Vec<String> = (0..users).map(|n| format!("user-{n}")).collect();
        let body = json!({ "message": { "op": 0, "d": 1, "t": "T" }, "recipients": users }).to_string();
        Http::connect(address).expect("a connection").call("POST", "/v1/dispatch", &body).expect("an answer")
    });
    let (status, answer) = dispatching.await.expect("an answer");
    let ended = loop {
        if let Err(why) = user.event().await {
            break why;
        }
    };
    let Server { process, .. } = server;
    assert_eq!(process.wait(PATIENCE).code(), Some(1), "{}", home.log());
    let log = fs::read_to_string(home.path("log")).expect("a log");
    assert!(log.lines().any(|line| line.contains("ERROR") && line.contains("the commit thread has stopped")), "{log}");
    assert!(log.contains("panicked at") && log.contains(&format!("planted in {part}")), "{log}");
    assert!(log.lines().last().is_some_and(|line| line.starts_with("mesa: ")), "{log}");
    // What was answered with 200 is there.
    home.set_variable("PLANTED_PANIC", "");
    let server = home.start();
    let (_, pending) = Http::connect(server.address)
        .expect("a connection")
        .call("GET", "/v1/users/user-0/messages", "")
        .expect("an answer");
    let pending: Value = serde_json::from_slice(&pending).expect("JSON");
    let answer: Value = serde_json::from_slice(&answer).expect("JSON");
    (status, json!([answer, pending["messages"].as_array().map_or(0, Vec::len)]), ended)
}

#[tokio::test(flavor = "multi_thread")]
async fn panic_of_the_commit_thread_answers_store_failed_and_stops_the_server() {
    let (status, found, ended) = dispatch_that_ends_the_server("commit_thread", 1).await;
    assert_eq!((status, &found[0]["error"]["code"]), (503, &json!("store_failed")), "{found}");
    assert!(ended.contains("Error") || ended.contains("1011"), "{ended}");
}

#[tokio::test(flavor = "multi_thread")]
async fn panic_after_a_commit_answers_what_is_durable_and_stops_the_server() {
    // On the commit thread itself, and in a task where there are many.
    for users in [1, 100] {
        let (status, found, ended) = dispatch_that_ends_the_server("commit_listener", users).await;
        assert_eq!((status, &found[0]["stored"], &found[1]), (200, &json!(users), &json!(1)), "{found}");
        assert!(ended.contains("Error") || ended.contains("1011"), "{ended}");
    }
}
