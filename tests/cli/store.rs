//! `mesa inspect` and `mesa restore`.

use std::{fs, path::Path, time::Duration};

use serde_json::json;

use crate::{
    mesa, said,
    support::{
        http::Http,
        server::{Home, Server},
        socket::Socket,
    },
};

fn text(path: &Path) -> &str {
    path.to_str().expect("a path that is text")
}

fn stop(server: Server) {
    server.terminate();
    assert!(server.process.wait(Duration::from_secs(30)).success());
}

#[test]
fn looking_into_a_store_in_use_says_to_stop_its_server() {
    let home = Home::new();
    let server = home.start();
    let saved = home.path("saved");
    for words in [&["inspect", text(&home.store())][..], &["inspect", text(&home.store()), "--salvage", text(&saved)]] {
        let refused = mesa(words);
        assert!(!refused.status.success(), "{}", said(&refused));
        let told = said(&refused);
        assert!(told.contains(&format!("in use by a server (process {})", server.pid)), "{told}");
        assert!(
            told.contains("Stop it first") && told.contains("mesa backup") && !told.contains("store.path"),
            "{told}"
        );
    }
    assert!(!saved.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn one_user_is_shown_with_dates() {
    let home = Home::new();
    let server = home.start();
    let alice = Socket::connect(server.address, "alice").await.expect("let in");
    alice.close().await.expect("it is closed");
    let mut http = Http::connect(server.address).expect("a connection");
    let kept = json!({ "message": { "op": 0, "d": {}, "t": "X", "o": { "ttl": 3600 } }, "recipients": ["alice"] });
    assert_eq!(http.call("POST", "/v1/dispatch", &kept.to_string()).expect("an answer").0, 200);
    stop(server);

    let shown = said(&mesa(&["inspect", text(&home.store()), "--user", "alice"]));
    assert!(!shown.contains("1970") && !shown.contains("seen seen"), "{shown}");
    let expires = shown.split(", expires ").nth(1).expect("it has a time to live").lines().next().expect("a date");
    assert!(expires.starts_with("20") && expires.ends_with('Z'), "{shown}");
    let all = said(&mesa(&["inspect", text(&home.store())]));
    let lossy = all.lines().find(|line| line.starts_with("lossy restarts ")).expect("a line of them");
    assert!(lossy.contains("gap"), "{lossy}");

    // Nobody was here meanwhile, so a server on the same store says the same.
    let server = home.start();
    let known = said(&mesa(&["users", "alice", "--url", &format!("http://{}", server.address)]));
    let seen = known.split("last seen ").nth(1).expect("she was here").lines().next().expect("a date");
    assert!(shown.contains(&format!("\nlast seen     {seen}\n")), "{seen}\n{shown}");
    drop(server);
}

#[test]
fn a_place_that_is_taken_is_at_fault_and_not_the_backup() {
    let home = Home::new();
    let server = home.start();
    let (file, url) = (home.path("backup.mesa"), format!("http://{}", server.address));
    assert!(mesa(&["backup", text(&file), "--url", &url]).status.success());
    stop(server);

    let full = home.path("full");
    fs::create_dir(&full).expect("a directory");
    fs::write(full.join("letter"), "x").expect("it is written");
    for (place, why) in [(&full, "is not empty"), (&full.join("letter"), "is a file")] {
        let refused = mesa(&["restore", text(&file), "--store-path", text(place)]);
        assert!(!refused.status.success(), "{}", said(&refused));
        assert!(said(&refused).starts_with(&format!("mesa: {}: it {why}. ", text(place))), "{}", said(&refused));
        assert!(said(&refused).contains("Name a directory that does not exist, or is empty"), "{}", said(&refused));
    }
    let empty = home.path("empty");
    fs::create_dir(&empty).expect("a directory");
    let restored = mesa(&["restore", text(&file), "--store-path", text(&empty)]);
    assert!(restored.status.success(), "{}", said(&restored));
    fs::write(&file, "no backup").expect("it is written");
    let refused = mesa(&["restore", text(&file), "--store-path", text(&home.path("new"))]);
    assert!(said(&refused).starts_with(&format!("mesa: {}: ", text(&file))), "{}", said(&refused));
}
