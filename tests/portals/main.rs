//! Tests the client events that portals receive from `GET /v1/events`, over real sockets.
#![allow(missing_docs)]

mod missed_event;
mod sse_client;
#[path = "../support/mod.rs"]
#[allow(dead_code, reason = "each suite uses a part of it")]
mod support;

use std::time::Duration;

use mesa::client::{Connection, ConnectionEvent};
use serde_json::{Value, json};
use sse_client::EventStream;
use support::{in_process::TestServer, wait::WAIT_TIMEOUT};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::watch,
    time::timeout,
};

/// Sends one client message per number.
async fn send_numbers(client: &mut Connection, numbers: std::ops::Range<usize>) {
    for number in numbers {
        client.send("N", &number).await.unwrap();
    }
}

/// Returns the number in a client message of [`send_numbers`].
fn number(data: &Value) -> usize {
    assert_eq!((&data["type"], &data["message"]["t"]), (&json!("message"), &json!("N")), "{data}");
    data["message"]["d"].as_u64().unwrap() as usize
}

#[tokio::test(flavor = "multi_thread")]
async fn stream_reports_connection_messages_authentication_and_disconnection_of_client() {
    let server = TestServer::start(|_| {}).await;
    let mut events = EventStream::open_stream(&server, "", None).await;
    assert!(events.head.contains("content-type: text/event-stream\n"), "{}", events.head);
    assert!(events.last.ends_with("-0"), "{}", events.last);
    let mut client = server.connect().await;
    let first = events.next().await.unwrap();
    let connection = first.data["connection"].as_str().unwrap().to_owned();
    assert_eq!(first.data, json!({"type": "connection", "connection": connection}));
    assert!(first.id.unwrap().ends_with("-1"));
    client.send("HELLO", &json!({"n": [1, "\n"]})).await.unwrap();
    let message = json!({"op": 0, "d": {"n": [1, "\n"]}, "t": "HELLO"});
    assert_eq!(events.data().await, json!({"type": "message", "connection": connection, "message": message}));
    client.authenticate(mesa::client::token("alice"), true).await.unwrap();
    assert_eq!(events.data().await, json!({"type": "authentication", "connection": connection, "user": "alice"}));
    client.send_frame(30, None, &1.5).await.unwrap();
    let message = json!({"op": 30, "d": 1.5});
    let expected = json!({"type": "message", "connection": connection, "user": "alice", "message": message});
    assert_eq!(events.data().await, expected);
    client.close().await;
    assert_eq!(events.data().await, json!({"type": "disconnection", "connection": connection, "user": "alice"}));
}

#[tokio::test(flavor = "multi_thread")]
async fn portals_share_events_in_turn_and_portal_of_all_events_receives_each() {
    let server = TestServer::start(|_| {}).await;
    let mut alice = server.client("alice").await;
    let mut all = EventStream::open_stream(&server, "?all=true", None).await;
    let mut one = EventStream::open_stream(&server, "", None).await;
    let mut two = EventStream::open_stream(&server, "?all=false", None).await;
    send_numbers(&mut alice, 0..10).await;
    let mut shares = [Vec::new(), Vec::new()];
    for (share, events) in shares.iter_mut().zip([&mut one, &mut two]) {
        for _ in 0..5 {
            share.push(number(&events.data().await));
        }
    }
    shares.sort();
    assert_eq!(shares, [[0, 2, 4, 6, 8], [1, 3, 5, 7, 9]]);
    for n in 0..10 {
        assert_eq!(number(&all.data().await), n);
    }
    drop(two);
    server.wait_for_metric("mesa_portals 2").await;
    send_numbers(&mut alice, 10..20).await;
    let mut rest = Vec::new();
    while rest.len() < 10 {
        rest.push(number(&one.data().await));
    }
    rest.sort_unstable();
    assert_eq!(rest, (10..20).collect::<Vec<_>>());
}

// covers: G4
#[tokio::test(flavor = "multi_thread")]
async fn resumed_stream_continues_after_last_event_id_and_closes_the_old_connection() {
    let server = TestServer::start(|_| {}).await;
    let mut alice = server.client("alice").await;
    let mut events = EventStream::open_stream(&server, "", None).await;
    send_numbers(&mut alice, 0..5).await;
    for n in 0..5 {
        assert_eq!(number(&events.data().await), n);
    }
    let second = events.last.replace("-5", "-2");
    // The old connection is still open. The resumed stream replaces it.
    let mut resumed = EventStream::open_stream(&server, "", Some(&second)).await;
    assert_eq!(resumed.last, second);
    assert_eq!(events.next().await, None);
    for n in 2..5 {
        assert_eq!(number(&resumed.data().await), n);
    }
    let last = resumed.last.clone();
    drop(resumed);
    send_numbers(&mut alice, 5..7).await;
    let mut resumed = EventStream::open_stream(&server, "", Some(&last)).await;
    for n in 5..7 {
        let event = resumed.next().await.unwrap();
        assert_eq!((number(&event.data), event.name), (n, None));
    }
}

// covers: G4
#[tokio::test(flavor = "multi_thread")]
async fn stream_with_unknown_event_id_begins_with_missed_and_malformed_id_is_400() {
    let server = TestServer::start(|_| {}).await;
    let mut alice = server.client("alice").await;
    let mut events = EventStream::open_stream(&server, "", Some("0123456789abcdef-3")).await;
    let missed = events.next().await.unwrap();
    assert_eq!((missed.name.as_deref(), missed.data), (Some("missed"), json!({"type": "missed", "count": null})));
    send_numbers(&mut alice, 0..1).await;
    assert_eq!(number(&events.data().await), 0);
    let malformed = EventStream::open(&server, "", Some("nonsense")).await;
    assert_eq!(malformed.status, 400);
    for query in ["?al=true", "?observe=1", "?observe=true&all=true"] {
        assert_eq!(EventStream::open(&server, query, None).await.status, 400, "{query}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn observers_receive_each_event_and_take_none_from_portals() {
    for portals in [true, false] {
        let server = TestServer::start(|config| config.portal.enabled = portals).await;
        let mut one = EventStream::open_stream(&server, "?observe=true", None).await;
        // An observer cannot resume, so the id of an event has no effect.
        let mut two = EventStream::open_stream(&server, "?observe=true", Some("0123456789abcdef-3")).await;
        let mut portal = None;
        if portals {
            portal = Some(EventStream::open_stream(&server, "", None).await);
        }
        let mut alice = server.client("alice").await;
        send_numbers(&mut alice, 0..5).await;
        alice.close().await;
        let mut seen = Vec::new();
        for events in [&mut one, &mut two].into_iter().chain(&mut portal) {
            let mut all = Vec::new();
            while all.last().is_none_or(|last: &Value| last["type"] != "disconnection") {
                let event = events.next().await.unwrap();
                assert_eq!(event.name, None);
                all.push(event.data);
            }
            assert_eq!(
                all.iter().filter(|data| data["type"] == "message").map(number).collect::<Vec<_>>(),
                [0, 1, 2, 3, 4]
            );
            assert_eq!(
                (all.len(), &all[0]["type"], &all[1]["type"]),
                (8, &json!("connection"), &json!("authentication"))
            );
            seen.push(all);
        }
        assert!(seen.iter().all(|all| *all == seen[0]), "{seen:?}");
        assert_eq!((one.last.as_str(), two.last.as_str()), ("", ""), "an event for an observer has no id");
        server.wait_for_metric(&format!("mesa_portals {}", usize::from(portals))).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_observer_receives_the_number_of_dropped_events_and_delays_no_client() {
    const MESSAGES: usize = 2000;
    let mut server = TestServer::start(|config| config.limits.frames_per_second = 1_000_000).await;
    let mut slow = EventStream::open_stream_with_small_buffer(&server, "?observe=true").await;
    let mut alice = server.client("alice").await;
    for expected in ["connection", "authentication"] {
        assert_eq!(slow.data().await["type"], expected);
    }
    let filler = "x".repeat(20_000);
    for n in 0..MESSAGES {
        alice.send("N", &json!([n, filler])).await.unwrap();
    }
    // All messages are read from the client, although the observer has read none.
    alice.close().await;
    let (mut missed, mut received, mut next) = (0, 0, 0);
    loop {
        let event = slow.next().await.unwrap();
        match (event.name.as_deref(), event.data["type"].as_str().unwrap()) {
            (Some("dropped"), "dropped") => {
                let count = event.data["count"].as_u64().unwrap() as usize;
                missed += count;
                next += count;
            }
            (None, "message") => {
                assert_eq!(event.data["message"]["d"][0], next, "the count precedes the events that follow");
                (received, next) = (received + 1, next + 1);
            }
            (None, "disconnection") => break,
            other => panic!("unexpected event {other:?}"),
        }
    }
    assert!(missed > 0 && missed + received == MESSAGES, "{missed} + {received}");
    server.stop().await;
    assert_eq!(slow.next().await, None, "the stream ends with the server");
}

// covers: G4
#[tokio::test(flavor = "multi_thread")]
async fn portal_that_does_not_read_is_removed_and_its_events_are_reassigned() {
    const MESSAGES: usize = 3000;
    let server = TestServer::start(|config| {
        // The quick portal has to read within this time, also on a machine that stalls.
        config.limits.write_timeout = Duration::from_secs(10);
        config.limits.frames_per_second = 1_000_000;
    })
    .await;
    let mut alice = server.client("alice").await;
    let unread = EventStream::open_stream_with_small_buffer(&server, "").await;
    let mut quick = EventStream::open_stream(&server, "", None).await;
    let (progress, mut received) = watch::channel(0);
    let sending = tokio::spawn(async move {
        let filler = "x".repeat(10_000);
        for n in 0..MESSAGES {
            alice.send("N", &json!([n, filler])).await.unwrap();
            // At most 700 messages ahead. That is more than the system buffers for the unread stream. It is less than
            // one portal's queue holds, so nothing is dropped when the unread stream is removed.
            received.wait_for(|received| n < received + 700).await.unwrap();
        }
        alice
    });
    // The unread stream is removed after 10 s. Its queued events are reassigned to the quick one. EventStream that were
    // already written to its socket are not.
    let mut seen = [false; MESSAGES];
    let mut count = 0;
    while let Ok(event) = timeout(Duration::from_secs(30), quick.data()).await {
        let n = event["message"]["d"][0].as_u64().unwrap() as usize;
        assert!(!std::mem::replace(&mut seen[n], true), "message {n} is received once");
        count += 1;
        progress.send_replace(count);
    }
    let _alice = timeout(WAIT_TIMEOUT, sending).await.unwrap().unwrap();
    let metrics = server.metrics().await;
    assert!(
        metrics.contains("mesa_portals 1\n") && metrics.contains("mesa_portal_events_dropped_total 0\n"),
        "{metrics}"
    );
    // The system buffers about 10 MB at most for an unread socket, which is less than 1400 events.
    assert!(count > MESSAGES - 1400, "{count} of {MESSAGES} messages are received");
    assert!(!metrics.contains("mesa_portal_events_forwarded_total 0\n"), "{metrics}");
    drop(unread);
}

#[tokio::test(flavor = "multi_thread")]
async fn stream_without_key_is_401_and_with_portals_disabled_is_409() {
    let server = TestServer::start(|config| config.portal.enabled = false).await;
    assert_eq!(EventStream::open(&server, "", None).await.status, 409);
    let mut socket = tokio::net::TcpStream::connect(server.address).await.unwrap();
    socket.write_all(b"GET /v1/events HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut response = String::new();
    timeout(WAIT_TIMEOUT, socket.read_to_string(&mut response)).await.unwrap().unwrap();
    assert!(response.starts_with("HTTP/1.1 401"), "{response}");
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_server_ends_its_streams() {
    let mut server = TestServer::start(|_| {}).await;
    let mut events = EventStream::open_stream(&server, "", None).await;
    server.stop().await;
    assert_eq!(events.next().await, None);
}

// covers: G4
#[tokio::test(flavor = "multi_thread")]
async fn stopping_server_sends_all_messages_and_disconnections_before_streams_end() {
    let mut server = TestServer::start(|_| {}).await;
    let mut clients = [server.client("alice").await, server.client("bob").await];
    let mut one = EventStream::open_stream(&server, "", None).await;
    let mut all = EventStream::open_stream(&server, "?all=true", None).await;
    for client in &mut clients {
        send_numbers(client, 0..3).await;
    }
    let closing = clients.map(|mut client| {
        tokio::spawn(
            async move { while !matches!(client.next().await, Ok(ConnectionEvent::Closed { .. }) | Err(_)) {} },
        )
    });
    server.stop().await;
    for events in [&mut one, &mut all] {
        let (mut messages, mut disconnected) = (Vec::new(), Vec::new());
        while let Some(event) = events.next().await {
            let user = event.data["user"].as_str().unwrap().to_owned();
            match event.data["type"].as_str().unwrap() {
                "message" => {
                    assert!(!disconnected.contains(&user), "no message of {user} follows the disconnection");
                    messages.push((user, number(&event.data)));
                }
                "disconnection" => disconnected.push(user),
                other => panic!("only messages and disconnections are expected, not {other}"),
            }
        }
        messages.sort();
        disconnected.sort();
        let expected = ["alice", "bob"].map(|user| [0, 1, 2].map(|n| (user.to_owned(), n))).concat();
        assert_eq!((messages, disconnected), (expected, vec!["alice".to_owned(), "bob".to_owned()]));
    }
    for client in closing {
        client.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn client_accepted_after_the_last_one_left_a_stopping_server_is_closed_with_1001() {
    let upgrade = "GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                   Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    let (half, rest) = upgrade.split_at(40);
    // The server must have read half of the request before it stops. Otherwise it sends no response, and the test tries
    // again.
    for _ in 0..10 {
        let mut server = TestServer::start(|_| {}).await;
        let mut late = TcpStream::connect(server.address).await.unwrap();
        late.write_all(half.as_bytes()).await.unwrap();
        let mut events = EventStream::open_stream(&server, "", None).await;
        let stopping = tokio::spawn(async move { server.stop().await });
        assert_eq!(events.next().await, None, "the stream ends when no client is connected");
        let mut received = Vec::new();
        if late.write_all(rest.as_bytes()).await.is_ok() {
            // An unmasked close frame with code 1001.
            let is_closed = |bytes: &[u8]| bytes.windows(4).any(|part| part[0] == 0x88 && part[2..] == [0x03, 0xe9]);
            while !is_closed(&received) {
                let read = timeout(WAIT_TIMEOUT, late.read_buf(&mut received)).await;
                match read.expect("a close frame in time") {
                    Ok(read) if read > 0 => {}
                    _ => break,
                }
            }
            if received.starts_with(b"HTTP/1.1 101") {
                assert!(is_closed(&received), "{}", String::from_utf8_lossy(&received));
                // Answers with a masked close frame.
                late.write_all(&[0x88, 0x82, 0, 0, 0, 0, 0x03, 0xe9]).await.unwrap();
                timeout(WAIT_TIMEOUT, stopping).await.unwrap().unwrap();
                return;
            }
        }
        timeout(WAIT_TIMEOUT, stopping).await.unwrap().unwrap();
    }
    panic!("in ten attempts the server never read half a request before it stopped");
}
