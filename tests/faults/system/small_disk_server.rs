//! Requests to a server on a small disk.

use serde_json::Value;

use crate::{
    small_disk::SmallDisk,
    support::{
        http::Http,
        server::{Home, Server},
        wait::block_until,
    },
};

/// Creates a home with further settings, whose store is on a small disk. `None`: the test may not mount, and this is
/// printed.
pub fn create_home(bytes: u64, settings: &str) -> Option<(Home, SmallDisk)> {
    let mut home = Home::with_settings(settings);
    let disk = SmallDisk::mount(&home, bytes)?;
    home.move_store(disk.0.join("store"));
    Some((home, disk))
}

/// Creates a home as [`create_home`], whose server flushes entries to the value log early.
///
/// The flush is 100 ms after the answer. Without the cargo feature `failpoints` it is 10 s after.
pub fn create_early_flush_home(bytes: u64, settings: &str) -> Option<(Home, SmallDisk)> {
    let (mut home, disk) = create_home(bytes, settings)?;
    home.set_variable("MESA_FAILPOINT", "EarlyFlush");
    Some((home, disk))
}

pub fn connect(server: &Server) -> Http {
    Http::connect(server.address).expect("a connection")
}

/// Returns the body of `/readyz` if its status is 503.
pub fn not_ready_reason(http: &mut Http) -> Option<String> {
    let (status, body) = http.call("GET", "/readyz", "").expect("a response");
    (status == 503).then(|| String::from_utf8(body).expect("UTF-8"))
}

/// Fills the disk until the server reports that. A server that starts or flushes may still free some space.
pub fn fill_until_reported(disk: &SmallDisk, http: &mut Http) {
    block_until("/readyz reports disk_full", || {
        disk.fill();
        not_ready_reason(http).is_some_and(|reason| reason.contains("disk_full"))
    });
}

pub fn wait_until_ready(http: &mut Http) {
    block_until("the server is ready", || not_ready_reason(http).is_none());
}

/// Dispatches an empty message to a user that no other function uses. Returns the status and the body.
pub fn try_dispatch(http: &mut Http) -> (u16, String) {
    let body = r#"{"message":{"op":0,"d":{},"t":"T"},"recipients":["other-user"]}"#;
    let (status, response) = http.call("POST", "/v1/dispatch", body).expect("a response");
    (status, String::from_utf8(response).expect("UTF-8"))
}

/// Returns the number of a user's pending messages.
pub fn pending(http: &mut Http, user: &str) -> u64 {
    let state: Value = http.get(&format!("/v1/users/{user}")).expect("a response");
    state["pending"]["messages"].as_u64().or_else(|| state["pending"].as_u64()).expect("a number")
}

/// Deletes a user's pending messages.
pub fn clear(http: &mut Http, user: &str) {
    let (status, response) = http.call("DELETE", &format!("/v1/users/{user}/messages"), "").expect("a response");
    assert_eq!(status, 200, "{}", String::from_utf8_lossy(&response));
}
