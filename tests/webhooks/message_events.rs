//! Tests events of stored messages: delivered, undelivered, expired, dropped.

use super::*;

fn undelivered(receiver: &Receiver, user: &str) -> Vec<u64> {
    let events = receiver.events();
    let of_user = of_type(&events, "undelivered").into_iter().filter(|event| event["user"] == user);
    of_user.map(|event| event["s"].as_u64().expect("a sequence")).collect()
}

fn now_ms() -> u64 {
    std::time::UNIX_EPOCH.elapsed().expect("a clock after 1970").as_millis() as u64
}

// covers: G4
#[tokio::test(flavor = "multi_thread")]
async fn message_unacknowledged_after_the_interval_is_reported_once() {
    // Alice has to acknowledge within this time, also on a machine that stalls.
    let (receiver, home) = start_receiver("undeliveredAfter: 10000, events: ['undelivered', 'delivered'],");
    let server = home.start();
    let mut alice = Socket::connect(server.address, "alice").await.unwrap();
    let began = now_ms();
    dispatch(&server, 1, "bob", &json!({}));
    dispatch(&server, 2, "bob", &json!({}));
    dispatch(&server, 1, "alice", &json!({}));
    assert_eq!(alice.next().await.unwrap().d, 1);
    assert_eq!(alice.event().await.unwrap(), support::socket::Event::AckRequest);
    alice.acknowledge().await.unwrap();
    receiver
        .wait_until("undelivered events of bob's two messages", |receiver| undelivered(receiver, "bob").len() == 2)
        .await;
    let events = receiver.events();
    let first = of_type(&events, "undelivered")[0];
    assert_eq!(first["message"], json!({ "op": 0, "d": 1, "t": "N" }));
    assert_eq!((&first["s"], &first["devices"]), (&json!(1), &json!([null])));
    let at = first["at"].as_u64().unwrap();
    assert!(at >= began + 10_000, "reported {} ms after its dispatch, not before 10,000 ms", at - began);

    let mut bob = Socket::connect(server.address, "bob").await.unwrap();
    assert_eq!((bob.next().await.unwrap().d, bob.next().await.unwrap().d), (json!(1), json!(2)));
    assert_eq!(bob.event().await.unwrap(), support::socket::Event::AckRequest);
    bob.acknowledge().await.unwrap();
    let is_bobs = |event: &&&Value| event["user"] == "bob";
    receiver
        .wait_until("delivered event of bob", |receiver| {
            of_type(&receiver.events(), "delivered").iter().filter(is_bobs).count() == 1
        })
        .await;
    let events = receiver.events();
    let delivered = of_type(&events, "delivered");
    let delivered: Vec<_> = delivered.iter().map(|event| (&event["user"], &event["from"], &event["to"])).collect();
    assert_eq!(delivered, [(&json!("alice"), &json!(1), &json!(1)), (&json!("bob"), &json!(1), &json!(2))]);
    bob.close().await.unwrap();
    // The report of this message follows any wrong report about alice, and any repeated one about bob.
    dispatch(&server, 3, "bob", &json!({}));
    receiver
        .wait_until("undelivered event of bob's third message", |receiver| undelivered(receiver, "bob").contains(&3))
        .await;
    assert_eq!((undelivered(&receiver, "alice"), undelivered(&receiver, "bob")), (vec![], vec![1, 2, 3]));
}

// covers: G4
#[tokio::test(flavor = "multi_thread")]
async fn undelivered_message_over_kills_is_reported_once() {
    let (receiver, home) = start_receiver("undeliveredAfter: 1000, events: ['undelivered'],");
    let server = home.start();
    dispatch(&server, 1, "bob", &json!({}));
    receiver.wait_until("undelivered event of the first message", |receiver| undelivered(receiver, "bob") == [1]).await;
    dispatch(&server, 2, "bob", &json!({}));
    dispatch(&server, 1, "carol", &json!({}));
    // On a busy machine the report comes before the kill, and must not be repeated.
    server.process.kill();
    let server = home.start();
    receiver.wait_until("undelivered event of carol's message", |receiver| undelivered(receiver, "carol") == [1]).await;
    receiver
        .wait_until("undelivered event of the second message", |receiver| undelivered(receiver, "bob").contains(&2))
        .await;
    server.process.kill();
    let server = home.start();
    dispatch(&server, 3, "bob", &json!({}));
    receiver
        .wait_until("undelivered event of the third message", |receiver| undelivered(receiver, "bob").contains(&3))
        .await;
    assert_eq!((undelivered(&receiver, "bob"), undelivered(&receiver, "carol")), (vec![1, 2, 3], vec![1]));
}

// covers: G4
#[tokio::test(flavor = "multi_thread")]
async fn undelivered_messages_above_the_outbox_bound_are_reported_later() {
    let (mut receiver, home) = start_receiver("undeliveredAfter: 200, outboxEvents: 10, events: ['undelivered'],");
    receiver.down();
    let server = home.start();
    for n in 1..=40 {
        dispatch(&server, n, "bob", &json!({}));
    }
    wait_for_metric(&server, "mesa_webhook_outbox_events", |events| events == 10).await;
    receiver.up();
    receiver.wait_until("40 undelivered events", |receiver| undelivered(receiver, "bob").len() >= 40).await;
    assert_eq!(undelivered(&receiver, "bob"), (1..=40).collect::<Vec<_>>());
    assert_eq!(metric(&server, "mesa_webhook_events_lost_total"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn undelivered_event_names_the_device_without_the_message() {
    // The phone has to acknowledge within this time, also on a machine that stalls.
    let (receiver, home) = start_receiver("undeliveredAfter: 10000, events: ['undelivered', 'delivered'],");
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
    receiver.wait_until("undelivered event of the tablet", |receiver| undelivered(receiver, "dora") == [1]).await;
    let events = receiver.events();
    assert_eq!(of_type(&events, "undelivered")[0]["devices"], json!(["tablet"]));
    assert_eq!(of_type(&events, "delivered")[0]["device"], "phone");
}

// covers: G4
#[tokio::test(flavor = "multi_thread")]
async fn evicted_and_expired_messages_are_reported() {
    let (receiver, mut home) = start_receiver("events: ['expired', 'dropped'],");
    home.set_variable("MESA_SYNC_OVERFLOW", "dropOldest");
    home.set_variable("MESA_SYNC_MAX_MESSAGES", "3");
    let server = home.start();
    for n in 1..=5 {
        dispatch(&server, n, "erin", &json!({}));
    }
    receiver.wait_until("two dropped events", |receiver| of_type(&receiver.events(), "dropped").len() == 2).await;
    let ranges = |kind: &str| -> Vec<Value> {
        let events = receiver.events();
        let range = |event: &Value| json!([event["user"], event["from"], event["to"], event["count"]]);
        of_type(&events, kind).into_iter().map(range).collect()
    };
    assert_eq!(ranges("dropped"), [json!(["erin", 1, 1, 1]), json!(["erin", 2, 2, 1])]);
    // frank never connects and gets no further message, so background expiry has to find these.
    dispatch(&server, 1, "frank", &json!({ "ttl": 1 }));
    dispatch(&server, 2, "frank", &json!({ "ttl": 1 }));
    dispatch(&server, 3, "frank", &json!({}));
    let is_last = |event: &&Value| event["to"] == 2;
    receiver.wait_until("expired event", |receiver| of_type(&receiver.events(), "expired").iter().any(is_last)).await;
    // On a busy machine the second message is dispatched so late that each expires alone.
    let (together, alone) =
        (vec![json!(["frank", 1, 2, null])], [json!(["frank", 1, 1, null]), json!(["frank", 2, 2, null])]);
    let expired = ranges("expired");
    assert!(expired == together || expired == alone, "{expired:?}");
    assert_eq!(ranges("dropped").len(), 2);
}
