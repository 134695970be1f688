//! Defines the credentials of a client, and whether it may reconnect with them after a close.

use std::fmt;

use futures_util::future::BoxFuture;
use serde_json::{Map, Value};

use super::close_code;
use crate::protocol::close_code::{CloseCode, reason};

/// Creates the data of an authentication.
pub(super) enum Credentials {
    /// The same data for each connection.
    Fixed(Map<String, Value>),
    /// New data for each connection.
    Function(Box<dyn Fn() -> BoxFuture<'static, Map<String, Value>> + Send + Sync>),
}

impl Credentials {
    /// Returns the data of the next authentication.
    pub async fn create(&self) -> Map<String, Value> {
        match self {
            Self::Fixed(data) => data.clone(),
            Self::Function(function) => function().await,
        }
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").finish_non_exhaustive()
    }
}

/// Returns whether the server closed the connection because the client sent too fast.
pub(super) fn is_too_fast(code: u16, why: &str) -> bool {
    code == CloseCode::Policy.code() && why == reason::TOO_MANY_FRAMES
}

/// Returns whether a client with these credentials may reconnect after a close.
///
/// 1008 is final, except where the next connection differs: it sends slower, or has a new token.
pub(super) fn may_reconnect(code: u16, why: &str, credentials: Option<&Credentials>) -> bool {
    let is_renewable = matches!(credentials, Some(Credentials::Function(_)));
    let needs_token = [reason::TOKEN_EXPIRED, reason::AUTHENTICATION_TIMED_OUT].contains(&why);
    close_code::should_reconnect(code)
        || is_too_fast(code, why)
        || (code == CloseCode::Policy.code() && is_renewable && needs_token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn client_reconnects_after_1008_only_if_the_next_connection_differs() {
        let fixed = Credentials::Fixed(Map::new());
        let function = Credentials::Function(Box::new(|| Box::pin(async { Map::new() })));
        for (why, with_fixed, with_function) in [
            ("the token has expired", false, true),
            ("authentication timed out", false, true),
            ("too many frames", true, true),
            ("authentication failed", false, false),
            ("", false, false),
        ] {
            assert_eq!(may_reconnect(1008, why, None), with_fixed, "{why}");
            assert_eq!(may_reconnect(1008, why, Some(&fixed)), with_fixed, "{why}");
            assert_eq!(may_reconnect(1008, why, Some(&function)), with_function, "{why}");
            assert!(may_reconnect(1013, why, None) && !may_reconnect(1000, why, Some(&function)));
        }
    }
}
