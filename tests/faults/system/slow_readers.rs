//! Clients that are owed a hundred thousand messages, ask for them, and never read: each costs a bounded amount of
//! memory, is cut in time and loses nothing, and nobody else waits for them.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use serde_json::Value;
use tokio::runtime::Runtime;

use crate::{
    client::{Client, Event},
    prepared::backlog,
    proc,
    support::{
        http::Http,
        server::{Home, Server},
    },
    tools,
};

/// Messages that wait.
const BACKLOG: u64 = 100_000;

/// What takes nothing for this long is cut: `limits.writeTimeout`. All have to be there before the first is, also on a machine that
/// has much else to do.
const WRITE_TIMEOUT: Duration = Duration::from_secs(8);

/// Connections that do not read. The first few make the store read what all of them ask for, into a cache that is there
/// in any case; what the others cost is measured.
const FIRST: usize = 5;
const READERS: usize = 60;

/// What each of them may cost the server, in bytes: a few times `limits.unsentBytes`, and nothing like what it is owed.
/// (Most of what is measured does not depend on how many they are: some twenty MiB that the store reads through.)
const COST_MAX: u64 = 1 << 20;

/// A live message that takes longer than this has waited for somebody. The figure is printed; a busy machine gets room.
const LATENCY_MAX: Duration = Duration::from_secs(2);

#[test]
fn clients_that_do_not_read_are_cut_lose_nothing_and_disturb_nobody() {
    let home = Home::new();
    let config = fs::read_to_string(home.path("config.json5")).expect("a configuration");
    let limits =
        format!("{{ store: {{ cacheBytes: 1048576 }}, limits: {{ writeTimeout: {} }},", WRITE_TIMEOUT.as_millis());
    fs::write(home.path("config.json5"), config.replacen('{', &limits, 1)).expect("written");
    backlog(&home.store(), "alice", BACKLOG);
    let server = home.start();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let mut http = Http::connect(server.address).expect("a connection");

    let mut bob = runtime.block_on(Client::connect(server.address, "bob")).expect("a connection");
    let alone = latency(&runtime, &mut http, &mut bob, 0, Duration::from_secs(1));
    let began = Instant::now();
    let connect = |count| -> Vec<Client> {
        let client = || runtime.block_on(Client::connect(server.address, "alice")).expect("a connection");
        (0..count).map(|_| client()).collect()
    };
    let first = connect(FIRST);
    let warm = latency(&runtime, &mut http, &mut bob, alone.sent, Duration::from_millis(500));
    let before = proc::resident_bytes(server.pid);
    let others = connect(READERS);
    let beside = latency(&runtime, &mut http, &mut bob, warm.sent, Duration::from_secs(1));
    assert_eq!(connections(&mut http), (FIRST + READERS) as u64, "they were cut too soon for this to say anything");
    let grown = proc::resident_bytes(server.pid).saturating_sub(before);
    let cut = wait_until_cut(&server, &mut http, began);

    tools::say(&format!(
        "{READERS} clients that never read {BACKLOG} messages: {} KiB of memory each, cut after {cut:?} (writeTimeout \
         {WRITE_TIMEOUT:?}); a live message beside them takes {:?}, p99 {:?} (alone {:?}, p99 {:?})",
        grown / READERS as u64 / 1024,
        beside.median,
        beside.p99,
        alone.median,
        alone.p99,
    ));
    assert!(grown < COST_MAX * READERS as u64, "{READERS} clients that do not read cost {grown} bytes");
    assert!(beside.p99 < LATENCY_MAX, "a live message took {:?}", beside.p99);
    drop((first, others));

    let mut alice = runtime.block_on(Client::connect(server.address, "alice")).expect("a connection");
    let received = runtime.block_on(alice.until_message(BACKLOG - 1)).unwrap_or_else(|wrong| panic!("{wrong}"));
    assert!(received.into_iter().eq(0..BACKLOG), "not what was owed, or not in order");
}

/// How long live messages took.
struct Latency {
    sent: u64,
    median: Duration,
    p99: Duration,
}

/// Dispatches to bob, one message after the other, numbered from `first`, and measures until he has each.
fn latency(runtime: &Runtime, http: &mut Http, bob: &mut Client, first: u64, long: Duration) -> Latency {
    let (end, mut times, mut n) = (Instant::now() + long, Vec::new(), first);
    while Instant::now() < end {
        let began = Instant::now();
        let status = http.try_dispatch(&serde_json::json!({ "n": n }), &["bob".to_owned()]);
        assert_eq!(status.expect("an answer"), 200);
        while runtime.block_on(bob.next(Duration::from_secs(20))) != Event::Message(n) {
            assert!(began.elapsed() < Duration::from_secs(20), "bob does not get message {n}");
        }
        times.push(began.elapsed());
        n += 1;
        thread::sleep(Duration::from_millis(2));
    }
    times.sort_unstable();
    Latency { sent: n, median: times[times.len() / 2], p99: times[times.len() * 99 / 100] }
}

/// Waits until none of alice's connections is left; how long after `began` that was.
fn wait_until_cut(server: &Server, http: &mut Http, began: Instant) -> Duration {
    while connections(http) > 0 {
        let memory = proc::resident_bytes(server.pid);
        assert!(began.elapsed() < WRITE_TIMEOUT * 3, "not cut after {:?}; {memory} bytes in use", began.elapsed());
        thread::sleep(Duration::from_millis(20));
    }
    assert!(began.elapsed() >= WRITE_TIMEOUT, "cut after {:?}", began.elapsed());
    began.elapsed()
}

fn connections(http: &mut Http) -> u64 {
    let user: Value = http.get("/v1/users/alice").expect("what is known of alice");
    user["connections"].as_u64().expect("a number")
}
