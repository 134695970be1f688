//! Tests the reload of a running server by SIGHUP. A client that is connected stays connected.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    os::unix::net::UnixDatagram,
};

use rustix::process::Signal;
use serde_json::json;

use crate::{
    WAIT_TIMEOUT,
    support::{
        command::{mesa_command, output_text},
        current_thread_runtime,
        resp::RespClient,
        server::{Home, KEY, Server},
        socket::Socket,
    },
};

const OTHER_KEY: &str = "other-key-0123456789";

/// Beginning of the line that each accepted reload writes.
const RELOADED: &str = "the configuration was reloaded; in effect now: ";

/// Writes a configuration: JSON5 `key: value` pairs.
fn configure(home: &Home, settings: &str) {
    let text = format!("{{ host: '127.0.0.1', port: 0, sync: {{ enabled: true }}, {settings} }}");
    fs::write(home.path("config.json5"), text).expect("the configuration is written");
}

/// Reloads a changed configuration, and returns the log lines about it.
fn reload(home: &Home, server: &Server, settings: &str) -> String {
    let count = |log: &str| log.matches(RELOADED).count() + log.matches("was not reloaded").count();
    let before = home.complete_log(server);
    configure(home, settings);
    server.signal(Signal::HUP);
    home.wait_for_log(|log| count(log) > count(&before));
    home.complete_log(server)[before.len()..].to_owned()
}

/// Sends a request, and returns the response.
fn exchange(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("a connection");
    stream.set_read_timeout(Some(WAIT_TIMEOUT)).expect("a timeout");
    stream.write_all(request.as_bytes()).expect("the request is sent");
    let mut response = Vec::new();
    let mut bytes = [0; 4096];
    // A WebSocket stays open after the head.
    while !response.windows(4).any(|end| end == b"\r\n\r\n") {
        match stream.read(&mut bytes).expect("a response") {
            0 => break,
            read => response.extend_from_slice(&bytes[..read]),
        }
    }
    String::from_utf8_lossy(&response).into_owned()
}

/// Requests the list of users; returns the head of the response.
fn users(address: SocketAddr, key: &str, headers: &str) -> String {
    exchange(
        address,
        &format!("GET /v1/users HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {key}\r\n{headers}\r\n"),
    )
}

/// Opens a WebSocket from a page; returns the head of the response.
fn upgrade(address: SocketAddr, origin: &str) -> String {
    exchange(
        address,
        &format!(
            "GET / HTTP/1.1\r\nhost: localhost\r\nupgrade: websocket\r\nconnection: upgrade\r\norigin: {origin}\r\n\
             sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        ),
    )
}

/// Signs a token.
fn token(user: &str, secret: &str) -> String {
    let output = mesa_command().args(["token", "--id", user]).env("WS_KEY", secret).output().expect("the binary runs");
    assert!(output.status.success(), "{}", output_text(&output));
    String::from_utf8(output.stdout).expect("UTF-8").trim().to_owned()
}

#[test]
fn reload_applies_each_kind_of_setting_while_a_client_stays_connected() {
    const SECRETS: [&str; 2] = ["first-secret-0123456789-0123456789", "second-secret-0123456789-0123456789"];
    let home = Home::new();
    let settings = |key: &str, secret: &str, more: &str| {
        format!("api: {{ keys: ['{key}'] }}, authentication: {{ jwt: {{ secret: '{secret}' }} }}, {more}")
    };
    configure(&home, &settings(KEY, SECRETS[0], "redisProtocol: { port: 0 }"));
    let server = home.start();
    let runtime = current_thread_runtime();
    let connect = |token: &str| runtime.block_on(Socket::connect(server.address, token));
    let mut alice = connect(&token("alice", SECRETS[0])).expect("a connection");
    let mut stays = |key: &str| {
        let request = json!({ "message": { "d": key }, "recipients": ["alice"] }).to_string();
        let head = exchange(
            server.address,
            &format!(
                "POST /v1/dispatch HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {key}\r\ncontent-length: {}\r\n\r\n{request}",
                request.len()
            ),
        );
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        assert_eq!(runtime.block_on(alice.next()).expect("alice stays connected").d, json!(key));
    };
    stays(KEY);

    // API keys.
    let log = reload(&home, &server, &settings(OTHER_KEY, SECRETS[0], "redisProtocol: { port: 0 }"));
    assert!(log.contains(&format!("{RELOADED}api.keys\n")), "{log}");
    assert!(users(server.address, KEY, "").starts_with("HTTP/1.1 401"));
    stays(OTHER_KEY);

    // Secret of the tokens.
    let log = reload(&home, &server, &settings(OTHER_KEY, SECRETS[1], "redisProtocol: { port: 0 }"));
    assert!(log.contains(&format!("{RELOADED}authentication.jwt.secret\n")), "{log}");
    connect(&token("bob", SECRETS[1])).expect("a token of the new secret is accepted");
    connect(&token("bob", SECRETS[0])).expect_err("a token of the old secret is rejected");
    stays(OTHER_KEY);

    // Origins of WebSockets and of the HTTP API.
    assert!(upgrade(server.address, "https://evil.example").starts_with("HTTP/1.1 101"));
    let origins = "origins: ['https://good.example'], redisProtocol: { port: 0 }, \
                   api: { keys: ['other-key-0123456789'], corsOrigins: ['https://good.example'] }, \
                   authentication: { jwt: { secret: 'second-secret-0123456789-0123456789' } }";
    let log = reload(&home, &server, origins);
    assert!(log.contains(&format!("{RELOADED}api.corsOrigins, origins\n")), "{log}");
    assert!(upgrade(server.address, "https://evil.example").starts_with("HTTP/1.1 403"));
    assert!(upgrade(server.address, "https://good.example").starts_with("HTTP/1.1 101"));
    let response = users(server.address, OTHER_KEY, "origin: https://good.example\r\n");
    assert!(response.contains("access-control-allow-origin: https://good.example"), "{response}");
    stays(OTHER_KEY);

    // Limits, log level, and the password of the Redis protocol.
    let more = "limits: { recipients: 1, connections: 1 }, log: { level: 'debug' }, \
                redisProtocol: { port: 0, password: 'a-password-0123456789' }";
    let log = reload(&home, &server, &settings(OTHER_KEY, SECRETS[1], more));
    let names = "api.corsOrigins, origins, limits.connections, limits.recipients, redisProtocol.password, log.level";
    assert!(log.contains(&format!("{RELOADED}{names}\n")), "{log}");
    stays(OTHER_KEY);
    let two = json!({ "message": {}, "recipients": ["a", "b"] }).to_string();
    let request = format!(
        "POST /v1/dispatch HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {OTHER_KEY}\r\ncontent-length: {}\r\n\r\n{two}",
        two.len()
    );
    assert!(exchange(server.address, &request).starts_with("HTTP/1.1 422"));
    assert!(upgrade(server.address, "https://any.example").starts_with("HTTP/1.1 503"), "alice has the only permit");
    let mut resp = RespClient::connect(home.redis_protocol_address());
    assert!(resp.call(&["PING"]).contains("NOAUTH"));
    assert!(home.wait_for_log(|log| log.contains("DEBUG")).contains("DEBUG"));

    let log = home.complete_log(&server);
    for secret in [SECRETS[0], SECRETS[1], KEY, OTHER_KEY, "a-password-0123456789"] {
        assert!(!log.contains(secret), "{log}");
    }
    server.stop(WAIT_TIMEOUT);
}

#[test]
fn key_file_with_new_content_is_reloaded() {
    const KEYS: [&str; 2] = [
        "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n-----END PUBLIC KEY-----\n",
        "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=\n-----END PUBLIC KEY-----\n",
    ];
    let home = Home::new();
    let settings = "authentication: { jwt: { keyFile: 'key.pem', algorithms: ['EdDSA'] } }";
    configure(&home, settings);
    fs::write(home.path("key.pem"), KEYS[0]).expect("a key");
    let server = home.start();
    fs::write(home.path("key.pem"), KEYS[1]).expect("a key");
    let log = reload(&home, &server, settings);
    assert!(log.contains(&format!("{RELOADED}authentication.jwt.keyFile\n")), "{log}");
    let log = reload(&home, &server, settings);
    assert!(log.contains(&format!("{RELOADED}no changed key\n")), "{log}");
    fs::write(home.path("key.pem"), "no key").expect("a key");
    let log = reload(&home, &server, settings);
    assert!(log.contains("key.pem") && log.contains("nothing has changed"), "{log}");
    server.stop(WAIT_TIMEOUT);
}

#[test]
fn invalid_configuration_changes_nothing_and_every_mistake_is_logged() {
    let home = Home::new();
    configure(&home, &format!("api: {{ keys: ['{KEY}'] }}, authentication: {{ insecure: true }}"));
    let server = home.start();
    let wrong = format!(
        "api: {{ keys: ['{OTHER_KEY}'] }}, prot: 1, limits: {{ recipients: 0 }}, log: {{ level: 'loud' }}, origins: ['x']"
    );
    let log = reload(&home, &server, &wrong);
    for mistake in ["unknown key `prot`", "limits.recipients must be", "log.level must be", "origins[0] must be"] {
        assert!(log.contains("not reloaded: ") && log.contains(mistake), "{mistake}: {log}");
    }
    assert!(log.contains("mistakes=4") && !log.contains(RELOADED), "{log}");
    assert!(users(server.address, KEY, "").starts_with("HTTP/1.1 200"));
    assert!(users(server.address, OTHER_KEY, "").starts_with("HTTP/1.1 401"));

    // Valid alone, but not with the `host` of the running server.
    let home = Home::new();
    let jwt = "jwt: { secret: 'a-secret-0123456789-0123456789-0123' }";
    fs::write(home.path("config.json5"), format!("{{ host: '0.0.0.0', port: 0, authentication: {{ {jwt} }} }}"))
        .expect("the configuration is written");
    let server = home.start();
    let log = reload(&home, &server, "authentication: { insecure: true }");
    assert!(log.contains("insecure accepts every token, and host 0.0.0.0"), "{log}");
    server.stop(WAIT_TIMEOUT);
}

#[test]
fn key_that_needs_a_restart_is_named_at_each_reload_until_the_restart() {
    let home = Home::new();
    configure(&home, "authentication: { insecure: true }");
    let server = home.start();
    let changed = "authentication: { insecure: true }, store: { minFree: 1 }, limits: { queue: 5, recipients: 5 }";
    let named = "take effect at the next start only: store.minFree, limits.queue\n";
    for applied in ["limits.recipients", "no changed key"] {
        let log = reload(&home, &server, changed);
        assert!(log.contains(&format!("{RELOADED}{applied}\n")) && log.contains(named), "{log}");
    }
    server.stop(WAIT_TIMEOUT);
}

#[test]
fn reload_keeps_the_precedence_of_environment_and_options_and_the_key_of_dev() {
    let mut home = Home::new();
    home.set_variable("MESA_LIMITS_RECIPIENTS", "7");
    configure(&home, "limits: { recipients: 5 }, log: { level: 'info' }");
    let mut command = home.command(&[]);
    command.args(["--dev", "--log-level", "info"]);
    let process = crate::support::server::Process::new(command.spawn().expect("the binary starts"));
    let server = home.wait_until_ready(process);
    let ready: serde_json::Value =
        serde_json::from_slice(&fs::read(home.path("ready")).expect("a ready file")).expect("JSON");
    let log = reload(&home, &server, "limits: { recipients: 6 }, log: { level: 'debug' }");
    assert!(log.contains(&format!("{RELOADED}no changed key\n")), "{log}");
    let key = ready["apiKey"].as_str().expect("a key");
    assert!(users(server.address, key, "").starts_with("HTTP/1.1 200"), "the key that was printed still works");
    server.stop(WAIT_TIMEOUT);
}

/// Receives notifications as systemd does.
struct Systemd(UnixDatagram);

impl Systemd {
    fn next(&self) -> String {
        let mut bytes = [0; 256];
        let read = self.0.recv(&mut bytes).expect("a notification");
        String::from_utf8_lossy(&bytes[..read]).into_owned()
    }

    /// Returns the next notification that is no sign of life.
    fn next_state(&self) -> String {
        loop {
            let state = self.next();
            if state != "WATCHDOG=1" {
                return state;
            }
        }
    }
}

#[test]
fn systemd_is_notified_of_ready_reload_and_stop() {
    let mut home = Home::new();
    let socket = home.path("notify");
    let systemd = Systemd(UnixDatagram::bind(&socket).expect("a socket"));
    systemd.0.set_read_timeout(Some(WAIT_TIMEOUT)).expect("a timeout");
    home.set_variable("NOTIFY_SOCKET", socket.to_str().expect("a UTF-8 path"));
    home.set_variable("WATCHDOG_USEC", "200000");
    let server = home.start();
    assert_eq!(systemd.next(), "READY=1");
    for _ in 0..2 {
        assert_eq!(systemd.next(), "WATCHDOG=1");
    }
    server.signal(Signal::HUP);
    let state = systemd.next_state();
    let micros = state.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap_or_else(|| panic!("{state}"));
    assert!(micros.parse::<u64>().is_ok_and(|micros| micros > 0), "{state}");
    assert_eq!(systemd.next_state(), "READY=1");
    server.terminate();
    assert_eq!(systemd.next_state(), "STOPPING=1");
    assert!(server.process.wait(WAIT_TIMEOUT).success());
}

#[test]
fn reload_with_an_unusable_certificate_changes_nothing() {
    let issue = || rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let home = Home::new();
    let write = |certificate: &rcgen::CertifiedKey<rcgen::KeyPair>| {
        fs::write(home.path("key.pem"), certificate.signing_key.serialize_pem()).expect("a key");
        fs::write(home.path("cert.pem"), certificate.cert.pem()).expect("a certificate");
    };
    write(&issue());
    let settings = |key: &str| {
        format!(
            "api: {{ keys: ['{key}'] }}, authentication: {{ insecure: true }}, tls: {{ cert: 'cert.pem', key: 'key.pem' }}"
        )
    };
    configure(&home, &settings(KEY));
    let server = home.start();
    fs::write(home.path("cert.pem"), "no certificate").expect("a file");
    let log = reload(&home, &server, &settings(OTHER_KEY));
    assert!(log.contains("not reloaded: ") && log.contains("cert.pem") && log.contains("nothing has changed"), "{log}");
    write(&issue());
    let log = reload(&home, &server, &settings(OTHER_KEY));
    assert!(log.contains(&format!("{RELOADED}api.keys")), "the former reload did not apply it: {log}");
    assert!(home.complete_log(&server).contains("the certificates have changed, and are in use"));
    server.stop(WAIT_TIMEOUT);
}

/// Begins a request with this key that has no end, and returns its connection after the head of the response.
fn stream(address: SocketAddr, key: &str, line: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).expect("a connection");
    stream.set_read_timeout(Some(WAIT_TIMEOUT)).expect("a timeout");
    let request = format!(
        "{line} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {key}\r\ncontent-type: application/x-ndjson\r\n\
         transfer-encoding: chunked\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).expect("the request is sent");
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).expect("a response");
        head.push(byte[0]);
    }
    assert!(head.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&head));
    stream
}

#[test]
fn streams_of_a_removed_api_key_end_and_those_of_other_keys_go_on() {
    let home = Home::new();
    let settings = |keys: &str| format!("api: {{ keys: [{keys}] }}, authentication: {{ insecure: true }}");
    configure(&home, &settings(&format!("'{KEY}', '{OTHER_KEY}'")));
    let server = home.start();
    let lines = ["GET /v1/events?observe=true", "POST /v1/dispatch"];
    let ending = lines.map(|line| stream(server.address, KEY, line));
    let [_events, mut dispatches] = lines.map(|line| stream(server.address, OTHER_KEY, line));
    let log = reload(&home, &server, &settings(&format!("'{OTHER_KEY}'")));
    assert!(log.contains(&format!("{RELOADED}api.keys\n")), "{log}");
    for mut stream in ending {
        // It ends, or this read times out.
        stream.read_to_end(&mut Vec::new()).expect("the end of the stream");
    }
    let line = json!({ "message": { "d": 1 }, "recipients": ["alice"] }).to_string() + "\n";
    write!(dispatches, "{:x}\r\n{line}\r\n", line.len()).expect("a line is sent");
    let mut result = vec![0; 4096];
    let read = dispatches.read(&mut result).expect("a result");
    assert!(String::from_utf8_lossy(&result[..read]).contains("\"stored\""), "{result:?}");
    server.stop(WAIT_TIMEOUT);
}
