//! Tests TLS of both ports, and clients behind proxies, over real sockets.
//!
//! - `admin`: the cookie of the admin page
//! - `authority`: issues certificates · `certificates`: selection, renewal, client certificates
//! - `hostile`: other protocols, slow handshakes, peers that do not read
//! - `proxies`: forwarded addresses · `proxy_programs`: the configurations in `data/deploy`
//! - `redis_protocol`: `rediss://` · `self_signed`: `--tls-self-signed`
#![allow(missing_docs)]

mod admin;
mod authority;
mod certificates;
mod hostile;
mod proxies;
mod proxy_programs;
mod redis_protocol;
mod self_signed;
#[path = "../support/mod.rs"]
#[allow(dead_code, reason = "each suite uses a part of it")]
mod support;

use authority::Authority;
use mesa::{
    client::{Connection, ConnectionEvent, Options, Transport, token},
    config::{Certificate, Config, Tls},
    dispatcher::Dispatcher,
    message::{Message, Recipients, UserId},
};
use rustls::HandshakeKind;
use support::{
    in_process::{KEY, TestServer},
    wait::WAIT_TIMEOUT,
};
use tokio::time::timeout;

/// Starts a server with a certificate for localhost.
async fn start(authority: &Authority, change: impl FnOnce(&mut Config)) -> TestServer {
    let issued = authority.issue("localhost");
    TestServer::start(|config| {
        config.tls = Some(Tls::new(Certificate::pem(issued.cert, issued.key)));
        change(config);
    })
    .await
}

fn url(scheme: &str, server: &TestServer) -> String {
    format!("{scheme}://localhost:{}", server.address.port())
}

/// Connects a client over TLS and authenticates it.
async fn client(authority: &Authority, server: &TestServer, user: &str, after: u64) -> Connection {
    let transport = Transport::default().ca_pem(authority.pem()).no_proxy();
    let mut client = Connection::connect_with(&url("wss", server), &transport).await.unwrap();
    client.authenticate_with(token(user), &Options::default().after(after)).await.unwrap();
    client
}

fn dispatcher(authority: &Authority, server: &TestServer) -> Dispatcher {
    Dispatcher::with_ca(&url("https", server), KEY, authority.pem().as_bytes()).unwrap()
}

async fn dispatch(dispatcher: &Dispatcher, user: &str, text: &str) {
    let recipients = Recipients::Users(vec![UserId::new(user).unwrap()]);
    let message = Message::new("TEXT", &text).unwrap();
    let result = timeout(WAIT_TIMEOUT, dispatcher.dispatch(&message, &recipients, &[])).await;
    assert!(result.expect("a result in time").unwrap().rejected.is_empty());
}

/// Returns the data of the next message.
async fn next(client: &mut Connection) -> String {
    loop {
        match timeout(WAIT_TIMEOUT, client.next()).await.expect("a message in time").unwrap() {
            ConnectionEvent::Message { data, .. } => return serde_json::from_str(data.get()).unwrap(),
            ConnectionEvent::Resumed { .. } => {}
            ConnectionEvent::Closed { code, reason } => panic!("closed: {code} {reason}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn client_over_tls_gets_messages_and_resumes() {
    let authority = Authority::new();
    let server = start(&authority, |_| {}).await;
    let backend = dispatcher(&authority, &server);
    let mut alice = client(&authority, &server, "alice", 0).await;
    dispatch(&backend, "alice", "one").await;
    assert_eq!(next(&mut alice).await, "one");
    alice.close().await;
    dispatch(&backend, "alice", "two").await;
    let mut alice = client(&authority, &server, "alice", 1).await;
    assert_eq!(next(&mut alice).await, "two");
}

#[tokio::test(flavor = "multi_thread")]
async fn second_handshake_resumes_the_tls_session() {
    let authority = Authority::new();
    let server = start(&authority, |_| {}).await;
    let config = authority.client(None, &["h2", "http/1.1"]);
    for expected in [HandshakeKind::Full, HandshakeKind::Resumed] {
        let mut stream = authority::connect(&config, server.address, "localhost").await.unwrap();
        // Tickets arrive with the response.
        authority::exchange(&mut stream, authority::HEALTH).await.unwrap();
        assert_eq!(stream.get_ref().1.handshake_kind(), Some(expected));
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
    }
}

/// A peer that reads late gets everything, although each buffer on the way was full.
#[tokio::test(flavor = "multi_thread")]
async fn slow_reader_gets_every_message_over_tls() {
    const MESSAGES: usize = 200;
    let authority = Authority::new();
    let server = start(&authority, |_| {}).await;
    let backend = dispatcher(&authority, &server);
    let mut alice = client(&authority, &server, "alice", 0).await;
    let text = "x".repeat(50_000);
    for n in 0..MESSAGES {
        dispatch(&backend, "alice", &format!("{n} {text}")).await;
    }
    for n in 0..MESSAGES {
        let received = next(&mut alice).await;
        assert!(received.starts_with(&format!("{n} ")) && received.len() > text.len(), "message {n}");
        alice.acknowledge(n as u64 + 1).await.unwrap();
    }
}
