//! Webhooks of the built server, told to receivers that behave and to receivers that do not.

#[path = "../support/mod.rs"]
#[allow(dead_code, reason = "each test uses its part")]
mod support;

mod ask;
mod kept;
mod outbox;
mod stream;

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::{
    http::Http,
    receiver::{Receiver, Request},
    server::{Home, Server},
    socket::Socket,
};

/// What both sides have.
const SECRET: &str = "a secret of the tests of webhooks";

/// How long anything may take that a test waits for.
const PATIENCE: Duration = Duration::from_secs(120);

/// A receiver, and a home for servers that tell it what happens: with further `settings` of the webhook, each with a comma
/// behind it.
fn place(settings: &str) -> (Receiver, Home) {
    let receiver = Receiver::start();
    let home = Home::with(&format!(
        "portal: {{ webhook: {{ url: '{}', secret: '{SECRET}', allowPrivate: true, retryMin: 20, retryMax: 100, timeout: 400, \
         {settings} }} }},",
        receiver.url()
    ));
    (receiver, home)
}

/// The events of one type.
fn of<'a>(events: &'a [Value], kind: &str) -> Vec<&'a Value> {
    events.iter().filter(|event| event["type"] == kind).collect()
}

/// What clients said, in the order in which it was told.
fn said(events: &[Value]) -> Vec<u64> {
    of(events, "message").iter().map(|event| event["message"]["d"].as_u64().expect("a number")).collect()
}

/// The number of an event, behind the dash in its id.
fn number(event: &Value) -> u64 {
    let id = event["id"].as_str().expect("an id");
    id.rsplit_once('-').and_then(|(_, number)| number.parse().ok()).unwrap_or_else(|| panic!("{id}"))
}

/// Says numbers, and waits until the server has heard them all.
async fn say(socket: &mut Socket, numbers: impl IntoIterator<Item = u64>) {
    for n in numbers {
        socket.say(&json!({ "op": 0, "d": n, "t": "N" })).await.expect("it is sent");
    }
    socket.ask().await.expect("it is sent");
    while socket.event().await.expect("an answer") != support::socket::Event::Heard {}
}

/// A metric of the server's.
fn metric(server: &Server, name: &str) -> u64 {
    let mut http = Http::connect(server.address).expect("a connection");
    let (_, text) = http.call("GET", "/metrics", "").expect("metrics");
    let text = String::from_utf8(text).expect("text");
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("mesa_{name} ")));
    line.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no {name} in {text}"))
}

/// Waits until a metric is as it should be.
async fn until_metric(server: &Server, name: &str, is: impl Fn(u64) -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is(metric(server, name)) {
        assert!(Instant::now() < end, "{name} is {}", metric(server, name));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn dispatch(server: &Server, data: u64, user: &str, options: &Value) {
    let mut http = Http::connect(server.address).expect("a connection");
    let message = json!({ "op": 0, "d": data, "t": "N", "o": options });
    let body = json!({ "message": message, "recipients": [user] });
    let (status, answer) = http.call("POST", "/v1/dispatch", &body.to_string()).expect("an answer");
    assert_eq!(status, 200, "{}", String::from_utf8_lossy(&answer));
}

/// As a receiver would check it, from what is documented and with nothing of ours.
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
    aws_lc_rs::hmac::verify(&key, &signed, &signature).expect("the signature holds");
    let now = std::time::UNIX_EPOCH.elapsed().expect("a clock after 1970").as_secs();
    let age = now.abs_diff(timestamp.parse().expect("seconds"));
    assert!(age <= 60, "signed {age} s ago");
}
