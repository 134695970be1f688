//! Stock portals, byte by byte: what each of them is told, and what becomes of what one did not take.

use std::collections::HashMap;

use mesa::client::{Connection, ConnectionEvent};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::{
    client::Redis,
    in_process::{TIMEOUT, TestServer},
    server,
};

/// A portal, as its three connections come.
struct Portal {
    id: &'static str,
    announcing: Redis,
    publishing: Redis,
    listening: Redis,
}

impl Portal {
    async fn come(served: &TestServer, id: &'static str, count: usize) -> Self {
        let announcing = Redis::connect(served).await;
        let publishing = Redis::connect(served).await;
        let listening = Redis::narrow(served).await;
        let mut portal = Self { id, announcing, publishing, listening };
        // So that they are accepted in this order.
        for each in [&mut portal.announcing, &mut portal.publishing, &mut portal.listening] {
            assert_eq!(each.ask(&["PING"]).await, "+PONG");
        }
        assert_eq!(portal.listening.ask(&["SUBSCRIBE", "portal"]).await, "[subscribe portal :1]");
        let ready = json!({"id": id, "ready": true}).to_string();
        assert_eq!(portal.publishing.ask(&["PUBLISH", "available_portals_pool", &ready]).await, ":1");
        assert_eq!(portal.announcing.ask(&["SADD", "available_portals_pool", id]).await, ":0", "it is known by now");
        served.wait_for_metric(&format!("mesa_portals {count}")).await;
        portal
    }

    /// The next event: whose it is, what it is, and who it is about. `None`: the server has closed.
    async fn told(&mut self) -> Option<[String; 3]> {
        let text = self.listening.answer().await?;
        let text = text.strip_prefix("[message portal ")?.strip_suffix(']')?;
        let event: Value = serde_json::from_str(text).unwrap();
        Some(["portalId", "type", "clientId"].map(|field| event[field].as_str().unwrap_or_default().to_owned()))
    }

    /// The next event: whose it is, and the number that a client has said.
    async fn heard(&mut self) -> Option<(String, u64)> {
        let text = self.listening.answer().await?;
        let text = text.strip_prefix("[message portal ")?.strip_suffix(']')?;
        let event: Value = serde_json::from_str(text).unwrap();
        Some((event["portalId"].as_str().unwrap().to_owned(), event["message"]["d"][0].as_u64()?))
    }
}

async fn say(client: &mut Connection, numbers: std::ops::Range<u64>, filler: &str) {
    for number in numbers {
        client.send("N", &json!([number, filler])).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_portal_hears_everything_and_each_event_is_one_s_own() {
    let served = server().await;
    let mut alice = served.client("alice").await;
    let (mut one, mut two) = (Portal::come(&served, "one", 1).await, Portal::come(&served, "two", 2).await);
    say(&mut alice, 0..10, "").await;
    let mut turns: HashMap<String, Vec<u64>> = HashMap::new();
    for n in 0..10 {
        let heard = one.heard().await.unwrap();
        assert_eq!(two.heard().await.unwrap(), heard);
        assert_eq!(heard.1, n);
        turns.entry(heard.0).or_default().push(n);
    }
    assert_eq!(turns[one.id].len(), 5);
    assert_eq!(turns[two.id].len(), 5);
    assert_eq!(one.announcing.ask(&["SMEMBERS", "available_portals_pool"]).await, "[one two]");
    assert_eq!(one.announcing.ask(&["SREM", "available_portals_pool", "one"]).await, ":1");
    served.wait_for_metric("mesa_portals 1").await;
    say(&mut alice, 10..12, "").await;
    for n in 10..12 {
        assert_eq!(one.heard().await.unwrap(), ("two".into(), n), "it still listens, and has no turns");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_portal_did_not_take_before_it_was_cut_is_another_s() {
    const SAID: u64 = 1500;
    let served = TestServer::start(|config| {
        config.redis_protocol.port = Some(0);
        config.redis_protocol.backlog_bytes = 1 << 20;
        config.limits.frames_per_second = 1_000_000;
    })
    .await;
    let mut alice = served.client("alice").await;
    let (mut stuck, mut quick) = (Portal::come(&served, "stuck", 1).await, Portal::come(&served, "quick", 2).await);
    let (tell, mut told) = tokio::sync::watch::channel(0);
    let saying = tokio::spawn(async move {
        let filler = "x".repeat(20_000);
        for n in 0..SAID {
            say(&mut alice, n..n + 1, &filler).await;
            // As fast as it is heard, or the one that reads would be cut as well.
            told.wait_for(|told| n < told + 20).await.unwrap();
        }
        alice
    });
    let mut own = Vec::new();
    let mut highest = 0;
    // Of those that were another's it hears once more, when they have become its own.
    while let Ok(heard) = timeout(std::time::Duration::from_secs(3), quick.heard()).await {
        let (id, n) = heard.expect("it is not cut");
        highest = highest.max(n);
        tell.send_replace(highest);
        if id == "quick" {
            own.push(n);
        }
    }
    let _alice = timeout(TIMEOUT, saying).await.unwrap().unwrap();
    served.wait_for_metric("mesa_redis_protocol_subscribers_cut_total 1").await;
    // What the system had taken for the one that was cut. The last may be half an event.
    let mut taken = Vec::new();
    while let Some((id, n)) = stuck.heard().await {
        if id == "stuck" {
            taken.push(n);
        }
    }
    assert!(!taken.is_empty() && own.len() > taken.len(), "{} and {}", taken.len(), own.len());
    let mut all = [own, taken].concat();
    all.sort_unstable();
    let doubled = all.windows(2).filter(|pair| pair[0] == pair[1]).count();
    all.dedup();
    let lost = SAID as usize - all.len();
    // What was just being written, 64 KiB at once, has gone out in part: nobody can know how much of it arrived.
    assert!(lost <= 4 && doubled == 0, "{lost} lost, {doubled} doubled");
    let passed_on = served.metrics().await;
    assert!(!passed_on.contains("mesa_portal_events_passed_on_total 0\n"), "{passed_on}");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_server_that_stops_the_last_word_of_every_client_is_told_to_one() {
    let mut served = server().await;
    let mut clients = [served.client("alice").await, served.client("bob").await];
    let (mut one, mut two) = (Portal::come(&served, "one", 1).await, Portal::come(&served, "two", 2).await);
    for client in &mut clients {
        say(client, 0..1, "").await;
    }
    let leaving = clients.map(|mut client| {
        tokio::spawn(
            async move { while !matches!(client.next().await, Ok(ConnectionEvent::Closed { .. }) | Err(_)) {} },
        )
    });
    served.stop().await;
    let (mut told, mut told_two) = (Vec::new(), Vec::new());
    while let Some(event) = one.told().await {
        told.push(event);
    }
    while let Some(event) = two.told().await {
        told_two.push(event);
    }
    let mut owners: Vec<&str> = told.iter().map(|[owner, ..]| owner.as_str()).collect();
    owners.sort_unstable();
    assert_eq!(owners, ["one", "one", "two", "two"]);
    // Two users leave at once: of these two either may come first, at each of the portals.
    let of = |user: &str, told: &[[String; 3]]| told.iter().filter(|told| told[2] == user).cloned().collect::<Vec<_>>();
    for user in ["alice", "bob"] {
        let of_user = of(user, &told);
        assert_eq!(of_user, of(user, &told_two));
        assert_eq!(of_user.iter().map(|told| told[1].as_str()).collect::<Vec<_>>(), ["message", "disconnection"]);
    }
    for left in leaving {
        left.await.unwrap();
    }
}
