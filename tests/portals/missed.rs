//! `event: missed` is an event like the others: a connection that breaks before or in it does not lose it.

use mesa::client::Connection;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::{
    in_process::{TIMEOUT, TestServer},
    sse_client::{Event, Events},
};

/// Bytes of one client message. A few hundred of them fill the socket and the portal's queue.
const FILLER_BYTES: usize = 50_000;

/// Messages sent between two looks at the counters.
const STEP: u64 = 50;

/// A server, and the id at which a portal begins that reads nothing, while a client sends until events are dropped. Also
/// how many the client sent.
async fn dropping() -> (TestServer, Connection, Events, u64) {
    let served = TestServer::start(|config| config.limits.frames_per_second = 1_000_000).await;
    let mut alice = served.client("alice").await;
    let stuck = Events::begun(&served, "", None).await;
    let filler = "x".repeat(FILLER_BYTES);
    let mut sent = 0;
    while sent < 20 * STEP && served.metrics().await.contains("\nmesa_portal_events_dropped_total 0\n") {
        for _ in 0..STEP {
            alice.send("N", &json!([sent, filler])).await.unwrap();
            sent += 1;
        }
    }
    // The last one is in the queue once the server has answered what the client sent behind it.
    served.wait_for_metric(&format!("mesa_portal_events_total {sent}")).await;
    assert!(!served.metrics().await.contains("\nmesa_portal_events_dropped_total 0\n"), "nothing was dropped");
    (served, alice, stuck, sent)
}

fn count(event: &Event) -> Option<u64> {
    assert_eq!(event.name.as_deref(), Some("missed"), "{}", event.data);
    event.data["count"].as_u64()
}

/// Reads to the last message; every jump of the numbers has a marker with its size.
async fn read_all(events: &mut Events, from: u64, sent: u64) -> u64 {
    let (mut next, mut markers) = (from, 0);
    while next < sent {
        let event = events.next().await.unwrap();
        if event.name.is_some() {
            next += count(&event).expect("its size is known");
            markers += 1;
        } else {
            assert_eq!(event.data["message"]["d"][0].as_u64(), Some(next), "without a jump that nobody announced");
            next += 1;
        }
    }
    assert_eq!(next, sent);
    markers
}

#[tokio::test(flavor = "multi_thread")]
async fn marker_of_a_connection_that_broke_before_it_is_sent_again_on_resume() {
    let (served, _alice, stuck, sent) = dropping().await;
    let begin = stuck.last.clone();
    drop(stuck);
    // Broken again and again, each time before the marker was read.
    for _ in 0..3 {
        let mut broken = Events::begun(&served, "", Some(&begin)).await;
        assert!(broken.next().await.is_some());
    }
    let mut resumed = Events::begun(&served, "", Some(&begin)).await;
    assert!(read_all(&mut resumed, 0, sent).await > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn marker_of_a_connection_that_broke_in_it_is_sent_again_and_once_it_was_received_not_any_more() {
    let (served, _alice, stuck, sent) = dropping().await;
    let begin = stuck.last.clone();
    drop(stuck);
    let mut broken = Events::begun(&served, "", Some(&begin)).await;
    let (mut next, mut before) = (0, begin);
    let (marker, after) = loop {
        let event = broken.next().await.unwrap();
        if event.name.is_some() {
            break (event, broken.last.clone());
        }
        before.clone_from(&broken.last);
        next += 1;
    };
    drop(broken);
    // The client had the last event before the marker, and a part of the marker.
    let mut resumed = Events::begun(&served, "", Some(&before)).await;
    let again = resumed.next().await.unwrap();
    assert_eq!((&again.data, &again.id), (&marker.data, &marker.id));
    drop(resumed);
    // The client had all of the marker.
    let mut resumed = Events::begun(&served, "", Some(&after)).await;
    assert_eq!(read_all(&mut resumed, next + count(&marker).unwrap(), sent).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn marker_of_an_unknown_stream_is_sent_again_until_it_was_received() {
    let served = TestServer::start(|_| {}).await;
    let unknown = Events::begun(&served, "", Some("0123456789abcdef-3")).await;
    let begin = unknown.last.clone();
    drop(unknown);
    let mut resumed = Events::begun(&served, "", Some(&begin)).await;
    // Comments keep the stream alive meanwhile, so the wait has a bound of its own.
    let marker = timeout(TIMEOUT, resumed.next()).await.expect("the marker in time").unwrap();
    assert_eq!((count(&marker), &marker.data["count"]), (None, &Value::Null));
    let after = resumed.last.clone();
    drop(resumed);
    let mut resumed = Events::begun(&served, "", Some(&after)).await;
    let mut alice = served.client("alice").await;
    alice.send("N", &0).await.unwrap();
    assert_eq!(resumed.next().await.unwrap().name, None, "it was received, and does not come again");
}
