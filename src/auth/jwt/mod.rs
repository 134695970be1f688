//! Tokens that an application's own backend has signed: JSON Web Tokens.
//!
//! - `key`: what they are checked with
//! - `claims`: what they say, and whether it holds
//! - `issue`: signing one, for development

mod claims;
mod issue;
mod key;

use std::{fmt, time::SystemTime};

use futures_util::future::{BoxFuture, ready};
use jsonwebtoken::{Algorithm, DecodingKey, Validation, crypto::aws_lc, decode, decode_header, errors::ErrorKind};
use serde_json::{Map, Value};

use super::{AuthError, AuthSetupError, Authenticator, Identity, refused, token};
use crate::config;
use claims::{Claims, Rules};

pub use issue::issue;

/// Accepts JWTs as configured. Only `data.token` is looked at.
///
/// The algorithms are those of the configuration, whatever a token asks for, and so is the key: `jwk`, `jku`, `x5u` and
/// `kid` in a token have no effect. A token without `exp` is accepted and does not expire.
pub struct Jwt {
    key: DecodingKey,
    validation: Validation,
    rules: Rules,
}

impl fmt::Debug for Jwt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Jwt").field("algorithms", &self.validation.algorithms).finish_non_exhaustive()
    }
}

impl Jwt {
    /// Reads the key and checks that it goes with the algorithms.
    ///
    /// # Errors
    /// When the key file cannot be read, holds no public key of at least 2048 bits (RSA), on P-256 or P-384 (EC) or of
    /// Ed25519, or does not go with every algorithm; when there is neither secret nor key file, or both.
    pub fn new(jwt: &config::Jwt) -> Result<Self, AuthSetupError> {
        install_provider();
        let key = key::Key::new(jwt)?;
        let algorithms = key.algorithms(&jwt.algorithms)?;
        Ok(Self { key: key.decoding, validation: signature_only(algorithms), rules: Rules::new(jwt) })
    }

    /// What `data` says at the time `now`.
    pub(super) fn check(&self, data: &Map<String, Value>, now: SystemTime) -> Result<Identity, AuthError> {
        let token = token(data)?;
        let header = decode_header(token).map_err(|error| refused(reason(error.kind())))?;
        // What the signer marks as critical changes how the token is to be read, and nothing of it is known here; an
        // unencoded payload (`b64`) would be such a thing.
        if header.crit.is_some() || header.extras.inner().contains_key("b64") {
            return Err(refused("the token asks for an extension that is not known here (crit or b64)"));
        }
        let decoded = decode::<Claims>(token, &self.key, &self.validation);
        let claims = decoded.map_err(|error| refused(reason(error.kind())))?.claims;
        self.rules.identity(claims, now)
    }
}

impl Authenticator for Jwt {
    fn authenticate<'a>(&'a self, data: &'a Map<String, Value>) -> BoxFuture<'a, Result<Identity, AuthError>> {
        Box::pin(ready(self.check(data, SystemTime::now())))
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
