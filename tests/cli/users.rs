//! `mesa users`.

use serde_json::{Value, json};

use crate::{
    mesa, said,
    support::{
        http::Http,
        server::{Home, Server},
        socket::Socket,
    },
};

/// What a command prints that asks this server, on both its outputs.
fn asked(server: &Server, words: &[&str]) -> String {
    let url = format!("http://{}", server.address);
    let output = mesa(&[words, &["--url", &url]].concat());
    assert!(output.status.success(), "{}", said(&output));
    said(&output)
}

#[tokio::test(flavor = "multi_thread")]
async fn users_lists_everybody_who_is_known_and_with_online_those_who_are_here() {
    let home = Home::new();
    let server = home.start();
    let mut http = Http::connect(server.address).expect("a connection");
    http.dispatch(&json!("for later"), &["alice".into(), "bob".into()]).expect("it is answered");
    let alice = Socket::connect(server.address, "alice").await.expect("let in");

    let all = asked(&server, &["users"]);
    assert!(all.contains("alice") && all.contains("online, 1 connection"), "{all}");
    assert!(all.contains("bob") && all.contains("offline, 1 message pending"), "{all}");
    assert!(all.ends_with("2 users\n"), "{all}");
    let online = asked(&server, &["users", "--online"]);
    assert!(online.contains("alice") && !online.contains("bob") && online.ends_with("1 user online\n"), "{online}");

    // What the API says of them is what the guide says.
    for (query, expected) in [("", "alice bob"), ("?online=true", "alice"), ("?online=false", "bob")] {
        let page: Value = http.get(&format!("/v1/users{query}")).expect("a page");
        let users = page["users"].as_array().expect("users").iter().map(|user| user["id"].as_str().expect("an id"));
        assert_eq!(users.collect::<Vec<_>>().join(" "), expected, "{query}");
    }
    drop(alice);
}
