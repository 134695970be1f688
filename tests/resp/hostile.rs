//! Peers that are not well-behaved: each harms its own connection, and no other.

use std::time::Duration;

use tokio::time::timeout;

use crate::{
    client::{Redis, command},
    in_process::{TIMEOUT, TestServer},
    published, server,
};

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_command_closes_its_connection_and_no_other() {
    let served = server().await;
    let mut good = Redis::connect(&served).await;
    let oversized = format!("*2\r\n$4\r\nECHO\r\n${}\r\n", 2 << 20);
    for (text, why) in [
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
        let mut bad = Redis::connect(&served).await;
        bad.send(text.as_bytes()).await;
        let mut last = None;
        while let Some(answer) = bad.answer().await {
            last = Some(answer);
        }
        let last = last.unwrap_or_else(|| panic!("{text:?}: no answer"));
        assert!(last.starts_with("-ERR Protocol error") && last.contains(why), "{text:?}: {last}");
        assert_eq!(good.ask(&["PING"]).await, "+PONG");
    }
    // Half a command, and gone.
    let mut half = Redis::connect(&served).await;
    half.send(b"*3\r\n$7\r\nPUBLISH\r\n$2\r\nws\r\n$100\r\n{\"mess").await;
    drop(half);
    served.wait_for_metric("mesa_redis_protocol_connections 1").await;
    assert_eq!(good.ask(&["HLEN", "undelivered_messages"]).await, ":0");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_password_nothing_is_told_and_nothing_done() {
    let served_within = async |header_timeout| {
        TestServer::start(move |config| {
            config.redis_protocol.port = Some(0);
            config.redis_protocol.password = Some("open sesame".into());
            config.limits.header_timeout = header_timeout;
        })
        .await
    };
    let served = served_within(TIMEOUT).await;
    let mut redis = Redis::connect(&served).await;
    for words in [&["PING"][..], &["INFO"], &["PUBLISH", "ws", &published(1, r#""alice""#)], &["SUBSCRIBE", "ws"]] {
        assert_eq!(redis.ask(words).await, "-NOAUTH Authentication required.");
    }
    assert!(redis.ask(&["AUTH", "wrong"]).await.starts_with("-WRONGPASS"));
    assert_eq!(redis.ask(&["AUTH", "default", "open sesame"]).await, "+OK");
    assert_eq!(redis.ask(&["ECHO", &"x".repeat(100_000)]).await.len(), 100_000);
    assert_eq!(redis.ask(&["HLEN", "undelivered_messages"]).await, ":0");

    let mut large = Redis::connect(&served).await;
    large.send(b"*2\r\n$4\r\nAUTH\r\n$100000\r\n").await;
    assert!(large.answer().await.unwrap().contains("Protocol error"));
    assert_eq!(large.answer().await, None);

    let brief = served_within(Duration::from_secs(1)).await;
    let mut silent = Redis::connect(&brief).await;
    assert!(silent.answer().await.unwrap().starts_with("-NOAUTH"), "after its time");
    assert_eq!(silent.answer().await, None);

    let mut guessing = Redis::connect(&served).await;
    let mut tries = 0;
    guessing.send(&command(&["AUTH", "guess"]).repeat(1000)).await;
    while guessing.answer().await.is_some() {
        tries += 1;
    }
    assert_eq!(tries, 11);
    // A connection that has shown it may be silent for longer. On a busy machine some may be too late to show it.
    let proving = async {
        loop {
            let mut redis = Redis::connect(&brief).await;
            if redis.ask(&["AUTH", "open sesame"]).await == "+OK" {
                return redis;
            }
        }
    };
    let mut proven = timeout(TIMEOUT, proving).await.expect("one in time");
    tokio::time::sleep(Duration::from_millis(1200)).await;
    assert_eq!(proven.ask(&["PING"]).await, "+PONG");
}

#[tokio::test(flavor = "multi_thread")]
async fn there_are_so_many_connections_and_no_more() {
    let served = TestServer::start(|config| {
        config.redis_protocol.port = Some(0);
        config.redis_protocol.connections = 2;
    })
    .await;
    let (mut one, mut two) = (Redis::connect(&served).await, Redis::connect(&served).await);
    assert_eq!((one.ask(&["PING"]).await, two.ask(&["PING"]).await), ("+PONG".into(), "+PONG".into()));
    let mut third = Redis::connect(&served).await;
    assert_eq!(third.answer().await, None);
    drop(one);
    served.wait_for_metric("mesa_redis_protocol_connections 1").await;
    let again = timeout(TIMEOUT, async {
        loop {
            let mut again = Redis::connect(&served).await;
            again.send(&command(&["PING"])).await;
            if again.answer().await.is_some() {
                return;
            }
        }
    });
    again.await.expect("its place is free");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscriber_that_does_not_read_is_cut_and_others_go_on() {
    let served = TestServer::start(|config| {
        config.redis_protocol.port = Some(0);
        config.redis_protocol.backlog_bytes = 256 << 10;
    })
    .await;
    let (mut slow, mut quick, mut says) =
        (Redis::narrow(&served).await, Redis::connect(&served).await, Redis::connect(&served).await);
    for each in [&mut slow, &mut quick] {
        assert_eq!(each.ask(&["SUBSCRIBE", "portal"]).await, "[subscribe portal :1]");
    }
    let text = "x".repeat(60_000);
    let mut heard = 0;
    let cut = timeout(TIMEOUT, async {
        while says.ask(&["PUBLISH", "portal", &text]).await == ":2" {
            assert_eq!(quick.answer().await.unwrap().len(), text.len() + "[message portal ]".len());
            heard += 1;
        }
    });
    cut.await.expect("it is cut");
    // What the system takes for a socket, some ten megabytes at most, and the backlog.
    assert!((4..500).contains(&heard), "{heard}");
    served.wait_for_metric("mesa_redis_protocol_subscribers_cut_total 1").await;
    assert_eq!(says.ask(&["PUBLISH", "portal", "still here"]).await, ":1");
    // What the system had taken of it can still be read; then it ends.
    while slow.answer().await.is_some() {}
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_says_much_and_reads_nothing_waits_in_its_socket() {
    let served = server().await;
    let mut greedy = Redis::connect(&served).await;
    let said = command(&["ECHO", &"x".repeat(10_000)]).repeat(100);
    let mut times = 0;
    // Nobody reads the answers: at some time nothing more is taken.
    while timeout(Duration::from_secs(2), async { greedy.send(&said).await }).await.is_ok() {
        times += 1;
        assert!(times < 200, "the server has taken {times} megabytes");
    }
    let mut good = Redis::connect(&served).await;
    assert_eq!(good.ask(&["PING"]).await, "+PONG");
    for _ in 0..times * 100 {
        assert_eq!(greedy.answer().await.unwrap().len(), 10_000);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn channels_are_bounded() {
    let served = server().await;
    let mut redis = Redis::connect(&served).await;
    for n in 0..64 {
        assert_eq!(redis.ask(&["SUBSCRIBE", &n.to_string()]).await, format!("[subscribe {n} :{}]", n + 1));
    }
    assert!(redis.ask(&["SUBSCRIBE", "one more"]).await.starts_with("-ERR"));
    assert_eq!(redis.answer().await, None);
}
