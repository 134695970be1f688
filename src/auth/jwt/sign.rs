//! Signing a token, for people who try the server out and for tests.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Map, Value};

use super::{AuthError, install_provider, refused};
use crate::{config::SECRET_BYTES_MIN, message::UserId};

/// Signs a token for `id` with a shared secret: HS256, HS384 or HS512. It holds for `ttl` from now, or without end; a
/// fraction of a second counts as a whole one. `claims` go in beside `id`, `iat` and `exp`, which are set over them.
///
/// # Errors
/// [`AuthError::Refused`] when the algorithm is another, the secret has less than the 16 bytes that a server asks for, or `ttl` reaches beyond all time.
pub fn issue(
    secret: &str,
    algorithm: &str,
    id: &UserId,
    ttl: Option<Duration>,
    claims: Map<String, Value>,
) -> Result<String, AuthError> {
    install_provider();
    let algorithm = match algorithm {
        "HS256" => Algorithm::HS256,
        "HS384" => Algorithm::HS384,
        "HS512" => Algorithm::HS512,
        other => {
            let other = other.escape_debug();
            return Err(refused(format!("a secret signs with HS256, HS384 or HS512, not with \"{other}\"")));
        }
    };
    let bytes = secret.len();
    if bytes < SECRET_BYTES_MIN {
        return Err(refused(format!(
            "the secret has {bytes} bytes, and no server takes one of less than {SECRET_BYTES_MIN}; give the one that the \
             server has in authentication.jwt.secret (`openssl rand -hex 32` makes one)"
        )));
    }
    // Before 1970 a clock is wrong, and so will be the token.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut claims = claims;
    claims.insert("id".into(), id.as_str().into());
    claims.insert("iat".into(), now.as_secs().into());
    if let Some(ttl) = ttl {
        let whole = ttl.as_secs().checked_add(u64::from(ttl.subsec_nanos() > 0));
        let expires = whole.and_then(|seconds| now.as_secs().checked_add(seconds));
        let expires = expires.ok_or_else(|| refused("the token would hold beyond all time; give a shorter ttl"))?;
        claims.insert("exp".into(), expires.into());
    }
    let key = EncodingKey::from_secret(secret.as_bytes());
    encode(&Header::new(algorithm), &claims, &key).map_err(|_| refused("the token could not be signed"))
}
