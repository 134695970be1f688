//! Tokens that an application's own backend has signed: JSON Web Tokens.
//!
//! - `verification_key`: what they are checked with
//! - `jwks`: the same, fetched from where it is published
//! - `claims`: what they say, and whether it holds
//! - `sign`: signing one, for development

mod claims;
mod jwks;
mod sign;
mod verification_key;

use std::{fmt, sync::Arc, time::SystemTime};

use futures_util::future::BoxFuture;
use jsonwebtoken::{
    Algorithm, DecodingKey, Header, Validation, crypto::aws_lc, decode, decode_header, errors::ErrorKind,
};
use serde_json::{Map, Value};

use super::{AuthError, AuthSetupError, Authenticator, Identity, refused, token, user_object};
use crate::config;
use claims::{Claims, Rules};
use jwks::Jwks;

pub use sign::issue;

/// Accepts JWTs as configured. Only `data.token` is looked at.
///
/// The algorithms are those of the configuration, whatever a token asks for, and so is the key: `jwk`, `jku` and `x5u` in
/// a token have no effect, and `kid` chooses among published keys and has none otherwise. A token without `exp` is accepted
/// and does not expire.
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
    /// Reads the key and checks that it goes with the algorithms.
    ///
    /// # Errors
    /// When the key file cannot be read, holds no public key of at least 2048 bits (RSA), on P-256 or P-384 (EC) or of
    /// Ed25519, or does not go with every algorithm; when there is not exactly one of secret, key file and JWKS; when the
    /// address of that is refused. Whether anything is published there turns out later.
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

    /// What `data` says at the time `now`.
    pub(super) async fn check(&self, data: &Map<String, Value>, now: SystemTime) -> Result<Identity, AuthError> {
        let token = token(data)?;
        let header = header(token)?;
        let claims = match &self.keys {
            Keys::One(key) => claims(token, key, self.algorithms.clone())?,
            Keys::Published(jwks) => {
                // It chooses, among what is configured and goes with the key; the key decides.
                let key = jwks.find(header.kid.as_deref(), header.alg).await?;
                claims(token, &key, vec![header.alg])?
            }
        };
        self.rules.identity(&claims, now)
    }
}

/// What a token says of itself: nothing of it is believed yet.
fn header(token: &str) -> Result<Header, AuthError> {
    let header = decode_header(token).map_err(|error| refused(reason(error.kind())))?;
    // What the signer marks as critical changes how the token is to be read, and nothing of it is known here; an
    // unencoded payload (`b64`) would be such a thing.
    if header.crit.is_some() || header.extras.inner().contains_key("b64") {
        return Err(refused("the token asks for an extension that is not known here (crit or b64)"));
    }
    Ok(header)
}

/// What a token says, if its signature holds.
fn claims(token: &str, key: &DecodingKey, algorithms: Vec<Algorithm>) -> Result<Claims, AuthError> {
    let decoded = decode::<Claims>(token, key, &signature_only(algorithms));
    Ok(decoded.map_err(|error| refused(reason(error.kind())))?.claims)
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

/// The crate checks algorithm and signature. The claims are checked in `claims`: the crate lets a token pass on the
/// second of its `exp`, and passes over a claim of the wrong form.
fn signature_only(algorithms: Vec<Algorithm>) -> Validation {
    let mut validation = Validation { algorithms, ..Validation::default() };
    validation.required_spec_claims.clear();
    validation.validate_exp = false;
    validation.validate_nbf = false;
    validation.validate_aud = false;
    validation
}

/// Why a token is refused, in words of our own: those of the crate may repeat parts of it.
fn reason(kind: &ErrorKind) -> &'static str {
    match kind {
        ErrorKind::InvalidToken => "the token does not have three parts",
        ErrorKind::InvalidAlgorithm => "the token's algorithm is not one of those configured",
        ErrorKind::InvalidSignature => "the token's signature does not hold",
        ErrorKind::Base64(_) => "the token is not base64url",
        ErrorKind::Json(_) => "the token's header or claims are not understood",
        _ => "the token is no JWT",
    }
}

/// Names the implementation of the cryptography. Without it the crate looks which of its features are on, and panics
/// if some other dependency turned on a second one.
fn install_provider() {
    // It fails when one is installed already, which serves as well.
    let _ = aws_lc::DEFAULT_PROVIDER.install_default();
}
