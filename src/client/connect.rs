//! From an address to a WebSocket: the only place that opens one.

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

/// How long the connection and the handshake may take together.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Read and write buffers: a program may hold thousands of clients, each of which says little.
const BUFFER_BYTES: usize = 4 * 1024;

/// Largest frame taken from the server: the largest message, and room for the greeting's or user object's extras.
const FRAME_BYTES_MAX: usize = 4 * PAYLOAD_BYTES_MAX;

/// Bytes that may wait to be sent. The server refuses single frames long before this.
const UNSENT_BYTES_MAX: usize = 1024 * 1024;

/// Where to dial.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Target {
    host: String,
    port: u16,
    /// What to ask for in the handshake.
    request: String,
}

impl Target {
    /// Reads `ws://HOST[:PORT][/PATH]`.
    pub(super) fn parse(url: &str) -> Result<Self, ClientError> {
        let refuse = |why: &str| Err(ClientError::Address(format!("\"{}\" {why}", without_userinfo(url))));
        let Ok(uri) = url.parse::<Uri>() else {
            return refuse("is no address; it should look like ws://127.0.0.1:4000/");
        };
        match uri.scheme_str().map(str::to_ascii_lowercase).as_deref() {
            Some("ws") => {}
            Some("wss") => {
                return refuse(
                    "asks for TLS, which this client does not speak yet: run a local TLS proxy (stunnel, socat) and \
                     connect to that by ws://",
                );
            }
            _ => return refuse("must begin with ws://, as in ws://127.0.0.1:4000/"),
        }
        let Some(authority) = uri.authority().filter(|authority| !authority.host().is_empty()) else {
            return refuse("names no host; it should look like ws://127.0.0.1:4000/");
        };
        if authority.as_str().contains('@') {
            return refuse("has a user name in it; who connects is said by the token, not by the address");
        }
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        // An IPv6 address stands in brackets where a port may follow, and without them everywhere else.
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

/// Connects and shakes hands.
pub(super) async fn dial(url: &str) -> Result<WebSocketStream<TcpStream>, ClientError> {
    let target = Target::parse(url)?;
    let dialled = tokio::time::timeout(TIMEOUT, shake_hands(&target)).await;
    dialled.unwrap_or_else(|_| {
        let reason = format!("no answer within {} s", TIMEOUT.as_secs());
        Err(ClientError::Unreachable { address: target.address(), reason })
    })
}

async fn shake_hands(target: &Target) -> Result<WebSocketStream<TcpStream>, ClientError> {
    let unreachable = |error| ClientError::Unreachable { address: target.address(), reason: network_error(&error) };
    let stream = TcpStream::connect((target.host.as_str(), target.port)).await.map_err(unreachable)?;
    // Receipts and typed lines are small and wanted at once.
    stream.set_nodelay(true).map_err(unreachable)?;
    // A network that went away without a word is found out in a minute, even while there is nothing to send.
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
                WsError::Http(response) => format!("it says {}", response.status()),
                other => other.to_string(),
            };
            Err(ClientError::Handshake { address: target.address(), reason })
        }
    }
}
