//! What can go wrong on the client's side, in sentences that say what to do.

use std::time::Duration;

use tokio_tungstenite::tungstenite::Error as WsError;

use super::close_code;
use crate::logging::network_error;

/// Why a client cannot go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The address is none, or not one that is spoken here.
    #[error("{0}")]
    Address(String),
    /// Nobody answers there.
    #[error("cannot connect to {address}: {reason}. Is the server running there?")]
    Unreachable {
        /// Where: host and port.
        address: String,
        /// In the system's words.
        reason: String,
    },
    /// Somebody answers, and will not have a WebSocket.
    #[error(
        "{address} answers, but not as a WebSocket server: {reason}. Check the path in the address, and the server's \
         `path` and `origins`"
    )]
    Handshake {
        /// Where: host and port.
        address: String,
        /// What it said.
        reason: String,
    },
    /// The server closed the connection where an answer was due.
    #[error("{}{}", closed(*.code), in_its_words(.reason))]
    Refused {
        /// See [`close_code`].
        code: u16,
        /// In the server's words; often empty.
        reason: String,
    },
    /// The server says nothing.
    #[error(
        "the server sent no {waiting_for} for {} s; check that the address is that of a mesa server, and its log",
        waited.as_secs()
    )]
    Silent {
        /// How long.
        waited: Duration,
        /// What was due.
        waiting_for: &'static str,
    },
    /// The server does not keep to the protocol.
    #[error("the server does not speak the protocol: {0}. Is it a mesa server, and of a version this client knows?")]
    Protocol(String),
    /// What was to be sent cannot be.
    #[error("this cannot be sent: {0}")]
    Data(String),
    /// As much waits to be sent as may.
    #[error("as much waits to be sent as may: the client is away, or the server slow; send it again later")]
    Full,
    /// The client has gone for good.
    #[error("the client has gone for good; its last event says why")]
    Gone,
}

impl ClientError {
    /// Whether another try may find the server well again.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Handshake { .. } | Self::Silent { .. } | Self::Full => true,
            Self::Refused { code, .. } => close_code::comes_back(*code),
            Self::Address(_) | Self::Protocol(_) | Self::Data(_) | Self::Gone => false,
        }
    }
}

fn closed(code: u16) -> String {
    match code {
        // Nobody said these.
        close_code::LOST | close_code::NO_CODE => close_code::meaning(code).into(),
        _ => format!("the connection was closed ({code}): {}", close_code::meaning(code)),
    }
}

fn in_its_words(reason: &str) -> String {
    if reason.is_empty() { String::new() } else { format!(" (\"{}\")", reason.escape_debug()) }
}

/// How a connection was lost, for people.
pub(super) fn lost(error: &WsError) -> String {
    match error {
        WsError::Io(error) => network_error(error),
        WsError::Protocol(tokio_tungstenite::tungstenite::error::ProtocolError::ResetWithoutClosingHandshake) => {
            "the other side ended it without a word".into()
        }
        other => other.to_string(),
    }
}
