//! Tests webhooks of the built binary, with correct and failing receivers.
//!
//! - `auth_webhook`: authentication by a backend
//! - `client_events`: events of clients, and errors of the receiver
//! - `message_events`: delivered, undelivered, expired and dropped messages
//! - `outbox`: stored events over kills, and at its bounds
//! - `slow_receiver`: log lines about slow receivers

mod auth_webhook;
mod client_events;
mod message_events;
#[path = "../support/mod.rs"]
#[allow(dead_code, reason = "each suite uses a part of it")]
mod support;

mod outbox;
mod restart;
mod slow_receiver;

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::{
    http::Http,
    http_receiver::{Receiver, Request},
    server::{Home, Server},
    socket::Socket,
    wait::WAIT_TIMEOUT,
};

/// Secret that server and receiver share.
const SECRET: &str = "a secret of the tests of webhooks";

/// Starts a receiver, and creates a directory for servers that send events to it.
///
/// `settings` are further settings of the webhook: JSON5 `key: value` pairs, each followed by a comma.
fn start_receiver(settings: &str) -> (Receiver, Home) {
    // The receiver is part of the test, and has to answer in time also on a machine that stalls.
    start_receiver_with_timeout(Duration::from_secs(10), settings)
}

/// Starts a receiver as [`start_receiver`] does, with a timeout of the server for each of its responses.
fn start_receiver_with_timeout(timeout: Duration, settings: &str) -> (Receiver, Home) {
    let receiver = Receiver::start();
    let home = Home::with_settings(&format!(
        "portal: {{ webhook: {{ url: '{}', secret: '{SECRET}', allowPrivate: true, retryMin: 20, retryMax: 100, timeout: {}, \
         {settings} }} }},",
        receiver.url(),
        timeout.as_millis()
    ));
    (receiver, home)
}

/// Returns the events of one type.
fn of_type<'a>(events: &'a [Value], kind: &str) -> Vec<&'a Value> {
    events.iter().filter(|event| event["type"] == kind).collect()
}

/// Returns the numbers in the clients' messages, in order of the events.
fn message_numbers(events: &[Value]) -> Vec<u64> {
    of_type(events, "message").iter().map(|event| event["message"]["d"].as_u64().expect("a number")).collect()
}

/// Returns the number of an event, which follows the dash in its id.
fn event_number(event: &Value) -> u64 {
    let id = event["id"].as_str().expect("an id");
    id.rsplit_once('-').and_then(|(_, number)| number.parse().ok()).unwrap_or_else(|| panic!("{id}"))
}

/// Sends a message per number, and waits until the server has processed all of them.
async fn send_numbers(socket: &mut Socket, numbers: impl IntoIterator<Item = u64>) {
    for n in numbers {
        socket.send_frame(&json!({ "op": 0, "d": n, "t": "N" })).await.expect("an open connection");
    }
    socket.request_ack().await.expect("an open connection");
    while socket.event().await.expect("a frame") != support::socket::Event::Ack {}
}

/// Returns the value of a metric.
fn metric(server: &Server, name: &str) -> u64 {
    Http::connect(server.address).expect("a connection").metric(name)
}

/// Waits until `condition` holds for a metric. Panics after [`WAIT_TIMEOUT`].
async fn wait_for_metric(server: &Server, name: &str, condition: impl Fn(u64) -> bool) {
    let end = Instant::now() + WAIT_TIMEOUT;
    while !condition(metric(server, name)) {
        assert!(Instant::now() < end, "{name} is still {}", metric(server, name));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn dispatch(server: &Server, data: u64, user: &str, options: &Value) {
    let mut http = Http::connect(server.address).expect("a connection");
    let message = json!({ "op": 0, "d": data, "t": "N", "o": options });
    let body = json!({ "message": message, "recipients": [user] });
    let (status, response) = http.call("POST", "/v1/dispatch", &body.to_string()).expect("a response");
    assert_eq!(status, 200, "{}", String::from_utf8_lossy(&response));
}

/// Verifies a signature as a receiver would: from the documentation, without code of this crate.
fn check_signature(request: &Request) {
    let timestamp = request.header("mesa-timestamp").expect("a timestamp");
    let signature = request.header("mesa-signature").expect("a signature").strip_prefix("v1=").expect("a version");
    let signature: Vec<u8> = signature
        .as_bytes()
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).expect("text"), 16).expect("hexadecimal digits"))
        .collect();
    let signed = [timestamp.as_bytes(), b".", &request.body].concat();
    let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, SECRET.as_bytes());
    aws_lc_rs::hmac::verify(&key, &signed, &signature).expect("a valid signature");
    let now = std::time::UNIX_EPOCH.elapsed().expect("a clock after 1970").as_secs();
    let age = now.abs_diff(timestamp.parse().expect("seconds"));
    assert!(age <= 60, "signed at most 60 s ago, not {age} s");
}
