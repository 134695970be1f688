//! Tests that a panicking task makes the server not ready and restarts, or stops the server with an error.
//!
//! The panics are seeded: they exist only in builds with `--features failpoints`.

use std::{
    fs,
    net::TcpListener,
    path::PathBuf,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    WAIT_TIMEOUT,
    support::{
        current_thread_runtime,
        http::Http,
        http_receiver::Receiver,
        resp::RespClient,
        server::{Home, Server},
        socket::{Event, Socket},
    },
};

/// Returns a home whose servers have tasks that panic while a file exists, and the path of that file.
fn home_with_panics(settings: &str, tasks: &[&str]) -> (Home, PathBuf) {
    let mut home = Home::with_settings(settings);
    let file = home.path("panic");
    home.set_variable("MESA_FAILPOINT_PANIC", &tasks.join(","));
    home.set_variable("MESA_FAILPOINT_PANIC_WHILE", file.to_str().expect("a path that is text"));
    (home, file)
}

/// Polls `/readyz` until `accept` holds for status and body, and returns the body.
fn wait_for_readiness(server: &Server, home: &Home, accept: impl Fn(u16, &str) -> bool) -> String {
    let end = Instant::now() + WAIT_TIMEOUT;
    let mut last = String::new();
    while Instant::now() < end {
        // The connection may fail: the accept loop is one of the tasks that panic.
        if let Ok((status, text)) = Http::connect(server.address).and_then(|mut http| http.call("GET", "/readyz", "")) {
            last = String::from_utf8(text).expect("text");
            if accept(status, &last) {
                return last;
            }
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("/readyz did not reach the expected state: {last}\n{}", home.log());
}

/// Makes the tasks panic until `/readyz` names each, then waits until the server is ready again.
fn panic_and_recover(server: &Server, home: &Home, file: &PathBuf, tasks: &[&str]) {
    fs::write(file, "").expect("a file");
    wait_for_readiness(server, home, |status, text| {
        status == 503 && tasks.iter().all(|task| text.contains(&format!("{task}: ")))
    });
    fs::remove_file(file).expect("a file");
    wait_for_readiness(server, home, |status, _| status == 200);
    for task in tasks {
        let line = |line: &str| line.contains("ERROR") && line.contains("ended unexpectedly") && line.contains(task);
        home.wait_for_log(|log| log.lines().any(line));
    }
}

/// Reads the counter of task restarts.
fn restart_count(server: &Server) -> u64 {
    Http::connect(server.address).expect("a connection").metric("mesa_task_restarts_total")
}

#[tokio::test(flavor = "multi_thread")]
async fn panicking_task_is_named_as_not_ready_and_restarts() {
    let tasks = [
        "accept_loop",
        "redis_protocol",
        "redis_protocol_portals",
        "maintenance",
        "webhook_delivery",
        "webhook_undelivered",
        "webhook_metrics",
    ];
    let receiver = Receiver::start();
    let settings = format!(
        "redisProtocol: {{ port: 0 }}, portal: {{ enabled: true, webhook: {{ url: '{}', secret: 'sixteen-bytes-xx', allowPrivate: \
         true, undeliveredAfter: 100 }} }},",
        receiver.url()
    );
    let (home, file) = home_with_panics(&settings, &tasks);
    let server = home.start();
    panic_and_recover(&server, &home, &file, &tasks);
    assert!(restart_count(&server) >= tasks.len() as u64);
    // Each works again: HTTP and WebSocket, the Redis protocol, webhook delivery and the undelivered monitor.
    let mut http = Http::connect(server.address).expect("a connection");
    http.dispatch(&json!(1), &["alice".to_owned()]).expect("a response");
    let end = Instant::now() + WAIT_TIMEOUT;
    while !receiver.events().iter().any(|event| event["type"] == "undelivered") {
        assert!(Instant::now() < end, "expected an `undelivered` event:\n{}", home.log());
        std::thread::sleep(Duration::from_millis(10));
    }
    let mut alice = Socket::connect(server.address, "alice").await.expect("a session");
    while !matches!(alice.event().await.expect("a message"), Event::Message(_)) {}
    assert_eq!(RespClient::connect(home.redis_protocol_address()).call(&["PING"]), "+PONG");
    server.terminate();
    assert_eq!(server.process.wait(WAIT_TIMEOUT).code(), Some(0), "{}", home.log());
}

#[test]
fn panicking_jwks_fetch_is_not_ready_and_is_retried() {
    // Accepts connections and never responds, so that the request lasts until its panic after 100 ms.
    let jwks = TcpListener::bind("127.0.0.1:0").expect("a port");
    let (home, file) = home_with_panics("", &["authentication"]);
    let config = format!(
        "{{ host: '127.0.0.1', port: 0, sync: {{ enabled: true }}, authentication: {{ jwt: {{ algorithms: ['RS256'], jwks: \
         {{ url: 'http://{}/', allowPrivate: true, timeout: 400, retryInterval: 100 }} }} }} }}",
        jwks.local_addr().expect("an address")
    );
    fs::write(home.path("config.json5"), config).expect("the configuration is written");
    fs::write(&file, "").expect("a file");
    let server = home.start();
    let authenticate = || {
        let token = "eyJhbGciOiJSUzI1NiIsImtpZCI6ImsifQ.e30.AA";
        _ = current_thread_runtime().block_on(Socket::connect(server.address, token));
    };
    wait_for_readiness(&server, &home, |status, text| status == 503 && text.contains("authentication: "));
    fs::remove_file(&file).expect("a file");
    wait_for_readiness(&server, &home, |status, _| {
        authenticate();
        status == 200
    });
    home.wait_for_log(|log| log.contains("cannot be fetched"));
}

/// Dispatches to `users` users at a server that panics in `place`, and asserts that the server stops with an error.
///
/// Returns the status, the answer with the number of messages pending for the first user, and how a connection ended.
async fn dispatch_with_panic(place: &str, users: usize) -> (u16, Value, String) {
    let mut home = Home::new();
    home.set_variable("MESA_FAILPOINT_PANIC", place);
    let server = home.start();
    let mut user = Socket::connect(server.address, "alice").await.expect("a session");
    let address = server.address;
    let dispatching = tokio::task::spawn_blocking(move || {
        let users: Vec<String> = (0..users).map(|n| format!("user-{n}")).collect();
        let body = json!({ "message": { "op": 0, "d": 1, "t": "T" }, "recipients": users }).to_string();
        Http::connect(address).expect("a connection").call("POST", "/v1/dispatch", &body).expect("a response")
    });
    let (status, response) = dispatching.await.expect("a response");
    let ended = loop {
        if let Err(error) = user.event().await {
            break error;
        }
    };
    let Server { process, .. } = server;
    assert_eq!(process.wait(WAIT_TIMEOUT).code(), Some(1), "{}", home.log());
    let log = fs::read_to_string(home.path("log")).expect("a log");
    assert!(log.lines().any(|line| line.contains("ERROR") && line.contains("the commit thread has stopped")), "{log}");
    assert!(log.contains("panicked at") && log.contains(&format!("failpoint in {place}")), "{log}");
    assert!(log.lines().last().is_some_and(|line| line.starts_with("mesa: ")), "{log}");
    // After a restart, a message that was answered with 200 is still pending.
    home.set_variable("MESA_FAILPOINT_PANIC", "");
    let server = home.start();
    let pending = Http::connect(server.address).expect("a connection").pending_entries("user-0");
    let response: Value = serde_json::from_slice(&response).expect("JSON");
    (status, json!([response, pending.len()]), ended)
}

#[tokio::test(flavor = "multi_thread")]
async fn commit_thread_panic_answers_store_failed_and_stops_the_server() {
    let (status, found, ended) = dispatch_with_panic("commit_thread", 1).await;
    assert_eq!((status, &found[0]["error"]["code"]), (503, &json!("store_failed")), "{found}");
    assert!(ended.contains("Error") || ended.contains("1011"), "{ended}");
}

// covers: G1
#[tokio::test(flavor = "multi_thread")]
async fn panic_after_a_commit_answers_with_the_stored_count_and_stops_the_server() {
    // The listener runs on the commit thread for one user, and in a task for many.
    for users in [1, 100] {
        let (status, found, ended) = dispatch_with_panic("commit_listener", users).await;
        assert_eq!((status, &found[0]["stored"], &found[1]), (200, &json!(users), &json!(1)), "{found}");
        assert!(ended.contains("Error") || ended.contains("1011"), "{ended}");
    }
}
