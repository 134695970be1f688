//! Tests ambiguous and malformed heads (400), and methods that a path does not support (405 with `Allow`).

use crate::{
    exchange, status,
    support::{
        http::{Http, chunk},
        server::{Home, KEY},
    },
};

#[test]
fn ambiguous_head_returns_400() {
    let home = Home::new();
    let server = home.start();
    let key = format!("Authorization: Bearer {KEY}\r\n");
    let host = "Host: localhost\r\n";
    let upgrade =
        |more: &str| format!("GET / HTTP/1.1\r\n{host}Upgrade: websocket\r\nConnection: Upgrade\r\n{more}\r\n");
    let (version, socket_key) = ("Sec-WebSocket-Version: 13\r\n", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n");
    let dispatch = "{\"message\":{\"d\":1},\"recipients\":[\"alice\"]}";
    let chunked =
        |codings: &str| format!("POST /v1/dispatch HTTP/1.1\r\n{host}{key}{codings}\r\n{}0\r\n\r\n", chunk(dispatch));
    let expected = [
        (200, "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n".to_owned()),
        (200, "GET /healthz HTTP/1.0\r\n\r\n".to_owned()),
        (400, "GET /healthz HTTP/1.1\r\n\r\n".to_owned()),
        (400, "GET /healthz HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n".to_owned()),
        (400, "GET /healthz HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n".to_owned()),
        (400, "GET /healthz HTTP/1.1\r\nHost: a b\r\n\r\n".to_owned()),
        (400, format!("POST /v1/dispatch HTTP/1.1\r\n{key}Content-Length: {}\r\n\r\n{dispatch}", dispatch.len())),
        (200, chunked("Transfer-Encoding: chunked\r\n")),
        (400, chunked("Transfer-Encoding: gzip, chunked\r\n")),
        (400, chunked("Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n")),
        (400, chunked("Transfer-Encoding: chunked, chunked\r\n")),
        (101, upgrade(&format!("{version}{socket_key}"))),
        (400, upgrade(&format!("{version}Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAAAA\r\n"))),
        (400, upgrade(&format!("{version}Sec-WebSocket-Key: !!!!!!!!!!!!!!!!!!!!!!==\r\n"))),
        (400, upgrade(&format!("{version}{version}{socket_key}"))),
        (400, upgrade(&format!("{version}Sec-WebSocket-Version: 8\r\n{socket_key}"))),
        (400, upgrade(&format!("Host: other\r\n{version}{socket_key}"))),
        (400, format!("GET /v1/users/%zz HTTP/1.1\r\n{host}{key}\r\n")),
        (400, format!("GET /v1/users/%4 HTTP/1.1\r\n{host}{key}\r\n")),
        (400, format!("GET /v1/users/%ff HTTP/1.1\r\n{host}{key}\r\n")),
        (404, format!("GET /v1/users/%41 HTTP/1.1\r\n{host}{key}\r\n")),
        (400, format!("GET /%zz HTTP/1.1\r\n{host}\r\n")),
        (400, format!("GET /v1/users?cursor=%ff HTTP/1.1\r\n{host}{key}\r\n")),
        (400, format!("GET /v1/users?cursor=%zz HTTP/1.1\r\n{host}{key}\r\n")),
        (400, format!("GET /v1/users/a/messages?after=%ff HTTP/1.1\r\n{host}{key}\r\n")),
        (200, format!("GET /v1/users?cursor=%c3%a9 HTTP/1.1\r\n{host}{key}\r\n")),
    ];
    for (expected, request) in expected {
        let response = exchange(server.address, request.as_bytes()).expect("a response");
        assert_eq!(status(&response), expected, "{request}{response}");
    }
    let mut http = Http::connect(server.address).expect("a connection");
    let (_, body) = http.call("GET", "/v1/users/%ff", "").expect("a response");
    let body = String::from_utf8(body).expect("text");
    assert!(body.contains("the user id in the path, percent-decoded, is not valid UTF-8"), "{body}");
}

#[test]
fn unsupported_method_returns_405_with_allow() {
    let home = Home::new();
    let server = home.start();
    for (method, path, allow) in [
        ("GET", "/v1/dispatch", "POST"),
        ("PUT", "/v1/dispatch", "POST"),
        ("POST", "/healthz", "GET,HEAD"),
        ("DELETE", "/metrics", "GET,HEAD"),
        ("POST", "/v1/users", "GET,HEAD"),
        ("PUT", "/v1/users/alice/messages", "GET,HEAD,DELETE"),
        ("GET", "/v1/users/alice/disconnect", "POST"),
    ] {
        let request = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n\r\n");
        let response = exchange(server.address, request.as_bytes()).expect("a response");
        assert_eq!(status(&response), 405, "{request}{response}");
        assert!(response.contains(&format!("\r\nallow: {allow}\r\n")), "{request}{response}");
    }
    let upgrade = "POST / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n";
    let response = exchange(server.address, upgrade.as_bytes()).expect("a response");
    assert!(response.starts_with("HTTP/1.1 405 ") && response.contains("\r\nallow: GET\r\n"), "{response}");
}
