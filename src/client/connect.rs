//! Opens the client's WebSocket connections.

use std::time::Duration;

use http::Uri;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio_tungstenite::{
    WebSocketStream, client_async_with_config,
    tungstenite::{Error as WsError, protocol::WebSocketConfig},
};

use super::{ClientError, address::without_userinfo};
use crate::{logging::network_error, message::PAYLOAD_BYTES_MAX};

/// Time limit for TCP connection and handshake together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Size of the read and write buffers in bytes. Small, because a program may hold thousands of quiet clients.
const BUFFER_BYTES: usize = 4 * 1024;

/// Size limit of a frame from the server: the largest message, with space for a greeting or user object.
const FRAME_BYTES_MAX: usize = 4 * PAYLOAD_BYTES_MAX;

/// Bytes that may be queued to be sent. The server rejects single frames far below this.
const UNSENT_BYTES_MAX: usize = 1024 * 1024;

/// Holds a parsed address.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Target {
    host: String,
    port: u16,
    /// URL of the handshake.
    request: String,
}

impl Target {
    /// Parses `ws://HOST[:PORT][/PATH]`.
    pub(super) fn parse(url: &str) -> Result<Self, ClientError> {
        let reject = |why: &str| Err(ClientError::Address(format!("\"{}\" {why}", without_userinfo(url))));
        let Ok(uri) = url.parse::<Uri>() else {
            return reject("is not an address; it must look like ws://127.0.0.1:4000/");
        };
        match uri.scheme_str().map(str::to_ascii_lowercase).as_deref() {
            Some("ws") => {}
            Some("wss") => {
                return reject(
                    "requires TLS, which this client does not support yet: run a local TLS proxy (stunnel, socat) and \
                     connect to that by ws://",
                );
            }
            _ => return reject("must start with ws://, as in ws://127.0.0.1:4000/"),
        }
        let Some(authority) = uri.authority().filter(|authority| !authority.host().is_empty()) else {
            return reject("has no host; it must look like ws://127.0.0.1:4000/");
        };
        if authority.as_str().contains('@') {
            return reject("has a user name; remove it, and authenticate by a token");
        }
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        // `TcpStream::connect` needs an IPv6 address without brackets.
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let request = format!("ws://{authority}{path}");
        Ok(Self { host, port: authority.port_u16().unwrap_or(80), request })
    }

    fn address(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

/// Opens a connection and does the WebSocket handshake.
pub(super) async fn open(url: &str) -> Result<WebSocketStream<TcpStream>, ClientError> {
    let target = Target::parse(url)?;
    let opened = tokio::time::timeout(CONNECT_TIMEOUT, handshake(&target)).await;
    opened.unwrap_or_else(|_| {
        let reason = format!("no answer within {} s", CONNECT_TIMEOUT.as_secs());
        Err(ClientError::Unreachable { address: target.address(), reason })
    })
}

async fn handshake(target: &Target) -> Result<WebSocketStream<TcpStream>, ClientError> {
    let unreachable = |error| ClientError::Unreachable { address: target.address(), reason: network_error(&error) };
    let stream = TcpStream::connect((target.host.as_str(), target.port)).await.map_err(unreachable)?;
    // Acknowledgements are small, and must not be delayed.
    stream.set_nodelay(true).map_err(unreachable)?;
    // Detects a silent network failure within a minute, even while nothing is sent.
    let keepalive =
        TcpKeepalive::new().with_time(Duration::from_secs(30)).with_interval(Duration::from_secs(10)).with_retries(3);
    SockRef::from(&stream).set_tcp_keepalive(&keepalive).map_err(unreachable)?;
    let limits = WebSocketConfig::default()
        .read_buffer_size(BUFFER_BYTES)
        .write_buffer_size(BUFFER_BYTES)
        .max_write_buffer_size(UNSENT_BYTES_MAX)
        .max_message_size(Some(FRAME_BYTES_MAX))
        .max_frame_size(Some(FRAME_BYTES_MAX));
    match client_async_with_config(target.request.as_str(), stream, Some(limits)).await {
        Ok((socket, _)) => Ok(socket),
        Err(WsError::Io(error)) => Err(unreachable(error)),
        Err(error) => {
            let reason = match error {
                WsError::Http(response) => format!("it answered {}", response.status()),
                other => other.to_string(),
            };
            Err(ClientError::Handshake { address: target.address(), reason })
        }
    }
}
