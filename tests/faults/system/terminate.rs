//! Sends SIGTERM at random moments. The server must exit in time, close its connections with 1001, and keep every
//! answered dispatch.

use std::{
    fs,
    process::ExitStatus,
    thread,
    time::{Duration, Instant},
};

use rustix::process::Signal;

use crate::{
    backends::Backends,
    client::{Client, Event},
    env,
    fixture_store::{FixtureStore, copy, create_backlog},
    proc,
    strace::{self, Fault},
    support::{
        current_thread_runtime,
        http::Http,
        seeded_rng::Random,
        server::{Home, Server},
        wait::WAIT_TIMEOUT,
    },
    tracker::Tracker,
};

/// Time within which a server must exit: its own limits add up to 11 s, and a disk that is written to by other programs may
/// delay even a log line by as much.
const EXIT_TIMEOUT: Duration = Duration::from_secs(60);

/// Pending messages of the client whose redelivery is interrupted.
const BACKLOG: u64 = 4_000;

// covers: G1
#[test]
fn sigterm_during_dispatches_keeps_answered_ones_and_closes_connections() {
    let mut random = Random::from_env("terminate_dispatches");
    let rounds = env::repetitions(10, 200);
    let (mut answered, mut slowest) = (0, Duration::ZERO);
    for _ in 0..rounds {
        let home = Home::new();
        let (pause, gap) = (random.within(5..=150), random.one_in(2).then(|| random.within(0..=30)));
        let (tracker, exit_time) = terminate_during_dispatches(&home, pause, gap);
        answered += tracker.answered();
        slowest = slowest.max(exit_time);
        check_after_start(&home, &tracker);
    }
    env::print(&format!(
        "{rounds} times SIGTERM during dispatches: {answered} answered and kept; exited within {slowest:?}"
    ));
}

/// Sends SIGTERM after `pause` ms of dispatches.
///
/// If `gap` is set, a second SIGTERM follows `gap` ms later. Returns what was dispatched, and the time until the server
/// had exited.
fn terminate_during_dispatches(home: &Home, pause: u64, gap: Option<u64>) -> (Tracker, Duration) {
    let server = home.start();
    let runtime = current_thread_runtime();
    let client = runtime.block_on(Client::connect(server.address, "observer")).expect("a connection");
    let users: Vec<String> = (0..4).map(|n| format!("user-{n}")).collect();
    let backends = Backends::start(server.address, &users);
    backends.wait_for(1);
    thread::sleep(Duration::from_millis(pause));
    let signalled = Instant::now();
    server.terminate();
    if let Some(gap) = gap {
        thread::sleep(Duration::from_millis(gap));
        proc::signal(server.pid, Signal::TERM);
    }
    let (_, end) = runtime.block_on(client.read_until_end(EXIT_TIMEOUT));
    let status = wait_for_exit(server, home);
    let exit_time = signalled.elapsed();
    check_exit(status, gap.is_some(), home);
    // After a second SIGTERM the server may exit without a close frame.
    let closed = end == Event::Closed(1001) || gap.is_some() && end == Event::Disconnected;
    assert!(closed, "expected close code 1001, found {end:?}:\n{}", home.log());
    (backends.stop(), exit_time)
}

// covers: G2
#[test]
fn sigterm_during_redelivery_loses_no_message() {
    let mut random = Random::from_env("terminate_redelivery");
    let rounds = env::repetitions(10, 200);
    let image = tempfile::Builder::new().prefix("mesa-test-").tempdir().expect("a temporary directory");
    create_backlog(image.path(), "alice", BACKLOG);
    let mut interrupted = 0;
    for _ in 0..rounds {
        let home = Home::new();
        copy(image.path(), &home.store());
        let server = home.start();
        let runtime = current_thread_runtime();
        let received_before = random.within(1..=BACKLOG - 1);
        let (twice, client_leaves) = (random.one_in(3), random.one_in(2));
        let (first, end) = runtime.block_on(async {
            let mut client = Client::connect(server.address, "alice").await.expect("a connection");
            let mut first = client.read_until_message(received_before).await.unwrap_or_else(|error| panic!("{error}"));
            server.terminate();
            if twice {
                proc::signal(server.pid, Signal::TERM);
            }
            if client_leaves {
                // Messages in flight are lost with the connection.
                return (first, None);
            }
            let (rest, end) = client.read_until_end(EXIT_TIMEOUT).await;
            first.extend(rest);
            (first, Some(end))
        });
        check_exit(wait_for_exit(server, &home), twice, &home);
        let closed = end.as_ref().is_none_or(|end| *end == Event::Closed(1001) || twice && *end == Event::Disconnected);
        assert!(closed, "expected close code 1001, found {end:?}");
        assert!(first.iter().copied().eq(0..first.len() as u64), "expected messages in order before SIGTERM");
        interrupted += usize::from((first.len() as u64) < BACKLOG);

        let server = home.start();
        let second = runtime.block_on(async {
            let mut http = Http::connect(server.address).expect("a connection");
            let user: serde_json::Value = http.get("/v1/users/alice").expect("the state of alice");
            if user["pending"] == 0 {
                return Vec::new();
            }
            let mut client = Client::connect(server.address, "alice").await.expect("a connection");
            client.read_until_message(BACKLOG - 1).await.unwrap_or_else(|error| panic!("{error}"))
        });
        // The second connection may repeat messages that the first did not acknowledge, and must not skip any.
        let from = second.first().copied().unwrap_or(BACKLOG);
        assert!(
            from <= first.len() as u64,
            "expected no gap: {} messages before SIGTERM, then from {from}",
            first.len()
        );
        assert!(second.iter().copied().eq(from..BACKLOG), "expected messages in order after the restart");
    }
    env::print(&format!(
        "{rounds} times SIGTERM during redelivery of {BACKLOG} messages, {interrupted} of them before the last message: no \
         message lost"
    ));
    assert!(interrupted > 0, "expected SIGTERM before the end of a redelivery");
}

#[test]
fn sigterm_during_start_exits_with_code_0() {
    if !env::strace_available("SIGTERM during a slow start") {
        return;
    }
    let mut random = Random::from_env("terminate_start");
    let rounds = env::repetitions(10, 200);
    let fixture = FixtureStore::new();
    let home = Home::new();
    let mut before_listening = 0;
    for _ in 0..rounds {
        fixture.copy_to(&home);
        // Each sync is delayed by 40 ms, so that the signal arrives before the server listens.
        let slow_sync = Fault { call: "fsync".into(), effect: "delay_enter=40000", when: 1, permanent: true };
        let process = strace::spawn(&home, "fsync", &std::collections::BTreeSet::new(), Some(&slow_sync));
        let pid = wait_for_store_owner(&home);
        thread::sleep(Duration::from_millis(random.within(0..=400)));
        before_listening += usize::from(!home.path("ready").exists());
        proc::signal(pid, Signal::TERM);
        let status = strace::wait_for_exit(&home, process, EXIT_TIMEOUT, "SIGTERM during a start");
        assert!(status.success(), "expected exit code 0, found {status}:\n{}", home.log());
        fixture.check_after_start(&home).unwrap_or_else(|violation| panic!("{violation}"));
    }
    env::print(&format!(
        "{rounds} times SIGTERM during a start, {before_listening} of them before the server listened"
    ));
    assert!(before_listening > 0, "expected SIGTERM before a server listened");
}

/// Waits until a server owns the store of `home`, and returns its process id.
fn wait_for_store_owner(home: &Home) -> i32 {
    let end = Instant::now() + WAIT_TIMEOUT;
    let lock = home.store().join("lock");
    // The test process created the store, so the copied lock file has its id at first.
    let own = i32::try_from(std::process::id()).expect("a process id fits 32 bits");
    loop {
        let owner = fs::read_to_string(&lock).ok().and_then(|text| text.parse().ok());
        if let Some(pid) = owner.filter(|pid| *pid != own) {
            return pid;
        }
        assert!(Instant::now() < end, "expected a server to lock the store within {WAIT_TIMEOUT:?}");
        thread::sleep(Duration::from_millis(1));
    }
}

fn wait_for_exit(server: Server, home: &Home) -> ExitStatus {
    strace::wait_for_exit(home, server.process, EXIT_TIMEOUT, "SIGTERM to a running server")
}

/// Checks that the exit code is 0. After a second SIGTERM it may be 143 (128 + 15).
fn check_exit(status: ExitStatus, twice: bool, home: &Home) {
    let expected = status.success() || twice && status.code() == Some(143);
    assert!(expected, "exited with {status}:\n{}", home.log());
}

fn check_after_start(home: &Home, tracker: &Tracker) {
    let server = home.start();
    let mut http = Http::connect(server.address).expect("a connection");
    tracker.check(&mut http).unwrap_or_else(|violation| panic!("{violation}:\n{}", home.log()));
}
