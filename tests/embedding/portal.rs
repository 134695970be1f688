//! A portal of this crate: what it is told, and that it misses nothing when it has lost the server for a while.

use mesa::{
    dispatcher::DispatchError,
    portal::{Event, Portal},
};

use crate::{
    flaky_proxy::Network,
    server::{KEY, Served, within},
};

async fn served(portals: bool) -> Served {
    Served::start(|builder| {
        builder.configure(|config| {
            config.portal.enabled = portals;
            config.limits.frames_per_second = 100_000;
        })
    })
    .await
}

async fn next(portal: &mut Portal) -> Event {
    within("an event", portal.next()).await.expect("it goes on").expect("no error")
}

fn short(event: &Event) -> String {
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
async fn a_portal_is_told_everything_in_order() {
    let served = served(true).await;
    let mut portal = Portal::builder(&format!("http://{}", served.address), KEY).connect().await.unwrap();
    let mut client = served.connect("alice").await;
    client.send("HELLO", &[1, 2]).await.unwrap();
    client.close().await;
    for expected in
        ["connection", "authentication alice", "message Some(\"alice\") HELLO [1,2]", "disconnection Some(\"alice\")"]
    {
        assert_eq!(short(&next(&mut portal).await), expected);
    }
    assert!(portal.last_event_id().unwrap().ends_with("-4"));
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_shared_out_and_who_wants_all_gets_all() {
    let served = served(true).await;
    let url = format!("http://{}", served.address);
    let (mut one, mut other) =
        (Portal::builder(&url, KEY).connect().await.unwrap(), Portal::builder(&url, KEY).connect().await.unwrap());
    let mut all = Portal::builder(&url, KEY).all().connect().await.unwrap();
    let mut client = served.connect("alice").await;
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
    assert_eq!(numbers, (0..8).collect::<Vec<_>>(), "each event went to one of the two");
    let mut seen = 0;
    while seen < 8 {
        if let Event::Message { message, .. } = next(&mut all).await {
            assert_eq!(message.read::<u64>().unwrap(), seen);
            seen += 1;
        }
    }
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn over_a_broken_connection_nothing_is_lost_or_repeated() {
    let served = served(true).await;
    let network = Network::to(served.address).await;
    let mut portal = Portal::builder(&format!("http://{}", network.address), KEY).connect().await.unwrap();
    let mut client = served.connect("alice").await;
    let saying = tokio::spawn(async move {
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
                assert_eq!(message.read::<u64>().unwrap(), seen, "without hole or repeat");
                seen += 1;
                if seen % 700 == 0 {
                    network.cut();
                }
            }
            Event::Missed { count } => panic!("{count:?} missed"),
            _ => {}
        }
    }
    // Another process would go on where this one was.
    let last = portal.last_event_id().unwrap().to_owned();
    drop(portal);
    let mut client = saying.await.unwrap();
    client.send("N", &2_000).await.unwrap();
    let again = Portal::builder(&format!("http://{}", network.address), KEY).after(&last).connect().await;
    assert_eq!(short(&next(&mut again.unwrap()).await), "message Some(\"alice\") N 2000");
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn over_a_restart_what_is_missing_is_told() {
    let before = served(true).await;
    let network = Network::to(before.address).await;
    let portal = Portal::builder(&format!("http://{}", network.address), KEY);
    let mut portal = portal.reconnect_delay_max(std::time::Duration::from_millis(50)).connect().await.unwrap();
    let client = before.connect("alice").await;
    assert_eq!(short(&next(&mut portal).await), "connection");
    drop(client);
    let home = before.stop().await;
    let after = Served::start_in(home, |builder| builder.configure(|config| config.portal.enabled = true)).await;
    network.lead_to(after.address);
    // Whatever had been on its way, and then that it is another server.
    while short(&next(&mut portal).await) != "missed None" {}
    let _client = after.connect("bob").await;
    assert_eq!(short(&next(&mut portal).await), "connection");
    assert_eq!(short(&next(&mut portal).await), "authentication bob");
    after.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_be_told_learns_why() {
    let with = served(true).await;
    let url = format!("http://{}", with.address);
    let error = Portal::builder(&url, "another-key-0123").connect().await.unwrap_err();
    assert!(matches!(error, DispatchError::Refused { status: 401, .. }), "{error:?}");
    let error = Portal::builder(&url, KEY).after("nonsense").connect().await.unwrap_err();
    assert!(matches!(error, DispatchError::Refused { status: 400, .. }), "{error:?}");
    with.stop().await;
    let without = served(false).await;
    let error = Portal::builder(&format!("http://{}", without.address), KEY).connect().await.unwrap_err();
    assert!(matches!(&error, DispatchError::Refused { .. }) && error.to_string().contains("portal.enabled"), "{error}");
    without.stop().await;
}
