//! Checks API keys, and passwords of the Redis protocol and of the admin page.

use std::fmt;

use jsonwebtoken::{crypto::aws_lc, jwk::ThumbprintHash};
use subtle::{Choice, ConstantTimeEq as _};

use crate::config;

/// Holds the API keys as digests. Digests have one length, so a comparison takes the same time for every key.
#[derive(Clone)]
pub struct ApiKeys {
    digests: Vec<Vec<u8>>,
}

/// An API key that was valid when it was presented, as a digest.
pub struct PresentedKey(Vec<u8>);

impl ApiKeys {
    /// Digests the configured keys.
    #[must_use]
    pub fn new(api: &config::Api) -> Self {
        Self { digests: api.keys.iter().map(|key| digest(key.as_bytes())).collect() }
    }

    /// Returns whether no key is configured. Then every request is rejected.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.digests.is_empty()
    }

    /// Returns whether `presented` is one of the keys.
    ///
    /// Takes the same time for all texts of one length: every key is compared to its end, even after a match.
    #[must_use]
    pub fn check(&self, presented: &str) -> bool {
        self.find(presented).is_some()
    }

    /// Returns `presented` as a digest if it is one of the keys. Takes the same time as [`check`](Self::check).
    #[must_use]
    pub fn find(&self, presented: &str) -> Option<PresentedKey> {
        let presented = PresentedKey(digest(presented.as_bytes()));
        self.has(&presented).then_some(presented)
    }

    /// Returns whether a key that was valid earlier is still one of the keys.
    #[must_use]
    pub fn has(&self, presented: &PresentedKey) -> bool {
        let compare = |found: Choice, key: &Vec<u8>| found | key.ct_eq(&presented.0);
        self.digests.iter().fold(Choice::from(0), compare).into()
    }
}

/// Holds a password as a digest.
#[derive(Clone)]
pub struct Password {
    digest: Vec<u8>,
}

impl Password {
    /// Digests the configured password.
    #[must_use]
    pub fn new(password: &str) -> Self {
        Self { digest: digest(password.as_bytes()) }
    }

    /// Returns whether `presented` is the password. Takes the same time for all inputs of one length.
    #[must_use]
    pub fn check(&self, presented: &[u8]) -> bool {
        self.digest.ct_eq(&digest(presented)).into()
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password")
    }
}

impl fmt::Debug for PresentedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PresentedKey")
    }
}

impl fmt::Debug for ApiKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiKeys").field("keys", &self.digests.len()).finish()
    }
}

/// Computes SHA-256 with the crate that verifies tokens, to avoid another dependency.
pub(crate) fn digest(bytes: &[u8]) -> Vec<u8> {
    // The result is optional for providers that lack a hash; this one has SHA-256.
    (aws_lc::DEFAULT_PROVIDER.key_utils.compute_digest)(bytes, ThumbprintHash::SHA256)
        .expect("the provider has SHA-256")
}
