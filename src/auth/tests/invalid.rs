//! Tokens that must not hold: forged, stale, meant for others, or no tokens at all.

use std::fs;

use jsonwebtoken::{Algorithm, EncodingKey};

use super::{
    craft::{base64, by_key, hs256, hs256_with, signed},
    *,
};

const ALICE: &str = r#"{"id":"alice"}"#;

/// Every token is refused under the reason given, and the reason repeats nothing of it.
fn all_refused(jwt: &config::Jwt, cases: &[(&str, String, &str)]) {
    let jwt = Jwt::new(jwt).unwrap();
    for (name, token, expected) in cases {
        match check_at(&jwt, &data(token), now()) {
            Err(AuthError::Refused(reason)) => {
                assert!(reason.contains(expected), "{name}: {reason}");
                for part in token.split('.').filter(|part| part.len() > 8) {
                    assert!(!reason.contains(part), "{name}: {reason}");
                }
                assert!(!reason.contains("alice"), "{name}: {reason}");
            }
            other => panic!("{name} gave {other:?}"),
        }
    }
}

const FORM: &str = "the token does not have three parts";
const BASE64: &str = "not base64url";
const UNREAD: &str = "header or claims are not understood";
const ALGORITHM: &str = "algorithm is not one of those configured";
const SIGNATURE: &str = "signature does not hold";

#[test]
fn nothing_but_a_signature_by_the_secret_holds() {
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
    // The last digit of 32 bytes in base64 has two bits to spare; they must be zero.
    let spare = format!("{}{}", &good[..good.len() - 1], char::from(good.as_bytes()[good.len() - 1] + 1));
    let flipped = good.replacen('.', ".A", 1);
    let cases = [
        ("alg none, no signature", unsigned("none", ""), UNREAD),
        ("alg None", unsigned("None", ""), UNREAD),
        ("alg nOnE", unsigned("nOnE", ""), UNREAD),
        ("alg NONE with the signature", unsigned("NONE", signature), UNREAD),
        ("alg empty", unsigned("", signature), UNREAD),
        ("alg in small letters", unsigned("hs256", signature), UNREAD),
        ("alg unheard of", unsigned("HS1", signature), UNREAD),
        ("alg null", format!("{}.{claims}.{signature}", base64(r#"{"alg":null}"#)), UNREAD),
        ("alg a list", format!("{}.{claims}.{signature}", base64(r#"{"alg":["HS256"]}"#)), UNREAD),
        ("no alg", format!("{}.{claims}.{signature}", base64("{}")), UNREAD),
        ("alg twice", hs256_with(r#"{"alg":"HS256","alg":"HS256"}"#, ALICE), UNREAD),
        ("signed with HS384", with(Algorithm::HS384), ALGORITHM),
        ("signed with HS512", with(Algorithm::HS512), ALGORITHM),
        ("signed with RSA", by_key("rsa", Algorithm::RS256), ALGORITHM),
        ("signed with Ed25519", by_key("ed", Algorithm::EdDSA), ALGORITHM),
        ("another secret", by_other("another secret, of enough bytes"), SIGNATURE),
        ("the empty secret", by_other(""), SIGNATURE),
        ("the secret and a NUL", by_other(&format!("{SECRET}!")), SIGNATURE),
        ("no signature", format!("{header}.{claims}."), SIGNATURE),
        ("half a signature", good[..good.len() - 20].to_owned(), ""),
        ("claims changed", flipped, SIGNATURE),
        ("header changed", format!("{}.{claims}.{signature}", base64(r#"{"alg":"HS256" }"#)), SIGNATURE),
        ("padding", format!("{good}="), BASE64),
        ("bits to spare", spare, BASE64),
        ("a line end after it", format!("{good}\n"), BASE64),
        ("a blank before it", format!(" {good}"), BASE64),
        ("standard base64", format!("{header}.{claims}.{}+/", &signature[..signature.len() - 2]), BASE64),
        ("header only", header.clone(), FORM),
        ("header and claims", format!("{header}.{claims}"), FORM),
        ("four parts", format!("{good}.{signature}"), BASE64),
        ("five parts, as an encrypted one", format!("{header}....{signature}"), BASE64),
        ("empty", String::new(), FORM),
        ("two dots", "..".into(), UNREAD),
        ("10 000 dots", ".".repeat(10_000), BASE64),
        ("garbage", "not a token".into(), FORM),
        ("not ASCII", "é.ü.ö".into(), BASE64),
        ("a NUL", format!("{good}\0"), BASE64),
        ("a user id", "alice-in-chains".into(), FORM),
        ("a megabyte", format!("{good}{}", "A".repeat(1 << 20)), "may have 16384"),
        ("one byte too long", "A".repeat(TOKEN_BYTES_MAX + 1), "may have 16384"),
        ("as long as may be", "A".repeat(TOKEN_BYTES_MAX), FORM),
        ("a deep header", format!("{}.{claims}.{signature}", base64("[".repeat(10_000))), UNREAD),
        ("crit", hs256_with(r#"{"alg":"HS256","crit":["exp"]}"#, ALICE), "crit or b64"),
        ("crit, empty", hs256_with(r#"{"alg":"HS256","crit":[]}"#, ALICE), "crit or b64"),
        ("b64", hs256_with(r#"{"alg":"HS256","b64":false}"#, ALICE), "crit or b64"),
    ];
    assert!(check(&with_secret(), &good).is_ok(), "or else the cases prove nothing");
    all_refused(&with_secret(), &cases);
}

#[test]
fn claims_must_name_one_user_and_hold_now() {
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
        ("sub a list", hs256(&json!({ "sub": ["a"] })), UNREAD),
        ("id twice", claims(r#"{"id":"alice","id":"bob"}"#), UNREAD),
        ("id twice, once escaped", claims(r#"{"id":"alice","\u0069d":"bob"}"#), UNREAD),
        ("exp twice", claims(r#"{"id":"alice","exp":9999999999,"exp":1}"#), UNREAD),
        ("claims a list", claims("[]"), UNREAD),
        ("claims a text", claims(r#""alice""#), UNREAD),
        ("claims empty", claims(""), UNREAD),
        ("claims not JSON", claims("{id:'alice'}"), UNREAD),
        ("claims deep", claims(&format!(r#"{{"id":"alice","x":{}}}"#, "[".repeat(5000))), UNREAD),
        ("a bare NUL in the JSON", hs256_with(r#"{"alg":"HS256"}"#, "{\"id\":\"\u{0}\"}"), UNREAD),
        ("expired", at(json!({ "exp": NOW - 1 })), "has expired"),
        ("expires now", at(json!({ "exp": NOW })), "has expired"),
        ("expired in 1970", at(json!({ "exp": 0 })), "has expired"),
        ("exp negative", at(json!({ "exp": -1 })), "is no time"),
        ("exp a string", at(json!({ "exp": "9999999999" })), "is no time"),
        ("exp null", at(json!({ "exp": null })), "is no time"),
        ("exp beyond all time", at(json!({ "exp": u64::MAX })), "is no time"),
        ("exp 1e300", at(json!({ "exp": 1e300 })), "is no time"),
        ("nbf ahead", at(json!({ "nbf": NOW + 1 })), "does not hold yet"),
        ("nbf a bit ahead", at(json!({ "nbf": 1_700_000_000.5 })), "does not hold yet"),
        ("nbf a string", at(json!({ "nbf": "0" })), "is no time"),
    ];
    all_refused(&with_secret(), &cases);
}

#[test]
fn the_leeway_ends() {
    let jwt = config::Jwt { leeway: Duration::from_secs(5), ..with_secret() };
    let cases = [
        ("exp", hs256(&json!({ "id": "alice", "exp": NOW - 5 })), "has expired"),
        ("nbf", hs256(&json!({ "id": "alice", "nbf": NOW + 6 })), "does not hold yet"),
    ];
    all_refused(&jwt, &cases);
    let latest = config::Jwt { leeway: Duration::MAX, ..with_secret() };
    all_refused(&latest, &[("no end", hs256(&json!({ "id": "alice", "exp": NOW })), "is no time")]);
}

#[test]
fn what_is_for_others_is_refused() {
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
    all_refused(&jwt, &cases);
    let user = config::Jwt { user_claim: Some("user".into()), ..with_secret() };
    all_refused(&user, &[("user a text", hs256(&json!({ "id": "alice", "user": "root" })), "userClaim")]);
}

/// The public key is public: signing with its text as a secret must not help.
#[test]
fn a_public_key_is_no_secret_and_one_key_no_other() {
    let pem = fs::read(key_path("rsa.public.pem")).unwrap();
    let confused = |alg: &str, algorithm| {
        signed(&json!({ "alg": alg }).to_string(), ALICE, &EncodingKey::from_secret(&pem), algorithm)
    };
    let renamed = |token: String, alg: &str| {
        let rest = token.split_once('.').unwrap().1.to_owned();
        format!("{}.{rest}", base64(json!({ "alg": alg }).to_string()))
    };
    let rsa = with_key("rsa", &["RS256"]);
    all_refused(
        &rsa,
        &[
            ("HS256 with the public key", confused("HS256", Algorithm::HS256), ALGORITHM),
            ("the same, said to be RS256", confused("RS256", Algorithm::HS256), SIGNATURE),
            ("another RSA key", by_key("rsa-other", Algorithm::RS256), SIGNATURE),
            ("PS256 with the right key", by_key("rsa", Algorithm::PS256), ALGORITHM),
            ("PS256 said to be RS256", renamed(by_key("rsa", Algorithm::PS256), "RS256"), SIGNATURE),
            ("RS512 with the right key", by_key("rsa", Algorithm::RS512), ALGORITHM),
            ("ES256", by_key("ec256", Algorithm::ES256), ALGORITHM),
            ("ES256 said to be RS256", renamed(by_key("ec256", Algorithm::ES256), "RS256"), SIGNATURE),
            ("no signature", format!("{}.{}.", base64(r#"{"alg":"RS256"}"#), base64(ALICE)), SIGNATURE),
        ],
    );
    all_refused(
        &with_key("ec256", &["ES256"]),
        &[
            ("RS256", by_key("rsa", Algorithm::RS256), ALGORITHM),
            ("RS256 said to be ES256", renamed(by_key("rsa", Algorithm::RS256), "ES256"), SIGNATURE),
            ("ES384", by_key("ec384", Algorithm::ES384), ALGORITHM),
            ("zeros", format!("{}.{}.{}", base64(r#"{"alg":"ES256"}"#), base64(ALICE), base64([0; 64])), SIGNATURE),
        ],
    );
    all_refused(
        &with_key("ed", &["EdDSA"]),
        &[
            ("ES256 said to be EdDSA", renamed(by_key("ec256", Algorithm::ES256), "EdDSA"), SIGNATURE),
            ("zeros", format!("{}.{}.{}", base64(r#"{"alg":"EdDSA"}"#), base64(ALICE), base64([0; 64])), SIGNATURE),
        ],
    );
}

#[test]
fn only_a_text_under_token_is_a_token() {
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
        assert!(matches!(check_at(&jwt, &data, now()), Err(AuthError::Refused(_))), "{data:?}");
    }
}

proptest::proptest! {
    /// A token with any one character changed, and any text in its place, is refused.
    #[test]
    fn no_other_text_holds(at in 0_usize..100, with in ".{0,3}") {
        let good = hs256(&json!({ "id": "alice" }));
        let at = at % good.len();
        let changed = format!("{}{with}{}", &good[..at], &good[at + 1..]);
        proptest::prop_assume!(changed != good);
        proptest::prop_assert!(check(&with_secret(), &changed).is_err(), "{}", changed);
    }
}
