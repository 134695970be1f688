//! Tests that a drained or stopped server spreads the reconnections of its clients.

use std::{
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use futures_util::{StreamExt as _, future::join_all};
use serde_json::Value;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;

use crate::{
    WAIT_TIMEOUT,
    support::{
        command::{mesa_command, output_text},
        http::Http,
        server::{Home, KEY, Server},
        socket::connect_websocket,
        wait::block_until,
    },
};

/// How a connection ended.
struct Ended {
    /// Reconnect interval of the last op 10, in milliseconds.
    interval: Option<u64>,
    /// Number of op 10.
    hellos: usize,
    code: u16,
    at: Instant,
}

/// Opens connections; each resolves when the server has closed it.
async fn connect(server: &Server, count: usize) -> Vec<impl Future<Output = Ended>> {
    let mut connections = Vec::new();
    for _ in 0..count {
        let mut socket = connect_websocket(server.address).await.expect("a WebSocket");
        connections.push(async move {
            let (mut interval, mut hellos) = (None, 0);
            loop {
                let frame = timeout(WAIT_TIMEOUT, socket.next()).await.expect("a frame").expect("an open connection");
                match frame.expect("a frame") {
                    Message::Text(text) => {
                        let frame: Value = serde_json::from_str(&text).expect("JSON");
                        assert_eq!(frame["op"], 10, "{frame}");
                        assert!(frame["d"]["rules"].is_array(), "{frame}");
                        interval = frame["d"]["c_reconnect_interval"].as_u64();
                        hellos += 1;
                    }
                    Message::Close(close) => {
                        let code = close.expect("a code").code.into();
                        return Ended { interval, hellos, code, at: Instant::now() };
                    }
                    other => panic!("{other:?}"),
                }
            }
        });
    }
    connections
}

/// Asserts that clients which were closed by a server with an interval of a second return spread over a second.
fn assert_spread(ended: &[Ended]) {
    let mut delays: Vec<u64> = ended.iter().map(|ended| ended.interval.expect("an interval")).collect();
    delays.sort_unstable();
    let count = delays.len();
    assert!(ended.iter().all(|ended| ended.code == 1001 && ended.hellos == 2));
    assert!(delays[0] >= 500 && delays[count - 1] <= 1500, "{delays:?}");
    for tenth in 0..10 {
        let range = 500 + tenth * 100..=600 + tenth * 100;
        let within = delays.iter().filter(|delay| range.contains(*delay)).count();
        assert!(within <= count / 5, "{within} of {count} clients return within a tenth of the time: {delays:?}");
    }
}

#[tokio::test]
async fn drain_refuses_new_connections_and_closes_present_ones_over_the_time() {
    let mut home = Home::with_settings("reconnect: { enabled: true, interval: 1000 },");
    // The connections do not authenticate, and must be closed by the drain alone.
    home.set_variable("AUTH_TIMEOUT", "600000");
    let server = home.start();
    let connections = connect(&server, 200).await;
    // Long enough for closes at different times also for a test that stalls.
    let mut drain = drain_command(&server, &["--seconds", "10"]);
    let drain = drain.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary starts");
    let ended = join_all(connections).await;

    assert_spread(&ended);
    let (first, last) = (ended.iter().map(|end| end.at).min(), ended.iter().map(|end| end.at).max());
    let took = last.expect("an end") - first.expect("an end");
    assert!(took > Duration::from_secs(2), "expected closes over 10 s, found {took:?}");

    let output = drain.wait_with_output().expect("the command ends");
    let text = output_text(&output);
    assert!(output.status.success(), "{text}");
    assert!(text.starts_with("draining: 200 connections close over 10 s") && text.contains("drained: "), "{text}");

    let mut http = Http::connect(server.address).expect("a connection");
    let (status, body) = http.call("GET", "/readyz", "").expect("a response");
    let body = String::from_utf8_lossy(&body);
    assert!(status == 503 && body.contains("draining: the server is draining"), "{status} {body}");
    assert_eq!(http.status("/v1/users").expect("a response"), 200, "backends are served");
    let refused = connect_websocket(server.address).await.expect_err("a draining server takes no connection");
    assert!(refused.contains("503"), "{refused}");
    assert_eq!(home.log().matches("ERROR").count(), 0, "{}", home.log());
    server.stop(WAIT_TIMEOUT);
}

#[tokio::test]
async fn stopped_server_spreads_the_reconnections_of_its_clients() {
    let home = Home::with_settings("reconnect: { enabled: true, interval: 1000 },");
    let server = home.start();
    let connections = connect(&server, 200).await;
    server.terminate();
    assert_spread(&join_all(connections).await);
}

#[tokio::test]
async fn client_that_stores_messages_or_does_not_reconnect_gets_no_second_op_10() {
    for settings in ["reconnect: { enabled: true }, options: { storeMessages: true },", ""] {
        let home = Home::with_settings(settings);
        let server = home.start();
        let connections = connect(&server, 1).await;
        server.terminate();
        let ended = join_all(connections).await;
        assert_eq!((ended[0].hellos, ended[0].code), (1, 1001), "{settings}");
    }
}

/// Returns the command `mesa drain` with further arguments.
fn drain_command(server: &Server, arguments: &[&str]) -> Command {
    let mut command = mesa_command();
    command.arg("drain").args(arguments).args(["--url", &format!("http://{}", server.address)]);
    command.env("MESA_API_KEY", KEY);
    command
}

/// Runs `mesa drain` with further arguments. Returns whether it succeeded, and its output.
fn mesa_drain(server: &Server, arguments: &[&str]) -> (bool, String) {
    let output = drain_command(server, arguments).output().expect("the binary starts");
    (output.status.success(), output_text(&output))
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelled_drain_takes_new_connections_and_keeps_the_present_ones() {
    let home = Home::new();
    let server = home.start();
    let connections = connect(&server, 3).await;
    let mut http = Http::connect(server.address).expect("a connection");
    // The first of three connections is due after 20 minutes.
    http.call("POST", "/v1/drain", "{\"seconds\":3600}").expect("a response");
    connect_websocket(server.address).await.expect_err("a draining server takes no connection");
    let (cancelled, text) = mesa_drain(&server, &["--cancel"]);
    assert!(cancelled && text.contains("not draining"), "{text}");
    assert_eq!(http.status("/readyz").expect("a response"), 200);
    let fourth = connect_websocket(server.address).await.expect("a server takes connections after a cancelled drain");
    let state: Value = http.get("/v1/drain").expect("a response");
    assert_eq!(state, serde_json::json!({"draining": false, "connections": 4}), "no connection was closed");
    assert!(mesa_drain(&server, &["--cancel"]).0, "without a drain nothing changes");
    // Another drain begins anew, and closes all.
    drop(fourth);
    http.call("POST", "/v1/drain", "{\"seconds\":0}").expect("a response");
    assert!(join_all(connections).await.iter().all(|ended| ended.code == 1001));
    assert_eq!(http.status("/readyz").expect("a response"), 503);
    server.stop(WAIT_TIMEOUT);
}

#[tokio::test(flavor = "multi_thread")]
async fn command_that_waits_for_a_cancelled_drain_fails() {
    let home = Home::new();
    let server = home.start();
    let connections = connect(&server, 3).await;
    let waiting = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| mesa_drain(&server, &["--seconds", "3600"]));
        let mut http = Http::connect(server.address).expect("a connection");
        block_until("the server drains", || http.status("/readyz").expect("a response") == 503);
        assert!(mesa_drain(&server, &["--cancel"]).0);
        waiting.join().expect("the command ends")
    });
    assert!(!waiting.0 && waiting.1.contains("the drain was cancelled"), "{}", waiting.1);
    drop(connections);
    server.stop(WAIT_TIMEOUT);
}

#[test]
fn drain_of_an_invalid_time_is_rejected_and_changes_nothing() {
    let home = Home::new();
    let server = home.start();
    let mut http = Http::connect(server.address).expect("a connection");
    for body in ["{\"seconds\":-1}", "{\"seconds\":99999}", "{\"minutes\":1}", "[1]", "{"] {
        let (status, answer) = http.call("POST", "/v1/drain", body).expect("a response");
        assert_eq!(status, 400, "{body}: {}", String::from_utf8_lossy(&answer));
    }
    assert_eq!(http.status("/readyz").expect("a response"), 200);
    let state: Value = http.get("/v1/drain").expect("a response");
    assert_eq!(state, serde_json::json!({"draining": false, "connections": 0}));
}
