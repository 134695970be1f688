//! Tests that one mistake has one exit code, and one kind of text, in every command.

use std::fs;

use serde_json::json;

use crate::{
    output_text,
    support::{
        command::{mesa_command, utf8},
        http::Http,
        server::{Home, KEY},
    },
};

/// Stands for a file in the directory of the test.
const BACKUP: &str = "BACKUP";

/// Commands that call the HTTP API, without address and key.
const API_COMMANDS: &[&[&str]] = &[
    &["dispatch", "--to", "alice"],
    &["dispatch", "--ndjson"],
    &["users"],
    &["users", "alice"],
    &["users", "--erase", "alice"],
    &["inbox", "alice"],
    &["inbox", "alice", "--clear"],
    &["disconnect", "alice"],
    &["status"],
    &["events"],
    &["backup", BACKUP],
];

/// Runs a command, and fails unless its exit code and text are as expected.
fn assert_exit(args: &[&str], variables: &[(&str, &str)], code: i32, expected: &str) {
    let mut command = mesa_command();
    command.args(args).envs(variables.iter().copied()).stdin(std::process::Stdio::null());
    let output = command.output().expect("the binary runs");
    let text = output_text(&output);
    assert_eq!(output.status.code(), Some(code), "{args:?} {variables:?}: {text}");
    assert!(text.contains(expected) && text.contains("mesa: "), "{args:?}: expected {expected:?} in {text}");
}

#[test]
fn same_mistake_has_same_exit_code_in_every_command() {
    let home = Home::new();
    let server = home.start();
    let url = &*format!("http://{}", server.address);
    let backup = home.path("backup.mesa");
    for args in API_COMMANDS {
        let args: Vec<_> = args.iter().map(|arg| if *arg == BACKUP { utf8(&backup) } else { arg }).collect();
        let with = |more: &[&'static str]| [&args[..], more].concat();
        let at = |url: &'static str| with(&["--url", url, "--key", KEY]);
        assert_exit(&with(&["--url", "http://127.0.0.1:1"]), &[], 2, "no API key was given: set MESA_API_KEY");
        assert_exit(&at("http://me:x@h"), &[], 2, "is not a server's address");
        assert_exit(&at("ftp://127.0.0.1"), &[], 2, "is not a server's address");
        assert_exit(&with(&["--key", "two words"]), &[], 2, "the API key must be");
        assert_exit(&at("http://127.0.0.1:1"), &[], 1, "cannot connect to http://127.0.0.1:1");
        let wrong = [&args[..], &["--url", url, "--key", "wrong-key-0123456789"]].concat();
        assert_exit(&wrong, &[], 1, "the API key is not one of this server's `api.keys`. Set MESA_API_KEY");
    }
    for args in
        [&["connect", "--as", "alice", "--url", "ftp://127.0.0.1"][..], &["connect", "--as", "alice", "--url", "x"]]
    {
        assert_exit(args, &[], 2, "mesa: ");
    }
    assert_exit(&["connect", "--as", "alice", "--url", "ws://127.0.0.1:1"], &[], 1, "cannot connect to 127.0.0.1:1");
    assert_exit(&["connect"], &[], 2, "a token is required");

    // Invalid user ids and texts of the command line.
    for args in [
        &["users", ""][..],
        &["users", "--erase", ""],
        &["inbox", ""],
        &["disconnect", ""],
        &["events", "--user", "a,"],
        &["dispatch", "--to", ""],
        &["dispatch", "--to", "alice", "{"],
        &["users", ".."],
    ] {
        assert_exit(args, &[("MESA_API_KEY", KEY), ("MESA_URL", url)], 2, "mesa: ");
    }
    for args in [&["token", "--id", ""][..], &["token", "--id", "alice", "--ttl", "1"], &["token", "--id", "alice"]] {
        assert_exit(args, &[], 2, "mesa: ");
    }
    assert_exit(&["token", "--id", "alice", "--secret", "short"], &[], 2, "the secret has 5 bytes");
    assert_exit(&["token", "--check", "x"], &[], 2, "a key is required");

    // Files that do not exist.
    let absent = home.path("absent");
    let absent = utf8(&absent);
    for args in [
        &["serve", "--config", absent][..],
        &["config", "print", "--config", absent],
        &["token", "--id", "alice", "--config", absent],
        &["token", "--check", "x", "--config", absent],
        &["dispatch", "--ndjson", absent, "--url", url, "--key", KEY],
        &["users", "--url", "https://127.0.0.1:1", "--key", KEY, "--ca", absent],
        &["inspect", absent],
        &["restore", absent, "--store-path", "/nowhere/x"],
        &["connect", "--as", "alice", "--url", "wss://127.0.0.1:1", "--ca", absent],
    ] {
        assert_exit(args, &[], 1, "absent");
    }
    // Rejections of the server.
    for args in [&["users", "unknown"][..], &["users", "--erase", "unknown"]] {
        assert_exit(args, &[("MESA_API_KEY", KEY), ("MESA_URL", url)], 1, "user_unknown");
    }
    drop(server);
}

#[test]
fn missing_wrong_and_unconfigured_keys_have_different_errors() {
    let home = Home::new();
    let server = home.start();
    let url = &*format!("http://{}/v1", server.address);
    let missing = [("MESA_API_KEY", ""), ("MESA_URL", url)];
    assert_exit(&["users"], &missing, 2, "no API key was given");
    let wrong = [("MESA_API_KEY", "wrong-key-0123456789"), ("MESA_URL", url)];
    assert_exit(&["users"], &wrong, 1, "`mesa serve --dev` prints its key");
    drop(server);

    fs::write(home.path("config.json5"), "{ host: '127.0.0.1', port: 0 }").expect("the configuration is written");
    let server = home.start();
    let url = &*format!("http://{}", server.address);
    let unconfigured = "this server has no API keys: add one under `api.keys` in its configuration";
    assert_exit(&["users"], &[("MESA_API_KEY", KEY), ("MESA_URL", url)], 1, unconfigured);
    drop(server);
}

#[test]
fn server_url_with_api_path_is_accepted_by_every_command() {
    let home = Home::new();
    let server = home.start();
    let mut http = Http::connect(server.address).expect("a connection");
    http.dispatch(&json!(1), &["alice".into()]).expect("a response");
    for scheme in ["http", "ws"] {
        for path in ["/v1", "/v1/"] {
            let url = &*format!("{scheme}://{}{path}", server.address);
            for args in [&["users"][..], &["inbox", "alice"], &["disconnect", "alice"], &["dispatch", "--to", "alice"]]
            {
                let mut command = mesa_command();
                let output = command.args(args).args(["--url", url, "--key", KEY]).output().expect("the binary runs");
                assert!(output.status.success(), "{args:?} {url}: {}", output_text(&output));
            }
            // It connects, and then ends because no user may have an empty id.
            let mut command = mesa_command();
            command.args(["connect", "--once", "--url", url, "--token", "\u{1}"]);
            let output = command.output().expect("the binary runs");
            assert!(output_text(&output).contains("1008"), "{url}: {}", output_text(&output));
        }
    }
}
