//! Tests that servers with `--dev` or `authentication.insecure` accept only pages of this machine.
//!
//! These servers accept any token.

use std::{fs, net::SocketAddr};

use crate::{
    exchange, status,
    support::server::{Home, KEY, Process, Server},
};

fn start(home: &Home) -> Server {
    _ = fs::remove_file(home.path("ready"));
    let child = home.command(&[]).arg("--dev").spawn().expect("the binary starts");
    home.wait_until_ready(Process::new(child))
}

fn upgrade(address: SocketAddr, host: &str, origin: &str) -> u16 {
    let request = format!(
        "GET / HTTP/1.1\r\nHost: {host}\r\n{origin}Upgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    status(&exchange(address, request.as_bytes()).expect("a response"))
}

fn list(address: SocketAddr, host: &str, origin: &str) -> u16 {
    let request = format!("GET /v1/users HTTP/1.1\r\nHost: {host}\r\n{origin}Authorization: Bearer {KEY}\r\n\r\n");
    status(&exchange(address, request.as_bytes()).expect("a response"))
}

#[test]
fn dev_server_rejects_pages_of_other_machines() {
    let home = Home::new();
    assert_only_local_pages(&start(&home));
}

#[test]
fn insecure_server_rejects_pages_of_other_machines() {
    let home = Home::new();
    assert_only_local_pages(&home.start());
}

/// Such a server verifies tokens, or is explicitly public.
#[test]
fn secure_or_public_server_accepts_pages_of_any_machine() {
    for authentication in [
        "{ jwt: { secret: '0123456789abcdef0123456789abcdef' } }",
        "{ insecure: true, jwt: { secret: '0123456789abcdef0123456789abcdef' } }",
        "{ insecure: true, insecurePublic: true }",
    ] {
        let home = Home::new();
        let config = format!("{{ host: '127.0.0.1', port: 0, authentication: {authentication} }}");
        fs::write(home.path("config.json5"), config).expect("the configuration is written");
        let server = home.start();
        assert_eq!(upgrade(server.address, "mesa.example", "Origin: http://evil.example\r\n"), 101, "{authentication}");
    }
}

fn assert_only_local_pages(server: &Server) {
    for host in ["127.0.0.1:4000", "localhost:4000", "[::1]:4000"] {
        for origin in ["", "Origin: http://localhost:8080\r\n", "Origin: https://127.0.0.1\r\n"] {
            assert_eq!(upgrade(server.address, host, origin), 101, "{host} {origin}");
            assert_eq!(list(server.address, host, origin), 200, "{host} {origin}");
        }
        for origin in ["http://evil.example", "null", "http://localhost.evil.example", "http://192.168.1.2"] {
            let origin = format!("Origin: {origin}\r\n");
            assert_eq!(upgrade(server.address, host, &origin), 403, "{host} {origin}");
            assert_eq!(list(server.address, host, &origin), 403, "{host} {origin}");
        }
    }
    // DNS rebinding: the foreign name resolves to this machine, so its page has the same origin.
    for origin in ["", "Origin: http://evil.example:4000\r\n"] {
        assert_eq!(upgrade(server.address, "evil.example:4000", origin), 403, "{origin}");
        assert_eq!(list(server.address, "evil.example:4000", origin), 403, "{origin}");
    }
}

#[test]
fn configured_origins_apply_with_and_without_dev() {
    let home = Home::with_settings("origins: ['http://good.example'],");
    for dev in [true, false] {
        let server = if dev { start(&home) } else { home.start() };
        assert_eq!(upgrade(server.address, "mesa.example", "Origin: http://good.example\r\n"), 101);
        assert_eq!(upgrade(server.address, "mesa.example", "Origin: http://evil.example\r\n"), 403);
        server.process.kill();
    }
}
