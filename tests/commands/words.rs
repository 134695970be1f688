//! What the commands and the API say: of other people's text, of mistakes, and of places that are not theirs.

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use serde_json::{Value, json};

use crate::{
    mesa, said,
    support::{
        http::Http,
        server::{Home, Process, Server},
    },
};

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(120);

/// What a terminal would obey: CSI as one character, a change of direction, an invisible space, DEL, and a tag.
const STEERING: &str = "a\u{9b}31m\u{202e}\u{200b}\u{7f}\u{e0041}z";

fn call(server: &Server, method: &str, path: &str, body: &str) -> (u16, String) {
    let (status, answer) = Http::connect(server.address).unwrap().call(method, path, body).expect("an answer");
    (status, String::from_utf8(answer).expect("text"))
}

fn is_plain(text: &str) -> bool {
    !text.chars().any(|character| {
        (character.is_control() && character != '\n') || matches!(character, '\u{200b}' | '\u{202e}' | '\u{e0041}')
    })
}

#[test]
fn text_of_others_does_not_steer_the_terminal() {
    let home = Home::new();
    let server = home.start();
    let url = format!("http://{}", server.address);
    let body = json!({"message": {"d": {"text": STEERING}, "t": STEERING}, "recipients": ["alice\u{202e}"]});
    // As they are: the JSON writer of the test escapes C0 alone.
    assert!(body.to_string().contains(STEERING));
    let (status, answer) = call(&server, "POST", "/v1/dispatch", &body.to_string());
    assert_eq!(status, 200, "{answer}");
    for words in [
        &["inbox", "alice\u{202e}"][..],
        &["inbox", "alice\u{202e}", "--json"],
        &["users"],
        &["users", "--json"],
        &["users", "alice\u{202e}"],
        &["dispatch", "--to", "alice\u{202e},\u{202e}"],
        &["dispatch", "--to", "alice", "--type", STEERING, "{\u{202e}"],
        &["inbox", "nobody\u{202e}\u{9b}"],
    ] {
        let output = mesa(&[words, &["--url", &url]].concat());
        let told = String::from_utf8([output.stdout, output.stderr].concat()).expect("text");
        assert!(is_plain(&told) && !told.is_empty(), "{words:?}: {told:?}");
    }
    let inbox = mesa(&["inbox", "alice\u{202e}", "--json", "--url", &url]);
    let first = String::from_utf8(inbox.stdout).unwrap().lines().next().map(str::to_owned).expect("a message");
    let message: Value = serde_json::from_str(&first).expect("JSON");
    assert_eq!((&message["d"]["text"], &message["t"]), (&json!(STEERING), &json!(STEERING)), "{first}");

    for form in [&["--json"][..], &[]] {
        let line = connect(&url, form);
        assert!(is_plain(&line) && line.contains("31m"), "{line:?}");
    }
    let directory = home.store();
    server.terminate();
    assert!(server.process.wait(PATIENCE).success());
    let directory = directory.to_str().unwrap();
    for words in [
        &["inspect", directory][..],
        &["inspect", directory, "--json"],
        &["inspect", directory, "--user", "alice\u{202e}"],
    ] {
        let told = said(&mesa(words));
        assert!(is_plain(&told) && told.contains("alice"), "{words:?}: {told:?}");
    }
}

/// The first message that `mesa connect` prints.
fn connect(url: &str, form: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mesa"));
    command.args(["connect", "--as", "alice\u{202e}", "--url", url, "--after", "0"]).args(form);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it runs");
    let mut out = BufReader::new(child.stdout.take().expect("a pipe"));
    let _ended = Process::new(child);
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
    lines.recv_timeout(PATIENCE).expect("a message")
}

#[test]
fn password_in_an_address_is_not_repeated() {
    for words in [
        &["connect", "--as", "alice", "--url", "ws://me:secret@127.0.0.1:1/"][..],
        &["connect", "--as", "alice", "--url", "ws://me:sec/ret@127.0.0.1:1/"],
        &["connect", "--as", "alice", "--url", "http://me:secret@127.0.0.1:1/v1"],
        &["users", "--url", "http://me:secret@127.0.0.1:1"],
        &["users", "--url", "me:secret@127.0.0.1:1"],
        &["backup", "/nowhere/x", "--url", "https://me:secret@127.0.0.1:1"],
    ] {
        let output = mesa(words);
        let told = said(&output);
        assert!(!output.status.success() && !told.contains("secret") && !told.contains("ret@"), "{words:?}: {told}");
    }
}

#[test]
fn address_of_the_api_is_taken_for_that_of_the_server() {
    let home = Home::new();
    let server = home.start();
    for url in [format!("http://{}/v1", server.address), format!("http://{}/v1/", server.address)] {
        let users = mesa(&["users", "--url", &url]);
        assert!(users.status.success(), "{url}: {}", said(&users));
        let dispatched = mesa(&["dispatch", "--url", &url, "--to", "alice\u{202e}", "--type", "31m"]);
        assert!(dispatched.status.success(), "{url}: {}", said(&dispatched));
        assert!(connect(&url, &[]).contains("31m"));
    }
    let wrong = mesa(&["users", "--url", &format!("http://{}", server.address), "--key", "0123456789abcdef-none"]);
    assert!(
        said(&wrong).contains("none of this server's `api.keys`") && !said(&wrong).contains("is needed"),
        "{}",
        said(&wrong)
    );
}

#[test]
fn errors_of_the_api_have_no_words_of_rust() {
    const RUST: &[&str] = &[
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
    let home = Home::with("portal: { enabled: true },");
    let server = home.start();
    let rust_free = |what: &str, (status, told): (u16, String)| {
        assert!(matches!(status, 400 | 422), "{what}: {status} {told}");
        let word = RUST.iter().find(|word| told.contains(**word));
        assert_eq!(word, None, "{what}: {told}");
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
        rust_free(body, call(&server, "POST", "/v1/dispatch", body));
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
        rust_free(path, call(&server, "GET", path, ""));
    }
    for words in [
        &["serve", "--port", "x"][..],
        &["inbox", "alice", "--limit", "-1"],
        &["inbox", "alice", "--after", "x"],
        &["dispatch", "--to", "alice", "--op", "x"],
        &["dispatch", "--to", "alice", "{"],
    ] {
        let output = mesa(words);
        // "invalid value 'x' for '--port'" is how the command line itself says it.
        let told = said(&output).replace("invalid value", "");
        let word = RUST.iter().find(|word| told.contains(**word));
        assert_eq!((output.status.code(), word), (Some(2), None), "{words:?}: {}", said(&output));
    }
}

#[test]
fn store_is_not_made_among_other_files() {
    let mut home = Home::new();
    let directory = home.path("documents");
    fs::create_dir_all(directory.join("log")).unwrap();
    // An empty one could be what a power cut left of a first start.
    fs::write(directory.join("log").join("syslog"), "a line").unwrap();
    fs::write(directory.join("letter.txt"), "Dear Alice").unwrap();
    let files = || fs::read_dir(&directory).unwrap().map(|file| file.unwrap().file_name()).collect::<BTreeSet<_>>();
    let before = files();
    home.move_store(directory.clone());
    let refused = home.ready(home.spawn(&[])).expect_err("it is refused");
    assert!(refused.contains("it is not empty and no store is in it (it has `letter.txt`, `log`)"), "{refused}");
    assert_eq!(files(), before, "nothing was changed");

    // The root of a fresh file system, and then a store with a note in it.
    fs::remove_file(directory.join("letter.txt")).unwrap();
    fs::rename(directory.join("log"), directory.join("lost+found")).unwrap();
    home.start().process.kill();
    fs::write(directory.join("note.txt"), "made on Monday").unwrap();
    home.start();
}
