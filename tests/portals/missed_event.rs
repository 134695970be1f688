//! Tests that `event: missed` is sent again if the connection breaks before the client has received it.

use mesa::client::Connection;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::{
    sse_client::{Event, EventStream},
    support::{in_process::TestServer, wait::WAIT_TIMEOUT},
};

/// Bytes of one client message. A few hundred messages fill the socket and the portal's queue.
const FILLER_BYTES: usize = 50_000;

/// Messages sent between two reads of the metrics.
const MESSAGES_PER_STEP: u64 = 50;

/// Starts a server and an unread stream, and sends client messages until events are dropped.
///
/// Returns the server, the client, the stream, and the number of messages sent.
async fn server_with_dropped_events() -> (TestServer, Connection, EventStream, u64) {
    let server = TestServer::start(|config| config.limits.frames_per_second = 1_000_000).await;
    let mut alice = server.client("alice").await;
    let unread = EventStream::open_stream(&server, "", None).await;
    let filler = "x".repeat(FILLER_BYTES);
    let mut sent = 0;
    while sent < 20 * MESSAGES_PER_STEP && server.metrics().await.contains("\nmesa_portal_events_dropped_total 0\n") {
        for _ in 0..MESSAGES_PER_STEP {
            alice.send("N", &json!([sent, filler])).await.unwrap();
            sent += 1;
        }
    }
    // Waits until the server has processed every message.
    server.wait_for_metric(&format!("mesa_portal_events_total {sent}")).await;
    assert!(!server.metrics().await.contains("\nmesa_portal_events_dropped_total 0\n"), "some events are dropped");
    (server, alice, unread, sent)
}

/// Returns the number of missing events in an `event: missed`.
fn missed_count(event: &Event) -> Option<u64> {
    assert_eq!(event.name.as_deref(), Some("missed"), "{}", event.data);
    event.data["count"].as_u64()
}

/// Reads up to the last message, and checks that an `event: missed` reports each gap with its size.
///
/// Returns how many there were.
async fn read_all(events: &mut EventStream, from: u64, sent: u64) -> u64 {
    let (mut next, mut missed_events) = (from, 0);
    while next < sent {
        let event = events.next().await.unwrap();
        if event.name.is_some() {
            next += missed_count(&event).expect("a known size of the gap");
            missed_events += 1;
        } else {
            assert_eq!(event.data["message"]["d"][0].as_u64(), Some(next), "each gap is reported");
            next += 1;
        }
    }
    assert_eq!(next, sent);
    missed_events
}

// covers: G4
#[tokio::test(flavor = "multi_thread")]
async fn missed_event_that_was_not_read_before_disconnect_is_sent_again_on_resume() {
    let (server, _alice, unread, sent) = Box::pin(server_with_dropped_events()).await;
    let begin = unread.last.clone();
    drop(unread);
    // Breaks the connection three times, each time before `event: missed` was read.
    for _ in 0..3 {
        let mut broken = EventStream::open_stream(&server, "", Some(&begin)).await;
        assert!(broken.next().await.is_some());
    }
    let mut resumed = EventStream::open_stream(&server, "", Some(&begin)).await;
    assert!(read_all(&mut resumed, 0, sent).await > 0);
}

// covers: G4
#[tokio::test(flavor = "multi_thread")]
async fn missed_event_that_was_read_in_part_is_sent_again_and_read_in_full_is_not() {
    let (server, _alice, unread, sent) = Box::pin(server_with_dropped_events()).await;
    let begin = unread.last.clone();
    drop(unread);
    let mut broken = EventStream::open_stream(&server, "", Some(&begin)).await;
    let (mut next, mut before) = (0, begin);
    let (missed, after) = loop {
        let event = broken.next().await.unwrap();
        if event.name.is_some() {
            break (event, broken.last.clone());
        }
        before.clone_from(&broken.last);
        next += 1;
    };
    drop(broken);
    // The client has received the event before `event: missed`, and a part of `event: missed`.
    let mut resumed = EventStream::open_stream(&server, "", Some(&before)).await;
    let repeated = resumed.next().await.unwrap();
    assert_eq!((&repeated.data, &repeated.id), (&missed.data, &missed.id));
    drop(resumed);
    // The client has received all of `event: missed`.
    let mut resumed = EventStream::open_stream(&server, "", Some(&after)).await;
    assert_eq!(read_all(&mut resumed, next + missed_count(&missed).unwrap(), sent).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn missed_event_of_unknown_stream_is_sent_again_until_received() {
    let server = TestServer::start(|_| {}).await;
    let unknown = EventStream::open_stream(&server, "", Some("0123456789abcdef-3")).await;
    let begin = unknown.last.clone();
    drop(unknown);
    let mut resumed = EventStream::open_stream(&server, "", Some(&begin)).await;
    // Comments keep the stream alive, so reads do not time out. This wait needs a timeout of its own.
    let missed = timeout(WAIT_TIMEOUT, resumed.next()).await.expect("`event: missed` in time").unwrap();
    assert_eq!((missed_count(&missed), &missed.data["count"]), (None, &Value::Null));
    let after = resumed.last.clone();
    drop(resumed);
    let mut resumed = EventStream::open_stream(&server, "", Some(&after)).await;
    let mut alice = server.client("alice").await;
    alice.send("N", &0).await.unwrap();
    assert_eq!(resumed.next().await.unwrap().name, None, "a received `event: missed` is not sent again");
}
