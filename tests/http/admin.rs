//! Tests the admin page: login, its guard, its headers, and who may use it without a password.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    thread,
};

use serde_json::{Value, json};

use crate::{
    connect, head, status,
    support::{
        http::Http,
        server::{Home, KEY, Process, Server},
    },
};

const PASSWORD: &str = "correct horse battery";

/// Sessions that a server keeps.
const SESSIONS_MAX: usize = 64;

struct Reply {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Reply {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.head))
    }

    fn code(&self) -> (u16, String) {
        (self.status, self.json()["error"]["code"].as_str().unwrap_or_default().to_owned())
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }
}

fn begin(server: &Server, method: &str, path: &str, headers: &[String], body: &str) -> TcpStream {
    let host = if headers.iter().any(|header| header.starts_with("Host:")) { "" } else { "Host: localhost\r\n" };
    let lines: String = headers.iter().flat_map(|header| [header.as_str(), "\r\n"]).collect();
    let length = if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
    let mut stream = connect(server.address);
    let request = format!("{method} {path} HTTP/1.1\r\n{host}Connection: close\r\n{length}{lines}\r\n{body}");
    stream.write_all(request.as_bytes()).expect("a successful write");
    stream
}

/// Sends a request with these header lines.
fn send(server: &Server, method: &str, path: &str, headers: &[String], body: &str) -> Reply {
    let mut stream = begin(server, method, path, headers, body);
    let (head, mut body) = (head(&mut stream).expect("a response"), Vec::new());
    stream.read_to_end(&mut body).expect("a body");
    Reply { status: status(&head), head, body }
}

fn json_type() -> String {
    "Content-Type: application/json".into()
}

fn log_in(server: &Server, password: &str) -> Reply {
    send(server, "POST", "/admin/session", &[json_type()], &json!({ "password": password }).to_string())
}

/// Logs in, and returns the header lines of the session: its cookie, and its token.
fn session(server: &Server) -> [String; 2] {
    let reply = log_in(server, PASSWORD);
    assert_eq!(reply.status, 200, "{}", reply.head);
    let cookie = reply.header("set-cookie").and_then(|cookie| cookie.split(';').next()).expect("a cookie");
    [format!("Cookie: other=1; {cookie}"), format!("X-CSRF-Token: {}", reply.json()["csrf"].as_str().expect("a token"))]
}

fn home() -> Home {
    Home::with_settings(&format!("admin: {{ password: '{PASSWORD}' }},"))
}

#[test]
fn admin_page_without_a_password_does_not_exist() {
    let home = Home::new();
    let server = home.start();
    let key = [format!("Authorization: Bearer {KEY}")];
    for path in ["/admin", "/admin/", "/admin/admin.css", "/admin/session", "/admin/v1/users", "/admin/v1/status"] {
        for method in ["GET", "POST", "DELETE"] {
            assert_eq!(send(&server, method, path, &key, "").code(), (404, "not_found".into()), "{method} {path}");
        }
    }
}

#[test]
fn login_with_the_password_sets_a_cookie_that_only_the_page_can_use() {
    let home = home();
    let server = home.start();
    let wrong = log_in(&server, "incorrect horse battery");
    assert_eq!(wrong.code(), (401, "wrong_password".into()));
    assert_eq!(wrong.header("set-cookie"), None);
    let untyped = send(&server, "POST", "/admin/session", &[], &json!({ "password": PASSWORD }).to_string());
    assert_eq!(untyped.code(), (415, "unsupported_media_type".into()), "a form of another site cannot log in");
    for body in ["", "{}", "[]", "{\"password\":1}", "{\"password\":\"x\",\"user\":1}", "{"] {
        assert_eq!(
            send(&server, "POST", "/admin/session", &[json_type()], body).code(),
            (400, "bad_json".into()),
            "{body}"
        );
    }
    let long = format!("{{\"password\":\"{}\"}}", "x".repeat(10_000));
    assert_eq!(send(&server, "POST", "/admin/session", &[json_type()], &long).code(), (400, "bad_body".into()));

    let right = log_in(&server, PASSWORD);
    let cookie = right.header("set-cookie").expect("a cookie");
    let (value, attributes) = cookie.split_once("; ").expect("attributes");
    let token = value.strip_prefix("mesa_admin=").expect("the name of the cookie");
    assert_eq!(attributes, "Path=/admin; Max-Age=43200; HttpOnly; SameSite=Strict", "Secure only over https");
    assert!(token.len() == 64 && token.bytes().all(|byte| byte.is_ascii_hexdigit()), "256 bits: {token}");
    let port = send(
        &server,
        "POST",
        "/admin/session",
        &[json_type(), "Host: localhost:4000".into()],
        &json!({ "password": PASSWORD }).to_string(),
    );
    assert!(port.header("set-cookie").is_some_and(|cookie| cookie.starts_with("mesa_admin_4000=")), "{}", port.head);

    let shown = send(&server, "GET", "/admin/session", &[format!("Cookie: {value}")], "").json();
    assert_eq!((&shown["open"], &shown["csrf"]), (&json!(false), &right.json()["csrf"]));
    assert_eq!(send(&server, "GET", "/admin/session", &[], "").json()["csrf"], Value::Null);
    let log = home.complete_log(&server);
    assert!(!log.contains(PASSWORD) && !log.contains(token), "{log}");
}

#[test]
fn api_of_the_page_needs_the_session_and_its_token_for_every_request() {
    let home = home();
    let server = home.start();
    let [cookie, token] = session(&server);
    let [_, other] = session(&server);
    let key = format!("Authorization: Bearer {KEY}");
    let api = include_str!("../../src/http/mod.rs");
    let mut paths: Vec<String> = api
        .lines()
        .filter_map(|line| Some(line.split(".route(\"/v1").nth(1)?.split('"').next()?.replace("{id}", "alice")))
        .collect();
    assert!(paths.len() >= 6, "{paths:?}");
    paths.push("/dispatch".into());
    for path in &paths {
        for method in ["GET", "POST", "DELETE"] {
            let code = |headers: &[&String]| {
                let headers: Vec<String> = headers.iter().copied().cloned().chain([json_type()]).collect();
                send(&server, method, &format!("/admin/v1{path}"), &headers, "").code()
            };
            // A path answers other methods before it looks for a session.
            if code(&[]) == (405, "method_not_allowed".into()) {
                continue;
            }
            assert_eq!(code(&[]), (401, "no_session".into()), "{method} {path}");
            assert_eq!(code(&[&key, &token]), (401, "no_session".into()), "{method} {path}: a key is no session");
            assert_eq!(code(&[&cookie]), (403, "csrf_token".into()), "{method} {path}");
            assert_eq!(code(&[&cookie, &other]), (403, "csrf_token".into()), "{method} {path}: of another session");
            assert_eq!(code(&[&cookie, &token, &other]), (403, "csrf_token".into()), "{method} {path}: two tokens");
        }
    }
    // A session is no key.
    assert_eq!(send(&server, "GET", "/v1/users", &[cookie.clone(), token.clone()], "").status, 401);

    let headers = [cookie, token, json_type()];
    let body = json!({"message": {"d": 1, "t": "A"}, "recipients": ["alice"]}).to_string();
    assert_eq!(send(&server, "POST", "/admin/v1/dispatch", &headers, &body).json()["stored"], 1);
    let page = send(&server, "GET", "/admin/v1/users/alice/messages?limit=1", &headers, "").json();
    assert_eq!(page["messages"][0]["t"], "A", "{page}");
    assert_eq!(send(&server, "GET", "/admin/v1/users?zz=1", &headers, "").code(), (400, "bad_parameter".into()));
    assert_eq!(send(&server, "DELETE", "/admin/v1/users/alice/messages", &headers, "").json(), json!({"cleared": 1}));
    let mut backend = Http::connect(server.address).expect("a connection");
    assert_eq!(backend.get::<Value>("/v1/users/alice").expect("a user")["pending"], 0);
}

#[test]
fn logout_ends_the_session_and_its_streams() {
    let home = home();
    let server = home.start();
    let headers = session(&server);
    let others = session(&server);
    let mut events = begin(&server, "GET", "/admin/v1/events?observe=true", &headers, "");
    assert_eq!(status(&head(&mut events).expect("a response")), 200);
    let [cookie, token] = headers.clone();
    let endless = ["Transfer-Encoding: chunked".into(), "Content-Type: application/x-ndjson".into()];
    let endless = [&[cookie.clone(), token][..], &endless].concat();
    let mut dispatches = begin(&server, "POST", "/admin/v1/dispatch", &endless, "");
    assert_eq!(status(&head(&mut dispatches).expect("a response")), 200);
    assert_eq!(send(&server, "DELETE", "/admin/session", &[cookie], "").code(), (403, "csrf_token".into()));
    let ended = send(&server, "DELETE", "/admin/session", &headers, "");
    assert_eq!(ended.status, 200, "{}", ended.head);
    let cookie = ended.header("set-cookie").expect("a cookie");
    assert!(cookie.starts_with("mesa_admin=; ") && cookie.contains("Max-Age=0;"), "{cookie}");
    for mut stream in [events, dispatches] {
        // It ends, or this read times out.
        stream.read_to_end(&mut Vec::new()).expect("the end of the stream");
    }
    assert_eq!(send(&server, "GET", "/admin/v1/users", &headers, "").code(), (401, "no_session".into()));
    assert_eq!(send(&server, "GET", "/admin/v1/users", &others, "").status, 200, "another session goes on");
}

#[test]
fn every_response_of_the_page_has_the_headers_that_protect_it() {
    let home = home();
    let server = home.start();
    let policy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; \
                  frame-ancestors 'none'; base-uri 'none'; form-action 'self'";
    let page = send(&server, "GET", "/admin", &[], "");
    let html = String::from_utf8(page.body).expect("text");
    let linked = |text: &str| -> Vec<String> {
        text.split(['"', '\''])
            .filter_map(|part| part.strip_prefix("./").or(part.strip_prefix("admin/")))
            .map(|file| format!("/admin/{file}"))
            .collect()
    };
    let mut paths = linked(&html);
    let mut scripts = 0;
    // Each file that the page or one of its scripts names.
    while let Some(at) = paths.get(scripts).cloned() {
        scripts += 1;
        if at.ends_with("mjs") {
            let more = linked(&String::from_utf8(send(&server, "GET", &at, &[], "").body).expect("text"));
            paths.extend(
                more.into_iter()
                    .filter(|path| path.ends_with("mjs"))
                    .filter(|path| !paths.contains(path))
                    .collect::<Vec<_>>(),
            );
        }
    }
    paths.sort();
    paths.dedup();
    assert!(paths.len() >= 12, "{paths:?}");
    for path in &paths {
        let file = send(&server, "GET", path, &[], "");
        assert_eq!(file.status, 200, "{path}");
        let etag = format!("If-None-Match: {}", file.header("etag").expect("a tag"));
        assert_eq!(send(&server, "GET", path, &[etag], "").status, 304, "{path}");
    }
    paths.extend(
        ["/admin", "/admin/", "/admin/session", "/admin/missing", "/admin/v1/users", "/admin/v1/backup"]
            .map(str::to_owned),
    );
    for path in &paths {
        let reply = send(&server, "GET", path, &["Origin: http://localhost:1".into()], "");
        assert_eq!(reply.header("content-security-policy"), Some(policy), "{path}");
        assert_eq!(reply.header("x-content-type-options"), Some("nosniff"), "{path}");
        assert_eq!(reply.header("referrer-policy"), Some("no-referrer"), "{path}");
        assert_eq!(reply.header("access-control-allow-origin"), None, "{path}");
    }
    let redirect = send(&server, "GET", "/admin/", &[], "");
    assert_eq!((redirect.status, redirect.header("location")), (308, Some("../admin")));
}

#[test]
fn sessions_are_bounded_and_the_oldest_one_ends() {
    let home = home();
    let server = home.start();
    let [first, second] = [session(&server), session(&server)];
    for _ in 0..SESSIONS_MAX - 1 {
        // The first session is used, so the second one is unused for longest.
        assert_eq!(send(&server, "GET", "/admin/v1/users", &first, "").status, 200);
        session(&server);
    }
    assert_eq!(send(&server, "GET", "/admin/v1/users", &second, "").code(), (401, "no_session".into()));
    assert_eq!(send(&server, "GET", "/admin/v1/users", &first, "").status, 200);
}

#[test]
fn many_wrong_passwords_of_an_address_are_not_compared() {
    let home = home();
    let server = home.start();
    // Each waits up to 2 s for its answer, so all wait at once. Some of many are not compared, although one more is each second.
    let rejected = thread::scope(|scope| {
        let guess = |n: usize| {
            let server = &server;
            scope.spawn(move || log_in(server, &format!("guess {n}")))
        };
        let replies: Vec<Reply> =
            (0..60).map(guess).collect::<Vec<_>>().into_iter().map(|guess| guess.join().expect("a reply")).collect();
        let is_rejected = |reply: &&Reply| match reply.code() {
            (401, code) if code == "wrong_password" => false,
            (429, code) if code == "too_many_wrong_keys" => true,
            other => panic!("unexpected reply {other:?}"),
        };
        assert!(replies.iter().filter(is_rejected).all(|reply| reply.header("retry-after").is_some()));
        replies.iter().filter(is_rejected).count()
    });
    assert!((1..=40).contains(&rejected), "20 guesses are compared at least: {rejected}");
}

/// Starts a server with `--dev`.
fn start_dev(home: &Home) -> Server {
    let mut command = home.command(&[]);
    command.arg("--dev");
    home.wait_until_ready(Process::new(command.spawn().expect("the binary starts")))
}

#[test]
fn page_of_a_development_server_is_open_only_to_this_machine() {
    let home = Home::new();
    let server = start_dev(&home);
    let get = |headers: &[&str]| {
        send(&server, "GET", "/admin/session", &headers.iter().map(|&header| header.into()).collect::<Vec<_>>(), "")
    };
    let address = server.address;
    for host in ["Host: localhost", "Host: 127.0.0.1:4000", "Host: [::1]:4000", &format!("Host: {address}")] {
        let reply = get(&[host]);
        assert_eq!((reply.status, &reply.json()["open"]), (200, &json!(true)), "{host}");
    }
    for headers in [
        &["Host: mesa"][..],
        &["Host: 10.0.0.1"],
        &["Host: localhost.example.org"],
        &["Host: localhost", "Origin: http://example.org"],
        &["Host: localhost", "Origin: null"],
        &["Host: localhost", "X-Forwarded-For: 127.0.0.1"],
        &["Host: localhost", "Forwarded: for=127.0.0.1"],
    ] {
        assert_eq!(get(headers).code(), (403, "foreign_page".into()), "{headers:?}");
    }
    let reply = send(&server, "POST", "/admin/session", &[json_type()], "{\"password\":\"\"}");
    assert_eq!(reply.status, 200, "{}", reply.head);
    assert_eq!(send(&server, "GET", "/admin/v1/users", &[], "").code(), (401, "no_session".into()));
    home.wait_for_log(|log| log.contains("/admin  (open to this machine without a password, because of --dev)"));

    // With a password the page of a development server needs it too.
    let home = self::home();
    let server = start_dev(&home);
    assert_eq!(log_in(&server, "").code(), (401, "wrong_password".into()));
    session(&server);
}
