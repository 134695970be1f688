//! Middleware: when each of its methods is called, in which order, and that its failures are its own.

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

use crate::server::{KEY, Served, diary, end, id, message, next, within};

/// Writes down what it is told, and then does what it is there for.
struct Writes {
    name: &'static str,
    to: UnboundedSender<String>,
    then: fn(&str) -> MiddlewareResult,
}

impl Writes {
    fn told(&self, what: String) -> MiddlewareResult {
        _ = self.to.send(format!("{} {what}", self.name));
        (self.then)(&what)
    }
}

fn who(client: &Client<'_>) -> String {
    client.user.map_or_else(|| "somebody".into(), UserId::to_string)
}

impl Middleware for Writes {
    fn on_connection(&self, client: &Client<'_>) -> MiddlewareResult {
        assert!(client.address.unwrap().is_loopback());
        self.told(format!("connection {}", who(client)))
    }

    fn on_disconnection(&self, client: &Client<'_>, code: u16, reason: &str) -> MiddlewareResult {
        self.told(format!("disconnection {} {code} {reason:?}", who(client)))
    }

    fn on_portal_join(&self, portal: &str) -> MiddlewareResult {
        self.told(format!("portal join {}", portal.len()))
    }

    fn on_portal_leave(&self, portal: &str) -> MiddlewareResult {
        self.told(format!("portal leave {}", portal.len()))
    }

    fn on_undeliverable_message_sent(&self, message: &Payload, users: &[UserId]) -> MiddlewareResult {
        self.told(format!("undeliverable {} {users:?}", message.as_text()))
    }

    fn on_redeliver_undeliverable_messages(&self, owed: RangeInclusive<Seq>, client: &Client<'_>) -> MiddlewareResult {
        self.told(format!("redeliver {owed:?} {}", who(client)))
    }

    fn on_message_sent(&self, message: &Payload, to: SentTo<'_>) -> MiddlewareResult {
        self.told(format!("sent {} {to:?}", message.as_text()))
    }

    fn on_message_received(&self, said: &InboundMessage<'_>, client: &Client<'_>) -> MiddlewareResult<Decision> {
        self.told(format!("received {} {} {}", who(client), said.kind.unwrap_or("-"), said.data.unwrap_or("-")))?;
        Ok(match said.kind {
            Some("REFUSED") => Decision::Reject,
            Some("FATAL") => Decision::Disconnect,
            _ => Decision::Pass,
        })
    }

    fn on_authenticated(&self, client: &Client<'_>) -> MiddlewareResult {
        self.told(format!("authenticated {}", who(client)))
    }

    fn on_error(&self, error: &(dyn Error + 'static), client: Option<&Client<'_>>) {
        _ = self.told(format!("error {} {error}", client.map_or_else(|| "-".into(), who)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_method_is_called_when_stock_calls_its_handler() {
    let (to, mut diary) = diary();
    let served = Served::start(|builder| {
        let builder = builder.configure(|config| config.portal.enabled = true);
        builder.middleware(Writes { name: "mw", to, then: |_| Ok(()) }).on_message(|_, message| async move {
            assert!(message.kind() != "PANIC", "on purpose");
        })
    })
    .await;
    served.handle.send(&message(1), &id("alice"), &[]).await.unwrap();
    served.handle.send(&message(2), vec![id("alice"), id("bob")], &[]).await.unwrap();
    assert_eq!(diary.next().await, r#"mw undeliverable {"op":0,"d":1,"t":"TEST"} ["alice"]"#);
    assert_eq!(diary.next().await, r#"mw undeliverable {"op":0,"d":2,"t":"TEST"} ["alice", "bob"]"#);

    let mut alice = served.connect("alice").await;
    for expected in ["mw connection somebody", "mw authenticated alice", "mw redeliver 1..=2 alice"] {
        assert_eq!(diary.next().await, expected);
    }
    assert_eq!((next(&mut alice).await, next(&mut alice).await), (1.into(), 2.into()));
    served.handle.send(&message(3), vec![id("alice"), id("bob")], &[]).await.unwrap();
    assert_eq!(diary.next().await, r#"mw sent {"op":0,"d":3,"t":"TEST"} Users(["alice"])"#);
    assert_eq!(diary.next().await, r#"mw undeliverable {"op":0,"d":3,"t":"TEST"} ["bob"]"#);
    served.handle.send(&message(4), Recipients::Everyone, &[]).await.unwrap();
    assert_eq!(diary.next().await, r#"mw sent {"op":0,"d":4,"t":"TEST"} Everyone(1)"#);
    let mut unsynced = message(5);
    unsynced.o.sync = false;
    served.handle.send(&unsynced, vec![id("alice"), id("bob")], &[]).await.unwrap();
    assert_eq!(diary.next().await, r#"mw sent {"op":0,"d":5,"t":"TEST"} Users(["alice"])"#);
    let once = || mesa::message::DispatchId::new("once").unwrap();
    served.handle.send_once(once(), &message(6), &id("alice"), &[]).await.unwrap();
    assert!(served.handle.send_once(once(), &message(6), &id("alice"), &[]).await.unwrap().duplicate);
    assert_eq!(diary.next().await, r#"mw sent {"op":0,"d":6,"t":"TEST"} Users(["alice"])"#, "and once");

    alice.send("SAID", &[1]).await.unwrap();
    assert_eq!(diary.next().await, "mw received alice SAID [1]");
    alice.send("PANIC", &()).await.unwrap();
    assert_eq!(diary.next().await, "mw received alice PANIC -");
    assert_eq!(diary.next().await, "mw error alice a handler of message panicked: on purpose");

    let url = format!("http://{}/v1/events", served.address);
    let portal = reqwest::Client::new().get(url).bearer_auth(KEY).send().await.unwrap();
    assert_eq!(diary.next().await, "mw portal join 16");
    drop(portal);
    assert_eq!(diary.next().await, "mw portal leave 16");

    let mut hostile = Connection::connect(&served.url()).await.unwrap();
    assert_eq!(diary.next().await, "mw connection somebody");
    hostile.send_frame(7, None, &()).await.unwrap();
    assert_eq!(end(&mut hostile).await.0, 1008);
    assert_eq!(diary.next().await, "mw error somebody opcode 7 is not for clients");
    assert_eq!(diary.next().await, "mw disconnection somebody 1008 \"this opcode is not for clients\"");
    alice.close().await;
    assert_eq!(diary.next().await, "mw disconnection alice 1000 \"\"");
    served.stop().await;
    assert_eq!(diary.rest(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_that_refuses_has_the_last_word() {
    let ((to, mut diary), (hears, mut heard)) = (diary(), crate::server::diary());
    let served = Served::start(|builder| {
        let first = Writes { name: "1", to: to.clone(), then: |_| Ok(()) };
        let second = Writes { name: "2", to, then: |_| Ok(()) };
        builder.middleware(first).middleware(second).on_message(move |_, message| {
            _ = hears.send(message.kind().to_owned());
            async {}
        })
    })
    .await;
    let mut client = served.connect("alice").await;
    for expected in ["1 connection", "2 connection", "1 authenticated", "2 authenticated"] {
        assert!(diary.next().await.starts_with(expected), "in the order in which they were added");
    }
    for kind in ["REFUSED", "PASSED", "FATAL"] {
        client.send(kind, &()).await.unwrap();
    }
    let expected = ["1 received alice REFUSED -", "1 received alice PASSED -", "2 received alice PASSED -"];
    for expected in expected {
        assert_eq!(diary.next().await, expected);
    }
    assert_eq!(end(&mut client).await.0, 1008);
    served.stop().await;
    assert_eq!(heard.rest(), ["PASSED"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_middleware_that_fails_harms_only_its_call() {
    let (to, mut diary) = diary();
    let served = Served::start(|builder| {
        let errs = Writes { name: "errs", to: to.clone(), then: |_| Err("no luck".into()) };
        let panics = Writes { name: "panics", to: to.clone(), then: |what| panic!("on purpose, at {what}") };
        let last = Writes { name: "last", to, then: |_| Ok(()) };
        builder.middleware(errs).middleware(panics).middleware(last)
    })
    .await;
    let mut client = served.connect("alice").await;
    served.handle.send(&message("hello"), &id("alice"), &[]).await.unwrap();
    assert_eq!(next(&mut client).await, "hello");
    client.send("SAID", &()).await.unwrap();
    client.close().await;
    let mut last = Vec::new();
    while !last.last().is_some_and(|line: &String| line.starts_with("last disconnection")) {
        let line = diary.next().await;
        if line.starts_with("last") {
            last.push(line);
        }
    }
    let (errors, rest): (Vec<_>, Vec<_>) = last.into_iter().partition(|line| line.starts_with("last error"));
    let expected = [
        "last connection somebody",
        "last authenticated alice",
        r#"last sent {"op":0,"d":"hello","t":"TEST"} Users(["alice"])"#,
        "last received alice SAID -",
        "last disconnection alice 1000 \"\"",
    ];
    assert_eq!(rest, expected);
    assert_eq!(errors.len(), 10, "two for each: {errors:?}");
    assert_eq!(errors[0], "last error somebody no luck");
    assert!(errors[1].starts_with("last error somebody a middleware panicked: on purpose"), "{errors:?}");
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_who_says_too_much_is_not_heard_for_a_while() {
    let (hears, mut heard) = diary();
    let served = Served::start(|builder| {
        builder.middleware(RateLimit::new(0.001, 3)).on_message(move |client, message| {
            _ = hears.send((client.user().map(|user| user.to_string()), message.read::<u32>().unwrap()));
            async {}
        })
    })
    .await;
    // The burst is the user's, over whatever connections.
    let (mut phone, mut laptop) = (served.connect("alice").await, served.connect("alice").await);
    for n in 0..2 {
        phone.send("N", &n).await.unwrap();
        assert_eq!(heard.next().await, (Some("alice".into()), n));
    }
    laptop.send("N", &2).await.unwrap();
    assert_eq!(heard.next().await, (Some("alice".into()), 2));
    for n in 3..20 {
        phone.send("N", &n).await.unwrap();
        laptop.send("N", &n).await.unwrap();
    }
    let mut bob = served.connect("bob").await;
    bob.send("N", &0).await.unwrap();
    assert_eq!(heard.next().await, (Some("bob".into()), 0), "others are heard");
    // Both still belong to somebody: they are refused, not sent away.
    served.handle.send(&message("still here"), &id("alice"), &[]).await.unwrap();
    assert_eq!((next(&mut phone).await, next(&mut laptop).await), ("still here".into(), "still here".into()));
    let metrics = reqwest::get(format!("http://{}/metrics", served.address)).await.unwrap().text().await.unwrap();
    assert!(metrics.contains("messages_refused_total 34"), "{metrics}");
    served.stop().await;
    assert_eq!(heard.rest(), []);

    let served = Served::start(|builder| builder.middleware(RateLimit::new(0.001, 1).disconnecting())).await;
    let mut flood = Connection::connect(&served.url()).await.unwrap();
    for n in 0..2 {
        flood.send("N", &n).await.unwrap();
    }
    assert_eq!(end(&mut flood).await.0, 1008);
    served.stop().await;
}

/// Somewhere for a log to be written to.
#[derive(Clone, Default)]
struct Paper(Arc<Mutex<Vec<u8>>>);

impl Write for Paper {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// On one thread, so that what is logged there is what the server says.
#[tokio::test]
async fn the_access_log_tells_who_came_and_went_and_not_what_was_said() {
    let paper = Paper::default();
    let written = paper.clone();
    let subscriber = tracing_subscriber::fmt().with_writer(move || written.clone()).with_ansi(false).finish();
    let _logging = tracing::subscriber::set_default(subscriber);
    let served = Served::start(|builder| builder.middleware(AccessLog::new())).await;
    served.handle.send(&message("private"), &id("alice"), &[]).await.unwrap();
    let mut client = served.connect("alice").await;
    next(&mut client).await;
    for _ in 0..3 {
        client.send("SAID", &"private").await.unwrap();
    }
    client.close().await;
    let text = || String::from_utf8(paper.0.lock().unwrap().clone()).unwrap();
    let went = async {
        while !text().contains("disconnected") {
            tokio::task::yield_now().await;
        }
    };
    within("the end of it", went).await;
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
    served.stop().await;
}
