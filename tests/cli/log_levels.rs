//! Tests which events are in the log at each level, and its colours.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use serde_json::json;

use crate::{
    WAIT_TIMEOUT,
    support::{
        current_thread_runtime,
        http::{Http, request},
        resp::RespClient,
        server::{Home, Server},
        socket::Socket,
        wait::block_until,
    },
};

/// Causes each event that the log has at debug, and stops the server. Returns the log.
fn log_of_events(level: &str) -> String {
    let home = Home::with_settings(&format!(
        "log: {{ level: '{level}' }}, origins: ['https://good.example'], redisProtocol: {{ port: 0 }},"
    ));
    let server = home.start();
    let runtime = current_thread_runtime();
    let alice = runtime.block_on(Socket::connect(server.address, "alice")).expect("a connection");
    let mut http = Http::connect(server.address).expect("a connection");
    http.dispatch(&json!(1), &["alice".to_owned()]).expect("a response");
    http.call("POST", "/v1/dispatch", "{}").expect("a response");
    let foreign = format!(
        "GET / HTTP/1.1\r\nhost: localhost\r\nupgrade: websocket\r\nconnection: upgrade\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\norigin: https://{}\r\n\r\n",
        "evil".repeat(100)
    );
    let wrong_key = "GET /v1/users HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer a-wrong-key\r\n\r\n";
    for request in [&foreign, wrong_key] {
        let mut stream = TcpStream::connect(server.address).expect("a connection");
        stream.write_all(request.as_bytes()).expect("the request is sent");
        assert!(stream.read(&mut [0; 64]).expect("a response") > 0);
    }
    let mut redis = RespClient::connect(home.redis_protocol_address());
    redis.call(&["PUBLISH", "ws", r#"{"message":{"op":0,"d":{}},"recipients":["alice"]}"#]);
    drop((alice, redis));
    block_until("alice has disconnected", || http.metric("mesa_connections") == 0);
    server.stop(WAIT_TIMEOUT);
    home.wait_for_log(|log| log.contains("stopped"))
}

#[test]
fn events_of_connections_are_logged_at_debug_with_their_connection_and_peer() {
    let log = log_of_events("mesa=debug");
    for (event, fields) in [
        ("client connected", &["connection=1", "peer=127.0.0.1:"][..]),
        ("client authenticated", &["connection=1", "peer=127.0.0.1:", "user=alice"]),
        ("client disconnected", &["connection=1", "peer=127.0.0.1:"]),
        ("dispatched", &["peer=127.0.0.1", "recipients=1", "stored=1"]),
        ("request refused", &["peer=127.0.0.1", "method=POST", "path=\"/v1/dispatch\"", "status=422"]),
        ("connection of the Redis protocol opened", &["redis_connection=1", "peer=127.0.0.1"]),
        ("dispatched redis_connection=1", &["peer=127.0.0.1", "recipients=1"]),
        ("connection of the Redis protocol ended", &["redis_connection=1", "peer=127.0.0.1"]),
    ] {
        let has_fields = |line: &&str| line.contains(event) && fields.iter().all(|field| line.contains(field));
        let line = log.lines().find(has_fields).unwrap_or_else(|| panic!("{event} with {fields:?}:\n{log}"));
        assert!(line.contains("DEBUG"), "{line}");
    }
}

#[test]
fn refused_pages_and_wrong_keys_are_logged_at_info_and_other_events_are_not() {
    let log = log_of_events("mesa=info");
    for event in ["client connected", "client authenticated", "client disconnected", "dispatched", "request refused"] {
        assert!(!log.contains(event), "{event}:\n{log}");
    }
    let page = log.lines().find(|line| line.contains("WebSocket refused")).unwrap_or_else(|| panic!("{log}"));
    assert!(page.contains("INFO") && page.contains("peer=127.0.0.1:") && page.len() < 400, "{page}");
    assert!(page.contains("origin=\"https://evilevil") && page.contains('…'), "{page}");
    assert!(log.contains("wrong API keys") && !log.contains("a-wrong-key"), "{log}");
}

#[test]
fn slow_request_is_logged_with_the_time_that_its_body_took() {
    let home = Home::new();
    let server = home.start();
    let mut stream = TcpStream::connect(server.address).expect("a connection");
    let request = request("POST", "/v1/dispatch", r#"{"message":{},"recipients":["alice"]}"#);
    let (head, body) = request.split_at(request.len() - 10);
    stream.write_all(head.as_bytes()).expect("the head is sent");
    // The body of a slow backend.
    thread::sleep(Duration::from_millis(5_200));
    stream.write_all(body.as_bytes()).expect("the body is sent");
    let log = home.wait_for_log(|log| log.contains("a request was slow"));
    let line = log.lines().find(|line| line.contains("a request was slow")).expect("the line");
    for field in ["WARN", "peer=127.0.0.1", "path=\"/v1/dispatch\"", "status=200"] {
        assert!(line.contains(field), "{field}: {line}");
    }
    // On a busy machine both took longer than the pause.
    for name in [" seconds=", " seconds_until_body_arrived="] {
        let (_, rest) = line.split_once(name).unwrap_or_else(|| panic!("{name}: {line}"));
        let seconds: f64 = rest.split(' ').next().and_then(|text| text.parse().ok()).expect("a number");
        assert!(seconds >= 5.0, "{name}{seconds}: {line}");
    }
    server.stop(WAIT_TIMEOUT);
}

/// Runs a server in a pseudo-terminal until it has logged a warning; returns its output.
fn output_on_terminal(variables: &[(&str, &str)]) -> String {
    let home = Home::new();
    let server = home.command(&[]);
    let words: Vec<_> = std::iter::once(server.get_program())
        .chain(server.get_args())
        .map(|word| format!("'{}'", word.to_str().expect("UTF-8")))
        .collect();
    // `script` from util-linux connects the command to a pseudo-terminal.
    let mut command = Command::new("script");
    command.args(["--quiet", "--flush", "--return", "--command", &words.join(" ")]).arg(home.path("typescript"));
    command.env_remove("NO_COLOR").env("TERM", "xterm").envs(variables.iter().copied());
    command.current_dir(home.path("")).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let process = crate::support::server::Process::new(command.spawn().expect("script (util-linux) starts"));
    let server: Server = home.wait_until_ready(process);
    server.stop(WAIT_TIMEOUT);
    std::fs::read_to_string(home.path("typescript")).expect("the output")
}

#[test]
fn log_has_colours_only_on_a_terminal_that_shows_them() {
    let coloured = output_on_terminal(&[]);
    assert!(coloured.contains("\u{1b}[") && coloured.contains("every token is accepted"), "{coloured:?}");
    for variable in [("TERM", "dumb"), ("NO_COLOR", "1")] {
        let plain = output_on_terminal(&[variable]);
        assert!(plain.contains("every token is accepted") && !plain.contains('\u{1b}'), "{variable:?}: {plain:?}");
    }
    let home = Home::new();
    home.start().stop(WAIT_TIMEOUT);
    let log = home.wait_for_log(|log| log.contains("stopped"));
    assert!(!log.contains('\u{1b}'), "a file gets no colours: {log:?}");
}
