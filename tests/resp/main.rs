//! Tests the Redis protocol (RESP) port over real sockets.
#![allow(missing_docs)]

mod client;
mod limits;
mod portals;
#[path = "../support/mod.rs"]
#[allow(dead_code, reason = "each suite uses a part of it")]
mod support;

use client::RespClient;
use mesa::{
    client::{Connection, ConnectionEvent},
    config::Config,
};
use support::{in_process::TestServer, resp::encode_command, wait::WAIT_TIMEOUT};
use tokio::time::timeout;

/// Redis key of the hash that holds the original's lists of pending messages.
const UNDELIVERED: &str = "undelivered_messages";

/// Starts a server with a RESP port.
pub async fn start_server() -> TestServer {
    start_server_with(|_| {}).await
}

/// As [`start_server`], after `prepare` with the configuration.
pub async fn start_server_with(prepare: impl FnOnce(&Config)) -> TestServer {
    TestServer::start(|config| {
        config.redis_protocol.port = Some(0);
        prepare(config);
    })
    .await
}

/// Returns a dispatch as a Dispatcher of the original publishes it. `recipients` are quoted ids with commas between
/// them.
pub fn dispatch_json(n: u64, recipients: &str) -> String {
    format!(r#"{{"message":{{"op":0,"d":{n},"t":"N"}},"recipients":[{recipients}]}}"#)
}

/// Returns the data of a client's next message.
async fn next_data(client: &mut Connection) -> String {
    match timeout(WAIT_TIMEOUT, client.next()).await.expect("a message in time").unwrap() {
        ConnectionEvent::Message { data, .. } => data.get().to_owned(),
        other => panic!("a message is expected, not {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn read_commands_return_current_presence_and_pending_messages() {
    let server = start_server().await;
    let mut redis = RespClient::connect(&server).await;
    assert_eq!(redis.call(&["PING"]).await, "+PONG");
    assert_eq!(redis.call(&["ping", "hello there"]).await, "hello there");
    let info = redis.call(&["INFO"]).await;
    assert!(info.contains("redis_version:") && info.contains("\r\nloading:0\r\n"), "{info}");
    assert!(info.contains("\r\nconnected_clients:1\r\n") && info.contains("\r\nusers_online:0\r\n"), "{info}");
    assert_eq!(redis.call(&["SELECT", "0"]).await, "+OK");
    assert_eq!(redis.call(&["SELECT", "x"]).await, "-ERR DB index is out of range");
    assert_eq!(redis.call(&["SMEMBERS", "connected_clients"]).await, "[]");
    assert_eq!(redis.call(&["GET", "connected_clients_count"]).await, "0");
    assert_eq!(redis.call(&["HGET", UNDELIVERED, "alice"]).await, "nil");
    let alice = server.client("alice").await;
    let _unauthenticated = server.connect().await;
    assert_eq!(redis.call(&["SMEMBERS", "connected_clients"]).await, "[alice]");
    assert_eq!(redis.call(&["SCARD", "connected_clients"]).await, ":1");
    assert_eq!(redis.call(&["SISMEMBER", "connected_clients", "alice"]).await, ":1");
    assert_eq!(redis.call(&["SISMEMBER", "connected_clients", "bob"]).await, ":0");
    assert_eq!(redis.call(&["GET", "connected_clients_count"]).await, "2");
    assert_eq!(redis.call(&["PUBLISH", "ws", &dispatch_json(1, r#""bob","carol""#)]).await, ":2");
    assert_eq!(redis.call(&["HKEYS", UNDELIVERED]).await, "[bob carol]");
    assert_eq!(redis.call(&["HLEN", UNDELIVERED]).await, ":2");
    assert_eq!(redis.call(&["HEXISTS", UNDELIVERED, "bob"]).await, ":1");
    assert_eq!(redis.call(&["HGET", UNDELIVERED, "bob"]).await, r#"[{"op":0,"d":1,"t":"N"}]"#);
    assert_eq!(redis.call(&["HDEL", UNDELIVERED, "bob", "dave"]).await, ":1");
    assert_eq!(redis.call(&["HKEYS", UNDELIVERED]).await, "[carol]");
    assert_eq!(redis.call(&["TYPE", UNDELIVERED]).await, "+hash");
    assert_eq!(redis.call(&["KEYS", "connected*"]).await, "[connected_clients connected_clients_count]");
    assert_eq!(redis.call(&["COMMAND", "DOCS"]).await, "[]");
    assert_eq!(redis.call(&["CLIENT", "SETNAME", "me"]).await, "+OK");
    assert_eq!(redis.call(&["CLIENT", "GETNAME"]).await, "me");
    let unknown = redis.call(&["FLUSHALL\r\n+OK"]).await;
    assert!(unknown.starts_with("-ERR unknown command 'FLUSHALL  +OK'"), "{unknown}");
    alice.close().await;
    assert_eq!(redis.call(&["QUIT"]).await, "+OK");
    assert_eq!(redis.reply().await, None);
}

// covers: G2
#[tokio::test(flavor = "multi_thread")]
async fn pipelined_commands_are_answered_in_order_and_see_earlier_writes() {
    let server = start_server().await;
    let mut redis = RespClient::connect(&server).await;
    let mut commands = Vec::new();
    for n in 0..1500 {
        // A Dispatcher writes back the list that it has read, with one more message. Only the last one is appended.
        let list = format!(r#"[{{"op":0,"d":7777,"t":"OLD"}},{{"op":0,"d":{n},"t":"N"}}]"#);
        commands.extend(encode_command(&["HSET", UNDELIVERED, "alice", &list]));
        commands.extend(encode_command(&["SISMEMBER", "connected_clients", "alice"]));
        commands.extend(encode_command(&["PUBLISH", "ws", &dispatch_json(n, r#""bob""#)]));
        if n % 500 == 0 {
            commands.extend(encode_command(&["HGET", UNDELIVERED, "bob"]));
            commands.extend(encode_command(&["NONSENSE"]));
            commands.extend(encode_command(&["PUBLISH", "ws", &dispatch_json(n, r#""*""#)]));
        }
    }
    redis.send(&commands).await;
    for n in 0..1500 {
        assert_eq!(redis.reply().await.unwrap(), ":1");
        assert_eq!(redis.reply().await.unwrap(), ":0");
        assert_eq!(redis.reply().await.unwrap(), ":1");
        if n % 500 == 0 {
            let list = redis.reply().await.unwrap();
            assert_eq!(
                list.matches("\"op\"").count(),
                usize::try_from(n).expect("a count").min(999) + 1,
                "{n}: HGET returns the first 1000 messages"
            );
            assert!(redis.reply().await.unwrap().starts_with("-ERR unknown command"));
            assert_eq!(redis.reply().await.unwrap(), ":0", "a broadcast reaches no client");
        }
    }
    assert_eq!(server.pending_numbers("alice").await, (0..1500).collect::<Vec<_>>());
    assert_eq!(server.pending_numbers("bob").await, (0..1500).collect::<Vec<_>>());
}

// covers: G2
#[tokio::test(flavor = "multi_thread")]
async fn message_of_original_dispatcher_is_delivered_once_if_user_connects_or_disconnects_after_its_query() {
    let server = start_server().await;
    let mut redis = RespClient::connect(&server).await;
    assert_eq!(redis.call(&["SISMEMBER", "connected_clients", "alice"]).await, ":0");
    assert_eq!(redis.call(&["HGET", UNDELIVERED, "alice"]).await, "nil");
    let mut alice = server.client("alice").await;
    assert_eq!(redis.call(&["HSET", UNDELIVERED, "alice", r#"[{"op":0,"d":1}]"#]).await, ":1");
    assert_eq!(next_data(&mut alice).await, "1");
    // The user disconnects between query and message. The Dispatcher publishes the message, and it stays pending.
    assert_eq!(redis.call(&["SISMEMBER", "connected_clients", "alice"]).await, ":1");
    alice.close().await;
    server.wait_for_metric("mesa_sessions 0").await;
    assert_eq!(redis.call(&["PUBLISH", "ws", &dispatch_json(2, r#""alice""#)]).await, ":1");
    let mut alice = server.client("alice").await;
    let mut received = vec![next_data(&mut alice).await];
    if received[0] == "1" {
        // The client had closed before it acknowledged message 1.
        received.push(next_data(&mut alice).await);
    }
    assert_eq!(received.last().unwrap(), "2");
}

// covers: G4
#[tokio::test(flavor = "multi_thread")]
async fn reply_to_hset_and_publish_does_not_count_rejected_recipients() {
    let server = TestServer::start(|config| {
        config.redis_protocol.port = Some(0);
        config.sync.max_messages = 2;
    })
    .await;
    let mut redis = RespClient::connect(&server).await;
    for count in [":1", ":1", ":0"] {
        assert_eq!(redis.call(&["HSET", UNDELIVERED, "alice", r#"[{"op":0,"d":1}]"#]).await, count);
    }
    assert_eq!(redis.call(&["PUBLISH", "ws", &dispatch_json(2, r#""alice","bob","\u0000""#)]).await, ":1");
    server.wait_for_metric("mesa_messages_rejected_total 2").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn impossible_command_gets_an_error_that_names_the_reason() {
    let server = TestServer::start(|config| {
        config.redis_protocol.port = Some(0);
        config.sync.enabled = false;
        config.portal.enabled = false;
        config.limits.recipients = 2;
    })
    .await;
    let mut redis = RespClient::connect(&server).await;
    let large = format!(r#"{{"message":{{"d":"{}"}},"recipients":["a"]}}"#, "x".repeat(70_000));
    for (words, reason) in [
        (&["HSET", UNDELIVERED, "alice", r#"[{"op":0,"o":{"ttl":5}}]"#][..], "set sync.enabled"),
        (&["HSET", UNDELIVERED, "", r#"[{"op":0}]"#], "invalid user id"),
        (&["HSET", "connected_clients", "alice", "1"], "read-only"),
        (&["SADD", "available_portals_pool", "x"], "portal.enabled"),
        (&["SADD", "connected_clients", "alice"], "read-only"),
        (&["PUBLISH", "available_portals_pool", r#"{"id":"x","ready":true}"#], "portal.enabled"),
        (&["PUBLISH", "ws", "{"], "not a dispatch"),
        (&["PUBLISH", "ws", &dispatch_json(1, r#""a","b","c""#)], "limits.recipients"),
        (&["PUBLISH", "ws", &large], "at most 65536 bytes"),
        (&["PUBLISH", "news", "hello"], "has no 'news'"),
        (&["AUTH", "x"], "without any password configured"),
        (&["CLIENT", "KILL", "x"], "unknown subcommand"),
        (&["GET"], "wrong number of arguments"),
    ] {
        let reply = redis.call(words).await;
        assert!(reply.starts_with("-ERR ") && reply.contains(reason), "{words:?}: {reply}");
    }
    let recipients = redis.call(&["PUBLISH", "ws", &dispatch_json(1, r#""a""#)]).await;
    assert_eq!(recipients, ":0", "with sync off a message to an offline user counts no recipient");
}

#[tokio::test(flavor = "multi_thread")]
async fn subscriber_receives_published_messages_and_may_use_few_commands() {
    let server = start_server().await;
    let (mut subscriber, mut publisher) = (RespClient::connect(&server).await, RespClient::connect(&server).await);
    assert_eq!(subscriber.call(&["SUBSCRIBE", "ws", "x"]).await, "[subscribe ws :1]");
    assert_eq!(subscriber.reply().await.unwrap(), "[subscribe x :2]");
    let text = dispatch_json(1, r#""alice""#);
    assert_eq!(publisher.call(&["PUBLISH", "ws", &text]).await, ":1");
    assert_eq!(subscriber.reply().await.unwrap(), format!("[message ws {text}]"));
    assert_eq!(subscriber.call(&["PING"]).await, "[pong ]");
    assert!(subscriber.call(&["GET", "x"]).await.contains("allowed in this context"));
    assert_eq!(subscriber.call(&["UNSUBSCRIBE", "x"]).await, "[unsubscribe x :1]");
    assert_eq!(subscriber.call(&["UNSUBSCRIBE"]).await, "[unsubscribe ws :0]");
    assert_eq!(subscriber.call(&["UNSUBSCRIBE"]).await, "[unsubscribe nil :0]");
    assert_eq!(subscriber.call(&["PING"]).await, "+PONG");
    assert_eq!(publisher.call(&["PUBLISH", "ws", &text]).await, ":1");
    let next_reply = subscriber.call(&["ECHO", "echo"]).await;
    assert_eq!(next_reply, "echo", "a message published after UNSUBSCRIBE is not received");
}

// covers: G1
#[tokio::test(flavor = "multi_thread")]
async fn stopping_server_closes_connections_and_keeps_published_messages() {
    let mut server = start_server().await;
    let mut redis = RespClient::connect(&server).await;
    assert_eq!(redis.call(&["PUBLISH", "ws", &dispatch_json(1, r#""alice""#)]).await, ":1");
    let mut idle = RespClient::connect(&server).await;
    assert_eq!(idle.call(&["SUBSCRIBE", "portal"]).await, "[subscribe portal :1]");
    server.stop().await;
    assert_eq!((redis.reply().await, idle.reply().await), (None, None));
    let server = Box::pin(server.restart()).await;
    assert_eq!(server.pending_numbers("alice").await, [1]);
}

async fn start_server_without_sync() -> TestServer {
    TestServer::start(|config| {
        config.redis_protocol.port = Some(0);
        config.sync.enabled = false;
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn command_that_needs_a_log_with_sync_off_gets_an_error() {
    let server = start_server_without_sync().await;
    let mut redis = RespClient::connect(&server).await;
    assert_eq!(redis.call(&["PUBLISH", "ws", &dispatch_json(1, r#""bob""#)]).await, ":0");
    for option in [r#"{"ttl":5}"#, r#"{"collapse":"k"}"#] {
        let text = format!(r#"{{"message":{{"op":0,"o":{option}}},"recipients":["bob"]}}"#);
        let reply = redis.call(&["PUBLISH", "ws", &text]).await;
        assert!(reply.starts_with("-ERR") && reply.contains("set sync.enabled to true"), "{reply}");
    }
    let reply = redis.call(&["HSET", UNDELIVERED, "bob", r#"[{"op":0,"o":{"collapse":"k"}}]"#]).await;
    assert!(reply.starts_with("-ERR") && reply.contains("set sync.enabled to true"), "{reply}");
}

#[tokio::test(flavor = "multi_thread")]
async fn hset_for_offline_user_with_sync_off_is_answered_and_dropped() {
    let server = start_server_without_sync().await;
    let mut redis = RespClient::connect(&server).await;
    assert_eq!(redis.call(&["SISMEMBER", "connected_clients", "alice"]).await, ":0");
    assert_eq!(redis.call(&["HGET", UNDELIVERED, "alice"]).await, "nil");
    for count in 1..=3 {
        assert_eq!(redis.call(&["HSET", UNDELIVERED, "alice", r#"[{"op":0,"d":1}]"#]).await, ":1");
        server.wait_for_metric(&format!("mesa_messages_dropped_sync_off_total {count}")).await;
    }
    assert_eq!(redis.call(&["HGET", UNDELIVERED, "alice"]).await, "nil");
    assert_eq!(redis.call(&["HLEN", UNDELIVERED]).await, ":0");
    // A user that connects after the Dispatcher's query receives its message.
    let mut alice = server.client("alice").await;
    assert_eq!(redis.call(&["HSET", UNDELIVERED, "alice", r#"[{"op":0,"d":2}]"#]).await, ":1");
    assert_eq!(next_data(&mut alice).await, "2");
    server.wait_for_metric("mesa_messages_dropped_sync_off_total 3").await;
}
