//! Limits the number of descriptors of a server.
//!
//! With few descriptors, some stay reserved for the store, and the server serves the connections that it has. With
//! none, it waits without using CPU time, and accepts connections again as soon as it can.

use std::{
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};

use crate::{
    client::{Client, Event},
    env, proc,
    small_disk::bytes_in,
    support::{
        current_thread_runtime,
        http::Http,
        server::{Home, Server},
        wait::block_until,
    },
    tracker::Tracker,
};

/// Descriptors that the server may have open.
const DESCRIPTORS_MAX: usize = 80;

/// Connections attempted: more than the server may accept.
const CONNECTIONS: usize = 150;

/// Time for which the server is observed while it cannot accept connections.
const OBSERVATION_DELAY: Duration = Duration::from_secs(2);

/// CPU time that the server may use meanwhile, including dispatches. A busy loop would use all of `OBSERVATION_DELAY`.
const CPU_TIME_MAX: Duration = Duration::from_millis(400);

#[test]
fn server_without_free_descriptors_waits_and_serves_its_connections() {
    if !env::program_available("prlimit", "running out of descriptors") {
        return;
    }
    let (home, mut tracker) = (Home::new(), Tracker::default());
    let limit = format!("--nofile={DESCRIPTORS_MAX}:{DESCRIPTORS_MAX}");
    let server = home.wait_until_ready(home.spawn(&["prlimit", &limit]));
    let runtime = current_thread_runtime();
    let mut client = runtime.block_on(Client::connect(server.address, "alice")).expect("a connection");
    let mut http = Http::connect(server.address).expect("a connection");
    assert_eq!(tracker.dispatch(&mut http, "alice").expect("a response"), 200);

    for _ in 0..env::repetitions(2, 10) {
        let connections = connect_above_limit(&server);
        let open = proc::open_descriptors(server.pid);
        assert!(open < DESCRIPTORS_MAX, "expected less than {DESCRIPTORS_MAX} open descriptors, found {open}");
        let (before, began) = (proc::cpu_time(server.pid), Instant::now());
        let mut dispatched = 0;
        while began.elapsed() < OBSERVATION_DELAY {
            assert_eq!(tracker.dispatch(&mut http, "alice").expect("a response"), 200);
            assert_eq!(tracker.dispatch(&mut http, "bob").expect("a response"), 200);
            dispatched += 2;
            thread::sleep(Duration::from_millis(100));
        }
        let used = proc::cpu_time(server.pid).saturating_sub(before);
        assert!(used < CPU_TIME_MAX, "expected less than {CPU_TIME_MAX:?} of CPU time, found {used:?}");
        let status = Http::connect(server.address).and_then(|mut http| http.status("/readyz"));
        assert_eq!(status.expect("a new connection is served while the others are open"), 200);
        drop(connections);
        env::print(&format!(
            "{open} of {DESCRIPTORS_MAX} descriptors in use: {dispatched} dispatches in {OBSERVATION_DELAY:?} with {used:?} \
             of CPU time"
        ));
    }
    check_without_any_descriptor(&home, &server);
    assert_eq!(tracker.dispatch(&mut http, "alice").expect("a response"), 200);
    let last = tracker.dispatched_to("alice") - 1;
    let live = runtime.block_on(client.read_until_message(last)).unwrap_or_else(|error| panic!("the client: {error}"));
    tracker.check_received("alice", &live).unwrap_or_else(|violation| panic!("{violation}"));

    server.process.kill();
    let server = home.start();
    let mut http = Http::connect(server.address).expect("a connection");
    tracker.check_user(&mut http, "bob").unwrap_or_else(|violation| panic!("{violation}"));
}

/// Opens more connections than the server may accept. The response to the last one shows that it has handled all of
/// them.
fn connect_above_limit(server: &Server) -> Vec<TcpStream> {
    let connections = (0..CONNECTIONS)
        .map(|_| TcpStream::connect(server.address).expect("a place in the kernel's accept queue"))
        .collect();
    let mut last = Http::connect(server.address).expect("a connection");
    assert_eq!(last.status("/healthz").expect("a response"), 200);
    connections
}

/// Checks a server without any free descriptor: the reserved ones are used up too.
fn check_without_any_descriptor(home: &Home, server: &Server) {
    let pid = Pid::from_raw(server.pid).expect("a process id");
    let limit = |files: usize| Rlimit { current: Some(files as u64), maximum: Some(DESCRIPTORS_MAX as u64) };
    // The limit bounds the descriptor's number, and the kernel assigns the lowest free one. So no new one is below the
    // limit.
    prlimit(Some(pid), Resource::Nofile, limit(1)).expect("the limit is lowered");
    let connections: Vec<TcpStream> =
        (0..20).map(|_| TcpStream::connect(server.address).expect("a connection")).collect();
    home.wait_for_log(|log| log.contains("accepting connections failed"));
    let before = proc::cpu_time(server.pid);
    thread::sleep(OBSERVATION_DELAY);
    let used = proc::cpu_time(server.pid).saturating_sub(before);
    assert!(used < CPU_TIME_MAX, "expected less than {CPU_TIME_MAX:?} of CPU time, found {used:?}");
    prlimit(Some(pid), Resource::Nofile, limit(DESCRIPTORS_MAX)).expect("the limit is raised");
    let status = Http::connect(server.address).and_then(|mut http| http.status("/readyz"));
    assert_eq!(status.expect("a new connection is served"), 200);
    drop(connections);
}

/// Number of opens that fail in each thread before they succeed again.
const FAILING_OPENS: usize = 24;

/// Starts a server under `strace`. In each thread the first opens of files in this directory of the store fail.
fn start_failing(home: &Home, directory: &str, error: &str) -> Server {
    let path = home.store().join(directory);
    let mut files: Vec<_> = (1..=40).map(|n| path.join(format!("{n:016x}"))).collect();
    files.push(path.join(".next"));
    let inject = format!("inject=openat:error={error}:when=1..{FAILING_OPENS}");
    let mut wrapper =
        vec!["strace", "-D", "-f", "-e", "signal=none", "-o", "/dev/null", "-e", "trace=openat", "-e", &inject];
    wrapper.extend(files.iter().flat_map(|path| ["-P", path.to_str().expect("a UTF-8 path")]));
    home.wait_until_ready(home.spawn(&wrapper))
}

// covers: G1
#[test]
fn dispatch_without_descriptor_for_wal_is_rejected_and_store_stays_open() {
    if !env::strace_available("WAL files that cannot be opened") {
        return;
    }
    for error in ["EMFILE", "ENFILE", "ENOMEM"] {
        let (home, mut tracker) = (Home::new(), Tracker::default());
        let server = start_failing(&home, "wal", error);
        let mut http = Http::connect(server.address).expect("a connection");
        let mut rejected = 0;
        for _ in 0..2 * FAILING_OPENS {
            match tracker.dispatch(&mut http, "alice").expect("a response") {
                200 => {}
                503 => rejected += 1,
                status => panic!("expected status 200 or 503 for a dispatch, found {status}"),
            }
        }
        assert!(
            rejected > 0 && rejected <= FAILING_OPENS,
            "expected 1 to {FAILING_OPENS} rejections, found {rejected}"
        );
        let answered = tracker.answered();
        assert!(answered >= FAILING_OPENS, "expected at least {FAILING_OPENS} answered dispatches, found {answered}");
        tracker.check(&mut http).unwrap_or_else(|violation| panic!("{violation}"));
        assert!(!home.log().contains("store has failed"), "{}", home.log());
        server.process.kill();
        let server = home.start();
        tracker
            .check(&mut Http::connect(server.address).expect("a connection"))
            .unwrap_or_else(|violation| panic!("{violation}"));
    }
}

#[test]
fn flush_without_descriptor_for_value_log_is_retried() {
    if !env::strace_available("value log files that cannot be opened") {
        return;
    }
    let (mut home, mut tracker) = (Home::new(), Tracker::default());
    home.set_variable("MESA_FAILPOINT", "EarlyFlush");
    let server = start_failing(&home, "value-log", "EMFILE");
    let mut http = Http::connect(server.address).expect("a connection");
    for user in ["alice", "bob"] {
        assert_eq!(tracker.dispatch_padded(&mut http, user, 20_000).expect("a response"), 200);
    }
    wait_until_flushed(&home, 40_000);
    tracker.check(&mut http).unwrap_or_else(|violation| panic!("{violation}"));
    assert_eq!(http.status("/readyz").expect("a response"), 200);
    assert!(!home.log().contains("store has failed"), "{}", home.log());
    server.process.kill();
    let server = home.start();
    tracker
        .check(&mut Http::connect(server.address).expect("a connection"))
        .unwrap_or_else(|violation| panic!("{violation}"));
}

/// The entries were flushed before the start, so a read opens a value log file.
#[test]
fn read_without_descriptor_is_rejected_until_one_is_free() {
    let (mut home, mut tracker) = (Home::new(), Tracker::default());
    home.set_variable("MESA_FAILPOINT", "EarlyFlush");
    let server = home.start();
    let mut http = Http::connect(server.address).expect("a connection");
    for user in ["alice", "bob", "alice"] {
        assert_eq!(tracker.dispatch_padded(&mut http, user, 20_000).expect("a response"), 200);
    }
    wait_until_flushed(&home, 60_000);
    // Entries are flushed in order. Once this one is in the value log, none of those before it is in the WAL.
    assert_eq!(tracker.dispatch_padded(&mut http, "marker", 20_000).expect("a response"), 200);
    wait_until_flushed(&home, 80_000);
    server.process.kill();

    let server = home.start();
    let mut http = Http::connect(server.address).expect("a connection");
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let mut client = runtime.block_on(Client::connect(server.address, "new-user")).expect("a connection");
    let before = set_limit(server.pid, 3);
    assert_eq!(http.status("/v1/users/bob/messages").expect("a response"), 503);
    assert_eq!(tracker.dispatch(&mut http, "new-user").expect("a response"), 200);
    assert_eq!(runtime.block_on(client.next(Duration::from_secs(20))), Event::Message(0));
    assert_eq!(http.status("/v1/users/bob/messages").expect("a response"), 503);
    set_limit(server.pid, before);
    tracker.check_user(&mut http, "bob").unwrap_or_else(|violation| panic!("{violation}"));
    tracker.check_user(&mut http, "alice").unwrap_or_else(|violation| panic!("{violation}"));
    assert!(!home.log().contains("store has failed"), "{}", home.log());
}

/// Sets the number of descriptors that a process may have open. Returns the number before.
fn set_limit(pid: i32, files: u64) -> u64 {
    let maximum = getrlimit(Resource::Nofile).maximum;
    let limit = Rlimit { current: Some(files), maximum };
    let before = prlimit(Pid::from_raw(pid), Resource::Nofile, limit).expect("the limit is set");
    before.current.unwrap_or(files)
}

fn wait_until_flushed(home: &Home, bytes: u64) {
    let value_log = home.store().join("value-log");
    block_until(&format!("the value log has {bytes} bytes"), || bytes_in(&value_log) >= bytes);
}

/// Idle connections use up the descriptors before the server handles its first dispatch.
#[test]
fn first_dispatch_after_too_many_idle_connections_is_accepted() {
    if !env::program_available("prlimit", "running out of descriptors before the first dispatch") {
        return;
    }
    let (home, mut tracker) = (Home::new(), Tracker::default());
    let server = home.wait_until_ready(home.spawn(&["prlimit", "--nofile=200:200"]));
    let mut http = Http::connect(server.address).expect("a connection");
    assert_eq!(http.status("/healthz").expect("a response"), 200);
    let idle: Vec<_> = (0..400).map_while(|_| TcpStream::connect(server.address).ok()).collect();
    // The dispatch must find no free descriptor, so the test waits until the server accepts no more connections.
    let (mut before, mut unchanged) = (0, 0);
    while unchanged < 5 {
        let open = proc::open_descriptors(server.pid);
        unchanged = if open == before { unchanged + 1 } else { 0 };
        before = open;
        thread::sleep(Duration::from_millis(20));
    }
    for user in ["alice", "bob", "alice"] {
        assert_eq!(tracker.dispatch(&mut http, user).expect("a response"), 200, "{}", home.log());
    }
    tracker.check(&mut http).unwrap_or_else(|violation| panic!("{violation}"));
    drop(idle);
    server.process.kill();
    let server = home.start();
    tracker
        .check(&mut Http::connect(server.address).expect("a connection"))
        .unwrap_or_else(|violation| panic!("{violation}"));
}
