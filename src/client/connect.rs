//! Opens the client's WebSocket connections.

use std::{io, sync::Arc, time::Duration};

use http::{StatusCode, Uri};
use socket2::{SockRef, TcpKeepalive};
use tokio::{net::TcpStream, task::spawn_blocking};
use tokio_rustls::TlsConnector;
use tokio_tungstenite::{
    WebSocketStream, client_async_with_config,
    tungstenite::{Error as WsError, protocol::WebSocketConfig},
};

use super::{
    ClientError,
    address::{host_and_port, without_userinfo},
    proxy::Proxy,
    tls::{self, Stream},
    transport::Transport,
};
use crate::{logging::network_error, message::PAYLOAD_BYTES_MAX};

/// Time limit for TCP connection, proxy, TLS and WebSocket handshake together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Size of the read and write buffers in bytes. Small, because a program may hold thousands of quiet clients.
const BUFFER_BYTES: usize = 4 * 1024;

/// Size limit of a frame from the server: the largest message, with space for a greeting or user object.
const FRAME_BYTES_MAX: usize = 4 * PAYLOAD_BYTES_MAX;

/// Bytes that may be queued to be sent. The server rejects single frames far below this.
const UNSENT_BYTES_MAX: usize = 1024 * 1024;

/// Advice if a server answers `ws://` unexpectedly.
const TRY_TLS: &str = "if it expects TLS, connect by wss://";

/// Holds a parsed address.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Target {
    host: String,
    port: u16,
    /// Whether the address begins with `wss://`.
    is_secure: bool,
    /// URL of the handshake.
    request: String,
}

impl Target {
    /// Parses `ws://HOST[:PORT][/PATH]` or `wss://`.
    pub(super) fn parse(url: &str) -> Result<Self, ClientError> {
        let reject = |why: &str| Err(ClientError::Address(format!("\"{}\" {why}", without_userinfo(url))));
        let Ok(uri) = url.parse::<Uri>() else {
            return reject("is not an address; it must look like ws://127.0.0.1:4000/");
        };
        let is_secure = match uri.scheme_str().map(str::to_ascii_lowercase).as_deref() {
            Some("ws") => false,
            Some("wss") => true,
            _ => return reject("must start with ws:// or wss://, as in ws://127.0.0.1:4000/"),
        };
        let Some(authority) = uri.authority().filter(|authority| !authority.host().is_empty()) else {
            return reject("has no host; it must look like ws://127.0.0.1:4000/");
        };
        if authority.as_str().contains('@') {
            return reject("has a user name; remove it, and authenticate by a token");
        }
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        // `TcpStream::connect` needs an IPv6 address without brackets.
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let (scheme, default_port) = if is_secure { ("wss", 443) } else { ("ws", 80) };
        let request = format!("{scheme}://{authority}{path}");
        Ok(Self { host, port: authority.port_u16().unwrap_or(default_port), is_secure, request })
    }

    fn address(&self) -> String {
        host_and_port(&self.host, self.port)
    }
}

/// Opens connections to one server, with certificates and proxy that were read once.
pub(super) struct Connector {
    target: Target,
    proxy: Option<Proxy>,
    /// Set if the server or the proxy uses TLS.
    tls: Option<TlsConnector>,
}

impl Connector {
    pub(super) async fn new(url: &str, transport: &Transport) -> Result<Arc<Self>, ClientError> {
        let target = Target::parse(url)?;
        let proxy = Proxy::choose(&transport.proxy, target.is_secure, &target.host)?;
        let mut tls = None;
        if target.is_secure || proxy.as_ref().is_some_and(|proxy| proxy.is_secure) {
            let authorities = transport.authorities.clone();
            // Cancelled only when the runtime stops; loading does not panic.
            let loaded = spawn_blocking(move || tls::connector(&authorities)).await;
            tls = Some(loaded.map_err(|error| ClientError::Certificates(format!("{error}; retry")))??);
        }
        Ok(Arc::new(Self { target, proxy, tls }))
    }

    pub(super) fn address(&self) -> String {
        self.target.address()
    }

    /// Opens a connection and does the WebSocket handshake.
    pub(super) async fn open(&self) -> Result<WebSocketStream<Stream>, ClientError> {
        let opened = tokio::time::timeout(CONNECT_TIMEOUT, self.handshake()).await;
        opened.unwrap_or_else(|_| {
            let reason = format!("no answer within {} s", CONNECT_TIMEOUT.as_secs());
            Err(match &self.proxy {
                Some(proxy) => proxy.unreachable(&self.address(), &reason),
                None => ClientError::Unreachable { address: self.address(), reason },
            })
        })
    }

    async fn handshake(&self) -> Result<WebSocketStream<Stream>, ClientError> {
        let address = self.address();
        let mut stream: Stream = match &self.proxy {
            None => Box::new(dial(&self.target.host, self.target.port).await.map_err(|error| {
                ClientError::Unreachable { address: address.clone(), reason: network_error(&error) }
            })?),
            Some(proxy) => {
                let connected = dial(&proxy.host, proxy.port).await;
                let connected = connected.map_err(|error| proxy.unreachable(&address, &network_error(&error)))?;
                let mut stream: Stream = Box::new(connected);
                if let (true, Some(tls)) = (proxy.is_secure, &self.tls) {
                    stream = tls::secure(tls, stream, &proxy.host, &proxy.address()).await?;
                }
                proxy.tunnel(&mut stream, &address).await?;
                stream
            }
        };
        if let (true, Some(tls)) = (self.target.is_secure, &self.tls) {
            stream = tls::secure(tls, stream, &self.target.host, &address).await?;
        }
        let limits = WebSocketConfig::default()
            .read_buffer_size(BUFFER_BYTES)
            .write_buffer_size(BUFFER_BYTES)
            .max_write_buffer_size(UNSENT_BYTES_MAX)
            .max_message_size(Some(FRAME_BYTES_MAX))
            .max_frame_size(Some(FRAME_BYTES_MAX));
        match client_async_with_config(self.target.request.as_str(), stream, Some(limits)).await {
            Ok((socket, _)) => Ok(socket),
            Err(error) => Err(self.handshake_error(error)),
        }
    }

    fn handshake_error(&self, error: WsError) -> ClientError {
        // A TLS server answers plain HTTP with an alert, with 400, or by closing.
        let may_expect_tls = !self.target.is_secure
            && match &error {
                WsError::Io(_) | WsError::Protocol(_) => true,
                WsError::Http(response) => response.status() == StatusCode::BAD_REQUEST,
                _ => false,
            };
        let advised = |reason: String| if may_expect_tls { format!("{reason}; {TRY_TLS}") } else { reason };
        let address = self.address();
        match error {
            WsError::Io(error) => ClientError::Unreachable { address, reason: advised(network_error(&error)) },
            WsError::Http(response) => {
                ClientError::Handshake { address, reason: advised(format!("it answered {}", response.status())) }
            }
            other => ClientError::Handshake { address, reason: advised(other.to_string()) },
        }
    }
}

/// Opens a TCP connection.
async fn dial(host: &str, port: u16) -> io::Result<TcpStream> {
    let stream = TcpStream::connect((host, port)).await?;
    // Acknowledgements are small, and must not be delayed.
    stream.set_nodelay(true)?;
    // Detects a silent network failure within a minute, even while nothing is sent.
    let keepalive =
        TcpKeepalive::new().with_time(Duration::from_secs(30)).with_interval(Duration::from_secs(10)).with_retries(3);
    SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
    Ok(stream)
}
