//! Tests authentication.

mod craft;
mod invalid;
mod jwks;
mod setup;
mod valid;
mod webhook;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::FutureExt as _;
use serde_json::{Map, Value, json};

use super::*;
use crate::message::UserId;

/// "Now" in these tests, in seconds since 1970.
const NOW: u64 = 1_700_000_000;

const SECRET: &str = "0123456789abcdef0123456789abcdef";

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(NOW)
}

fn empty_jwt() -> config::Jwt {
    config::Jwt {
        secret: None,
        key_file: None,
        jwks: None,
        algorithms: Vec::new(),
        id_claim: None,
        user_claim: None,
        issuer: None,
        audience: None,
        leeway: Duration::ZERO,
    }
}

/// Configures a secret.
fn with_secret() -> config::Jwt {
    config::Jwt { secret: Some(SECRET.into()), algorithms: vec!["HS256".into()], ..empty_jwt() }
}

/// Configures a key file of `data/test_keys`.
fn with_key(name: &str, algorithms: &[&str]) -> config::Jwt {
    let key_file = Some(key_path(&format!("{name}.public.pem")).into());
    config::Jwt { key_file, algorithms: algorithms.iter().map(|&name| name.to_owned()).collect(), ..empty_jwt() }
}

fn key_path(file: &str) -> String {
    format!("{}/data/test_keys/{file}", env!("CARGO_MANIFEST_DIR"))
}

/// Makes the data of an authentication frame.
fn data(token: &str) -> Map<String, Value> {
    Map::from_iter([("token".to_owned(), token.into()), ("shouldSync".to_owned(), true.into())])
}

fn check(jwt: &config::Jwt, token: &str) -> Result<Identity, AuthError> {
    check_at(&Jwt::new(jwt).unwrap(), &data(token), now())
}

/// Authenticates without waiting, which works with a configured key.
fn check_at(jwt: &Jwt, data: &Map<String, Value>, now: SystemTime) -> Result<Identity, AuthError> {
    jwt.check(data, now).now_or_never().unwrap()
}

#[tokio::test]
async fn insecure_token_is_the_user_id() {
    let alice = Insecure.authenticate(&data("alice")).await.unwrap();
    assert_eq!(alice.id.as_str(), "alice");
    assert_eq!(Value::Object(alice.user), json!({ "id": "alice" }));
    assert_eq!(alice.expires, None);
    let long = "x".repeat(300);
    for wrong in
        [json!({}), json!({ "token": 7 }), json!({ "token": "" }), json!({ "token": "a\0b" }), json!({ "token": long })]
    {
        let Value::Object(data) = wrong else { unreachable!("objects above") };
        assert!(matches!(Insecure.authenticate(&data).await, Err(AuthError::Rejected(_))), "{data:?}");
    }
}

#[test]
fn only_configured_api_keys_are_accepted() {
    let keys = vec!["0123456789abcdef".into(), "fedcba9876543210".into()];
    let keys = ApiKeys::new(&config::Api { keys, ..config::Api::default() });
    assert!(keys.check("0123456789abcdef") && keys.check("fedcba9876543210"));
    for wrong in
        ["", "0123456789abcde", "0123456789abcdef0", "0123456789abcdeF", "0123456789abcdef\0", "fedcba9876543211"]
    {
        assert!(!keys.check(wrong), "{wrong:?}");
    }
    assert!(!ApiKeys::new(&config::Api::default()).check(""), "without keys every request is rejected");
    assert!(!format!("{keys:?}").contains("0123"));
}
