//! Few descriptors: a crowd of connections gets what the reserve leaves, and the server goes on with those it has. None at
//! all: it waits without spinning, and takes new connections as soon as there are some.

use std::{
    fs,
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Resource, Rlimit, prlimit};

use crate::{
    client::Client,
    ledger::Ledger,
    proc,
    support::{
        http::Http,
        server::{Home, Server},
    },
    tools,
};

/// Files the server may have open.
const LIMIT: usize = 80;

/// Connections attempted: more than fit.
const CONNECTIONS: usize = 150;

/// How long the server is watched while nothing fits any more.
const WATCHED: Duration = Duration::from_secs(2);

/// Processor time it may use meanwhile, with the dispatches it is given: a tenth. One that spins uses all of it.
const CPU_MAX: Duration = Duration::from_millis(400);

#[test]
fn a_server_without_descriptors_waits_and_serves_those_it_has() {
    if !tools::program_is_here("prlimit", "running out of descriptors") {
        return;
    }
    let (home, mut ledger) = (Home::new(), Ledger::default());
    let limit = format!("--nofile={LIMIT}:{LIMIT}");
    let server = home.wait_until_ready(home.spawn(&["prlimit", &limit]));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let mut client = runtime.block_on(Client::connect(server.address, "alice")).expect("a connection");
    let mut http = Http::connect(server.address).expect("a connection");
    assert_eq!(ledger.dispatch(&mut http, "alice").expect("an answer"), 200);

    for _ in 0..tools::times(2, 10) {
        let crowd = crowd(&server);
        let open = proc::descriptors(server.pid);
        assert!(open < LIMIT, "{open} of {LIMIT} descriptors are in use: nothing is left for the store");
        let (before, began) = (proc::cpu_time(server.pid), Instant::now());
        let mut dispatched = 0;
        while began.elapsed() < WATCHED {
            assert_eq!(ledger.dispatch(&mut http, "alice").expect("an answer"), 200);
            assert_eq!(ledger.dispatch(&mut http, "bob").expect("an answer"), 200);
            dispatched += 2;
            thread::sleep(Duration::from_millis(100));
        }
        let used = proc::cpu_time(server.pid).saturating_sub(before);
        assert!(used < CPU_MAX, "{used:?} of processor time in {WATCHED:?}: it spins");
        let newcomer = Http::connect(server.address).and_then(|mut http| http.status("/readyz"));
        assert_eq!(newcomer.expect("a new connection is served before the others have left"), 200);
        drop(crowd);
        tools::say(&format!(
            "{open} of {LIMIT} descriptors in use: {dispatched} dispatches in {WATCHED:?} with {used:?} of processor time"
        ));
    }
    wait_without_any(&home, &server);
    assert_eq!(ledger.dispatch(&mut http, "alice").expect("an answer"), 200);
    let last = ledger.sent_to("alice") - 1;
    let live = runtime.block_on(client.until_message(last)).unwrap_or_else(|wrong| panic!("the client: {wrong}"));
    ledger.check_received("alice", &live).unwrap_or_else(|wrong| panic!("{wrong}"));

    server.process.kill();
    let server = home.start();
    let mut http = Http::connect(server.address).expect("a connection");
    ledger.check_user(&mut http, "bob").unwrap_or_else(|wrong| panic!("{wrong}"));
}

/// Connects more often than there are places. What is behind the crowd is answered once the server has met all of it.
fn crowd(server: &Server) -> Vec<TcpStream> {
    let crowd = (0..CONNECTIONS)
        .map(|_| TcpStream::connect(server.address).expect("the system's own queue has room"))
        .collect();
    let mut last = Http::connect(server.address).expect("a connection");
    assert_eq!(last.status("/healthz").expect("an answer"), 200);
    crowd
}

/// Takes away the descriptors that were set aside, which no crowd can: another part of the process may have used them.
fn wait_without_any(home: &Home, server: &Server) {
    let pid = Pid::from_raw(server.pid).expect("a process id");
    let limit = |files: usize| Rlimit { current: Some(files as u64), maximum: Some(LIMIT as u64) };
    // Only the number itself counts: the system gives the lowest that is free.
    prlimit(Some(pid), Resource::Nofile, limit(1)).expect("a limit can be lowered");
    let crowd: Vec<TcpStream> = (0..20).map(|_| TcpStream::connect(server.address).expect("a connection")).collect();
    let end = Instant::now() + Duration::from_secs(120);
    while !fs::read_to_string(home.path("log")).expect("a log").contains("the system gives no more connections") {
        assert!(Instant::now() < end, "a server without descriptors does not say so:\n{}", home.log());
        thread::sleep(Duration::from_millis(10));
    }
    let before = proc::cpu_time(server.pid);
    thread::sleep(WATCHED);
    let used = proc::cpu_time(server.pid).saturating_sub(before);
    assert!(used < CPU_MAX, "{used:?} of processor time in {WATCHED:?}: it spins");
    prlimit(Some(pid), Resource::Nofile, limit(LIMIT)).expect("and raised again");
    let newcomer = Http::connect(server.address).and_then(|mut http| http.status("/readyz"));
    assert_eq!(newcomer.expect("a new connection is served"), 200);
    drop(crowd);
}

/// Opens that fail in each thread before they succeed again.
const FAILING_OPENS: usize = 24;

/// Starts a server under `strace`, for which the first opens of each thread fail in this directory of the store.
fn start_failing(home: &Home, directory: &str, error: &str) -> Server {
    let path = home.store().join(directory);
    let mut files: Vec<_> = (1..=40).map(|n| path.join(format!("{n:016x}"))).collect();
    files.push(path.join(".next"));
    let inject = format!("inject=openat:error={error}:when=1..{FAILING_OPENS}");
    let mut wrapper =
        vec!["strace", "-D", "-f", "-e", "signal=none", "-o", "/dev/null", "-e", "trace=openat", "-e", &inject];
    wrapper.extend(files.iter().flat_map(|path| ["-P", path.to_str().expect("a plain path")]));
    home.wait_until_ready(home.spawn(&wrapper))
}

// covers: G1
#[test]
fn dispatch_without_a_descriptor_for_the_journal_fails_alone() {
    if !tools::strace_is_here("files of the journal that cannot be opened") {
        return;
    }
    for error in ["EMFILE", "ENFILE", "ENOMEM"] {
        let (home, mut ledger) = (Home::new(), Ledger::default());
        let server = start_failing(&home, "journal", error);
        let mut http = Http::connect(server.address).expect("a connection");
        let mut refused = 0;
        for _ in 0..2 * FAILING_OPENS {
            match ledger.dispatch(&mut http, "alice").expect("an answer") {
                200 => {}
                503 => refused += 1,
                status => panic!("a dispatch was answered with {status}"),
            }
        }
        assert!(refused > 0 && refused <= FAILING_OPENS, "{refused} were refused");
        assert!(ledger.answered() >= FAILING_OPENS, "{} were answered", ledger.answered());
        ledger.check(&mut http).unwrap_or_else(|wrong| panic!("{wrong}"));
        assert!(!home.log().contains("store has failed"), "{}", home.log());
        server.process.kill();
        let server = home.start();
        ledger
            .check(&mut Http::connect(server.address).expect("a connection"))
            .unwrap_or_else(|wrong| panic!("{wrong}"));
    }
}

#[test]
fn flush_without_a_descriptor_for_the_inboxes_is_repeated() {
    if !tools::strace_is_here("files of the inboxes that cannot be opened") {
        return;
    }
    let (mut home, mut ledger) = (Home::new(), Ledger::default());
    home.set_variable("PLANTED_BUG", "SettleSoon");
    let server = start_failing(&home, "inbox", "EMFILE");
    let mut http = Http::connect(server.address).expect("a connection");
    for user in ["alice", "bob"] {
        assert_eq!(ledger.dispatch_padded(&mut http, user, 20_000).expect("an answer"), 200);
    }
    until_flushed(&home, 40_000);
    ledger.check(&mut http).unwrap_or_else(|wrong| panic!("{wrong}"));
    assert_eq!(http.status("/readyz").expect("an answer"), 200);
    assert!(!home.log().contains("store has failed"), "{}", home.log());
    server.process.kill();
    let server = home.start();
    ledger.check(&mut Http::connect(server.address).expect("a connection")).unwrap_or_else(|wrong| panic!("{wrong}"));
}

/// What is read was flushed before the start, so its file has to be opened.
#[test]
fn read_without_a_descriptor_is_repeated_until_there_is_one() {
    let (mut home, mut ledger) = (Home::new(), Ledger::default());
    home.set_variable("PLANTED_BUG", "SettleSoon");
    let server = home.start();
    let mut http = Http::connect(server.address).expect("a connection");
    for user in ["alice", "bob", "alice"] {
        assert_eq!(ledger.dispatch_padded(&mut http, user, 20_000).expect("an answer"), 200);
    }
    until_flushed(&home, 60_000);
    // Flushed one after the other: where this one is, nothing of those before it is in the journal any more.
    assert_eq!(ledger.dispatch_padded(&mut http, "marker", 20_000).expect("an answer"), 200);
    until_flushed(&home, 80_000);
    server.process.kill();

    let server = home.start();
    let mut http = Http::connect(server.address).expect("a connection");
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let mut client = runtime.block_on(Client::connect(server.address, "nobody-yet")).expect("a connection");
    let before = set_limit(server.pid, 3);
    assert_eq!(http.status("/v1/users/bob/messages").expect("an answer"), 503);
    assert_eq!(ledger.dispatch(&mut http, "nobody-yet").expect("an answer"), 200);
    assert_eq!(runtime.block_on(client.next(Duration::from_secs(20))), crate::client::Event::Message(0));
    assert_eq!(http.status("/v1/users/bob/messages").expect("an answer"), 503);
    set_limit(server.pid, before);
    ledger.check_user(&mut http, "bob").unwrap_or_else(|wrong| panic!("{wrong}"));
    ledger.check_user(&mut http, "alice").unwrap_or_else(|wrong| panic!("{wrong}"));
    assert!(!home.log().contains("store has failed"), "{}", home.log());
}

/// Sets how many files a process may have open from now on; how many it might before.
fn set_limit(pid: i32, files: u64) -> u64 {
    use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
    let maximum = getrlimit(Resource::Nofile).maximum;
    let limit = Rlimit { current: Some(files), maximum };
    let before = prlimit(Pid::from_raw(pid), Resource::Nofile, limit).expect("a process of ours");
    before.current.unwrap_or(files)
}

fn until_flushed(home: &Home, bytes: u64) {
    let inboxes = home.store().join("inbox");
    let end = Instant::now() + Duration::from_secs(120);
    while inbox_bytes(&inboxes) < bytes {
        assert!(Instant::now() < end, "nothing is flushed:\n{}", home.log());
        thread::sleep(Duration::from_millis(20));
    }
}

fn inbox_bytes(inboxes: &std::path::Path) -> u64 {
    fs::read_dir(inboxes).expect("a directory").flatten().map(|file| file.metadata().map_or(0, |file| file.len())).sum()
}

/// Silent connections take all descriptors before the first dispatch of the server's life.
#[test]
fn first_dispatch_behind_silent_connections_is_taken() {
    if !tools::program_is_here("prlimit", "running out of descriptors before the first dispatch") {
        return;
    }
    let (home, mut ledger) = (Home::new(), Ledger::default());
    let server = home.wait_until_ready(home.spawn(&["prlimit", "--nofile=200:200"]));
    let mut http = Http::connect(server.address).expect("a connection");
    assert_eq!(http.status("/healthz").expect("an answer"), 200);
    let silent: Vec<_> = (0..400).map_while(|_| TcpStream::connect(server.address).ok()).collect();
    // They are taken as far as they are taken at all: what follows is to find no descriptor.
    let (mut before, mut still) = (0, 0);
    while still < 5 {
        let open = proc::descriptors(server.pid);
        still = if open == before { still + 1 } else { 0 };
        before = open;
        thread::sleep(Duration::from_millis(20));
    }
    for user in ["alice", "bob", "alice"] {
        assert_eq!(ledger.dispatch(&mut http, user).expect("an answer"), 200, "{}", home.log());
    }
    ledger.check(&mut http).unwrap_or_else(|wrong| panic!("{wrong}"));
    drop(silent);
    server.process.kill();
    let server = home.start();
    ledger.check(&mut Http::connect(server.address).expect("a connection")).unwrap_or_else(|wrong| panic!("{wrong}"));
}
