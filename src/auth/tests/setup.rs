//! Tests configurations that are rejected at start.

use std::io::Write as _;

use super::*;

#[test]
fn unusable_key_is_rejected_with_advice() {
    let file = |name: &str, algorithms: &[&str]| {
        let key_file = Some(key_path(name).into());
        config::Jwt { key_file, algorithms: algorithms.iter().map(|&name| name.to_owned()).collect(), ..empty_jwt() }
    };
    let mut garbage = tempfile::NamedTempFile::new().unwrap();
    garbage.write_all(b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n").unwrap();
    let mut certificate = tempfile::NamedTempFile::new().unwrap();
    certificate.write_all(b"-----BEGIN CERTIFICATE-----\n").unwrap();
    let mut large = tempfile::NamedTempFile::new().unwrap();
    large.write_all(&vec![b'x'; 65 * 1024]).unwrap();
    let temporary = |file: &tempfile::NamedTempFile| config::Jwt { key_file: Some(file.path().into()), ..empty_jwt() };
    for (jwt, expected) in [
        (file("absent.pem", &["RS256"]), "absent.pem: the key cannot be read: No such file"),
        (file("rsa.private.pem", &["RS256"]), "this is a private key"),
        (file("rsa-1024.public.pem", &["RS256"]), "the RSA key has 1024 bits and must have 2048 to 8192"),
        (file("ec521.public.pem", &["ES256"]), "must be on P-256 or P-384"),
        (file("rsa.public.pem", &["HS256"]), "\"HS256\", which does not match an RSA key; it may have RS256"),
        (file("rsa.public.pem", &["ES256"]), "which does not match an RSA key"),
        (file("rsa.public.pem", &["RS256", "EdDSA"]), "\"EdDSA\", which does not match an RSA key"),
        (file("rsa.public.pem", &["none"]), "\"none\""),
        (file("rsa.public.pem", &[]), "must name the algorithms to accept"),
        (file("ec256.public.pem", &["ES384"]), "which does not match a key on P-256; it may have ES256"),
        (file("ec384.public.pem", &["ES256"]), "which does not match a key on P-384"),
        (file("ed.public.pem", &["ES256"]), "which does not match an Ed25519 key"),
        (config::Jwt { algorithms: vec!["RS256".into()], ..with_secret() }, "which does not match a secret"),
        (config::Jwt { secret: Some(String::new()), ..empty_jwt() }, "must not be empty"),
        (
            config::Jwt { secret: Some(SECRET.into()), ..file("rsa.public.pem", &["RS256"]) },
            "either a secret or a keyFile",
        ),
        (empty_jwt(), "either a secret or a keyFile"),
        (temporary(&garbage), "the file has no public key"),
        (temporary(&certificate), "this is a certificate"),
        (temporary(&large), "at most 65536 bytes"),
    ] {
        let error = Jwt::new(&jwt).expect_err(expected).to_string();
        assert!(error.contains(expected), "expected {expected:?} in {error:?}");
    }
}

#[tokio::test]
async fn jwt_takes_precedence_over_insecure_and_both_are_optional() {
    let mut authentication = config::Config::default().authentication;
    assert!(from_config(&authentication).unwrap().is_none());
    authentication.insecure = true;
    let insecure = from_config(&authentication).unwrap().unwrap();
    assert!(insecure.authenticate(&data("alice")).await.is_ok());
    authentication.jwt = Some(config::Jwt { secret: Some(SECRET.into()), ..empty_jwt() });
    let jwt = from_config(&authentication).unwrap().unwrap();
    assert!(jwt.authenticate(&data("alice")).await.is_err());
    let token = issue(SECRET, "HS256", &UserId::new("alice").unwrap(), None, Map::new()).unwrap();
    assert_eq!(jwt.authenticate(&data(&token)).await.unwrap().id.as_str(), "alice", "HS256 is the default");
    authentication.jwt = Some(empty_jwt());
    assert!(from_config(&authentication).is_err());
}
