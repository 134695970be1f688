//! Authenticates clients by JSON Web Tokens (JWT) that an application's backend has signed.
//!
//! - `verification_key`: the configured secret or public key
//! - `jwks`: public keys that are fetched from a URL
//! - `claims`: checks the claims of a token
//! - `sign`: signs a token, for development
//! - `unverified`: describes a token without a check of its signature

mod claims;
mod jwks;
mod sign;
mod unverified;
mod verification_key;

use std::{fmt, sync::Arc, time::SystemTime};

use futures_util::future::BoxFuture;
use jsonwebtoken::{
    Algorithm, DecodingKey, Header, Validation, crypto::aws_lc, decode, decode_header, errors::ErrorKind,
};
use serde_json::{Map, Value};

use super::{AuthError, AuthSetupError, Authenticator, Identity, rejected, token, user_object};
use crate::config;
use claims::{Claims, Rules};
use jwks::Jwks;

pub use sign::issue;
pub use unverified::Unverified;
pub(crate) use verification_key::KEY_FILE_BYTES_MAX;

/// Authenticates `data.token`, a JWT, by the configured keys and algorithms.
///
/// A token cannot choose algorithms or keys: `jwk`, `jku` and `x5u` are ignored. `kid` only selects among published
/// keys. A token without `exp` is accepted and does not expire.
pub struct Jwt {
    keys: Keys,
    algorithms: Vec<Algorithm>,
    rules: Rules,
}

enum Keys {
    One(DecodingKey),
    Published(Arc<Jwks>),
}

impl fmt::Debug for Jwt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Jwt").field("algorithms", &self.algorithms).finish_non_exhaustive()
    }
}

impl Jwt {
    /// Reads the key and checks that it matches the algorithms.
    ///
    /// # Errors
    /// Fails in these cases:
    ///
    /// - Not exactly one of secret, key file and JWKS is set.
    /// - The key file cannot be read, or has no public key of RSA (2048 to 8192 bits), EC (P-256 or P-384) or Ed25519.
    /// - The key does not match every algorithm.
    /// - The URL of the JWKS is rejected. Keys are fetched from it later.
    pub fn new(jwt: &config::Jwt) -> Result<Self, AuthSetupError> {
        install_provider();
        let (keys, algorithms) = match (&jwt.jwks, &jwt.secret, &jwt.key_file) {
            (Some(jwks), None, None) => {
                let algorithms = verification_key::Key::public_algorithms(&jwt.algorithms)?;
                (Keys::Published(Jwks::new(jwks, algorithms.clone())?), algorithms)
            }
            _ => {
                let key = verification_key::Key::new(jwt)?;
                let algorithms = key.algorithms(&jwt.algorithms)?;
                (Keys::One(key.decoding), algorithms)
            }
        };
        Ok(Self { keys, algorithms, rules: Rules::new(jwt) })
    }

    /// Authenticates `data` at the time `now`.
    pub(super) async fn check(&self, data: &Map<String, Value>, now: SystemTime) -> Result<Identity, AuthError> {
        let token = token(data)?;
        let header = header(token)?;
        let claims = match &self.keys {
            Keys::One(key) => claims(token, key, self.algorithms.clone())?,
            Keys::Published(jwks) => {
                // `kid` and `alg` only select a configured algorithm and a key that matches it.
                let key = jwks.find(header.kid.as_deref(), header.alg).await?;
                claims(token, &key, vec![header.alg])?
            }
        };
        self.rules.identity(&claims, now)
    }
}

/// Decodes the unverified header of a token.
fn header(token: &str) -> Result<Header, AuthError> {
    let header = decode_header(token).map_err(|error| rejected(reason(error.kind())))?;
    // A critical extension changes how the token must be read, such as an unencoded payload (`b64`). None is supported.
    if header.crit.is_some() || header.extras.inner().contains_key("b64") {
        return Err(rejected("the token requires an unsupported extension (crit or b64)"));
    }
    Ok(header)
}

/// Verifies the signature of a token, and returns its claims.
fn claims(token: &str, key: &DecodingKey, algorithms: Vec<Algorithm>) -> Result<Claims, AuthError> {
    let decoded = decode::<Claims>(token, key, &signature_only(algorithms));
    Ok(decoded.map_err(|error| rejected(reason(error.kind())))?.claims)
}

impl Authenticator for Jwt {
    fn authenticate<'a>(&'a self, data: &'a Map<String, Value>) -> BoxFuture<'a, Result<Identity, AuthError>> {
        Box::pin(self.check(data, SystemTime::now()))
    }

    fn failed_task(&self) -> Option<String> {
        match &self.keys {
            Keys::One(_) => None,
            Keys::Published(jwks) => jwks.failed_task(),
        }
    }
}

/// Configures the crate to check only algorithm and signature.
///
/// `claims` checks the claims, because the crate accepts a token in the second of its `exp`, and ignores claims of the
/// wrong type.
fn signature_only(algorithms: Vec<Algorithm>) -> Validation {
    let mut validation = Validation { algorithms, ..Validation::default() };
    validation.required_spec_claims.clear();
    validation.validate_exp = false;
    validation.validate_nbf = false;
    validation.validate_aud = false;
    validation
}

/// Describes why a token is rejected. The crate's own texts may quote parts of the token.
fn reason(kind: &ErrorKind) -> &'static str {
    match kind {
        ErrorKind::InvalidToken => "the token does not have three parts",
        ErrorKind::InvalidAlgorithm => "the token's algorithm is not one of those configured",
        ErrorKind::InvalidSignature => "the token's signature is invalid",
        ErrorKind::Base64(_) => "the token is not base64url",
        ErrorKind::Json(_) => "the token's header or claims are malformed",
        _ => "the token is not a JWT",
    }
}

/// Installs the crypto provider.
///
/// Otherwise the crate derives it from its features, and panics if another dependency has enabled a second provider.
fn install_provider() {
    // An error means that a provider is installed already, which is sufficient.
    let _ = aws_lc::DEFAULT_PROVIDER.install_default();
}
