//! Fetches and caches public keys: a JSON Web Key Set (JWKS) from a URL.
//!
//! Tokens cause at most one request per `retryInterval`, whatever keys they name. A fetch runs in its own task, so a
//! client that disconnects does not cancel it. A fetched set replaces the previous one, so a withdrawn key is no longer
//! accepted. While fetches fail, the previous set is used until it is older than `maxStale`.

use std::{fmt, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures_util::FutureExt;
use jsonwebtoken::{
    Algorithm, DecodingKey,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyOperations, PublicKeyUse},
};
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::{sync::watch, time::Instant};

use super::{
    AuthError, AuthSetupError, rejected,
    verification_key::{RSA, RSA_BITS},
};
use crate::{
    config, failpoints,
    http_client::HttpClient,
    logging::{json_error, panic_text},
    message::surrogates,
};

/// Size limit of a set, in bytes.
const SET_BYTES_MAX: usize = 256 << 10;

/// Maximum number of keys in a set. A larger set is rejected.
const KEYS_MAX: usize = 100;

/// Caches a set of keys, as the module describes.
pub(super) struct Jwks {
    http: HttpClient,
    refresh_interval: Duration,
    retry_interval: Duration,
    max_stale: Duration,
    algorithms: Vec<Algorithm>,
    cache: Mutex<Cache>,
}

#[derive(Default)]
struct Cache {
    keys: Vec<Key>,
    /// Time of the last successful fetch.
    fetched: Option<Instant>,
    /// Time of the last request.
    requested: Option<Instant>,
    /// Becomes true when the fetch in progress has ended.
    in_progress: Option<watch::Receiver<bool>>,
    /// Reason of the last failed fetch; `None` after a success.
    failed: Option<String>,
    /// The last fetch panicked.
    panicked: bool,
}

/// Holds a usable key.
#[derive(Clone)]
struct Key {
    id: Option<String>,
    /// Configured algorithms that match the key's type and its `alg`.
    algorithms: Vec<Algorithm>,
    decoding: Arc<DecodingKey>,
}

#[derive(Deserialize)]
struct Set<'a> {
    #[serde(borrow)]
    keys: Vec<&'a RawValue>,
}

impl Jwks {
    pub fn new(jwks: &config::Jwks, algorithms: Vec<Algorithm>) -> Result<Arc<Self>, AuthSetupError> {
        let http = HttpClient::new(&jwks.url, jwks.timeout, jwks.allow_private);
        let jwks = Arc::new(Self {
            http: http.map_err(|why| AuthSetupError(format!("authentication.jwt.jwks.url {why}")))?,
            refresh_interval: jwks.refresh_interval,
            retry_interval: jwks.retry_interval,
            max_stale: jwks.max_stale,
            algorithms,
            cache: Mutex::default(),
        });
        // Fetched at start if possible, so that the first client need not wait and errors show early.
        if tokio::runtime::Handle::try_current().is_ok() {
            _ = jwks.fetch_if_due();
        }
        Ok(jwks)
    }

    /// Finds the key with an id. Without an id, finds the only key that matches the algorithm.
    pub async fn find(self: &Arc<Self>, id: Option<&str>, algorithm: Algorithm) -> Result<Arc<DecodingKey>, AuthError> {
        if !self.algorithms.contains(&algorithm) {
            return Err(rejected("the token's algorithm is not one of those configured"));
        }
        let (found, age) = self.lookup(id, algorithm);
        if let Some(found) = found {
            if age >= self.refresh_interval {
                // The cached key is used meanwhile.
                _ = self.fetch_if_due();
            }
            return Ok(found);
        }
        // Missing or too old: it may have been published since.
        if let Some(mut in_progress) = self.fetch_if_due() {
            // An error means that the task has ended without a result.
            _ = in_progress.wait_for(|done| *done).await;
        }
        let (found, age) = self.lookup(id, algorithm);
        match found {
            Some(found) => Ok(found),
            None if age >= self.max_stale => {
                let why = self.cache.lock().failed.clone().unwrap_or_else(|| "they were not fetched".into());
                Err(AuthError::Unavailable(format!("the keys for tokens: {why}")))
            }
            None if id.is_none() => Err(rejected(
                "the token does not name its key (kid), and several or no published keys match its algorithm",
            )),
            None => Err(rejected("the token names a key (kid) that is not published for its algorithm")),
        }
    }

    /// Returns why the last fetch failed, if it panicked.
    pub fn failed_task(&self) -> Option<String> {
        let cache = self.cache.lock();
        cache.failed.as_ref().filter(|_| cache.panicked).map(|why| format!("the keys for tokens: {why}"))
    }

    /// Looks a key up in the cache. Also returns the age of the cache.
    fn lookup(&self, id: Option<&str>, algorithm: Algorithm) -> (Option<Arc<DecodingKey>>, Duration) {
        let cache = self.cache.lock();
        let age = cache.fetched.map_or(Duration::MAX, |fetched| fetched.elapsed());
        if age >= self.max_stale {
            return (None, age);
        }
        let mut fitting = cache.keys.iter().filter(|key| key.algorithms.contains(&algorithm));
        let found = match id {
            Some(_) => fitting.find(|key| key.id.as_deref() == id),
            None => fitting.next().filter(|_| fitting.next().is_none()),
        };
        (found.map(|key| key.decoding.clone()), age)
    }

    /// Starts a fetch, or joins the one in progress. `None`: the last request is less than `retryInterval` ago.
    fn fetch_if_due(self: &Arc<Self>) -> Option<watch::Receiver<bool>> {
        let mut cache = self.cache.lock();
        if cache.in_progress.is_some() {
            return cache.in_progress.clone();
        }
        if cache.requested.is_some_and(|at| at.elapsed() < self.retry_interval) {
            return None;
        }
        cache.requested = Some(Instant::now());
        let (done, in_progress) = watch::channel(false);
        cache.in_progress = Some(in_progress.clone());
        drop(cache);
        let jwks = self.clone();
        // A task of its own, because the client that caused it may disconnect.
        tokio::spawn(async move {
            // An uncaught panic would leave `in_progress` set, and prevent all further requests.
            let fetched = AssertUnwindSafe(failpoints::with_panic_point("authentication", Box::pin(jwks.fetch())))
                .catch_unwind()
                .await;
            let panicked = fetched.is_err();
            let fetched = fetched.unwrap_or_else(|panic| {
                let why = format!("the task that fetches them panicked: {}", panic_text(panic.as_ref()));
                tracing::error!(why, "a task of the server panicked; the next request restarts it");
                Err(why)
            });
            let mut cache = jwks.cache.lock();
            (cache.in_progress, cache.panicked) = (None, panicked);
            match fetched {
                Ok(keys) => {
                    if cache.failed.take().is_some() {
                        tracing::info!("the keys for tokens can be fetched again");
                    }
                    if keys.is_empty() {
                        tracing::warn!(
                            "no published key for tokens is usable: every token is rejected; check the key set and authentication.jwt.algorithms"
                        );
                    }
                    (cache.keys, cache.fetched) = (keys, Some(Instant::now()));
                }
                Err(why) => {
                    tracing::warn!(%why, "the keys for tokens cannot be fetched");
                    cache.failed = Some(why);
                }
            }
            drop(cache);
            done.send_replace(true);
        });
        Some(in_progress)
    }

    async fn fetch(&self) -> Result<Vec<Key>, String> {
        let response = self.http.get(SET_BYTES_MAX).await.map_err(|error| error.to_string())?;
        if response.status != 200 {
            return Err(format!("the server that publishes them answered {}", response.status));
        }
        let Set { keys } = serde_json::from_slice(&response.body)
            .map_err(|error| format!("the response is not a JSON Web Key Set ({})", json_error(&error)))?;
        if keys.len() > KEYS_MAX {
            return Err(format!("{} keys are published, above the limit of {KEYS_MAX}", keys.len()));
        }
        Ok(keys.into_iter().filter_map(|key| self.key(key)).collect())
    }

    /// Parses a published key; `None` if it is unusable. The other keys stay usable.
    fn key(&self, text: &RawValue) -> Option<Key> {
        // A lone surrogate is harmless here: other fields are ignored, and the id only selects a key.
        let jwk: Jwk = serde_json::from_str(&surrogates::replace_lone_surrogates(text.get())).ok()?;
        let common = &jwk.common;
        let for_signatures = common.public_key_use.as_ref().is_none_or(|what| *what == PublicKeyUse::Signature)
            && common.key_operations.as_ref().is_none_or(|all| all.contains(&KeyOperations::Verify));
        if !for_signatures {
            return None;
        }
        let fitting: &[Algorithm] = match &jwk.algorithm {
            AlgorithmParameters::RSA(rsa) if modulus_bits(&rsa.n).is_some_and(|bits| RSA_BITS.contains(&bits)) => RSA,
            AlgorithmParameters::EllipticCurve(curve) => match curve.curve {
                EllipticCurve::P256 => &[Algorithm::ES256],
                EllipticCurve::P384 => &[Algorithm::ES384],
                _ => return None,
            },
            AlgorithmParameters::OctetKeyPair(pair) if pair.curve == EllipticCurve::Ed25519 => &[Algorithm::EdDSA],
            // Also shared secrets, which are not secret once published.
            _ => return None,
        };
        // A key with an unknown `alg` is for another purpose.
        let declared = common.key_algorithm.as_ref().map(|name| name.to_string().parse::<Algorithm>().ok());
        let is_usable = |algorithm: &Algorithm| {
            fitting.contains(algorithm) && declared.as_ref().is_none_or(|declared| declared.as_ref() == Some(algorithm))
        };
        let algorithms: Vec<_> = self.algorithms.iter().copied().filter(is_usable).collect();
        let decoding = DecodingKey::from_jwk(&jwk).ok()?;
        (!algorithms.is_empty()).then(|| Key { id: jwk.common.key_id, algorithms, decoding: Arc::new(decoding) })
    }
}

impl fmt::Debug for Jwks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Jwks").field("http", &self.http).finish_non_exhaustive()
    }
}

/// Returns the size in bits of a number in base64url without padding; `None` if the text is invalid.
fn modulus_bits(text: &str) -> Option<usize> {
    let digit = |byte: u8| -> Option<u32> {
        Some(match byte {
            b'A'..=b'Z' => u32::from(byte - b'A'),
            b'a'..=b'z' => u32::from(byte - b'a') + 26,
            b'0'..=b'9' => u32::from(byte - b'0') + 52,
            b'-' => 62,
            b'_' => 63,
            _ => return None,
        })
    };
    let digits = text.bytes().map(digit).collect::<Option<Vec<_>>>()?;
    let first = digits.iter().position(|digit| *digit > 0)?;
    // The last digit may have padding bits beyond the last byte.
    let all = digits.len() * 6 / 8 * 8;
    all.checked_sub(first * 6 + (digits[first].leading_zeros() as usize - 26))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modulus_bits_count_from_first_set_bit() {
        for (text, bits) in [("AQ", Some(1)), ("gA", Some(8)), ("AAE", Some(1)), ("AQAB", Some(17)), ("_w", Some(8))] {
            assert_eq!(modulus_bits(text), bits, "{text}");
        }
        for none in ["", "A", "AA", "a b", "é", "=="] {
            assert_eq!(modulus_bits(none), None, "{none}");
        }
    }
}
