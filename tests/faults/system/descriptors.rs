//! No descriptors left: the server waits without spinning, goes on with the connections it has, keeps what it answers,
//! and takes new ones as soon as others end.

use std::{
    fs,
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

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
        let crowd = fill(&home, &server);
        let open = proc::descriptors(server.pid);
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
        drop(crowd);
        // It looks again once a second at least.
        let since = Instant::now();
        let newcomer = Http::connect(server.address).and_then(|mut http| http.status("/readyz"));
        assert_eq!(newcomer.expect("a new connection is served"), 200);
        tools::say(&format!(
            "{open} of {LIMIT} descriptors in use: {dispatched} dispatches in {WATCHED:?} with {used:?} of processor time; \
             a newcomer is served {:?} after the others left",
            since.elapsed()
        ));
    }
    let last = ledger.sent_to("alice") - 1;
    let live = runtime.block_on(client.until_message(last)).unwrap_or_else(|wrong| panic!("the client: {wrong}"));
    ledger.check_received("alice", &live).unwrap_or_else(|wrong| panic!("{wrong}"));

    server.process.kill();
    let server = home.start();
    let mut http = Http::connect(server.address).expect("a connection");
    ledger.check_user(&mut http, "bob").unwrap_or_else(|wrong| panic!("{wrong}"));
}

/// Connects until the server has no descriptors left, and has said so.
fn fill(home: &Home, server: &Server) -> Vec<TcpStream> {
    let before = said(home);
    let crowd: Vec<TcpStream> = (0..CONNECTIONS)
        .map(|_| TcpStream::connect(server.address).expect("the system's own queue has room"))
        .collect();
    let end = Instant::now() + Duration::from_secs(10);
    // Those who left before may still be on their way out: both have to hold.
    while said(home) == before || proc::descriptors(server.pid) < LIMIT - 1 {
        assert!(Instant::now() < end, "{CONNECTIONS} connections fit into {LIMIT} descriptors:\n{}", home.log());
        thread::sleep(Duration::from_millis(10));
    }
    crowd
}

/// Times that the server has complained.
fn said(home: &Home) -> usize {
    let log = fs::read_to_string(home.path("log")).expect("a log");
    log.matches("the system gives no more connections").count()
}
