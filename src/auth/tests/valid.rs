//! Tests valid tokens and the users they identify.

use jsonwebtoken::{Algorithm, EncodingKey};

use super::{
    craft::{by_key, hs256, hs256_with, signed},
    *,
};

#[test]
fn each_algorithm_is_accepted_with_matching_key() {
    for (algorithm, name) in [(Algorithm::HS256, "HS256"), (Algorithm::HS384, "HS384"), (Algorithm::HS512, "HS512")] {
        let jwt = config::Jwt { algorithms: vec![name.into()], ..with_secret() };
        let key = EncodingKey::from_secret(SECRET.as_bytes());
        let token = signed(&json!({ "alg": name }).to_string(), r#"{"id":"alice"}"#, &key, algorithm);
        assert_eq!(check(&jwt, &token).unwrap().id.as_str(), "alice", "{name}");
    }
    for (key, name, algorithm) in [
        ("rsa", "RS256", Algorithm::RS256),
        ("rsa", "RS384", Algorithm::RS384),
        ("rsa", "RS512", Algorithm::RS512),
        ("rsa", "PS256", Algorithm::PS256),
        ("rsa", "PS384", Algorithm::PS384),
        ("rsa", "PS512", Algorithm::PS512),
        ("ec256", "ES256", Algorithm::ES256),
        ("ec384", "ES384", Algorithm::ES384),
        ("ed", "EdDSA", Algorithm::EdDSA),
    ] {
        let token = by_key(key, algorithm);
        assert_eq!(check(&with_key(key, &[name]), &token).unwrap().id.as_str(), "alice", "{name}");
    }
    let several = with_key("rsa", &["RS256", "PS512"]);
    for algorithm in [Algorithm::RS256, Algorithm::PS512] {
        assert!(check(&several, &by_key("rsa", algorithm)).is_ok(), "{algorithm:?}");
    }
}

#[test]
fn user_id_is_read_from_id_then_sub_or_configured_claim() {
    for (claims, id) in [
        (json!({ "id": "alice" }), "alice"),
        (json!({ "id": "alice", "sub": "bob" }), "alice"),
        (json!({ "sub": "bob" }), "bob"),
        (json!({ "sub": 43 }), "43"),
        (json!({ "id": 42 }), "42"),
        (json!({ "id": -7 }), "-7"),
        (json!({ "id": u64::MAX }), "18446744073709551615"),
        (json!({ "id": "名前" }), "名前"),
    ] {
        let identity = check(&with_secret(), &hs256(&claims)).unwrap();
        assert_eq!(identity.id.as_str(), id, "{claims}");
        assert_eq!(Value::Object(identity.user), json!({ "id": id }), "{claims}");
        assert_eq!(identity.expires, None);
    }
    let jwt = config::Jwt { id_claim: Some("uid".into()), ..with_secret() };
    assert_eq!(check(&jwt, &hs256(&json!({ "uid": "carol", "id": "alice" }))).unwrap().id.as_str(), "carol");
    assert!(
        check(&jwt, &hs256(&json!({ "id": "alice", "sub": "alice" }))).is_err(),
        "the configured claim has no fallback"
    );
}

#[test]
fn user_claim_is_merged_and_cannot_change_id() {
    let jwt = config::Jwt { user_claim: Some("user".into()), ..with_secret() };
    for (claims, user) in [
        (json!({ "id": "a", "user": { "name": "A", "id": "root" } }), json!({ "id": "a", "name": "A" })),
        (json!({ "id": "a" }), json!({ "id": "a" })),
        (json!({ "id": "a", "user": null }), json!({ "id": "a" })),
    ] {
        assert_eq!(Value::Object(check(&jwt, &hs256(&claims)).unwrap().user), user, "{claims}");
    }
    let identity = check(&with_secret(), &hs256(&json!({ "id": "a", "user": { "name": "A" } }))).unwrap();
    assert_eq!(Value::Object(identity.user), json!({ "id": "a" }), "the user claim is read only if configured");
}

#[test]
fn lone_surrogate_in_claim_is_forwarded_or_ignored_and_rejected_in_id() {
    let check = |jwt: &config::Jwt, claims: &str| check(jwt, &hs256_with(r#"{"alg":"HS256","typ":"JWT"}"#, claims));
    let jwt = config::Jwt { user_claim: Some("user".into()), issuer: Some("us".into()), ..with_secret() };
    let identity = check(&jwt, r#"{"id":"a","iss":"us","nick":"\ud83d","user":{"name":"\ude00"}}"#).unwrap();
    assert_eq!(identity.user_text.unwrap(), r#"{"id":"a","name":"\ude00"}"#);
    assert_eq!(Value::Object(identity.user), json!({ "id": "a", "name": "\u{fffd}" }));
    assert!(check(&jwt, r#"{"id":"a","iss":"us","nick":"\ud83d"}"#).unwrap().user_text.is_none());
    for claims in [r#"{"id":"a\ud83d","iss":"us"}"#, r#"{"id":"a","iss":"us\ud83d"}"#] {
        let error = check(&jwt, claims).unwrap_err().to_string();
        assert!(error.contains("a lone surrogate"), "{claims}: {error}");
    }
}

#[test]
fn issuer_and_audience_are_checked_only_if_configured() {
    let claims = json!({ "id": "a", "iss": "us", "aud": ["them", "us"] });
    assert!(check(&with_secret(), &hs256(&claims)).is_ok());
    let jwt = config::Jwt { issuer: Some("us".into()), audience: Some("us".into()), ..with_secret() };
    assert!(check(&jwt, &hs256(&claims)).is_ok());
    assert!(check(&jwt, &hs256(&json!({ "id": "a", "iss": "us", "aud": "us" }))).is_ok());
}

#[test]
fn token_is_valid_from_nbf_until_exp_plus_leeway() {
    let leeway = config::Jwt { leeway: Duration::from_secs(5), ..with_secret() };
    let identity = check(&with_secret(), &hs256(&json!({ "id": "a", "nbf": NOW, "exp": NOW + 1 }))).unwrap();
    assert_eq!(identity.expires, Some(now() + Duration::from_secs(1)));
    let identity = check(&leeway, &hs256(&json!({ "id": "a", "nbf": NOW + 5, "exp": NOW - 4 }))).unwrap();
    assert_eq!(
        identity.expires,
        Some(now() + Duration::from_secs(1)),
        "the identity expires with the token: exp plus leeway"
    );
    assert!(check(&with_secret(), &hs256(&json!({ "id": "a", "exp": 1_700_000_000.5 }))).is_ok());
}

/// Issuers of existing tokens set these fields.
#[test]
fn other_header_fields_are_ignored() {
    for header in [
        r#"{"alg":"HS256"}"#,
        r#"{"typ":"at+jwt","alg":"HS256","kid":"../../etc/passwd"}"#,
        r#"{"alg":"HS256","jku":"https://example.org/keys","x5u":"https://example.org/c"}"#,
    ] {
        assert!(check(&with_secret(), &hs256_with(header, r#"{"id":"a"}"#)).is_ok(), "{header}");
    }
}

#[test]
fn issued_token_is_accepted_with_its_claims() {
    let alice = UserId::new("alice").unwrap();
    for algorithm in ["HS256", "HS384", "HS512"] {
        let claims = Map::from_iter([("id".to_owned(), "mallory".into()), ("user".to_owned(), json!({ "name": "A" }))]);
        let token = issue(SECRET, algorithm, &alice, Some(Duration::from_millis(59_001)), claims).unwrap();
        let jwt = config::Jwt { algorithms: vec![algorithm.into()], user_claim: Some("user".into()), ..with_secret() };
        let identity = check_at(&Jwt::new(&jwt).unwrap(), &data(&token), SystemTime::now()).unwrap();
        assert_eq!(Value::Object(identity.user), json!({ "id": "alice", "name": "A" }));
        let left = identity.expires.unwrap().duration_since(SystemTime::now()).unwrap();
        assert!(left > Duration::from_secs(50) && left <= Duration::from_secs(60), "{left:?}");
    }
    let endless = issue(SECRET, "HS256", &alice, None, Map::new()).unwrap();
    assert_eq!(check(&with_secret(), &endless).unwrap().expires, None);
    for (secret, algorithm, ttl) in [
        (SECRET, "RS256", None),
        (SECRET, "none", None),
        ("", "HS256", None),
        ("fifteen-bytes-x", "HS256", None),
        (SECRET, "HS256", Some(Duration::MAX)),
    ] {
        assert!(
            matches!(issue(secret, algorithm, &alice, ttl, Map::new()), Err(AuthError::Rejected(_))),
            "{algorithm}"
        );
    }
}
