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
