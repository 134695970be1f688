//! A server on a small disk, and what is asked of it.

use std::time::Duration;

use serde_json::Value;

use crate::{
    small_disk::{Disk, until},
    support::{
        http::Http,
        server::{Home, Server},
    },
};

/// Longest wait for what happens within milliseconds on a machine that is not busy.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// A home with further settings, whose store is on a disk of its own; `None`, said aloud, where that is not allowed.
pub fn home(bytes: u64, settings: &str) -> Option<(Home, Disk)> {
    let mut home = Home::with(settings);
    let disk = Disk::mount(&home, bytes)?;
    home.move_store(disk.0.join("store"));
    Some((home, disk))
}

/// As [`home`]. Entries are flushed 100 ms after they were taken, where the build has that switch, and ten seconds after they
/// were taken where it has not.
pub fn settling_home(bytes: u64, settings: &str) -> Option<(Home, Disk)> {
    let (mut home, disk) = self::home(bytes, settings)?;
    home.set_variable("PLANTED_BUG", "SettleSoon");
    Some((home, disk))
}

pub fn connect(server: &Server) -> Http {
    Http::connect(server.address).expect("a connection")
}

/// Why the server is not ready, if it is not.
pub fn not_ready(http: &mut Http) -> Option<String> {
    let (status, body) = http.call("GET", "/readyz", "").expect("an answer");
    (status == 503).then(|| String::from_utf8(body).expect("text"))
}

pub fn until_full(http: &mut Http) {
    until("the server to report the full disk", PATIENCE, || {
        not_ready(http).is_some_and(|why| why.contains("disk_full"))
    });
}

pub fn until_ready(http: &mut Http) {
    until("the server to be ready", PATIENCE, || not_ready(http).is_none());
}

/// Dispatches to a user of its own; the status and the answer.
pub fn refusal(http: &mut Http) -> (u16, String) {
    let body = r#"{"message":{"op":0,"d":{},"t":"T"},"recipients":["another"]}"#;
    let (status, answer) = http.call("POST", "/v1/dispatch", body).expect("an answer");
    (status, String::from_utf8(answer).expect("text"))
}

/// Messages that wait for a user.
pub fn pending(http: &mut Http, user: &str) -> u64 {
    let found: Value = http.get(&format!("/v1/users/{user}")).expect("an answer");
    found["pending"]["messages"].as_u64().or_else(|| found["pending"].as_u64()).expect("a number")
}

/// Lets go of all that waits for a user.
pub fn clear(http: &mut Http, user: &str) {
    let (status, answer) = http.call("DELETE", &format!("/v1/users/{user}/messages"), "").expect("an answer");
    assert_eq!(status, 200, "{}", String::from_utf8_lossy(&answer));
}

/// A figure of the server's.
pub fn metric(http: &mut Http, name: &str) -> u64 {
    let (_, text) = http.call("GET", "/metrics", "").expect("an answer");
    let text = String::from_utf8(text).expect("text");
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
    value.expect("the figure")
}
