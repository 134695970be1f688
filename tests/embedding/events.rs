//! Tests handlers of an embedded server: the events that they receive, and their control of clients.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use mesa::{
    auth::{AuthError, Identity},
    client::{Connection, token},
    message::{Message, Recipients},
    server::{Handler, Peer, ReceivedMessage, SendError, ServerError},
};
use serde_json::{Map, Value, json};
use tokio::sync::{Notify, mpsc::UnboundedSender};

use crate::{
    server::{TestServer, builder, message, next, records, user_id, wait_for_close, within},
    support::{
        socket::Socket,
        wait::{WAIT_TIMEOUT, block_until},
    },
};

/// Records each event as a line.
struct RecordingHandler(UnboundedSender<String>);

impl RecordingHandler {
    fn record(&self, line: String) {
        _ = self.0.send(line);
    }
}

fn name(client: &Peer) -> String {
    client.user().map_or_else(|| "anonymous".into(), |user| user.to_string())
}

impl Handler for RecordingHandler {
    async fn connection(&self, client: Peer) {
        let local = client.address().is_some_and(|address| address.ip().is_loopback());
        self.record(format!("{} connects to {}, local: {local}", name(&client), client.request().uri()));
    }

    async fn authentication(&self, client: Peer) {
        self.record(format!(
            "{} is authenticated as {}",
            name(&client),
            Value::Object((*client.user_object()).clone())
        ));
    }

    async fn message(&self, client: Peer, message: ReceivedMessage) {
        let n: Value = message.read().expect("JSON");
        self.record(format!("{} sends {} {n}", name(&client), message.kind()));
    }

    async fn disconnection(&self, client: Peer, code: u16, reason: String) {
        self.record(format!("{} disconnects with {code} {reason}", name(&client)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn handler_receives_all_events_of_a_client_in_order() {
    let (record, mut records) = records();
    let server = TestServer::start(|builder| builder.handler(RecordingHandler(record))).await;
    let mut client = Connection::connect(&server.url()).await.unwrap();
    client.send("BEFORE", &1).await.unwrap();
    client.authenticate(token("alice"), true).await.unwrap();
    for n in 0..100 {
        client.send("AFTER", &n).await.unwrap();
    }
    client.close().await;
    assert_eq!(records.next().await, "anonymous connects to /, local: true");
    assert_eq!(records.next().await, "anonymous sends BEFORE 1");
    assert_eq!(records.next().await, r#"alice is authenticated as {"id":"alice"}"#);
    for n in 0..100 {
        assert_eq!(records.next().await, format!("alice sends AFTER {n}"));
    }
    assert_eq!(records.next().await, "alice disconnects with 1000 ");
    server.stop().await;
    assert_eq!(records.rest(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn closures_receive_only_their_event() {
    let (record, mut records) = records();
    let [first, second, third, fourth] = std::array::from_fn(|_| record.clone());
    drop(record);
    let server = TestServer::start(|builder| {
        builder
            .on_connection(move |client| {
                _ = first.send(format!("{} connects", name(&client)));
                async {}
            })
            .on_authentication(move |client| {
                _ = second.send(format!("{} is authenticated", name(&client)));
                async {}
            })
            .on_message(move |client, message| {
                _ = third.send(format!("{} sends {}", name(&client), message.kind()));
                async {}
            })
            .on_disconnection(move |client, code, _| {
                _ = fourth.send(format!("{} disconnects with {code}", name(&client)));
                async {}
            })
    })
    .await;
    let mut client = server.connect("bob").await;
    client.send("HELLO", &json!({})).await.unwrap();
    server.stop().await;
    let expected = ["anonymous connects", "bob is authenticated", "bob sends HELLO", "bob disconnects with 1001"];
    assert_eq!(records.rest(), expected);
    assert_eq!(wait_for_close(&mut client).await.0, 1001);
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_sent_before_the_client_reads_the_close_frame_reach_the_handler() {
    let (record, mut records) = records();
    let server = TestServer::start(|builder| builder.handler(RecordingHandler(record))).await;
    let mut client = Socket::connect(server.address, "alice").await.unwrap();
    assert_eq!(records.next().await, "anonymous connects to /, local: true");
    assert_eq!(records.next().await, r#"alice is authenticated as {"id":"alice"}"#);
    let stopping = tokio::spawn(server.stop());
    client.wait_readable().await.unwrap();
    for n in 0..3 {
        client.send_frame(&json!({ "op": 0, "d": n, "t": "LAST" })).await.unwrap();
    }
    client.request_ack().await.unwrap();
    assert!(client.event().await.is_err(), "the next frame is the close frame");
    for n in 0..3 {
        assert_eq!(records.next().await, format!("alice sends LAST {n}"));
    }
    assert_eq!(records.next().await, "alice disconnects with 1001 the server is going away");
    within("stop of the server", stopping).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn handler_can_reply_to_update_and_disconnect_its_client() {
    let server = TestServer::start(|builder| {
        builder.on_message(|client, message| async move {
            match message.kind() {
                "REPLY" => _ = client.send_here(&crate::server::message("this connection")).unwrap(),
                "TO_USER" => _ = client.send(&crate::server::message("to alice")).await.unwrap(),
                "RENAME" => {
                    let object = Map::from_iter([("name".to_owned(), Value::from("Alice"))]);
                    client.update_user(object).unwrap();
                    _ = client.send_here(&crate::server::message(&*client.user_object())).unwrap();
                }
                "BROADCAST" => {
                    let except = [client.user().unwrap()];
                    let news = crate::server::message("news");
                    assert_eq!(client.server().send(&news, Recipients::Everyone, &except).await.unwrap().online, 1);
                }
                "CODE" => {
                    assert!(client.disconnect(1005).is_err() && client.disconnect(5000).is_err());
                    assert!(client.disconnect(4321).unwrap());
                }
                other => panic!("{other}"),
            }
        })
    })
    .await;
    let (mut phone, mut laptop) = (server.connect("alice").await, server.connect("alice").await);
    let mut bob = server.connect("bob").await;
    phone.send("REPLY", &()).await.unwrap();
    assert_eq!(next(&mut phone).await, "this connection");
    phone.send("TO_USER", &()).await.unwrap();
    assert_eq!(next(&mut phone).await, "to alice");
    assert_eq!(next(&mut laptop).await, "to alice", "not the reply to the phone");
    phone.send("RENAME", &()).await.unwrap();
    assert_eq!(next(&mut phone).await, json!({ "name": "Alice" }));
    phone.send("BROADCAST", &()).await.unwrap();
    assert_eq!(next(&mut bob).await, "news");
    phone.send("CODE", &()).await.unwrap();
    assert_eq!(wait_for_close(&mut phone).await, (4321, String::new()));
    laptop.send("REPLY", &()).await.unwrap();
    assert_eq!(next(&mut laptop).await, "this connection");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn handle_message_to_an_offline_user_is_stored() {
    let server = TestServer::start(|builder| builder).await;
    let sent = server.handle.send(&message(1), &user_id("alice"), &[]).await.unwrap();
    assert_eq!((sent.recipients, sent.online, sent.offline), (1, 0, 1));
    let once = || mesa::message::DispatchId::new("once").unwrap();
    assert!(!server.handle.send_once(once(), &message(2), &user_id("alice"), &[]).await.unwrap().duplicate);
    assert!(server.handle.send_once(once(), &message(2), &user_id("alice"), &[]).await.unwrap().duplicate);
    let handle = server.handle.clone();
    let home = server.stop().await;
    assert!(
        matches!(handle.send(&message(3), &user_id("alice"), &[]).await, Err(SendError::Stopped)),
        "a handle does not keep the server running"
    );

    let server = TestServer::start_in(home, |builder| builder).await;
    assert_eq!(server.handle.user(&user_id("alice")).await.unwrap().pending, 2);
    let mut alice = server.connect("alice").await;
    assert_eq!((next(&mut alice).await, next(&mut alice).await), (json!(1), json!(2)));
    assert_eq!(server.handle.online(None, 10).await, [user_id("alice")]);
    assert_eq!(server.handle.disconnect(user_id("alice"), &[]).await.unwrap().online, 1);
    assert_eq!(wait_for_close(&mut alice).await.0, 1000);
    let mut expiring = message(());
    expiring.o.ttl = std::num::NonZeroU32::new(1);
    let contradictory = server.handle.send(&expiring, Recipients::Everyone, &[]).await;
    assert!(matches!(contradictory, Err(SendError::Contradictory(_))), "{contradictory:?}");
    let too_many = vec![user_id("a"); 10_001];
    let rejected = server.handle.send(&message(()), too_many, &[]).await;
    assert!(matches!(rejected, Err(SendError::Recipients { given: 10_001, max: 10_000 })), "{rejected:?}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn panic_of_a_handler_fails_only_its_call() {
    let (record, mut records) = records();
    let server = TestServer::start(|builder| {
        builder
            .on_message(|_, message| {
                assert!(message.kind() != "IN CALL", "on purpose");
                async move { assert!(message.kind() != "IN FUTURE", "on purpose") }
            })
            .on_message(move |_, message| {
                _ = record.send(message.kind().to_owned());
                async {}
            })
    })
    .await;
    let mut client = server.connect("alice").await;
    for kind in ["IN CALL", "IN FUTURE", "NEVER"] {
        client.send(kind, &()).await.unwrap();
        assert_eq!(records.next().await, kind, "the next handler is called, also for the next message");
    }
    assert_eq!(server.handle.connections(), 1);
    server.stop().await;
}

/// A slow handler delays its own client only, and loses none of its messages.
#[tokio::test(flavor = "multi_thread")]
async fn client_with_a_slow_handler_waits_and_loses_nothing() {
    let (release, calls) = (Arc::new(Notify::new()), Arc::new(AtomicUsize::new(0)));
    let (record, mut records) = records();
    let (released, count) = (release.clone(), calls.clone());
    let server = TestServer::start(|builder| {
        builder.configure(|config| config.limits.frames_per_second = 100_000).on_message(move |client, message| {
            let (released, record) = (released.clone(), record.clone());
            count.fetch_add(1, Ordering::SeqCst);
            async move {
                if client.user() == Some(user_id("alice")) {
                    released.notified().await;
                }
                _ = record.send((name(&client), message.read::<usize>().unwrap()));
            }
        })
    })
    .await;
    let mut alice = server.connect("alice").await;
    for n in 0..1_000 {
        alice.send("N", &n).await.unwrap();
    }
    block_until("a call for alice", || calls.load(Ordering::SeqCst) == 1);
    // The handler of another client is called meanwhile.
    let mut bob = server.connect("bob").await;
    bob.send("N", &7).await.unwrap();
    assert_eq!(records.next().await, ("bob".to_owned(), 7));
    assert_eq!(calls.load(Ordering::SeqCst), 2, "one call for alice, one for bob");
    for n in 0..1_000 {
        release.notify_one();
        assert_eq!(records.next().await, ("alice".to_owned(), n));
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn custom_authenticator_decides_on_credentials() {
    let home = tempfile::tempdir().unwrap();
    // With a custom authenticator, the configuration needs neither `insecure` nor token keys.
    let build = |builder: mesa::server::Builder| {
        builder.configure(|config| config.authentication.insecure = false).authenticate(|data| async move {
            match data.get("ticket").and_then(Value::as_u64) {
                Some(0) => panic!("on purpose"),
                Some(1) => Err(AuthError::Rejected("spent".into())),
                Some(n) => Ok(Identity::new(user_id(&format!("guest-{n}")))),
                None => Err(AuthError::Rejected("no ticket".into())),
            }
        })
    };
    let server = TestServer::start_in(home, build).await;
    let ticket = |n: u64| Map::from_iter([("ticket".to_owned(), Value::from(n))]);
    let mut client = Connection::connect(&server.url()).await.unwrap();
    let user = client.authenticate(ticket(7), true).await.unwrap();
    assert_eq!(Value::Object(user), json!({ "id": "guest-7" }));
    // A panic decides nothing, so the client may retry.
    for (n, expected) in [(0, 1013), (1, 1008)] {
        let mut client = Connection::connect(&server.url()).await.unwrap();
        let rejected = client.authenticate(ticket(n), true).await.unwrap_err();
        let mesa::client::ClientError::Closed { code, .. } = rejected else { panic!("{n}: {rejected:?}") };
        assert_eq!(code, expected, "{n}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn before_exit_runs_while_clients_are_connected() {
    let home = tempfile::tempdir().unwrap();
    let (send_handle, handle) = tokio::sync::oneshot::channel::<mesa::server::Handle>();
    let server = builder(&home).before_exit(|| async {
        let handle = handle.await.expect("a handle");
        let last = Message::new("LAST", &"goodbye").unwrap();
        assert_eq!(handle.send(&last, Recipients::Everyone, &[]).await.unwrap().online, 1);
    });
    let server = server.start().await.unwrap();
    let url = format!("ws://{}/", server.local_addr());
    _ = send_handle.send(server.handle());
    let (stop, stopped) = tokio::sync::oneshot::channel();
    let running = tokio::spawn(server.run(async { _ = stopped.await }));
    let mut client = Connection::connect(&url).await.unwrap();
    stop.send(()).unwrap();
    assert_eq!(next(&mut client).await, "goodbye");
    assert_eq!(wait_for_close(&mut client).await.0, 1001);
    within("stop of the server", running).await.unwrap().unwrap();

    // Neither a panic nor a pending future prevents the server from stopping.
    let panics = builder(&home).before_exit(|| async { panic!("on purpose") }).start().await.unwrap();
    within("stop of the server", panics.run(async {})).await.unwrap();
    let began = std::time::Instant::now();
    let pending = builder(&home).before_exit(std::future::pending).start().await.unwrap();
    within("stop of the server", pending.run(async {})).await.unwrap();
    assert!(began.elapsed() >= Duration::from_secs(5) && began.elapsed() < WAIT_TIMEOUT);
}

#[tokio::test]
async fn start_with_unusable_settings_returns_the_reason() {
    let home = tempfile::tempdir().unwrap();
    let invalid = builder(&home).configure(|config| config.authentication.store_connected_users = false);
    let error = invalid.start().await.unwrap_err();
    assert!(matches!(&error, ServerError::Config(_)) && error.to_string().contains("storeConnectedUsers"), "{error}");
    let foreign_address = builder(&home).configure(|config| config.host = "192.0.2.1".into()).configure(|config| {
        config.authentication.insecure_public = true;
    });
    assert!(matches!(foreign_address.start().await.unwrap_err(), ServerError::Listen(_)));
}
