//! Tests keys of a JWKS and their replacement.

use std::time::Duration;

use jsonwebtoken::{Algorithm, EncodingKey, jwk::Jwk};
use serde_json::{Value, json};

use super::{
    craft::{private, signed},
    *,
};
use crate::http_client::receiver::{Receiver, Response};

const ALGORITHMS: &[&str] = &["RS256", "ES256", "EdDSA"];

/// Converts a key of `data/test_keys` to its published form.
fn published(name: &str, id: &str, algorithm: Algorithm) -> Value {
    // The conversion needs an installed provider.
    Jwt::new(&with_secret()).unwrap();
    let mut jwk = Jwk::from_encoding_key(&private(name), algorithm).unwrap();
    jwk.common.key_id = Some(id.to_owned());
    serde_json::to_value(jwk).unwrap()
}

fn set(keys: &[Value]) -> Response {
    Response::json(json!({ "keys": keys }))
}

/// Signs a token for alice with a key of `data/test_keys`.
fn token(name: &str, id: Option<&str>, algorithm: Algorithm) -> String {
    let mut header = json!({ "alg": algorithm });
    if let Some(id) = id {
        header["kid"] = id.into();
    }
    signed(&header.to_string(), r#"{"id":"alice"}"#, &private(name), algorithm)
}

fn configured(receiver: &Receiver, algorithms: &[&str], change: impl FnOnce(&mut config::Jwks)) -> config::Jwt {
    let mut jwks = config::Jwks { url: receiver.url(), allow_private: true, ..config::Jwks::default() };
    change(&mut jwks);
    let algorithms = algorithms.iter().map(|&name| name.to_owned()).collect();
    config::Jwt { jwks: Some(jwks), algorithms, ..empty_jwt() }
}

async fn is_alice(jwt: &Jwt, token: &str) -> Result<(), AuthError> {
    let identity = jwt.check(&data(token), now()).await?;
    assert_eq!(identity.id.as_str(), "alice");
    Ok(())
}

fn assert_rejected_with(result: Result<(), AuthError>, expected: &str) {
    let Err(AuthError::Rejected(reason)) = &result else {
        panic!("expected a rejection with {expected:?}, not {result:?}")
    };
    assert!(reason.contains(expected), "expected {expected:?} in {reason:?}");
}

#[tokio::test]
async fn published_key_with_lone_surrogate_leaves_others_usable() {
    let receiver = Receiver::start();
    let good = published("rsa", "rsa", Algorithm::RS256);
    let bad = good.to_string().replacen("\"rsa\"", r#""\ud83d""#, 1);
    assert_ne!(bad, good.to_string());
    // In other fields of a key it is ignored.
    let named = good.to_string().replacen('{', r#"{"name":"\ud83d","#, 1);
    receiver.respond_with(Response::json(format!(r#"{{"keys":[{bad},{named}],"name":"\ud83d"}}"#)));
    let jwt = Jwt::new(&configured(&receiver, ALGORITHMS, |_| ())).unwrap();
    is_alice(&jwt, &token("rsa", Some("rsa"), Algorithm::RS256)).await.unwrap();
}

#[tokio::test]
async fn token_is_verified_with_its_published_key_and_algorithm() {
    let receiver = Receiver::start();
    let rsa = published("rsa", "rsa", Algorithm::RS256);
    let mut untyped = published("rsa", "untyped", Algorithm::RS256);
    untyped.as_object_mut().unwrap().remove("alg");
    let mut for_encryption = rsa.clone();
    (for_encryption["use"], for_encryption["kid"]) = ("enc".into(), "enc".into());
    let secret = json!({ "kty": "oct", "kid": "oct", "alg": "HS256", "k": "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0" });
    let mut small = rsa.clone();
    (small["n"], small["kid"]) = ("AQAB".into(), "small".into());
    receiver.respond_with(set(&[
        json!("nonsense"),
        json!({ "kty": "unknown", "kid": "new" }),
        rsa.clone(),
        untyped,
        for_encryption,
        secret,
        small,
        published("ec256", "ec", Algorithm::ES256),
        published("ed", "ed", Algorithm::EdDSA),
        published("ec384", "not-configured", Algorithm::ES384),
    ]));
    let jwt = Jwt::new(&configured(&receiver, ALGORITHMS, |_| {})).unwrap();
    for (name, id, algorithm) in [
        ("rsa", "rsa", Algorithm::RS256),
        ("rsa", "untyped", Algorithm::RS256),
        ("ec256", "ec", Algorithm::ES256),
        ("ed", "ed", Algorithm::EdDSA),
    ] {
        is_alice(&jwt, &token(name, Some(id), algorithm)).await.unwrap_or_else(|error| panic!("{id}: {error}"));
    }
    // Only one key matches, so it need not be named.
    is_alice(&jwt, &token("ec256", None, Algorithm::ES256)).await.unwrap();

    let not_configured = "algorithm is not one of those configured";
    let not_published = "not published for its algorithm";
    for (token, expected) in [
        (token("rsa", None, Algorithm::RS256), "does not name its key"),
        (token("rsa-other", Some("rsa"), Algorithm::RS256), "signature is invalid"),
        (token("rsa", Some("ec"), Algorithm::RS256), not_published),
        (token("rsa", Some("unknown"), Algorithm::RS256), not_published),
        (token("rsa", Some(""), Algorithm::RS256), not_published),
        (token("rsa", Some("enc"), Algorithm::RS256), not_published),
        (token("rsa", Some("small"), Algorithm::RS256), not_published),
        (token("rsa", Some("rsa"), Algorithm::RS512), not_configured),
        (token("rsa", Some("rsa"), Algorithm::PS256), not_configured),
        (token("ec384", Some("not-configured"), Algorithm::ES384), not_configured),
    ] {
        assert_rejected_with(is_alice(&jwt, &token).await, expected);
    }
    // A public key used as a secret.
    let modulus = rsa["n"].as_str().unwrap();
    for key in [modulus.as_bytes().to_vec(), std::fs::read(key_path("rsa.public.pem")).unwrap()] {
        for id in ["rsa", "oct"] {
            let header = json!({ "alg": "HS256", "kid": id }).to_string();
            let forged = signed(&header, r#"{"id":"alice"}"#, &EncodingKey::from_secret(&key), Algorithm::HS256);
            assert_rejected_with(is_alice(&jwt, &forged).await, not_configured);
        }
    }
    let header = r#"{"alg":"HS256","kid":"oct"}"#;
    let shared = EncodingKey::from_secret(b"secret-secret-secret-secret");
    let forged = signed(header, r#"{"id":"alice"}"#, &shared, Algorithm::HS256);
    assert_rejected_with(is_alice(&jwt, &forged).await, not_configured);
    for none in [r#"{"alg":"none","kid":"rsa"}"#, r#"{"alg":"None","kid":"rsa"}"#, r#"{"kid":"rsa"}"#] {
        let unsigned = format!("{}.{}.", craft::base64(none), craft::base64(r#"{"id":"alice"}"#));
        assert!(matches!(is_alice(&jwt, &unsigned).await, Err(AuthError::Rejected(_))), "{none}");
    }
    assert_eq!(receiver.requests().len(), 1, "one request, whichever key a token names");
    assert!(receiver.requests()[0].line.starts_with("GET /hooks "));
}

#[tokio::test]
async fn new_key_is_fetched_once_and_withdrawn_key_is_rejected() {
    let receiver = Receiver::start();
    let (old, new) = (published("rsa", "old", Algorithm::RS256), published("rsa-other", "new", Algorithm::RS256));
    receiver.respond_with(set(&[old]));
    let retry = Duration::from_secs(60);
    let jwt = Jwt::new(&configured(&receiver, &["RS256"], |jwks| jwks.retry_interval = retry)).unwrap();
    let by_old = token("rsa", Some("old"), Algorithm::RS256);
    let by_new = token("rsa-other", Some("new"), Algorithm::RS256);
    is_alice(&jwt, &by_old).await.unwrap();
    receiver.respond_with(set(&[new]));
    // Within the retry interval no number of unknown keys causes a request.
    for _ in 0..50 {
        assert_rejected_with(is_alice(&jwt, &by_new).await, "not published");
    }
    assert_eq!(receiver.requests().len(), 1);
    is_alice(&jwt, &by_old).await.unwrap();
    // Advances the clock past the interval, however long the steps above took.
    tokio::time::pause();
    tokio::time::advance(retry).await;
    tokio::time::resume();
    let all = futures_util::future::join_all((0..20).map(|_| is_alice(&jwt, &by_new))).await;
    assert!(all.iter().all(Result::is_ok), "{all:?}");
    assert_rejected_with(is_alice(&jwt, &by_old).await, "not published");
    assert_eq!(receiver.requests().len(), 2, "one request for twenty concurrent clients");
}

#[tokio::test]
async fn keys_are_refreshed_in_background_and_kept_until_max_stale() {
    let receiver = Receiver::start();
    receiver.respond_with(set(&[published("ed", "ed", Algorithm::EdDSA)]));
    // Longer than the requests below take on a slow machine.
    let max_stale = Duration::from_secs(3600);
    let configured = configured(&receiver, &["EdDSA"], |jwks| {
        jwks.refresh_interval = Duration::from_millis(50);
        jwks.retry_interval = Duration::from_millis(50);
        jwks.max_stale = max_stale;
        jwks.timeout = Duration::from_secs(1);
    });
    let jwt = Jwt::new(&configured).unwrap();
    let token = token("ed", Some("ed"), Algorithm::EdDSA);
    is_alice(&jwt, &token).await.unwrap();
    // Each of these responses is invalid in another way, and none removes the key.
    let many: Vec<Value> = (0..101).map(|n| json!({ "kty": "unknown", "kid": n.to_string() })).collect();
    receiver.script([
        Response::status(500),
        Response::With(302, format!("location: {}\r\n", receiver.url()), String::new()),
        Response::json("[]"),
        Response::json("{\"keys\":7}"),
        set(&many),
        Response::Silence,
        Response::Close,
        Response::HalfWay(200),
        Response::Endless(200),
    ]);
    receiver.respond_with(Response::status(503));
    let mut requests = 1;
    while requests < 10 {
        is_alice(&jwt, &token).await.unwrap_or_else(|error| panic!("request {requests}: {error}"));
        requests = receiver.requests().len();
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // Advances the clock past `max_stale`.
    tokio::time::pause();
    tokio::time::advance(max_stale).await;
    tokio::time::resume();
    let end = tokio::time::Instant::now() + Duration::from_secs(30);
    let stale = loop {
        match is_alice(&jwt, &token).await {
            Ok(()) => assert!(tokio::time::Instant::now() < end, "the key is still accepted 30 s after max_stale"),
            Err(error) => break error,
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    assert!(matches!(&stale, AuthError::Unavailable(why) if why.contains("the keys for tokens")), "{stale}");
    receiver.respond_with(set(&[published("ed", "ed", Algorithm::EdDSA)]));
    while is_alice(&jwt, &token).await.is_err() {
        assert!(tokio::time::Instant::now() < end, "no key was fetched within 30 s");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn disconnecting_client_does_not_cancel_fetch() {
    let receiver = Receiver::start();
    receiver.script([Response::Late(Duration::from_millis(200), 500)]);
    receiver.respond_with(set(&[published("ed", "ed", Algorithm::EdDSA)]));
    let configured = configured(&receiver, &["EdDSA"], |jwks| jwks.retry_interval = Duration::from_millis(1));
    let jwt = Jwt::new(&configured).unwrap();
    let token = token("ed", Some("ed"), Algorithm::EdDSA);
    let cancelled = tokio::time::timeout(Duration::from_millis(20), is_alice(&jwt, &token)).await;
    assert!(cancelled.is_err(), "the first response is late");
    assert!(matches!(is_alice(&jwt, &token).await, Err(AuthError::Unavailable(_))), "the first response is an error");
    tokio::time::sleep(Duration::from_millis(2)).await;
    is_alice(&jwt, &token).await.unwrap();
}

#[test]
fn invalid_jwks_configuration_is_rejected_at_start() {
    let with = |url: &str, algorithms: &[&str]| {
        let jwks = config::Jwks { url: url.to_owned(), ..config::Jwks::default() };
        let algorithms = algorithms.iter().map(|&name| name.to_owned()).collect();
        Jwt::new(&config::Jwt { jwks: Some(jwks), algorithms, ..empty_jwt() }).expect_err(url).to_string()
    };
    assert!(with("https://127.0.0.1/", &["RS256"]).contains("authentication.jwt.jwks.url names a private address"));
    assert!(with("https://example.org/", &["HS256"]).contains("\"HS256\", which does not match published keys"));
    assert!(with("https://example.org/", &["none"]).contains("\"none\""));
    assert!(with("https://example.org/", &[]).contains("must name the algorithms to accept"));
}
