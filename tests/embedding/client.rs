//! Clients that come back by themselves.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::{Stream, StreamExt};
use mesa::{
    client::{Client, ClientError, Event, Options, token},
    message::DeviceId,
};
use serde_json::{Map, Value, json};

use crate::{
    flaky_proxy::Network,
    server::{Served, builder, diary, id, message, within},
    support::{http::Http, server::Home},
};

/// Soon enough for a test.
const INTERVAL: Duration = Duration::from_millis(20);

fn resuming(after: u64, device: &str) -> Options {
    Options::default().after(after).device(DeviceId::new(device).unwrap())
}

async fn connect(url: &str) -> Client {
    Client::builder(url).reconnect_interval(INTERVAL).connect().await.expect("a connection")
}

/// The next message's data, and its position; passes over everything else.
async fn next(client: &mut Client) -> (Value, Option<u64>) {
    loop {
        if let Event::Message(message) = within("a message", client.next()).await.expect("it goes on") {
            return (message.read().expect("JSON"), message.position);
        }
    }
}

fn short(event: &Event) -> String {
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
async fn what_happens_to_a_client_is_a_stream() {
    let served = Served::start(|builder| {
        builder.configure(|config| (config.reconnect.enabled, config.reconnect.interval) = (true, INTERVAL))
    })
    .await;
    let network = Network::to(served.address).await;
    served.handle.send(&message(1), &id("alice"), &[]).await.unwrap();
    // By the interval that the server announces.
    let mut client = Client::connect(&network.url()).await.unwrap();
    let user = client.authenticate(token("alice"), Options::default()).await.unwrap();
    assert_eq!(Value::Object(user), json!({ "id": "alice" }));
    fn is_a_stream(_: &impl Stream<Item = Event>) {}
    is_a_stream(&client);
    for expected in ["connected", "authenticated \"alice\"", "message 1 Some(1)"] {
        assert_eq!(short(&within("an event", StreamExt::next(&mut client)).await.unwrap()), expected);
    }
    network.cut();
    for expected in ["disconnected 1006 true", "reconnected", "authenticated \"alice\""] {
        assert_eq!(short(&within(expected, client.next()).await.unwrap()), expected);
    }
    // Asked to go, it does not come back; and so does one that an operator sends away.
    assert_eq!(served.handle.disconnect(id("alice"), &[]).await.unwrap().online, 1);
    loop {
        match short(&within("the end", client.next()).await.unwrap()).as_str() {
            // It may not have had the time to say that it was done with this one.
            "message 1 Some(1)" => {}
            last => break assert_eq!(last, "disconnected 1000 false"),
        }
    }
    assert!(client.next().await.is_none() && client.next().await.is_none());
    assert!(matches!(client.send("T", &()), Err(ClientError::Gone)));
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_interval_nobody_comes_back() {
    let served = Served::start(|builder| builder).await;
    let network = Network::to(served.address).await;
    let mut client = Client::connect(&network.url()).await.unwrap();
    network.cut();
    assert_eq!(short(&client.next().await.unwrap()), "connected");
    assert_eq!(short(&within("the end", client.next()).await.unwrap()), "disconnected 1006 false");
    assert!(client.next().await.is_none());
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_sent_while_away_goes_when_it_is_back_and_let_in() {
    let (hears, mut heard) = diary();
    let home = tempfile::tempdir().unwrap();
    let hearing = |builder: mesa::server::Builder| {
        let hears = hears.clone();
        builder.configure(|config| config.limits.frames_per_second = 100_000).on_message(move |client, message| {
            _ = hears.send((client.user().map(|user| user.to_string()), message.read::<u32>().unwrap()));
            async {}
        })
    };
    let served = Served::start_in(home, hearing).await;
    let network = Network::to(served.address).await;
    let mut client = connect(&network.url()).await;
    client.authenticate(token("alice"), Options::default()).await.unwrap();
    // One by one, while nothing else happens.
    for n in 0..5 {
        client.send("N", &n).unwrap();
        assert_eq!(heard.next().await, (Some("alice".into()), n));
    }
    let home = served.stop().await;
    while !short(&within("the end", client.next()).await.unwrap()).starts_with("disconnected") {}
    // As many as may wait, and no more.
    let sender = client.sender();
    for n in 1..=1024 {
        sender.send("N", &n).unwrap();
    }
    assert!(matches!(sender.send("N", &1025), Err(ClientError::Full)));
    let served = Served::start_in(home, hearing).await;
    network.lead_to(served.address);
    for n in 1..=1024 {
        assert_eq!(heard.next().await, (Some("alice".into()), n));
    }
    client.send("N", &2000).unwrap();
    client.disconnect().await;
    assert_eq!(heard.next().await, (Some("alice".into()), 2000), "what was sent before the end is sent");
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_messages_are_bounded_in_bytes_too() {
    let served = Served::start(|builder| builder).await;
    let network = Network::to(served.address).await;
    let mut client = connect(&network.url()).await;
    served.stop().await;
    while !short(&within("the end", client.next()).await.unwrap()).starts_with("disconnected") {}
    let large = "x".repeat(1 << 20);
    let taken = (0..10).take_while(|_| client.send("LARGE", &large).is_ok()).count();
    assert_eq!(taken, 3, "of 1 MiB and some bytes each, in 4 MiB");
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_are_asked_for_at_every_connection_and_a_no_is_final() {
    let served = Served::start(|builder| {
        builder.authenticate(|data| async move {
            match data["token"].as_u64() {
                Some(n @ 0..2) => Ok(mesa::auth::Identity::new(id(&format!("user-{n}")))),
                _ => Err(mesa::auth::AuthError::Rejected("enough".into())),
            }
        })
    })
    .await;
    let network = Network::to(served.address).await;
    let mut client = connect(&network.url()).await;
    let asked = Arc::new(AtomicU64::new(0));
    let credentials = move || {
        let n = asked.fetch_add(1, Ordering::SeqCst);
        std::future::ready(Map::from_iter([("token".to_owned(), Value::from(n))]))
    };
    assert_eq!(client.authenticate_by(credentials, Options::default()).await.unwrap()["id"], "user-0");
    for expected in ["connected", "authenticated \"user-0\""] {
        assert_eq!(short(&client.next().await.unwrap()), expected);
    }
    network.cut();
    for expected in ["disconnected 1006 true", "reconnected", "authenticated \"user-1\""] {
        assert_eq!(short(&within(expected, client.next()).await.unwrap()), expected);
    }
    network.cut();
    for expected in ["disconnected 1006 true", "reconnected", "disconnected 1008 false"] {
        assert_eq!(short(&within(expected, client.next()).await.unwrap()), expected);
    }
    assert!(client.next().await.is_none());

    let mut refused = connect(&network.url()).await;
    let error = refused.authenticate(token("no"), Options::default()).await.unwrap_err();
    assert!(matches!(error, ClientError::Refused { code: 1008, .. }), "{error:?}");
    served.stop().await;
}

/// What a program is done with is confirmed, and what it was not done with when it died comes again.
#[tokio::test(flavor = "multi_thread")]
async fn only_what_the_program_is_done_with_is_confirmed() {
    for device in [None, Some("phone-1")] {
        let served = Served::start(|builder| builder).await;
        for n in 1..=5 {
            served.handle.send(&message(n), &id("alice"), &[]).await.unwrap();
        }
        let options = || device.map_or_else(Options::default, |device| resuming(0, device));
        let mut client = connect(&served.url()).await;
        client.authenticate(token("alice"), options()).await.unwrap();
        for n in 1..=3 {
            assert_eq!(next(&mut client).await, (json!(n), Some(n)));
        }
        // Asking for the third meant being done with the second. It dies over the third.
        drop(client);
        let gone = async {
            while served.handle.connections() > 0 {
                tokio::task::yield_now().await;
            }
        };
        within("it to be gone", gone).await;
        let pending = served.handle.user(&id("alice")).await.unwrap().pending;
        let after = 5 - pending;
        assert!(
            device.is_none() || after == 2,
            "of those who resume what was done with is confirmed to the letter: {after}"
        );
        let mut client = connect(&served.url()).await;
        client.authenticate(token("alice"), options()).await.unwrap();
        for n in after + 1..=5 {
            assert_eq!(next(&mut client).await.0, json!(n));
        }
        let nothing = async { while served.handle.user(&id("alice")).await.unwrap().pending > 0 {} };
        if device.is_none() {
            // Who does not resume confirms when he is asked.
            tokio::select! {
                event = client.next() => panic!("{event:?}"),
                () = within("all to be confirmed", nothing) => {}
            }
            continue;
        }
        client.disconnect().await;
        within("all to be confirmed", nothing).await;
        served.stop().await;
    }
}

/// The promise of `after`: over broken connections and a killed server every message comes once, in order. The server is the
/// built binary; a backend goes on sending all the while.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_resumes_loses_and_repeats_nothing() {
    const MESSAGES: u64 = 3_000;
    const KILLS: u64 = 3;
    let home = Arc::new(Home::new());
    let server = home.start();
    let network = Network::to(server.address).await;
    let address = Arc::new(Mutex::new(server.address));
    let backend = {
        let address = address.clone();
        tokio::task::spawn_blocking(move || send_numbers(&address, MESSAGES))
    };
    let mut client = connect(&network.url()).await;
    client.authenticate(token("alice"), resuming(0, "phone-1")).await.unwrap();
    let (mut server, mut last, mut lost) = (Some(server), 0, 0);
    while last < MESSAGES {
        match within("an event", client.next()).await.expect("it goes on") {
            Event::Message(message) => {
                last += 1;
                let told = (message.read::<u64>().unwrap(), message.position.unwrap());
                assert_eq!(told, (last, last), "without hole or repeat");
                if last % (MESSAGES / (KILLS + 1)) == 0 && last < MESSAGES {
                    server.take().expect("it runs").process.kill();
                    let home = home.clone();
                    let next = tokio::task::spawn_blocking(move || home.start()).await.unwrap();
                    *address.lock().unwrap() = next.address;
                    network.lead_to(next.address);
                    server = Some(next);
                } else if last % 97 == 0 {
                    network.cut();
                }
            }
            Event::Resumed { missed, .. } => assert!(missed.is_none(), "{missed:?}"),
            Event::Disconnected { will_reconnect, .. } => {
                assert!(will_reconnect);
                lost += 1;
            }
            _ => {}
        }
    }
    within("the backend", backend).await.unwrap();
    assert!(lost >= KILLS, "a test of lost connections has to lose some: {lost}");
    // It may have been away when the last was dealt with, and then nobody has heard of that yet. The next start says so.
    client.disconnect().await;
    let mut again = connect(&network.url()).await;
    again.authenticate(token("alice"), resuming(last, "phone-1")).await.unwrap();
    loop {
        match within("an event", again.next()).await.expect("it goes on") {
            Event::Resumed { first, last, missed } => {
                break assert_eq!((first, last, missed), (last + 1, MESSAGES, None));
            }
            Event::Message(message) => panic!("{message:?} comes again"),
            _ => {}
        }
    }
    let address = *address.lock().unwrap();
    let pending = tokio::task::spawn_blocking(move || {
        let mut http = Http::connect(address).unwrap();
        while http.get::<Value>("/v1/users/alice").unwrap()["pending"] != 0 {}
    });
    within("all to be confirmed", pending).await.unwrap();
}

/// Dispatches the numbers from 1 on, each until it is answered; the id makes one of what is said twice.
fn send_numbers(address: &Mutex<SocketAddr>, count: u64) {
    let mut http = None;
    for n in 1..=count {
        let body = json!({ "message": { "d": n }, "recipients": ["alice"], "id": format!("n-{n}") }).to_string();
        loop {
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

/// A store that was put in the place of another begins to count anew; what a client has counted before says nothing there.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_another_store_is_taken_for_what_was_had_before() {
    let before = Served::start(|builder| builder).await;
    let network = Network::to(before.address).await;
    let mut client = connect(&network.url()).await;
    client.authenticate(token("alice"), resuming(0, "phone-1")).await.unwrap();
    for n in 1..=5 {
        before.handle.send(&message(n), &id("alice"), &[]).await.unwrap();
        assert_eq!(next(&mut client).await, (json!(n), Some(n)));
    }
    before.stop().await;
    let after = Served::start(|builder| builder).await;
    for n in 1..=3 {
        after.handle.send(&message(100 + n), &id("alice"), &[]).await.unwrap();
    }
    network.lead_to(after.address);
    for n in 1..=3 {
        assert_eq!(next(&mut client).await, (json!(100 + n), Some(n)));
    }
    after.stop().await;
}

/// Only who was connected once comes back by himself.
#[tokio::test(flavor = "multi_thread")]
async fn the_first_connection_has_to_succeed() {
    let home = tempfile::tempdir().unwrap();
    let server = builder(&home).start().await.unwrap();
    let url = format!("ws://{}/", server.local_addr());
    server.run(async {}).await.unwrap();
    let error = Client::builder(&url).reconnect_interval(INTERVAL).connect().await.unwrap_err();
    assert!(matches!(error, ClientError::Unreachable { .. }) && error.is_transient(), "{error:?}");
}
