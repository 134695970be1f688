//! Defines the errors of a client. Each text names a remedy.

use std::time::Duration;

use tokio_tungstenite::tungstenite::Error as WsError;

use super::close_code;
use crate::logging::network_error;

/// Describes why a client cannot continue.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The address is invalid or unsupported.
    #[error("{0}")]
    Address(String),
    /// No connection to the server is possible.
    #[error("cannot connect to {address}: {reason}. Is the server running there?")]
    Unreachable {
        /// Host and port.
        address: String,
        /// Cause as reported by the system.
        reason: String,
    },
    /// The trusted certificates cannot be loaded.
    #[error("the trusted certificates cannot be loaded: {0}")]
    Certificates(String),
    /// The TLS handshake failed.
    #[error("no TLS connection to {address}: {reason}")]
    Tls {
        /// Host and port.
        address: String,
        /// Cause and remedy.
        reason: String,
    },
    /// The proxy opened no tunnel to the server.
    #[error("the proxy {proxy} opens no connection to {address}: {reason}")]
    Proxy {
        /// Host and port of the proxy.
        proxy: String,
        /// Host and port of the server.
        address: String,
        /// Status of the proxy's response, if there was one.
        status: Option<u16>,
        /// Cause and remedy.
        reason: String,
    },
    /// The server rejected the WebSocket handshake.
    #[error(
        "{address} answers, but not as a WebSocket server: {reason}. Check the path in the address, and the server's \
         `path` and `origins`"
    )]
    Handshake {
        /// Host and port.
        address: String,
        /// Response of the server.
        reason: String,
    },
    /// The server closed the connection in place of an answer, for example to reject an authentication.
    #[error("{}{}", closed(*.code), quoted(.reason))]
    Closed {
        /// Close code, see [`close_code`].
        code: u16,
        /// Reason that the server sent; often empty.
        reason: String,
    },
    /// The server did not answer in time.
    #[error(
        "the server sent no {waiting_for} for {} s; check that the address is that of a mesa server, and its log",
        waited.as_secs()
    )]
    TimedOut {
        /// Time limit.
        waited: Duration,
        /// Frame that was expected.
        waiting_for: &'static str,
    },
    /// The server violated the protocol.
    #[error(
        "the server violated the protocol: {0}. Check that it is a mesa server of a version that this client supports"
    )]
    Protocol(String),
    /// The position in the user's log cannot be loaded or stored.
    #[error("the position in the user's log cannot be {0}")]
    Position(String),
    /// A message cannot be serialized or sent.
    #[error("the message cannot be sent: {0}")]
    Data(String),
    /// The queue of messages to send is full.
    #[error("the queue of messages to send is full: the client is offline, or the server slow; retry later")]
    Full,
    /// The client has ended.
    #[error("the client has disconnected for good; its last event has the reason")]
    Ended,
}

impl ClientError {
    /// Returns whether a retry may succeed.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Handshake { .. } | Self::TimedOut { .. } | Self::Full => true,
            // A certificate may be renewed, and a network with another certificate be left.
            Self::Tls { .. } => true,
            Self::Proxy { status, .. } => *status != Some(407),
            Self::Closed { code, .. } => close_code::should_reconnect(*code),
            Self::Certificates(_)
            | Self::Position(_)
            | Self::Address(_)
            | Self::Protocol(_)
            | Self::Data(_)
            | Self::Ended => false,
        }
    }
}

fn closed(code: u16) -> String {
    match code {
        // These codes are never sent.
        close_code::LOST | close_code::NO_CODE => close_code::meaning(code).into(),
        _ => format!("the connection was closed ({code}): {}", close_code::meaning(code)),
    }
}

fn quoted(reason: &str) -> String {
    if reason.is_empty() { String::new() } else { format!(" (\"{}\")", reason.escape_debug()) }
}

/// Describes how a connection was lost.
pub(super) fn describe_loss(error: &WsError) -> String {
    match error {
        WsError::Io(error) => network_error(error),
        WsError::Protocol(tokio_tungstenite::tungstenite::error::ProtocolError::ResetWithoutClosingHandshake) => {
            "the server closed it without a close frame".into()
        }
        other => other.to_string(),
    }
}
