//! Tests the disconnections that a server reports after it was killed.

use mesa::embedded::offline::inspect::Inspection;

use super::{
    support::{connected::wait_for_connected, http_receiver::Response},
    *,
};

/// Returns the disconnections so far, in order: user, reason, and whether the event names a connection.
fn disconnections(receiver: &Receiver) -> Vec<(String, Option<String>, bool)> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let row = |event: &&Value| {
        (text(&event["user"]).expect("a user"), text(&event["reason"]), event["connection"].is_string())
    };
    of_type(&receiver.events(), "disconnection").iter().map(row).collect()
}

/// Returns the expected event of a user whom a kill has disconnected.
fn by_restart(user: &str) -> (String, Option<String>, bool) {
    (user.to_owned(), Some("server_restart".to_owned()), false)
}

// covers: G4
#[tokio::test(flavor = "multi_thread")]
async fn killed_server_reports_each_connected_user_once_as_disconnected() {
    let (receiver, home) = start_receiver("events: ['disconnection', 'authentication'],");
    let server = home.start();
    let mut sockets = Vec::new();
    for user in ["alice", "bob", "bob", "carol"] {
        sockets.push(Socket::connect(server.address, user).await.unwrap());
    }
    sockets.pop().unwrap().close().await.unwrap();
    receiver.wait_until("disconnection of carol", |receiver| !disconnections(receiver).is_empty()).await;
    wait_for_connected(&home.store(), &[("alice", 1), ("bob", 2)]);
    server.process.kill();

    // The receiver accepts nothing until the second kill, so the events must survive that kill.
    receiver.respond_with(Response::status(503));
    let server = home.start();
    let _alice = Socket::connect(server.address, "alice").await.unwrap();
    wait_for_connected(&home.store(), &[("alice", 1)]);
    // The two disconnections, and the authentication of alice.
    wait_for_metric(&server, "mesa_webhook_outbox_events", |events| events >= 3).await;
    server.process.kill();
    receiver.respond_with(Response::status(200));
    let server = home.start();
    receiver.wait_until("disconnections", |receiver| disconnections(receiver).len() >= 4).await;

    // Once delivered, nothing is repeated: not by a kill, and not by a clean stop.
    wait_for_metric(&server, "mesa_webhook_outbox_events", |events| events == 0).await;
    server.process.kill();
    let server = home.start();
    let dave = Socket::connect(server.address, "dave").await.unwrap();
    wait_for_connected(&home.store(), &[("dave", 1)]);
    server.stop(Duration::from_secs(30));
    drop(dave);
    assert_eq!(Inspection::open(&home.store()).unwrap().facts().connected, []);
    let server = home.start();
    receiver.wait_until("disconnection of dave", |receiver| disconnections(receiver).len() >= 5).await;
    let mut erin = Socket::connect(server.address, "erin").await.unwrap();
    send_numbers(&mut erin, []).await;
    receiver
        .wait_until("authentication of erin", |receiver| {
            of_type(&receiver.events(), "authentication").iter().any(|event| event["user"] == "erin")
        })
        .await;
    let expected = [
        ("carol".to_owned(), None, true),
        by_restart("alice"),
        by_restart("bob"),
        by_restart("alice"),
        ("dave".to_owned(), None, true),
    ];
    assert_eq!(disconnections(&receiver), expected);
    // A backend that counts users by these events never sees alice return before she has left.
    let events = receiver.events();
    let of_alice: Vec<_> = events.iter().filter(|event| event["user"] == "alice").map(|event| &event["type"]).collect();
    assert_eq!(of_alice, ["authentication", "disconnection", "authentication", "disconnection"]);
}
