//! Tests the pool of portals, without a socket.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::AtomicBool},
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::time::timeout;

use super::{
    Bounds, ClientEvent, ClientEventKind, ConsumerId, EventForwarder, EventOrigin, Item, Portal, Portals, RemotePool,
    TakenItem,
};
use crate::{
    cluster::portals::{LocalPortals, PortalTarget, RemotePortals},
    hub::events::{Event, InboundMessage, Listener},
    metrics::Metrics,
};

const BOUNDS: Bounds = Bounds {
    portals: 5,
    events: 4,
    bytes: 1 << 20,
    retained: 3,
    resume_timeout: Duration::from_secs(60),
    stall_timeout: Duration::from_secs(30),
};

fn pool(round_robin: bool) -> Arc<Portals> {
    Portals::new(round_robin, BOUNDS, Arc::new(Metrics::new()))
}

/// Sends the numbers of a range as client messages.
fn send(pool: &Portals, numbers: std::ops::Range<u64>) {
    for number in numbers {
        let data = number.to_string();
        let message = InboundMessage::new(0, Some(&data), None);
        pool.event(1, Event::Message { user: None, message });
    }
}

fn number(event: &ClientEvent) -> u64 {
    match &event.kind {
        ClientEventKind::Message { data: Some(data), .. } => data.parse().unwrap(),
        other => panic!("{other:?}"),
    }
}

/// Returns the event of an item that is not a gap marker.
fn event(taken: TakenItem) -> Arc<ClientEvent> {
    match taken.item {
        Item::Event(event) => event,
        Item::Gap(count) => panic!("expected an event, not a gap marker: {count:?}"),
    }
}

/// Takes all queued events; returns the numbers that clients sent.
fn take_numbers(portal: &mut Portal) -> Vec<u64> {
    std::iter::from_fn(|| portal.try_next()).map(|taken| number(&event(taken))).collect()
}

/// Takes all queued items; returns the number of each event, and how many events are missing before it.
fn numbered(portal: &mut Portal) -> Vec<(u64, u64)> {
    let (mut missed, mut all) = (0, Vec::new());
    for taken in std::iter::from_fn(|| portal.try_next()) {
        match taken.item {
            Item::Gap(count) => missed += count.expect("a known number of missing events"),
            Item::Event(_) => all.push((taken.number, std::mem::take(&mut missed))),
        }
    }
    assert_eq!(missed, 0, "expected an event after each gap marker");
    all
}

#[test]
fn event_goes_to_one_portal_round_robin_and_to_each_that_requested_all() {
    let pool = pool(true);
    send(&pool, 100..101);
    let (mut one, mut all, mut two) = (pool.join(false).unwrap(), pool.join(true).unwrap(), pool.join(false).unwrap());
    send(&pool, 0..4);
    let mut shared = [take_numbers(&mut one), take_numbers(&mut two)];
    shared.sort();
    assert_eq!(shared, [[0, 2], [1, 3]]);
    assert_eq!(take_numbers(&mut all), [0, 1, 2, 3], "no event from before it joined");
    drop(two);
    drop(one);
    send(&pool, 4..6);
    assert_eq!(take_numbers(&mut all), [4, 5]);
}

#[test]
fn random_selection_uses_every_portal() {
    let pool = pool(false);
    let _all = pool.join(true).unwrap();
    let mut portals: Vec<Portal> = (0..3).map(|_| pool.join(false).unwrap()).collect();
    let mut share = [0; 3];
    for n in 0..900 {
        send(&pool, n..n + 1);
        for (at, portal) in portals.iter_mut().enumerate() {
            share[at] += take_numbers(portal).len();
        }
    }
    assert_eq!(share.iter().sum::<usize>(), 900);
    assert!(share.iter().all(|count| (200..400).contains(count)), "{share:?}");
}

#[test]
fn full_portal_is_skipped_and_full_pool_drops_the_oldest_with_a_gap_marker() {
    let pool = pool(true);
    let (mut slow, mut quick) = (pool.join(false).unwrap(), pool.join(false).unwrap());
    let mut quick_numbers = Vec::new();
    for n in 0..20 {
        send(&pool, n..n + 1);
        quick_numbers.extend(take_numbers(&mut quick));
    }
    assert_eq!(quick_numbers.len(), 16, "all but the four that fit into the slow portal's queue");
    assert_eq!(pool.metrics.portal_events_dropped.get(), 0);
    send(&pool, 20..26);
    assert_eq!(pool.metrics.portal_events_dropped.get(), 2);
    assert_eq!(numbered(&mut slow).iter().chain(&numbered(&mut quick)).map(|(_, missed)| missed).sum::<u64>(), 2);
}

#[test]
fn disconnected_portal_passes_its_queued_events_to_others() {
    let pool = pool(true);
    let (mut one, mut two) = (pool.join(false).unwrap(), pool.join(false).unwrap());
    send(&pool, 0..4);
    let first = number(&event(two.try_next().unwrap()));
    drop(two);
    let mut rest = take_numbers(&mut one);
    rest.push(first);
    rest.sort_unstable();
    assert_eq!(rest, [0, 1, 2, 3]);
    assert_eq!(pool.metrics.portal_events_forwarded.get(), 1);
    assert_eq!(pool.count(), 1);
}

#[test]
fn resumed_portal_receives_what_it_has_not_acknowledged() {
    let pool = pool(true);
    let (mut portal, mut other) = (pool.join(false).unwrap(), pool.join(true).unwrap());
    send(&pool, 0..3);
    let stream = portal.stream().clone();
    assert_eq!([take_numbers(&mut portal), take_numbers(&mut other)], [[0, 1, 2], [0, 1, 2]]);
    drop(portal);
    // No other portal is chosen for events, so these stay in its queue.
    send(&pool, 3..5);
    let mut portal = pool.resume(&stream, 1).unwrap();
    assert_eq!(numbered(&mut portal), [(2, 0), (3, 0), (4, 0), (5, 0)]);
    // It names a number that is not retained any more.
    let mut resumed = pool.resume(&stream, 1).unwrap();
    assert!(portal.try_next().is_none(), "only the last reader to connect takes items");
    assert_eq!(numbered(&mut resumed), [(3, 1), (4, 0), (5, 0)]);
    assert_eq!(take_numbers(&mut other), [3, 4]);
    // It acknowledges a number that was never sent.
    assert_eq!(numbered(&mut pool.resume(&stream, 99).unwrap()), []);
    assert_eq!(pool.metrics.portals.get(), 1, "both of its readers are gone, but not the other portal");
}

#[test]
fn retained_events_are_bounded_in_bytes() {
    let bounds = Bounds { bytes: 4 * size_of::<ClientEvent>(), retained: 1000, ..BOUNDS };
    let pool = Portals::new(true, bounds, Arc::new(Metrics::new()));
    let mut portal = pool.join(false).unwrap();
    for n in 0..10 {
        send(&pool, n..n + 1);
        assert_eq!(take_numbers(&mut portal), [n]);
    }
    let stream = portal.stream().clone();
    assert_eq!(numbered(&mut pool.resume(&stream, 0).unwrap()), [(8, 7), (9, 0), (10, 0)]);
}

#[test]
fn events_of_disconnected_portal_go_to_the_next_that_joins() {
    let pool = pool(true);
    drop(pool.join(false).unwrap());
    send(&pool, 0..3);
    assert_eq!(take_numbers(&mut pool.join(false).unwrap()), [0, 1, 2]);
}

#[test]
fn stalled_portal_is_disconnected_and_unresumed_queue_is_removed() {
    let pool = pool(true);
    let (stalled, mut other) = (pool.join(false).unwrap(), pool.join(false).unwrap());
    let stream = stalled.stream().clone();
    send(&pool, 0..4);
    let now = Instant::now();
    assert_eq!(take_numbers(&mut other).len(), 2);
    pool.expire(now + BOUNDS.stall_timeout / 2);
    assert_eq!(pool.count(), 2);
    pool.expire(now + BOUNDS.stall_timeout * 2);
    assert_eq!((pool.count(), take_numbers(&mut other).len()), (1, 2));
    pool.expire(now + BOUNDS.stall_timeout * 2 + BOUNDS.resume_timeout / 2);
    assert!(pool.resume(&stream, 0).is_some());
    pool.expire(now + BOUNDS.stall_timeout * 2 + BOUNDS.resume_timeout * 2);
    assert!(pool.resume(&stream, 0).is_none());
    assert_eq!(pool.metrics.portals.get(), 1);
    drop(stalled);
    assert_eq!(pool.metrics.portals.get(), 1);
}

/// Forces this order, unless a lock prevents it: a resume finds the queue, the queue is removed, the resume connects.
#[test]
fn portal_that_resumes_while_its_queue_expires_receives_events() {
    let pool = pool(true);
    let portal = pool.join(false).unwrap();
    let stream = portal.stream().clone();
    drop(portal);
    _ = pool.resume_hook.set(|pool| {
        if let Some(mut scheduler) = pool.scheduler.try_lock() {
            scheduler.remove_expired(Instant::now() + 2 * BOUNDS.resume_timeout, BOUNDS.resume_timeout);
        }
    });
    let mut resumed = pool.resume(&stream, 0).unwrap();
    assert_eq!((pool.count(), pool.metrics.portals.get()), (1, 1));
    send(&pool, 0..2);
    assert_eq!(take_numbers(&mut resumed), [0, 1]);
}

#[test]
fn portal_beyond_the_limit_is_rejected_or_replaces_a_disconnected_one() {
    let pool = pool(true);
    let all: Vec<Portal> = std::iter::from_fn(|| pool.join(false)).collect();
    assert_eq!(all.len(), BOUNDS.portals);
    assert!(pool.add_consumer().is_none());
    let stream = all[0].stream().clone();
    drop(all);
    assert!(pool.resume(&stream, 0).is_some());
    assert!(pool.add_consumer().is_some(), "a disconnected one is removed for it");
    assert!(pool.resume(&stream, 0).is_none());
}

#[tokio::test]
async fn portal_waits_until_an_event_happens() {
    let pool = pool(true);
    let mut portal = pool.join(false).unwrap();
    let (taken, ()) = tokio::join!(timeout(Duration::from_secs(5), portal.next()), async { send(&pool, 7..8) });
    assert_eq!(number(&event(taken.unwrap().unwrap())), 7);
    let stream = portal.stream().clone();
    let (ended, _new) = tokio::join!(timeout(Duration::from_secs(5), portal.next()), async { pool.resume(&stream, 1) });
    assert_eq!(ended.unwrap(), None);
}

#[derive(Default)]
struct Recorded(Mutex<Vec<(u64, Option<ConsumerId>, bool)>>);

impl EventForwarder for Recorded {
    fn forward(&self, event: &Arc<ClientEvent>, consumer: Option<ConsumerId>, redispatched: bool) {
        self.0.lock().push((number(event), consumer, redispatched));
    }
}

#[test]
fn forwarded_consumers_alternate_with_queues_and_observers_receive_every_event() {
    let (pool, recorded) = (pool(true), Arc::new(Recorded::default()));
    let forwarder: Arc<dyn EventForwarder> = recorded.clone();
    pool.set_forwarder(Arc::downgrade(&forwarder));
    let (consumer, mut portal) = (pool.add_consumer().unwrap(), pool.join(false).unwrap());
    send(&pool, 0..4);
    let forwarded = std::mem::take(&mut *recorded.0.lock());
    assert!(forwarded.iter().all(|(_, chosen, redispatched)| *chosen == Some(consumer) && !redispatched));
    let mut numbers: Vec<u64> = forwarded.iter().map(|event| event.0).chain(take_numbers(&mut portal)).collect();
    numbers.sort_unstable();
    assert_eq!((forwarded.len(), numbers), (2, vec![0, 1, 2, 3]));
    pool.set_consumer_capacity(consumer, false);
    send(&pool, 4..6);
    assert_eq!(take_numbers(&mut portal), [4, 5]);
    pool.set_observers(1);
    pool.remove_consumer(consumer);
    send(&pool, 6..7);
    assert_eq!(*recorded.0.lock(), [(6, None, false)]);
    drop(portal);
    let replacement = pool.add_consumer().unwrap();
    pool.redispatch(&Arc::new(super::event::copy(
        1,
        EventOrigin::Local,
        Event::Message { user: None, message: InboundMessage::new(0, Some("9"), None) },
    )));
    assert_eq!(recorded.0.lock().last(), Some(&(9, Some(replacement), true)));
}

#[test]
fn queued_event_equals_the_client_event() {
    let pool = pool(true);
    let mut portal = pool.join(false).unwrap();
    let alice = crate::message::UserId::new("alice").unwrap();
    pool.event(3, Event::Connection);
    pool.event(3, Event::Authentication { user: &alice });
    pool.event(3, Event::Message { user: Some(&alice), message: InboundMessage::new(30, None, Some("T")) });
    pool.event(3, Event::Disconnection { user: Some(&alice), code: 1000, reason: "" });
    let events: Vec<Arc<ClientEvent>> = std::iter::from_fn(|| portal.try_next()).map(event).collect();
    let kinds: Vec<&ClientEventKind> = events.iter().map(|event| &event.kind).collect();
    let message = ClientEventKind::Message { op: 30, data: None, kind: Some("T".into()) };
    assert_eq!(
        kinds,
        [&ClientEventKind::Connection, &ClientEventKind::Authentication, &message, &ClientEventKind::Disconnection]
    );
    let users: BTreeMap<bool, usize> = events.iter().fold(BTreeMap::new(), |mut count, event| {
        *count.entry(event.user.as_ref() == Some(&alice)).or_default() += 1;
        count
    });
    assert_eq!(users, BTreeMap::from([(false, 1), (true, 3)]));
    assert!(events.iter().all(|event| event.connection == 3));
}

/// Records calls. The second field is called once, at the beginning of a removal.
#[derive(Default)]
struct RecordedCalls(Mutex<Vec<(u64, String, bool)>>, Mutex<Option<Box<dyn Fn() + Send>>>);

impl RemotePortals for RecordedCalls {
    fn server(&self) -> Arc<str> {
        "1-a".into()
    }

    fn add(&self, portal: &str) {
        self.0.lock().push((0, format!("add {portal}"), false));
    }

    fn remove(&self, portal: &str) {
        self.1.lock().take().inspect(|during_remove| during_remove());
        self.0.lock().push((0, format!("remove {portal}"), false));
    }

    fn set_wants_all(&self, _: bool) {}

    fn publish(&self, event: &Arc<ClientEvent>, to: PortalTarget<'_>, redispatched: bool) {
        self.0.lock().push((number(event), format!("{to:?}"), redispatched));
    }
}

/// Creates a pool in a cluster.
fn clustered() -> (Arc<Portals>, Arc<RecordedCalls>) {
    let (pool, calls) = (pool(true), Arc::new(RecordedCalls::default()));
    let remote = RemotePool {
        portals: calls.clone(),
        origin: EventOrigin::Server("1-a".into()),
        observed: AtomicBool::new(false),
    };
    assert!(pool.remote.set(remote).is_ok());
    (pool, calls)
}

#[test]
fn remote_portals_are_chosen_and_receive_events_through_the_cluster() {
    let (pool, calls) = clustered();
    let mut portal = pool.join(false).unwrap();
    let name = portal.stream().as_str().to_owned();
    pool.set_remote(&["remote-portal".into()], false);
    send(&pool, 0..4);
    let calls_made = std::mem::take(&mut *calls.0.lock());
    assert_eq!(calls_made[0].1, format!("add {name}"));
    let mut numbers: Vec<u64> = calls_made[1..].iter().map(|call| call.0).chain(take_numbers(&mut portal)).collect();
    numbers.sort_unstable();
    assert_eq!((calls_made.len(), numbers), (3, vec![0, 1, 2, 3]));
    assert!(calls_made[1..].iter().all(|(_, to, redispatched)| to == "Remote(\"remote-portal\")" && !redispatched));
    // An observer there receives every event.
    pool.set_remote(&["remote-portal".into()], true);
    send(&pool, 4..6);
    let calls_made = std::mem::take(&mut *calls.0.lock());
    let to: Vec<&str> = calls_made.iter().map(|call| call.1.as_str()).collect();
    assert_eq!(to.len(), 2);
    assert!(to.contains(&format!("Local(\"{name}\")").as_str()) && to.contains(&"Remote(\"remote-portal\")"), "{to:?}");
    assert_eq!(take_numbers(&mut portal).len(), 1);
    // The connection to the other server is lost.
    pool.set_remote(&[], false);
    send(&pool, 6..8);
    assert_eq!((take_numbers(&mut portal), calls.0.lock().len()), (vec![6, 7], 0));
}

/// Forces this order, unless a lock prevents it: a portal disconnects, it resumes and is reported as joined, the
/// disconnect is reported.
#[test]
fn portal_that_resumes_during_the_report_of_its_disconnect_stays_known_to_other_servers() {
    let (pool, calls) = clustered();
    let portal = pool.join(false).unwrap();
    let stream = portal.stream().clone();
    let (resumed, receiver) = std::sync::mpsc::channel();
    let resuming = pool.clone();
    *calls.1.lock() = Some(Box::new(move || {
        let (pool, stream, resumed) = (resuming.clone(), stream.clone(), resumed.clone());
        let connected = Arc::new(AtomicBool::new(false));
        let seen = connected.clone();
        std::thread::spawn(move || {
            let portal = pool.resume(&stream, 0).unwrap();
            seen.store(true, std::sync::atomic::Ordering::Release);
            resumed.send(portal).unwrap();
        });
        // With the lock of the report, the resume ends after this removal, so the wait cannot be for its end.
        let end = Instant::now() + Duration::from_millis(200);
        while !connected.load(std::sync::atomic::Ordering::Acquire) && Instant::now() < end {
            std::thread::yield_now();
        }
    }));
    drop(portal);
    let _resumed = receiver.recv_timeout(Duration::from_secs(30)).unwrap();
    let last = calls.0.lock().last().map(|call| call.1.clone());
    assert!(last.as_ref().is_some_and(|last| last.starts_with("add ")), "{last:?}");
    assert_eq!(pool.metrics.portals.get(), 1);
}

#[test]
fn remote_event_for_a_disconnected_portal_is_redispatched_once() {
    let (pool, calls) = clustered();
    let (mut portal, mut all) = (pool.join(false).unwrap(), pool.join(true).unwrap());
    let name = portal.stream().as_str().to_owned();
    let event = |n: u64| {
        let data = n.to_string();
        let message = InboundMessage::new(0, Some(&data), None);
        Arc::new(super::event::copy(1, EventOrigin::Server("1-b".into()), Event::Message { user: None, message }))
    };
    LocalPortals::deliver(&*pool, event(1), Some(&name), false);
    LocalPortals::deliver(&*pool, event(2), None, false);
    LocalPortals::deliver(&*pool, event(3), Some(&name), true);
    assert_eq!((take_numbers(&mut portal), take_numbers(&mut all)), (vec![1, 3], vec![1, 2]));
    drop(portal);
    pool.set_remote(&["remote-portal".into()], false);
    calls.0.lock().clear();
    LocalPortals::deliver(&*pool, event(4), Some(&name), false);
    LocalPortals::deliver(&*pool, event(5), Some(&name), true);
    assert_eq!(*calls.0.lock(), [(4, "Remote(\"remote-portal\")".to_owned(), true)]);
    assert_eq!(take_numbers(&mut all), [4]);
}

#[test]
fn portal_resumed_at_random_numbers_receives_a_gap_marker_for_each_gap() {
    let (mut exact, mut unknown) = (0, 0);
    for seed in 0..300_u64 {
        let (pool, mut random) = (pool(true), seed);
        let mut next = |below: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) % below
        };
        let mut portal = pool.join(false).unwrap();
        // Numbers sent; the last number that the client received; the number that it expects next, if that is known.
        let (mut sent, mut acknowledged, mut expected, mut is_known) = (0, 0, 0, true);
        for round in 0..20 {
            let more = next(7) + 1;
            send(&pool, sent..sent + more);
            sent += more;
            // The server writes some, and the client receives some of those before the connection breaks.
            let (written, received) = if round < 19 { (next(9), next(9)) } else { (u64::MAX, u64::MAX) };
            for at in 0..written {
                let Some(taken) = portal.try_next() else { break };
                if at >= received {
                    continue;
                }
                assert!(taken.number > acknowledged, "{} after {acknowledged}", taken.number);
                acknowledged = taken.number;
                match taken.item {
                    Item::Gap(Some(count)) => expected += count,
                    Item::Gap(None) => is_known = false,
                    Item::Event(event) if is_known => {
                        assert_eq!(number(&event), expected, "seed {seed}");
                        (expected, exact) = (expected + 1, exact + 1);
                    }
                    Item::Event(event) => {
                        assert!(number(&event) >= expected, "seed {seed}");
                        (expected, is_known, unknown) = (number(&event) + 1, true, unknown + 1);
                    }
                }
            }
            portal = pool.resume(&portal.stream().clone(), acknowledged).unwrap();
        }
        assert_eq!((expected, is_known), (sent, true));
    }
    assert!(exact > 0 && unknown > 0, "expected both kinds of gap markers: {exact} exact, {unknown} unknown");
}
