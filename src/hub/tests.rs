//! Sessions over a real store in memory, without a socket.

use std::{
    sync::Arc,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use super::{Attach, Batch, Dispatch, Hub, MailboxBounds, Session, Settings, SyncSettings};
use crate::{
    message::{Payload, Recipients, Seq, UserId},
    metrics::Metrics,
    store::{
        ReadLimit,
        journal::Options,
        memory::{self, Memory},
    },
};

/// So slow that within a test only the first owed message goes.
const SLOW: Duration = Duration::from_secs(3600);

fn alice() -> UserId {
    UserId::new("alice").unwrap()
}

fn hub(redelivery_interval: Duration) -> Arc<Hub> {
    let store = memory::open(&Memory::default(), Options::default()).unwrap();
    let settings = Settings {
        sync: Some(SyncSettings { redelivery_interval }),
        authentication_required: false,
        store_connected_users: true,
        mailbox: MailboxBounds { messages: 10, bytes: 1000 },
    };
    Hub::new(settings, store, Arc::new(Metrics::new()))
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
    assert_eq!(hub.online(None, 10), [alice()]);
    let [one, other] = sessions;
    drop(one);
    assert_eq!(hub.online(None, 10), [alice()]);
    drop(other);
    assert!(hub.online(None, 10).is_empty());
    assert_eq!(hub.connections(), 2, "the connections are still there");
}
