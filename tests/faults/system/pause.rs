//! Stops a server with SIGSTOP, and resumes it with SIGCONT seconds later.
//!
//! Moving a virtual machine stops a server in the same way.
//! Every request in flight must be answered, every connection kept, and nothing lost.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rustix::process::Signal;

use crate::{
    backends::Backends,
    client::{Client, Event},
    env, proc,
    support::{http::Http, seeded_rng::Random, server::Home},
};

// covers: G2
#[test]
fn server_resumed_after_sigstop_keeps_connections_and_messages() {
    let mut random = Random::from_env("pause");
    let home = Home::with_settings("heartbeat: { enabled: true, interval: 1000, maxAttempts: 3 },");
    let (pauses, pause_ms) = if env::long_form() { (6, 20_000) } else { (2, 3_000) };

    let server = home.start();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let client = runtime.block_on(Client::connect(server.address, "user-0")).expect("a connection");
    let last = Arc::new(AtomicU64::new(u64::MAX));
    let reading = runtime.spawn(read_until_last(client, last.clone()));
    let users: Vec<String> = (0..3).map(|n| format!("user-{n}")).collect();
    let backends = Backends::start(server.address, &users);
    for _ in 0..pauses {
        let before = backends.answered();
        backends.wait_for(before + 50);
        thread::sleep(Duration::from_millis(random.within(0..=100)));
        proc::signal(server.pid, Signal::STOP);
        let signalled = Instant::now();
        while !proc::is_stopped(server.pid) {
            assert!(signalled.elapsed() < Duration::from_secs(5), "expected the process to stop within 5 s");
            thread::sleep(Duration::from_millis(1));
        }
        let at_stop = backends.answered();
        thread::sleep(Duration::from_millis(pause_ms));
        // Each backend may have received one response that it had not counted yet.
        assert!(backends.answered() <= at_stop + users.len(), "expected no response from a stopped process");
        proc::signal(server.pid, Signal::CONT);
        backends.wait_for(at_stop + users.len() + 50);
    }
    let tracker = backends.stop();
    last.store(tracker.dispatched_to("user-0") - 1, Ordering::Relaxed);
    let received = runtime.block_on(reading).expect("no panic").unwrap_or_else(|error| panic!("the client: {error}"));
    tracker.check_received("user-0", &received).unwrap_or_else(|violation| panic!("{violation}"));
    server.process.kill();

    let server = home.start();
    let mut http = Http::connect(server.address).expect("a connection");
    for user in &users[1..] {
        tracker.check_user(&mut http, user).unwrap_or_else(|violation| panic!("{violation}"));
    }
    env::print(&format!(
        "{pauses} pauses of {pause_ms} ms during {} dispatches: {} answered and kept",
        tracker.dispatched(),
        tracker.answered()
    ));
}

/// Reads over one connection until the message whose number `last` has. `u64::MAX` in `last`: not known yet.
///
/// # Errors
/// If the connection ends, or nothing is received for 60 s.
async fn read_until_last(mut client: Client, last: Arc<AtomicU64>) -> Result<Vec<u64>, String> {
    let (mut received, mut last_event) = (Vec::new(), Instant::now());
    loop {
        match client.next(Duration::from_millis(50)).await {
            Event::Message(n) => received.push(n),
            Event::Heartbeat => {}
            Event::Timeout if received.last() == Some(&last.load(Ordering::Relaxed)) => return Ok(received),
            Event::Timeout if last_event.elapsed() < Duration::from_secs(60) => continue,
            end => return Err(format!("{end:?} after {} messages", received.len())),
        }
        last_event = Instant::now();
    }
}
