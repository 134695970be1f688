//! The pool, without a socket.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::AtomicBool},
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::time::timeout;

use super::{Bounds, ClientEvent, ClientEventKind, EventOrigin, Far, Item, Portal, Portals, SeatId, Taken, Watch};
use crate::{
    cluster::portals::{LocalPortals, PortalTarget, RemotePortals},
    hub::events::{Event, InboundMessage, Listener},
    metrics::Metrics,
};

const BOUNDS: Bounds = Bounds {
    portals: 5,
    events: 4,
    bytes: 1 << 20,
    kept: 3,
    resume_for: Duration::from_secs(60),
    patience: Duration::from_secs(30),
};

fn pool(in_turn: bool) -> Arc<Portals> {
    Portals::new(in_turn, BOUNDS, Arc::new(Metrics::new()))
}

/// Clients say the numbers of a range.
fn say(pool: &Portals, numbers: std::ops::Range<u64>) {
    for number in numbers {
        let data = number.to_string();
        let said = InboundMessage::new(0, Some(&data), None);
        pool.event(1, Event::Message { user: None, said });
    }
}

fn number(told: &ClientEvent) -> u64 {
    match &told.kind {
        ClientEventKind::Message { data: Some(data), .. } => data.parse().unwrap(),
        other => panic!("{other:?}"),
    }
}

/// The event that was taken; it is no marker.
fn event(taken: Taken) -> Arc<ClientEvent> {
    match taken.what {
        Item::Event(told) => told,
        Item::Missed(count) => panic!("a marker: {count:?}"),
    }
}

/// What a portal is told now: the numbers that were said.
fn heard(portal: &mut Portal) -> Vec<u64> {
    std::iter::from_fn(|| portal.try_next()).map(|taken| number(&event(taken))).collect()
}

/// The numbers of the events themselves, and how many were missed before each.
fn numbered(portal: &mut Portal) -> Vec<(u64, u64)> {
    let (mut missed, mut all) = (0, Vec::new());
    for taken in std::iter::from_fn(|| portal.try_next()) {
        match taken.what {
            Item::Missed(count) => missed += count.expect("it is known"),
            Item::Event(_) => all.push((taken.number, std::mem::take(&mut missed))),
        }
    }
    assert_eq!(missed, 0, "a marker has an event behind it");
    all
}

#[test]
fn each_event_goes_to_one_portal_in_turn_and_to_all_who_want_all() {
    let pool = pool(true);
    say(&pool, 100..101);
    let (mut one, mut all, mut two) = (pool.join(false).unwrap(), pool.join(true).unwrap(), pool.join(false).unwrap());
    say(&pool, 0..4);
    let mut shared = [heard(&mut one), heard(&mut two)];
    shared.sort();
    assert_eq!(shared, [[0, 2], [1, 3]]);
    assert_eq!(heard(&mut all), [0, 1, 2, 3], "and nothing of what came before it did");
    drop(two);
    drop(one);
    say(&pool, 4..6);
    assert_eq!(heard(&mut all), [4, 5]);
}

#[test]
fn at_random_every_portal_has_its_share() {
    let pool = pool(false);
    let _all = pool.join(true).unwrap();
    let mut portals: Vec<Portal> = (0..3).map(|_| pool.join(false).unwrap()).collect();
    let mut share = [0; 3];
    for n in 0..900 {
        say(&pool, n..n + 1);
        for (at, portal) in portals.iter_mut().enumerate() {
            share[at] += heard(portal).len();
        }
    }
    assert_eq!(share.iter().sum::<usize>(), 900);
    assert!(share.iter().all(|count| (200..400).contains(count)), "{share:?}");
}

#[test]
fn a_full_portal_is_passed_over_and_where_all_are_full_the_oldest_go_and_it_is_told() {
    let pool = pool(true);
    let (mut slow, mut quick) = (pool.join(false).unwrap(), pool.join(false).unwrap());
    let mut quickly = Vec::new();
    for n in 0..20 {
        say(&pool, n..n + 1);
        quickly.extend(heard(&mut quick));
    }
    assert_eq!(quickly.len(), 16, "all but the four that the slow one has room for");
    assert_eq!(pool.metrics.portal_events_dropped.get(), 0);
    say(&pool, 20..26);
    assert_eq!(pool.metrics.portal_events_dropped.get(), 2);
    assert_eq!(numbered(&mut slow).iter().chain(&numbered(&mut quick)).map(|(_, missed)| missed).sum::<u64>(), 2);
}

#[test]
fn what_a_portal_had_not_taken_goes_on_to_the_others_when_it_goes() {
    let pool = pool(true);
    let (mut one, mut two) = (pool.join(false).unwrap(), pool.join(false).unwrap());
    say(&pool, 0..4);
    let first = number(&event(two.try_next().unwrap()));
    drop(two);
    let mut rest = heard(&mut one);
    rest.push(first);
    rest.sort_unstable();
    assert_eq!(rest, [0, 1, 2, 3]);
    assert_eq!(pool.metrics.portal_events_passed_on.get(), 1);
    assert_eq!(pool.count(), 1);
}

#[test]
fn one_that_comes_back_is_given_again_what_it_has_not_had() {
    let pool = pool(true);
    let (mut portal, mut other) = (pool.join(false).unwrap(), pool.join(true).unwrap());
    say(&pool, 0..3);
    let stream = portal.stream().clone();
    assert_eq!([heard(&mut portal), heard(&mut other)], [[0, 1, 2], [0, 1, 2]]);
    drop(portal);
    // Nobody else takes turns, so this waits for it.
    say(&pool, 3..5);
    let mut portal = pool.resume(&stream, 1).unwrap();
    assert_eq!(numbered(&mut portal), [(2, 0), (3, 0), (4, 0), (5, 0)]);
    // It names one that is not kept any more.
    let mut again = pool.resume(&stream, 1).unwrap();
    assert!(portal.try_next().is_none(), "only the last to come reads");
    assert_eq!(numbered(&mut again), [(3, 1), (4, 0), (5, 0)]);
    assert_eq!(heard(&mut other), [3, 4]);
    // It claims to have had what was never sent.
    assert_eq!(numbered(&mut pool.resume(&stream, 99).unwrap()), []);
    assert_eq!(pool.metrics.portals.get(), 1, "both of its readers are gone by now, but not the other portal");
}

#[test]
fn what_is_kept_for_one_that_comes_back_is_bounded_in_bytes_too() {
    let bounds = Bounds { bytes: 4 * size_of::<ClientEvent>(), kept: 1000, ..BOUNDS };
    let pool = Portals::new(true, bounds, Arc::new(Metrics::new()));
    let mut portal = pool.join(false).unwrap();
    for n in 0..10 {
        say(&pool, n..n + 1);
        assert_eq!(heard(&mut portal), [n]);
    }
    let stream = portal.stream().clone();
    assert_eq!(numbered(&mut pool.resume(&stream, 0).unwrap()), [(8, 7), (9, 0), (10, 0)]);
}

#[test]
fn what_waits_for_one_that_is_away_goes_to_the_next_that_comes() {
    let pool = pool(true);
    drop(pool.join(false).unwrap());
    say(&pool, 0..3);
    assert_eq!(heard(&mut pool.join(false).unwrap()), [0, 1, 2]);
}

#[test]
fn one_that_takes_nothing_is_taken_for_dead_and_one_that_stays_away_is_forgotten() {
    let pool = pool(true);
    let (dead, mut other) = (pool.join(false).unwrap(), pool.join(false).unwrap());
    let stream = dead.stream().clone();
    say(&pool, 0..4);
    let now = Instant::now();
    assert_eq!(heard(&mut other).len(), 2);
    pool.sweep(now + BOUNDS.patience / 2);
    assert_eq!(pool.count(), 2);
    pool.sweep(now + BOUNDS.patience * 2);
    assert_eq!((pool.count(), heard(&mut other).len()), (1, 2));
    pool.sweep(now + BOUNDS.patience * 2 + BOUNDS.resume_for / 2);
    assert!(pool.resume(&stream, 0).is_some());
    pool.sweep(now + BOUNDS.patience * 2 + BOUNDS.resume_for * 2);
    assert!(pool.resume(&stream, 0).is_none());
    assert_eq!(pool.metrics.portals.get(), 1);
    drop(dead);
    assert_eq!(pool.metrics.portals.get(), 1);
}

#[test]
fn there_are_so_many_portals_and_no_more() {
    let pool = pool(true);
    let all: Vec<Portal> = std::iter::from_fn(|| pool.join(false)).collect();
    assert_eq!(all.len(), BOUNDS.portals);
    assert!(pool.seat().is_none());
    let stream = all[0].stream().clone();
    drop(all);
    assert!(pool.resume(&stream, 0).is_some());
    assert!(pool.seat().is_some(), "one that is away is forgotten for it");
    assert!(pool.resume(&stream, 0).is_none());
}

#[tokio::test]
async fn a_portal_waits_until_something_happens() {
    let pool = pool(true);
    let mut portal = pool.join(false).unwrap();
    let (told, ()) = tokio::join!(timeout(Duration::from_secs(5), portal.next()), async { say(&pool, 7..8) });
    assert_eq!(number(&event(told.unwrap().unwrap())), 7);
    let stream = portal.stream().clone();
    let (ended, _new) = tokio::join!(timeout(Duration::from_secs(5), portal.next()), async { pool.resume(&stream, 1) });
    assert_eq!(ended.unwrap(), None);
}

#[derive(Default)]
struct Seen(Mutex<Vec<(u64, Option<SeatId>, bool)>>);

impl Watch for Seen {
    fn told(&self, told: &Arc<ClientEvent>, turn: Option<SeatId>, again: bool) {
        self.0.lock().push((number(told), turn, again));
    }
}

#[test]
fn seats_take_turns_with_inboxes_and_who_watches_is_told_whose_turn_it_is() {
    let (pool, seen) = (pool(true), Arc::new(Seen::default()));
    let watch: Arc<dyn Watch> = seen.clone();
    pool.set_watch(Arc::downgrade(&watch));
    let (seat, mut portal) = (pool.seat().unwrap(), pool.join(false).unwrap());
    say(&pool, 0..4);
    let turns = std::mem::take(&mut *seen.0.lock());
    assert!(turns.iter().all(|(_, turn, again)| *turn == Some(seat) && !again));
    let mut numbers: Vec<u64> = turns.iter().map(|turn| turn.0).chain(heard(&mut portal)).collect();
    numbers.sort_unstable();
    assert_eq!((turns.len(), numbers), (2, vec![0, 1, 2, 3]));
    pool.seat_has_room(seat, false);
    say(&pool, 4..6);
    assert_eq!(heard(&mut portal), [4, 5]);
    pool.set_watching(1);
    pool.rise(seat);
    say(&pool, 6..7);
    assert_eq!(*seen.0.lock(), [(6, None, false)]);
    drop(portal);
    let again = pool.seat().unwrap();
    pool.again(&Arc::new(super::event::told(
        1,
        EventOrigin::Local,
        Event::Message { user: None, said: InboundMessage::new(0, Some("9"), None) },
    )));
    assert_eq!(seen.0.lock().last(), Some(&(9, Some(again), true)));
}

#[test]
fn what_happens_is_kept_as_it_was_told() {
    let pool = pool(true);
    let mut portal = pool.join(false).unwrap();
    let alice = crate::message::UserId::new("alice").unwrap();
    pool.event(3, Event::Connection);
    pool.event(3, Event::Authentication { user: &alice });
    pool.event(3, Event::Message { user: Some(&alice), said: InboundMessage::new(30, None, Some("T")) });
    pool.event(3, Event::Disconnection { user: Some(&alice), code: 1000, reason: "" });
    let told: Vec<Arc<ClientEvent>> = std::iter::from_fn(|| portal.try_next()).map(event).collect();
    let whats: Vec<&ClientEventKind> = told.iter().map(|told| &told.kind).collect();
    let message = ClientEventKind::Message { op: 30, data: None, kind: Some("T".into()) };
    assert_eq!(
        whats,
        [&ClientEventKind::Connection, &ClientEventKind::Authentication, &message, &ClientEventKind::Disconnection]
    );
    let users: BTreeMap<bool, usize> = told.iter().fold(BTreeMap::new(), |mut count, told| {
        *count.entry(told.user.as_ref() == Some(&alice)).or_default() += 1;
        count
    });
    assert_eq!(users, BTreeMap::from([(false, 1), (true, 3)]));
    assert!(told.iter().all(|told| told.connection == 3));
}

#[derive(Default)]
struct Line(Mutex<Vec<(u64, String, bool)>>);

impl RemotePortals for Line {
    fn server(&self) -> Arc<str> {
        "1-a".into()
    }

    fn add(&self, portal: &str) {
        self.0.lock().push((0, format!("{portal} comes"), false));
    }

    fn remove(&self, portal: &str) {
        self.0.lock().push((0, format!("{portal} goes"), false));
    }

    fn set_wants_all(&self, _: bool) {}

    fn publish(&self, told: &Arc<ClientEvent>, to: PortalTarget<'_>, again: bool) {
        self.0.lock().push((number(told), format!("{to:?}"), again));
    }
}

/// A pool among those of other servers.
fn among() -> (Arc<Portals>, Arc<Line>) {
    let (pool, line) = (pool(true), Arc::new(Line::default()));
    let far = Far { portals: line.clone(), at: EventOrigin::Server("1-a".into()), listen: AtomicBool::new(false) };
    assert!(pool.far.set(far).is_ok());
    (pool, line)
}

#[test]
fn portals_elsewhere_have_their_turns_and_are_told_over_the_line() {
    let (pool, line) = among();
    let mut portal = pool.join(false).unwrap();
    let name = portal.stream().as_str().to_owned();
    pool.set_remote(&["far".into()], false);
    say(&pool, 0..4);
    let told = std::mem::take(&mut *line.0.lock());
    assert_eq!(told[0].1, format!("{name} comes"));
    let mut numbers: Vec<u64> = told[1..].iter().map(|told| told.0).chain(heard(&mut portal)).collect();
    numbers.sort_unstable();
    assert_eq!((told.len(), numbers), (3, vec![0, 1, 2, 3]));
    assert!(told[1..].iter().all(|(_, to, again)| to == "Remote(\"far\")" && !again));
    // Somebody there hears everything.
    pool.set_remote(&["far".into()], true);
    say(&pool, 4..6);
    let told = std::mem::take(&mut *line.0.lock());
    let to: Vec<&str> = told.iter().map(|told| told.1.as_str()).collect();
    assert_eq!(to.len(), 2);
    assert!(to.contains(&format!("Local(\"{name}\")").as_str()) && to.contains(&"Remote(\"far\")"), "{to:?}");
    assert_eq!(heard(&mut portal).len(), 1);
    // The line is lost.
    pool.set_remote(&[], false);
    say(&pool, 6..8);
    assert_eq!((heard(&mut portal), line.0.lock().len()), (vec![6, 7], 0));
}

#[test]
fn what_is_told_from_elsewhere_reaches_whom_it_is_for_and_goes_on_once_where_he_has_gone() {
    let (pool, line) = among();
    let (mut portal, mut all) = (pool.join(false).unwrap(), pool.join(true).unwrap());
    let name = portal.stream().as_str().to_owned();
    let event = |n: u64| {
        let data = n.to_string();
        let said = InboundMessage::new(0, Some(&data), None);
        Arc::new(super::event::told(1, EventOrigin::Server("1-b".into()), Event::Message { user: None, said }))
    };
    LocalPortals::deliver(&*pool, event(1), Some(&name), false);
    LocalPortals::deliver(&*pool, event(2), None, false);
    LocalPortals::deliver(&*pool, event(3), Some(&name), true);
    assert_eq!((heard(&mut portal), heard(&mut all)), (vec![1, 3], vec![1, 2]));
    drop(portal);
    pool.set_remote(&["far".into()], false);
    line.0.lock().clear();
    LocalPortals::deliver(&*pool, event(4), Some(&name), false);
    LocalPortals::deliver(&*pool, event(5), Some(&name), true);
    assert_eq!(*line.0.lock(), [(4, "Remote(\"far\")".to_owned(), true)]);
    assert_eq!(heard(&mut all), [4]);
}

#[test]
fn portal_that_resumes_anywhere_is_sent_a_marker_for_each_jump() {
    let (mut exact, mut unknown) = (0, 0);
    for seed in 0..300_u64 {
        let (pool, mut chance) = (pool(true), seed);
        let mut next = |below: u64| {
            chance = chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (chance >> 33) % below
        };
        let mut portal = pool.join(false).unwrap();
        // What was said; the id of the last that the client received; the number that it expects next, if that is known.
        let (mut said, mut had, mut expected, mut is_known) = (0, 0, 0, true);
        for round in 0..20 {
            let more = next(7) + 1;
            say(&pool, said..said + more);
            said += more;
            // The server writes some, and the client receives some of those before the connection breaks.
            let (written, received) = if round < 19 { (next(9), next(9)) } else { (u64::MAX, u64::MAX) };
            for at in 0..written {
                let Some(taken) = portal.try_next() else { break };
                if at >= received {
                    continue;
                }
                assert!(taken.number > had, "{} after {had}", taken.number);
                had = taken.number;
                match taken.what {
                    Item::Missed(Some(count)) => expected += count,
                    Item::Missed(None) => is_known = false,
                    Item::Event(told) if is_known => {
                        assert_eq!(number(&told), expected, "seed {seed}");
                        (expected, exact) = (expected + 1, exact + 1);
                    }
                    Item::Event(told) => {
                        assert!(number(&told) >= expected, "seed {seed}");
                        (expected, is_known, unknown) = (number(&told) + 1, true, unknown + 1);
                    }
                }
            }
            portal = pool.resume(&portal.stream().clone(), had).unwrap();
        }
        assert_eq!((expected, is_known), (said, true));
    }
    assert!(exact > 0 && unknown > 0, "{exact} {unknown}");
}
