//! No connection stays for ever: silent, idle, or not reading.

use std::{
    fs,
    io::{self, Write as _},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
    PATIENCE, connect, head, response, status,
    support::{
        http::request,
        server::{Home, KEY},
    },
    wait_until_closed,
};

#[test]
fn idle_connection_is_closed_at_idle_timeout_and_not_at_header_timeout() {
    let home = Home::with("limits: { headerTimeout: 1000, idleTimeout: 4000 },");
    let server = home.start();
    // The second connection is idle for the first time, the third after a response that had to wait for the store.
    let dispatch = request("POST", "/v1/dispatch", r#"{"message":{"d":1},"recipients":["alice"]}"#);
    let healthz = "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n".to_owned();
    let connections = [[&healthz, &healthz].as_slice(), &[&healthz], &[&dispatch, &dispatch]].map(|requests| {
        let mut stream = connect(server.address);
        for request in requests {
            stream.write_all(request.as_bytes()).expect("sent");
            assert_eq!(status(&response(&mut stream)), 200);
        }
        (stream, Instant::now())
    });
    for (mut stream, began) in connections {
        wait_until_closed(&mut stream);
        let idle = began.elapsed();
        // Without a timer of its own it would stay for ever; with that for heads it would have gone long before.
        assert!(idle > Duration::from_millis(2500), "closed after {idle:?}");
    }
}

#[test]
fn head_that_does_not_arrive_is_closed_at_header_timeout() {
    // Whatever were closed at the idle timeout would be closed too late for `PATIENCE`.
    let home = Home::with("limits: { headerTimeout: 1500, idleTimeout: 3600000 },");
    let server = home.start();
    let silent = connect(server.address);
    let mut begun = connect(server.address);
    begun.write_all(b"GET /healthz HT").expect("sent");
    let mut second = connect(server.address);
    second.write_all(b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n").expect("sent");
    head(&mut second).expect("a response");
    second.write_all(b"GET /healthz HT").expect("sent");
    for mut stream in [silent, begun, second] {
        wait_until_closed(&mut stream);
    }
}

/// Sends `piece` again and again without reading, until the server has cut the connection.
fn send_until_cut(mut stream: TcpStream, piece: &[u8]) {
    stream.set_write_timeout(Some(Duration::from_millis(100))).expect("a timeout");
    let (end, mut at) = (Instant::now() + PATIENCE, 0);
    while Instant::now() < end {
        match stream.write(&piece[at..]) {
            Ok(sent) => at = (at + sent) % piece.len(),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
            Err(_) => return,
        }
    }
    panic!("a peer that reads nothing is still connected");
}

fn slow_readers_home() -> Home {
    Home::with("limits: { writeTimeout: 1000, idleTimeout: 3600000 }, redisProtocol: { port: 0 },")
}

#[test]
fn pipelined_responses_that_nobody_reads_are_cut_at_write_timeout() {
    let home = slow_readers_home();
    let server = home.start();
    send_until_cut(connect(server.address), &b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n".repeat(100));
}

#[test]
fn stream_of_results_that_nobody_reads_is_cut_at_write_timeout() {
    let home = slow_readers_home();
    let server = home.start();
    let mut stream = connect(server.address);
    let head = format!(
        "POST /v1/dispatch HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Type: application/x-ndjson\r\n\
         Transfer-Encoding: chunked\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).expect("sent");
    let lines = "{}\n".repeat(1000);
    send_until_cut(stream, format!("{:x}\r\n{lines}\r\n", lines.len()).as_bytes());
}

#[test]
fn redis_peer_that_reads_nothing_is_cut_at_write_timeout() {
    let home = slow_readers_home();
    let server = home.start();
    let text = "x".repeat(10_000);
    send_until_cut(connect(redis_address(&home)), format!("*2\r\n$4\r\nECHO\r\n$10000\r\n{text}\r\n").as_bytes());
    drop(server);
}

/// Where the server of `home` speaks the Redis protocol.
pub fn redis_address(home: &Home) -> SocketAddr {
    let ready: Value = serde_json::from_str(&fs::read_to_string(home.path("ready")).expect("ready")).expect("JSON");
    ready["redisProtocol"].as_str().expect("an address").parse().expect("an address")
}
