//! Tests the portal library: events that a portal receives, and resumption after a lost connection.

use mesa::{
    dispatcher::DispatchError,
    portal::{Event, Portal},
};

use crate::{
    flaky_proxy::FlakyProxy,
    server::{KEY, TestServer, within},
};

async fn start_server(portals: bool) -> TestServer {
    TestServer::start(|builder| {
        builder.configure(|config| {
            config.portal.enabled = portals;
            config.limits.frames_per_second = 100_000;
        })
    })
    .await
}

async fn next(portal: &mut Portal) -> Event {
    within("event", portal.next()).await.expect("the stream has not ended").expect("no error")
}

fn summary(event: &Event) -> String {
    match event {
        Event::Connection { .. } => "connection".into(),
        Event::Authentication { user, .. } => format!("authentication {user}"),
        Event::Message { user, message, .. } => {
            format!("message {user:?} {} {}", message.kind(), message.read::<serde_json::Value>().unwrap())
        }
        Event::Disconnection { user, .. } => format!("disconnection {user:?}"),
        Event::Missed { count } => format!("missed {count:?}"),
        other => format!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn portal_receives_all_events_in_order() {
    let server = start_server(true).await;
    let mut portal = Portal::builder(&format!("http://{}", server.address), KEY).connect().await.unwrap();
    let mut client = server.connect("alice").await;
    client.send("HELLO", &[1, 2]).await.unwrap();
    client.close().await;
    for expected in
        ["connection", "authentication alice", "message Some(\"alice\") HELLO [1,2]", "disconnection Some(\"alice\")"]
    {
        assert_eq!(summary(&next(&mut portal).await), expected);
    }
    assert!(portal.last_event_id().unwrap().ends_with("-4"));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_go_to_one_portal_each_and_to_every_portal_with_all() {
    let server = start_server(true).await;
    let url = format!("http://{}", server.address);
    let (mut one, mut other) =
        (Portal::builder(&url, KEY).connect().await.unwrap(), Portal::builder(&url, KEY).connect().await.unwrap());
    let mut all = Portal::builder(&url, KEY).all().connect().await.unwrap();
    let mut client = server.connect("alice").await;
    for n in 0..8 {
        client.send("N", &n).await.unwrap();
    }
    let mut numbers = Vec::new();
    for portal in [&mut one, &mut other] {
        for _ in 0..5 {
            if let Event::Message { message, .. } = next(portal).await {
                numbers.push(message.read::<u64>().unwrap());
            }
        }
    }
    numbers.sort_unstable();
    assert_eq!(numbers, (0..8).collect::<Vec<_>>(), "each event at one of the two portals");
    let mut seen = 0;
    while seen < 8 {
        if let Event::Message { message, .. } = next(&mut all).await {
            assert_eq!(message.read::<u64>().unwrap(), seen);
            seen += 1;
        }
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn portal_over_broken_connections_receives_each_event_once() {
    let server = start_server(true).await;
    let proxy = FlakyProxy::start(server.address).await;
    let mut portal = Portal::builder(&format!("http://{}", proxy.address), KEY).connect().await.unwrap();
    let mut client = server.connect("alice").await;
    let sending = tokio::spawn(async move {
        for n in 0..2_000_u64 {
            client.send("N", &n).await.unwrap();
            if n % 50 == 0 {
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        }
        client
    });
    let mut seen = 0;
    while seen < 2_000 {
        match next(&mut portal).await {
            Event::Message { message, .. } => {
                assert_eq!(message.read::<u64>().unwrap(), seen, "no gap and no repeat");
                seen += 1;
                if seen % 700 == 0 {
                    proxy.cut();
                }
            }
            Event::Missed { count } => panic!("{count:?} missed"),
            _ => {}
        }
    }
    // Another process can resume after the last event id.
    let last = portal.last_event_id().unwrap().to_owned();
    drop(portal);
    let mut client = sending.await.unwrap();
    client.send("N", &2_000).await.unwrap();
    let again = Portal::builder(&format!("http://{}", proxy.address), KEY).after(&last).connect().await;
    assert_eq!(summary(&next(&mut again.unwrap()).await), "message Some(\"alice\") N 2000");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn portal_over_a_server_restart_reports_missed_events() {
    let before = start_server(true).await;
    let proxy = FlakyProxy::start(before.address).await;
    let portal = Portal::builder(&format!("http://{}", proxy.address), KEY);
    let mut portal = portal.reconnect_delay_max(std::time::Duration::from_millis(50)).connect().await.unwrap();
    let client = before.connect("alice").await;
    assert_eq!(summary(&next(&mut portal).await), "connection");
    drop(client);
    let home = before.stop().await;
    let after = TestServer::start_in(home, |builder| builder.configure(|config| config.portal.enabled = true)).await;
    proxy.set_target(after.address);
    // Events that were in flight, then the marker of another server.
    while summary(&next(&mut portal).await) != "missed None" {}
    let _client = after.connect("bob").await;
    assert_eq!(summary(&next(&mut portal).await), "connection");
    assert_eq!(summary(&next(&mut portal).await), "authentication bob");
    after.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rejected_portal_returns_the_reason() {
    let with = start_server(true).await;
    let url = format!("http://{}", with.address);
    let error = Portal::builder(&url, "another-key-0123").connect().await.unwrap_err();
    assert!(matches!(error, DispatchError::Rejected { status: 401, .. }), "{error:?}");
    let error = Portal::builder(&url, KEY).after("nonsense").connect().await.unwrap_err();
    assert!(matches!(error, DispatchError::Rejected { status: 400, .. }), "{error:?}");
    with.stop().await;
    let without = start_server(false).await;
    let error = Portal::builder(&format!("http://{}", without.address), KEY).connect().await.unwrap_err();
    assert!(
        matches!(&error, DispatchError::Rejected { .. }) && error.to_string().contains("portal.enabled"),
        "{error}"
    );
    without.stop().await;
}
