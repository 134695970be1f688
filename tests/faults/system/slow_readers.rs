//! Tests clients with 100,000 pending messages that authenticate and never read.
//!
//! Each must cost bounded memory, be disconnected in time and lose nothing. Other clients must not wait for them.

use std::{
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;
use tokio::runtime::Runtime;

use crate::{
    client::{Client, Event},
    env,
    fixture_store::create_backlog,
    proc,
    support::{
        current_thread_runtime,
        http::Http,
        server::{Home, Server},
    },
};

/// Pending messages.
const BACKLOG: u64 = 100_000;

/// `limits.writeTimeout`: a client that accepts no bytes for this long is disconnected.
///
/// All clients must be connected before the first is disconnected, also on a busy machine.
const WRITE_TIMEOUT: Duration = Duration::from_secs(8);

/// Clients that do not read, before memory is measured. They fill the cache of the store, which has a size of its own.
const WARM_UP_CLIENTS: usize = 5;

/// Clients that do not read, whose memory is measured.
const CLIENTS: usize = 60;

/// Bound on the memory of the server for each client, in bytes.
///
/// It is a few times `limits.unsentBytes`, and far below the size of the backlog.
/// About 20 MiB of what is measured does not depend on the number of clients: memory that the store reads through.
const CLIENT_BYTES_MAX: u64 = 1 << 20;

/// Bound on the 99th percentile of a live message's latency. It leaves room for a busy machine. The measured value is
/// printed.
const LATENCY_MAX: Duration = Duration::from_secs(2);

// covers: G2
#[test]
fn clients_that_never_read_are_disconnected_and_lose_nothing() {
    let home = Home::with_settings(&format!(
        "store: {{ cacheBytes: 1048576 }}, limits: {{ writeTimeout: {} }},",
        WRITE_TIMEOUT.as_millis()
    ));
    create_backlog(&home.store(), "alice", BACKLOG);
    let server = home.start();
    let runtime = current_thread_runtime();
    let mut http = Http::connect(server.address).expect("a connection");

    let mut bob = runtime.block_on(Client::connect(server.address, "bob")).expect("a connection");
    let alone = measure_latency(&runtime, &mut http, &mut bob, 0, Duration::from_secs(1));
    let began = Instant::now();
    let connect = |count| -> Vec<Client> {
        let client = || runtime.block_on(Client::connect(server.address, "alice")).expect("a connection");
        (0..count).map(|_| client()).collect()
    };
    let warm_up = connect(WARM_UP_CLIENTS);
    let warm = measure_latency(&runtime, &mut http, &mut bob, alone.next, Duration::from_millis(500));
    let before = proc::resident_bytes(server.pid);
    let clients = connect(CLIENTS);
    let loaded = measure_latency(&runtime, &mut http, &mut bob, warm.next, Duration::from_secs(1));
    let connected = connections(&mut http);
    assert_eq!(connected, (WARM_UP_CLIENTS + CLIENTS) as u64, "expected every client to be connected while measuring");
    let grown = proc::resident_bytes(server.pid).saturating_sub(before);
    let disconnected = wait_until_disconnected(&server, &mut http, began);

    env::print(&format!(
        "{CLIENTS} clients that never read {BACKLOG} messages: {} KiB of memory each, disconnected after \
         {disconnected:?} (writeTimeout {WRITE_TIMEOUT:?}); latency of a live message {:?}, p99 {:?} (without them {:?}, \
         p99 {:?})",
        grown / CLIENTS as u64 / 1024,
        loaded.median,
        loaded.p99,
        alone.median,
        alone.p99,
    ));
    assert!(
        grown < CLIENT_BYTES_MAX * CLIENTS as u64,
        "expected less than {CLIENT_BYTES_MAX} bytes for each of {CLIENTS} clients, found {grown} in all"
    );
    assert!(loaded.p99 < LATENCY_MAX, "expected a p99 below {LATENCY_MAX:?}, found {:?}", loaded.p99);
    drop((warm_up, clients));

    let mut alice = runtime.block_on(Client::connect(server.address, "alice")).expect("a connection");
    let received = runtime.block_on(alice.read_until_message(BACKLOG - 1)).unwrap_or_else(|error| panic!("{error}"));
    assert!(received.into_iter().eq(0..BACKLOG), "expected every pending message once and in order");
}

/// Longest time from a dispatch until bob receives its message.
const DELIVERY_MAX: Duration = Duration::from_secs(20);

/// Measured latency of live messages.
struct Latency {
    /// Number of the next message.
    next: u64,
    median: Duration,
    p99: Duration,
}

/// Dispatches messages to bob, numbered from `first`, and measures the time until each is received.
fn measure_latency(runtime: &Runtime, http: &mut Http, bob: &mut Client, first: u64, duration: Duration) -> Latency {
    let (end, mut times, mut n) = (Instant::now() + duration, Vec::new(), first);
    while Instant::now() < end {
        let began = Instant::now();
        let status = http.try_dispatch(&serde_json::json!({ "n": n }), &["bob".to_owned()]);
        assert_eq!(status.expect("a response"), 200);
        while runtime.block_on(bob.next(DELIVERY_MAX)) != Event::Message(n) {
            assert!(began.elapsed() < DELIVERY_MAX, "expected bob to receive message {n} within {DELIVERY_MAX:?}");
        }
        times.push(began.elapsed());
        n += 1;
        thread::sleep(Duration::from_millis(2));
    }
    times.sort_unstable();
    Latency { next: n, median: times[times.len() / 2], p99: times[times.len() * 99 / 100] }
}

/// Waits until alice has no connection. Returns the time since `began`.
fn wait_until_disconnected(server: &Server, http: &mut Http, began: Instant) -> Duration {
    while connections(http) > 0 {
        let memory = proc::resident_bytes(server.pid);
        let elapsed = began.elapsed();
        assert!(elapsed < WRITE_TIMEOUT * 3, "expected no connection after {elapsed:?}; {memory} bytes resident");
        thread::sleep(Duration::from_millis(20));
    }
    assert!(began.elapsed() >= WRITE_TIMEOUT, "disconnected after {:?}, before the timeout", began.elapsed());
    began.elapsed()
}

fn connections(http: &mut Http) -> u64 {
    let user: Value = http.get("/v1/users/alice").expect("the state of alice");
    user["connections"].as_u64().expect("a number")
}
