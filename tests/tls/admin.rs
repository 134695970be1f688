//! Tests that the cookie of the admin page is `Secure` where the request was encrypted.

use mesa::config::Config;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{
    authority::{Authority, exchange},
    start,
    support::in_process::TestServer,
};

const PASSWORD: &str = "correct horse battery";

fn with_page(config: &mut Config) {
    config.admin.password = Some(PASSWORD.into());
}

/// Logs in with further headers, and returns the cookie.
async fn log_in(stream: &mut (impl AsyncReadExt + AsyncWriteExt + Unpin), headers: &str) -> String {
    let body = format!("{{\"password\":\"{PASSWORD}\"}}");
    let request = format!(
        "POST /admin/session HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n{headers}\r\n{body}",
        body.len()
    );
    let response = String::from_utf8(exchange(stream, request.as_bytes()).await.unwrap()).unwrap();
    let cookie = response.lines().find_map(|line| line.strip_prefix("set-cookie: "));
    cookie.unwrap_or_else(|| panic!("no cookie: {response}")).to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn cookie_is_secure_over_tls_and_behind_a_trusted_proxy_with_https() {
    let authority = Authority::new();
    let server = start(&authority, with_page).await;
    let stream = TcpStream::connect(server.address).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(authority.client(None, &[]));
    let mut stream = connector.connect("localhost".try_into().unwrap(), stream).await.unwrap();
    let cookie = log_in(&mut stream, "").await;
    assert!(cookie.ends_with("; HttpOnly; SameSite=Strict; Secure"), "{cookie}");

    for (is_trusted, protocol, expected) in [(true, "https", true), (true, "http", false), (false, "https", false)] {
        let server = TestServer::start(|config| {
            with_page(config);
            if is_trusted {
                config.trusted_proxies = vec!["127.0.0.0/8".into()];
            }
        })
        .await;
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        let headers = format!("X-Forwarded-For: 203.0.113.7\r\nX-Forwarded-Proto: {protocol}\r\n");
        let cookie = log_in(&mut stream, &headers).await;
        assert_eq!(cookie.ends_with("; Secure"), expected, "trusted: {is_trusted}, {protocol}: {cookie}");
    }
}
