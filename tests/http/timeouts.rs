//! Tests timeouts of connections that are silent, idle, or do not read.

use std::{
    io::{self, Write as _},
    net::TcpStream,
    time::{Duration, Instant},
};

use crate::{
    WAIT_TIMEOUT, connect, head, response, status,
    support::{
        http::{chunk, request},
        server::{Home, KEY},
    },
    wait_until_closed,
};

#[test]
fn idle_connection_is_closed_at_idle_timeout_and_not_at_header_timeout() {
    // Each request has to arrive within the header timeout, also on a machine that stalls.
    let home = Home::with_settings("limits: { headerTimeout: 10000, idleTimeout: 14000 },");
    let server = home.start();
    // The second connection has sent one request, the third has waited for the store.
    let dispatch = request("POST", "/v1/dispatch", r#"{"message":{"d":1},"recipients":["alice"]}"#);
    let healthz = "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n".to_owned();
    let connections = [[&healthz, &healthz].as_slice(), &[&healthz], &[&dispatch, &dispatch]].map(|requests| {
        let mut stream = connect(server.address);
        let mut began = Instant::now();
        for request in requests {
            began = Instant::now();
            stream.write_all(request.as_bytes()).expect("a successful write");
            assert_eq!(status(&response(&mut stream)), 200);
        }
        (stream, began)
    });
    for (mut stream, began) in connections {
        wait_until_closed(&mut stream);
        let idle = began.elapsed();
        // Without an idle timer it would stay open; with the timer for heads it would have closed after 10 s.
        assert!(idle > Duration::from_millis(13_500), "closed after {idle:?}");
    }
}

#[test]
fn head_that_does_not_arrive_is_closed_at_header_timeout() {
    // A connection that closed at the idle timeout of 1 h would exceed `WAIT_TIMEOUT`.
    let home = Home::with_settings("limits: { headerTimeout: 10000, idleTimeout: 3600000 },");
    let server = home.start();
    let silent = connect(server.address);
    let mut begun = connect(server.address);
    begun.write_all(b"GET /healthz HT").expect("a successful write");
    let mut second = connect(server.address);
    second.write_all(b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n").expect("a successful write");
    head(&mut second).expect("a response");
    second.write_all(b"GET /healthz HT").expect("a successful write");
    for mut stream in [silent, begun, second] {
        wait_until_closed(&mut stream);
    }
}

/// Sends `piece` repeatedly without reading, until the server has closed the connection.
fn send_until_closed(mut stream: TcpStream, piece: &[u8]) {
    stream.set_write_timeout(Some(Duration::from_millis(100))).expect("a timeout");
    let (end, mut at) = (Instant::now() + WAIT_TIMEOUT, 0);
    while Instant::now() < end {
        match stream.write(&piece[at..]) {
            Ok(sent) => at = (at + sent) % piece.len(),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
            Err(_) => return,
        }
    }
    panic!("a peer that reads nothing is still connected after {WAIT_TIMEOUT:?}");
}

fn home_with_write_timeout() -> Home {
    Home::with_settings("limits: { writeTimeout: 1000, idleTimeout: 3600000 }, redisProtocol: { port: 0 },")
}

#[test]
fn connection_with_unread_pipelined_responses_is_closed_at_write_timeout() {
    let home = home_with_write_timeout();
    let server = home.start();
    send_until_closed(connect(server.address), &b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n".repeat(100));
}

#[test]
fn dispatch_stream_with_unread_results_is_closed_at_write_timeout() {
    let home = home_with_write_timeout();
    let server = home.start();
    let mut stream = connect(server.address);
    let head = format!(
        "POST /v1/dispatch HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Type: application/x-ndjson\r\n\
         Transfer-Encoding: chunked\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).expect("a successful write");
    let lines = "{}\n".repeat(1000);
    send_until_closed(stream, chunk(&lines).as_bytes());
}

#[test]
fn redis_connection_with_unread_replies_is_closed_at_write_timeout() {
    let home = home_with_write_timeout();
    let server = home.start();
    let text = "x".repeat(10_000);
    send_until_closed(
        connect(home.redis_protocol_address()),
        format!("*2\r\n$4\r\nECHO\r\n$10000\r\n{text}\r\n").as_bytes(),
    );
    drop(server);
}
