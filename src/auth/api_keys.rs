//! Who a backend is: the keys of the HTTP API, and the password of the Redis protocol.

use std::fmt;

use jsonwebtoken::{crypto::aws_lc, jwk::ThumbprintHash};
use subtle::{Choice, ConstantTimeEq as _};

use crate::config;

/// The configured API keys, as digests: all of one length, so that comparing takes the same time whatever is shown.
#[derive(Clone)]
pub struct ApiKeys {
    digests: Vec<Vec<u8>>,
}

impl ApiKeys {
    /// Takes the keys over.
    #[must_use]
    pub fn new(api: &config::Api) -> Self {
        Self { digests: api.keys.iter().map(|key| digest(key.as_bytes())).collect() }
    }

    /// Whether there are none: then nobody is let in.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.digests.is_empty()
    }

    /// Whether `presented` is one of the keys. Takes the same time for every text of one length: each key is compared,
    /// to its end, also after one that fits. Without keys it is always false.
    #[must_use]
    pub fn check(&self, presented: &str) -> bool {
        let presented = digest(presented.as_bytes());
        let fits = |found: Choice, key: &Vec<u8>| found | key.ct_eq(&presented);
        self.digests.iter().fold(Choice::from(0), fits).into()
    }
}

/// A password that a connection has to show, as a digest.
#[derive(Clone)]
pub struct Password {
    digest: Vec<u8>,
}

impl Password {
    /// Takes it over.
    #[must_use]
    pub fn new(password: &str) -> Self {
        Self { digest: digest(password.as_bytes()) }
    }

    /// Whether that is it. Takes the same time for everything of one length.
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

impl fmt::Debug for ApiKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiKeys").field("keys", &self.digests.len()).finish()
    }
}

/// SHA-256. The crate that checks tokens has it at hand; one more for this alone would be one to keep up with.
fn digest(bytes: &[u8]) -> Vec<u8> {
    // Its signature is for implementations that may lack a hash; this one has all three.
    (aws_lc::DEFAULT_PROVIDER.key_utils.compute_digest)(bytes, ThumbprintHash::SHA256).expect("SHA-256 takes any bytes")
}
