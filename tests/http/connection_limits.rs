//! Tests more connections than the process may open files: the store keeps its reserve, and requests are served.

use std::{
    fs,
    net::{SocketAddr, TcpStream},
    process::Command,
    time::Instant,
};

use serde_json::json;

use crate::support::{
    http::Http,
    server::{Home, Server},
};

/// Files that the server may open (`RLIMIT_NOFILE`).
const OPEN_FILES_MAX: usize = 200;

/// Silent connections: twice as many as files.
const SILENT_CONNECTIONS: usize = 400;

/// Timeouts of 10 min, so that none closes a connection during a test.
const LONG_TIMEOUTS: &str = "limits: { headerTimeout: 600000, idleTimeout: 600000 }, ";

fn start(home: &Home, limit: usize) -> Option<Server> {
    if Command::new("prlimit").arg("--version").output().is_err() {
        eprintln!("not tested: prlimit is not installed");
        return None;
    }
    Some(home.wait_until_ready(home.spawn(&["prlimit", &format!("--nofile={limit}:{limit}")])))
}

fn connect_silently(address: SocketAddr) -> Vec<TcpStream> {
    (0..SILENT_CONNECTIONS).map(|_| TcpStream::connect(address).expect("a slot in the listen queue")).collect()
}

fn dispatch(http: &mut Http, user: &str) -> u16 {
    http.try_dispatch(&json!({ "n": 1 }), &[user.to_owned()]).expect("a response")
}

fn open_files(server: &Server) -> usize {
    fs::read_dir(format!("/proc/{}/fd", server.pid)).expect("a running server").count()
}

#[test]
fn silent_connections_above_the_file_limit_leave_files_for_the_store() {
    let home = Home::with_settings(&format!("{LONG_TIMEOUTS} redisProtocol: {{ port: 0, connections: 1000 }},"));
    let Some(server) = start(&home, OPEN_FILES_MAX) else { return };
    // Opened before the silent connections, without a request so far.
    let mut before = Http::connect(server.address).expect("a connection");
    let silent = [connect_silently(home.redis_protocol_address()), connect_silently(server.address)];
    // After them in the listen queue: its response shows that all of them were accepted.
    let mut after = Http::connect(server.address).expect("a connection");
    assert_eq!(after.status("/healthz").expect("a response"), 200);
    assert!(open_files(&server) < OPEN_FILES_MAX - 20, "{} of {OPEN_FILES_MAX} files are open", open_files(&server));
    // The first dispatch since the start, then dispatches that need new files.
    assert_eq!(dispatch(&mut before, "alice"), 200);
    for user in 0..50 {
        assert_eq!(dispatch(&mut before, &format!("user-{user}")), 200);
        assert_eq!(dispatch(&mut after, &format!("user-{user}")), 200);
    }
    for _ in 0..20 {
        let mut fresh = Http::connect(server.address).expect("a connection");
        assert_eq!(fresh.status("/readyz").expect("a response"), 200);
        assert_eq!(dispatch(&mut fresh, "bob"), 200);
    }
    let log = home.wait_for_log(|log| log.contains(&format!("the process may open {OPEN_FILES_MAX} files")));
    assert!(!log.contains("accepting connections failed"), "{log}");
    drop(silent);
    server.stop(crate::WAIT_TIMEOUT);
}

#[test]
fn closed_and_rejected_connections_free_their_slots() {
    let home = Home::with_settings(LONG_TIMEOUTS);
    let Some(server) = start(&home, OPEN_FILES_MAX) else { return };
    let healthz = "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n";
    let old_version =
        "GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 8\r\n\r\n";
    for (request, expected) in [(healthz, 200), (old_version, 426)] {
        let exchange = |_| {
            let mut stream = crate::connect(server.address);
            std::io::Write::write_all(&mut stream, request.as_bytes()).expect("a successful write");
            assert_eq!(crate::status(&crate::response(&mut stream)), expected);
            stream
        };
        let connections: Vec<TcpStream> = (0..SILENT_CONNECTIONS).map(exchange).collect();
        drop(connections);
    }
}

#[test]
fn websockets_at_the_limit_leave_slots_for_requests() {
    let home = Home::with_settings("limits: { connections: 2 },");
    let server = home.start();
    let upgrade = "GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    let open = || {
        let mut stream = crate::connect(server.address);
        std::io::Write::write_all(&mut stream, upgrade.as_bytes()).expect("a successful write");
        let head = crate::head(&mut stream).expect("a response");
        (crate::status(&head), stream)
    };
    let (one, two) = (open(), open());
    assert_eq!((one.0, two.0), (101, 101));
    assert_eq!(open().0, 503, "one connection above limits.connections");
    let idle = connect_silently(server.address);
    let mut http = Http::connect(server.address).expect("a connection");
    assert_eq!(http.status("/healthz").expect("a response"), 200);
    assert_eq!(dispatch(&mut http, "alice"), 200);
    drop((one, two, idle));
}

#[test]
fn server_without_file_descriptors_logs_it_once_per_interval() {
    // Far fewer files than a server reserves for its store: accept(2) fails before the server's own limit applies.
    let home = Home::with_settings(LONG_TIMEOUTS);
    let began = Instant::now();
    let Some(server) = start(&home, 40) else { return };
    let silent = connect_silently(server.address);
    let failure = "accepting connections failed";
    home.wait_for_log(|log| log.contains(failure));
    // Each closed connection makes room for the next one in the queue, and accepting the one after it fails again.
    for stream in silent {
        drop(stream);
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let mut http = Http::connect(server.address).expect("a connection");
    assert_eq!(http.status("/healthz").expect("a response"), 200);
    let lines = home.wait_for_log(|_| true).matches(failure).count();
    // One line per 10 s.
    let lines_max = 1 + usize::try_from(began.elapsed().as_secs() / 10).expect("a short test");
    assert!(lines <= lines_max, "at most {lines_max} lines, not {lines}");
}
