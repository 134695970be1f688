//! Parameters of queries, and codings of bodies: what a route does not know is refused, never ignored.

use serde_json::{Value, json};

use crate::support::{
    http::Http,
    server::{Home, KEY},
};

/// Every route of the API, with parameters that it takes and the status that it answers them with.
const ROUTES: [(&str, &str, &str, u16); 9] = [
    ("POST", "/v1/dispatch", "", 200),
    ("GET", "/v1/backup", "", 200),
    // A portal is an endless stream, and off here: it is refused behind its parameters.
    ("GET", "/v1/events", "all=true", 409),
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
fn unknown_parameter_is_refused_by_every_route() {
    let home = Home::new();
    let server = home.start();
    let api = include_str!("../../src/http/mod.rs");
    for path in api.lines().filter_map(|line| line.split("\"/v1").nth(1)?.split('"').next()) {
        let path = format!("/v1{}", path.replace("{id}", "alice"));
        assert!(ROUTES.iter().any(|(_, route, _, _)| *route == path), "{path} is missing in this test");
    }
    for (method, path, known, expected) in ROUTES {
        let body = if path.ends_with("dispatch") { dispatch() } else { String::new() };
        let call = |query: &str| {
            let mut http = Http::connect(server.address).expect("a connection");
            http.call(method, &format!("{path}?{query}"), &body)
        };
        // First, so that there is something that a route could clear.
        let mut http = Http::connect(server.address).expect("a connection");
        http.dispatch(&json!(1), &["alice".to_owned()]).expect("it is taken");
        if method == "HEAD" {
            let mut stream = crate::connect(server.address);
            let request = format!("HEAD {path}?zz=1 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n\r\n");
            std::io::Write::write_all(&mut stream, request.as_bytes()).expect("sent");
            assert_eq!(crate::status(&crate::head(&mut stream).expect("a response")), 400);
            continue;
        }
        let before = http.get::<Value>("/v1/users/alice").expect("a user");
        for query in ["zz=1", "After=1", "=1", &format!("{known}&zz"), &format!("{known}&%7az=1")] {
            let (status, answer) = call(query).expect("an answer");
            let answer: Value = serde_json::from_slice(&answer).expect("JSON");
            let error = &answer["error"];
            assert_eq!((status, &error["code"]), (400, &json!("bad_parameter")), "{method} {path}?{query}: {answer}");
            let told = error["message"].as_str().unwrap_or_default();
            let names = known.split('&').filter_map(|part| part.split('=').next()).filter(|name| !name.is_empty());
            assert!(names.clone().all(|name| told.contains(&format!("`{name}`"))), "{method} {path}: {told}");
        }
        assert_eq!(http.get::<Value>("/v1/users/alice").expect("a user"), before, "{method} {path}");
        assert_eq!(call(known).expect("an answer").0, expected, "{method} {path}?{known}");
    }
}

#[test]
fn encoded_body_is_refused_with_the_name_of_its_coding() {
    let home = Home::new();
    let server = home.start();
    let body = dispatch();
    for kind in ["application/json", "application/x-ndjson"] {
        for (coding, refused) in
            [("gzip", "gzip"), ("identity, br", "br"), ("GZIP", "GZIP"), ("identity", ""), ("Identity", ""), ("", "")]
        {
            let request = format!(
                "POST /v1/dispatch HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Type: {kind}\r\n\
                 Content-Encoding: {coding}\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            );
            let mut http = Http::connect(server.address).expect("a connection");
            http.send(&request).expect("sent");
            let (status, answer) = http.response().expect("an answer");
            let answer = String::from_utf8_lossy(&answer);
            if refused.is_empty() {
                assert_eq!(status, 200, "{kind}, {coding:?}: {answer}");
            } else {
                assert_eq!(status, 415, "{kind}, {coding:?}: {answer}");
                assert!(
                    answer.contains(&format!("`{refused}`")) && answer.contains("unsupported_media_type"),
                    "{answer}"
                );
            }
        }
    }
}

#[test]
fn body_that_cannot_be_read_is_refused_in_words_of_http() {
    let home = Home::new();
    let server = home.start();
    for chunk in ["zz\r\n", "-1\r\n", "1\r\n{}\r\n", "ffffffffffffffffff\r\n"] {
        let request = format!(
            "POST /v1/dispatch HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nTransfer-Encoding: chunked\r\n\r\n{chunk}"
        );
        let mut http = Http::connect(server.address).expect("a connection");
        http.send(&request).expect("sent");
        let (status, answer) = http.response().expect("an answer");
        let answer = String::from_utf8_lossy(&answer);
        assert_eq!(status, 400, "{chunk:?}: {answer}");
        assert!(answer.contains("bad_body") && answer.contains("a chunk of it"), "{chunk:?}: {answer}");
    }
}
