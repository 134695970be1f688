//! Tests middleware: calls of its methods, their order, and isolation of its failures.

use std::{
    error::Error,
    io::Write,
    ops::RangeInclusive,
    sync::{Arc, Mutex},
};

use mesa::{
    client::Connection,
    message::{Payload, Recipients, Seq, UserId},
    middleware::{AccessLog, Client, Decision, InboundMessage, Middleware, MiddlewareResult, RateLimit, SentTo},
};
use tokio::sync::mpsc::UnboundedSender;

use crate::server::{KEY, TestServer, message, next, records, user_id, wait_for_close, within};

/// Records each call as a line, then returns the result of `then`.
struct RecordingMiddleware {
    name: &'static str,
    record: UnboundedSender<String>,
    then: fn(&str) -> MiddlewareResult,
}

impl RecordingMiddleware {
    fn record(&self, call: String) -> MiddlewareResult {
        _ = self.record.send(format!("{} {call}", self.name));
        (self.then)(&call)
    }
}

fn name(client: &Client<'_>) -> String {
    client.user.map_or_else(|| "anonymous".into(), UserId::to_string)
}

impl Middleware for RecordingMiddleware {
    fn on_connection(&self, client: &Client<'_>) -> MiddlewareResult {
        assert!(client.address.unwrap().is_loopback());
        self.record(format!("connection {}", name(client)))
    }

    fn on_disconnection(&self, client: &Client<'_>, code: u16, reason: &str) -> MiddlewareResult {
        self.record(format!("disconnection {} {code} {reason:?}", name(client)))
    }

    fn on_portal_join(&self, portal: &str) -> MiddlewareResult {
        self.record(format!("portal join {}", portal.len()))
    }

    fn on_portal_leave(&self, portal: &str) -> MiddlewareResult {
        self.record(format!("portal leave {}", portal.len()))
    }

    fn on_undeliverable_message_sent(&self, message: &Payload, users: &[UserId]) -> MiddlewareResult {
        self.record(format!("undeliverable {} {users:?}", message.as_text()))
    }

    fn on_redeliver_undeliverable_messages(
        &self,
        backlog: RangeInclusive<Seq>,
        client: &Client<'_>,
    ) -> MiddlewareResult {
        self.record(format!("redeliver {backlog:?} {}", name(client)))
    }

    fn on_message_sent(&self, message: &Payload, to: SentTo<'_>) -> MiddlewareResult {
        self.record(format!("sent {} {to:?}", message.as_text()))
    }

    fn on_message_received(&self, message: &InboundMessage<'_>, client: &Client<'_>) -> MiddlewareResult<Decision> {
        self.record(format!(
            "received {} {} {}",
            name(client),
            message.kind.unwrap_or("-"),
            message.data.unwrap_or("-")
        ))?;
        Ok(match message.kind {
            Some("REJECTED") => Decision::Reject,
            Some("FATAL") => Decision::Disconnect,
            _ => Decision::Pass,
        })
    }

    fn on_authenticated(&self, client: &Client<'_>) -> MiddlewareResult {
        self.record(format!("authenticated {}", name(client)))
    }

    fn on_error(&self, error: &(dyn Error + 'static), client: Option<&Client<'_>>) {
        _ = self.record(format!("error {} {error}", client.map_or_else(|| "-".into(), name)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn methods_are_called_when_the_original_calls_its_handlers() {
    let (record, mut records) = records();
    let server = TestServer::start(|builder| {
        let builder = builder.configure(|config| config.portal.enabled = true);
        builder.middleware(RecordingMiddleware { name: "mw", record, then: |_| Ok(()) }).on_message(
            |_, message| async move {
                assert!(message.kind() != "PANIC", "on purpose");
            },
        )
    })
    .await;
    server.handle.send(&message(1), &user_id("alice"), &[]).await.unwrap();
    server.handle.send(&message(2), vec![user_id("alice"), user_id("bob")], &[]).await.unwrap();
    assert_eq!(records.next().await, r#"mw undeliverable {"op":0,"d":1,"t":"TEST"} ["alice"]"#);
    assert_eq!(records.next().await, r#"mw undeliverable {"op":0,"d":2,"t":"TEST"} ["alice", "bob"]"#);

    let mut alice = server.connect("alice").await;
    for expected in ["mw connection anonymous", "mw authenticated alice", "mw redeliver 1..=2 alice"] {
        assert_eq!(records.next().await, expected);
    }
    assert_eq!((next(&mut alice).await, next(&mut alice).await), (1.into(), 2.into()));
    server.handle.send(&message(3), vec![user_id("alice"), user_id("bob")], &[]).await.unwrap();
    assert_eq!(records.next().await, r#"mw sent {"op":0,"d":3,"t":"TEST"} Users(["alice"])"#);
    assert_eq!(records.next().await, r#"mw undeliverable {"op":0,"d":3,"t":"TEST"} ["bob"]"#);
    server.handle.send(&message(4), Recipients::Everyone, &[]).await.unwrap();
    assert_eq!(records.next().await, r#"mw sent {"op":0,"d":4,"t":"TEST"} Everyone(1)"#);
    let mut unsynced = message(5);
    unsynced.o.sync = false;
    server.handle.send(&unsynced, vec![user_id("alice"), user_id("bob")], &[]).await.unwrap();
    assert_eq!(records.next().await, r#"mw sent {"op":0,"d":5,"t":"TEST"} Users(["alice"])"#);
    let once = || mesa::message::DispatchId::new("once").unwrap();
    server.handle.send_once(once(), &message(6), &user_id("alice"), &[]).await.unwrap();
    assert!(server.handle.send_once(once(), &message(6), &user_id("alice"), &[]).await.unwrap().duplicate);
    assert_eq!(
        records.next().await,
        r#"mw sent {"op":0,"d":6,"t":"TEST"} Users(["alice"])"#,
        "no call for the duplicate"
    );

    alice.send("NOTE", &[1]).await.unwrap();
    assert_eq!(records.next().await, "mw received alice NOTE [1]");
    alice.send("PANIC", &()).await.unwrap();
    assert_eq!(records.next().await, "mw received alice PANIC -");
    assert_eq!(records.next().await, "mw error alice a handler of message panicked: on purpose");

    let url = format!("http://{}/v1/events", server.address);
    let portal = reqwest::Client::new().get(url).bearer_auth(KEY).send().await.unwrap();
    assert_eq!(records.next().await, "mw portal join 16");
    drop(portal);
    assert_eq!(records.next().await, "mw portal leave 16");

    let mut hostile = Connection::connect(&server.url()).await.unwrap();
    assert_eq!(records.next().await, "mw connection anonymous");
    hostile.send_frame(7, None, &()).await.unwrap();
    assert_eq!(wait_for_close(&mut hostile).await.0, 1008);
    assert_eq!(records.next().await, "mw error anonymous opcode 7 is not for clients");
    assert_eq!(records.next().await, "mw disconnection anonymous 1008 \"this opcode is not for clients\"");
    alice.close().await;
    assert_eq!(records.next().await, "mw disconnection alice 1000 \"\"");
    server.stop().await;
    assert_eq!(records.rest(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn rejected_message_skips_later_middleware_and_handlers() {
    let ((calls, mut records), (record, mut received)) = (records(), crate::server::records());
    let server = TestServer::start(|builder| {
        let first = RecordingMiddleware { name: "1", record: calls.clone(), then: |_| Ok(()) };
        let second = RecordingMiddleware { name: "2", record: calls, then: |_| Ok(()) };
        builder.middleware(first).middleware(second).on_message(move |_, message| {
            _ = record.send(message.kind().to_owned());
            async {}
        })
    })
    .await;
    let mut client = server.connect("alice").await;
    for expected in ["1 connection", "2 connection", "1 authenticated", "2 authenticated"] {
        assert!(records.next().await.starts_with(expected), "in the order of registration");
    }
    for kind in ["REJECTED", "PASSED", "FATAL"] {
        client.send(kind, &()).await.unwrap();
    }
    let expected = ["1 received alice REJECTED -", "1 received alice PASSED -", "2 received alice PASSED -"];
    for expected in expected {
        assert_eq!(records.next().await, expected);
    }
    assert_eq!(wait_for_close(&mut client).await.0, 1008);
    server.stop().await;
    assert_eq!(received.rest(), ["PASSED"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn failure_of_a_middleware_affects_only_its_call() {
    let (record, mut records) = records();
    let server = TestServer::start(|builder| {
        let errs = RecordingMiddleware { name: "errs", record: record.clone(), then: |_| Err("rejected".into()) };
        let panics = RecordingMiddleware {
            name: "panics",
            record: record.clone(),
            then: |call| panic!("on purpose, at {call}"),
        };
        let last = RecordingMiddleware { name: "last", record, then: |_| Ok(()) };
        builder.middleware(errs).middleware(panics).middleware(last)
    })
    .await;
    let mut client = server.connect("alice").await;
    server.handle.send(&message("hello"), &user_id("alice"), &[]).await.unwrap();
    assert_eq!(next(&mut client).await, "hello");
    client.send("NOTE", &()).await.unwrap();
    client.close().await;
    let mut last = Vec::new();
    while !last.last().is_some_and(|line: &String| line.starts_with("last disconnection")) {
        let line = records.next().await;
        if line.starts_with("last") {
            last.push(line);
        }
    }
    let (errors, rest): (Vec<_>, Vec<_>) = last.into_iter().partition(|line| line.starts_with("last error"));
    let expected = [
        "last connection anonymous",
        "last authenticated alice",
        r#"last sent {"op":0,"d":"hello","t":"TEST"} Users(["alice"])"#,
        "last received alice NOTE -",
        "last disconnection alice 1000 \"\"",
    ];
    assert_eq!(rest, expected);
    assert_eq!(errors.len(), 10, "two errors per call: {errors:?}");
    assert_eq!(errors[0], "last error anonymous rejected");
    assert!(errors[1].starts_with("last error anonymous a middleware panicked: on purpose"), "{errors:?}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_above_the_rate_limit_are_rejected() {
    let (record, mut received) = records();
    let server = TestServer::start(|builder| {
        builder.middleware(RateLimit::new(0.001, 3)).on_message(move |client, message| {
            _ = record.send((client.user().map(|user| user.to_string()), message.read::<u32>().unwrap()));
            async {}
        })
    })
    .await;
    // The limit applies per user, over all connections.
    let (mut phone, mut laptop) = (server.connect("alice").await, server.connect("alice").await);
    for n in 0..2 {
        phone.send("N", &n).await.unwrap();
        assert_eq!(received.next().await, (Some("alice".into()), n));
    }
    laptop.send("N", &2).await.unwrap();
    assert_eq!(received.next().await, (Some("alice".into()), 2));
    for n in 3..20 {
        phone.send("N", &n).await.unwrap();
        laptop.send("N", &n).await.unwrap();
    }
    let mut bob = server.connect("bob").await;
    bob.send("N", &0).await.unwrap();
    assert_eq!(received.next().await, (Some("bob".into()), 0), "messages of other users pass");
    // The messages are rejected; the connections stay open.
    server.handle.send(&message("still connected"), &user_id("alice"), &[]).await.unwrap();
    assert_eq!((next(&mut phone).await, next(&mut laptop).await), ("still connected".into(), "still connected".into()));
    let metrics = reqwest::get(format!("http://{}/metrics", server.address)).await.unwrap().text().await.unwrap();
    assert!(metrics.contains("middleware_rejections_total 34"), "{metrics}");
    server.stop().await;
    assert_eq!(received.rest(), []);

    let server = TestServer::start(|builder| builder.middleware(RateLimit::new(0.001, 1).disconnecting())).await;
    let mut flood = Connection::connect(&server.url()).await.unwrap();
    for n in 0..2 {
        flood.send("N", &n).await.unwrap();
    }
    assert_eq!(wait_for_close(&mut flood).await.0, 1008);
    server.stop().await;
}

/// Collects log output in memory.
#[derive(Clone, Default)]
struct Buffer(Arc<Mutex<Vec<u8>>>);

impl Write for Buffer {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Runs on one thread, because the subscriber is set for the current thread only.
#[tokio::test]
async fn access_log_has_connections_but_no_message_content() {
    let buffer = Buffer::default();
    let writer = buffer.clone();
    let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone()).with_ansi(false).finish();
    let _logging = tracing::subscriber::set_default(subscriber);
    let server = TestServer::start(|builder| builder.middleware(AccessLog::new())).await;
    server.handle.send(&message("private"), &user_id("alice"), &[]).await.unwrap();
    let mut client = server.connect("alice").await;
    next(&mut client).await;
    for _ in 0..3 {
        client.send("NOTE", &"private").await.unwrap();
    }
    client.close().await;
    let text = || String::from_utf8(buffer.0.lock().unwrap().clone()).unwrap();
    let logged = async {
        while !text().contains("disconnected") {
            tokio::task::yield_now().await;
        }
    };
    within("log line of the disconnection", logged).await;
    let text = text();
    let access: Vec<&str> = text.lines().filter(|line| line.contains("mesa::access")).collect();
    for (line, parts) in access.iter().zip([
        ["connected connection=", "address=\"127.0.0.1\""],
        ["authenticated connection=", "user=\"alice\""],
        ["has a backlog", "first=1 last=1"],
        ["disconnected", "code=1000 reason=\"\""],
    ]) {
        assert!(parts.iter().all(|part| line.contains(part)), "{line}: {parts:?}");
    }
    assert!(access.len() == 4 && access[3].contains("messages=3"), "{access:?}");
    assert!(!text.contains("private"), "{text}");
    server.stop().await;
}
