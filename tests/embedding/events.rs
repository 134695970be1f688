//! What is told to the program that a server is part of, and what it can do about it.

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
    server::{PATIENCE, Served, builder, diary, end, id, message, next, within},
    support::socket::Socket,
};

struct Written(UnboundedSender<String>);

impl Written {
    fn write(&self, line: String) {
        _ = self.0.send(line);
    }
}

fn name(client: &Peer) -> String {
    client.user().map_or_else(|| "somebody".into(), |user| user.to_string())
}

impl Handler for Written {
    async fn connection(&self, client: Peer) {
        let local = client.address().is_some_and(|address| address.ip().is_loopback());
        self.write(format!("{} at {} comes, local: {local}", name(&client), client.request().uri()));
    }

    async fn authentication(&self, client: Peer) {
        self.write(format!("{} is let in as {}", name(&client), Value::Object((*client.user_object()).clone())));
    }

    async fn message(&self, client: Peer, message: ReceivedMessage) {
        let n: Value = message.read().expect("JSON");
        self.write(format!("{} says {} {n}", name(&client), message.kind()));
    }

    async fn disconnection(&self, client: Peer, code: u16, reason: String) {
        self.write(format!("{} goes with {code} {reason}", name(&client)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_client_everything_is_told_in_order() {
    let (write, mut diary) = diary();
    let served = Served::start(|builder| builder.handler(Written(write))).await;
    let mut client = Connection::connect(&served.url()).await.unwrap();
    client.send("BEFORE", &1).await.unwrap();
    client.authenticate(token("alice"), true).await.unwrap();
    for n in 0..100 {
        client.send("AFTER", &n).await.unwrap();
    }
    client.close().await;
    assert_eq!(diary.next().await, "somebody at / comes, local: true");
    assert_eq!(diary.next().await, "somebody says BEFORE 1");
    assert_eq!(diary.next().await, r#"alice is let in as {"id":"alice"}"#);
    for n in 0..100 {
        assert_eq!(diary.next().await, format!("alice says AFTER {n}"));
    }
    assert_eq!(diary.next().await, "alice goes with 1000 ");
    served.stop().await;
    assert_eq!(diary.rest(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn closures_are_called_for_their_event_alone() {
    let (write, mut diary) = diary();
    let [first, second, third, fourth] = std::array::from_fn(|_| write.clone());
    drop(write);
    let served = Served::start(|builder| {
        builder
            .on_connection(move |client| {
                _ = first.send(format!("{} comes", name(&client)));
                async {}
            })
            .on_authentication(move |client| {
                _ = second.send(format!("{} is let in", name(&client)));
                async {}
            })
            .on_message(move |client, message| {
                _ = third.send(format!("{} says {}", name(&client), message.kind()));
                async {}
            })
            .on_disconnection(move |client, code, _| {
                _ = fourth.send(format!("{} goes with {code}", name(&client)));
                async {}
            })
    })
    .await;
    let mut client = served.connect("bob").await;
    client.send("HELLO", &json!({})).await.unwrap();
    served.stop().await;
    let expected = ["somebody comes", "bob is let in", "bob says HELLO", "bob goes with 1001"];
    assert_eq!(diary.rest(), expected);
    assert_eq!(end(&mut client).await.0, 1001);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_client_says_before_it_hears_that_the_server_stops_is_told() {
    let (write, mut diary) = diary();
    let served = Served::start(|builder| builder.handler(Written(write))).await;
    let mut client = Socket::connect(served.address, "alice").await.unwrap();
    assert_eq!(diary.next().await, "somebody at / comes, local: true");
    assert_eq!(diary.next().await, r#"alice is let in as {"id":"alice"}"#);
    let stopping = tokio::spawn(served.stop());
    client.wait_readable().await.unwrap();
    for n in 0..3 {
        client.send_frame(&json!({ "op": 0, "d": n, "t": "LAST" })).await.unwrap();
    }
    client.request_ack().await.unwrap();
    assert!(client.event().await.is_err(), "the close frame is the first that it is told");
    for n in 0..3 {
        assert_eq!(diary.next().await, format!("alice says LAST {n}"));
    }
    assert_eq!(diary.next().await, "alice goes with 1001 the server is going away");
    within("the server to stop", stopping).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_can_be_answered_renamed_and_sent_away() {
    let served = Served::start(|builder| {
        builder.on_message(|client, message| async move {
            match message.kind() {
                "HERE" => _ = client.send_here(&crate::server::message("only here")).unwrap(),
                "ALL" => _ = client.send(&crate::server::message("to alice")).await.unwrap(),
                "RENAME" => {
                    let object = Map::from_iter([("name".to_owned(), Value::from("Alice"))]);
                    client.update_user(object).unwrap();
                    _ = client.send_here(&crate::server::message(&*client.user_object())).unwrap();
                }
                "EVERYONE" => {
                    let but = [client.user().unwrap()];
                    let news = crate::server::message("news");
                    assert_eq!(client.server().send(&news, Recipients::Everyone, &but).await.unwrap().online, 1);
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
    let (mut phone, mut laptop) = (served.connect("alice").await, served.connect("alice").await);
    let mut bob = served.connect("bob").await;
    phone.send("HERE", &()).await.unwrap();
    assert_eq!(next(&mut phone).await, "only here");
    phone.send("ALL", &()).await.unwrap();
    assert_eq!(next(&mut phone).await, "to alice");
    assert_eq!(next(&mut laptop).await, "to alice", "and not what was for the phone");
    phone.send("RENAME", &()).await.unwrap();
    assert_eq!(next(&mut phone).await, json!({ "name": "Alice" }));
    phone.send("EVERYONE", &()).await.unwrap();
    assert_eq!(next(&mut bob).await, "news");
    phone.send("CODE", &()).await.unwrap();
    assert_eq!(end(&mut phone).await, (4321, String::new()));
    laptop.send("HERE", &()).await.unwrap();
    assert_eq!(next(&mut laptop).await, "only here");
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_server_sends_to_who_is_away_is_kept() {
    let served = Served::start(|builder| builder).await;
    let sent = served.handle.send(&message(1), &id("alice"), &[]).await.unwrap();
    assert_eq!((sent.recipients, sent.online, sent.offline), (1, 0, 1));
    let once = || mesa::message::DispatchId::new("once").unwrap();
    assert!(!served.handle.send_once(once(), &message(2), &id("alice"), &[]).await.unwrap().duplicate);
    assert!(served.handle.send_once(once(), &message(2), &id("alice"), &[]).await.unwrap().duplicate);
    let handle = served.handle.clone();
    let home = served.stop().await;
    assert!(matches!(handle.send(&message(3), &id("alice"), &[]).await, Err(SendError::Stopped)), "it keeps no server");

    let served = Served::start_in(home, |builder| builder).await;
    assert_eq!(served.handle.user(&id("alice")).await.unwrap().pending, 2);
    let mut alice = served.connect("alice").await;
    assert_eq!((next(&mut alice).await, next(&mut alice).await), (json!(1), json!(2)));
    assert_eq!(served.handle.online(None, 10).await, [id("alice")]);
    assert_eq!(served.handle.disconnect(id("alice"), &[]).await.unwrap().online, 1);
    assert_eq!(end(&mut alice).await.0, 1000);
    let mut everyone = message(());
    everyone.o.ttl = std::num::NonZeroU32::new(1);
    let senseless = served.handle.send(&everyone, Recipients::Everyone, &[]).await;
    assert!(matches!(senseless, Err(SendError::Senseless(_))), "{senseless:?}");
    let too_many = vec![id("a"); 10_001];
    let refused = served.handle.send(&message(()), too_many, &[]).await;
    assert!(matches!(refused, Err(SendError::Recipients { given: 10_001, max: 10_000 })), "{refused:?}");
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_panics_harms_only_its_call() {
    let (write, mut diary) = diary();
    let served = Served::start(|builder| {
        builder
            .on_message(|_, message| {
                assert!(message.kind() != "AT ONCE", "on purpose");
                async move { assert!(message.kind() != "LATER", "on purpose") }
            })
            .on_message(move |_, message| {
                _ = write.send(message.kind().to_owned());
                async {}
            })
    })
    .await;
    let mut client = served.connect("alice").await;
    for kind in ["AT ONCE", "LATER", "NEVER"] {
        client.send(kind, &()).await.unwrap();
        assert_eq!(diary.next().await, kind, "the next handler is called, and so is the next message's");
    }
    assert_eq!(served.handle.connections(), 1);
    served.stop().await;
}

/// A handler that does not get on makes its own client wait, and loses nothing of what it says.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_is_not_listened_to_while_its_handler_has_enough_to_do() {
    let (go, called) = (Arc::new(Notify::new()), Arc::new(AtomicUsize::new(0)));
    let (write, mut diary) = diary();
    let (wait, count) = (go.clone(), called.clone());
    let served = Served::start(|builder| {
        builder.configure(|config| config.limits.frames_per_second = 100_000).on_message(move |client, message| {
            let (wait, write) = (wait.clone(), write.clone());
            count.fetch_add(1, Ordering::SeqCst);
            async move {
                if client.user() == Some(id("alice")) {
                    wait.notified().await;
                }
                _ = write.send((name(&client), message.read::<usize>().unwrap()));
            }
        })
    })
    .await;
    let mut alice = served.connect("alice").await;
    for n in 0..1_000 {
        alice.send("N", &n).await.unwrap();
    }
    // Another client's handlers are called meanwhile.
    let mut bob = served.connect("bob").await;
    bob.send("N", &7).await.unwrap();
    assert_eq!(diary.next().await, ("bob".to_owned(), 7));
    assert_eq!(called.load(Ordering::SeqCst), 2, "of alice's thousand one, and bob's");
    for n in 0..1_000 {
        go.notify_one();
        assert_eq!(diary.next().await, ("alice".to_owned(), n));
    }
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_authenticator_of_ones_own_decides_who_comes_in() {
    let home = tempfile::tempdir().unwrap();
    // Without `insecure`, and reachable by others: what is configured need not know how tokens are checked.
    let build = |builder: mesa::server::Builder| {
        builder.configure(|config| config.authentication.insecure = false).authenticate(|data| async move {
            match data.get("ticket").and_then(Value::as_u64) {
                Some(0) => panic!("on purpose"),
                Some(1) => Err(AuthError::Rejected("spent".into())),
                Some(n) => Ok(Identity::new(id(&format!("guest-{n}")))),
                None => Err(AuthError::Rejected("no ticket".into())),
            }
        })
    };
    let served = Served::start_in(home, build).await;
    let ticket = |n: u64| Map::from_iter([("ticket".to_owned(), Value::from(n))]);
    let mut client = Connection::connect(&served.url()).await.unwrap();
    let user = client.authenticate(ticket(7), true).await.unwrap();
    assert_eq!(Value::Object(user), json!({ "id": "guest-7" }));
    for n in [0, 1] {
        let mut client = Connection::connect(&served.url()).await.unwrap();
        let refused = client.authenticate(ticket(n), true).await.unwrap_err();
        assert!(matches!(refused, mesa::client::ClientError::Refused { code: 1008, .. }), "{n}: {refused:?}");
    }
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn before_the_exit_there_is_a_last_word() {
    let home = tempfile::tempdir().unwrap();
    let (tell, told) = tokio::sync::oneshot::channel::<mesa::server::Handle>();
    let server = builder(&home).before_exit(|| async {
        let handle = told.await.expect("a handle");
        let last = Message::new("LAST", &"goodbye").unwrap();
        assert_eq!(handle.send(&last, Recipients::Everyone, &[]).await.unwrap().online, 1);
    });
    let server = server.start().await.unwrap();
    let url = format!("ws://{}/", server.local_addr());
    _ = tell.send(server.handle());
    let (stop, stopped) = tokio::sync::oneshot::channel();
    let running = tokio::spawn(server.run(async { _ = stopped.await }));
    let mut client = Connection::connect(&url).await.unwrap();
    stop.send(()).unwrap();
    assert_eq!(next(&mut client).await, "goodbye");
    assert_eq!(end(&mut client).await.0, 1001);
    within("the end", running).await.unwrap().unwrap();

    // It cannot keep the server from stopping, neither by a panic nor by taking its time.
    let panics = builder(&home).before_exit(|| async { panic!("on purpose") }).start().await.unwrap();
    within("the end", panics.run(async {})).await.unwrap();
    let began = std::time::Instant::now();
    let waits = builder(&home).before_exit(std::future::pending).start().await.unwrap();
    within("the end", waits.run(async {})).await.unwrap();
    assert!(began.elapsed() >= Duration::from_secs(5) && began.elapsed() < PATIENCE);
}

#[tokio::test]
async fn what_cannot_start_says_why() {
    let home = tempfile::tempdir().unwrap();
    let forgets = builder(&home).configure(|config| config.authentication.store_connected_users = false);
    let error = forgets.start().await.unwrap_err();
    assert!(matches!(&error, ServerError::Config(_)) && error.to_string().contains("storeConnectedUsers"), "{error}");
    let nowhere = builder(&home).configure(|config| config.host = "192.0.2.1".into()).configure(|config| {
        config.authentication.insecure_public = true;
    });
    assert!(matches!(nowhere.start().await.unwrap_err(), ServerError::Listen(_)));
}
