//! Tests peers that speak another protocol, shake hands slowly, or do not read.

use std::time::Duration;

use rustls::{AlertDescription, Error as TlsError};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use crate::{
    authority::{self, Authority, exchange, is_served},
    start,
    support::{in_process::TestServer, server::Home, wait::WAIT_TIMEOUT},
};

/// The first bytes of a handshake, whose message has 512 bytes.
const HELLO_BEGIN: &[u8] = &[22, 3, 1, 2, 0, 1, 0, 1, 252];

#[test]
fn wrong_protocol_is_answered_and_logged() {
    let authority = Authority::new();
    let (cert, key) = authority.issue_files("localhost");
    let tls = format!("{{ cert: '{}', key: '{}' }}", cert.display(), key.display());
    let plain = Home::with_settings("redisProtocol: { port: 0 },");
    let secured = Home::with_settings(&format!("tls: {tls}, redisProtocol: {{ port: 0, tls: true }},"));
    let (plain_server, secured_server) = (plain.start(), secured.start());
    crate::support::current_thread_runtime().block_on(async {
        for address in [plain_server.address, plain.redis_protocol_address()] {
            let stream = TcpStream::connect(address).await.unwrap();
            let connector = tokio_rustls::TlsConnector::from(authority.client(None, &[]));
            let connecting = connector.connect("localhost".try_into().unwrap(), stream);
            let error = timeout(WAIT_TIMEOUT, connecting).await.expect("an answer in time").unwrap_err();
            let error = error.get_ref().and_then(|inner| inner.downcast_ref::<TlsError>());
            assert_eq!(error, Some(&TlsError::AlertReceived(AlertDescription::ProtocolVersion)));
        }
        for request in [
            "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
            "POST /v1/dispatch HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\nabc",
        ] {
            let mut stream = TcpStream::connect(secured_server.address).await.unwrap();
            let response = String::from_utf8(exchange(&mut stream, request.as_bytes()).await.unwrap()).unwrap();
            assert!(response.starts_with("HTTP/1.1 400 "), "{response}");
            assert!(response.ends_with("This port speaks TLS: connect by https:// or wss://.\n"), "{response}");
        }
        let mut stream = TcpStream::connect(secured.redis_protocol_address()).await.unwrap();
        let reply = exchange(&mut stream, b"*1\r\n$4\r\nPING\r\n").await.unwrap();
        assert_eq!(String::from_utf8(reply).unwrap(), "-ERR this port needs TLS; connect by rediss://\r\n");
    });
    for (home, expected) in [
        (&plain, "a client speaks TLS, but this port has none; use ws:// and http://, or set tls.cert and tls.key"),
        (&plain, "a client speaks TLS, but the port of the Redis protocol has none; use redis://"),
        (&secured, "a client sent plain HTTP, but this port speaks TLS; use wss:// and https://"),
        (&secured, "a client of the Redis protocol sent no TLS, but this port needs it; use rediss://"),
    ] {
        home.wait_for_log(|log| log.contains(expected));
    }
}

/// A server on which one connection more than 17 finds no permit.
async fn start_small(authority: &Authority) -> TestServer {
    start(authority, |config| {
        config.limits.header_timeout = Duration::from_millis(500);
        config.limits.idle_timeout = Duration::from_secs(60 * 60);
        config.limits.connections = 1;
    })
    .await
}

async fn wait_until_closed(stream: &mut TcpStream) {
    let closed = async { while stream.read(&mut [0; 1024]).await.is_ok_and(|read| read > 0) {} };
    timeout(WAIT_TIMEOUT, closed).await.expect("the server closes in time");
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_handshake_is_cut_and_holds_no_permit_afterwards() {
    let authority = Authority::new();
    let server = start_small(&authority).await;
    let config = authority.client(None, &[]);
    // More connections than permits: each has to release its permit.
    for begin in [&b""[..], HELLO_BEGIN, &[22, 3, 1, 0, 5, 9, 9, 9, 9, 9]] {
        let mut streams = Vec::new();
        for _ in 0..12 {
            let mut stream = TcpStream::connect(server.address).await.unwrap();
            stream.write_all(begin).await.unwrap();
            streams.push(stream);
        }
        for mut stream in streams {
            wait_until_closed(&mut stream).await;
        }
    }
    // A deadline counts for the handshake and the head together. On a busy machine some attempts take longer than that.
    let connecting = async {
        loop {
            if let Ok(stream) = authority::connect(&config, server.address, "localhost").await {
                return stream;
            }
        }
    };
    let mut silent = timeout(WAIT_TIMEOUT, connecting).await.expect("a handshake in time");
    timeout(WAIT_TIMEOUT, async { while silent.read(&mut [0; 64]).await.is_ok_and(|read| read > 0) {} })
        .await
        .expect("a silent client is disconnected");
    for _ in 0..20 {
        let serving = async { while is_served(&config, server.address, "localhost").await.is_err() {} };
        timeout(WAIT_TIMEOUT, serving).await.expect("an answer in time");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connection_in_a_handshake_is_evicted_for_a_new_one() {
    let authority = Authority::new();
    let server = start(&authority, |config| {
        config.limits.header_timeout = Duration::from_secs(10 * 60);
        config.limits.connections = 1;
    })
    .await;
    let mut streams = Vec::new();
    for _ in 0..40 {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(HELLO_BEGIN).await.unwrap();
        streams.push(stream);
    }
    timeout(WAIT_TIMEOUT, is_served(&authority.client(None, &[]), server.address, "localhost"))
        .await
        .expect("an answer in time")
        .unwrap();
}

/// Without a deadline for TLS's own buffer, flush and close alert such a connection would stay forever.
#[tokio::test(flavor = "multi_thread")]
async fn peer_that_does_not_read_is_disconnected_at_write_timeout() {
    let authority = Authority::new();
    let server = start(&authority, |config| config.limits.write_timeout = Duration::from_secs(1)).await;
    let config = authority.client(None, &[]);
    let mut stream = authority::connect(&config, server.address, "localhost").await.unwrap();
    let request = b"GET /client.js HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(100);
    let stuck = timeout(WAIT_TIMEOUT, async {
        // The server closes with unread requests, so a write fails in the end.
        while stream.write_all(&request).await.is_ok() && stream.flush().await.is_ok() {}
    });
    stuck.await.expect("the server disconnects the peer");
}

#[tokio::test(flavor = "multi_thread")]
async fn handshake_in_progress_ends_when_the_server_stops() {
    let authority = Authority::new();
    let mut server = start(&authority, |config| {
        config.limits.header_timeout = Duration::from_secs(10 * 60);
        config.redis_protocol.port = Some(0);
        config.redis_protocol.tls = mesa::config::RedisProtocolTls::Shared;
    })
    .await;
    let mut streams = Vec::new();
    for address in [server.address, server.redis_protocol.unwrap()] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(HELLO_BEGIN).await.unwrap();
        // The connection after it is served, so the server has accepted both.
        authority::connect(&authority.client(None, &[]), address, "localhost").await.unwrap();
        streams.push(stream);
    }
    server.stop().await;
    for mut stream in streams {
        wait_until_closed(&mut stream).await;
    }
}
