//! Tests which web pages may call the HTTP API (`api.corsOrigins`).

use std::io::Write as _;

use crate::{
    connect, head, status,
    support::server::{Home, KEY, Server},
};

const ORIGIN: &str = "http://localhost:3000";

/// Sends a request with further header lines, and returns the head of the response.
fn request(server: &Server, line: &str, headers: &str, body: &str) -> String {
    let mut stream = connect(server.address);
    let length = body.len();
    let request = format!(
        "{line} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n{body}"
    );
    stream.write_all(request.as_bytes()).expect("a successful write");
    head(&mut stream).expect("a response")
}

/// Returns the headers of CORS, sorted.
fn cors(head: &str) -> Vec<String> {
    let lines = head.lines().map(str::to_ascii_lowercase);
    let mut cors: Vec<String> =
        lines.filter(|line| line.starts_with("access-control-") || line.starts_with("vary:")).collect();
    cors.sort();
    cors
}

fn preflight(server: &Server, origin: &str) -> String {
    let headers = format!(
        "Origin: {origin}\r\nAccess-Control-Request-Method: POST\r\n\
         Access-Control-Request-Headers: authorization,content-type\r\n"
    );
    request(server, "OPTIONS /v1/dispatch", &headers, "")
}

fn server_with(origins: &str) -> (Home, Server) {
    let mut home = Home::new();
    home.set_variable("MESA_API_CORS_ORIGINS", origins);
    let server = home.start();
    (home, server)
}

#[test]
fn allowed_origin_may_use_every_endpoint_and_read_errors() {
    let (_home, server) = server_with(&format!("http://localhost:9,{ORIGIN}"));
    let head = preflight(&server, ORIGIN);
    assert_eq!(status(&head), 204, "{head}");
    let allowed = format!("access-control-allow-origin: {ORIGIN}");
    let expected = [
        "access-control-allow-headers: authorization, content-type, last-event-id",
        "access-control-allow-methods: get, post, delete",
        allowed.as_str(),
        "access-control-max-age: 7200",
        "vary: origin",
    ];
    assert_eq!(cors(&head), expected);

    let expected = [allowed.as_str(), "access-control-expose-headers: retry-after, www-authenticate", "vary: origin"];
    let dispatch = r#"{"message":{"d":1},"recipients":["alice"]}"#;
    let origin = format!("Origin: {ORIGIN}\r\n");
    let authorized = format!("{origin}Authorization: Bearer {KEY}\r\n");
    for (line, headers, body, code) in [
        ("POST /v1/dispatch", authorized.clone(), dispatch, 200),
        ("POST /v1/dispatch", format!("{authorized}Content-Type: application/x-ndjson\r\n"), dispatch, 200),
        ("GET /v1/users", authorized.clone(), "", 200),
        ("GET /v1/users?x=1", authorized.clone(), "", 400),
        ("GET /v1/none", authorized.clone(), "", 404),
        ("GET /v1/users/%zz", authorized, "", 400),
        ("GET /v1/users", origin, "", 401),
    ] {
        let head = request(&server, line, &headers, body);
        assert_eq!((status(&head), cors(&head)), (code, expected.map(str::to_owned).to_vec()), "{line}: {head}");
    }
}

#[test]
fn event_stream_may_be_read_by_an_allowed_origin() {
    let home = Home::with_settings("portal: { enabled: true },");
    let mut command = home.command(&[]);
    command.env("MESA_API_CORS_ORIGINS", ORIGIN);
    let server =
        home.wait_until_ready(crate::support::server::Process::new(command.spawn().expect("the binary starts")));
    let head = request(&server, "GET /v1/events", &format!("Origin: {ORIGIN}\r\nAuthorization: Bearer {KEY}\r\n"), "");
    assert_eq!(status(&head), 200, "{head}");
    assert!(cors(&head).contains(&format!("access-control-allow-origin: {ORIGIN}")), "{head}");
}

#[test]
fn other_origin_gets_no_headers() {
    let (_home, server) = server_with(ORIGIN);
    // An origin is compared exactly.
    for origin in ["http://localhost:3001", "https://localhost:3000", "http://localhost", "http://LOCALHOST:3000"] {
        let head = preflight(&server, origin);
        assert_eq!((status(&head), cors(&head)), (401, vec!["vary: origin".to_owned()]), "{origin}");
        let headers = format!("Origin: {origin}\r\nAuthorization: Bearer {KEY}\r\n");
        let head = request(&server, "GET /v1/users", &headers, "");
        assert_eq!((status(&head), cors(&head)), (200, vec!["vary: origin".to_owned()]), "{origin}");
    }
    let twice = format!("Origin: {ORIGIN}\r\nOrigin: {ORIGIN}\r\nAuthorization: Bearer {KEY}\r\n");
    assert_eq!(cors(&request(&server, "GET /v1/users", &twice, "")), ["vary: origin"]);
    // A preflight needs its header, and paths outside `/v1/` have no CORS.
    let head = request(&server, "OPTIONS /v1/users", &format!("Origin: {ORIGIN}\r\n"), "");
    assert_eq!(status(&head), 401, "{head}");
    assert!(cors(&request(&server, "GET /readyz", &format!("Origin: {ORIGIN}\r\n"), "")).is_empty());
}

#[test]
fn any_origin_is_allowed_without_credentials() {
    let (_home, server) = server_with("*");
    let head = preflight(&server, ORIGIN);
    assert_eq!(status(&head), 204, "{head}");
    assert!(head.contains("access-control-allow-origin: *\r\n") && !head.contains("credentials"), "{head}");
}

#[test]
fn no_origin_is_allowed_by_default() {
    let home = Home::new();
    let server = home.start();
    let head = preflight(&server, ORIGIN);
    assert_eq!((status(&head), cors(&head)), (401, vec![]), "{head}");
}
