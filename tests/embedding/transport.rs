//! Tests clients over TLS and through proxies.

use std::{
    io::{BufRead, BufReader},
    process::Stdio,
    time::Duration,
};

use mesa::client::{Client, ClientError, Connection, Event, Options, Transport, token};
use serde_json::{Value, json};
use tokio::net::TcpSocket;

use crate::{
    flaky_proxy::FlakyProxy,
    server::{TestServer, message, user_id, within},
    support::command::{mesa_command, output_text},
    tls_front::{ConnectProxy, TlsFront},
};

/// Name that only the proxy of a test resolves. Without a dot: a server that accepts any token serves no others.
const NAME: &str = "messages-of-test";

async fn next_message(client: &mut Client) -> Value {
    loop {
        if let Event::Message(message) = within("message", client.next()).await.expect("the stream has not ended") {
            return message.read().expect("JSON");
        }
    }
}

async fn error(url: &str, transport: &Transport) -> ClientError {
    within("error", Connection::connect_with(url, transport)).await.expect_err("no connection")
}

#[tokio::test(flavor = "multi_thread")]
async fn client_over_tls_receives_messages_and_reconnects() {
    let server = TestServer::start(|builder| builder).await;
    let front = TlsFront::start(server.address, "localhost").await;
    let proxy = FlakyProxy::start(front.address).await;
    let url = format!("wss://localhost:{}/", proxy.address.port());
    let authority = server.home.path().join("authority.pem");
    std::fs::write(&authority, &front.authority).unwrap();
    for (n, transport) in
        [Transport::default().ca_pem(front.authority.clone()), Transport::default().ca_file(&authority)]
            .into_iter()
            .enumerate()
    {
        let user = format!("user-{n}");
        let builder = Client::builder(&url).reconnect_interval(Duration::from_millis(20)).transport(transport);
        let mut client = builder.connect().await.unwrap();
        client.authenticate(token(&user), Options::default().after(0)).await.unwrap();
        for n in 1..=3 {
            server.handle.send(&message(n), &user_id(&user), &[]).await.unwrap();
            assert_eq!(next_message(&mut client).await, json!(n));
            proxy.cut();
        }
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_tls_connection_is_explained() {
    let server = TestServer::start(|builder| builder).await;
    let front = TlsFront::start(server.address, "localhost").await;
    let trusting = Transport::default().ca_pem(front.authority.clone());
    let (plain_port, port) = (server.address.port(), front.address.port());
    for (url, transport, expected) in [
        // A system without any certificate names the option too.
        (format!("wss://localhost:{port}/"), Transport::default(), "--ca FILE"),
        (format!("wss://127.0.0.1:{port}/"), trusting.clone(), "for another name than 127.0.0.1"),
        (format!("wss://localhost:{plain_port}/"), trusting, "onnect by ws://"),
        (format!("ws://localhost:{port}/"), Transport::default(), "connect by wss://"),
    ] {
        let error = error(&url, &transport).await;
        assert!(error.to_string().contains(expected), "{url}: {error}");
    }
    for (transport, expected) in [
        (Transport::default().ca_pem("no certificate"), "-----BEGIN CERTIFICATE-----"),
        (Transport::default().ca_file("/none.pem"), "/none.pem"),
    ] {
        let error = error(&format!("wss://localhost:{port}/"), &transport).await;
        assert!(matches!(error, ClientError::Certificates(_)) && error.to_string().contains(expected), "{error}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn client_connects_through_a_proxy_with_authentication() {
    let server = TestServer::start(|builder| builder).await;
    let front = TlsFront::start(server.address, NAME).await;
    for (scheme, target) in [("ws", server.address), ("wss", front.address)] {
        let proxy = ConnectProxy::start(target, "200 Connection established").await;
        let transport = Transport::default()
            .ca_pem(front.authority.clone())
            .proxy(format!("http://me:p%40ss@127.0.0.1:{}", proxy.address.port()));
        assert!(!format!("{transport:?}").contains("p%40ss"));
        let mut client =
            Client::builder(&format!("{scheme}://{NAME}:4000/")).transport(transport).connect().await.unwrap();
        client.authenticate(token("alice"), Options::default()).await.unwrap();
        server.handle.send(&message(1), &user_id("alice"), &[]).await.unwrap();
        assert_eq!(next_message(&mut client).await, json!(1));
        client.disconnect().await;
        let requests = proxy.requests.lock().unwrap();
        let expected = format!(
            "CONNECT {NAME}:4000 HTTP/1.1\r\nHost: {NAME}:4000\r\nProxy-Authorization: Basic bWU6cEBzcw==\r\n\r\n"
        );
        assert_eq!(*requests, [expected]);
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_proxy_is_explained() {
    let server = TestServer::start(|builder| builder).await;
    // Bound, so that no parallel test gets the port, and not listening.
    let unused_socket = TcpSocket::new_v4().unwrap();
    unused_socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let unused = unused_socket.local_addr().unwrap();
    let authentication = ConnectProxy::start(server.address, "407 Proxy Authentication Required").await.address;
    let forbidden = ConnectProxy::start(server.address, "403 Forbidden").await.address;
    let url = format!("ws://{NAME}:4000/");
    for (proxy, expected, is_transient) in [
        (format!("http://{authentication}"), "http://USER:PASSWORD@HOST:PORT", false),
        (format!("http://me:x@{authentication}"), "rejected the user name or the password", false),
        (format!("http://{forbidden}"), "403 Forbidden", true),
        (format!("http://{unused}"), "connection refused", true),
        ("socks5://me:secret@127.0.0.1".to_owned(), "http://HOST:PORT", false),
    ] {
        let error = error(&url, &Transport::default().proxy(&proxy)).await;
        assert!(error.to_string().contains(expected) && !error.to_string().contains("secret"), "{proxy}: {error}");
        assert_eq!(error.is_transient(), is_transient, "{proxy}: {error}");
    }
    server.stop().await;
}

/// The environment applies to `mesa connect`, and never to addresses of this machine.
#[tokio::test(flavor = "multi_thread")]
async fn connect_command_uses_the_proxy_of_the_environment_and_the_given_authority() {
    let server = TestServer::start(|builder| builder).await;
    let front = TlsFront::start(server.address, NAME).await;
    let proxy = ConnectProxy::start(front.address, "200 OK").await;
    let forbidden = ConnectProxy::start(front.address, "403 Forbidden").await;
    let authority = server.home.path().join("authority.pem");
    std::fs::write(&authority, &front.authority).unwrap();
    let command = |user: &str, url: String, proxy: &ConnectProxy| {
        let mut command = mesa_command();
        for name in ["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "NO_PROXY", "no_proxy"] {
            command.env_remove(name);
        }
        command.args(["connect", "--as", user, "--once", "--json", "--url", &url]).arg("--ca").arg(&authority);
        command.env("ALL_PROXY", format!("http://{}", proxy.address)).stdin(Stdio::null());
        command
    };
    let url = format!("wss://{NAME}:4000/");
    for (user, url, proxy) in [("alice", url.clone(), &proxy), ("bob", server.url(), &forbidden)] {
        server.handle.send(&message(7), &user_id(user), &[]).await.unwrap();
        let mut child = command(user, url, proxy).stdout(Stdio::piped()).spawn().unwrap();
        let output = child.stdout.take().unwrap();
        let line = tokio::task::spawn_blocking(move || BufReader::new(output).lines().next());
        let line = within("message", line).await.unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        let received: Value = serde_json::from_str(&line.expect("a line").unwrap()).unwrap();
        assert_eq!(received["d"], json!(7));
    }
    assert_eq!(proxy.requests.lock().unwrap().len(), 1);
    assert_eq!(forbidden.requests.lock().unwrap().len(), 0);
    let mut rejected = command("alice", url.clone(), &forbidden);
    let rejected = tokio::task::spawn_blocking(move || rejected.output().unwrap()).await.unwrap();
    assert!(!rejected.status.success() && output_text(&rejected).contains("403 Forbidden"), "{rejected:?}");
    // Without the proxy nothing resolves this name.
    let mut direct = command("alice", url, &forbidden);
    direct.env("NO_PROXY", NAME);
    let direct = tokio::task::spawn_blocking(move || direct.output().unwrap()).await.unwrap();
    assert!(!direct.status.success() && output_text(&direct).contains("cannot connect to"), "{direct:?}");
    server.stop().await;
}
