//! Authenticates clients by an [`Authenticator`], and backends by [`ApiKeys`] and [`Password`].
//!
//! - `authenticator`: the trait, its errors, and the identity of a client
//! - `jwt`, `webhook`, `insecure`: its implementations
//! - `api_keys`, `guess_limiter`: API keys, and the limit on brute-force guesses
//!
//! Nothing here depends on a socket. Credentials are never written to the log.

mod api_keys;
mod authenticator;
mod guess_limiter;
mod insecure;
mod jwt;
#[cfg(test)]
mod tests;
mod webhook;

use std::sync::Arc;

pub use self::authenticator::{AuthError, AuthSetupError, Authenticator, Identity, TOKEN_BYTES_MAX};
use self::authenticator::{rejected, token, user_object};
use crate::config;

pub(crate) use api_keys::digest;
pub use api_keys::{ApiKeys, Password, PresentedKey};
pub use guess_limiter::{AddressProof, GuessLimiter};
pub use insecure::Insecure;
pub(crate) use jwt::KEY_FILE_BYTES_MAX;
pub use jwt::{Jwt, Unverified, issue};
pub use webhook::Webhook;

/// Creates the configured authenticator: JWT, else webhook, else insecure. `None`: clients cannot authenticate.
///
/// # Errors
/// Fails if the key file cannot be read, has no public key, or does not match the algorithms, or if the URL of the webhook
/// or the JWKS is rejected.
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
