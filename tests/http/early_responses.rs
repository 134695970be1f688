//! Tests that a response sent before its request was read reaches a client that sends the whole request first.

use std::io::{Read as _, Write as _};

use crate::{
    connect, exchange, head, head_and_body, response, status,
    support::server::{Home, KEY},
};

/// More than the socket buffers of both sides hold.
const BODY_BYTES: usize = 12 << 20;

#[test]
fn error_reaches_a_client_that_sends_its_whole_body_first() {
    let home = Home::new();
    let server = home.start();
    let upgrade = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let json = "Content-Type: application/json\r\n";
    // No key instead of a wrong one: responses to wrong keys are delayed, and their number is limited.
    let (key, none) = (format!("Authorization: Bearer {KEY}\r\n"), "");
    let errors = [
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
    for (expected, target, headers) in &errors {
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
                let response = response.unwrap_or_else(|error| {
                    panic!("{target}, {length:?}: expected {expected}, got no response: {error}")
                });
                assert_eq!(status(&response), *expected, "{target}: {response}");
                // An upgrade is rejected before the server knows of a body.
                assert!(response.contains("connection: close") || headers == upgrade, "{target}: {response}");
            }
        }
    }
}

#[test]
fn error_reaches_a_client_that_sends_its_body_slowly() {
    let home = Home::new();
    let server = home.start();
    let mut stream = connect(server.address);
    let piece = vec![b'x'; 100_000];
    let request_head = format!("POST /v1/dispatch HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", 20 * piece.len());
    stream.write_all(request_head.as_bytes()).expect("a successful write");
    for _ in 0..20 {
        stream.write_all(&piece).expect("a successful write");
        // Meanwhile the server reads everything, and waits for more.
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    assert_eq!(status(&head(&mut stream).expect("a response")), 401);
}

#[test]
fn error_for_a_head_that_is_too_large_reaches_the_client() {
    let home = Home::new();
    let server = home.start();
    let request = format!("GET / HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "y".repeat(BODY_BYTES));
    for _ in 0..2 {
        let response = exchange(server.address, request.as_bytes()).expect("a response with 431");
        assert_eq!(status(&response), 431);
    }
}

#[test]
fn every_error_has_a_code_and_message_in_json() {
    let home = Home::with_settings("origins: ['http://good.example'],");
    let server = home.start();
    let host = "Host: x\r\n";
    let upgrade = |target: &str, more: &str| {
        format!("{target} HTTP/1.1\r\n{host}Upgrade: websocket\r\nConnection: Upgrade\r\n{more}\r\n")
    };
    let version = "Sec-WebSocket-Version: 13\r\n";
    let errors = [
        (400, "bad_request", "G@T / HTTP/1.1\r\n\r\n".to_owned()),
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
    let healthz = format!("GET /healthz HTTP/1.1\r\n{host}\r\n");
    for (expected, code, request) in &errors {
        // Alone; in one write with another request; and after the response to another request.
        for (before, pieces) in [("", 1), (&*healthz, 1), (&*healthz, 2)] {
            let mut stream = connect(server.address);
            if pieces == 1 {
                stream.write_all(format!("{before}{request}").as_bytes()).expect("a successful write");
            } else {
                stream.write_all(before.as_bytes()).expect("a successful write");
            }
            if !before.is_empty() {
                assert_eq!(status(&response(&mut stream)), 200);
            }
            if pieces == 2 {
                stream.write_all(request.as_bytes()).expect("a successful write");
            }
            let (head, body) = head_and_body(&mut stream);
            assert_eq!(status(&head), *expected, "{request}{head}");
            assert!(head.contains("\r\ncontent-type: application/json\r\n"), "{request}{head}");
            let body: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
            let error = &body["error"];
            assert_eq!(error["code"], *code, "{request}{body}");
            assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()), "{request}{body}");
        }
    }
}

/// With both a length and a coding, the coding applies, and bytes after the body are not read as a request.
#[test]
fn request_with_length_and_coding_is_the_last_of_its_connection() {
    let home = Home::new();
    let server = home.start();
    let (length, coding) = ("Content-Length: 3\r\n", "Transfer-Encoding: chunked\r\n");
    for headers in [format!("{length}{coding}"), format!("{coding}{length}")] {
        let mut stream = connect(server.address);
        let healthz = "GET /healthz HTTP/1.1\r\nHost: x\r\n";
        stream
            .write_all(format!("{healthz}{headers}\r\n0\r\n\r\n{healthz}\r\n").as_bytes())
            .expect("a successful write");
        assert_eq!(status(&response(&mut stream)), 200);
        let mut rest = Vec::new();
        // A reset ends the connection too.
        _ = stream.read_to_end(&mut rest);
        assert_eq!(String::from_utf8_lossy(&rest), "", "{headers}");
    }
}

#[test]
fn connection_stays_open_after_rejecting_a_short_body() {
    let home = Home::new();
    let server = home.start();
    let mut stream = connect(server.address);
    for _ in 0..3 {
        stream
            .write_all(b"POST /v1/dispatch HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}")
            .expect("a successful write");
        assert_eq!(status(&response(&mut stream)), 401);
    }
}

#[test]
fn server_stops_in_time_while_a_rejected_body_arrives() {
    let home = Home::new();
    let server = home.start();
    let mut stream = connect(server.address);
    let request_head = format!("POST /v1/dispatch HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", 1_u64 << 40);
    stream.write_all(request_head.as_bytes()).expect("a successful write");
    assert_eq!(status(&head(&mut stream).expect("a response")), 401);
    let sending = std::thread::spawn(move || {
        while stream.write_all(&[b'x'; 1000]).is_ok() {
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    });
    server.stop(crate::WAIT_TIMEOUT);
    sending.join().expect("an end with the connection");
}

#[test]
fn redis_error_reaches_a_client_that_sends_its_whole_command_first() {
    let home = Home::with_settings("redisProtocol: { port: 0 },");
    let server = home.start();
    let mut stream = connect(home.redis_protocol_address());
    stream.write_all(format!("*2\r\n$4\r\nECHO\r\n${BODY_BYTES}\r\n").as_bytes()).expect("a successful write");
    stream.write_all(&vec![b'x'; BODY_BYTES]).expect("a successful write");
    let mut reply = [0; 4];
    std::io::Read::read_exact(&mut stream, &mut reply).expect("an error reply");
    assert_eq!(&reply, b"-ERR");
    drop(server);
}
