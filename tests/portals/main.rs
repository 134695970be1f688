//! Portals over real sockets: what a backend is told about clients by `GET /v1/events`.
#![allow(missing_docs)]

mod events;
mod missed;
mod served;

use std::time::Duration;

use events::Events;
use mesa::client::{Connection, ConnectionEvent};
use serde_json::{Value, json};
use served::{PATIENCE, Served};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::watch,
    time::timeout,
};

/// A client says the numbers of a range.
async fn say(client: &mut Connection, numbers: std::ops::Range<usize>) {
    for number in numbers {
        client.send("N", &number).await.unwrap();
    }
}

/// The number that a client said.
fn number(data: &Value) -> usize {
    assert_eq!((&data["type"], &data["message"]["t"]), (&json!("message"), &json!("N")), "{data}");
    data["message"]["d"].as_u64().unwrap() as usize
}

#[tokio::test(flavor = "multi_thread")]
async fn what_happens_to_a_client_is_told_from_beginning_to_end() {
    let served = Served::start(|_| {}).await;
    let mut events = Events::begun(&served, "", None).await;
    assert!(events.head.contains("content-type: text/event-stream\n"), "{}", events.head);
    assert!(events.last.ends_with("-0"), "{}", events.last);
    let mut stranger = served.stranger().await;
    let came = events.next().await.unwrap();
    let connection = came.data["connection"].as_str().unwrap().to_owned();
    assert_eq!(came.data, json!({"type": "connection", "connection": connection}));
    assert!(came.id.unwrap().ends_with("-1"));
    stranger.send("HELLO", &json!({"n": [1, "\n"]})).await.unwrap();
    let message = json!({"op": 0, "d": {"n": [1, "\n"]}, "t": "HELLO"});
    assert_eq!(events.data().await, json!({"type": "message", "connection": connection, "message": message}));
    stranger.authenticate(mesa::client::token("alice"), true).await.unwrap();
    assert_eq!(events.data().await, json!({"type": "authentication", "connection": connection, "user": "alice"}));
    stranger.send_frame(30, None, &1.5).await.unwrap();
    let message = json!({"op": 30, "d": 1.5});
    let said = json!({"type": "message", "connection": connection, "user": "alice", "message": message});
    assert_eq!(events.data().await, said);
    stranger.close().await;
    assert_eq!(events.data().await, json!({"type": "disconnection", "connection": connection, "user": "alice"}));
}

#[tokio::test(flavor = "multi_thread")]
async fn portals_share_what_happens_and_one_that_wants_all_has_all() {
    let served = Served::start(|_| {}).await;
    let mut alice = served.client("alice").await;
    let mut all = Events::begun(&served, "?all=true", None).await;
    let (mut one, mut two) = (Events::begun(&served, "", None).await, Events::begun(&served, "?all=false", None).await);
    say(&mut alice, 0..10).await;
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
    served.metric("mesa_portals 2").await;
    say(&mut alice, 10..20).await;
    let mut rest = Vec::new();
    while rest.len() < 10 {
        rest.push(number(&one.data().await));
    }
    rest.sort_unstable();
    assert_eq!(rest, (10..20).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_is_resumed_where_it_broke_off() {
    let served = Served::start(|_| {}).await;
    let mut alice = served.client("alice").await;
    let mut events = Events::begun(&served, "", None).await;
    say(&mut alice, 0..5).await;
    for n in 0..5 {
        assert_eq!(number(&events.data().await), n);
    }
    let second = events.last.replace("-5", "-2");
    // The old connection is still there: whoever resumes takes its place.
    let mut resumed = Events::begun(&served, "", Some(&second)).await;
    assert_eq!(resumed.last, second);
    assert_eq!(events.next().await, None);
    for n in 2..5 {
        assert_eq!(number(&resumed.data().await), n);
    }
    let last = resumed.last.clone();
    drop(resumed);
    say(&mut alice, 5..7).await;
    let mut resumed = Events::begun(&served, "", Some(&last)).await;
    for n in 5..7 {
        let event = resumed.next().await.unwrap();
        assert_eq!((number(&event.data), event.name), (n, None));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_resumed_is_told_to_be_missing() {
    let served = Served::start(|_| {}).await;
    let mut alice = served.client("alice").await;
    let mut events = Events::begun(&served, "", Some("0123456789abcdef-3")).await;
    let missed = events.next().await.unwrap();
    assert_eq!((missed.name.as_deref(), missed.data), (Some("missed"), json!({"type": "missed", "count": null})));
    say(&mut alice, 0..1).await;
    assert_eq!(number(&events.data().await), 0);
    let wrong = Events::open(&served, "", Some("nonsense")).await;
    assert_eq!(wrong.status, 400);
    assert_eq!(Events::open(&served, "?al=true", None).await.status, 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_does_not_read_costs_no_more_than_its_bounds_and_others_get_its_share() {
    const SAID: usize = 3000;
    let served = Served::start(|config| {
        config.limits.write_timeout = Duration::from_secs(1);
        config.limits.frames_per_second = 1_000_000;
    })
    .await;
    let mut alice = served.client("alice").await;
    let stuck = Events::begun_with_small_buffer(&served).await;
    let mut quick = Events::begun(&served, "", None).await;
    let (tell, mut heard) = watch::channel(0);
    let saying = tokio::spawn(async move {
        let filler = "x".repeat(10_000);
        for n in 0..SAID {
            alice.send("N", &json!([n, filler])).await.unwrap();
            // More than the system takes for the one that does not read, and less than one inbox holds: whenever that one is
            // taken out, nothing is dropped.
            heard.wait_for(|heard| n < heard + 700).await.unwrap();
        }
        alice
    });
    // Nobody reads what the first one is given: it is taken out after a second, and what it had not taken comes here. What
    // was written to its socket by then is with the system.
    let mut seen = [false; SAID];
    let mut count = 0;
    while let Ok(event) = timeout(Duration::from_secs(4), quick.data()).await {
        let n = event["message"]["d"][0].as_u64().unwrap() as usize;
        assert!(!std::mem::replace(&mut seen[n], true), "{n} came twice");
        count += 1;
        tell.send_replace(count);
    }
    let _alice = timeout(PATIENCE, saying).await.unwrap().unwrap();
    let text = served.metrics().await;
    assert!(text.contains("mesa_portals 1\n") && text.contains("mesa_portal_events_dropped_total 0\n"), "{text}");
    // The system takes some ten megabytes at most for a socket that nobody reads from.
    assert!(count > SAID - 1400, "{count} of {SAID}");
    assert!(!text.contains("mesa_portal_events_passed_on_total 0\n"), "{text}");
    drop(stuck);
}

#[tokio::test(flavor = "multi_thread")]
async fn events_need_a_key_and_portals_that_are_on() {
    let served = Served::start(|config| config.portal.enabled = false).await;
    assert_eq!(Events::open(&served, "", None).await.status, 409);
    let mut socket = tokio::net::TcpStream::connect(served.address).await.unwrap();
    socket.write_all(b"GET /v1/events HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    timeout(PATIENCE, socket.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_stops_ends_its_streams() {
    let mut served = Served::start(|_| {}).await;
    let mut events = Events::begun(&served, "", None).await;
    served.stopped().await;
    assert_eq!(events.next().await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_server_that_stops_the_last_word_of_every_client_is_told() {
    let mut served = Served::start(|_| {}).await;
    let mut clients = [served.client("alice").await, served.client("bob").await];
    let (mut one, mut all) = (Events::begun(&served, "", None).await, Events::begun(&served, "?all=true", None).await);
    for client in &mut clients {
        say(client, 0..3).await;
    }
    let leaving = clients.map(|mut client| {
        tokio::spawn(
            async move { while !matches!(client.next().await, Ok(ConnectionEvent::Closed { .. }) | Err(_)) {} },
        )
    });
    served.stopped().await;
    for events in [&mut one, &mut all] {
        let (mut said, mut gone) = (Vec::new(), Vec::new());
        while let Some(event) = events.next().await {
            let user = event.data["user"].as_str().unwrap().to_owned();
            match event.data["type"].as_str().unwrap() {
                "message" => {
                    assert!(!gone.contains(&user), "{user} speaks after having gone");
                    said.push((user, number(&event.data)));
                }
                "disconnection" => gone.push(user),
                other => panic!("{other}"),
            }
        }
        said.sort();
        gone.sort();
        let expected = ["alice", "bob"].map(|user| [0, 1, 2].map(|n| (user.to_owned(), n))).concat();
        assert_eq!((said, gone), (expected, vec!["alice".to_owned(), "bob".to_owned()]));
    }
    for left in leaving {
        left.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_let_in_when_the_others_have_gone_already_is_told_to_go_too() {
    let upgrade = "GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                   Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    let (half, rest) = upgrade.split_at(40);
    // A request of which nothing was read when the server is told to stop is not answered at all.
    for _ in 0..10 {
        let mut served = Served::start(|_| {}).await;
        let mut late = TcpStream::connect(served.address).await.unwrap();
        late.write_all(half.as_bytes()).await.unwrap();
        let mut events = Events::begun(&served, "", None).await;
        let stopping = tokio::spawn(async move { served.stopped().await });
        assert_eq!(events.next().await, None, "the last client has gone");
        let mut heard = Vec::new();
        if late.write_all(rest.as_bytes()).await.is_ok() {
            // 1001, from a server to a client.
            let closed = |heard: &[u8]| heard.windows(4).any(|at| at[0] == 0x88 && at[2..] == [0x03, 0xe9]);
            while !closed(&heard) {
                let read = timeout(Duration::from_secs(120), late.read_buf(&mut heard)).await;
                match read.expect("it is told to go") {
                    Ok(read) if read > 0 => {}
                    _ => break,
                }
            }
            if heard.starts_with(b"HTTP/1.1 101") {
                assert!(closed(&heard), "{}", String::from_utf8_lossy(&heard));
                // As a client answers it.
                late.write_all(&[0x88, 0x82, 0, 0, 0, 0, 0x03, 0xe9]).await.unwrap();
                timeout(PATIENCE, stopping).await.unwrap().unwrap();
                return;
            }
        }
        timeout(PATIENCE, stopping).await.unwrap().unwrap();
    }
    panic!("never was half a request read before the server stopped");
}
