//! What is not told yet: over kills, and beyond its bound.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    support::{http_receiver::Response, seeded_rng::Random},
    *,
};

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_is_in_the_outbox_is_lost_by_a_kill_and_what_comes_again_has_the_same_id() {
    const ROUNDS: u64 = 6;
    const EACH: u64 = 120;
    let mut random = Random::announced("nothing_that_is_in_the_outbox_is_lost_by_a_kill");
    let (mut receiver, home) = place("maxEvents: 7, events: ['message'],");
    for round in 0..ROUNDS {
        // Down or refusing, in turn; what is said is in the outbox when the server is killed.
        if round % 2 == 0 {
            receiver.down();
        } else {
            receiver.respond_with(Response::status(500));
        }
        let server = home.start();
        // What was told and not removed when the last one was killed is still among them.
        if round > 0 {
            until_metric(&server, "webhook_outbox_events", |events| events > 0).await;
        }
        let before = metric(&server, "webhook_outbox_events");
        let mut alice = Socket::connect(server.address, "alice").await.unwrap();
        say(&mut alice, round * EACH..(round + 1) * EACH).await;
        until_metric(&server, "webhook_outbox_events", |events| events >= before + EACH).await;
        server.process.kill();
        if round % 2 == 0 {
            receiver.up();
        }
        receiver.respond_with(Response::Late(Duration::from_millis(2), 200));
        // Killed again while it tells.
        let server = home.start();
        let told = said(&receiver.events()).len() as u64;
        let some = told + random.within(1..=((round + 1) * EACH - told) / 2);
        receiver.wait_until("some of it", |receiver| said(&receiver.events()).len() as u64 >= some).await;
        server.process.kill();
    }
    let _server = home.start();
    let all = ROUNDS * EACH;
    let last = |receiver: &super::Receiver| said(&receiver.events()).last() == Some(&(all - 1));
    receiver.wait_until("the last", last).await;
    assert_eq!(said(&receiver.events()), (0..all).collect::<Vec<_>>(), "complete, and in order");
    let mut ids: BTreeMap<u64, BTreeSet<String>> = BTreeMap::new();
    let mut times = 0;
    for request in receiver.requests() {
        for event in request.events() {
            times += 1;
            let said = event["message"]["d"].as_u64().unwrap();
            ids.entry(said).or_default().insert(event["id"].as_str().unwrap().to_owned());
        }
    }
    assert!(ids.values().all(|ids| ids.len() == 1), "{ids:?}");
    let different: BTreeSet<_> = ids.values().flatten().collect();
    assert_eq!(different.len() as u64, all);
    assert!(times > all, "nothing ever came again, so nothing was shown");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_there_is_no_room_for_is_counted_and_told_where_it_is_missing() {
    let (receiver, home) = place("maxEvents: 5, outboxEvents: 32, events: ['message', 'authentication'],");
    receiver.respond_with(Response::status(503));
    let server = home.start();
    let mut alice = Socket::connect(server.address, "alice").await.unwrap();
    say(&mut alice, 0..100).await;
    until_metric(&server, "webhook_events_lost_total", |lost| lost == 69).await;
    assert_eq!(metric(&server, "webhook_outbox_events"), 32);
    home.wait_for_log(|log| log.contains("the outbox of the webhook is full"));
    // It is not forgotten by a kill.
    server.process.kill();
    let server = home.start();
    receiver.respond_with(Response::status(200));
    receiver.wait_until("what was lost", |receiver| !of(&receiver.events(), "overflow").is_empty()).await;
    let mut bob = Socket::connect(server.address, "bob").await.unwrap();
    say(&mut bob, 1000..1010).await;
    receiver.wait_until("what came later", |receiver| said(&receiver.events()).last() == Some(&1009)).await;

    let events = receiver.events();
    assert_eq!(said(&events), (0..31).chain(1000..1010).collect::<Vec<_>>());
    let overflow = of(&events, "overflow");
    assert_eq!(overflow.len(), 1, "{overflow:?}");
    // One of those is written down at once, the rest within a second, which may have been less than until the kill.
    let told = overflow[0]["lost"]["message"].as_u64().unwrap();
    assert!((1..=69).contains(&told) && overflow[0]["atLeast"] == true, "{overflow:?}");
    let place = events.iter().position(|event| event["type"] == "overflow").unwrap();
    assert_eq!((said(&events[..place]).len(), events[place + 1]["type"].as_str()), (31, Some("authentication")));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_count_of_what_was_lost_is_exact_without_a_crash() {
    let (receiver, home) = place("maxEvents: 5, outboxBytes: 4096, events: ['message'],");
    receiver.respond_with(Response::status(503));
    let server = home.start();
    let mut alice = Socket::connect(server.address, "alice").await.unwrap();
    say(&mut alice, 0..200).await;
    // An orderly end takes nothing of it back.
    server.terminate();
    let status = server.process.wait(PATIENCE);
    assert!(status.success(), "{status}");
    let server = home.start();
    receiver.respond_with(Response::status(200));
    receiver.wait_until("what was lost", |receiver| !of(&receiver.events(), "overflow").is_empty()).await;
    let events = receiver.events();
    let (told, overflow) = (said(&events).len() as u64, of(&events, "overflow"));
    assert_eq!(told + overflow[0]["lost"]["message"].as_u64().unwrap(), 200, "{overflow:?}");
    assert!((20..100).contains(&told), "{told} of about 60 bytes each");
    until_metric(&server, "webhook_outbox_bytes", |bytes| bytes == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn overflow_that_a_receiver_has_not_accepted_comes_again_as_it_was() {
    let (receiver, home) = place("maxEvents: 32, outboxEvents: 32, events: ['message'],");
    receiver.respond_with(Response::status(503));
    let server = home.start();
    let mut alice = Socket::connect(server.address, "alice").await.unwrap();
    say(&mut alice, 0..100).await;
    until_metric(&server, "webhook_events_lost_total", |lost| lost == 68).await;
    // An orderly end, so that the count is written down.
    server.terminate();
    assert!(server.process.wait(PATIENCE).success());
    // What is before it is accepted. Then each connection breaks in place of an answer, also over a kill.
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
        receiver.wait_until("it to come twice", |receiver| overflows(receiver).len() >= before + 2).await;
        server.process.kill();
    }
    receiver.respond_with(Response::status(200));
    let server = home.start();
    until_metric(&server, "webhook_outbox_events", |events| events == 0).await;
    let all = overflows(&receiver);
    assert_eq!(all[0]["lost"], json!({ "message": 68 }), "{all:?}");
    assert!(all.iter().all(|event| event == &all[0]), "{all:?}");
}
