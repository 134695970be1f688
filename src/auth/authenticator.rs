//! Defines the trait of authenticators, its errors, and the identity of a client.

use std::time::SystemTime;

use futures_util::future::BoxFuture;
use serde_json::{Map, Value};

use crate::message::{UserId, surrogates};

/// Length limit of a token, in bytes. A longer token is rejected without being parsed.
pub const TOKEN_BYTES_MAX: usize = 16 * 1024;

/// Identifies an authenticated client.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Identity {
    /// User whose messages the connection gets.
    pub id: UserId,
    /// JSON object that the client is sent as its user object, if that is configured.
    pub user: Map<String, Value>,
    /// Time at which the authentication expires. Then the server closes the connection.
    pub expires: Option<SystemTime>,
    /// The user object as JSON, sent in place of `user` if it has a lone surrogate, which `user` cannot hold.
    pub(crate) user_text: Option<String>,
}

impl Identity {
    /// Creates an identity with the user object `{"id": …}` that does not expire.
    #[must_use]
    pub fn new(id: UserId) -> Self {
        let user = Map::from_iter([("id".to_owned(), Value::from(id.as_str()))]);
        Self { id, user, expires: None, user_text: None }
    }
}

/// Describes why authentication failed. The server logs it, and does not send it to the client.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AuthError {
    /// The credentials are invalid.
    #[error("{0}")]
    Rejected(String),
    /// The credentials could not be checked, for example because the webhook is unreachable.
    #[error("could not check: {0}")]
    Unavailable(String),
}

/// Authenticates clients.
pub trait Authenticator: Send + Sync + 'static {
    /// Authenticates a client. `data` is the `d` of its authentication frame: a JSON object that the application
    /// passed.
    ///
    /// The server drops the future when the connection closes, or after `authentication.timeout`.
    fn authenticate<'a>(&'a self, data: &'a Map<String, Value>) -> BoxFuture<'a, Result<Identity, AuthError>>;

    /// Authenticates data in which a string has a lone surrogate.
    ///
    /// Called in place of [`authenticate`](Self::authenticate). `data` has U+FFFD in place of the surrogate, so two
    /// different strings may become equal. `text` is the data as JSON, as the client sent it. The server itself rejects
    /// a token with a lone surrogate.
    fn authenticate_text<'a>(
        &'a self,
        data: &'a Map<String, Value>,
        text: &'a str,
    ) -> BoxFuture<'a, Result<Identity, AuthError>> {
        _ = text;
        self.authenticate(data)
    }

    /// Returns why a task of this authenticator last failed, for `/readyz`.
    #[doc(hidden)]
    fn failed_task(&self) -> Option<String> {
        None
    }
}

/// Describes why an authenticator cannot be created, and what to change.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct AuthSetupError(pub(super) String);

/// Returns the token in the client's data.
pub(super) fn token(data: &Map<String, Value>) -> Result<&str, AuthError> {
    let token = data.get("token").ok_or_else(|| rejected("the data has no token"))?;
    let token = token.as_str().ok_or_else(|| rejected("the token is not a string"))?;
    if token.len() > TOKEN_BYTES_MAX {
        return Err(rejected(format!("the token has {} bytes, above the limit of {TOKEN_BYTES_MAX}", token.len())));
    }
    Ok(token)
}

/// Parses a user object and sets its `id`. Also returns its JSON if it has a lone surrogate.
pub(super) fn user_object(text: &str, id: &UserId) -> Option<(Map<String, Value>, Option<String>)> {
    let mut user: Map<String, Value> = serde_json::from_str(&surrogates::replace_lone_surrogates(text)).ok()?;
    user.insert("id".into(), id.as_str().into());
    if !surrogates::has_lone_surrogate(text) {
        return Some((user, None));
    }
    let id = Value::from(id.as_str()).to_string();
    let mut entries = surrogates::entries(text)?;
    entries.insert("id".to_owned(), &id);
    let text = surrogates::object(entries);
    Some((user, Some(text)))
}

pub(super) fn rejected(reason: impl Into<String>) -> AuthError {
    AuthError::Rejected(reason.into())
}
