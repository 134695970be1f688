//! Loads the key that verifies tokens: a secret, or a public key from a file.

use std::path::Path;

use jsonwebtoken::{Algorithm, DecodingKey, crypto::aws_lc};

use super::AuthSetupError;
use crate::{config, util::read_bounded::read_bounded};

/// Size limit of a key file in bytes. A public key has a few hundred.
pub const KEY_FILE_BYTES_MAX: u64 = 64 * 1024;

/// Sizes of RSA keys that the provider supports, in bits. With any other size every token would be rejected.
pub(super) const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;

const HMAC: &[Algorithm] = &[Algorithm::HS256, Algorithm::HS384, Algorithm::HS512];
pub(super) const RSA: &[Algorithm] =
    &[Algorithm::RS256, Algorithm::RS384, Algorithm::RS512, Algorithm::PS256, Algorithm::PS384, Algorithm::PS512];

/// Holds a key, its kind, and the algorithms that match it.
pub(super) struct Key {
    pub decoding: DecodingKey,
    /// Name for error messages: "a secret", "an RSA key".
    kind: &'static str,
    fitting: &'static [Algorithm],
}

impl Key {
    pub fn new(jwt: &config::Jwt) -> Result<Self, AuthSetupError> {
        match (&jwt.secret, &jwt.key_file) {
            (Some(secret), None) if secret.is_empty() => Err(setup("authentication.jwt.secret must not be empty")),
            (Some(secret), None) => {
                let decoding = DecodingKey::from_secret(secret.as_bytes());
                Ok(Self { decoding, kind: "a secret", fitting: HMAC })
            }
            (None, Some(path)) => Self::from_file(path)
                .map_err(|text| setup(format!("authentication.jwt.keyFile, {}: {text}", path.display()))),
            _ => Err(setup("authentication.jwt needs either a secret or a keyFile, or else jwks")),
        }
    }

    fn from_file(path: &Path) -> Result<Self, String> {
        let pem = read_bounded(path, KEY_FILE_BYTES_MAX)
            .map_err(|error| format!("the key cannot be read: {error}; check the path and its permissions"))?;
        if pem.len() as u64 > KEY_FILE_BYTES_MAX {
            return Err(format!(
                "a key file may have at most {KEY_FILE_BYTES_MAX} bytes; this is probably another file"
            ));
        }
        let has = |words: &[u8]| pem.windows(words.len()).any(|window| window == words);
        if has(b"PRIVATE KEY-----") {
            return Err(
                "this is a private key, which a server that only verifies tokens should not have; write its public key to \
                a file: openssl pkey -in PRIVATE -pubout -out PUBLIC"
                    .into(),
            );
        }
        if has(b"BEGIN CERTIFICATE-----") {
            return Err("this is a certificate; write its public key to a file: openssl x509 -in CERTIFICATE -noout \
                        -pubkey -out PUBLIC"
                .into());
        }
        Self::from_pem(&pem)
    }

    fn from_pem(pem: &[u8]) -> Result<Self, String> {
        if let Ok(decoding) = DecodingKey::from_rsa_pem(pem) {
            let bits = rsa_bits(&decoding).ok_or("the RSA key is damaged; export it again")?;
            if !RSA_BITS.contains(&bits) {
                let (least, most) = RSA_BITS.into_inner();
                return Err(format!("the RSA key has {bits} bits and must have {least} to {most}"));
            }
            return Ok(Self { decoding, kind: "an RSA key", fitting: RSA });
        }
        if let Ok(decoding) = DecodingKey::from_ec_pem(pem) {
            // An uncompressed point: one byte and two coordinates.
            let (kind, fitting): (_, &[Algorithm]) = match decoding.try_get_as_bytes().map(<[u8]>::len) {
                Ok(65) => ("a key on P-256", &[Algorithm::ES256]),
                Ok(97) => ("a key on P-384", &[Algorithm::ES384]),
                _ => return Err("the EC key must be on P-256 or P-384, with an uncompressed point".into()),
            };
            return Ok(Self { decoding, kind, fitting });
        }
        if let Ok(decoding) = DecodingKey::from_ed_pem(pem) {
            return Ok(Self { decoding, kind: "an Ed25519 key", fitting: &[Algorithm::EdDSA] });
        }
        Err("the file has no public key; it must be PEM, as `openssl pkey -pubout` writes it, of RSA, EC or Ed25519"
            .into())
    }

    /// Parses algorithms that work with public keys, the only kind that is published.
    pub fn public_algorithms(names: &[String]) -> Result<Vec<Algorithm>, AuthSetupError> {
        let find = |name: &String| {
            let algorithm = name.parse().ok().filter(|algorithm| !HMAC.contains(algorithm));
            algorithm.ok_or_else(|| {
                let name = name.escape_debug();
                setup(format!("authentication.jwt.algorithms has \"{name}\", which does not match published keys"))
            })
        };
        if names.is_empty() {
            return Err(setup("authentication.jwt.algorithms must name the algorithms to accept with published keys"));
        }
        names.iter().map(find).collect()
    }

    /// Parses algorithms that match the key. With a secret and no names: HS256.
    pub fn algorithms(&self, names: &[String]) -> Result<Vec<Algorithm>, AuthSetupError> {
        let fitting = || self.fitting.iter().map(|algorithm| format!("{algorithm:?}")).collect::<Vec<_>>().join(", ");
        if names.is_empty() && self.fitting == HMAC {
            return Ok(vec![Algorithm::HS256]);
        }
        if names.is_empty() {
            return Err(setup(format!(
                "authentication.jwt.algorithms must name the algorithms to accept; with {} it may have {}",
                self.kind,
                fitting()
            )));
        }
        let find = |name: &String| {
            let algorithm = name.parse().ok().filter(|algorithm| self.fitting.contains(algorithm));
            algorithm.ok_or_else(|| {
                setup(format!(
                    "authentication.jwt.algorithms has \"{}\", which does not match {}; it may have {}",
                    name.escape_debug(),
                    self.kind,
                    fitting()
                ))
            })
        };
        names.iter().map(find).collect()
    }
}

/// Returns the size of the modulus in bits; `None` if this is not a valid key.
fn rsa_bits(key: &DecodingKey) -> Option<usize> {
    let components = aws_lc::DEFAULT_PROVIDER.key_utils.rsa_pub_components_from_public_key;
    let (modulus, _) = components(key.try_get_as_bytes().ok()?).ok()?;
    let first = modulus.iter().position(|byte| *byte != 0)?;
    let rest = &modulus[first..];
    Some(rest.len() * 8 - rest[0].leading_zeros() as usize)
}

fn setup(text: impl Into<String>) -> AuthSetupError {
    AuthSetupError(text.into())
}
