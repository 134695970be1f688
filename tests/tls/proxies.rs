//! Tests clients behind proxies: forwarded addresses and the PROXY protocol.

use std::{collections::HashSet, net::SocketAddr, time::Duration};

use mesa::config::{Config, RedisProtocolTls};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use crate::{
    authority::{self, Authority},
    start,
    support::{
        in_process::{KEY, TestServer},
        resp::encode_command,
        wait::WAIT_TIMEOUT,
    },
};

async fn start_behind(proxy: &str, change: impl FnOnce(&mut Config)) -> TestServer {
    TestServer::start(|config| {
        config.trusted_proxies = vec![proxy.into()];
        change(config);
    })
    .await
}

/// Reads the head of a response; empty if the connection ends.
async fn head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match timeout(WAIT_TIMEOUT, stream.read_u8()).await.expect("a response in time") {
            Ok(byte) => head.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8(head).unwrap()
}

/// Sends a request with further headers, and returns the connection and the status; 0 if the connection ends.
async fn request(address: SocketAddr, before: &[u8], path: &str, headers: &str) -> (TcpStream, u16) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let text = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n");
    // The server may have closed.
    _ = stream.write_all(&[before, text.as_bytes()].concat()).await;
    let head = head(&mut stream).await;
    let status = head.split(' ').nth(1).map_or(0, |status| status.parse().unwrap());
    (stream, status)
}

const UPGRADE: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                       Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

async fn websocket(server: &TestServer, before: &[u8], headers: &str) -> (TcpStream, u16) {
    request(server.address, before, "/", &format!("{UPGRADE}{headers}")).await
}

fn authorization(key: &str) -> String {
    format!("Authorization: Bearer {key}\r\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn limit_of_connections_counts_forwarded_addresses() {
    let server = start_behind("127.0.0.0/8", |config| config.limits.connections_per_address = 1).await;
    let from = |address: &str| format!("X-Forwarded-For: {address}\r\n");
    let (first, status) = websocket(&server, b"", &from("203.0.113.7")).await;
    assert_eq!(status, 101);
    // What the client itself has sent comes first, and counts for nothing.
    for (headers, expected) in [
        (from("203.0.113.7"), 503),
        (from("198.51.100.1, 203.0.113.7"), 503),
        (from("203.0.113.7, 127.0.0.9"), 503),
        ("Forwarded: for=\"203.0.113.7:5000\"\r\n".into(), 503),
        (from("203.0.113.8"), 101),
    ] {
        assert_eq!(websocket(&server, b"", &headers).await.1, expected, "{headers}");
    }
    // Requests count while they are answered. A stream of events is answered without end.
    let events = |headers: String| async move {
        request(server.address, b"", "/v1/events", &format!("{}{headers}", authorization(KEY))).await
    };
    assert_eq!(events(from("203.0.113.7")).await.1, 503);
    let (stream, status) = events(from("203.0.113.9")).await;
    assert_eq!((status, events(from("203.0.113.9")).await.1), (200, 503));
    // Unusable headers count for the proxy.
    let (garbage, status) = events(from("garbage")).await;
    assert_eq!((status, events(from("more garbage")).await.1, events(String::new()).await.1), (200, 503, 503));
    drop((first, stream, garbage));
    for address in ["203.0.113.7", "203.0.113.9", "127.0.0.1"] {
        let released = async { while events(from(address)).await.1 != 200 {} };
        timeout(WAIT_TIMEOUT, released).await.expect("the address is released in time");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_keys_count_for_the_forwarded_address_of_a_trusted_proxy_only() {
    // More than the 20 wrong keys of an address, and those that leak from its bucket meanwhile.
    const GUESSES: usize = 60;
    // A proxy that passes bytes on may not know the address. Then the client has sent the header itself.
    let unknown: &[u8] = b"PROXY UNKNOWN\r\n";
    for (trusted, before, is_locked_out) in
        [("127.0.0.1", &b""[..], false), ("10.0.0.0/8", b"", true), ("127.0.0.1", unknown, true)]
    {
        let server = start_behind(trusted, |config| config.proxy_protocol = !before.is_empty()).await;
        let guess = |n: usize, client: String| {
            let address = server.address;
            tokio::spawn(async move {
                let headers = format!("{}X-Forwarded-For: {client}\r\n", authorization(&format!("wrong-key-{n}")));
                request(address, before, "/v1/users", &headers).await.1
            })
        };
        let by_many: Vec<_> = (0..GUESSES).map(|n| guess(n, format!("203.0.113.{n}"))).collect();
        let mut statuses = HashSet::new();
        for guess in by_many {
            statuses.insert(guess.await.unwrap());
        }
        assert_eq!(statuses.contains(&429), is_locked_out, "{trusted}: {statuses:?}");
        let by_one: Vec<_> = (0..GUESSES).map(|n| guess(n, "198.51.100.1".into())).collect();
        for guess in by_one {
            statuses.insert(guess.await.unwrap());
        }
        assert_eq!(statuses, HashSet::from([401, 429]), "{trusted}");
    }
}

/// Returns headers of both versions.
fn proxy_headers(last: u8) -> [Vec<u8>; 2] {
    let second = [203, 0, 113, last, 127, 0, 0, 1, 0x12, 0x34, 0, 80];
    [
        format!("PROXY TCP4 203.0.113.{last} 127.0.0.1 4660 80\r\n").into_bytes(),
        [&b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c"[..], &second].concat(),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn proxy_protocol_tells_the_address_on_both_ports() {
    let server = start_behind("127.0.0.1", |config| {
        config.proxy_protocol = true;
        config.limits.connections_per_address = 1;
        config.redis_protocol.port = Some(0);
    })
    .await;
    let [v1, v2] = proxy_headers(7);
    let (first, status) = websocket(&server, &v1, "").await;
    assert_eq!(status, 101);
    // A client of the proxy is no proxy itself.
    assert_eq!(websocket(&server, &v2, "X-Forwarded-For: 198.51.100.1\r\n").await.1, 0);
    // Each address is another one: the server counts a closed connection until it has noticed the end.
    for (header, last) in [(0, 8), (1, 9)] {
        let header = &proxy_headers(last)[header];
        assert_eq!(request(server.address, header, "/healthz", "Connection: close\r\n").await.1, 200);
    }
    for (header, last) in [(0, 10), (1, 11)] {
        let mut stream = TcpStream::connect(server.redis_protocol.unwrap()).await.unwrap();
        stream.write_all(&[&proxy_headers(last)[header], &encode_command(&["PING"])[..]].concat()).await.unwrap();
        let mut reply = [0; 7];
        timeout(WAIT_TIMEOUT, stream.read_exact(&mut reply)).await.expect("a reply in time").unwrap();
        assert_eq!(&reply, b"+PONG\r\n");
    }
    // Without a header, both ports close.
    assert_eq!(request(server.address, b"", "/healthz", "").await.1, 0);
    let mut stream = TcpStream::connect(server.redis_protocol.unwrap()).await.unwrap();
    stream.write_all(&encode_command(&["PING"])).await.unwrap();
    assert_eq!(head(&mut stream).await, "");
    drop(first);
}

#[tokio::test(flavor = "multi_thread")]
async fn proxy_protocol_precedes_tls() {
    let authority = Authority::new();
    let server = start(&authority, |config| {
        (config.trusted_proxies, config.proxy_protocol) = (vec!["127.0.0.1".into()], true);
        config.redis_protocol.port = Some(0);
        config.redis_protocol.tls = RedisProtocolTls::Shared;
    })
    .await;
    let connector = tokio_rustls::TlsConnector::from(authority.client(None, &[]));
    for address in [server.address, server.redis_protocol.unwrap()] {
        for header in proxy_headers(7) {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(&header).await.unwrap();
            let mut stream = connector.connect("localhost".try_into().unwrap(), stream).await.unwrap();
            if address == server.address {
                let response = authority::exchange(&mut stream, authority::HEALTH).await.unwrap();
                assert!(response.starts_with(b"HTTP/1.1 200 "));
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn proxy_header_of_others_is_rejected() {
    let server = start_behind("10.0.0.0/8", |config| {
        config.proxy_protocol = true;
        config.redis_protocol.port = Some(0);
    })
    .await;
    for header in proxy_headers(7) {
        assert_eq!(request(server.address, &header, "/healthz", "").await.1, 400);
        let mut stream = TcpStream::connect(server.redis_protocol.unwrap()).await.unwrap();
        let reply = authority::exchange(&mut stream, &[header, encode_command(&["PING"])].concat()).await.unwrap();
        assert!(reply.starts_with(b"-ERR Protocol error"), "{}", String::from_utf8_lossy(&reply));
    }
    assert_eq!(request(server.address, b"", "/healthz", "").await.1, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_proxy_header_is_cut() {
    let server = start_behind("127.0.0.1", |config| {
        config.proxy_protocol = true;
        config.limits.header_timeout = Duration::from_millis(500);
        config.redis_protocol.port = Some(0);
    })
    .await;
    for address in [server.address, server.redis_protocol.unwrap()] {
        for begin in [&b""[..], b"PROXY TCP4 203.0", b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x10\0abc"] {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(begin).await.unwrap();
            assert_eq!(head(&mut stream).await, "");
        }
    }
}
