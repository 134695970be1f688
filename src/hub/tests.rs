//! Tests sessions over an embedded store in memory, without a socket.

use std::{
    sync::Arc,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use super::{Attach, Batch, Dispatch, Hub, MailboxBounds, Resumed, Session, Settings, SyncSettings};
use crate::{
    embedded::{
        Options, Tuning,
        tables::memory::{self, Memory},
    },
    message::{CollapseKey, DeviceId, Payload, Recipients, Seq, UserId},
    metrics::Metrics,
    store::{ReadLimit, Store},
};

/// Interval so long that within a test only the first backlog entry is sent.
const SLOW: Duration = Duration::from_secs(3600);

fn alice() -> UserId {
    UserId::new("alice").unwrap()
}

pub(super) fn hub(redelivery_interval: Duration) -> Arc<Hub> {
    hub_with_metrics(Arc::new(Metrics::new()), redelivery_interval)
}

pub(super) fn hub_with_metrics(metrics: Arc<Metrics>, redelivery_interval: Duration) -> Arc<Hub> {
    hub_over(memory::open(&Memory::default(), Options::default()).unwrap(), metrics, redelivery_interval)
}

fn hub_over(store: Arc<dyn Store>, metrics: Arc<Metrics>, redelivery_interval: Duration) -> Arc<Hub> {
    let settings = Settings {
        sync: Some(SyncSettings { redelivery_interval }),
        authentication_required: false,
        store_connected_users: true,
        mailbox: MailboxBounds { messages: 10, bytes: 1000 },
        portals: None,
    };
    Hub::new(settings, store, metrics, None)
}

async fn send(hub: &Hub, count: usize) {
    for _ in 0..count {
        let payload = Payload::encode(0, None, Some("T")).unwrap();
        let recipients = Recipients::Users(vec![alice()]);
        hub.dispatch(Dispatch::new(payload, recipients)).await.unwrap();
    }
}

/// Accepts what the session has for its socket now; returns the sequences.
fn next(session: &mut Session, now: Instant) -> Vec<Seq> {
    session.on_log_signal();
    match session.poll_batch(&mut Context::from_waker(Waker::noop()), now, 1 << 20) {
        Poll::Ready(Ok(Batch::Entries(entries))) => {
            entries.iter().for_each(|entry| _ = session.accept(entry, now).unwrap());
            entries.iter().map(|entry| entry.seq).collect()
        }
        Poll::Ready(Ok(_)) => Vec::new(),
        other => panic!("{other:?}"),
    }
}

fn acknowledge(session: &mut Session) {
    let position = session.unacknowledged().unwrap();
    session.acknowledge(position);
}

/// Returns what is sent to a resuming client: `s` of entries, and ranges of gaps with their reasons.
fn sent_to_resuming(session: &mut Session, now: Instant) -> Vec<String> {
    let mut sent = Vec::new();
    loop {
        match session.poll_batch(&mut Context::from_waker(Waker::noop()), now, 1 << 20) {
            Poll::Ready(Ok(Batch::Entries(entries))) => sent.extend(entries.iter().map(|entry| {
                let s = session.accept(entry, now).unwrap();
                assert_eq!(s, Some(entry.seq), "a resuming client receives the sequence");
                entry.seq.to_string()
            })),
            Poll::Ready(Ok(Batch::Resumed(Resumed { first, last, missed }))) => {
                let missed = missed.iter().map(|part| format!(" {}-{} {}", part.from, part.to, part.reason.as_str()));
                sent.push(format!("{first}..{last}{}", missed.collect::<String>()));
            }
            Poll::Ready(Ok(Batch::Idle)) => return sent,
            other => panic!("{other:?}"),
        }
    }
}

fn after(seq: Seq, device: Option<&str>) -> Attach {
    Attach { should_sync: true, after: Some(seq), device: device.map(|name| DeviceId::new(name).unwrap()) }
}

async fn send_with(hub: &Hub, ttl: Option<Duration>, key: Option<&str>) {
    let payload = Payload::encode(0, None, Some("T")).unwrap();
    let collapse = key.map(|key| CollapseKey::new(key).unwrap());
    let dispatch = Dispatch { ttl, collapse, ..Dispatch::new(payload, Recipients::Users(vec![alice()])) };
    assert_eq!(hub.dispatch(dispatch).await.unwrap().rejected, []);
}

// covers: G2
#[tokio::test]
async fn resuming_client_receives_every_entry_and_unacknowledged_ones_again() {
    // The redelivery interval does not apply to a resuming client.
    for interval in [Duration::ZERO, SLOW] {
        let (hub, now) = (hub(interval), Instant::now());
        send(&hub, 3).await;
        let connected = hub.connect();
        let mut session = connected.attach(alice(), after(0, None), now).unwrap();
        assert_eq!(sent_to_resuming(&mut session, now), ["1..3", "1", "2", "3"]);
        assert_eq!(session.unacknowledged(), None, "no acknowledgement is requested of a resuming client");
        send(&hub, 2).await;
        session.on_log_signal();
        assert_eq!(sent_to_resuming(&mut session, now), ["4", "5"]);
        assert!(session.acknowledge_through(4));
        drop(session);
        let mut session = connected.attach(alice(), after(4, None), now).unwrap();
        assert_eq!(sent_to_resuming(&mut session, now), ["5..5", "5"]);
        assert!(session.acknowledge_through(99), "an acknowledgement beyond the last entry covers only sent entries");
        drop(session);
        let mut session = connected.attach(alice(), after(2, None), now).unwrap();
        assert_eq!(sent_to_resuming(&mut session, now), ["6..5 3-5 received"]);
    }
}

// covers: G4
#[tokio::test]
async fn gaps_are_sent_in_order_with_their_reasons() {
    let (hub, now) = (hub(Duration::ZERO), Instant::now());
    send(&hub, 2).await;
    hub.clear(&alice()).await.unwrap();
    send_with(&hub, None, Some("score")).await;
    send(&hub, 1).await;
    send_with(&hub, None, Some("score")).await;
    let connected = hub.connect();
    let mut session = connected.attach(alice(), after(0, None), now).unwrap();
    assert_eq!(sent_to_resuming(&mut session, now), ["4..5 1-2 cleared 3-3 collapsed", "4", "5"]);
    send_with(&hub, None, Some("score")).await;
    session.on_log_signal();
    assert_eq!(sent_to_resuming(&mut session, now), ["6"], "no gap for 5, which the session has sent");
    drop(session);
    // The client resumes after 4, and has acknowledged nothing else.
    let mut session = connected.attach(alice(), after(4, None), now).unwrap();
    assert_eq!(sent_to_resuming(&mut session, now), ["6..6 5-5 collapsed", "6"]);
}

// covers: G4
#[tokio::test]
async fn expired_entry_after_the_last_one_is_reported_as_a_gap() {
    let (hub, now) = (hub(Duration::ZERO), Instant::now());
    send(&hub, 1).await;
    send_with(&hub, Some(Duration::from_nanos(1)), None).await;
    // Times are whole seconds, rounded up.
    tokio::time::timeout(Duration::from_secs(10), async {
        while hub.store.state(&alice()).unwrap().pending > 1 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("the entry expires within 10 s");
    let connected = hub.connect();
    let mut session = connected.attach(alice(), after(0, None), now).unwrap();
    assert_eq!(sent_to_resuming(&mut session, now), ["1..2", "1", "1..2 2-2 expired"]);
}

// covers: G2
#[tokio::test]
async fn entry_acknowledged_by_one_device_is_still_sent_to_another() {
    let (hub, now) = (hub(Duration::ZERO), Instant::now());
    send(&hub, 2).await;
    let (phone, tablet) = (hub.connect(), hub.connect());
    let mut first = phone.attach(alice(), after(0, Some("phone")), now).unwrap();
    assert_eq!(sent_to_resuming(&mut first, now), ["1..2", "1", "2"]);
    // The tablet attaches before the phone has acknowledged, so the entries are pending for it too.
    let mut second = tablet.attach(alice(), Attach { after: None, ..after(0, Some("tablet")) }, now).unwrap();
    assert!(first.acknowledge_through(2));
    assert_eq!(next(&mut second, now), [1, 2]);
    drop(second);
    let mut second = tablet.attach(alice(), Attach { after: None, ..after(0, Some("tablet")) }, now).unwrap();
    assert_eq!(next(&mut second, now), [1, 2], "the tablet has not acknowledged them");
    acknowledge(&mut second);
    let left = hub.store.read(&alice(), 0, ReadLimit { entries: 10, bytes: 1 << 20 }).unwrap();
    assert!(left.entries.is_empty(), "both devices have acknowledged them");
}

#[tokio::test]
async fn explicit_acknowledgement_of_a_client_that_does_not_resume_is_rejected() {
    let (hub, now) = (hub(Duration::ZERO), Instant::now());
    let connected = hub.connect();
    let mut session = connected.attach(alice(), Attach::default(), now).unwrap();
    assert!(!session.acknowledge_through(1));
}

// covers: G2
#[tokio::test]
async fn entry_acknowledged_by_one_connection_is_still_sent_to_another() {
    for interval in [Duration::ZERO, SLOW] {
        let (hub, now) = (hub(interval), Instant::now());
        send(&hub, 3).await;
        let (first, second) = (hub.connect(), hub.connect());
        let mut first = first.attach(alice(), Attach::default(), now).unwrap();
        let mut second = second.attach(alice(), Attach::default(), now).unwrap();
        let backlog = next(&mut first, now);
        assert_eq!(next(&mut second, now), backlog);
        send(&hub, 1).await;
        assert_eq!(next(&mut first, now), [4]);
        acknowledge(&mut first);
        assert_eq!(next(&mut second, now), [4]);
    }
}

// covers: G2
#[tokio::test]
async fn live_entry_that_overtook_a_paced_backlog_is_not_redelivered() {
    let (hub, now) = (hub(SLOW), Instant::now());
    send(&hub, 3).await;
    let connected = hub.connect();
    let mut session = connected.attach(alice(), Attach::default(), now).unwrap();
    assert_eq!(next(&mut session, now), [1]);
    send(&hub, 2).await;
    assert_eq!(next(&mut session, now), [4, 5]);
    acknowledge(&mut session);
    drop(session);
    let mut session = connected.attach(alice(), Attach::default(), now).unwrap();
    let backlog: Vec<Seq> = (1..=4).flat_map(|hour| next(&mut session, now + hour * SLOW)).collect();
    assert_eq!(backlog, [2, 3], "4 and 5 are acknowledged");
}

#[tokio::test]
async fn paced_backlog_after_start_is_due_one_interval_later_and_live_entries_at_once() {
    let (hub, started) = (hub(SLOW), Instant::now());
    send(&hub, 2).await;
    let connected = hub.connect();
    let mut session = connected.attach(alice(), Attach::default(), started).unwrap();
    session.start_pacing(started);
    assert_eq!(next(&mut session, started), [] as [Seq; 0]);
    send(&hub, 1).await;
    assert_eq!(next(&mut session, started), [3], "the live entry is sent at once");
    assert_eq!(next(&mut session, started + SLOW), [1]);
}

#[tokio::test]
async fn clear_during_a_detach_leaves_no_entry_retained() {
    let (hub, now) = (hub(Duration::ZERO), Instant::now());
    let connected = hub.connect();
    let session = connected.attach(alice(), Attach::default(), now).unwrap();
    send(&hub, 3).await;
    let user = alice();
    let clearing = hub.clear(&user);
    drop(session);
    assert_eq!(clearing.await.unwrap(), 3);
    let left = hub.store.read(&alice(), 0, ReadLimit { entries: 10, bytes: 1 << 20 }).unwrap();
    assert!(left.entries.is_empty(), "{left:?}");
}

#[tokio::test]
async fn user_with_a_session_is_online_until_the_last_one_ends() {
    let (hub, now) = (hub(Duration::ZERO), Instant::now());
    let (first, second) = (hub.connect(), hub.connect());
    let sessions = [
        first.attach(alice(), Attach::default(), now).unwrap(),
        second.attach(alice(), Attach::default(), now).unwrap(),
    ];
    assert_eq!(hub.online(None, 10).await, [alice()]);
    let [one, other] = sessions;
    drop(one);
    assert_eq!(hub.online(None, 10).await, [alice()]);
    drop(other);
    assert!(hub.online(None, 10).await.is_empty());
    assert_eq!(hub.connection_count(), 2, "the connections stay open");
}

#[tokio::test]
async fn collapsed_entries_are_not_pending_for_a_device() {
    let hub = hub(Duration::ZERO);
    let how = Attach { device: Some(DeviceId::new("phone").unwrap()), ..Attach::default() };
    drop(hub.connect().attach(alice(), how, Instant::now()).unwrap());
    send(&hub, 1).await;
    for _ in 0..10 {
        let payload = Payload::encode(0, None, Some("T")).unwrap();
        let dispatch = Dispatch::new(payload, Recipients::Users(vec![alice()]));
        hub.dispatch(Dispatch { collapse: Some(CollapseKey::new("k").unwrap()), ..dispatch }).await.unwrap();
    }
    let report = hub.user(&alice()).await.unwrap();
    assert_eq!(report.pending, 2);
    assert_eq!(report.devices[0].pending, 2);
}

#[tokio::test]
async fn broadcast_with_an_id_counts_the_same_connections() {
    let hub = hub(Duration::ZERO);
    let (first, second) = (hub.connect(), hub.connect());
    let _alice = first.attach(alice(), Attach::default(), Instant::now()).unwrap();
    let _bob = second.attach(UserId::new("bob").unwrap(), Attach::default(), Instant::now()).unwrap();
    let payload = Payload::encode(0, None, Some("T")).unwrap();
    let plain = Dispatch { excluding: vec![alice()], ..Dispatch::new(payload, Recipients::Everyone) };
    let with_id = Dispatch { id: Some(crate::message::DispatchId::new("x").unwrap()), ..plain.clone() };
    let (plain, with_id) = (hub.dispatch(plain).await.unwrap(), hub.dispatch(with_id).await.unwrap());
    assert_eq!((plain.recipients, plain.online), (1, 1));
    assert_eq!(with_id, plain);
}

// covers: G6
#[tokio::test]
async fn damaged_user_does_not_hide_others_in_the_list() {
    let (tables, mut options) = (Memory::default(), Options::default());
    options.tuning = Tuning { flush_delay: Duration::ZERO, ..Tuning::default() };
    let hub = hub_over(memory::open(&tables, options).unwrap(), Arc::new(Metrics::new()), SLOW);
    let bob = UserId::new("bob").unwrap();
    let payload = Payload::encode(0, None, Some("T")).unwrap();
    hub.dispatch(Dispatch::new(payload, Recipients::Users(vec![alice(), bob.clone()]))).await.unwrap();
    let damaged = async {
        while tables.blocks_of("alice") == 0 || tables.blocks_of("bob") == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        // Until the flush the entry is read from memory.
        while hub.pending(&alice(), 0, 10).await.is_ok() {
            _ = tables.damage_block("alice");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), damaged).await.expect("a read of the damaged block");
    let listed = hub.users(None, 10).await.unwrap();
    let rows: Vec<_> = listed.iter().map(|user| (&user.user, user.damaged, user.pending, user.pending_bytes)).collect();
    assert_eq!(rows, [(&alice(), true, 1, 16), (&bob, false, 1, 16)]);
    let alone = hub.user(&alice()).await.unwrap();
    assert!(alone.damaged && alone.pending == 1, "{alone:?}");
    assert_eq!(hub.users_of(vec![bob, alice()]).await.unwrap(), [listed[1].clone(), listed[0].clone()]);
}
