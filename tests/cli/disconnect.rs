//! Tests `mesa disconnect`.

use crate::{
    output_text, run_mesa,
    support::{server::Home, socket::Socket},
};

#[tokio::test(flavor = "multi_thread")]
async fn disconnect_closes_every_connection_of_the_user_with_the_reason() {
    let home = Home::new();
    let server = home.start();
    let url = format!("http://{}", server.address);
    let run = |args: &[&str]| tokio::task::block_in_place(|| run_mesa(&[args, &["--url", &url]].concat()));
    let longest = "y".repeat(123);
    for (args, printed, reason) in [
        (&["disconnect", "alice"][..], "2 connections of alice closed\n", "disconnected by the backend"),
        (&["disconnect", "alice", "--reason", "back at 10"], "2 connections of alice closed\n", "back at 10"),
        (&["disconnect", "alice", "--reason", &longest, "--json"], "{\"disconnected\":2}\n", &longest),
    ] {
        let mut connections = Vec::new();
        for user in ["alice", "alice", "bob"] {
            connections.push(Socket::connect(server.address, user).await.expect("the client is authenticated"));
        }
        let output = run(args);
        assert_eq!(output_text(&output), printed);
        let mut bob = connections.pop().expect("three connections");
        for mut alice in connections {
            let closed = loop {
                if let Err(error) = alice.event().await {
                    break error;
                }
            };
            assert!(closed.contains(reason), "{closed}");
        }
        bob.request_ack().await.expect("bob stays connected");
        bob.close().await.expect("the connection closes");
    }
    let none = run(&["disconnect", "nobody"]);
    assert_eq!((output_text(&none).as_str(), none.status.code()), ("nobody has no connection\n", Some(0)));
    let long = run(&["disconnect", "alice", "--reason", &"x".repeat(124)]);
    assert_eq!(long.status.code(), Some(1));
    assert!(
        output_text(&long).contains("reason has 124 bytes; a close frame has at most 123"),
        "{}",
        output_text(&long)
    );
}
