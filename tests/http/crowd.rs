//! More connections than the process may open files: the store keeps its reserve, and requests find a place.

use std::{
    fs,
    net::{SocketAddr, TcpStream},
    process::Command,
};

use serde_json::json;

use crate::{
    deadlines::redis_address,
    support::{
        http::Http,
        server::{Home, Server},
    },
};

/// Files the server may open.
const LIMIT: usize = 200;

/// Connections that say nothing: twice that.
const CROWD: usize = 400;

/// Nothing here may end because it took long.
const LIMITS: &str = "limits: { headerTimeout: 600000, idleTimeout: 600000 }, ";

fn start(home: &Home, limit: usize) -> Option<Server> {
    if Command::new("prlimit").arg("--version").output().is_err() {
        eprintln!("not checked: prlimit is not installed");
        return None;
    }
    Some(home.wait_until_ready(home.spawn(&["prlimit", &format!("--nofile={limit}:{limit}")])))
}

fn crowd(address: SocketAddr) -> Vec<TcpStream> {
    (0..CROWD).map(|_| TcpStream::connect(address).expect("the system's own queue has room")).collect()
}

fn dispatch(http: &mut Http, user: &str) -> u16 {
    http.try_dispatch(&json!({ "n": 1 }), &[user.to_owned()]).expect("an answer")
}

fn descriptors(server: &Server) -> usize {
    fs::read_dir(format!("/proc/{}/fd", server.pid)).expect("a running server").count()
}

#[test]
fn crowd_of_silent_connections_leaves_the_store_its_files() {
    let home = Home::with(&format!("{LIMITS} redisProtocol: {{ port: 0, connections: 1000 }},"));
    let Some(server) = start(&home, LIMIT) else { return };
    // Open before the crowd comes, and without a request so far.
    let mut before = Http::connect(server.address).expect("a connection");
    let crowds = [crowd(redis_address(&home)), crowd(server.address)];
    // Behind the crowd in the queue of the system: once this is answered all of them were accepted.
    let mut after = Http::connect(server.address).expect("a connection");
    assert_eq!(after.status("/healthz").expect("an answer"), 200);
    assert!(descriptors(&server) < LIMIT - 20, "{} of {LIMIT} files are open", descriptors(&server));
    // The first dispatch since the start, and then one that needs new files.
    assert_eq!(dispatch(&mut before, "alice"), 200);
    for user in 0..50 {
        assert_eq!(dispatch(&mut before, &format!("user-{user}")), 200);
        assert_eq!(dispatch(&mut after, &format!("user-{user}")), 200);
    }
    for _ in 0..20 {
        let mut fresh = Http::connect(server.address).expect("a connection");
        assert_eq!(fresh.status("/readyz").expect("an answer"), 200);
        assert_eq!(dispatch(&mut fresh, "bob"), 200);
    }
    let log = home.wait_for_log(|log| log.contains(&format!("the process may open {LIMIT} files")));
    assert!(!log.contains("accepting connections failed"), "{log}");
    drop(crowds);
    server.terminate();
    assert!(server.process.wait(crate::PATIENCE).success(), "{}", home.log());
}

#[test]
fn idle_and_refused_connections_give_up_their_places() {
    let home = Home::with(LIMITS);
    let Some(server) = start(&home, LIMIT) else { return };
    let healthz = "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n";
    let old =
        "GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 8\r\n\r\n";
    for (request, expected) in [(healthz, 200), (old, 426)] {
        let ask = |_| {
            let mut stream = crate::connect(server.address);
            std::io::Write::write_all(&mut stream, request.as_bytes()).expect("sent");
            assert_eq!(crate::status(&crate::response(&mut stream)), expected);
            stream
        };
        let crowd: Vec<TcpStream> = (0..CROWD).map(ask).collect();
        drop(crowd);
    }
}

#[test]
fn websockets_leave_places_for_requests() {
    let home = Home::with("limits: { connections: 2 },");
    let server = home.start();
    let upgrade = "GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    let open = || {
        let mut stream = crate::connect(server.address);
        std::io::Write::write_all(&mut stream, upgrade.as_bytes()).expect("sent");
        let head = crate::head(&mut stream).expect("a response");
        (crate::status(&head), stream)
    };
    let (one, two) = (open(), open());
    assert_eq!((one.0, two.0), (101, 101));
    assert_eq!(open().0, 503, "one more than limits.connections");
    let idle = crowd(server.address);
    let mut http = Http::connect(server.address).expect("a connection");
    assert_eq!(http.status("/healthz").expect("an answer"), 200);
    assert_eq!(dispatch(&mut http, "alice"), 200);
    drop((one, two, idle));
}

/// Lines that one cause may write here: there is one in ten seconds, and a test takes less than a minute.
const LINES_MAX: usize = 6;

#[test]
fn server_without_descriptors_says_so_once_in_an_interval() {
    // Far fewer than a server sets aside for its store: the system refuses before the server does.
    let home = Home::with(LIMITS);
    let Some(server) = start(&home, 40) else { return };
    let silent = crowd(server.address);
    let refused = "accepting connections failed";
    home.wait_for_log(|log| log.contains(refused));
    // Each place that becomes free is taken by the next of the crowd, and the one behind it is refused anew.
    for stream in silent {
        drop(stream);
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let mut http = Http::connect(server.address).expect("a connection");
    assert_eq!(http.status("/healthz").expect("an answer"), 200);
    let lines = home.wait_for_log(|_| true).matches(refused).count();
    assert!(lines <= LINES_MAX, "{lines} lines");
}
