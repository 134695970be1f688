//! Makes tokens by hand, so that they can be invalid in any way.

use std::fs;

use jsonwebtoken::{Algorithm, EncodingKey, crypto::sign};
use serde_json::{Value, json};

use super::{SECRET, key_path};

/// Encodes as base64url without padding.
pub fn base64(bytes: impl AsRef<[u8]>) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::new();
    for chunk in bytes.as_ref().chunks(3) {
        let word = chunk.iter().fold(0_usize, |word, byte| word << 8 | usize::from(*byte)) << (8 * (3 - chunk.len()));
        for digit in 0..=chunk.len() {
            text.push(DIGITS[word >> (18 - 6 * digit) & 63].into());
        }
    }
    text
}

/// Signs header and claims as they are.
pub fn signed(header: &str, claims: &str, key: &EncodingKey, algorithm: Algorithm) -> String {
    super::super::jwt::Jwt::new(&super::with_secret()).unwrap();
    let message = format!("{}.{}", base64(header), base64(claims));
    let signature = sign(message.as_bytes(), key, algorithm).unwrap();
    format!("{message}.{signature}")
}

/// Signs claims with the secret by HS256, under this header.
pub fn hs256_with(header: &str, claims: &str) -> String {
    signed(header, claims, &EncodingKey::from_secret(SECRET.as_bytes()), Algorithm::HS256)
}

/// Signs claims with the secret by HS256.
pub fn hs256(claims: &Value) -> String {
    hs256_with(r#"{"alg":"HS256","typ":"JWT"}"#, &claims.to_string())
}

/// Reads a private key of `data/test_keys`.
pub fn private(name: &str) -> EncodingKey {
    let pem = fs::read(key_path(&format!("{name}.private.pem"))).unwrap();
    match name {
        "ed" => EncodingKey::from_ed_pem(&pem),
        "ec256" | "ec384" => EncodingKey::from_ec_pem(&pem),
        _ => EncodingKey::from_rsa_pem(&pem),
    }
    .unwrap()
}

/// Signs a token for alice with a private key.
pub fn by_key(name: &str, algorithm: Algorithm) -> String {
    let header = json!({ "alg": algorithm }).to_string();
    signed(&header, r#"{"id":"alice"}"#, &private(name), algorithm)
}
