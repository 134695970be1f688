//! Tests that unknown query parameters and content codings are rejected, never ignored.

use serde_json::{Value, json};

use crate::support::{
    http::Http,
    server::{Home, KEY},
};

/// Every route of the API: method, path, supported parameters, and the status of a request with them.
const ROUTES: [(&str, &str, &str, u16); 11] = [
    ("POST", "/v1/dispatch", "", 200),
    ("GET", "/v1/backup", "", 200),
    // Portals are disabled here, so the request fails after its parameters were accepted, and does not stream.
    ("GET", "/v1/events", "all=true", 409),
    ("GET", "/v1/status", "", 200),
    ("GET", "/v1/drain", "", 200),
    ("GET", "/v1/users", "online=false&cursor=a&limit=3", 200),
    ("GET", "/v1/users/alice", "", 200),
    ("GET", "/v1/users/alice/messages", "after=0&limit=3", 200),
    ("POST", "/v1/users/alice/disconnect", "", 200),
    ("DELETE", "/v1/users/alice/messages", "", 200),
    ("HEAD", "/v1/users", "limit=3", 200),
];

fn dispatch() -> String {
    json!({"message": {"d": 1}, "recipients": ["alice"]}).to_string()
}

#[test]
fn unknown_parameter_is_rejected_by_every_route() {
    let home = Home::new();
    let server = home.start();
    let api = include_str!("../../src/http/mod.rs");
    for path in api.lines().filter_map(|line| line.split("\"/v1").nth(1)?.split('"').next()) {
        let path = format!("/v1{}", path.replace("{id}", "alice"));
        assert!(ROUTES.iter().any(|(_, route, _, _)| *route == path), "{path} is missing in `ROUTES`");
    }
    for (method, path, known, expected) in ROUTES {
        let body = if path.ends_with("dispatch") { dispatch() } else { String::new() };
        let call = |query: &str| {
            let mut http = Http::connect(server.address).expect("a connection");
            http.call(method, &format!("{path}?{query}"), &body)
        };
        // A pending entry, which a route could clear.
        let mut http = Http::connect(server.address).expect("a connection");
        http.dispatch(&json!(1), &["alice".to_owned()]).expect("an accepted dispatch");
        // A response to HEAD has no body, which `call` would wait for.
        if method == "HEAD" {
            for (query, expected) in [("zz=1", 400), (known, expected)] {
                let request = format!("HEAD {path}?{query} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n\r\n");
                let head = crate::exchange(server.address, request.as_bytes()).expect("a response");
                assert_eq!(crate::status(&head), expected, "HEAD {path}?{query}: {head}");
            }
            continue;
        }
        let before = http.get::<Value>("/v1/users/alice").expect("a user");
        for query in ["zz=1", "After=1", "=1", &format!("{known}&zz"), &format!("{known}&%7az=1")] {
            let (status, response) = call(query).expect("a response");
            let response: Value = serde_json::from_slice(&response).expect("JSON");
            let error = &response["error"];
            assert_eq!((status, &error["code"]), (400, &json!("bad_parameter")), "{method} {path}?{query}: {response}");
            let text = error["message"].as_str().unwrap_or_default();
            let names = known.split('&').filter_map(|part| part.split('=').next()).filter(|name| !name.is_empty());
            assert!(names.clone().all(|name| text.contains(&format!("`{name}`"))), "{method} {path}: {text}");
        }
        assert_eq!(http.get::<Value>("/v1/users/alice").expect("a user"), before, "{method} {path}");
        assert_eq!(call(known).expect("a response").0, expected, "{method} {path}?{known}");
    }
}

#[test]
fn encoded_body_is_rejected_with_the_name_of_its_coding() {
    let home = Home::new();
    let server = home.start();
    let body = dispatch();
    for kind in ["application/json", "application/x-ndjson"] {
        for (coding, rejected) in
            [("gzip", "gzip"), ("identity, br", "br"), ("GZIP", "GZIP"), ("identity", ""), ("Identity", ""), ("", "")]
        {
            let request = format!(
                "POST /v1/dispatch HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Type: {kind}\r\n\
                 Content-Encoding: {coding}\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            );
            let mut http = Http::connect(server.address).expect("a connection");
            http.send(&request).expect("a successful write");
            let (status, response) = http.response().expect("a response");
            let response = String::from_utf8_lossy(&response);
            if rejected.is_empty() {
                assert_eq!(status, 200, "{kind}, {coding:?}: {response}");
            } else {
                assert_eq!(status, 415, "{kind}, {coding:?}: {response}");
                assert!(
                    response.contains(&format!("`{rejected}`")) && response.contains("unsupported_media_type"),
                    "{response}"
                );
            }
        }
    }
}

#[test]
fn malformed_chunk_is_rejected_as_bad_body() {
    let home = Home::new();
    let server = home.start();
    for chunk in ["zz\r\n", "-1\r\n", "1\r\n{}\r\n", "ffffffffffffffffff\r\n"] {
        let request = format!(
            "POST /v1/dispatch HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nTransfer-Encoding: chunked\r\n\r\n{chunk}"
        );
        let mut http = Http::connect(server.address).expect("a connection");
        http.send(&request).expect("a successful write");
        let (status, response) = http.response().expect("a response");
        let response = String::from_utf8_lossy(&response);
        assert_eq!(status, 400, "{chunk:?}: {response}");
        assert!(
            response.contains("bad_body") && response.contains("a chunk (Transfer-Encoding: chunked)"),
            "{chunk:?}: {response}"
        );
    }
}
