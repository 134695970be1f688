//! Connects through HTTP proxies (CONNECT).

use std::net::IpAddr;

use http::{HeaderValue, StatusCode, Uri};
use hyper_util::client::proxy::matcher::Matcher;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{
    ClientError,
    address::{host_and_port, without_userinfo},
    tls::Stream,
    transport::ProxyChoice,
};
use crate::logging::network_error;

/// Size limit of the head of a proxy's response.
const HEAD_BYTES_MAX: usize = 8 * 1024;

/// A proxy, and the authentication that it requires.
#[derive(Debug)]
pub(super) struct Proxy {
    pub host: String,
    pub port: u16,
    /// Whether the connection to the proxy itself uses TLS.
    pub is_secure: bool,
    authorization: Option<HeaderValue>,
}

impl Proxy {
    /// Returns the proxy for a server; `None`: connect directly.
    pub(super) fn choose(choice: &ProxyChoice, is_secure: bool, host: &str) -> Result<Option<Self>, ClientError> {
        let rejected = |url: &str| {
            ClientError::Address(format!(
                "the proxy \"{}\" is not supported; it must look like http://HOST:PORT or https://HOST:PORT",
                without_userinfo(url)
            ))
        };
        let matcher = match choice {
            ProxyChoice::None => return Ok(None),
            ProxyChoice::Environment if is_this_machine(host) => return Ok(None),
            ProxyChoice::Environment => Matcher::from_env(),
            ProxyChoice::Url(url) => Matcher::builder().all(url.as_str()).build(),
        };
        let bracketed = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
        let scheme = if is_secure { "https" } else { "http" };
        let intercept = format!("{scheme}://{bracketed}/").parse::<Uri>().ok().and_then(|uri| matcher.intercept(&uri));
        let Some(intercept) = intercept else {
            return match choice {
                ProxyChoice::Url(url) => Err(rejected(url)),
                _ => Ok(None),
            };
        };
        let uri = intercept.uri();
        let (is_secure, default_port) = match uri.scheme_str() {
            Some("http") => (false, 80),
            Some("https") => (true, 443),
            _ => return Err(rejected(&uri.to_string())),
        };
        let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = uri.port_u16().unwrap_or(default_port);
        Ok(Some(Self { host, port, is_secure, authorization: intercept.basic_auth().cloned() }))
    }

    pub(super) fn address(&self) -> String {
        host_and_port(&self.host, self.port)
    }

    /// Requests a tunnel to `address` (host and port) over a connection to the proxy.
    pub(super) async fn tunnel(&self, stream: &mut Stream, address: &str) -> Result<(), ClientError> {
        let mut request = format!("CONNECT {address} HTTP/1.1\r\nHost: {address}\r\n").into_bytes();
        if let Some(value) = &self.authorization {
            request.extend_from_slice(b"Proxy-Authorization: ");
            request.extend_from_slice(value.as_bytes());
            request.extend_from_slice(b"\r\n");
        }
        request.extend_from_slice(b"\r\n");
        let broken = |error| {
            let why = network_error(&error);
            self.failed(address, None, format!("{why} before its response. Check its log"))
        };
        stream.write_all(&request).await.map_err(broken)?;
        stream.flush().await.map_err(broken)?;
        let mut head = Vec::new();
        // The server speaks only after the client, so every byte up to the end of the head is the proxy's.
        while !head.ends_with(b"\r\n\r\n") {
            if head.len() == HEAD_BYTES_MAX {
                let why = format!("the head of its response has more than {HEAD_BYTES_MAX} bytes. Check its address");
                return Err(self.failed(address, None, why));
            }
            head.push(stream.read_u8().await.map_err(broken)?);
        }
        match status(&head) {
            Some(status) if status.is_success() => Ok(()),
            Some(StatusCode::PROXY_AUTHENTICATION_REQUIRED) => {
                let why = if self.authorization.is_some() {
                    "it rejected the user name or the password of its URL. Correct them"
                } else {
                    "it requires authentication. Give it in its URL: http://USER:PASSWORD@HOST:PORT"
                };
                Err(self.failed(address, Some(StatusCode::PROXY_AUTHENTICATION_REQUIRED), why.into()))
            }
            Some(status) => {
                let why = format!("it answered {status}. Allow this address there, or add its host to NO_PROXY");
                Err(self.failed(address, Some(status), why))
            }
            None => Err(self.failed(address, None, "it does not speak HTTP. Check its address".into())),
        }
    }

    /// Creates the error of a connection to the proxy that cannot be opened.
    pub(super) fn unreachable(&self, address: &str, reason: &str) -> ClientError {
        self.failed(address, None, format!("it cannot be reached ({reason}). Check its URL, and that it runs"))
    }

    fn failed(&self, address: &str, status: Option<StatusCode>, reason: String) -> ClientError {
        let status = status.map(|status| status.as_u16());
        ClientError::Proxy { proxy: self.address(), address: address.to_owned(), status, reason }
    }
}

/// Reports whether a host is this machine, which no proxy can reach.
fn is_this_machine(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Parses the status line of a response.
fn status(head: &[u8]) -> Option<StatusCode> {
    let rest = head.strip_prefix(b"HTTP/1.")?;
    let code = rest.get(1..).and_then(|rest| rest.strip_prefix(b" "))?.get(..3)?;
    StatusCode::from_bytes(code).ok()
}
