//! Clocks that jump: ten years ahead, ten years back, over the end of 32-bit time, before most things were. Order is
//! that of sequences, waiting is by the clock that nobody sets, and nothing is lost.

use std::{fs, time::Duration};

use serde_json::Value;

use crate::{
    client::{Client, Event},
    env,
    support::{
        http::Http,
        server::{Home, Server},
    },
    tracker::Ledger,
};

/// Where Debian and others put it; the one for programs with threads.
const LIBRARIES: &[&str] = &[
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib64/faketime/libfaketimeMT.so.1",
    "/usr/lib/faketime/libfaketimeMT.so.1",
];

/// What the clock is set to, and what it shows then.
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
    /// So many years from now.
    Years(i64),
    /// To a moment that begins like this.
    To(&'static str),
}

#[test]
fn clocks_that_jump_change_nothing_but_what_is_shown() {
    let Some(library) = env::file_is_here(LIBRARIES, "libfaketime", "a clock that jumps") else { return };
    let home = Home::new();
    let config = fs::read_to_string(home.path("config.json5")).expect("a configuration");
    let config = config.replacen('{', "{ heartbeat: { enabled: true, interval: 200, maxAttempts: 20 },", 1);
    fs::write(home.path("config.json5"), config).expect("written");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");

    let mut ledger = Ledger::default();
    set(&home, "+0");
    let mut server = start(&home, library);
    let mut alice = runtime.block_on(Client::connect(server.address, "alice")).expect("a connection");
    let (mut received, mut jumps) = (Vec::new(), 0);
    for round in 0..env::times(1, 10) {
        for (clock, jump) in JUMPS {
            let mut http = Http::connect(server.address).expect("a connection");
            dispatch(&mut ledger, &mut http);
            set(&home, clock);
            jumps += 1;
            dispatch(&mut ledger, &mut http);
            take(&mut received, runtime.block_on(hear(&mut alice, ledger.sent_to("alice") - 1)));
            shows(&mut http, &runtime, server.address, *jump);
            // And the same over a restart, now in order and now not.
            if jumps % 2 == 0 {
                server.terminate();
                assert!(server.process.wait(Duration::from_secs(10)).success(), "{}", home.log());
            } else {
                server.process.kill();
            }
            server = start(&home, library);
            let mut http = Http::connect(server.address).expect("a connection");
            ledger.check_user(&mut http, "bob").unwrap_or_else(|wrong| panic!("{clock}, round {round}: {wrong}"));
            alice = runtime.block_on(Client::connect(server.address, "alice")).expect("a connection");
        }
    }
    let mut http = Http::connect(server.address).expect("a connection");
    dispatch(&mut ledger, &mut http);
    take(&mut received, runtime.block_on(hear(&mut alice, ledger.sent_to("alice") - 1)));
    ledger.check_received("alice", &received).unwrap_or_else(|wrong| panic!("{wrong}"));
    confirmed(&mut http, &runtime, &mut alice);
    assert!(!home.log().contains("panicked"), "{}", home.log());
    env::say(&format!(
        "{jumps} jumps of the clock, a restart behind each: {} dispatches answered and kept",
        ledger.answered()
    ));
}

/// Sets the clock that the server sees.
fn set(home: &Home, clock: &str) {
    // Whole or not at all: it is read at every look at the clock.
    fs::write(home.path("clock.new"), clock).expect("written");
    fs::rename(home.path("clock.new"), home.path("clock")).expect("renamed");
}

fn start(home: &Home, library: &str) -> Server {
    let variables = [
        format!("LD_PRELOAD={library}"),
        format!("FAKETIME_TIMESTAMP_FILE={}", home.path("clock").display()),
        "FAKETIME_NO_CACHE=1".to_owned(),
        // The clock that only goes forward is not what jumps. (One name for old libraries, one for new.)
        "FAKETIME_DONT_FAKE_MONOTONIC=1".to_owned(),
        "DONT_FAKE_MONOTONIC=1".to_owned(),
        "TZ=UTC".to_owned(),
    ];
    let wrapper: Vec<&str> = ["env"].into_iter().chain(variables.iter().map(String::as_str)).collect();
    home.wait_until_ready(home.spawn(&wrapper))
}

/// A few messages for alice, who is there, and for bob, who is not.
fn dispatch(ledger: &mut Ledger, http: &mut Http) {
    for _ in 0..5 {
        for user in ["alice", "bob"] {
            assert_eq!(ledger.dispatch(http, user).expect("an answer"), 200);
        }
    }
}

/// Reads up to message `last`, and then until two heartbeats have come: time goes on.
async fn hear(client: &mut Client, last: u64) -> Vec<u64> {
    let received = client.until_message(last).await.unwrap_or_else(|wrong| panic!("{wrong}"));
    for _ in 0..2 {
        let next = client.next(Duration::from_secs(5)).await;
        assert_eq!(next, Event::Asked, "no heartbeat within five seconds");
    }
    received
}

/// Adds what was heard to what was received. What was not confirmed before a kill comes once more; a hole never does.
fn take(received: &mut Vec<u64>, heard: Vec<u64>) {
    let known = heard.first().map_or(received.len(), |first| *first as usize);
    assert!(known <= received.len(), "a hole between {} and {known}", received.len());
    received.truncate(known);
    received.extend(heard);
}

/// Holds that the jump has happened: it shows in when a user was seen.
fn shows(http: &mut Http, runtime: &tokio::runtime::Runtime, address: std::net::SocketAddr, jump: Jump) {
    let visitor = runtime.block_on(Client::connect(address, "carol")).expect("a connection");
    let user: Value = http.get("/v1/users/carol").expect("what is known of carol");
    let seen = user["lastSeen"].as_str().expect("was seen");
    drop(visitor);
    let fine = match jump {
        Jump::To(moment) => seen.starts_with(moment),
        Jump::Years(years) => {
            let now =
                std::time::UNIX_EPOCH.elapsed().expect("a clock after 1970").as_secs() as f64 / 31_556_952.0 + 1970.0;
            let year: f64 = seen[..4].parse().expect("a year");
            (year - now - years as f64).abs() < 1.1
        }
    };
    assert!(fine, "carol was seen {seen}: the clock has not jumped");
}

/// Waits until the server has all receipts of alice.
fn confirmed(http: &mut Http, runtime: &tokio::runtime::Runtime, alice: &mut Client) {
    for _ in 0..100 {
        let user: Value = http.get("/v1/users/alice").expect("what is known of alice");
        if user["pending"] == 0 {
            return;
        }
        _ = runtime.block_on(alice.next(Duration::from_millis(100)));
    }
    panic!("alice's receipts do not arrive");
}
