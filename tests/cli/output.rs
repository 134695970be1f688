//! Tests the output of the commands and the API: escaped text of clients, hidden passwords, and error messages.

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead as _, BufReader},
    process::Stdio,
    sync::mpsc,
    thread,
};

use serde_json::{Value, json};

use crate::{
    WAIT_TIMEOUT, output_text, run_mesa,
    support::{
        command::mesa_command,
        http::Http,
        server::{Home, Process, Server},
    },
};

/// Text that would control a terminal: one-character CSI, direction override, zero-width space, DEL, and a tag
/// character.
const CONTROL_TEXT: &str = "a\u{9b}31m\u{202e}\u{200b}\u{7f}\u{e0041}z";

fn call(server: &Server, method: &str, path: &str, body: &str) -> (u16, String) {
    let (status, response) = Http::connect(server.address).unwrap().call(method, path, body).expect("a response");
    (status, String::from_utf8(response).expect("text"))
}

/// Reports whether `text` has none of the characters of `CONTROL_TEXT`, and no control character but line feeds.
fn is_plain(text: &str) -> bool {
    !text.chars().any(|character| {
        (character.is_control() && character != '\n') || matches!(character, '\u{200b}' | '\u{202e}' | '\u{e0041}')
    })
}

#[test]
fn control_characters_of_clients_are_escaped_in_command_output() {
    let home = Home::new();
    let server = home.start();
    let url = format!("http://{}", server.address);
    let body = json!({"message": {"d": {"text": CONTROL_TEXT}, "t": CONTROL_TEXT}, "recipients": ["alice\u{202e}"]});
    // The JSON writer of the test escapes C0 only, so the server receives these characters unescaped.
    assert!(body.to_string().contains(CONTROL_TEXT));
    let (status, response) = call(&server, "POST", "/v1/dispatch", &body.to_string());
    assert_eq!(status, 200, "{response}");
    for args in [
        &["inbox", "alice\u{202e}"][..],
        &["inbox", "alice\u{202e}", "--json"],
        &["users"],
        &["users", "--json"],
        &["users", "alice\u{202e}"],
        &["dispatch", "--to", "alice\u{202e},\u{202e}"],
        &["dispatch", "--to", "alice", "--type", CONTROL_TEXT, "{\u{202e}"],
        &["inbox", "unknown\u{202e}\u{9b}"],
    ] {
        let output = run_mesa(&[args, &["--url", &url]].concat());
        let printed = String::from_utf8([output.stdout, output.stderr].concat()).expect("text");
        assert!(is_plain(&printed) && !printed.is_empty(), "{args:?}: {printed:?}");
    }
    let inbox = run_mesa(&["inbox", "alice\u{202e}", "--json", "--url", &url]);
    let first = String::from_utf8(inbox.stdout).unwrap().lines().next().map(str::to_owned).expect("a message");
    let message: Value = serde_json::from_str(&first).expect("JSON");
    assert_eq!((&message["d"]["text"], &message["t"]), (&json!(CONTROL_TEXT), &json!(CONTROL_TEXT)), "{first}");

    for format in [&["--json"][..], &[]] {
        let line = first_message(&url, format);
        assert!(is_plain(&line) && line.contains("31m"), "{line:?}");
    }
    let directory = home.store();
    server.stop(WAIT_TIMEOUT);
    let directory = directory.to_str().unwrap();
    for args in [
        &["inspect", directory][..],
        &["inspect", directory, "--json"],
        &["inspect", directory, "--user", "alice\u{202e}"],
    ] {
        let printed = output_text(&run_mesa(args));
        assert!(is_plain(&printed) && printed.contains("alice"), "{args:?}: {printed:?}");
    }
}

/// Runs `mesa connect` until it prints a message with `31m`, and returns that line.
fn first_message(url: &str, format: &[&str]) -> String {
    let mut command = mesa_command();
    command.args(["connect", "--as", "alice\u{202e}", "--url", url, "--after", "0"]).args(format);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the binary runs");
    let mut out = BufReader::new(child.stdout.take().expect("a pipe"));
    let _process = Process::new(child);
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        let mut line = String::new();
        while out.read_line(&mut line).is_ok_and(|read| read > 0) {
            if line.contains("31m") {
                break;
            }
            line.clear();
        }
        _ = sender.send(line);
    });
    lines.recv_timeout(WAIT_TIMEOUT).expect("a message")
}

#[test]
fn password_in_a_url_is_not_printed() {
    for args in [
        &["connect", "--as", "alice", "--url", "ws://me:secret@127.0.0.1:1/"][..],
        &["connect", "--as", "alice", "--url", "ws://me:sec/ret@127.0.0.1:1/"],
        &["connect", "--as", "alice", "--url", "http://me:secret@127.0.0.1:1/v1"],
        &["users", "--url", "http://me:secret@127.0.0.1:1"],
        &["users", "--url", "me:secret@127.0.0.1:1"],
        &["backup", "/nowhere/x", "--url", "https://me:secret@127.0.0.1:1"],
    ] {
        let output = run_mesa(args);
        let printed = output_text(&output);
        assert!(
            !output.status.success() && !printed.contains("secret") && !printed.contains("ret@"),
            "{args:?}: {printed}"
        );
    }
}

#[test]
fn url_with_api_path_is_accepted_as_server_url() {
    let home = Home::new();
    let server = home.start();
    for url in [format!("http://{}/v1", server.address), format!("http://{}/v1/", server.address)] {
        let users = run_mesa(&["users", "--url", &url]);
        assert!(users.status.success(), "{url}: {}", output_text(&users));
        let dispatched = run_mesa(&["dispatch", "--url", &url, "--to", "alice\u{202e}", "--type", "31m"]);
        assert!(dispatched.status.success(), "{url}: {}", output_text(&dispatched));
        assert!(first_message(&url, &[]).contains("31m"));
    }
    let wrong = run_mesa(&["users", "--url", &format!("http://{}", server.address), "--key", "0123456789abcdef-none"]);
    assert!(
        output_text(&wrong).contains("not one of this server's `api.keys`")
            && !output_text(&wrong).contains("is required"),
        "{}",
        output_text(&wrong)
    );
}

#[test]
fn error_messages_contain_no_rust_terms() {
    const RUST_TERMS: &[&str] = &[
        "u8",
        "u16",
        "u32",
        "u64",
        "usize",
        "i64",
        "nonzero",
        "struct",
        "enum",
        "borrowed",
        "sequence",
        "invalid type",
        "invalid value",
        "variant",
        "digit found",
        "target type",
        "`true` or `false`",
        "utf-8 sequence",
        "Failed to",
    ];
    let home = Home::with_settings("portal: { enabled: true },");
    let server = home.start();
    let assert_no_rust_terms = |request: &str, (status, error): (u16, String)| {
        assert!(matches!(status, 400 | 422), "{request}: {status} {error}");
        let term = RUST_TERMS.iter().find(|term| error.contains(**term));
        assert_eq!(term, None, "{request}: {error}");
    };
    for body in [
        r#"{"message":{"o":{"ttl":0}},"recipients":[]}"#,
        r#"{"message":{"o":{"ttl":-1}},"recipients":[]}"#,
        r#"{"message":{"o":{"ttl":"x"}},"recipients":[]}"#,
        r#"{"message":{"o":{"sync":1}},"recipients":[]}"#,
        r#"{"message":{"o":[]},"recipients":[]}"#,
        r#"{"message":{"op":1.5},"recipients":[]}"#,
        r#"{"message":{"op":-1},"recipients":[]}"#,
        r#"{"message":{"t":7},"recipients":[]}"#,
        r#"{"message":7,"recipients":[]}"#,
        r#"{"message":{},"recipients":{}}"#,
        r#"{"message":{},"recipients":[null]}"#,
        r#"{"message":{},"recipients":[],"id":7}"#,
        r#"{"message":{},"recipients":[],"excluding":7}"#,
        "7",
        "[]",
        "null",
        "",
        "{",
        "{}",
        "nonsense",
        "\"\\ud83d\"",
    ] {
        assert_no_rust_terms(body, call(&server, "POST", "/v1/dispatch", body));
    }
    for path in [
        "/v1/users?limit=x",
        "/v1/users?limit=",
        "/v1/users?limit=-1",
        "/v1/users?limit=99999999999999999999999",
        "/v1/users?online=1",
        "/v1/users?nonsense=1",
        "/v1/users/alice/messages?after=x",
        "/v1/events?all=1",
    ] {
        assert_no_rust_terms(path, call(&server, "GET", path, ""));
    }
    for args in [
        &["serve", "--port", "x"][..],
        &["inbox", "alice", "--limit", "-1"],
        &["inbox", "alice", "--after", "x"],
        &["dispatch", "--to", "alice", "--op", "x"],
        &["dispatch", "--to", "alice", "{"],
    ] {
        let output = run_mesa(args);
        // Excepts the text of the argument parser: "invalid value 'x' for '--port'".
        let error = output_text(&output).replace("invalid value", "");
        let term = RUST_TERMS.iter().find(|term| error.contains(**term));
        assert_eq!((output.status.code(), term), (Some(2), None), "{args:?}: {}", output_text(&output));
    }
}

#[test]
fn store_is_not_created_in_a_directory_with_other_files() {
    let mut home = Home::new();
    let directory = home.path("documents");
    fs::create_dir_all(directory.join("log")).unwrap();
    // `log` is not empty: an empty directory could be left of a first start that a power cut ended.
    fs::write(directory.join("log").join("syslog"), "a line").unwrap();
    fs::write(directory.join("letter.txt"), "Dear Alice").unwrap();
    let files = || fs::read_dir(&directory).unwrap().map(|file| file.unwrap().file_name()).collect::<BTreeSet<_>>();
    let before = files();
    home.move_store(directory.clone());
    let error = home.ready(home.spawn(&[])).expect_err("the server does not start");
    assert!(error.contains("it is not empty and no store is in it (it has `letter.txt`, `log`)"), "{error}");
    assert_eq!(files(), before, "expected the directory to be unchanged");

    // Accepted: the root of a new file system, with `lost+found`; then a store with a foreign file in it.
    fs::remove_file(directory.join("letter.txt")).unwrap();
    fs::rename(directory.join("log"), directory.join("lost+found")).unwrap();
    home.start().process.kill();
    fs::write(directory.join("note.txt"), "made on Monday").unwrap();
    home.start();
}
