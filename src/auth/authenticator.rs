//! Defines the trait of authenticators, its errors, and the identity of a client.

use std::time::SystemTime;

use futures_util::future::BoxFuture;
use serde_json::{Map, Value};

use crate::message::{UserId, surrogates};

/// Length limit of a token in bytes. A longer one is rejected before it is parsed.
pub const TOKEN_BYTES_MAX: usize = 16 * 1024;

/// Identifies an authenticated client.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Identity {
    /// User whose messages the connection gets.
    pub id: UserId,
    /// JSON object that the client is sent as its user object, if that is configured.
    pub user: Map<String, Value>,
    /// Time at which the authentication expires; then the connection closes.
    pub expires: Option<SystemTime>,
    /// The user object as JSON, sent in place of `user` if it has an unpaired surrogate, which `user` cannot hold.
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

/// Says why authentication failed. Written to the log; the client only learns that it failed.
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
    /// Authenticates a client. `data` is the `d` of its authentication frame: a JSON object that the application passed.
    ///
    /// The future may be dropped when the connection closes or `limits` time it out.
    fn authenticate<'a>(&'a self, data: &'a Map<String, Value>) -> BoxFuture<'a, Result<Identity, AuthError>>;

    /// Authenticates data in which a string has an unpaired surrogate: a character that JavaScript has cut in two.
    ///
    /// Called in place of [`authenticate`](Self::authenticate). `data` has U+FFFD in place of the surrogate, so two different
    /// strings may become equal. `text` is the data as JSON, as it was sent. A token with one is rejected before.
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

/// Says why an authenticator cannot be created, and what to change.
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

/// Parses a user object and sets its `id`. Also returns its JSON if it has an unpaired surrogate.
pub(super) fn user_object(text: &str, id: &UserId) -> Option<(Map<String, Value>, Option<String>)> {
    let mut user: Map<String, Value> = serde_json::from_str(&surrogates::replace_halves(text)).ok()?;
    user.insert("id".into(), id.as_str().into());
    if !surrogates::has_half(text) {
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
