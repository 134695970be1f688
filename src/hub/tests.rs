//! Sessions over a real store in memory, without a socket.

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

/// So slow that within a test only the first owed message goes.
const SLOW: Duration = Duration::from_secs(3600);

fn alice() -> UserId {
    UserId::new("alice").unwrap()
}

pub(super) fn hub(redelivery_interval: Duration) -> Arc<Hub> {
    over(Arc::new(Metrics::new()), redelivery_interval)
}

pub(super) fn over(metrics: Arc<Metrics>, redelivery_interval: Duration) -> Arc<Hub> {
    of(memory::open(&Memory::default(), Options::default()).unwrap(), metrics, redelivery_interval)
}

fn of(store: Arc<dyn Store>, metrics: Arc<Metrics>, redelivery_interval: Duration) -> Arc<Hub> {
    let settings = Settings {
        sync: Some(SyncSettings { redelivery_interval }),
        authentication_required: false,
        store_connected_users: true,
        mailbox: MailboxBounds { messages: 10, bytes: 1000 },
        portals: None,
    };
    Hub::new(settings, store, metrics)
}

async fn say(hub: &Hub, count: usize) {
    for _ in 0..count {
        let payload = Payload::encode(0, None, Some("T")).unwrap();
        let recipients = Recipients::Users(vec![alice()]);
        hub.dispatch(Dispatch::new(payload, recipients)).await.unwrap();
    }
}

/// What the session has for its socket now.
fn next(session: &mut Session, now: Instant) -> Vec<Seq> {
    session.log_has_more();
    match session.poll_batch(&mut Context::from_waker(Waker::noop()), now, 1 << 20) {
        Poll::Ready(Ok(Batch::Entries(entries))) => {
            entries.iter().for_each(|entry| _ = session.accept(entry, now).unwrap());
            entries.iter().map(|entry| entry.seq).collect()
        }
        Poll::Ready(Ok(_)) => Vec::new(),
        other => panic!("{other:?}"),
    }
}

fn confirm(session: &mut Session) {
    let mark = session.unconfirmed().unwrap();
    session.confirm(mark);
}

/// What a client that resumes is told, as it would be written: `s` of messages, and ranges with why they are missing.
fn told(session: &mut Session, now: Instant) -> Vec<String> {
    let mut told = Vec::new();
    loop {
        match session.poll_batch(&mut Context::from_waker(Waker::noop()), now, 1 << 20) {
            Poll::Ready(Ok(Batch::Entries(entries))) => told.extend(entries.iter().map(|entry| {
                let s = session.accept(entry, now).unwrap();
                assert_eq!(s, Some(entry.seq), "who resumes is told the place in the log");
                entry.seq.to_string()
            })),
            Poll::Ready(Ok(Batch::Resumed(Resumed { first, last, missed }))) => {
                let missed = missed.iter().map(|part| format!(" {}-{} {}", part.from, part.to, part.reason.as_str()));
                told.push(format!("{first}..{last}{}", missed.collect::<String>()));
            }
            Poll::Ready(Ok(Batch::Idle)) => return told,
            other => panic!("{other:?}"),
        }
    }
}

fn after(seq: Seq, device: Option<&str>) -> Attach {
    Attach { should_sync: true, after: Some(seq), device: device.map(|name| DeviceId::new(name).unwrap()) }
}

async fn say_with(hub: &Hub, ttl: Option<Duration>, key: Option<&str>) {
    let payload = Payload::encode(0, None, Some("T")).unwrap();
    let collapse = key.map(|key| CollapseKey::new(key).unwrap());
    let dispatch = Dispatch { ttl, collapse, ..Dispatch::new(payload, Recipients::Users(vec![alice()])) };
    assert_eq!(hub.dispatch(dispatch).await.unwrap().rejected, []);
}

#[tokio::test]
async fn who_resumes_is_told_every_message_and_gets_again_what_he_did_not_confirm() {
    // Also where messages are paced: whoever resumes sets his own pace.
    for pace in [Duration::ZERO, SLOW] {
        let (hub, now) = (hub(pace), Instant::now());
        say(&hub, 3).await;
        let connected = hub.connect();
        let mut session = connected.attach(alice(), after(0, None), now).unwrap();
        assert_eq!(told(&mut session, now), ["1..3", "1", "2", "3"]);
        assert_eq!(session.unconfirmed(), None, "it is not asked");
        say(&hub, 2).await;
        session.log_has_more();
        assert_eq!(told(&mut session, now), ["4", "5"]);
        assert!(session.confirm_through(4));
        drop(session);
        let mut session = connected.attach(alice(), after(4, None), now).unwrap();
        assert_eq!(told(&mut session, now), ["5..5", "5"]);
        assert!(session.confirm_through(99), "of that, what was written");
        drop(session);
        let mut session = connected.attach(alice(), after(2, None), now).unwrap();
        assert_eq!(told(&mut session, now), ["6..5 3-5 received"]);
    }
}

#[tokio::test]
async fn what_is_missing_is_told_where_it_is_missing_and_why() {
    let (hub, now) = (hub(Duration::ZERO), Instant::now());
    say(&hub, 2).await;
    hub.clear(&alice()).await.unwrap();
    say_with(&hub, None, Some("score")).await;
    say(&hub, 1).await;
    say_with(&hub, None, Some("score")).await;
    let connected = hub.connect();
    let mut session = connected.attach(alice(), after(0, None), now).unwrap();
    assert_eq!(told(&mut session, now), ["4..5 1-2 cleared 3-3 collapsed", "4", "5"]);
    say_with(&hub, None, Some("score")).await;
    session.log_has_more();
    assert_eq!(told(&mut session, now), ["6"], "it has had 5");
    drop(session);
    // It comes again without having confirmed anything, but for what it says that it has had.
    let mut session = connected.attach(alice(), after(4, None), now).unwrap();
    assert_eq!(told(&mut session, now), ["6..6 5-5 collapsed", "6"]);
}

#[tokio::test]
async fn what_has_expired_behind_the_last_message_is_told_too() {
    let (hub, now) = (hub(Duration::ZERO), Instant::now());
    say(&hub, 1).await;
    say_with(&hub, Some(Duration::from_nanos(1)), None).await;
    // Times are whole seconds, rounded up.
    tokio::time::timeout(Duration::from_secs(10), async {
        while hub.store.state(&alice()).unwrap().pending > 1 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("it expires");
    let connected = hub.connect();
    let mut session = connected.attach(alice(), after(0, None), now).unwrap();
    assert_eq!(told(&mut session, now), ["1..2", "1", "1..2 2-2 expired"]);
}

#[tokio::test]
async fn what_one_device_has_had_the_other_still_gets() {
    let (hub, now) = (hub(Duration::ZERO), Instant::now());
    say(&hub, 2).await;
    let (phone, tablet) = (hub.connect(), hub.connect());
    let mut first = phone.attach(alice(), after(0, Some("phone")), now).unwrap();
    assert_eq!(told(&mut first, now), ["1..2", "1", "2"]);
    // Comes before the phone has confirmed: what is there is there for it too.
    let mut second = tablet.attach(alice(), Attach { after: None, ..after(0, Some("tablet")) }, now).unwrap();
    assert!(first.confirm_through(2));
    assert_eq!(next(&mut second, now), [1, 2]);
    drop(second);
    let mut second = tablet.attach(alice(), Attach { after: None, ..after(0, Some("tablet")) }, now).unwrap();
    assert_eq!(next(&mut second, now), [1, 2], "it has not confirmed them");
    confirm(&mut second);
    let left = hub.store.read(&alice(), 0, ReadLimit { entries: 10, bytes: 1 << 20 }).unwrap();
    assert!(left.entries.is_empty(), "both have had them");
}

#[tokio::test]
async fn a_receipt_of_a_client_that_does_not_resume_is_not_its_to_give() {
    let (hub, now) = (hub(Duration::ZERO), Instant::now());
    let connected = hub.connect();
    let mut session = connected.attach(alice(), Attach::default(), now).unwrap();
    assert!(!session.confirm_through(1));
}

#[tokio::test]
async fn what_one_connection_has_confirmed_still_goes_to_the_other_that_is_there() {
    for pace in [Duration::ZERO, SLOW] {
        let (hub, now) = (hub(pace), Instant::now());
        say(&hub, 3).await;
        let (first, second) = (hub.connect(), hub.connect());
        let mut first = first.attach(alice(), Attach::default(), now).unwrap();
        let mut second = second.attach(alice(), Attach::default(), now).unwrap();
        let owed = next(&mut first, now);
        assert_eq!(next(&mut second, now), owed);
        say(&hub, 1).await;
        assert_eq!(next(&mut first, now), [4]);
        confirm(&mut first);
        assert_eq!(next(&mut second, now), [4]);
    }
}

#[tokio::test]
async fn a_live_message_that_passed_a_paced_redelivery_is_not_owed_again() {
    let (hub, now) = (hub(SLOW), Instant::now());
    say(&hub, 3).await;
    let connected = hub.connect();
    let mut session = connected.attach(alice(), Attach::default(), now).unwrap();
    assert_eq!(next(&mut session, now), [1]);
    say(&hub, 2).await;
    assert_eq!(next(&mut session, now), [4, 5]);
    confirm(&mut session);
    drop(session);
    let mut session = connected.attach(alice(), Attach::default(), now).unwrap();
    let owed: Vec<Seq> = (1..=4).flat_map(|hour| next(&mut session, now + hour * SLOW)).collect();
    assert_eq!(owed, [2, 3], "4 and 5 were received");
}

#[tokio::test]
async fn paced_backlog_after_start_is_due_one_interval_later_and_live_entries_at_once() {
    let (hub, released) = (hub(SLOW), Instant::now());
    say(&hub, 2).await;
    let connected = hub.connect();
    let mut session = connected.attach(alice(), Attach::default(), released).unwrap();
    session.start_pacing(released);
    assert_eq!(next(&mut session, released), [] as [Seq; 0]);
    say(&hub, 1).await;
    assert_eq!(next(&mut session, released), [3], "the live one");
    assert_eq!(next(&mut session, released + SLOW), [1]);
}

#[tokio::test]
async fn clearing_leaves_nothing_held_by_a_session_that_has_gone() {
    let (hub, now) = (hub(Duration::ZERO), Instant::now());
    let connected = hub.connect();
    let session = connected.attach(alice(), Attach::default(), now).unwrap();
    say(&hub, 3).await;
    let user = alice();
    let clearing = hub.clear(&user);
    drop(session);
    assert_eq!(clearing.await.unwrap(), 3);
    let left = hub.store.read(&alice(), 0, ReadLimit { entries: 10, bytes: 1 << 20 }).unwrap();
    assert!(left.entries.is_empty(), "{left:?}");
}

#[tokio::test]
async fn users_are_here_exactly_as_long_as_a_session_is() {
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
    assert_eq!(hub.connections(), 2, "the connections are still there");
}

/// What was replaced, or has expired, is not pending for a device either.
#[tokio::test]
async fn a_device_has_nothing_pending_that_is_not_there_any_more() {
    let hub = hub(Duration::ZERO);
    let how = Attach { device: Some(DeviceId::new("phone").unwrap()), ..Attach::default() };
    drop(hub.connect().attach(alice(), how, Instant::now()).unwrap());
    say(&hub, 1).await;
    for _ in 0..10 {
        let payload = Payload::encode(0, None, Some("T")).unwrap();
        let dispatch = Dispatch::new(payload, Recipients::Users(vec![alice()]));
        hub.dispatch(Dispatch { collapse: Some(CollapseKey::new("k").unwrap()), ..dispatch }).await.unwrap();
    }
    let report = hub.user(&alice()).await.unwrap();
    assert_eq!(report.pending, 2);
    assert_eq!(report.devices[0].pending, 2);
}

/// An id makes no difference to whom a message for everyone counts.
#[tokio::test]
async fn a_message_for_everyone_counts_the_same_with_an_id() {
    let hub = hub(Duration::ZERO);
    let (alice_is, bob_is) = (hub.connect(), hub.connect());
    let _alice = alice_is.attach(alice(), Attach::default(), Instant::now()).unwrap();
    let _bob = bob_is.attach(UserId::new("bob").unwrap(), Attach::default(), Instant::now()).unwrap();
    let payload = Payload::encode(0, None, Some("T")).unwrap();
    let without = Dispatch { excluding: vec![alice()], ..Dispatch::new(payload, Recipients::Everyone) };
    let with = Dispatch { id: Some(crate::message::DispatchId::new("x").unwrap()), ..without.clone() };
    let (without, with) = (hub.dispatch(without).await.unwrap(), hub.dispatch(with).await.unwrap());
    assert_eq!((without.recipients, without.online), (1, 1));
    assert_eq!(with, without);
}

#[tokio::test]
async fn a_user_of_whom_not_all_can_be_read_hides_nobody_else_in_the_list() {
    let (tables, mut options) = (Memory::default(), Options::default());
    options.tuning = Tuning { settle_after: Duration::ZERO, ..Tuning::default() };
    let hub = of(memory::open(&tables, options).unwrap(), Arc::new(Metrics::new()), SLOW);
    let bob = UserId::new("bob").unwrap();
    let payload = Payload::encode(0, None, Some("T")).unwrap();
    hub.dispatch(Dispatch::new(payload, Recipients::Users(vec![alice(), bob.clone()]))).await.unwrap();
    let settled = async {
        while tables.blocks_of("alice") == 0 || tables.blocks_of("bob") == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        // Until then it is read from memory.
        while hub.pending(&alice(), 0, 10).await.is_ok() {
            _ = tables.damage_block("alice");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), settled).await.expect("the damage to be met");
    let listed = hub.users(None, 10).await.unwrap();
    let told: Vec<_> = listed.iter().map(|user| (&user.user, user.damaged, user.pending, user.pending_bytes)).collect();
    assert_eq!(told, [(&alice(), true, 1, 16), (&bob, false, 1, 16)]);
    let alone = hub.user(&alice()).await.unwrap();
    assert!(alone.damaged && alone.pending == 1, "{alone:?}");
    assert_eq!(hub.users_of(vec![bob, alice()]).await.unwrap(), [listed[1].clone(), listed[0].clone()]);
}
