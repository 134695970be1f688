//! Tests that receivers that answer slowly are named in the log, with how long they took.

use super::*;
use crate::support::http_receiver::Response;

/// More than the second beyond which a request counts as slow.
const SLOW: Duration = Duration::from_millis(1500);

/// Waits for a line about a slow request. Returns it, after a check of its level and time.
fn wait_for_line(home: &Home, text: &str) -> String {
    let log = home.wait_for_log(|log| log.lines().any(|line| line.contains(text)));
    let line = log.lines().find(|line| line.contains(text)).expect("the line").to_owned();
    let seconds = line.split_once(" seconds=").and_then(|(_, rest)| rest.split(' ').next()?.parse::<f64>().ok());
    assert!(line.contains("WARN") && seconds.is_some_and(|seconds| seconds >= SLOW.as_secs_f64()), "{line}");
    line
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_receiver_of_events_is_logged_with_the_time_it_took() {
    let (receiver, home) = start_receiver("");
    receiver.script([Response::Late(SLOW, 204)]);
    let server = home.start();
    let _alice = Socket::connect(server.address, "alice").await.unwrap();
    let line = wait_for_line(&home, "the receiver of the webhook was slow to answer");
    assert!(line.contains(" events="), "{line}");
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_authentication_webhook_is_logged_with_the_time_it_took() {
    let receiver = Receiver::start();
    receiver.script([Response::Late(SLOW, 401)]);
    let mut home = Home::new();
    home.set_variable("MESA_AUTH_WEBHOOK_URL", &receiver.url());
    home.set_variable("MESA_AUTH_WEBHOOK_ALLOW_PRIVATE", "true");
    let server = home.start();
    assert!(Socket::connect(server.address, "a-ticket").await.is_err());
    wait_for_line(&home, "the authentication webhook was slow to answer");
}
