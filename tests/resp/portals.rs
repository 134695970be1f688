//! Tests portals of the original (`@cryb/mesa`) on the RESP port: shares, redistribution and shutdown.

use std::collections::HashMap;

use mesa::client::{Connection, ConnectionEvent};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::{
    client::RespClient,
    start_server, start_server_with,
    support::{connected::leave_connected, in_process::TestServer, wait::WAIT_TIMEOUT},
};

/// A portal of the original, with its three connections.
struct Portal {
    id: &'static str,
    announcer: RespClient,
    publisher: RespClient,
    subscriber: RespClient,
}

impl Portal {
    /// Connects a portal and announces it, and waits until the server counts `count` portals.
    async fn announce(server: &TestServer, id: &'static str, count: usize) -> Self {
        let announcer = RespClient::connect(server).await;
        let publisher = RespClient::connect(server).await;
        let subscriber = RespClient::connect_with_small_buffer(server).await;
        let mut portal = Self { id, announcer, publisher, subscriber };
        // After a reply on each, the server has accepted the connections in this order.
        for client in [&mut portal.announcer, &mut portal.publisher, &mut portal.subscriber] {
            assert_eq!(client.call(&["PING"]).await, "+PONG");
        }
        assert_eq!(portal.subscriber.call(&["SUBSCRIBE", "portal"]).await, "[subscribe portal :1]");
        let ready = json!({"id": id, "ready": true}).to_string();
        assert_eq!(portal.publisher.call(&["PUBLISH", "available_portals_pool", &ready]).await, ":1");
        let added = portal.announcer.call(&["SADD", "available_portals_pool", id]).await;
        assert_eq!(added, ":0", "the server knows the portal since its PUBLISH");
        server.wait_for_metric(&format!("mesa_portals {count}")).await;
        portal
    }

    /// Returns the next event: portal id, type and client id. `None`: the server has closed the connection.
    async fn next_event(&mut self) -> Option<[String; 3]> {
        let text = self.subscriber.reply().await?;
        let text = text.strip_prefix("[message portal ")?.strip_suffix(']')?;
        let event: Value = serde_json::from_str(text).unwrap();
        Some(["portalId", "type", "clientId"].map(|field| event[field].as_str().unwrap_or_default().to_owned()))
    }

    /// Returns the portal id of the next event, and the number in the client's message.
    async fn next_message(&mut self) -> Option<(String, u64)> {
        let text = self.subscriber.reply().await?;
        let text = text.strip_prefix("[message portal ")?.strip_suffix(']')?;
        let event: Value = serde_json::from_str(text).unwrap();
        Some((event["portalId"].as_str().unwrap().to_owned(), event["message"]["d"][0].as_u64()?))
    }
}

/// Sends one client message per number, each with a filler text.
async fn send_numbers(client: &mut Connection, numbers: std::ops::Range<u64>, filler: &str) {
    for number in numbers {
        client.send("N", &json!([number, filler])).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn event_is_sent_to_all_original_portals_and_names_one_of_them() {
    let server = start_server().await;
    let mut alice = server.client("alice").await;
    let (mut one, mut two) = (Portal::announce(&server, "one", 1).await, Portal::announce(&server, "two", 2).await);
    send_numbers(&mut alice, 0..10, "").await;
    let mut numbers_of: HashMap<String, Vec<u64>> = HashMap::new();
    for n in 0..10 {
        let (portal, number) = one.next_message().await.unwrap();
        assert_eq!(two.next_message().await.unwrap(), (portal.clone(), number));
        assert_eq!(number, n);
        numbers_of.entry(portal).or_default().push(n);
    }
    assert_eq!(numbers_of[one.id].len(), 5);
    assert_eq!(numbers_of[two.id].len(), 5);
    assert_eq!(one.announcer.call(&["SMEMBERS", "available_portals_pool"]).await, "[one two]");
    assert_eq!(one.announcer.call(&["SREM", "available_portals_pool", "one"]).await, ":1");
    server.wait_for_metric("mesa_portals 1").await;
    send_numbers(&mut alice, 10..12, "").await;
    for n in 10..12 {
        let event = one.next_message().await.unwrap();
        assert_eq!(event, ("two".into(), n), "a removed portal receives events, all for the other portal");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn events_of_closed_slow_portal_are_reassigned_to_another_once() {
    const MESSAGES: u64 = 1500;
    let server = TestServer::start(|config| {
        config.redis_protocol.port = Some(0);
        config.redis_protocol.backlog_bytes = 1 << 20;
        config.limits.frames_per_second = 1_000_000;
    })
    .await;
    let mut alice = server.client("alice").await;
    let (mut slow, mut quick) =
        (Portal::announce(&server, "slow", 1).await, Portal::announce(&server, "quick", 2).await);
    let (progress, mut received) = tokio::sync::watch::channel(0);
    let sending = tokio::spawn(async move {
        let filler = "x".repeat(20_000);
        for n in 0..MESSAGES {
            send_numbers(&mut alice, n..n + 1, &filler).await;
            // At most 20 messages ahead, or the quick portal would be closed as well.
            received.wait_for(|received| n < received + 20).await.unwrap();
        }
        alice
    });
    let mut of_quick = Vec::new();
    let mut highest = 0;
    // The quick portal receives an event for the slow one a second time when it is reassigned. The test ends after a silence
    // that is longer than a busy machine stalls.
    while let Ok(event) = timeout(std::time::Duration::from_secs(20), quick.next_message()).await {
        let (id, n) = event.expect("the quick portal is not closed");
        highest = highest.max(n);
        progress.send_replace(highest);
        if id == "quick" {
            of_quick.push(n);
        }
    }
    let _alice = timeout(WAIT_TIMEOUT, sending).await.unwrap().unwrap();
    server.wait_for_metric("mesa_redis_protocol_subscribers_disconnected_total 1").await;
    // Reads what the system had buffered for the slow portal. The last event may be incomplete.
    let mut of_slow = Vec::new();
    while let Some((id, n)) = slow.next_message().await {
        if id == "slow" {
            of_slow.push(n);
        }
    }
    let (slow_count, quick_count) = (of_slow.len(), of_quick.len());
    assert!(slow_count > 0 && quick_count > slow_count, "{slow_count} events for slow, {quick_count} for quick");
    let mut all = [of_quick, of_slow].concat();
    all.sort_unstable();
    let repeated = all.windows(2).filter(|pair| pair[0] == pair[1]).count();
    all.dedup();
    let lost = MESSAGES as usize - all.len();
    // One write of 64 KiB was interrupted. The server cannot know how much of it arrived, so up to 4 events are lost.
    assert!(lost <= 4 && repeated == 0, "{lost} events lost, {repeated} repeated");
    let metrics = server.metrics().await;
    assert!(!metrics.contains("mesa_portal_events_forwarded_total 0\n"), "{metrics}");
}

// covers: G4
#[tokio::test(flavor = "multi_thread")]
async fn portal_of_the_original_receives_users_disconnected_by_a_kill_as_plain_disconnections() {
    let mut server = start_server_with(|config| leave_connected(&config.store.path, &["alice", "bob"])).await;
    let mut portal = Portal::announce(&server, "one", 1).await;
    for user in ["alice", "bob"] {
        let text = portal.subscriber.reply().await.unwrap();
        let expected = json!({ "type": "disconnection", "clientId": user, "portalId": "one" });
        let event = text.strip_prefix("[message portal ").and_then(|text| text.strip_suffix(']')).unwrap();
        assert_eq!(serde_json::from_str::<Value>(event).unwrap(), expected);
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_server_sends_last_message_and_disconnection_of_each_client_to_portals() {
    let mut server = start_server().await;
    let mut clients = [server.client("alice").await, server.client("bob").await];
    let (mut one, mut two) = (Portal::announce(&server, "one", 1).await, Portal::announce(&server, "two", 2).await);
    for client in &mut clients {
        send_numbers(client, 0..1, "").await;
    }
    let closing = clients.map(|mut client| {
        tokio::spawn(
            async move { while !matches!(client.next().await, Ok(ConnectionEvent::Closed { .. }) | Err(_)) {} },
        )
    });
    server.stop().await;
    let (mut events_of_one, mut events_of_two) = (Vec::new(), Vec::new());
    while let Some(event) = one.next_event().await {
        events_of_one.push(event);
    }
    while let Some(event) = two.next_event().await {
        events_of_two.push(event);
    }
    let mut portal_ids: Vec<&str> = events_of_one.iter().map(|[portal_id, ..]| portal_id.as_str()).collect();
    portal_ids.sort_unstable();
    assert_eq!(portal_ids, ["one", "one", "two", "two"]);
    // Two users disconnect at once. Each portal may receive either user's events first.
    let of = |user: &str, events: &[[String; 3]]| {
        events.iter().filter(|event| event[2] == user).cloned().collect::<Vec<_>>()
    };
    for user in ["alice", "bob"] {
        let of_user = of(user, &events_of_one);
        assert_eq!(of_user, of(user, &events_of_two));
        assert_eq!(of_user.iter().map(|event| event[1].as_str()).collect::<Vec<_>>(), ["message", "disconnection"]);
    }
    for client in closing {
        client.await.unwrap();
    }
}
