//! Tests `mesa inspect` and `mesa restore`.

use std::{fs, path::Path, time::Duration};

use serde_json::json;

use crate::{
    mesa, output_text,
    support::{
        http::Http,
        server::{Home, Server},
        socket::Socket,
    },
};

/// Returns a path as text.
fn path_text(path: &Path) -> &str {
    path.to_str().expect("a path that is text")
}

/// Stops a server with SIGTERM, and asserts its success.
fn stop(server: Server) {
    server.terminate();
    assert!(server.process.wait(Duration::from_secs(30)).success());
}

#[test]
fn inspect_of_store_in_use_fails_with_advice_to_stop_its_server() {
    let home = Home::new();
    let server = home.start();
    let salvaged = home.path("salvaged");
    for args in [
        &["inspect", path_text(&home.store())][..],
        &["inspect", path_text(&home.store()), "--salvage", path_text(&salvaged)],
    ] {
        let failed = mesa(args);
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
    assert_eq!(http.call("POST", "/v1/dispatch", &message.to_string()).expect("an answer").0, 200);
    stop(server);

    let shown = output_text(&mesa(&["inspect", path_text(&home.store()), "--user", "alice"]));
    assert!(!shown.contains("1970") && !shown.contains("seen seen"), "{shown}");
    let expires = shown.split(", expires ").nth(1).expect("the entry has an expiry").lines().next().expect("a date");
    assert!(expires.starts_with("20") && expires.ends_with('Z'), "{shown}");
    let all = output_text(&mesa(&["inspect", path_text(&home.store())]));
    let lossy = all.lines().find(|line| line.starts_with("lossy restarts ")).expect("a line with lossy restarts");
    assert!(lossy.contains("gap"), "{lossy}");

    // No client has connected since, so a server on the same store reports the same date.
    let server = home.start();
    let listed = output_text(&mesa(&["users", "alice", "--url", &format!("http://{}", server.address)]));
    let seen = listed.split("last seen ").nth(1).expect("alice was online").lines().next().expect("a date");
    assert!(shown.contains(&format!("\nlast seen      {seen}\n")), "{seen}\n{shown}");
    drop(server);
}

#[test]
fn restore_into_occupied_path_fails_and_names_the_path_not_the_backup() {
    let home = Home::new();
    let server = home.start();
    let (file, url) = (home.path("backup.mesa"), format!("http://{}", server.address));
    assert!(mesa(&["backup", path_text(&file), "--url", &url]).status.success());
    stop(server);

    let full = home.path("full");
    fs::create_dir(&full).expect("a directory");
    fs::write(full.join("letter"), "x").expect("the file is written");
    for (path, reason) in [(&full, "is not empty"), (&full.join("letter"), "is a file")] {
        let failed = mesa(&["restore", path_text(&file), "--store-path", path_text(path)]);
        assert!(!failed.status.success(), "{}", output_text(&failed));
        assert!(
            output_text(&failed).starts_with(&format!("mesa: {}: it {reason}. ", path_text(path))),
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
    let restored = mesa(&["restore", path_text(&file), "--store-path", path_text(&empty)]);
    assert!(restored.status.success(), "{}", output_text(&restored));
    fs::write(&file, "no backup").expect("the file is written");
    let failed = mesa(&["restore", path_text(&file), "--store-path", path_text(&home.path("new"))]);
    assert!(output_text(&failed).starts_with(&format!("mesa: {}: ", path_text(&file))), "{}", output_text(&failed));
}
