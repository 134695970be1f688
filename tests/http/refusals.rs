//! A response that is sent before its request has been read must reach a client that sends all of it first.

use std::io::{Read as _, Write as _};

use crate::{
    connect, exchange, head, response, status,
    support::server::{Home, KEY},
    whole,
};

/// More than the sockets of both sides hold.
const BODY_BYTES: usize = 12 << 20;

#[test]
fn refusal_reaches_a_client_that_sends_its_body_first() {
    let home = Home::new();
    let server = home.start();
    let upgrade = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let json = "Content-Type: application/json\r\n";
    // No key rather than a wrong one, whose response is delayed, and whose number is limited.
    let (key, none) = (format!("Authorization: Bearer {KEY}\r\n"), "");
    let refusals = [
        (401, "POST /v1/dispatch", format!("{none}{json}")),
        (401, "POST /v1/users", none.to_owned()),
        (404, "POST /nothing", String::new()),
        (404, "POST /v1/nothing", key.clone()),
        (405, "PUT /v1/dispatch", format!("{key}{json}")),
        (405, "POST /healthz", String::new()),
        (413, "POST /v1/dispatch", format!("{key}{json}")),
        (415, "POST /v1/dispatch", format!("{key}Content-Type: text/plain\r\n")),
        (405, "POST /", upgrade.to_owned()),
        (404, "POST /elsewhere", upgrade.to_owned()),
        (400, "POST /%zz", String::new()),
    ];
    let body = vec![b'x'; BODY_BYTES];
    for (expected, target, headers) in &refusals {
        for length in [format!("Content-Length: {BODY_BYTES}\r\n"), "Transfer-Encoding: chunked\r\n".to_owned()] {
            let mut request = format!("{target} HTTP/1.1\r\nHost: x\r\n{headers}{length}\r\n").into_bytes();
            let chunked = length.starts_with('T');
            if chunked {
                request.extend(format!("{BODY_BYTES:x}\r\n").into_bytes());
            }
            request.extend(&body);
            if chunked {
                request.extend(b"\r\n0\r\n\r\n");
            }
            for _ in 0..2 {
                let response = exchange(server.address, &request);
                let response =
                    response.unwrap_or_else(|error| panic!("{target}, {length:?}: {expected} is lost: {error}"));
                assert_eq!(status(&response), *expected, "{target}: {response}");
                // That of a WebSocket is refused before anything is known of its body.
                assert!(response.contains("connection: close") || headers == upgrade, "{target}: {response}");
            }
        }
    }
}

#[test]
fn refusal_reaches_a_client_that_sends_its_body_slowly() {
    let home = Home::new();
    let server = home.start();
    let mut stream = connect(server.address);
    let piece = vec![b'x'; 100_000];
    let began = format!("POST /v1/dispatch HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", 20 * piece.len());
    stream.write_all(began.as_bytes()).expect("sent");
    for _ in 0..20 {
        stream.write_all(&piece).expect("sent");
        // The server has read all there is, and looks for more in vain.
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    assert_eq!(status(&head(&mut stream).expect("a response")), 401);
}

#[test]
fn refusal_of_a_head_that_is_too_long_reaches_its_client() {
    let home = Home::new();
    let server = home.start();
    let request = format!("GET / HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "y".repeat(BODY_BYTES));
    for _ in 0..2 {
        let response = exchange(server.address, request.as_bytes()).expect("431 is lost");
        assert_eq!(status(&response), 431);
    }
}

#[test]
fn every_refusal_says_why_in_json() {
    let home = Home::with("origins: ['http://good.example'],");
    let server = home.start();
    let host = "Host: x\r\n";
    let upgrade = |target: &str, more: &str| {
        format!("{target} HTTP/1.1\r\n{host}Upgrade: websocket\r\nConnection: Upgrade\r\n{more}\r\n")
    };
    let version = "Sec-WebSocket-Version: 13\r\n";
    let refusals = [
        (400, "bad_request", "G@T / HTTP/1.1\r\n\r\n".to_owned()),
        (400, "bad_request", "\u{16}\u{3}\u{1}\u{2}\r\n\r\n".to_owned()),
        (400, "bad_request", "GET / HTTP/9.9\r\n\r\n".to_owned()),
        (400, "bad_request", "GET /\u{7f} HTTP/1.1\r\n\r\n".to_owned()),
        (400, "bad_request", format!("GET / HTTP/1.1\r\n{host}a header\r\n\r\n")),
        (400, "bad_request", format!("GET / HTTP/1.1\r\n{host}Content-Length: x\r\n\r\n")),
        (400, "bad_request", format!("GET / HTTP/1.1\r\n{host}Content-Length: 1\r\nContent-Length: 2\r\n\r\n")),
        (400, "bad_request", format!("GET / HTTP/1.1\r\n{host}Transfer-Encoding: gzip\r\n\r\n")),
        (400, "bad_request", format!("GET / HTTP/1.1\r\n{host}Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n")),
        (400, "bad_request", "GET / HTTP/1.1\r\n\r\n".to_owned()),
        (431, "head_too_large", format!("GET / HTTP/1.1\r\n{host}X: {}\r\n\r\n", "y".repeat(20_000))),
        (431, "head_too_large", format!("GET /{} HTTP/1.1\r\n{host}\r\n", "y".repeat(70_000))),
        (431, "head_too_large", format!("GET / HTTP/1.1\r\n{host}{}\r\n", "X: y\r\n".repeat(200))),
        (404, "not_found", format!("GET /nothing HTTP/1.1\r\n{host}\r\n")),
        (405, "method_not_allowed", format!("PUT /healthz HTTP/1.1\r\n{host}\r\n")),
        (404, "not_found", upgrade("GET /nothing", version)),
        (405, "method_not_allowed", upgrade("POST /", version)),
        (426, "upgrade_required", upgrade("GET /", "Sec-WebSocket-Version: 8\r\n")),
        (400, "bad_request", upgrade("GET /", version)),
        (403, "foreign_page", upgrade("GET /", &format!("{version}Origin: http://evil.example\r\n"))),
    ];
    let healthy = format!("GET /healthz HTTP/1.1\r\n{host}\r\n");
    for (expected, code, request) in &refusals {
        // Alone; in one piece with another; and behind one that is answered.
        for (before, pieces) in [("", 1), (&*healthy, 1), (&*healthy, 2)] {
            let mut stream = connect(server.address);
            if pieces == 1 {
                stream.write_all(format!("{before}{request}").as_bytes()).expect("sent");
            } else {
                stream.write_all(before.as_bytes()).expect("sent");
            }
            if !before.is_empty() {
                assert_eq!(status(&response(&mut stream)), 200);
            }
            if pieces == 2 {
                stream.write_all(request.as_bytes()).expect("sent");
            }
            let (head, body) = whole(&mut stream);
            assert_eq!(status(&head), *expected, "{request}{head}");
            assert!(head.contains("\r\ncontent-type: application/json\r\n"), "{request}{head}");
            let body: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
            let error = &body["error"];
            assert_eq!(error["code"], *code, "{request}{body}");
            assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()), "{request}{body}");
        }
    }
}

/// A length beside a coding: the coding holds, and nothing behind it is taken for a request.
#[test]
fn request_with_length_and_coding_is_the_last_of_its_connection() {
    let home = Home::new();
    let server = home.start();
    let (length, coding) = ("Content-Length: 3\r\n", "Transfer-Encoding: chunked\r\n");
    for headers in [format!("{length}{coding}"), format!("{coding}{length}")] {
        let mut stream = connect(server.address);
        let healthy = "GET /healthz HTTP/1.1\r\nHost: x\r\n";
        stream.write_all(format!("{healthy}{headers}\r\n0\r\n\r\n{healthy}\r\n").as_bytes()).expect("sent");
        assert_eq!(status(&response(&mut stream)), 200);
        let mut rest = Vec::new();
        // A reset is an end as well.
        _ = stream.read_to_end(&mut rest);
        assert_eq!(String::from_utf8_lossy(&rest), "", "{headers}");
    }
}

#[test]
fn refused_short_body_does_not_cost_the_connection() {
    let home = Home::new();
    let server = home.start();
    let mut stream = connect(server.address);
    for _ in 0..3 {
        stream.write_all(b"POST /v1/dispatch HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}").expect("sent");
        assert_eq!(status(&response(&mut stream)), 401);
    }
}

#[test]
fn server_stops_in_time_while_a_refused_body_still_comes() {
    let home = Home::new();
    let server = home.start();
    let mut stream = connect(server.address);
    let began = format!("POST /v1/dispatch HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", 1_u64 << 40);
    stream.write_all(began.as_bytes()).expect("sent");
    assert_eq!(status(&head(&mut stream).expect("a response")), 401);
    let sending = std::thread::spawn(move || {
        while stream.write_all(&[b'x'; 1000]).is_ok() {
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    });
    server.terminate();
    let ended = server.process.wait(crate::PATIENCE);
    assert!(ended.success(), "{ended}");
    sending.join().expect("it ends with the connection");
}

#[test]
fn redis_error_reaches_a_peer_that_sends_its_command_first() {
    let home = Home::with("redisProtocol: { port: 0 },");
    let server = home.start();
    let mut stream = connect(crate::deadlines::redis_address(&home));
    stream.write_all(format!("*2\r\n$4\r\nECHO\r\n${BODY_BYTES}\r\n").as_bytes()).expect("sent");
    stream.write_all(&vec![b'x'; BODY_BYTES]).expect("sent");
    let mut reply = [0; 4];
    std::io::Read::read_exact(&mut stream, &mut reply).expect("the error is lost");
    assert_eq!(&reply, b"-ERR");
    drop(server);
}
