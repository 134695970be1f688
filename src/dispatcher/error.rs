//! Defines the errors of API calls. Each text names a remedy.

use std::time::Duration;

use crate::logging::excerpt;

/// Describes why a call failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DispatchError {
    /// The URL is not that of an API.
    #[error("\"{0}\" is not a server's address; it must look like http://127.0.0.1:4000, without a user name")]
    Address(String),
    /// The key cannot be sent in a header.
    #[error("the API key must be visible ASCII without spaces, and not empty")]
    Key,
    /// The HTTP client cannot be created.
    #[error("the HTTP client cannot be created: {0}")]
    Setup(String),
    /// The message cannot be serialized.
    #[error("the message cannot be sent: {0}")]
    Message(String),
    /// A user id that cannot be in a path.
    #[error("the user \"{0}\" cannot be in the path of a URL: only dispatches can name this user")]
    Unaddressable(String),
    /// No connection to the server is possible.
    #[error("cannot connect to {url}: {reason}. Is the server running at {url}?")]
    Unreachable {
        /// Origin of the server's URL.
        url: String,
        /// Cause as reported by the system.
        reason: String,
    },
    /// The TLS handshake failed.
    #[error("no TLS connection to {url}: {reason}")]
    Tls {
        /// Origin of the server's URL.
        url: String,
        /// Cause and remedy.
        reason: String,
    },
    /// The call timed out. The server may have accepted the request.
    #[error("{url} did not answer within {} s; the request may have been accepted. Retry with an id", waited.as_secs())]
    TimedOut {
        /// Origin of the server's URL.
        url: String,
        /// Time limit.
        waited: Duration,
    },
    /// The connection broke. The server may have accepted the request.
    #[error("the connection to {url} broke: {reason}; the request may have been accepted. Retry with an id")]
    Broken {
        /// Origin of the server's URL.
        url: String,
        /// Cause as reported by the system.
        reason: String,
    },
    /// The server rejected the request.
    #[error("the server rejected the request ({code}): {message}{hint}")]
    Rejected {
        /// HTTP status.
        status: u16,
        /// Code for programs.
        code: String,
        /// Sentence for people.
        message: String,
        /// Advice that follows from the status alone.
        hint: &'static str,
    },
    /// Received data could not be written.
    #[error("received data cannot be written: {0}")]
    NotWritten(String),
    /// The response is not that of a mesa server.
    #[error("{url} is not a mesa server: {what}. Check the address")]
    InvalidResponse {
        /// Origin of the server's URL.
        url: String,
        /// Defect of the response.
        what: String,
    },
}

impl DispatchError {
    /// Returns whether a retry may succeed: no connection, no TLS, no response, or status 429, 503 or 507.
    ///
    /// After one of these statuses the request was not accepted, unless the code is `unreachable`, `store_failed` or
    /// `outcome_unknown`. Then, and without a response, it may have been.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Tls { .. } | Self::TimedOut { .. } | Self::Broken { .. } => true,
            Self::Rejected { status, .. } => matches!(status, 429 | 503 | 507),
            _ => false,
        }
    }
}

/// Quotes the first line of a body that is text: a port that speaks TLS says so. Not that of a page, which is long.
pub(super) fn quoted(body: &[u8]) -> String {
    let line = str::from_utf8(body).ok().and_then(|text| text.lines().next()).unwrap_or_default().trim();
    if line.is_empty() || line.starts_with('<') { String::new() } else { format!(": \"{}\"", excerpt(line)) }
}

/// Returns cause and remedy of a failed TLS handshake. Of its error the HTTP client passes on only the text.
pub(super) fn tls_problem(reason: &str) -> Option<String> {
    const NOT_TRUSTED: &str = "invalid peer certificate: ";
    if reason.contains("does not speak TLS") || reason.contains("ProtocolVersion") {
        return Some("it does not speak TLS on this port, or only versions before 1.2. Connect by http://".into());
    }
    let problem = &reason[reason.find(NOT_TRUSTED)? + NOT_TRUSTED.len()..];
    Some(if problem.contains("UnknownIssuer") {
        "its certificate is not trusted, because no trusted authority signed it. Trust its authority by its PEM file \
         (`Dispatcher::with_ca`, `--ca FILE` of the commands), if it is yours"
            .into()
    } else {
        format!("its certificate is not trusted: {problem}. Check its names and dates, and the clock of this machine")
    })
}
