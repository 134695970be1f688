//! Public keys from where they are published: a JSON Web Key Set, fetched when it is needed and kept.
//!
//! Whoever shows a token cannot make the server ask more than once per `retryInterval`, whatever key it names; nor keep it
//! from asking by going away, since what is fetched is fetched by a task of its own. What comes replaces what was there:
//! a key that is not published any more is not used any more. While nothing comes, what was there goes on to be used, for
//! `maxStale`.

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
    AuthError, AuthSetupError, refused,
    verification_key::{RSA, RSA_BITS},
};
use crate::{
    config, failpoints,
    http_client::Outgoing,
    logging::{json_error, panic_text},
    message::surrogates,
};

/// Largest set, in bytes.
const SET_BYTES_MAX: usize = 256 << 10;

/// Keys in it. A set with more is not taken.
const KEYS_MAX: usize = 100;

/// A set of keys. See the module.
pub(super) struct Jwks {
    outgoing: Outgoing,
    refresh_interval: Duration,
    retry_interval: Duration,
    max_stale: Duration,
    algorithms: Vec<Algorithm>,
    inside: Mutex<Inside>,
}

#[derive(Default)]
struct Inside {
    keys: Vec<Key>,
    /// When those came.
    fetched: Option<Instant>,
    /// When the last request was made.
    asked: Option<Instant>,
    /// Says true when the request under way has come to its end.
    under_way: Option<watch::Receiver<bool>>,
    /// Why the last request brought nothing, if it did not.
    failed: Option<String>,
    /// That was a panic.
    panicked: bool,
}

/// A key that may be used.
#[derive(Clone)]
struct Key {
    id: Option<String>,
    /// Those that are configured, go with its kind, and are what it says it is for.
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
        let outgoing = Outgoing::new(&jwks.url, jwks.timeout, jwks.allow_private);
        let jwks = Arc::new(Self {
            outgoing: outgoing.map_err(|why| AuthSetupError(format!("authentication.jwt.jwks.url {why}")))?,
            refresh_interval: jwks.refresh_interval,
            retry_interval: jwks.retry_interval,
            max_stale: jwks.max_stale,
            algorithms,
            inside: Mutex::default(),
        });
        // At once, where that can be: the first client need not wait, and what is wrong is said when the server starts.
        if tokio::runtime::Handle::try_current().is_ok() {
            _ = jwks.ask();
        }
        Ok(jwks)
    }

    /// The key of this name, or the only one that goes with the algorithm where none is named.
    pub async fn find(self: &Arc<Self>, id: Option<&str>, algorithm: Algorithm) -> Result<Arc<DecodingKey>, AuthError> {
        if !self.algorithms.contains(&algorithm) {
            return Err(refused("the token's algorithm is not one of those configured"));
        }
        let (found, age) = self.look(id, algorithm);
        if let Some(found) = found {
            if age >= self.refresh_interval {
                // What is there will do until then.
                _ = self.ask();
            }
            return Ok(found);
        }
        // Not there, or too old. It may have been published since.
        if let Some(mut under_way) = self.ask() {
            // Ends with an error where the task has ended without a word, which is an end as well.
            _ = under_way.wait_for(|over| *over).await;
        }
        let (found, age) = self.look(id, algorithm);
        match found {
            Some(found) => Ok(found),
            None if age >= self.max_stale => {
                let why = self.inside.lock().failed.clone().unwrap_or_else(|| "they did not come".into());
                Err(AuthError::Unavailable(format!("the keys for tokens: {why}")))
            }
            None if id.is_none() => {
                Err(refused("the token does not name its key (kid), and not exactly one goes with its algorithm"))
            }
            None => Err(refused("the token names a key (kid) that is not published for its algorithm")),
        }
    }

    /// Why the last request failed, where a panic ended it.
    pub fn failed_task(&self) -> Option<String> {
        let inside = self.inside.lock();
        inside.failed.as_ref().filter(|_| inside.panicked).map(|why| format!("the keys for tokens: {why}"))
    }

    /// What is there, and how old it is.
    fn look(&self, id: Option<&str>, algorithm: Algorithm) -> (Option<Arc<DecodingKey>>, Duration) {
        let inside = self.inside.lock();
        let age = inside.fetched.map_or(Duration::MAX, |fetched| fetched.elapsed());
        if age >= self.max_stale {
            return (None, age);
        }
        let mut fitting = inside.keys.iter().filter(|key| key.algorithms.contains(&algorithm));
        let found = match id {
            Some(_) => fitting.find(|key| key.id.as_deref() == id),
            None => fitting.next().filter(|_| fitting.next().is_none()),
        };
        (found.map(|key| key.decoding.clone()), age)
    }

    /// Fetches the set, unless that was tried too short a while ago; `None` then.
    fn ask(self: &Arc<Self>) -> Option<watch::Receiver<bool>> {
        let mut inside = self.inside.lock();
        if inside.under_way.is_some() {
            return inside.under_way.clone();
        }
        if inside.asked.is_some_and(|asked| asked.elapsed() < self.retry_interval) {
            return None;
        }
        inside.asked = Some(Instant::now());
        let (over, under_way) = watch::channel(false);
        inside.under_way = Some(under_way.clone());
        drop(inside);
        let jwks = self.clone();
        // Of its own: the client that was the reason may go away.
        tokio::spawn(async move {
            // Caught, or no request would ever be made again.
            let fetched = AssertUnwindSafe(failpoints::until_panic("authentication", Box::pin(jwks.fetch())))
                .catch_unwind()
                .await;
            let panicked = fetched.is_err();
            let fetched = fetched.unwrap_or_else(|panic| {
                let why = format!("the task that fetches them panicked: {}", panic_text(panic.as_ref()));
                tracing::error!(why, "a task of the server ended unexpectedly; the next request starts it again");
                Err(why)
            });
            let mut inside = jwks.inside.lock();
            (inside.under_way, inside.panicked) = (None, panicked);
            match fetched {
                Ok(keys) => {
                    if inside.failed.take().is_some() {
                        tracing::info!("the keys for tokens can be fetched again");
                    }
                    if keys.is_empty() {
                        tracing::warn!("of the published keys for tokens none can be used: every token is refused");
                    }
                    (inside.keys, inside.fetched) = (keys, Some(Instant::now()));
                }
                Err(why) => {
                    tracing::warn!(%why, "the keys for tokens cannot be fetched");
                    inside.failed = Some(why);
                }
            }
            drop(inside);
            over.send_replace(true);
        });
        Some(under_way)
    }

    async fn fetch(&self) -> Result<Vec<Key>, String> {
        let answer = self.outgoing.get(SET_BYTES_MAX).await.map_err(|error| error.to_string())?;
        if answer.status != 200 {
            return Err(format!("where they are published, the answer is {}", answer.status));
        }
        let Set { keys } = serde_json::from_slice(&answer.body)
            .map_err(|error| format!("what is published is no JSON Web Key Set ({})", json_error(&error)))?;
        if keys.len() > KEYS_MAX {
            return Err(format!("{} keys are published, and {KEYS_MAX} are allowed", keys.len()));
        }
        Ok(keys.into_iter().filter_map(|key| self.key(key)).collect())
    }

    /// What can be used of a published key; one that cannot does not spoil the others.
    fn key(&self, text: &RawValue) -> Option<Key> {
        // Half of a surrogate pair in what is said beside the key does no harm, and its id only selects among the keys.
        let jwk: Jwk = serde_json::from_str(&surrogates::replace_halves(text.get())).ok()?;
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
            // Among them shared secrets, which are none when they are published.
            _ => return None,
        };
        // What is said of it and not known here is for something else.
        let said = common.key_algorithm.as_ref().map(|said| said.to_string().parse::<Algorithm>().ok());
        let goes = |algorithm: &Algorithm| {
            fitting.contains(algorithm) && said.as_ref().is_none_or(|said| said.as_ref() == Some(algorithm))
        };
        let algorithms: Vec<_> = self.algorithms.iter().copied().filter(goes).collect();
        let decoding = DecodingKey::from_jwk(&jwk).ok()?;
        (!algorithms.is_empty()).then(|| Key { id: jwk.common.key_id, algorithms, decoding: Arc::new(decoding) })
    }
}

impl fmt::Debug for Jwks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Jwks").field("outgoing", &self.outgoing).finish_non_exhaustive()
    }
}

/// Bits of a number in base64url without padding; `None` where it is none.
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
    // Of the bits that the digits have, the last ones may be beyond the last byte.
    let all = digits.len() * 6 / 8 * 8;
    all.checked_sub(first * 6 + (digits[first].leading_zeros() as usize - 26))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_size_of_a_key_is_counted_from_its_first_bit() {
        for (text, bits) in [("AQ", Some(1)), ("gA", Some(8)), ("AAE", Some(1)), ("AQAB", Some(17)), ("_w", Some(8))] {
            assert_eq!(modulus_bits(text), bits, "{text}");
        }
        for none in ["", "A", "AA", "a b", "é", "=="] {
            assert_eq!(modulus_bits(none), None, "{none}");
        }
    }
}
