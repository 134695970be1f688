//! Tests `mesa users`.

use serde_json::{Value, json};

use crate::{
    output_text, run_mesa,
    support::{
        http::Http,
        server::{Home, Server},
        socket::Socket,
    },
};

/// Runs a command against this server, and returns what it prints.
fn run(server: &Server, args: &[&str]) -> String {
    let url = format!("http://{}", server.address);
    let output = run_mesa(&[args, &["--url", &url]].concat());
    assert!(output.status.success(), "{}", output_text(&output));
    output_text(&output)
}

#[tokio::test(flavor = "multi_thread")]
async fn users_lists_all_known_users_and_with_online_only_connected_ones() {
    let home = Home::new();
    let server = home.start();
    let mut http = Http::connect(server.address).expect("a connection");
    http.dispatch(&json!("for later"), &["alice".into(), "bob".into()]).expect("a response");
    let alice = Socket::connect(server.address, "alice").await.expect("the client is authenticated");

    let all = run(&server, &["users"]);
    assert!(all.contains("alice") && all.contains("online, 1 connection"), "{all}");
    assert!(all.contains("bob") && all.contains("offline, 1 message pending"), "{all}");
    assert!(all.ends_with("2 users\n"), "{all}");
    let online = run(&server, &["users", "--online"]);
    assert!(online.contains("alice") && !online.contains("bob") && online.ends_with("1 user online\n"), "{online}");

    // The API filters as the guide describes it.
    for (query, expected) in [("", "alice bob"), ("?online=true", "alice"), ("?online=false", "bob")] {
        let page: Value = http.get(&format!("/v1/users{query}")).expect("a page");
        let users = page["users"].as_array().expect("users").iter().map(|user| user["id"].as_str().expect("an id"));
        assert_eq!(users.collect::<Vec<_>>().join(" "), expected, "{query}");
    }
    drop(alice);
}

/// Returns the ids of all pages of a list of users, with a page of `limit` users.
fn listed(http: &mut Http, query: &str, limit: usize) -> String {
    let (mut ids, mut cursor) = (Vec::new(), String::new());
    loop {
        let page: Value = http.get(&format!("/v1/users?{query}&limit={limit}{cursor}")).expect("a page");
        let users = page["users"].as_array().expect("users");
        assert!(users.len() <= limit, "{page}");
        ids.extend(users.iter().map(|user| user["id"].as_str().expect("an id").to_owned()));
        let Some(next) = page["cursor"].as_str() else { return ids.join(" ") };
        cursor = format!("&cursor={next}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn list_of_users_is_filtered_by_prefix_and_pending_whatever_the_size_of_a_page() {
    let home = Home::new();
    let server = home.start();
    let mut http = Http::connect(server.address).expect("a connection");
    let users = ["a", "al", "alice", "alina", "am", "bob"].map(str::to_owned);
    http.dispatch(&json!(1), &users).expect("a response");
    let (status, _) = http.call("DELETE", "/v1/users/alina/messages", "").expect("a response");
    assert_eq!(status, 200);
    let _alice = Socket::connect(server.address, "alice").await.expect("the client is authenticated");
    for limit in [1, 2, 3, 100] {
        for (query, expected) in [
            ("prefix=a", "a al alice alina am"),
            ("prefix=al", "al alice alina"),
            ("prefix=ali", "alice alina"),
            ("prefix=bobby", ""),
            ("prefix=al&online=true", "alice"),
            ("prefix=alice&online=true", "alice"),
            ("prefix=bob&online=true", ""),
            ("prefix=al&online=false", "al alina"),
            ("prefix=al&online=false&pending=true", "al"),
            ("pending=false&prefix=alin", "alina"),
            ("pending=true&prefix=b", "bob"),
        ] {
            assert_eq!(listed(&mut http, query, limit), expected, "{query}, {limit} users per page");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn user_has_cursors_of_devices_and_gaps_with_reasons() {
    let home = Home::new();
    let server = home.start();
    let mut http = Http::connect(server.address).expect("a connection");
    for n in 0..3 {
        http.dispatch(&json!(n), &["alice".into()]).expect("a response");
    }
    let (status, _) = http.call("DELETE", "/v1/users/alice/messages", "").expect("a response");
    assert_eq!(status, 200);
    http.dispatch(&json!(3), &["alice".into()]).expect("a response");
    let user: Value = http.get("/v1/users/alice").expect("a user");
    let gaps = json!([{"from": 1, "to": 3, "reason": "cleared"}]);
    assert_eq!((&user["acknowledged"], &user["lastSequence"], &user["gaps"]), (&json!(3), &json!(4), &gaps), "{user}");
}

// covers: G5
#[tokio::test(flavor = "multi_thread")]
async fn erased_user_is_disconnected_and_unknown_and_an_old_position_hides_no_new_message() {
    let home = Home::new();
    let server = home.start();
    let mut http = Http::connect(server.address).expect("a connection");
    for n in 0..3 {
        http.dispatch(&json!(n), &["alice".into(), "bob".into()]).expect("a response");
    }
    let mut alice = Socket::connect(server.address, "alice").await.expect("the client is authenticated");
    let printed = tokio::task::block_in_place(|| run(&server, &["users", "--erase", "alice"]));
    assert_eq!(printed, "alice is erased\n");
    let closed = loop {
        if let Err(error) = alice.event().await {
            break error;
        }
    };
    assert!(closed.contains("1000") || closed.contains("Normal"), "expected close code 1000: {closed}");
    drop(alice);
    let (status, body) = http.call("GET", "/v1/users/alice", "").expect("a response");
    assert_eq!(status, 404, "{}", String::from_utf8_lossy(&body));
    let users: Value = http.get("/v1/users").expect("a page");
    assert_eq!(users["users"].as_array().expect("users").len(), 1, "{users}");

    // Again: the user is unknown. The API and the command agree.
    let (status, body) = http.call("DELETE", "/v1/users/alice", "").expect("a response");
    assert_eq!((status, String::from_utf8_lossy(&body).contains("user_unknown")), (404, true));
    let url = format!("http://{}", server.address);
    let output = run_mesa(&["users", "--erase", "alice", "--url", &url]);
    assert!(!output.status.success() && output_text(&output).contains("user_unknown"), "{}", output_text(&output));

    // A client with the position from before the erasure receives a new message, also after a restart.
    server.process.kill();
    let server = home.start();
    let mut http = Http::connect(server.address).expect("a connection");
    http.dispatch(&json!("new"), &["alice".into()]).expect("a response");
    assert_eq!(http.pending_entries("alice"), [(4, json!("new"))], "its sequence is above the erased ones");
    assert_eq!(http.pending_entries("bob").len(), 3);
    let page: Value = http.get("/v1/users/alice/messages?after=3").expect("a page");
    assert_eq!(page["messages"][0]["d"], "new", "{page}");
}
