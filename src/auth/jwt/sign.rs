//! Signs tokens, for tests and for trying the server out.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Map, Value};

use super::{AuthError, install_provider, rejected};
use crate::{config::SECRET_BYTES_MIN, message::UserId};

/// Signs a token for `id` with a shared secret: HS256, HS384 or HS512.
///
/// It is valid for `ttl` from now, rounded up to seconds, or without end. `claims` are added; `id`, `iat` and `exp`
/// replace claims of those names.
///
/// # Errors
/// Returns [`AuthError::Rejected`] for another algorithm, a secret below the server's minimum of 16 bytes, or a `ttl` beyond the
/// range of times.
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
            return Err(rejected(format!("a secret signs with HS256, HS384 or HS512, not with \"{other}\"")));
        }
    };
    let bytes = secret.len();
    if bytes < SECRET_BYTES_MIN {
        return Err(rejected(format!(
            "the secret has {bytes} bytes, and servers require at least {SECRET_BYTES_MIN}: pass the one in the server's \
            authentication.jwt.secret (`openssl rand -hex 32` makes one)"
        )));
    }
    // A clock before 1970 is wrong, and makes a wrong token.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut claims = claims;
    claims.insert("id".into(), id.as_str().into());
    claims.insert("iat".into(), now.as_secs().into());
    if let Some(ttl) = ttl {
        let whole = ttl.as_secs().checked_add(u64::from(ttl.subsec_nanos() > 0));
        let expires = whole.and_then(|seconds| now.as_secs().checked_add(seconds));
        let expires =
            expires.ok_or_else(|| rejected("the token would expire beyond the range of times; pass a shorter ttl"))?;
        claims.insert("exp".into(), expires.into());
    }
    let key = EncodingKey::from_secret(secret.as_bytes());
    encode(&Header::new(algorithm), &claims, &key).map_err(|_| rejected("the token could not be signed"))
}
