//! The stream of events: complete, in order, signed; whatever the receiver does.

use super::*;
use crate::support::http_receiver::{Receiver, Response};

#[tokio::test(flavor = "multi_thread")]
async fn what_a_client_does_is_told_in_order_once_and_signed() {
    let (receiver, home) = place("");
    let server = home.start();
    let began = std::time::UNIX_EPOCH.elapsed().unwrap().as_millis() as u64;
    let mut alice = Socket::connect(server.address, "alice").await.unwrap();
    say(&mut alice, [1, 2]).await;
    dispatch(&server, 7, "alice", &json!({}));
    assert_eq!(alice.next().await.unwrap().d, 7);
    assert_eq!(alice.event().await.unwrap(), support::socket::Event::AckRequest);
    alice.acknowledge().await.unwrap();
    receiver.wait_until("it is delivered", |receiver| !of(&receiver.events(), "delivered").is_empty()).await;
    alice.close().await.unwrap();
    receiver.wait_until("she goes", |receiver| !of(&receiver.events(), "disconnection").is_empty()).await;

    let events = receiver.events();
    let connection = events[0]["connection"].as_str().unwrap().to_owned();
    let expected = [
        json!({ "type": "connection", "connection": connection }),
        json!({ "type": "authentication", "connection": connection, "user": "alice" }),
        json!({ "type": "message", "connection": connection, "user": "alice", "message": { "op": 0, "d": 1, "t": "N" } }),
        json!({ "type": "message", "connection": connection, "user": "alice", "message": { "op": 0, "d": 2, "t": "N" } }),
        json!({ "type": "delivered", "user": "alice", "device": null, "from": 1, "to": 1 }),
        json!({ "type": "disconnection", "connection": connection, "user": "alice" }),
    ];
    let told: Vec<Value> = events
        .iter()
        .map(|event| {
            let mut event = event.as_object().unwrap().clone();
            let (id, at) = (event.remove("id").unwrap(), event.remove("at").unwrap().as_u64().unwrap());
            assert!(id.is_string() && (began..began + 60_000).contains(&at), "{id} at {at}, {began}");
            event.into()
        })
        .collect();
    assert_eq!(told, expected);
    let numbers: Vec<u64> = events.iter().map(number).collect();
    assert_eq!(numbers, (1..=6).collect::<Vec<_>>());
    for request in receiver.requests() {
        assert_eq!(request.line, "POST /hooks HTTP/1.1");
        assert_eq!(request.header("content-type"), Some("application/json"));
        check_signature(&request);
    }
    until_metric(&server, "webhook_events_sent_total", |events| events == 6).await;
    until_metric(&server, "webhook_outbox_events", |events| events == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_the_receiver_does_everything_comes_in_order_and_what_was_taken_does_not_come_again() {
    let (receiver, home) = place("maxEvents: 5, events: ['message'],");
    let elsewhere = Receiver::start();
    let location = format!("location: {}\r\n", elsewhere.url());
    let server = home.start();
    let misdeeds = [
        Response::status(500),
        Response::With(302, location.clone(), String::new()),
        Response::With(307, location.clone(), String::new()),
        Response::With(308, location, String::new()),
        Response::status(400),
        Response::status(410),
        Response::With(503, "retry-after: 0\r\n".into(), String::new()),
        Response::With(429, "retry-after: nonsense\r\n".into(), String::new()),
        Response::Silence,
        Response::Close,
        Response::HalfWay(500),
        Response::Endless(503),
        Response::Late(Duration::from_secs(2), 200),
    ];
    let failures = misdeeds.len();
    receiver.script(misdeeds);
    // These say yes first, and misbehave after that.
    receiver.script([Response::HalfWay(200), Response::Endless(200), Response::Late(Duration::from_millis(50), 204)]);
    let mut alice = Socket::connect(server.address, "alice").await.unwrap();
    say(&mut alice, 0..60).await;
    receiver.wait_until("all of it", |receiver| said(&receiver.events()).len() == 60).await;

    assert_eq!(said(&receiver.events()), (0..60).collect::<Vec<_>>());
    assert_eq!(elsewhere.connections(), 0, "no redirection is followed");
    let mut next = 1;
    for request in receiver.requests() {
        check_signature(&request);
        let events = request.events();
        assert!((1..=5).contains(&events.len()), "{} events", events.len());
        let numbers: Vec<u64> = events.iter().map(number).collect();
        assert_eq!(numbers, (next..next + events.len() as u64).collect::<Vec<_>>(), "one batch at a time, in order");
        // What comes too late was not taken, as far as the server can know.
        if request.accepted && request.header("mesa-timestamp").is_some() && !late(&receiver, &request) {
            next += events.len() as u64;
        }
    }
    assert_eq!(next, 61);
    until_metric(&server, "webhook_events_sent_total", |events| events == 60).await;
    let failed = metric(&server, "webhook_requests_failed_total");
    assert_eq!(failed, failures as u64);
    home.wait_for_log(|log| log.contains("accepts no events"));
}

/// Whether the answer to this came when nobody waited for it any more: its events came again.
fn late(receiver: &Receiver, request: &Request) -> bool {
    let first = number(&request.events()[0]);
    receiver.requests().iter().any(|other| other.at > request.at && number(&other.events()[0]) == first)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_is_too_large_for_the_receiver_is_halved_until_it_is_not() {
    let (receiver, home) = place("maxEvents: 64, events: ['message'],");
    receiver.respond_with(Response::status(503));
    let server = home.start();
    let mut alice = Socket::connect(server.address, "alice").await.unwrap();
    // The first is told alone, again and again, until it is taken; the others wait behind it, and go together.
    say(&mut alice, [0]).await;
    receiver.wait_until("the first", |receiver| !receiver.requests().is_empty()).await;
    say(&mut alice, 1..64).await;
    until_metric(&server, "webhook_outbox_events", |events| events == 64).await;
    receiver.script([Response::status(200), Response::status(413), Response::status(413), Response::status(413)]);
    receiver.respond_with(Response::status(200));
    receiver.wait_until("all of it", |receiver| said(&receiver.events()).len() == 64).await;
    assert_eq!(said(&receiver.events()), (0..64).collect::<Vec<_>>());
    let sizes: Vec<usize> = receiver.requests().iter().map(|request| request.events().len()).collect();
    let halved = sizes.windows(4).any(|sizes| sizes == [63, 32, 16, 8]);
    assert!(halved, "{sizes:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_larger_than_a_value_of_the_store_comes_whole() {
    let (receiver, home) = place("events: ['message'], maxBytes: 1024,");
    let server = home.start();
    let mut alice = Socket::connect(server.address, "alice").await.unwrap();
    let text = "é".repeat(30_000);
    alice.send_frame(&json!({ "op": 0, "d": text })).await.unwrap();
    say(&mut alice, [1]).await;
    receiver.wait_until("both", |receiver| receiver.events().len() == 2).await;
    assert_eq!(receiver.events()[0]["message"]["d"], text);
    assert_eq!(receiver.requests().iter().map(|request| request.events().len()).max(), Some(1), "each on its own");
}
