//! Who a client is: the contract, and the ready-made ways to find out. And who a backend is, in [`ApiKeys`] and [`Password`].
//!
//! Nothing here knows a socket or waits for a person; what a client showed is never written to a log.

mod guesses;
mod insecure;
mod jwt;
mod keys;
#[cfg(test)]
mod tests;
mod webhook;

use std::{sync::Arc, time::SystemTime};

use futures_util::future::BoxFuture;
use serde_json::{Map, Value};

use crate::{config, message::UserId};

pub use guesses::Guesses;
pub use insecure::Insecure;
pub use jwt::{Jwt, issue};
pub use keys::{ApiKeys, Password};
pub use webhook::Webhook;

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
}

impl Identity {
    /// This user, with `{"id": …}` for a user object and without an end.
    #[must_use]
    pub fn new(id: UserId) -> Self {
        let user = Map::from_iter([("id".to_owned(), Value::from(id.as_str()))]);
        Self { id, user, expires: None }
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
}

/// Why clients cannot be authenticated as configured: a sentence that says what to change.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct AuthSetupError(String);

/// What is configured: JWTs, else a webhook, else tokens that are user ids, else nothing, and then no client can say who it
/// is.
///
/// # Errors
/// When the key file cannot be read, holds no public key, or does not go with the algorithms; when an address that is to
/// be asked is refused.
pub fn from_config(authentication: &config::Authentication) -> Result<Option<Arc<dyn Authenticator>>, AuthSetupError> {
    if let Some(jwt) = &authentication.jwt {
        return Ok(Some(Arc::new(Jwt::new(jwt)?)));
    }
    if let Some(webhook) = &authentication.webhook {
        return Ok(Some(Arc::new(Webhook::new(webhook)?)));
    }
    if authentication.insecure {
        return Ok(Some(Arc::new(Insecure)));
    }
    Ok(None)
}

/// The token in what the client passed.
fn token(data: &Map<String, Value>) -> Result<&str, AuthError> {
    let token = data.get("token").ok_or_else(|| refused("there is no token"))?;
    let token = token.as_str().ok_or_else(|| refused("the token is not a string"))?;
    if token.len() > TOKEN_BYTES_MAX {
        return Err(refused(format!("the token has {} bytes and may have {TOKEN_BYTES_MAX}", token.len())));
    }
    Ok(token)
}

fn refused(reason: impl Into<String>) -> AuthError {
    AuthError::Refused(reason.into())
}
