//! Tests the outbox: stored events survive kills, and events above its bounds are counted.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    support::{
        command::{output_text, run_mesa, utf8},
        http_receiver::Response,
        seeded_rng::Random,
    },
    *,
};

// covers: G4
#[tokio::test(flavor = "multi_thread")]
async fn events_in_the_outbox_over_kills_are_sent_with_the_same_id() {
    const ROUNDS: u64 = 6;
    const MESSAGES: u64 = 120;
    let mut random = Random::from_env("events_in_the_outbox_over_kills_are_sent_with_the_same_id");
    let (mut receiver, home) = start_receiver("maxEvents: 7, events: ['message'],");
    for round in 0..ROUNDS {
        // The receiver is down or fails, in turn, so that the events are in the outbox when the server is killed.
        if round % 2 == 0 {
            receiver.down();
        } else {
            receiver.respond_with(Response::status(500));
        }
        let server = home.start();
        // Events that were sent but not yet removed before the last kill are still in the outbox.
        if round > 0 {
            wait_for_metric(&server, "mesa_webhook_outbox_events", |events| events > 0).await;
        }
        let before = metric(&server, "mesa_webhook_outbox_events");
        let mut alice = Socket::connect(server.address, "alice").await.unwrap();
        send_numbers(&mut alice, round * MESSAGES..(round + 1) * MESSAGES).await;
        wait_for_metric(&server, "mesa_webhook_outbox_events", |events| events >= before + MESSAGES).await;
        server.process.kill();
        if round % 2 == 0 {
            receiver.up();
        }
        receiver.respond_with(Response::Late(Duration::from_millis(2), 200));
        // The server is killed again while it sends.
        let server = home.start();
        let sent = message_numbers(&receiver.events()).len() as u64;
        let some = sent + random.within(1..=((round + 1) * MESSAGES - sent) / 2);
        receiver
            .wait_until("some of the messages", |receiver| message_numbers(&receiver.events()).len() as u64 >= some)
            .await;
        server.process.kill();
    }
    let _server = home.start();
    let all = ROUNDS * MESSAGES;
    let last = |receiver: &super::Receiver| message_numbers(&receiver.events()).last() == Some(&(all - 1));
    receiver.wait_until("last message", last).await;
    assert_eq!(message_numbers(&receiver.events()), (0..all).collect::<Vec<_>>(), "all messages in order");
    let mut ids: BTreeMap<u64, BTreeSet<String>> = BTreeMap::new();
    let mut deliveries = 0;
    for request in receiver.requests() {
        for event in request.events() {
            deliveries += 1;
            let n = event["message"]["d"].as_u64().unwrap();
            ids.entry(n).or_default().insert(event["id"].as_str().unwrap().to_owned());
        }
    }
    assert!(ids.values().all(|ids| ids.len() == 1), "{ids:?}");
    let distinct: BTreeSet<_> = ids.values().flatten().collect();
    assert_eq!(distinct.len() as u64, all);
    assert!(deliveries > all, "at least one event was sent twice, or the test proves nothing");
}

// covers: G4
#[tokio::test(flavor = "multi_thread")]
async fn events_in_the_outbox_are_part_of_a_backup_and_keep_their_ids() {
    const MESSAGES: u64 = 300;
    let settings = "maxEvents: 7, outboxEvents: 256, events: ['message'],";
    let (receiver, home) = start_receiver(settings);
    receiver.respond_with(Response::status(503));
    let server = home.start();
    let mut alice = Socket::connect(server.address, "alice").await.unwrap();
    // The last messages exceed the bound, and their count is part of the backup too.
    send_numbers(&mut alice, 0..MESSAGES).await;
    wait_for_metric(&server, "mesa_webhook_events_lost_total", |lost| lost == MESSAGES - 256).await;
    let (file, url) = (home.path("backup.mesa"), format!("http://{}", server.address));
    let output = tokio::task::block_in_place(|| run_mesa(&["backup", utf8(&file), "--url", &url]));
    assert!(output.status.success(), "{}", output_text(&output));
    assert!(output_text(&output).contains("256 webhook events"), "{}", output_text(&output));
    // The receiver accepts some after the backup: they are sent again, with the same ids.
    receiver.script(std::iter::repeat_n(Response::status(200), 10));
    // Each of these requests has 1 to 7 events, and may repeat one that got a late response.
    let accepted = |receiver: &super::Receiver| receiver.requests().iter().filter(|request| request.accepted).count();
    receiver.wait_until("ten accepted requests", |receiver| accepted(receiver) >= 10).await;
    server.process.kill();
    let sent = receiver.events();
    assert!(!message_numbers(&sent).is_empty(), "{sent:?}");

    let mut restored = home;
    let store = restored.path("restored");
    let output = run_mesa(&["restore", utf8(&file), "--store-path", utf8(&store)]);
    assert!(output.status.success() && output_text(&output).contains("256 webhook events"), "{}", output_text(&output));
    restored.move_store(store);
    let before = receiver.requests().len();
    receiver.respond_with(Response::status(200));
    let _server = restored.start();
    let overflow = |receiver: &super::Receiver| !of_type(&receiver.events(), "overflow").is_empty();
    receiver.wait_until("overflow event", overflow).await;
    let requests = receiver.requests();
    let events: Vec<Value> =
        requests[before..].iter().filter(|request| request.accepted).flat_map(Request::events).collect();
    assert_eq!(message_numbers(&events), (0..256).collect::<Vec<_>>(), "all events of the backup, in order");
    let ids = |events: &[Value]| -> BTreeMap<u64, String> {
        let messages = events.iter().filter(|event| event["type"] == "message");
        let id = |event: &Value| event["id"].as_str().unwrap().to_owned();
        messages.map(|event| (event["message"]["d"].as_u64().unwrap(), id(event))).collect()
    };
    let again = ids(&events);
    assert!(
        ids(&sent).iter().filter(|(n, _)| **n < 256).all(|(n, id)| again[n] == *id),
        "repeated events keep their ids"
    );
}

// covers: G4
#[tokio::test(flavor = "multi_thread")]
async fn events_above_the_outbox_bound_are_reported_as_overflow_in_their_place() {
    let (receiver, home) = start_receiver("maxEvents: 5, outboxEvents: 32, events: ['message', 'authentication'],");
    receiver.respond_with(Response::status(503));
    let server = home.start();
    let mut alice = Socket::connect(server.address, "alice").await.unwrap();
    send_numbers(&mut alice, 0..100).await;
    wait_for_metric(&server, "mesa_webhook_events_lost_total", |lost| lost == 69).await;
    assert_eq!(metric(&server, "mesa_webhook_outbox_events"), 32);
    home.wait_for_log(|log| log.contains("the webhook outbox is full"));
    // The count survives a kill.
    server.process.kill();
    let server = home.start();
    receiver.respond_with(Response::status(200));
    receiver.wait_until("overflow event", |receiver| !of_type(&receiver.events(), "overflow").is_empty()).await;
    let mut bob = Socket::connect(server.address, "bob").await.unwrap();
    send_numbers(&mut bob, 1000..1010).await;
    receiver
        .wait_until("last message of bob", |receiver| message_numbers(&receiver.events()).last() == Some(&1009))
        .await;

    let events = receiver.events();
    assert_eq!(message_numbers(&events), (0..31).chain(1000..1010).collect::<Vec<_>>());
    let overflow = of_type(&events, "overflow");
    assert_eq!(overflow.len(), 1, "{overflow:?}");
    // The first lost event is stored at once, the count of the others within 1 s, so the kill may have lost part of it.
    let lost = overflow[0]["lost"]["message"].as_u64().unwrap();
    assert!((1..=69).contains(&lost) && overflow[0]["atLeast"] == true, "{overflow:?}");
    let position = events.iter().position(|event| event["type"] == "overflow").unwrap();
    assert_eq!(
        (message_numbers(&events[..position]).len(), events[position + 1]["type"].as_str()),
        (31, Some("authentication"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn overflow_count_after_a_graceful_stop_is_exact() {
    let (receiver, home) = start_receiver("maxEvents: 5, outboxBytes: 4096, events: ['message'],");
    receiver.respond_with(Response::status(503));
    let server = home.start();
    let mut alice = Socket::connect(server.address, "alice").await.unwrap();
    send_numbers(&mut alice, 0..200).await;
    // A graceful stop keeps the exact count.
    server.stop(WAIT_TIMEOUT);
    let server = home.start();
    receiver.respond_with(Response::status(200));
    receiver.wait_until("overflow event", |receiver| !of_type(&receiver.events(), "overflow").is_empty()).await;
    let events = receiver.events();
    let (sent, overflow) = (message_numbers(&events).len() as u64, of_type(&events, "overflow"));
    assert_eq!(sent + overflow[0]["lost"]["message"].as_u64().unwrap(), 200, "{overflow:?}");
    assert!((20..100).contains(&sent), "{sent} events of about 60 bytes each");
    wait_for_metric(&server, "mesa_webhook_outbox_bytes", |bytes| bytes == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unaccepted_overflow_event_is_repeated_unchanged() {
    let (receiver, home) = start_receiver("maxEvents: 32, outboxEvents: 32, events: ['message'],");
    receiver.respond_with(Response::status(503));
    let server = home.start();
    let mut alice = Socket::connect(server.address, "alice").await.unwrap();
    send_numbers(&mut alice, 0..100).await;
    wait_for_metric(&server, "mesa_webhook_events_lost_total", |lost| lost == 68).await;
    // A graceful stop stores the count.
    server.stop(WAIT_TIMEOUT);
    // The events before it are accepted. After that each connection breaks instead of a response, also over a kill.
    receiver.script([Response::status(200)]);
    receiver.respond_with(Response::Close);
    let overflows = |receiver: &super::Receiver| {
        let requests = receiver.requests();
        let all = requests.iter().flat_map(super::Request::events).filter(|event| event["type"] == "overflow");
        all.collect::<Vec<_>>()
    };
    for _ in 0..2 {
        let server = home.start();
        let before = overflows(&receiver).len();
        receiver.wait_until("two further overflow events", |receiver| overflows(receiver).len() >= before + 2).await;
        server.process.kill();
    }
    receiver.respond_with(Response::status(200));
    let server = home.start();
    wait_for_metric(&server, "mesa_webhook_outbox_events", |events| events == 0).await;
    let all = overflows(&receiver);
    assert_eq!(all[0]["lost"], json!({ "message": 68 }), "{all:?}");
    assert!(all.iter().all(|event| event == &all[0]), "{all:?}");
}
