//! Tests that every command that prints ends quietly when the reader of its output has ended, as in `… | head`.

use std::{fs, io::Write as _, process::Stdio};

use serde_json::json;

use crate::{
    WAIT_TIMEOUT, output_text, run_mesa,
    support::{
        command::{mesa_command, utf8},
        http::Http,
        http_receiver::{Receiver, Response},
        server::{Home, KEY},
    },
};

/// Runs a command whose standard output has no reader, and fails unless it ends quietly.
fn assert_quiet(args: &[&str]) {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let mut command = mesa_command();
    command.args(args).env("MESA_API_KEY", KEY).env("MESA_TOKEN", "alice").stdin(Stdio::piped()).stdout(writer);
    let mut child = command.stderr(Stdio::piped()).spawn().expect("the binary runs");
    let mut input = child.stdin.take().expect("a pipe");
    // Only one of the commands reads it.
    _ = input.write_all(br#"{"message":{},"recipients":["nobody","\u0000"]}"#);
    drop(input);
    let output = child.wait_with_output().expect("it ends");
    let error = output_text(&output);
    assert_eq!(output.status.code(), Some(0), "{args:?}: {error}");
    // Remarks are for people. A failure or a panic would have one of these words.
    assert!(
        !error.contains("mesa: ") && !error.contains("panicked") && !error.contains("Broken pipe"),
        "{args:?}: {error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn every_printing_command_ends_quietly_when_its_reader_has_ended() {
    let home = Home::new();
    let config = home.path("config.json5");
    let jwt = home.path("jwt.json5");
    fs::write(&jwt, "{ authentication: { jwt: { secret: '0123456789abcdef0123456789abcdef' } } }").expect("written");
    let token = run_mesa(&["token", "--id", "alice", "--config", utf8(&jwt)]);
    let token = String::from_utf8(token.stdout).expect("a token");
    let server = home.start();
    let url = format!("http://{}", server.address);
    let mut http = Http::connect(server.address).expect("a connection");
    http.dispatch(&json!(1), &["alice".into(), "bob".into()]).expect("a response");
    let (backup, restored) = (home.path("backup.mesa"), home.path("restored"));
    for args in [
        &["users"][..],
        &["users", "--json"],
        &["users", "alice"],
        &["inbox", "alice"],
        &["inbox", "alice", "--json"],
        &["dispatch", "--to", "alice"],
        &["dispatch", "--ndjson", "--json"],
        // Rejected lines are printed without --json too.
        &["dispatch", "--ndjson"],
        &["disconnect", "alice"],
        &["events"],
        &["connect", "--after", "0"],
        &["backup", utf8(&backup)],
        &["inbox", "alice", "--clear"],
        &["users", "--erase", "bob"],
    ] {
        assert_quiet(&[args, &["--url", &url]].concat());
    }
    server.stop(WAIT_TIMEOUT);

    let receiver = Receiver::start();
    receiver.respond_with(Response::json(json!({ "version": "0.1.0" })));
    let status_url = format!("http://{}", receiver.address);
    for args in [
        &["status", "--url", &status_url][..],
        &["status", "--json", "--url", &status_url],
        &["--help"],
        &["help", "serve"],
        &["--version"],
        &["token", "--id", "alice", "--config", utf8(&jwt)],
        &["token", "--check", token.trim(), "--config", utf8(&jwt)],
        &["config", "check", utf8(&config)],
        &["config", "print", "--config", utf8(&config)],
        &["inspect", utf8(&home.store())],
        &["inspect", utf8(&home.store()), "--json"],
        &["inspect", utf8(&home.store()), "--user", "alice"],
        &["restore", utf8(&backup), "--store-path", utf8(&restored)],
        &["completions", "bash"],
        &["man"],
        &["demo", "--fast"],
    ] {
        assert_quiet(args);
    }
}
