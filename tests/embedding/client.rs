//! Tests clients that reconnect automatically.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::{Stream, StreamExt};
use mesa::{
    client::{Client, ClientError, Event, Options, token},
    message::DeviceId,
};
use serde_json::{Map, Value, json};

use crate::{
    flaky_proxy::FlakyProxy,
    server::{TestServer, builder, message, records, user_id, within},
    support::{http::Http, server::Home, wait::WAIT_TIMEOUT},
};

/// Reconnect interval of the clients.
const RECONNECT_INTERVAL: Duration = Duration::from_millis(20);

pub fn resuming(after: u64, device: &str) -> Options {
    Options::default().after(after).device(DeviceId::new(device).unwrap())
}

pub async fn connect(url: &str) -> Client {
    Client::builder(url).reconnect_interval(RECONNECT_INTERVAL).connect().await.expect("a connection")
}

/// Returns the data and position of the next message, and skips other events.
pub async fn next(client: &mut Client) -> (Value, Option<u64>) {
    loop {
        if let Event::Message(message) = within("message", client.next()).await.expect("the stream has not ended") {
            return (message.read().expect("JSON"), message.position);
        }
    }
}

pub fn summary(event: &Event) -> String {
    match event {
        Event::Connected { is_initial_connection: true, is_automatic_reconnection: false } => "connected".into(),
        Event::Connected { is_initial_connection: false, is_automatic_reconnection: true } => "reconnected".into(),
        Event::Authenticated { user } => format!("authenticated {}", user["id"]),
        Event::Message(message) => format!("message {} {:?}", message.data, message.position),
        Event::Resumed { first, last, missed } => format!("resumed {first}-{last} {missed:?}"),
        Event::Disconnected { code, will_reconnect, .. } => format!("disconnected {code} {will_reconnect}"),
        other => format!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn client_yields_its_events_as_a_stream() {
    let server = TestServer::start(|builder| {
        builder.configure(|config| (config.reconnect.enabled, config.reconnect.interval) = (true, RECONNECT_INTERVAL))
    })
    .await;
    let proxy = FlakyProxy::start(server.address).await;
    server.handle.send(&message(1), &user_id("alice"), &[]).await.unwrap();
    // The client has no interval of its own, so it uses the one that the server announces.
    let mut client = Client::connect(&proxy.url()).await.unwrap();
    let user = client.authenticate(token("alice"), Options::default()).await.unwrap();
    assert_eq!(Value::Object(user), json!({ "id": "alice" }));
    fn is_a_stream(_: &impl Stream<Item = Event>) {}
    is_a_stream(&client);
    for expected in ["connected", "authenticated \"alice\"", "message 1 Some(1)"] {
        assert_eq!(summary(&within("event", StreamExt::next(&mut client)).await.unwrap()), expected);
    }
    proxy.cut();
    for expected in ["disconnected 1006 true", "reconnected", "authenticated \"alice\""] {
        assert_eq!(summary(&within(expected, client.next()).await.unwrap()), expected);
    }
    // A client that is disconnected through the API does not reconnect.
    assert_eq!(server.handle.disconnect(user_id("alice"), &[]).await.unwrap().online, 1);
    loop {
        match summary(&within("disconnection", client.next()).await.unwrap()).as_str() {
            // Redelivered if the connection broke before its acknowledgement was sent.
            "message 1 Some(1)" => {}
            last => break assert_eq!(last, "disconnected 1000 false"),
        }
    }
    assert!(client.next().await.is_none() && client.next().await.is_none());
    assert!(matches!(client.send("T", &()), Err(ClientError::Ended)));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn client_without_reconnect_interval_does_not_reconnect() {
    let server = TestServer::start(|builder| builder).await;
    let proxy = FlakyProxy::start(server.address).await;
    let mut client = Client::connect(&proxy.url()).await.unwrap();
    proxy.cut();
    assert_eq!(summary(&client.next().await.unwrap()), "connected");
    assert_eq!(summary(&within("disconnection", client.next()).await.unwrap()), "disconnected 1006 false");
    assert!(client.next().await.is_none());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_sent_while_disconnected_are_sent_after_authentication() {
    let (record, mut received) = records();
    let home = tempfile::tempdir().unwrap();
    let recording = |builder: mesa::server::Builder| {
        let record = record.clone();
        builder.on_message(move |client, message| {
            _ = record.send((client.user().map(|user| user.to_string()), message.read::<u32>().unwrap()));
            async {}
        })
    };
    let server = TestServer::start_in(home, recording).await;
    let proxy = FlakyProxy::start(server.address).await;
    let mut client = connect(&proxy.url()).await;
    client.authenticate(token("alice"), Options::default()).await.unwrap();
    // One message at a time, on an idle connection.
    for n in 0..5 {
        client.send("N", &n).unwrap();
        assert_eq!(received.next().await, (Some("alice".into()), n));
    }
    let home = server.stop().await;
    while !summary(&within("disconnection", client.next()).await.unwrap()).starts_with("disconnected") {}
    // The client queues at most 1,024 messages. A server accepts 1,000 at once.
    let sender = client.sender();
    for n in 1..=1024 {
        sender.send("N", &n).unwrap();
    }
    assert!(matches!(sender.send("N", &1025), Err(ClientError::Full)));
    let server = TestServer::start_in(home, recording).await;
    proxy.set_target(server.address);
    for n in 1..=1024 {
        assert_eq!(received.next().await, (Some("alice".into()), n));
    }
    client.send("N", &2000).unwrap();
    client.disconnect().await;
    assert_eq!(received.next().await, (Some("alice".into()), 2000), "a message sent before the disconnect arrives");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn queued_messages_above_4_mib_are_rejected() {
    let server = TestServer::start(|builder| builder).await;
    let proxy = FlakyProxy::start(server.address).await;
    let mut client = connect(&proxy.url()).await;
    server.stop().await;
    while !summary(&within("disconnection", client.next()).await.unwrap()).starts_with("disconnected") {}
    let large = "x".repeat(1 << 20);
    let queued = (0..10).take_while(|_| client.send("LARGE", &large).is_ok()).count();
    assert_eq!(queued, 3, "messages slightly larger than 1 MiB, with a bound of 4 MiB");
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_are_requested_per_connection_and_a_rejection_is_final() {
    let server = TestServer::start(|builder| {
        builder.authenticate(|data| async move {
            match data["token"].as_u64() {
                Some(n @ 0..2) => Ok(mesa::auth::Identity::new(user_id(&format!("user-{n}")))),
                _ => Err(mesa::auth::AuthError::Rejected("not accepted".into())),
            }
        })
    })
    .await;
    let proxy = FlakyProxy::start(server.address).await;
    let mut client = connect(&proxy.url()).await;
    let requested = Arc::new(AtomicU64::new(0));
    let credentials = move || {
        let n = requested.fetch_add(1, Ordering::SeqCst);
        std::future::ready(Map::from_iter([("token".to_owned(), Value::from(n))]))
    };
    assert_eq!(client.authenticate_by(credentials, Options::default()).await.unwrap()["id"], "user-0");
    for expected in ["connected", "authenticated \"user-0\""] {
        assert_eq!(summary(&client.next().await.unwrap()), expected);
    }
    proxy.cut();
    for expected in ["disconnected 1006 true", "reconnected", "authenticated \"user-1\""] {
        assert_eq!(summary(&within(expected, client.next()).await.unwrap()), expected);
    }
    proxy.cut();
    for expected in ["disconnected 1006 true", "reconnected", "disconnected 1008 false"] {
        assert_eq!(summary(&within(expected, client.next()).await.unwrap()), expected);
    }
    assert!(client.next().await.is_none());

    let mut rejected = connect(&proxy.url()).await;
    let error = rejected.authenticate(token("no"), Options::default()).await.unwrap_err();
    assert!(matches!(error, ClientError::Closed { code: 1008, .. }), "{error:?}");
    server.stop().await;
}

/// The client acknowledges a message when the program requests the next one. A message that was in progress when the
/// program died is redelivered.
// covers: G2
#[tokio::test(flavor = "multi_thread")]
async fn message_is_acknowledged_when_the_program_requests_the_next() {
    for device in [None, Some("phone-1")] {
        let server = TestServer::start(|builder| builder).await;
        for n in 1..=5 {
            server.handle.send(&message(n), &user_id("alice"), &[]).await.unwrap();
        }
        let options = || device.map_or_else(Options::default, |device| resuming(0, device));
        let mut client = connect(&server.url()).await;
        client.authenticate(token("alice"), options()).await.unwrap();
        for n in 1..=3 {
            assert_eq!(next(&mut client).await, (json!(n), Some(n)));
        }
        // Requesting the third message acknowledged the second. The program dies before it requests the fourth.
        drop(client);
        server.wait_until_all_disconnected().await;
        let pending = server.handle.user(&user_id("alice")).await.unwrap().pending;
        let acknowledged = 5 - pending;
        assert!(
            device.is_none() || acknowledged == 2,
            "a client that resumes acknowledges exactly the processed messages: {acknowledged}"
        );
        let mut client = connect(&server.url()).await;
        client.authenticate(token("alice"), options()).await.unwrap();
        for n in acknowledged + 1..=5 {
            assert_eq!(next(&mut client).await.0, json!(n));
        }
        let all_acknowledged = async { while server.handle.user(&user_id("alice")).await.unwrap().pending > 0 {} };
        if device.is_none() {
            // A client that does not resume acknowledges when the server requests it.
            tokio::select! {
                event = client.next() => panic!("{event:?}"),
                () = within("acknowledgement of all messages", all_acknowledged) => {}
            }
            continue;
        }
        client.disconnect().await;
        within("acknowledgement of all messages", all_acknowledged).await;
        server.stop().await;
    }
}

/// With `after`, each message arrives once and in order, over broken connections and a killed server. The server is the
/// built binary, and a backend dispatches all the time.
// covers: G1, G2
#[tokio::test(flavor = "multi_thread")]
async fn resuming_client_over_cuts_and_kills_receives_each_message_once() {
    const MESSAGES: u64 = 3_000;
    const KILLS: u64 = 3;
    let home = Arc::new(Home::new());
    let server = home.start();
    let proxy = FlakyProxy::start(server.address).await;
    let address = Arc::new(Mutex::new(server.address));
    let backend = {
        let address = address.clone();
        tokio::task::spawn_blocking(move || send_numbers(&address, MESSAGES))
    };
    let mut client = connect(&proxy.url()).await;
    client.authenticate(token("alice"), resuming(0, "phone-1")).await.unwrap();
    let (mut server, mut last, mut disconnections) = (Some(server), 0, 0);
    while last < MESSAGES {
        match within("event", client.next()).await.expect("the stream has not ended") {
            Event::Message(message) => {
                last += 1;
                let received = (message.read::<u64>().unwrap(), message.position.unwrap());
                assert_eq!(received, (last, last), "no gap and no repeat");
                if last % (MESSAGES / (KILLS + 1)) == 0 && last < MESSAGES {
                    server.take().expect("a running server").process.kill();
                    let home = home.clone();
                    let next = tokio::task::spawn_blocking(move || home.start()).await.unwrap();
                    *address.lock().unwrap() = next.address;
                    proxy.set_target(next.address);
                    server = Some(next);
                } else if last % 97 == 0 {
                    proxy.cut();
                }
            }
            Event::Resumed { missed, .. } => assert!(missed.is_none(), "{missed:?}"),
            Event::Disconnected { will_reconnect, .. } => {
                assert!(will_reconnect);
                disconnections += 1;
            }
            _ => {}
        }
    }
    within("end of the backend", backend).await.unwrap();
    assert!(disconnections >= KILLS, "at least one disconnection per kill: {disconnections}");
    // The client may have been disconnected when the last message was processed. Then resuming acknowledges it.
    client.disconnect().await;
    let mut again = connect(&proxy.url()).await;
    again.authenticate(token("alice"), resuming(last, "phone-1")).await.unwrap();
    loop {
        match within("event", again.next()).await.expect("the stream has not ended") {
            Event::Resumed { first, last, missed } => {
                break assert_eq!((first, last, missed), (last + 1, MESSAGES, None));
            }
            Event::Message(message) => panic!("{message:?} is repeated"),
            _ => {}
        }
    }
    let address = *address.lock().unwrap();
    let pending = tokio::task::spawn_blocking(move || {
        let mut http = Http::connect(address).unwrap();
        while http.get::<Value>("/v1/users/alice").unwrap()["pending"] != 0 {}
    });
    within("acknowledgement of all messages", pending).await.unwrap();
}

/// Dispatches the numbers from 1 to `count`, and retries each until it is answered. The id makes retries idempotent.
pub fn send_numbers(address: &Mutex<SocketAddr>, count: u64) {
    let mut http = None;
    for n in 1..=count {
        let body = json!({ "message": { "d": n }, "recipients": ["alice"], "id": format!("n-{n}") }).to_string();
        let end = Instant::now() + WAIT_TIMEOUT;
        loop {
            assert!(Instant::now() < end, "an answer to dispatch {n} within {WAIT_TIMEOUT:?}");
            let connection = match http.take() {
                Some(connection) => Ok(connection),
                None => Http::connect(*address.lock().unwrap()),
            };
            let Ok(mut connection) = connection else {
                std::thread::yield_now();
                continue;
            };
            if let Ok((200, _)) = connection.call("POST", "/v1/dispatch", &body) {
                http = Some(connection);
                break;
            }
        }
    }
}

/// A store that replaces another one has its own sequences, so the position of a client in the old one does not apply.
#[tokio::test(flavor = "multi_thread")]
async fn client_of_a_replaced_store_receives_its_messages_from_sequence_1() {
    let before = TestServer::start(|builder| builder).await;
    let proxy = FlakyProxy::start(before.address).await;
    let mut client = connect(&proxy.url()).await;
    client.authenticate(token("alice"), resuming(0, "phone-1")).await.unwrap();
    for n in 1..=5 {
        before.handle.send(&message(n), &user_id("alice"), &[]).await.unwrap();
        assert_eq!(next(&mut client).await, (json!(n), Some(n)));
    }
    before.stop().await;
    let after = TestServer::start(|builder| builder).await;
    for n in 1..=3 {
        after.handle.send(&message(100 + n), &user_id("alice"), &[]).await.unwrap();
    }
    proxy.set_target(after.address);
    for n in 1..=3 {
        assert_eq!(next(&mut client).await, (json!(100 + n), Some(n)));
    }
    after.stop().await;
}

/// A client reconnects only after it was connected once.
#[tokio::test(flavor = "multi_thread")]
async fn connect_without_a_server_fails_at_once() {
    let home = tempfile::tempdir().unwrap();
    let server = builder(&home).start().await.unwrap();
    let url = format!("ws://{}/", server.local_addr());
    server.run(async {}).await.unwrap();
    let error = Client::builder(&url).reconnect_interval(RECONNECT_INTERVAL).connect().await.unwrap_err();
    assert!(matches!(error, ClientError::Unreachable { .. }) && error.is_transient(), "{error:?}");
}
