//! What can go wrong between a backend and the server, in sentences that say what to do.

use std::time::Duration;

/// Why a call was not answered, or not with a yes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DispatchError {
    /// Not an address of an API.
    #[error("\"{0}\" is no address of a server; it should look like http://127.0.0.1:4000, without a user name")]
    Address(String),
    /// A key that cannot stand in a header.
    #[error("the API key must be visible ASCII without spaces, and not empty")]
    Key,
    /// This machine cannot make HTTP calls.
    #[error("HTTP cannot be set up here: {0}")]
    Setup(String),
    /// The message has no JSON form.
    #[error("the message cannot be sent: {0}")]
    Message(String),
    /// A user id that a path cannot hold.
    #[error("the user \"{0}\" cannot be named in an address; dispatching to this user works, asking does not")]
    Unaddressable(String),
    /// Nobody answers there.
    #[error("cannot connect to {url}: {reason}. Is the server running at {url}?")]
    Unreachable {
        /// Where.
        url: String,
        /// In the system's words.
        reason: String,
    },
    /// It took too long. What was sent may have been taken.
    #[error("{url} did not answer within {} s; what was sent may have been taken all the same", waited.as_secs())]
    Silent {
        /// Where.
        url: String,
        /// How long.
        waited: Duration,
    },
    /// The connection broke meanwhile. What was sent may have been taken.
    #[error("the connection to {url} broke: {reason}; what was sent may have been taken all the same")]
    Broken {
        /// Where.
        url: String,
        /// In the system's words.
        reason: String,
    },
    /// The server says no, and why.
    #[error("the server refuses ({code}): {message}{hint}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// For programs.
        code: String,
        /// For people.
        message: String,
        /// What to do about it, where the status alone says so.
        hint: &'static str,
    },
    /// What was received could not be written.
    #[error("what was received cannot be written: {0}")]
    NotWritten(String),
    /// Somebody answers, but not as a server of ours does.
    #[error("{url} does not answer as a mesa server: {what}. Check the address")]
    Strange {
        /// Where.
        url: String,
        /// How so.
        what: String,
    },
}

impl DispatchError {
    /// Whether the same may succeed a little later: nobody was reached, no answer came, or the server was stopping (503), full
    /// (507) or asked for patience (429). What was sent may have been taken all the same, but for the last three.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Silent { .. } | Self::Broken { .. } => true,
            Self::Refused { status, .. } => matches!(status, 429 | 503 | 507),
            _ => false,
        }
    }
}
