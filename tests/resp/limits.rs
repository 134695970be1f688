//! Tests malformed input and limits: each violation affects only its own connection.

use std::time::Duration;

use tokio::time::timeout;

use crate::{
    client::RespClient,
    dispatch_json, start_server,
    support::{in_process::TestServer, resp::encode_command, wait::WAIT_TIMEOUT},
};

#[tokio::test(flavor = "multi_thread")]
async fn malformed_command_closes_only_its_own_connection() {
    let server = start_server().await;
    let mut good = RespClient::connect(&server).await;
    let oversized = format!("*2\r\n$4\r\nECHO\r\n${}\r\n", 2 << 20);
    for (text, error) in [
        ("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", "expected '*', got 'G'"),
        ("POST / HTTP/1.1\r\n\r\n*1\r\n$4\r\nPING\r\n", "expected '*', got 'P'"),
        ("PING\r\n", "expected '*', got 'P'"),
        ("\u{0}\u{1}\u{2}", "expected '*'"),
        ("*1\r\n$4\r\nPING\r\n*1\r\n+OK\r\n", "expected '$', got '+'"),
        ("*99999999\r\n", "at most 1024 arguments"),
        ("*-5\r\n", "invalid number"),
        ("*1\r\n$9999999999999999999999\r\n", "invalid number"),
        (&oversized, "redisProtocol.commandBytes"),
        ("*1\r\n$4\r\nPINGPONG", "not followed by a line end"),
    ] {
        let mut bad = RespClient::connect(&server).await;
        bad.send(text.as_bytes()).await;
        let mut last = None;
        while let Some(reply) = bad.reply().await {
            last = Some(reply);
        }
        let last = last.unwrap_or_else(|| panic!("{text:?}: an error reply is expected"));
        assert!(last.starts_with("-ERR Protocol error") && last.contains(error), "{text:?}: {last}");
        assert_eq!(good.call(&["PING"]).await, "+PONG");
    }
    // A client that closes in the middle of a command.
    let mut half = RespClient::connect(&server).await;
    half.send(b"*3\r\n$7\r\nPUBLISH\r\n$2\r\nws\r\n$100\r\n{\"mess").await;
    drop(half);
    server.wait_for_metric("mesa_redis_protocol_connections 1").await;
    assert_eq!(good.call(&["HLEN", "undelivered_messages"]).await, ":0");
}

#[tokio::test(flavor = "multi_thread")]
async fn connection_without_password_gets_noauth_and_is_limited_in_time_size_and_attempts() {
    let start_with_timeout = async |header_timeout| {
        TestServer::start(move |config| {
            config.redis_protocol.port = Some(0);
            config.redis_protocol.password = Some("test password".into());
            config.limits.header_timeout = header_timeout;
        })
        .await
    };
    let server = start_with_timeout(WAIT_TIMEOUT).await;
    let mut redis = RespClient::connect(&server).await;
    for words in [&["PING"][..], &["INFO"], &["PUBLISH", "ws", &dispatch_json(1, r#""alice""#)], &["SUBSCRIBE", "ws"]] {
        assert_eq!(redis.call(words).await, "-NOAUTH Authentication required.");
    }
    assert!(redis.call(&["AUTH", "wrong"]).await.starts_with("-WRONGPASS"));
    assert_eq!(redis.call(&["AUTH", "default", "test password"]).await, "+OK");
    assert_eq!(redis.call(&["ECHO", &"x".repeat(100_000)]).await.len(), 100_000);
    assert_eq!(redis.call(&["HLEN", "undelivered_messages"]).await, ":0");

    let mut large = RespClient::connect(&server).await;
    large.send(b"*2\r\n$4\r\nAUTH\r\n$100000\r\n").await;
    assert!(large.reply().await.unwrap().contains("Protocol error"));
    assert_eq!(large.reply().await, None);

    let impatient = start_with_timeout(Duration::from_secs(1)).await;
    let mut silent = RespClient::connect(&impatient).await;
    assert!(silent.reply().await.unwrap().starts_with("-NOAUTH"), "the server closes a silent connection after 1 s");
    assert_eq!(silent.reply().await, None);

    let mut guessing = RespClient::connect(&server).await;
    let mut replies = 0;
    guessing.send(&encode_command(&["AUTH", "guess"]).repeat(1000)).await;
    while guessing.reply().await.is_some() {
        replies += 1;
    }
    assert_eq!(replies, 11);
    // An authenticated connection may be silent for longer. On a busy machine some attempts may take too long.
    let authenticating = async {
        loop {
            let mut redis = RespClient::connect(&impatient).await;
            if redis.call(&["AUTH", "test password"]).await == "+OK" {
                return redis;
            }
        }
    };
    let mut authenticated = timeout(WAIT_TIMEOUT, authenticating).await.expect("an authenticated connection in time");
    tokio::time::sleep(Duration::from_millis(1200)).await;
    assert_eq!(authenticated.call(&["PING"]).await, "+PONG");
}

#[tokio::test(flavor = "multi_thread")]
async fn connection_above_the_limit_is_closed_until_another_ends() {
    let server = TestServer::start(|config| {
        config.redis_protocol.port = Some(0);
        config.redis_protocol.connections = 2;
    })
    .await;
    let (mut one, mut two) = (RespClient::connect(&server).await, RespClient::connect(&server).await);
    assert_eq!((one.call(&["PING"]).await, two.call(&["PING"]).await), ("+PONG".into(), "+PONG".into()));
    let mut third = RespClient::connect(&server).await;
    assert_eq!(third.reply().await, None);
    drop(one);
    server.wait_for_metric("mesa_redis_protocol_connections 1").await;
    let accepted = timeout(WAIT_TIMEOUT, async {
        loop {
            let mut next = RespClient::connect(&server).await;
            next.send(&encode_command(&["PING"])).await;
            if next.reply().await.is_some() {
                return;
            }
        }
    });
    accepted.await.expect("a new connection is accepted after another has ended");
}

#[tokio::test(flavor = "multi_thread")]
async fn subscriber_that_does_not_read_is_closed_and_others_receive() {
    let server = TestServer::start(|config| {
        config.redis_protocol.port = Some(0);
        config.redis_protocol.backlog_bytes = 256 << 10;
    })
    .await;
    let mut slow = RespClient::connect_with_small_buffer(&server).await;
    let (mut quick, mut publisher) = (RespClient::connect(&server).await, RespClient::connect(&server).await);
    for subscriber in [&mut slow, &mut quick] {
        assert_eq!(subscriber.call(&["SUBSCRIBE", "portal"]).await, "[subscribe portal :1]");
    }
    let text = "x".repeat(60_000);
    let mut published = 0;
    let closed = timeout(WAIT_TIMEOUT, async {
        while publisher.call(&["PUBLISH", "portal", &text]).await == ":2" {
            assert_eq!(quick.reply().await.unwrap().len(), text.len() + "[message portal ]".len());
            published += 1;
        }
    });
    closed.await.expect("the slow subscriber is closed in time");
    // The bound: socket buffers of the system, about 10 MB at most, and the backlog of 256 KiB.
    assert!((4..500).contains(&published), "4 to 499 messages of 60 kB are buffered, not {published}");
    server.wait_for_metric("mesa_redis_protocol_subscribers_disconnected_total 1").await;
    assert_eq!(publisher.call(&["PUBLISH", "portal", "still here"]).await, ":1");
    // The client can still read the bytes in the socket buffers. Then the connection ends.
    while slow.reply().await.is_some() {}
}

#[tokio::test(flavor = "multi_thread")]
async fn client_that_sends_without_reading_replies_is_held_back_by_its_socket() {
    let server = start_server().await;
    let mut flooding = RespClient::connect(&server).await;
    let commands = encode_command(&["ECHO", &"x".repeat(10_000)]).repeat(100);
    let mut sent_mb = 0;
    // The client reads no replies. So at some point the server reads no more commands.
    while timeout(Duration::from_secs(2), async { flooding.send(&commands).await }).await.is_ok() {
        sent_mb += 1;
        assert!(sent_mb < 200, "the server stops reading within 200 MB, but has read {sent_mb} MB");
    }
    let mut good = RespClient::connect(&server).await;
    assert_eq!(good.call(&["PING"]).await, "+PONG");
    for _ in 0..sent_mb * 100 {
        assert_eq!(flooding.reply().await.unwrap().len(), 10_000);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn subscription_to_65th_channel_is_an_error_and_closes() {
    let server = start_server().await;
    let mut redis = RespClient::connect(&server).await;
    for n in 0..64 {
        assert_eq!(redis.call(&["SUBSCRIBE", &n.to_string()]).await, format!("[subscribe {n} :{}]", n + 1));
    }
    assert!(redis.call(&["SUBSCRIBE", "one more"]).await.starts_with("-ERR"));
    assert_eq!(redis.reply().await, None);
}
