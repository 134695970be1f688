//! Tests that client events are complete, in order and signed, also with failing receivers.

use super::*;
use crate::support::http_receiver::{Receiver, Response};

#[tokio::test(flavor = "multi_thread")]
async fn events_of_a_client_are_sent_once_in_order_and_signed() {
    let (receiver, home) = start_receiver("");
    let server = home.start();
    let began = std::time::UNIX_EPOCH.elapsed().unwrap().as_millis() as u64;
    let mut alice = Socket::connect(server.address, "alice").await.unwrap();
    send_numbers(&mut alice, [1, 2]).await;
    dispatch(&server, 7, "alice", &json!({}));
    assert_eq!(alice.next().await.unwrap().d, 7);
    assert_eq!(alice.event().await.unwrap(), support::socket::Event::AckRequest);
    alice.acknowledge().await.unwrap();
    receiver.wait_until("delivered event", |receiver| !of_type(&receiver.events(), "delivered").is_empty()).await;
    alice.close().await.unwrap();
    receiver
        .wait_until("disconnection event", |receiver| !of_type(&receiver.events(), "disconnection").is_empty())
        .await;

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
    let received: Vec<Value> = events
        .iter()
        .map(|event| {
            let mut event = event.as_object().unwrap().clone();
            let (id, at) = (event.remove("id").unwrap(), event.remove("at").unwrap().as_u64().unwrap());
            assert!(id.is_string() && (began..began + 60_000).contains(&at), "{id} at {at}, {began}");
            event.into()
        })
        .collect();
    assert_eq!(received, expected);
    let numbers: Vec<u64> = events.iter().map(event_number).collect();
    assert_eq!(numbers, (1..=6).collect::<Vec<_>>());
    for request in receiver.requests() {
        assert_eq!(request.line, "POST /hooks HTTP/1.1");
        assert_eq!(request.header("content-type"), Some("application/json"));
        check_signature(&request);
    }
    wait_for_metric(&server, "mesa_webhook_events_sent_total", |events| events == 6).await;
    wait_for_metric(&server, "mesa_webhook_outbox_events", |events| events == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_requests_are_retried_in_order_and_accepted_ones_are_not_repeated() {
    let (receiver, home) =
        start_receiver_with_timeout(Duration::from_millis(400), "maxEvents: 5, events: ['message'],");
    let other = Receiver::start();
    let location = format!("location: {}\r\n", other.url());
    let server = home.start();
    let failing = [
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
    let failures = failing.len();
    receiver.script(failing);
    // These succeed by their status, and fail in the body or are slow.
    receiver.script([Response::HalfWay(200), Response::Endless(200), Response::Late(Duration::from_millis(50), 204)]);
    let mut alice = Socket::connect(server.address, "alice").await.unwrap();
    send_numbers(&mut alice, 0..60).await;
    receiver.wait_until("all 60 messages", |receiver| message_numbers(&receiver.events()).len() == 60).await;

    assert_eq!(message_numbers(&receiver.events()), (0..60).collect::<Vec<_>>());
    assert_eq!(other.connections(), 0, "no redirect is followed");
    let mut next = 1;
    for request in receiver.requests() {
        check_signature(&request);
        let events = request.events();
        assert!((1..=5).contains(&events.len()), "{} events", events.len());
        let numbers: Vec<u64> = events.iter().map(event_number).collect();
        assert_eq!(numbers, (next..next + events.len() as u64).collect::<Vec<_>>(), "one batch at a time, in order");
        // A response after the server's timeout does not count as accepted.
        if request.accepted && request.header("mesa-timestamp").is_some() && !was_late(&receiver, &request) {
            next += events.len() as u64;
        }
    }
    assert_eq!(next, 61);
    wait_for_metric(&server, "mesa_webhook_events_sent_total", |events| events == 60).await;
    let failed = metric(&server, "mesa_webhook_requests_failed_total");
    // On a busy machine also other responses come after the timeout.
    assert!(failed >= failures as u64, "{failed} failed requests, expected {failures} or more");
    home.wait_for_log(|log| log.contains("accepts no events"));
}

/// Reports whether the response came after the server's timeout, so that the events were sent again.
fn was_late(receiver: &Receiver, request: &Request) -> bool {
    let first = event_number(&request.events()[0]);
    receiver.requests().iter().any(|other| other.at > request.at && event_number(&other.events()[0]) == first)
}

#[tokio::test(flavor = "multi_thread")]
async fn batch_rejected_with_413_is_halved_until_accepted() {
    let (receiver, home) = start_receiver("maxEvents: 64, events: ['message'],");
    receiver.respond_with(Response::status(503));
    let server = home.start();
    let mut alice = Socket::connect(server.address, "alice").await.unwrap();
    // The first event is sent alone and retried. The others are queued behind it, and sent together.
    send_numbers(&mut alice, [0]).await;
    receiver.wait_until("first request", |receiver| !receiver.requests().is_empty()).await;
    send_numbers(&mut alice, 1..64).await;
    wait_for_metric(&server, "mesa_webhook_outbox_events", |events| events == 64).await;
    receiver.script([Response::status(200), Response::status(413), Response::status(413), Response::status(413)]);
    receiver.respond_with(Response::status(200));
    receiver.wait_until("all 64 messages", |receiver| message_numbers(&receiver.events()).len() == 64).await;
    assert_eq!(message_numbers(&receiver.events()), (0..64).collect::<Vec<_>>());
    let sizes: Vec<usize> = receiver.requests().iter().map(|request| request.events().len()).collect();
    let halved = sizes.windows(4).any(|sizes| sizes == [63, 32, 16, 8]);
    assert!(halved, "batches of 63, 32, 16 and 8 in {sizes:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn message_stored_in_several_pieces_is_sent_complete() {
    let (receiver, home) = start_receiver("events: ['message'], maxBytes: 1024,");
    let server = home.start();
    let mut alice = Socket::connect(server.address, "alice").await.unwrap();
    let text = "é".repeat(30_000);
    alice.send_frame(&json!({ "op": 0, "d": text })).await.unwrap();
    send_numbers(&mut alice, [1]).await;
    receiver.wait_until("both events", |receiver| receiver.events().len() == 2).await;
    assert_eq!(receiver.events()[0]["message"]["d"], text);
    assert_eq!(
        receiver.requests().iter().map(|request| request.events().len()).max(),
        Some(1),
        "one event per request"
    );
}
