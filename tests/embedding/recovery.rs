//! Tests which closes a reconnecting client survives: expired tokens, outages of the authentication, and its own rate.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use mesa::{
    auth::{AuthError, Identity},
    client::{Client, ClientError, Connection, Event, Options, token},
};

use crate::{
    client::{connect, next, resuming, summary},
    flaky_proxy::FlakyProxy,
    server::{TestServer, message, records, user_id, wait_for_close, within},
};

/// Expects these events in this order.
async fn expect(client: &mut Client, events: &[&str]) {
    for expected in events {
        assert_eq!(summary(&within(expected, client.next()).await.unwrap()), *expected);
    }
}

/// Starts a server whose first token expires after 1 s.
async fn server_with_short_first_token() -> TestServer {
    let calls = AtomicU64::new(0);
    TestServer::start(move |builder| {
        builder.authenticate(move |_| {
            let mut identity = Identity::new(user_id("alice"));
            if calls.fetch_add(1, Ordering::SeqCst) == 0 {
                identity.expires = Some(SystemTime::now() + Duration::from_secs(1));
            }
            async { Ok(identity) }
        })
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn client_reconnects_after_token_expiry_if_a_function_makes_tokens() {
    let server = server_with_short_first_token().await;
    let mut client = connect(&server.url()).await;
    let credentials = || std::future::ready(token("alice"));
    client.authenticate_by(credentials, Options::default()).await.unwrap();
    let authenticated = "authenticated \"alice\"";
    expect(&mut client, &["connected", authenticated, "disconnected 1008 true", "reconnected", authenticated]).await;
    server.handle.send(&message(1), &user_id("alice"), &[]).await.unwrap();
    assert_eq!(next(&mut client).await.0, 1);
    server.stop().await;

    let server = server_with_short_first_token().await;
    let mut client = connect(&server.url()).await;
    client.authenticate(token("alice"), Options::default()).await.unwrap();
    expect(&mut client, &["connected", authenticated, "disconnected 1008 false"]).await;
    assert!(client.next().await.is_none());
    server.stop().await;
}

/// The server does not answer a renewal. Messages that wait for the program do not delay it.
#[tokio::test(flavor = "multi_thread")]
async fn renewal_of_a_token_returns_at_once_and_keeps_the_connection() {
    const MESSAGES: u64 = 200;
    let calls = Arc::new(AtomicU64::new(0));
    let counted = calls.clone();
    let server = TestServer::start(move |builder| {
        builder.authenticate(move |_| {
            counted.fetch_add(1, Ordering::SeqCst);
            async { Ok(Identity::new(user_id("alice"))) }
        })
    })
    .await;
    let mut client = connect(&server.url()).await;
    let user = client.authenticate(token("old"), resuming(0, "phone-1")).await.unwrap();
    for n in 1..=MESSAGES {
        server.handle.send(&message(n), &user_id("alice"), &[]).await.unwrap();
    }
    assert_eq!(next(&mut client).await.0, 1);
    // The options of the first authentication stay: the client still resumes.
    let renewed = within("renewal", client.authenticate(token("new"), Options::default())).await.unwrap();
    assert_eq!(renewed, user);
    for n in 2..=MESSAGES {
        match within("message", client.next()).await.unwrap() {
            Event::Message(message) => assert_eq!((message.read::<u64>().unwrap(), message.position), (n, Some(n))),
            Event::Resumed { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    let renewals = async {
        while calls.load(Ordering::SeqCst) < 2 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    within("second authentication", renewals).await;

    let mut connection = Connection::connect(&server.url()).await.unwrap();
    let user = connection.authenticate(token("old"), true).await.unwrap();
    assert_eq!(within("renewal", connection.authenticate(token("new"), true)).await.unwrap(), user);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn client_survives_outage_of_the_authentication() {
    let is_down = Arc::new(AtomicBool::new(false));
    let checked = is_down.clone();
    let server = TestServer::start(move |builder| {
        builder.authenticate(move |_| {
            let is_down = checked.load(Ordering::SeqCst);
            async move {
                if is_down { Err(AuthError::Unavailable("down".into())) } else { Ok(Identity::new(user_id("alice"))) }
            }
        })
    })
    .await;
    let proxy = FlakyProxy::start(server.address).await;
    let mut client = connect(&proxy.url()).await;
    client.authenticate(token("alice"), Options::default()).await.unwrap();
    expect(&mut client, &["connected", "authenticated \"alice\""]).await;
    is_down.store(true, Ordering::SeqCst);
    proxy.cut();
    expect(&mut client, &["disconnected 1006 true", "reconnected", "disconnected 1013 true"]).await;
    is_down.store(false, Ordering::SeqCst);
    server.handle.send(&message(1), &user_id("alice"), &[]).await.unwrap();
    assert_eq!(next(&mut client).await.0, 1);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn authentication_that_cannot_be_checked_closes_with_1013_if_failures_disconnect() {
    let build = |disconnect_on_fail: bool| {
        let calls = AtomicU64::new(0);
        move |builder: mesa::server::Builder| {
            builder.configure(move |config| config.authentication.disconnect_on_fail = disconnect_on_fail).authenticate(
                move |_| {
                    let is_first = calls.fetch_add(1, Ordering::SeqCst) == 0;
                    async move {
                        if is_first {
                            Err(AuthError::Unavailable("down".into()))
                        } else {
                            Ok(Identity::new(user_id("alice")))
                        }
                    }
                },
            )
        }
    };
    let server = TestServer::start(build(true)).await;
    let mut client = Connection::connect(&server.url()).await.unwrap();
    let error = client.authenticate(token("alice"), true).await.unwrap_err();
    assert!(matches!(&error, ClientError::Closed { code: 1013, .. }) && error.is_transient(), "{error:?}");
    server.stop().await;

    let server = TestServer::start(build(false)).await;
    let mut client = Connection::connect(&server.url()).await.unwrap();
    // Op 2, without waiting for the answer.
    client.send_frame(2, None, &token("alice")).await.unwrap();
    client.authenticate(token("alice"), true).await.unwrap();
    server.stop().await;
}

/// The client has sent its credentials in time, so it must not be rejected for the delay.
#[tokio::test(flavor = "multi_thread")]
async fn authentication_that_is_checked_too_long_closes_with_1013() {
    let server = TestServer::start(|builder| {
        builder
            .configure(|config| config.authentication.timeout = Duration::from_secs(2))
            .authenticate(|_| std::future::pending::<Result<Identity, AuthError>>())
    })
    .await;
    let mut client = Connection::connect(&server.url()).await.unwrap();
    let error = client.authenticate(token("alice"), true).await.unwrap_err();
    assert!(matches!(&error, ClientError::Closed { code: 1013, .. }), "{error:?}");
    let mut silent = Connection::connect(&server.url()).await.unwrap();
    assert_eq!(wait_for_close(&mut silent).await, (1008, "authentication timed out".into()));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn client_above_the_rate_of_a_server_reconnects_and_sends_slower() {
    let (record, mut received) = records();
    let server = TestServer::start(move |builder| {
        builder.configure(|config| config.limits.frames_per_second = 30).on_message(move |_, message| {
            _ = record.send(message.read::<u32>().unwrap());
            async {}
        })
    })
    .await;
    let mut client = connect(&server.url()).await;
    client.authenticate(token("alice"), Options::default()).await.unwrap();
    for n in 0..400 {
        client.send("N", &n).unwrap();
    }
    expect(&mut client, &["connected", "authenticated \"alice\"", "disconnected 1008 true", "reconnected"]).await;
    // Half of the burst of 500 is below the 300 frames that this server accepts.
    for n in 1_000..1_280 {
        client.send("N", &n).unwrap();
    }
    while received.next().await != 1_279 {}
    expect(&mut client, &["authenticated \"alice\""]).await;
    server.stop().await;
}
