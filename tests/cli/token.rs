//! Tests `mesa token`.

use std::{fs, process::Output};

use serde_json::json;

use crate::{
    output_text, run_mesa,
    support::{
        command::{mesa_command, utf8},
        server::Home,
        socket::Socket,
    },
};

const SECRET: &str = "0123456789abcdef0123456789abcdef";

/// Signs a token with options, as `mesa token` does.
fn signed(args: &[&str]) -> String {
    let output = run_mesa(&[&["token"], args].concat());
    assert!(output.status.success(), "{}", output_text(&output));
    output_text(&output).trim().to_owned()
}

fn assert_verdict(output: &Output, code: i32, expected: &[&str]) {
    let text = output_text(output);
    assert_eq!(output.status.code(), Some(code), "{text}");
    for expected in expected {
        assert!(text.contains(expected), "expected {expected:?} in {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn check_has_the_verdict_of_a_server_with_the_same_configuration() {
    let jwt = json!({ "secret": SECRET, "issuer": "shop", "idClaim": "uid" });
    let home = Home::new();
    let file = home.path("config.json5");
    let settings = json!({ "host": "127.0.0.1", "port": 0, "authentication": { "jwt": jwt } });
    fs::write(&file, settings.to_string()).expect("the configuration is written");
    let server = home.start();
    let config = ["--config", utf8(&file)];
    let sign = |args: &[&str]| signed(&[&["--id", "alice"], args].concat());
    let good = sign(&config);
    let other_secret =
        sign(&["--secret", "another-secret-0123456789", "--claim", "iss=shop", "--claim", "uid=alice", "--ttl", "7d"]);
    let other_issuer = sign(&["--secret", SECRET, "--claim", "iss=bank", "--claim", "uid=alice"]);
    let no_user = sign(&["--secret", SECRET, "--claim", "iss=shop"]);
    let expired = format!("{}", i64::MAX / 1_000_000_000_000);
    let begins =
        sign(&["--secret", SECRET, "--claim", "iss=shop", "--claim", "uid=alice", "--claim", "nbf=4000000000"]);
    let expired = sign(&[
        "--secret",
        SECRET,
        "--claim",
        "iss=shop",
        "--claim",
        "uid=alice",
        "--claim",
        &format!("exp={expired}"),
    ]);
    for (token, accepted, expected) in [
        (&*good, true, &["valid, for the user alice\n", "it does not expire\n"][..]),
        (
            &other_secret,
            false,
            &[
                "the token's signature is invalid",
                "the user alice, signed with HS256 (not verified)",
                "it expires in 6 days",
                "Compare the key",
            ],
        ),
        (&other_issuer, false, &["issuer (iss) is not", "Compare the key, the algorithm (HS256 accepted)"]),
        (&no_user, false, &["the token does not name a user", "it states no user"]),
        (
            &expired,
            false,
            &["the token has expired (exp)", "it has expired ", " days ago, at 1970-04-17T", "Sign a new one"],
        ),
        (&begins, false, &["not valid yet (nbf)", "It is valid from 2096-10-02T07:06:40.000Z on"]),
        ("not-a-token", false, &["the token does not have three parts", "`mesa token --id USER` prints one"]),
    ] {
        assert_verdict(
            &run_mesa(&[&["token", "--check", token], &config[..]].concat()),
            i32::from(!accepted),
            expected,
        );
        assert_eq!(Socket::connect(server.address, token).await.is_ok(), accepted, "the server decides so: {token}");
    }
    // From standard input, which does not show in the list of processes.
    let path = home.path("token");
    fs::write(&path, format!("{good}\n")).expect("the token is written");
    let mut command = mesa_command();
    let output =
        command.args(["token", "--check", "-"]).args(config).stdin(fs::File::open(&path).expect("a file")).output();
    assert_verdict(&output.expect("the binary runs"), 0, &["valid, for the user alice"]);
}

#[test]
fn check_uses_the_given_key() {
    let token = signed(&["--id", "alice", "--secret", SECRET, "--ttl", "7d"]);
    let check = |args: &[&str]| run_mesa(&[&["token", "--check", &token], args].concat());
    assert_verdict(&check(&["--secret", SECRET]), 0, &["valid, for the user alice", "it expires in 6 days"]);
    assert_verdict(&check(&["--secret", "another-secret-0123456789"]), 1, &["signature is invalid"]);
    let keys = format!("{}/data/test_keys", env!("CARGO_MANIFEST_DIR"));
    let public = format!("{keys}/ed.public.pem");
    assert_verdict(&check(&["--key-file", &public]), 1, &["the token is signed with HS256, so with a shared secret"]);
    let with_key =
        |token: &str, file: &str| run_mesa(&["token", "--check", token, "--key-file", &format!("{keys}/{file}")]);
    // The header {"alg":"EdDSA"} and the claims {"id":"alice"}, with a signature of another key.
    let by_other_key = format!("eyJhbGciOiJFZERTQSJ9.eyJpZCI6ImFsaWNlIn0.{}", "A".repeat(86));
    let expected = ["signature is invalid", "the user alice, signed with EdDSA (not verified)"];
    assert_verdict(&with_key(&by_other_key, "ed.public.pem"), 1, &expected);
    assert_verdict(&with_key(&by_other_key, "rsa.public.pem"), 1, &["\"EdDSA\", which does not match an RSA key"]);
    assert_verdict(&with_key(&by_other_key, "ed.private.pem"), 1, &["this is a private key"]);
    assert_verdict(&with_key("no-token", "ed.public.pem"), 1, &["this is not a JWT"]);
    let mut command = mesa_command();
    let output = command.args(["token", "--check", &token]).env("WS_KEY", SECRET).output().expect("the binary runs");
    assert_verdict(&output, 0, &["valid"]);
    let home = Home::new();
    assert_verdict(&check(&["--config", utf8(&home.path("config.json5"))]), 1, &["has no authentication.jwt"]);
    for wrong in [&["--id", "bob"][..], &["--ttl", "1h"], &["--secret", SECRET, "--key-file", &public]] {
        assert_eq!(check(wrong).status.code(), Some(2));
    }
}

#[test]
fn secret_shorter_than_16_bytes_is_rejected() {
    let short = run_mesa(&["token", "--id", "alice", "--secret", "fifteen-bytes-x"]);
    assert!(!short.status.success() && short.stdout.is_empty(), "{}", output_text(&short));
    assert!(output_text(&short).contains("15 bytes") && output_text(&short).contains("16"), "{}", output_text(&short));
    assert!(output_text(&short).contains("`openssl rand -hex 32` makes one"), "{}", output_text(&short));
    let enough = run_mesa(&["token", "--id", "alice", "--secret", "sixteen-bytes-xx"]);
    assert!(enough.status.success() && output_text(&enough).split('.').count() == 3, "{}", output_text(&enough));
}
