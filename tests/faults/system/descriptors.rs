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
    let end = Instant::now() + Duration::from_secs(30);
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
