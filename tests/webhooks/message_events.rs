//! What becomes of messages that are kept: delivered, undelivered, expired, dropped.

use super::*;

fn undelivered(receiver: &Receiver, user: &str) -> Vec<u64> {
    let events = receiver.events();
    let of_user = of(&events, "undelivered").into_iter().filter(|event| event["user"] == user);
    of_user.map(|event| event["s"].as_u64().expect("a sequence")).collect()
}

fn now_ms() -> u64 {
    std::time::UNIX_EPOCH.elapsed().expect("a clock after 1970").as_millis() as u64
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_nobody_receives_in_time_is_told_of_once_and_one_that_is_received_is_not() {
    let (receiver, home) = place("undeliveredAfter: 700, events: ['undelivered', 'delivered'],");
    let server = home.start();
    let mut alice = Socket::connect(server.address, "alice").await.unwrap();
    let began = now_ms();
    dispatch(&server, 1, "bob", &json!({}));
    dispatch(&server, 2, "bob", &json!({}));
    dispatch(&server, 1, "alice", &json!({}));
    assert_eq!(alice.next().await.unwrap().d, 1);
    assert_eq!(alice.event().await.unwrap(), support::socket::Event::AckRequest);
    alice.acknowledge().await.unwrap();
    receiver.wait_until("both of bob's", |receiver| undelivered(receiver, "bob").len() == 2).await;
    let events = receiver.events();
    let first = of(&events, "undelivered")[0];
    assert_eq!(first["message"], json!({ "op": 0, "d": 1, "t": "N" }));
    assert_eq!((&first["s"], &first["devices"]), (&json!(1), &json!([null])));
    let at = first["at"].as_u64().unwrap();
    assert!(at >= began + 700, "told of {} ms after it was sent", at - began);

    let mut bob = Socket::connect(server.address, "bob").await.unwrap();
    assert_eq!((bob.next().await.unwrap().d, bob.next().await.unwrap().d), (json!(1), json!(2)));
    assert_eq!(bob.event().await.unwrap(), support::socket::Event::AckRequest);
    bob.acknowledge().await.unwrap();
    let of_bob = |event: &&&Value| event["user"] == "bob";
    receiver
        .wait_until("bob has them", |receiver| of(&receiver.events(), "delivered").iter().filter(of_bob).count() == 1)
        .await;
    let events = receiver.events();
    let delivered = of(&events, "delivered");
    let delivered: Vec<_> = delivered.iter().map(|event| (&event["user"], &event["from"], &event["to"])).collect();
    assert_eq!(delivered, [(&json!("alice"), &json!(1), &json!(1)), (&json!("bob"), &json!(1), &json!(2))]);
    bob.close().await.unwrap();
    // One that is late enough for anything that might still be told of alice, or again of bob.
    dispatch(&server, 3, "bob", &json!({}));
    receiver.wait_until("bob's third", |receiver| undelivered(receiver, "bob").contains(&3)).await;
    assert_eq!((undelivered(&receiver, "alice"), undelivered(&receiver, "bob")), (vec![], vec![1, 2, 3]));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_undelivered_is_told_of_once_over_kills_and_what_was_never_told_of_is_told_after_one() {
    let (receiver, home) = place("undeliveredAfter: 1000, events: ['undelivered'],");
    let server = home.start();
    dispatch(&server, 1, "bob", &json!({}));
    receiver.wait_until("the first", |receiver| undelivered(receiver, "bob") == [1]).await;
    dispatch(&server, 2, "bob", &json!({}));
    dispatch(&server, 1, "carol", &json!({}));
    assert_eq!(undelivered(&receiver, "carol"), [0; 0], "too early, or the kill would show nothing");
    server.process.kill();
    let server = home.start();
    receiver.wait_until("carol's", |receiver| undelivered(receiver, "carol") == [1]).await;
    receiver.wait_until("the second", |receiver| undelivered(receiver, "bob").contains(&2)).await;
    server.process.kill();
    let server = home.start();
    dispatch(&server, 3, "bob", &json!({}));
    receiver.wait_until("the third", |receiver| undelivered(receiver, "bob").contains(&3)).await;
    assert_eq!((undelivered(&receiver, "bob"), undelivered(&receiver, "carol")), (vec![1, 2, 3], vec![1]));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_there_is_no_room_for_in_the_outbox_is_told_of_as_undelivered_later() {
    let (mut receiver, home) = place("undeliveredAfter: 200, outboxEvents: 10, events: ['undelivered'],");
    receiver.down();
    let server = home.start();
    for n in 1..=40 {
        dispatch(&server, n, "bob", &json!({}));
    }
    until_metric(&server, "webhook_outbox_events", |events| events == 10).await;
    receiver.up();
    receiver.wait_until("all of them", |receiver| undelivered(receiver, "bob").len() >= 40).await;
    assert_eq!(undelivered(&receiver, "bob"), (1..=40).collect::<Vec<_>>());
    assert_eq!(metric(&server, "webhook_events_lost_total"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_one_device_lacks_names_that_device() {
    let (receiver, home) = place("undeliveredAfter: 500, events: ['undelivered', 'delivered'],");
    let server = home.start();
    for device in ["phone", "tablet"] {
        let socket = Socket::connect_as(server.address, "dora", None, Some(device)).await.unwrap();
        socket.close().await.unwrap();
    }
    let mut phone = Socket::connect_as(server.address, "dora", None, Some("phone")).await.unwrap();
    dispatch(&server, 1, "dora", &json!({}));
    assert_eq!(phone.next().await.unwrap().d, 1);
    assert_eq!(phone.event().await.unwrap(), support::socket::Event::AckRequest);
    phone.acknowledge().await.unwrap();
    receiver.wait_until("the other's", |receiver| undelivered(receiver, "dora") == [1]).await;
    let events = receiver.events();
    assert_eq!(of(&events, "undelivered")[0]["devices"], json!(["tablet"]));
    assert_eq!(of(&events, "delivered")[0]["device"], "phone");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_for_newer_ones_and_what_gets_too_old_is_told_of() {
    let (receiver, mut home) = place("events: ['expired', 'dropped'],");
    home.set_variable("MESA_SYNC_OVERFLOW", "dropOldest");
    home.set_variable("MESA_SYNC_MAX_MESSAGES", "3");
    let server = home.start();
    for n in 1..=5 {
        dispatch(&server, n, "erin", &json!({}));
    }
    receiver.wait_until("two dropped", |receiver| of(&receiver.events(), "dropped").len() == 2).await;
    let ranges = |kind: &str| -> Vec<Value> {
        let events = receiver.events();
        let range = |event: &Value| json!([event["user"], event["from"], event["to"], event["count"]]);
        of(&events, kind).into_iter().map(range).collect()
    };
    assert_eq!(ranges("dropped"), [json!(["erin", 1, 1, 1]), json!(["erin", 2, 2, 1])]);
    // Nobody comes for these, and nothing more is sent to frank: they are found when the log is tidied up.
    dispatch(&server, 1, "frank", &json!({ "ttl": 1 }));
    dispatch(&server, 2, "frank", &json!({ "ttl": 1 }));
    dispatch(&server, 3, "frank", &json!({}));
    receiver.wait_until("two expired", |receiver| !of(&receiver.events(), "expired").is_empty()).await;
    assert_eq!(ranges("expired"), [json!(["frank", 1, 2, null])]);
    assert_eq!(ranges("dropped").len(), 2);
}
