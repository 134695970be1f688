//! Who a client is: the contract, and the ready-made ways to find out. And who a backend is, in [`ApiKeys`] and [`Password`].
//!
//! - `authenticator`: the trait, its errors, and the identity of a client
//! - `jwt`, `webhook`, `insecure`: its implementations
//! - `api_keys`, `guesses`: API keys, and the limit on wrong ones
//!
//! Nothing here knows a socket or waits for a person; what a client showed is never written to a log.

mod api_keys;
mod authenticator;
mod guesses;
mod insecure;
mod jwt;
#[cfg(test)]
mod tests;
mod webhook;

use std::sync::Arc;

pub use self::authenticator::{AuthError, AuthSetupError, Authenticator, Identity, TOKEN_BYTES_MAX};
use self::authenticator::{refused, token, user_object};
use crate::config;

pub use api_keys::{ApiKeys, Password};
pub use guesses::{Guesses, Proof};
pub use insecure::Insecure;
pub use jwt::{Jwt, issue};
pub use webhook::Webhook;

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
