//! Tests `mesa inspect` and `mesa restore`.

use std::{fs, time::Duration};

use serde_json::json;

use crate::{
    output_text, run_mesa,
    support::{command::utf8, connected::leave_connected, http::Http, server::Home, socket::Socket},
};

/// Longest time from SIGTERM to the exit.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);

#[test]
fn inspect_of_store_in_use_fails_with_advice_to_stop_its_server() {
    let home = Home::new();
    let server = home.start();
    let salvaged = home.path("salvaged");
    for args in [&["inspect", utf8(&home.store())][..], &["inspect", utf8(&home.store()), "--salvage", utf8(&salvaged)]]
    {
        let failed = run_mesa(args);
        assert!(!failed.status.success(), "{}", output_text(&failed));
        let error = output_text(&failed);
        assert!(error.contains(&format!("in use by a server (process {})", server.pid)), "{error}");
        assert!(
            error.contains("Stop it first") && error.contains("mesa backup") && !error.contains("store.path"),
            "{error}"
        );
    }
    assert!(!salvaged.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn inspect_of_one_user_shows_dates() {
    let home = Home::new();
    let server = home.start();
    let alice = Socket::connect(server.address, "alice").await.expect("the client is authenticated");
    alice.close().await.expect("the connection closes");
    let mut http = Http::connect(server.address).expect("a connection");
    let message = json!({ "message": { "op": 0, "d": {}, "t": "X", "o": { "ttl": 3600 } }, "recipients": ["alice"] });
    assert_eq!(http.call("POST", "/v1/dispatch", &message.to_string()).expect("a response").0, 200);
    server.stop(STOP_TIMEOUT);

    let shown = output_text(&run_mesa(&["inspect", utf8(&home.store()), "--user", "alice"]));
    assert!(!shown.contains("1970") && !shown.contains("seen seen"), "{shown}");
    let expires = shown.split(", expires ").nth(1).expect("the entry has an expiry").lines().next().expect("a date");
    assert!(expires.starts_with("20") && expires.ends_with('Z'), "{shown}");
    let all = output_text(&run_mesa(&["inspect", utf8(&home.store())]));
    let lossy = all.lines().find(|line| line.starts_with("lossy restarts ")).expect("a line with lossy restarts");
    assert!(lossy.contains("gap"), "{lossy}");

    // No client has connected since, so a server on the same store reports the same date.
    let server = home.start();
    let listed = output_text(&run_mesa(&["users", "alice", "--url", &format!("http://{}", server.address)]));
    let seen = listed.split("last seen ").nth(1).expect("alice was online").lines().next().expect("a date");
    assert!(shown.contains(&format!("\nlast seen      {seen}\n")), "{seen}\n{shown}");
    drop(server);
}

#[test]
fn inspect_lists_trees_and_a_bounded_number_of_connected_users() {
    let home = Home::new();
    leave_connected(&home.store(), &["alice", "bob\u{202e}", "carol"]);
    let inspect = |args: &[&str]| output_text(&run_mesa(&[&["inspect", utf8(&home.store())], args].concat()));
    let shown = inspect(&["--limit", "2"]);
    assert!(shown.contains("\nconnected      3 users when the server ended\n"), "{shown}");
    let trees = shown.lines().find(|line| line.starts_with("trees ")).expect("a line with the trees");
    assert!(
        trees.starts_with("trees          log 0, users 0, meta ") && trees.ends_with(", connected 3, bodies 0"),
        "{trees}"
    );
    let listed: Vec<_> = shown.lines().skip_while(|line| !line.starts_with("connections ")).skip(1).collect();
    let [alice, bob, more] = listed[..] else { panic!("{shown}") };
    assert!(alice.starts_with("          1  20") && alice.ends_with("Z  alice"), "{alice}");
    assert!(bob.ends_with("Z  bob\\u{202e}"), "{bob}");
    assert!(more.contains("and 1 connected user more"), "{more}");

    let json = inspect(&["--json"]);
    let lines: Vec<serde_json::Value> = json.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!((&lines[0]["store"]["connected"], &lines[0]["store"]["trees"]["connected"]), (&json!(3), &json!(3)));
    let users: Vec<_> = lines.iter().filter_map(|line| line["connected"]["user"].as_str()).collect();
    assert_eq!(users, ["alice", "bob\u{202e}", "carol"]);
    assert_eq!(lines[1]["connected"]["connections"], 1);
}

#[test]
fn restore_into_occupied_path_fails_and_names_the_path_not_the_backup() {
    let home = Home::new();
    let server = home.start();
    let (file, url) = (home.path("backup.mesa"), format!("http://{}", server.address));
    assert!(run_mesa(&["backup", utf8(&file), "--url", &url]).status.success());
    server.stop(STOP_TIMEOUT);

    let full = home.path("full");
    fs::create_dir(&full).expect("a directory");
    fs::write(full.join("letter"), "x").expect("the file is written");
    for (path, reason) in [(&full, "is not empty"), (&full.join("letter"), "is a file")] {
        let failed = run_mesa(&["restore", utf8(&file), "--store-path", utf8(path)]);
        assert!(!failed.status.success(), "{}", output_text(&failed));
        assert!(
            output_text(&failed).starts_with(&format!("mesa: {}: it {reason}. ", utf8(path))),
            "{}",
            output_text(&failed)
        );
        assert!(
            output_text(&failed).contains("Name a directory that does not exist, or is empty"),
            "{}",
            output_text(&failed)
        );
    }
    let empty = home.path("empty");
    fs::create_dir(&empty).expect("a directory");
    let restored = run_mesa(&["restore", utf8(&file), "--store-path", utf8(&empty)]);
    assert!(restored.status.success(), "{}", output_text(&restored));
    fs::write(&file, "no backup").expect("the file is written");
    let failed = run_mesa(&["restore", utf8(&file), "--store-path", utf8(&home.path("new"))]);
    assert!(output_text(&failed).starts_with(&format!("mesa: {}: ", utf8(&file))), "{}", output_text(&failed));
}
