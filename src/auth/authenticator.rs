//! Authentication: the trait, its errors, and the identity of a client.

use std::time::SystemTime;

use futures_util::future::BoxFuture;
use serde_json::{Map, Value};

use crate::message::{UserId, surrogates};

/// Longest token that is looked at, in bytes; a longer one is refused before anything is done with it.
pub const TOKEN_BYTES_MAX: usize = 16 * 1024;

/// What a client showed is accepted, and this is who it is.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Identity {
    /// Whose messages the connection will get.
    pub id: UserId,
    /// What the client is sent as its user object, when that is configured: a JSON object.
    pub user: Map<String, Value>,
    /// When this stops being true; the connection is closed then.
    pub expires: Option<SystemTime>,
    /// The user object as JSON text, where `user` cannot hold it: it has half of a surrogate pair. Sent in its place.
    pub(crate) user_text: Option<String>,
}

impl Identity {
    /// This user, with `{"id": …}` for a user object and without an end.
    #[must_use]
    pub fn new(id: UserId) -> Self {
        let user = Map::from_iter([("id".to_owned(), Value::from(id.as_str()))]);
        Self { id, user, expires: None, user_text: None }
    }
}

/// Why a client is not let in. Written to the log; the client learns no more than that it failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AuthError {
    /// What was shown does not hold.
    #[error("{0}")]
    Refused(String),
    /// It could not be checked just now.
    #[error("could not check: {0}")]
    Unavailable(String),
}

/// Finds out who a client is.
pub trait Authenticator: Send + Sync + 'static {
    /// `data` is the `d` of the client's authentication frame, a JSON object as the application passed it.
    ///
    /// The future may be dropped when the connection goes away or its time is up.
    fn authenticate<'a>(&'a self, data: &'a Map<String, Value>) -> BoxFuture<'a, Result<Identity, AuthError>>;

    /// As [`authenticate`](Self::authenticate), called instead where a text in the data has half of a surrogate pair: a
    /// character that JavaScript has cut in two. `data` has U+FFFD in its place, so that two such texts may look alike; `text`
    /// is the data as JSON, as it was sent. A token that was cut so is refused before.
    fn authenticate_text<'a>(
        &'a self,
        data: &'a Map<String, Value>,
        text: &'a str,
    ) -> BoxFuture<'a, Result<Identity, AuthError>> {
        _ = text;
        self.authenticate(data)
    }

    /// Why a task behind this authenticator failed when it last ran, if it did: for `/readyz`.
    #[doc(hidden)]
    fn failed_task(&self) -> Option<String> {
        None
    }
}

/// Why clients cannot be authenticated as configured: a sentence that says what to change.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct AuthSetupError(pub(super) String);

/// The token in what the client passed.
pub(super) fn token(data: &Map<String, Value>) -> Result<&str, AuthError> {
    let token = data.get("token").ok_or_else(|| refused("there is no token"))?;
    let token = token.as_str().ok_or_else(|| refused("the token is not a string"))?;
    if token.len() > TOKEN_BYTES_MAX {
        return Err(refused(format!("the token has {} bytes and may have {TOKEN_BYTES_MAX}", token.len())));
    }
    Ok(token)
}

/// A JSON object, and its text where it has half of a surrogate pair; with `id` in place of its own.
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

pub(super) fn refused(reason: impl Into<String>) -> AuthError {
    AuthError::Refused(reason.into())
}
