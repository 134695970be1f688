//! Tests tokens that must be rejected: forged, expired, for another audience, or malformed.

use std::fs;

use jsonwebtoken::{Algorithm, EncodingKey};

use super::{
    craft::{base64, by_key, hs256, hs256_with, signed},
    *,
};

const ALICE: &str = r#"{"id":"alice"}"#;

/// Checks that each token is rejected with the expected reason, which quotes nothing of the token.
fn assert_rejected(jwt: &config::Jwt, cases: &[(&str, String, &str)]) {
    let jwt = Jwt::new(jwt).unwrap();
    for (name, token, expected) in cases {
        match check_at(&jwt, &data(token), now()) {
            Err(AuthError::Rejected(reason)) => {
                assert!(reason.contains(expected), "{name}: expected {expected:?}, not {reason:?}");
                for part in token.split('.').filter(|part| part.len() > 8) {
                    assert!(!reason.contains(part), "{name}: the reason quotes the token: {reason}");
                }
                assert!(!reason.contains("alice"), "{name}: the reason quotes a claim: {reason}");
            }
            other => panic!("{name}: expected a rejection, not {other:?}"),
        }
    }
}

const FORM: &str = "the token does not have three parts";
const BASE64: &str = "not base64url";
const MALFORMED: &str = "header or claims are malformed";
const ALGORITHM: &str = "algorithm is not one of those configured";
const SIGNATURE: &str = "signature is invalid";

#[test]
fn token_without_valid_signature_is_rejected() {
    let header = base64(r#"{"alg":"HS256"}"#);
    let claims = base64(ALICE);
    let good = hs256_with(r#"{"alg":"HS256"}"#, ALICE);
    let signature = good.rsplit('.').next().unwrap();
    let unsigned = |alg: &str, end: &str| format!("{}.{claims}.{end}", base64(json!({ "alg": alg }).to_string()));
    let with = |algorithm| {
        let key = EncodingKey::from_secret(SECRET.as_bytes());
        signed(&json!({ "alg": algorithm }).to_string(), ALICE, &key, algorithm)
    };
    let by_other = |secret: &str| {
        signed(r#"{"alg":"HS256"}"#, ALICE, &EncodingKey::from_secret(secret.as_bytes()), Algorithm::HS256)
    };
    // The last base64 digit of 32 bytes has two unused bits, which must be zero.
    let unused_bits = format!("{}{}", &good[..good.len() - 1], char::from(good.as_bytes()[good.len() - 1] + 1));
    let flipped = good.replacen('.', ".A", 1);
    let cases = [
        ("alg none, no signature", unsigned("none", ""), MALFORMED),
        ("alg None", unsigned("None", ""), MALFORMED),
        ("alg nOnE", unsigned("nOnE", ""), MALFORMED),
        ("alg NONE with the signature", unsigned("NONE", signature), MALFORMED),
        ("alg empty", unsigned("", signature), MALFORMED),
        ("alg in lower case", unsigned("hs256", signature), MALFORMED),
        ("alg unknown", unsigned("HS1", signature), MALFORMED),
        ("alg null", format!("{}.{claims}.{signature}", base64(r#"{"alg":null}"#)), MALFORMED),
        ("alg a list", format!("{}.{claims}.{signature}", base64(r#"{"alg":["HS256"]}"#)), MALFORMED),
        ("no alg", format!("{}.{claims}.{signature}", base64("{}")), MALFORMED),
        ("alg twice", hs256_with(r#"{"alg":"HS256","alg":"HS256"}"#, ALICE), MALFORMED),
        ("signed with HS384", with(Algorithm::HS384), ALGORITHM),
        ("signed with HS512", with(Algorithm::HS512), ALGORITHM),
        ("signed with RSA", by_key("rsa", Algorithm::RS256), ALGORITHM),
        ("signed with Ed25519", by_key("ed", Algorithm::EdDSA), ALGORITHM),
        ("another secret", by_other("another secret, of enough bytes"), SIGNATURE),
        ("the empty secret", by_other(""), SIGNATURE),
        ("the secret and one more byte", by_other(&format!("{SECRET}!")), SIGNATURE),
        ("no signature", format!("{header}.{claims}."), SIGNATURE),
        ("half a signature", good[..good.len() - 20].to_owned(), ""),
        ("claims changed", flipped, SIGNATURE),
        ("header changed", format!("{}.{claims}.{signature}", base64(r#"{"alg":"HS256" }"#)), SIGNATURE),
        ("padding", format!("{good}="), BASE64),
        ("unused bits set", unused_bits, BASE64),
        ("a line end after the token", format!("{good}\n"), BASE64),
        ("a space before the token", format!(" {good}"), BASE64),
        ("standard base64", format!("{header}.{claims}.{}+/", &signature[..signature.len() - 2]), BASE64),
        ("header only", header.clone(), FORM),
        ("header and claims", format!("{header}.{claims}"), FORM),
        ("four parts", format!("{good}.{signature}"), BASE64),
        ("five parts, like an encrypted token", format!("{header}....{signature}"), BASE64),
        ("empty", String::new(), FORM),
        ("two dots", "..".into(), MALFORMED),
        ("10 000 dots", ".".repeat(10_000), BASE64),
        ("garbage", "not a token".into(), FORM),
        ("not ASCII", "é.ü.ö".into(), BASE64),
        ("a NUL", format!("{good}\0"), BASE64),
        ("a user id", "alice-in-chains".into(), FORM),
        ("a megabyte", format!("{good}{}", "A".repeat(1 << 20)), "limit of 16384"),
        ("one byte too long", "A".repeat(TOKEN_BYTES_MAX + 1), "limit of 16384"),
        ("the maximum length", "A".repeat(TOKEN_BYTES_MAX), FORM),
        ("a deep header", format!("{}.{claims}.{signature}", base64("[".repeat(10_000))), MALFORMED),
        ("crit", hs256_with(r#"{"alg":"HS256","crit":["exp"]}"#, ALICE), "crit or b64"),
        ("crit, empty", hs256_with(r#"{"alg":"HS256","crit":[]}"#, ALICE), "crit or b64"),
        ("b64", hs256_with(r#"{"alg":"HS256","b64":false}"#, ALICE), "crit or b64"),
    ];
    assert!(check(&with_secret(), &good).is_ok(), "the unmodified token is valid");
    assert_rejected(&with_secret(), &cases);
}

#[test]
fn claims_without_one_user_or_valid_times_are_rejected() {
    let claims = |text: &str| hs256_with(r#"{"alg":"HS256"}"#, text);
    let id = |value: Value| hs256(&json!({ "id": value }));
    let at = |mut times: Value| {
        times["id"] = "alice".into();
        hs256(&times)
    };
    let cases = [
        ("no user", hs256(&json!({})), "does not name a user"),
        ("id empty", id("".into()), "must not be empty"),
        ("id with a NUL", id("a\0b".into()), "control characters"),
        ("id with a line end", id("a\nb".into()), "control characters"),
        ("id too long", id("x".repeat(257).into()), "at most 256 bytes"),
        ("id null", hs256(&json!({ "id": null, "sub": "alice" })), "neither a string nor a whole number"),
        ("id true", id(true.into()), "neither"),
        ("id a list", id(json!(["alice"])), "neither"),
        ("id an object", id(json!({ "id": "alice" })), "neither"),
        ("id with a fraction", id(json!(1.5)), "neither"),
        ("id rounded", claims(r#"{"id":18446744073709551616}"#), "neither"),
        ("sub empty", hs256(&json!({ "sub": "" })), "must not be empty"),
        ("sub a list", hs256(&json!({ "sub": ["a"] })), MALFORMED),
        ("id twice", claims(r#"{"id":"alice","id":"bob"}"#), MALFORMED),
        ("id twice, once escaped", claims(r#"{"id":"alice","\u0069d":"bob"}"#), MALFORMED),
        ("exp twice", claims(r#"{"id":"alice","exp":9999999999,"exp":1}"#), MALFORMED),
        ("claims a list", claims("[]"), MALFORMED),
        ("claims a string", claims(r#""alice""#), MALFORMED),
        ("claims empty", claims(""), MALFORMED),
        ("claims not JSON", claims("{id:'alice'}"), MALFORMED),
        ("claims deep", claims(&format!(r#"{{"id":"alice","x":{}}}"#, "[".repeat(5000))), MALFORMED),
        ("a bare NUL in the JSON", hs256_with(r#"{"alg":"HS256"}"#, "{\"id\":\"\u{0}\"}"), MALFORMED),
        ("expired", at(json!({ "exp": NOW - 1 })), "has expired"),
        ("expires now", at(json!({ "exp": NOW })), "has expired"),
        ("expired in 1970", at(json!({ "exp": 0 })), "has expired"),
        ("exp negative", at(json!({ "exp": -1 })), "is not a time"),
        ("exp a string", at(json!({ "exp": "9999999999" })), "is not a time"),
        ("exp null", at(json!({ "exp": null })), "is not a time"),
        ("exp beyond the largest time", at(json!({ "exp": u64::MAX })), "is not a time"),
        ("exp 1e300", at(json!({ "exp": 1e300 })), "is not a time"),
        ("nbf ahead", at(json!({ "nbf": NOW + 1 })), "is not valid yet"),
        ("nbf half a second ahead", at(json!({ "nbf": 1_700_000_000.5 })), "is not valid yet"),
        ("nbf a string", at(json!({ "nbf": "0" })), "is not a time"),
    ];
    assert_rejected(&with_secret(), &cases);
}

#[test]
fn token_beyond_leeway_is_rejected() {
    let jwt = config::Jwt { leeway: Duration::from_secs(5), ..with_secret() };
    let cases = [
        ("exp", hs256(&json!({ "id": "alice", "exp": NOW - 5 })), "has expired"),
        ("nbf", hs256(&json!({ "id": "alice", "nbf": NOW + 6 })), "is not valid yet"),
    ];
    assert_rejected(&jwt, &cases);
    let latest = config::Jwt { leeway: Duration::MAX, ..with_secret() };
    assert_rejected(&latest, &[("no end", hs256(&json!({ "id": "alice", "exp": NOW })), "is not a time")]);
}

#[test]
fn token_of_other_issuer_or_audience_is_rejected() {
    let jwt = config::Jwt { issuer: Some("us".into()), audience: Some("us".into()), ..with_secret() };
    let of = |iss: Value, aud: Value| hs256(&json!({ "id": "alice", "iss": iss, "aud": aud }));
    let us = || Value::from("us");
    let cases = [
        ("no iss", hs256(&json!({ "id": "alice", "aud": "us" })), "iss"),
        ("no aud", hs256(&json!({ "id": "alice", "iss": "us" })), "aud"),
        ("other iss", of("them".into(), us()), "iss"),
        ("iss in capitals", of("US".into(), us()), "iss"),
        ("iss a list", of(json!(["us"]), us()), "iss"),
        ("iss null", of(Value::Null, us()), "iss"),
        ("other aud", of(us(), "them".into()), "aud"),
        ("aud empty list", of(us(), json!([])), "aud"),
        ("aud list of others", of(us(), json!(["them", "those"])), "aud"),
        ("aud list with a number", of(us(), json!(["us", 1])), "aud"),
        ("aud null", of(us(), Value::Null), "aud"),
        ("aud within another", of(us(), "us2".into()), "aud"),
    ];
    assert_rejected(&jwt, &cases);
    let user = config::Jwt { user_claim: Some("user".into()), ..with_secret() };
    assert_rejected(&user, &[("user a string", hs256(&json!({ "id": "alice", "user": "root" })), "userClaim")]);
}

/// Covers tokens signed with the text of the public key as an HMAC secret.
#[test]
fn public_key_as_secret_or_other_key_is_rejected() {
    let pem = fs::read(key_path("rsa.public.pem")).unwrap();
    let confused = |alg: &str, algorithm| {
        signed(&json!({ "alg": alg }).to_string(), ALICE, &EncodingKey::from_secret(&pem), algorithm)
    };
    let renamed = |token: String, alg: &str| {
        let rest = token.split_once('.').unwrap().1.to_owned();
        format!("{}.{rest}", base64(json!({ "alg": alg }).to_string()))
    };
    let rsa = with_key("rsa", &["RS256"]);
    assert_rejected(
        &rsa,
        &[
            ("HS256 with the public key", confused("HS256", Algorithm::HS256), ALGORITHM),
            ("the same, declared as RS256", confused("RS256", Algorithm::HS256), SIGNATURE),
            ("another RSA key", by_key("rsa-other", Algorithm::RS256), SIGNATURE),
            ("PS256 with the right key", by_key("rsa", Algorithm::PS256), ALGORITHM),
            ("PS256 declared as RS256", renamed(by_key("rsa", Algorithm::PS256), "RS256"), SIGNATURE),
            ("RS512 with the right key", by_key("rsa", Algorithm::RS512), ALGORITHM),
            ("ES256", by_key("ec256", Algorithm::ES256), ALGORITHM),
            ("ES256 declared as RS256", renamed(by_key("ec256", Algorithm::ES256), "RS256"), SIGNATURE),
            ("no signature", format!("{}.{}.", base64(r#"{"alg":"RS256"}"#), base64(ALICE)), SIGNATURE),
        ],
    );
    assert_rejected(
        &with_key("ec256", &["ES256"]),
        &[
            ("RS256", by_key("rsa", Algorithm::RS256), ALGORITHM),
            ("RS256 declared as ES256", renamed(by_key("rsa", Algorithm::RS256), "ES256"), SIGNATURE),
            ("ES384", by_key("ec384", Algorithm::ES384), ALGORITHM),
            ("zeros", format!("{}.{}.{}", base64(r#"{"alg":"ES256"}"#), base64(ALICE), base64([0; 64])), SIGNATURE),
        ],
    );
    assert_rejected(
        &with_key("ed", &["EdDSA"]),
        &[
            ("ES256 declared as EdDSA", renamed(by_key("ec256", Algorithm::ES256), "EdDSA"), SIGNATURE),
            ("zeros", format!("{}.{}.{}", base64(r#"{"alg":"EdDSA"}"#), base64(ALICE), base64([0; 64])), SIGNATURE),
        ],
    );
}

#[test]
fn token_that_is_not_a_string_is_rejected() {
    let jwt = Jwt::new(&with_secret()).unwrap();
    let good = hs256(&json!({ "id": "alice" }));
    for data in [
        json!({}),
        json!({ "Token": good }),
        json!({ "authorization": format!("Bearer {good}") }),
        json!({ "token": [good] }),
        json!({ "token": { "token": good } }),
        json!({ "token": null }),
        json!({ "token": format!("Bearer {good}") }),
    ] {
        let Value::Object(data) = data else { unreachable!("objects above") };
        assert!(matches!(check_at(&jwt, &data, now()), Err(AuthError::Rejected(_))), "{data:?}");
    }
}

proptest::proptest! {
    /// Checks that a token with one character replaced by any text is rejected.
    #[test]
    fn modified_token_is_rejected(at in 0_usize..100, with in ".{0,3}") {
        let good = hs256(&json!({ "id": "alice" }));
        let at = at % good.len();
        let changed = format!("{}{with}{}", &good[..at], &good[at + 1..]);
        proptest::prop_assume!(changed != good);
        proptest::prop_assert!(check(&with_secret(), &changed).is_err(), "{}", changed);
    }
}
