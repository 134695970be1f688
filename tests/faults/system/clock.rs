//! Lets the wall clock jump: ten years ahead and back, beyond 32-bit time, to 1970.
//!
//! Entries stay in the order of their sequences, heartbeats follow the monotonic clock, and nothing is lost.

use std::{fs, time::Duration};

use serde_json::Value;

use crate::{
    client::{Client, Event},
    env,
    support::{
        current_thread_runtime,
        http::Http,
        server::{Home, Server},
    },
    tracker::Tracker,
};

/// Paths of libfaketime for programs with threads, on Debian and other distributions.
const LIBRARIES: &[&str] = &[
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib64/faketime/libfaketimeMT.so.1",
    "/usr/lib/faketime/libfaketimeMT.so.1",
];

/// Settings of the clock in the syntax of libfaketime, and the time it shows.
const JUMPS: &[(&str, Jump)] = &[
    ("+10y", Jump::Years(10)),
    ("-10y", Jump::Years(-10)),
    ("@2038-01-19 03:14:06", Jump::To("2038-01-19T03:14:")),
    ("@2106-02-07 06:28:14", Jump::To("2106-02-07T06:28:")),
    ("@1970-01-02 00:00:00", Jump::To("1970-01-02T00:00:")),
    ("+0", Jump::Years(0)),
];

#[derive(Clone, Copy)]
enum Jump {
    /// By a number of years.
    Years(i64),
    /// To a time that has this prefix in RFC 3339.
    To(&'static str),
}

// covers: G1, G2
#[test]
fn clock_jumps_lose_no_message_and_keep_order() {
    let Some(library) = env::find_file(LIBRARIES, "libfaketime", "a clock that jumps") else { return };
    let home = Home::with_settings("heartbeat: { enabled: true, interval: 200, maxAttempts: 20 },");
    let runtime = current_thread_runtime();

    let mut tracker = Tracker::default();
    set_clock(&home, "+0");
    let mut server = start(&home, library);
    let mut alice = runtime.block_on(Client::connect(server.address, "alice")).expect("a connection");
    let (mut received, mut jumps) = (Vec::new(), 0);
    for round in 0..env::repetitions(1, 10) {
        for (clock, jump) in JUMPS {
            let mut http = Http::connect(server.address).expect("a connection");
            dispatch(&mut tracker, &mut http);
            set_clock(&home, clock);
            jumps += 1;
            dispatch(&mut tracker, &mut http);
            let numbers = runtime.block_on(read_with_heartbeats(&mut alice, tracker.dispatched_to("alice") - 1));
            append_received(&mut received, numbers);
            check_clock_has_jumped(&mut http, &runtime, server.address, *jump);
            // Every second restart is a SIGTERM, the others are a SIGKILL.
            if jumps % 2 == 0 {
                server.stop(Duration::from_secs(10));
            } else {
                server.process.kill();
            }
            server = start(&home, library);
            let mut http = Http::connect(server.address).expect("a connection");
            tracker
                .check_user(&mut http, "bob")
                .unwrap_or_else(|violation| panic!("{clock}, round {round}: {violation}"));
            alice = runtime.block_on(Client::connect(server.address, "alice")).expect("a connection");
        }
    }
    let mut http = Http::connect(server.address).expect("a connection");
    dispatch(&mut tracker, &mut http);
    let numbers = runtime.block_on(read_with_heartbeats(&mut alice, tracker.dispatched_to("alice") - 1));
    append_received(&mut received, numbers);
    tracker.check_received("alice", &received).unwrap_or_else(|violation| panic!("{violation}"));
    wait_until_acknowledged(&mut http, &runtime, &mut alice);
    assert!(!home.log().contains("panicked"), "{}", home.log());
    env::print(&format!(
        "{jumps} jumps of the clock, each followed by a restart: {} dispatches answered and kept",
        tracker.answered()
    ));
}

/// Sets the clock that the server sees.
fn set_clock(home: &Home, clock: &str) {
    // libfaketime reads the file for each time query, so it is replaced atomically.
    fs::write(home.path("clock.new"), clock).expect("the file is written");
    fs::rename(home.path("clock.new"), home.path("clock")).expect("the file is renamed");
}

fn start(home: &Home, library: &str) -> Server {
    let variables = [
        format!("LD_PRELOAD={library}"),
        format!("FAKETIME_TIMESTAMP_FILE={}", home.path("clock").display()),
        "FAKETIME_NO_CACHE=1".to_owned(),
        // The monotonic clock does not jump. Newer libraries read the first name, older ones the second.
        "FAKETIME_DONT_FAKE_MONOTONIC=1".to_owned(),
        "DONT_FAKE_MONOTONIC=1".to_owned(),
        "TZ=UTC".to_owned(),
    ];
    let wrapper: Vec<&str> = ["env"].into_iter().chain(variables.iter().map(String::as_str)).collect();
    home.wait_until_ready(home.spawn(&wrapper))
}

/// Dispatches five messages each to alice (online) and bob (offline).
fn dispatch(tracker: &mut Tracker, http: &mut Http) {
    for _ in 0..5 {
        for user in ["alice", "bob"] {
            assert_eq!(tracker.dispatch(http, user).expect("a response"), 200);
        }
    }
}

/// Reads until message `last` and two heartbeats after it.
///
/// The heartbeats show that the server's timers still run.
async fn read_with_heartbeats(client: &mut Client, last: u64) -> Vec<u64> {
    let received = client.read_until_message(last).await.unwrap_or_else(|error| panic!("{error}"));
    for _ in 0..2 {
        let next = client.next(Duration::from_secs(5)).await;
        assert_eq!(next, Event::Heartbeat, "expected a heartbeat within 5 s");
    }
    received
}

/// Appends the numbers of a connection to those of the connections before.
///
/// Messages that were not acknowledged before a SIGKILL are repeated. A gap is a violation.
fn append_received(received: &mut Vec<u64>, numbers: Vec<u64>) {
    let kept = numbers.first().map_or(received.len(), |first| *first as usize);
    assert!(kept <= received.len(), "expected no gap between {} and {kept}", received.len());
    received.truncate(kept);
    received.extend(numbers);
}

/// Checks with the `lastSeen` of a new connection that the server's clock has jumped.
fn check_clock_has_jumped(
    http: &mut Http,
    runtime: &tokio::runtime::Runtime,
    address: std::net::SocketAddr,
    jump: Jump,
) {
    let client = runtime.block_on(Client::connect(address, "carol")).expect("a connection");
    let user: Value = http.get("/v1/users/carol").expect("the state of carol");
    let last_seen = user["lastSeen"].as_str().expect("a time");
    drop(client);
    let has_jumped = match jump {
        Jump::To(prefix) => last_seen.starts_with(prefix),
        Jump::Years(years) => {
            let now =
                std::time::UNIX_EPOCH.elapsed().expect("a clock after 1970").as_secs() as f64 / 31_556_952.0 + 1970.0;
            let year: f64 = last_seen[..4].parse().expect("a year");
            (year - now - years as f64).abs() < 1.1
        }
    };
    assert!(has_jumped, "expected a jump of the clock, found lastSeen {last_seen}");
}

/// Waits until alice has no pending entries.
fn wait_until_acknowledged(http: &mut Http, runtime: &tokio::runtime::Runtime, alice: &mut Client) {
    for _ in 0..100 {
        let user: Value = http.get("/v1/users/alice").expect("the state of alice");
        if user["pending"] == 0 {
            return;
        }
        _ = runtime.block_on(alice.next(Duration::from_millis(100)));
    }
    panic!("expected no pending entries of alice after 100 reads");
}
