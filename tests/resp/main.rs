//! The Redis protocol over real sockets: what a peer sees that is well-behaved, and one that is not.
#![allow(missing_docs)]

mod client;
mod hostile;
#[path = "../support/in_process.rs"]
mod in_process;
mod portals;

use client::{Redis, command};
use in_process::{TIMEOUT, TestServer};
use mesa::client::{Connection, ConnectionEvent};
use tokio::time::timeout;

const FIELD: &str = "undelivered_messages";

pub async fn server() -> TestServer {
    TestServer::start(|config| config.redis_protocol.port = Some(0)).await
}

pub fn published(n: usize, recipients: &str) -> String {
    format!(r#"{{"message":{{"op":0,"d":{n},"t":"N"}},"recipients":[{recipients}]}}"#)
}

/// The data of everything that waits for a user, in order.
async fn waiting(served: &TestServer, name: &str) -> Vec<usize> {
    let user = mesa::message::UserId::new(name).unwrap();
    let (dispatcher, mut found, mut after) = (served.dispatcher(), Vec::new(), 0);
    loop {
        let page = dispatcher.messages(&user, after, Some(1000)).await.unwrap().messages;
        let Some(last) = page.last() else { return found };
        after = last.s;
        found.extend(page.iter().map(|message| message.d.as_ref().unwrap().get().parse::<usize>().unwrap()));
    }
}

async fn next(client: &mut Connection) -> String {
    match timeout(TIMEOUT, client.next()).await.expect("in time").unwrap() {
        ConnectionEvent::Message { data, .. } => data.get().to_owned(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_cli_sees_what_is_true() {
    let served = server().await;
    let mut redis = Redis::connect(&served).await;
    assert_eq!(redis.ask(&["PING"]).await, "+PONG");
    assert_eq!(redis.ask(&["ping", "hello there"]).await, "hello there");
    let info = redis.ask(&["INFO"]).await;
    assert!(info.contains("redis_version:") && info.contains("\r\nloading:0\r\n"), "{info}");
    assert!(info.contains("\r\nconnected_clients:1\r\n") && info.contains("\r\nusers_online:0\r\n"), "{info}");
    assert_eq!(redis.ask(&["SELECT", "0"]).await, "+OK");
    assert_eq!(redis.ask(&["SELECT", "x"]).await, "-ERR DB index is out of range");
    assert_eq!(redis.ask(&["SMEMBERS", "connected_clients"]).await, "[]");
    assert_eq!(redis.ask(&["GET", "connected_clients_count"]).await, "0");
    assert_eq!(redis.ask(&["HGET", FIELD, "alice"]).await, "nil");
    let alice = served.client("alice").await;
    let _stranger = served.connect().await;
    assert_eq!(redis.ask(&["SMEMBERS", "connected_clients"]).await, "[alice]");
    assert_eq!(redis.ask(&["SCARD", "connected_clients"]).await, ":1");
    assert_eq!(redis.ask(&["SISMEMBER", "connected_clients", "alice"]).await, ":1");
    assert_eq!(redis.ask(&["SISMEMBER", "connected_clients", "bob"]).await, ":0");
    assert_eq!(redis.ask(&["GET", "connected_clients_count"]).await, "2");
    assert_eq!(redis.ask(&["PUBLISH", "ws", &published(1, r#""bob","carol""#)]).await, ":2");
    assert_eq!(redis.ask(&["HKEYS", FIELD]).await, "[bob carol]");
    assert_eq!(redis.ask(&["HLEN", FIELD]).await, ":2");
    assert_eq!(redis.ask(&["HEXISTS", FIELD, "bob"]).await, ":1");
    assert_eq!(redis.ask(&["HGET", FIELD, "bob"]).await, r#"[{"op":0,"d":1,"t":"N"}]"#);
    assert_eq!(redis.ask(&["HDEL", FIELD, "bob", "dave"]).await, ":1");
    assert_eq!(redis.ask(&["HKEYS", FIELD]).await, "[carol]");
    assert_eq!(redis.ask(&["TYPE", FIELD]).await, "+hash");
    assert_eq!(redis.ask(&["KEYS", "connected*"]).await, "[connected_clients connected_clients_count]");
    assert_eq!(redis.ask(&["COMMAND", "DOCS"]).await, "[]");
    assert_eq!(redis.ask(&["CLIENT", "SETNAME", "me"]).await, "+OK");
    assert_eq!(redis.ask(&["CLIENT", "GETNAME"]).await, "me");
    let unknown = redis.ask(&["FLUSHALL\r\n+OK"]).await;
    assert!(unknown.starts_with("-ERR unknown command 'FLUSHALL  +OK'"), "{unknown}");
    alice.close().await;
    assert_eq!(redis.ask(&["QUIT"]).await, "+OK");
    assert_eq!(redis.answer().await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_said_together_is_answered_in_order_and_seen_by_what_comes_behind_it() {
    let served = server().await;
    let mut redis = Redis::connect(&served).await;
    let mut all = Vec::new();
    for n in 0..1500 {
        // What a Dispatcher read before is in its list, and is not taken again.
        let list = format!(r#"[{{"op":0,"d":7777,"t":"OLD"}},{{"op":0,"d":{n},"t":"N"}}]"#);
        all.extend(command(&["HSET", FIELD, "alice", &list]));
        all.extend(command(&["SISMEMBER", "connected_clients", "alice"]));
        all.extend(command(&["PUBLISH", "ws", &published(n, r#""bob""#)]));
        if n % 500 == 0 {
            all.extend(command(&["HGET", FIELD, "bob"]));
            all.extend(command(&["NONSENSE"]));
            all.extend(command(&["PUBLISH", "ws", &published(n, r#""*""#)]));
        }
    }
    redis.send(&all).await;
    for n in 0..1500 {
        assert_eq!(redis.answer().await.unwrap(), ":1");
        assert_eq!(redis.answer().await.unwrap(), ":0");
        assert_eq!(redis.answer().await.unwrap(), ":1");
        if n % 500 == 0 {
            let list = redis.answer().await.unwrap();
            assert_eq!(list.matches("\"op\"").count(), n.min(999) + 1, "{n}: the first thousand at most");
            assert!(redis.answer().await.unwrap().starts_with("-ERR unknown command"));
            assert_eq!(redis.answer().await.unwrap(), ":0", "nobody is here");
        }
    }
    assert_eq!(waiting(&served, "alice").await, (0..1500).collect::<Vec<_>>());
    assert_eq!(waiting(&served, "bob").await, (0..1500).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_between_the_question_and_the_message_gets_it_once() {
    let served = server().await;
    let mut redis = Redis::connect(&served).await;
    assert_eq!(redis.ask(&["SISMEMBER", "connected_clients", "alice"]).await, ":0");
    assert_eq!(redis.ask(&["HGET", FIELD, "alice"]).await, "nil");
    let mut alice = served.client("alice").await;
    assert_eq!(redis.ask(&["HSET", FIELD, "alice", r#"[{"op":0,"d":1}]"#]).await, ":1");
    assert_eq!(next(&mut alice).await, "1");
    // And who goes between them: the message is published, and waits.
    assert_eq!(redis.ask(&["SISMEMBER", "connected_clients", "alice"]).await, ":1");
    alice.close().await;
    served.wait_for_metric("mesa_sessions 0").await;
    assert_eq!(redis.ask(&["PUBLISH", "ws", &published(2, r#""alice""#)]).await, ":1");
    let mut alice = served.client("alice").await;
    let mut got = vec![next(&mut alice).await];
    if got[0] == "1" {
        // It went before it had said that it has this one.
        got.push(next(&mut alice).await);
    }
    assert_eq!(got.last().unwrap(), "2");
}

#[tokio::test(flavor = "multi_thread")]
async fn for_whom_a_message_was_not_taken_does_not_count() {
    let served = TestServer::start(|config| {
        config.redis_protocol.port = Some(0);
        config.sync.max_messages = 2;
    })
    .await;
    let mut redis = Redis::connect(&served).await;
    for count in [":1", ":1", ":0"] {
        assert_eq!(redis.ask(&["HSET", FIELD, "alice", r#"[{"op":0,"d":1}]"#]).await, count);
    }
    assert_eq!(redis.ask(&["PUBLISH", "ws", &published(2, r#""alice","bob","\u0000""#)]).await, ":1");
    served.wait_for_metric("mesa_messages_rejected_total 2").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_done_is_refused_aloud() {
    let served = TestServer::start(|config| {
        config.redis_protocol.port = Some(0);
        config.sync.enabled = false;
        config.portal.enabled = false;
        config.limits.recipients = 2;
    })
    .await;
    let mut redis = Redis::connect(&served).await;
    let large = format!(r#"{{"message":{{"d":"{}"}},"recipients":["a"]}}"#, "x".repeat(70_000));
    for (words, why) in [
        (&["HSET", FIELD, "alice", r#"[{"op":0,"o":{"ttl":5}}]"#][..], "set sync.enabled"),
        (&["HSET", FIELD, "", r#"[{"op":0}]"#], "invalid user id"),
        (&["HSET", "connected_clients", "alice", "1"], "read-only"),
        (&["SADD", "available_portals_pool", "x"], "portal.enabled"),
        (&["SADD", "connected_clients", "alice"], "read-only"),
        (&["PUBLISH", "available_portals_pool", r#"{"id":"x","ready":true}"#], "portal.enabled"),
        (&["PUBLISH", "ws", "{"], "not a dispatch"),
        (&["PUBLISH", "ws", &published(1, r#""a","b","c""#)], "limits.recipients"),
        (&["PUBLISH", "ws", &large], "at most 65536 bytes"),
        (&["PUBLISH", "news", "hello"], "does not keep 'news'"),
        (&["AUTH", "x"], "without any password configured"),
        (&["CLIENT", "KILL", "x"], "unknown subcommand"),
        (&["GET"], "wrong number of arguments"),
    ] {
        let answer = redis.ask(words).await;
        assert!(answer.starts_with("-ERR ") && answer.contains(why), "{words:?}: {answer}");
    }
    assert_eq!(redis.ask(&["PUBLISH", "ws", &published(1, r#""a""#)]).await, ":0", "nobody is here");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscriber_hears_what_is_published_and_may_say_little_else() {
    let served = server().await;
    let (mut one, mut other) = (Redis::connect(&served).await, Redis::connect(&served).await);
    assert_eq!(one.ask(&["SUBSCRIBE", "ws", "x"]).await, "[subscribe ws :1]");
    assert_eq!(one.answer().await.unwrap(), "[subscribe x :2]");
    let text = published(1, r#""alice""#);
    assert_eq!(other.ask(&["PUBLISH", "ws", &text]).await, ":1");
    assert_eq!(one.answer().await.unwrap(), format!("[message ws {text}]"));
    assert_eq!(one.ask(&["PING"]).await, "[pong ]");
    assert!(one.ask(&["GET", "x"]).await.contains("allowed in this context"));
    assert_eq!(one.ask(&["UNSUBSCRIBE", "x"]).await, "[unsubscribe x :1]");
    assert_eq!(one.ask(&["UNSUBSCRIBE"]).await, "[unsubscribe ws :0]");
    assert_eq!(one.ask(&["UNSUBSCRIBE"]).await, "[unsubscribe nil :0]");
    assert_eq!(one.ask(&["PING"]).await, "+PONG");
    assert_eq!(other.ask(&["PUBLISH", "ws", &text]).await, ":1");
    assert_eq!(one.ask(&["ECHO", "nothing came"]).await, "nothing came");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_stops_answers_what_was_said_and_ends_its_connections() {
    let mut served = server().await;
    let mut redis = Redis::connect(&served).await;
    assert_eq!(redis.ask(&["PUBLISH", "ws", &published(1, r#""alice""#)]).await, ":1");
    let mut idle = Redis::connect(&served).await;
    assert_eq!(idle.ask(&["SUBSCRIBE", "portal"]).await, "[subscribe portal :1]");
    served.stop().await;
    assert_eq!((redis.answer().await, idle.answer().await), (None, None));
    let served = served.restart().await;
    assert_eq!(waiting(&served, "alice").await, [1]);
}

async fn server_with_sync_off() -> TestServer {
    TestServer::start(|config| {
        config.redis_protocol.port = Some(0);
        config.sync.enabled = false;
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn dispatcher_with_sync_off_gets_no_success_for_what_needs_a_log() {
    let served = server_with_sync_off().await;
    let mut redis = Redis::connect(&served).await;
    assert_eq!(redis.ask(&["PUBLISH", "ws", &published(1, r#""bob""#)]).await, ":0");
    for option in [r#"{"ttl":5}"#, r#"{"collapse":"k"}"#] {
        let text = format!(r#"{{"message":{{"op":0,"o":{option}}},"recipients":["bob"]}}"#);
        let answer = redis.ask(&["PUBLISH", "ws", &text]).await;
        assert!(answer.starts_with("-ERR") && answer.contains("sync.enabled is off"), "{answer}");
    }
    let answer = redis.ask(&["HSET", FIELD, "bob", r#"[{"op":0,"o":{"collapse":"k"}}]"#]).await;
    assert!(answer.starts_with("-ERR") && answer.contains("sync.enabled is off"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn append_for_an_offline_user_with_sync_off_is_answered_and_dropped() {
    let served = server_with_sync_off().await;
    let mut redis = Redis::connect(&served).await;
    assert_eq!(redis.ask(&["SISMEMBER", "connected_clients", "alice"]).await, ":0");
    assert_eq!(redis.ask(&["HGET", FIELD, "alice"]).await, "nil");
    for count in 1..=3 {
        assert_eq!(redis.ask(&["HSET", FIELD, "alice", r#"[{"op":0,"d":1}]"#]).await, ":1");
        served.wait_for_metric(&format!("mesa_messages_dropped_sync_off_total {count}")).await;
    }
    assert_eq!(redis.ask(&["HGET", FIELD, "alice"]).await, "nil");
    assert_eq!(redis.ask(&["HLEN", FIELD]).await, ":0");
    // A user who connected after the Dispatcher's question is online for its answer.
    let mut alice = served.client("alice").await;
    assert_eq!(redis.ask(&["HSET", FIELD, "alice", r#"[{"op":0,"d":2}]"#]).await, ":1");
    assert_eq!(next(&mut alice).await, "2");
    served.wait_for_metric("mesa_messages_dropped_sync_off_total 3").await;
}
