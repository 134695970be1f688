//! What is kept at most: ages, times to live, quotas, devices and ids. Time goes on
//! where a test says so, by hours, and never by waiting.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use mesa::{
    embedded::Tuning,
    message::{CollapseKey, DeviceId, DispatchId, Payload, Seq},
    store::{
        Append, AppendResult, Gap, GapReason, Idempotency, Limits, Overflow, Reason, Rejected, SessionReport, Store,
    },
};

use crate::support::{ALL, AT_ONCE, NEVER, Opening, Place, append, message, read, receive, until, user};

pub const HOUR: Duration = Duration::from_secs(3600);

/// Settles only what is too much.
pub const PRESSED: Tuning = Tuning { wal_bytes_max: 64 << 20, ..NEVER };

pub fn opening(limits: Limits) -> Opening {
    // The disk of whoever runs the tests may be fuller than the default wants.
    Opening { limits: Limits { free_bytes: 0, ..limits }, ..Opening::default() }
}

pub fn later(opening: &Opening, hours: u32) {
    opening.ahead_ms.fetch_add((HOUR * hours).as_millis() as u64, Ordering::Relaxed);
}

/// Closes a store and opens it again, at the same time of its clock.
pub async fn again(store: Arc<dyn Store>, place: &Place, tuning: Tuning, opening: &Opening) -> Arc<dyn Store> {
    store.close().await.unwrap();
    drop(store);
    opening.ahead_ms.store(0, Ordering::Relaxed);
    place.open_with(tuning, opening)
}

pub async fn in_the_inbox(store: &dyn Store, id: &str) {
    until("the journal to be settled", || store.read_cached(&user(id), 0, ALL).is_none()).await;
    // Over Redis: who has come and gone is written down before anything is asked, and not before the clock is put forward.
    store.state(&user(id)).unwrap();
}

fn device(name: &str) -> DeviceId {
    DeviceId::new(name).unwrap()
}

fn receive_as(store: &dyn Store, id: &str, name: &str, to: Seq) {
    let received = Some((1, to));
    store.report(
        &user(id),
        SessionReport { device: Some(device(name)), acknowledged: received, ..SessionReport::default() },
    );
}

fn devices(store: &dyn Store, id: &str) -> Vec<String> {
    let devices = store.state(&user(id)).unwrap().devices;
    devices.into_iter().map(|device| device.device.as_str().to_owned()).collect()
}

/// A message of exactly so many bytes.
pub fn sized(n: u64, bytes: usize) -> Payload {
    let encode = |padding: usize| Payload::encode(0, Some(&n.to_string()), Some(&"x".repeat(padding))).unwrap();
    let payload = encode(bytes - encode(0).as_bytes().len());
    assert_eq!(payload.as_bytes().len(), bytes);
    payload
}

pub async fn put(store: &dyn Store, append: Append) -> AppendResult {
    store.append(append).await.unwrap()
}

fn with_ttl(n: u64, ttl: Duration, id: &str) -> Append {
    Append { ttl: Some(ttl), ..Append::new(message(n), vec![user(id)]) }
}

fn with_key(n: u64, key: &str, id: &str) -> Append {
    Append { collapse: Some(CollapseKey::new(key).unwrap()), ..Append::new(message(n), vec![user(id)]) }
}

fn missed(store: &dyn Store, id: &str, from: Seq, to: Seq) -> Vec<(Seq, Seq, GapReason)> {
    let missed = store.explain_gaps(&user(id), None, from, to).unwrap();
    missed.into_iter().map(|Gap { from, to, reason }| (from, to, reason)).collect()
}

#[tokio::test]
async fn a_device_that_stays_away_is_forgotten_and_what_only_it_held_goes() {
    for place in Place::all() {
        let opening = opening(Limits { device_age: Some(24 * HOUR), ..Limits::default() });
        let store = place.open_with(AT_ONCE, &opening);
        for name in ["phone", "laptop"] {
            store.attach(&user("a"), Some(&device(name))).unwrap();
        }
        for n in 1..=3 {
            append(&*store, n, &["a"]).await.unwrap();
        }
        receive_as(&*store, "a", "laptop", 3);
        store.detach(&user("a"), Some(&device("phone")));
        in_the_inbox(&*store, "a").await;
        later(&opening, 23);
        // What happens meanwhile makes the store look after such things; nothing is to come of it yet.
        append(&*store, 4, &["b"]).await.unwrap();
        in_the_inbox(&*store, "b").await;
        assert_eq!((devices(&*store, "a").len(), store.state(&user("a")).unwrap().pending), (2, 3));
        later(&opening, 2);
        until("the phone to be forgotten", || devices(&*store, "a") == ["laptop"]).await;
        assert_eq!((read(&*store, "a", 0), store.state(&user("a")).unwrap().pending), (vec![], 0));
        if let Place::Memory(tables) = &place {
            until("its chunks to go", || tables.blocks_of("a") == 0).await;
        }
        let store = again(store, &place, AT_ONCE, &opening).await;
        assert_eq!((devices(&*store, "a"), read(&*store, "a", 0)), (vec!["laptop".to_owned()], vec![]));
    }
}

#[tokio::test]
async fn a_device_that_was_here_for_longer_than_that_is_not_forgotten_when_the_server_is_killed() {
    for place in Place::all() {
        let opening = opening(Limits { device_age: Some(24 * HOUR), ..Limits::default() });
        let store = place.open_with(AT_ONCE, &opening);
        for name in ["away", "here", "brief"] {
            store.attach(&user("a"), Some(&device(name))).unwrap();
        }
        store.detach(&user("a"), Some(&device("away")));
        append(&*store, 1, &["a"]).await.unwrap();
        in_the_inbox(&*store, "a").await;
        let seen = || {
            let devices = store.state(&user("a")).unwrap().devices;
            devices.into_iter().find(|one| one.device.as_str() == "here").unwrap().seen
        };
        let came = seen();
        later(&opening, 20);
        until("it to be written down that it is here", || seen() > came).await;
        store.detach(&user("a"), Some(&device("brief")));
        in_the_inbox(&*store, "a").await;
        // Nobody detaches what was here: it ends as it does with a kill, but for what is flushed.
        let store = again(store, &place, AT_ONCE, &opening).await;
        later(&opening, 10);
        until("the one that was away to be forgotten", || devices(&*store, "a").len() < 3).await;
        assert_eq!(devices(&*store, "a"), ["here", "brief"]);
    }
}

#[tokio::test]
async fn the_last_cursor_of_a_user_is_never_forgotten() {
    for place in Place::all() {
        let opening = opening(Limits { device_age: Some(24 * HOUR), ..Limits::default() });
        let store = place.open_with(AT_ONCE, &opening);
        store.attach(&user("a"), Some(&device("phone"))).unwrap();
        for n in 1..=3 {
            append(&*store, n, &["a"]).await.unwrap();
        }
        receive_as(&*store, "a", "phone", 2);
        store.detach(&user("a"), Some(&device("phone")));
        in_the_inbox(&*store, "a").await;
        // Of this user there is another that is to be forgotten, which shows that such things were looked after.
        for name in ["older", "newer"] {
            store.attach(&user("b"), Some(&device(name))).unwrap();
            store.detach(&user("b"), Some(&device(name)));
            later(&opening, 1);
        }
        append(&*store, 4, &["b"]).await.unwrap();
        in_the_inbox(&*store, "b").await;
        later(&opening, 1000);
        until("the older one to be forgotten", || devices(&*store, "b") == ["newer"]).await;
        assert_eq!(devices(&*store, "a"), ["phone"], "it is all its user has");
        let store = again(store, &place, AT_ONCE, &opening).await;
        assert_eq!((devices(&*store, "a"), read(&*store, "a", 0)), (vec!["phone".to_owned()], vec![(3, 3)]));
        assert_eq!(devices(&*store, "b"), ["newer"]);
        let attached = store.attach(&user("a"), Some(&device("phone"))).unwrap();
        assert_eq!(attached.acknowledged.through(), 2, "it goes on where it was");
    }
}

#[tokio::test]
async fn what_has_expired_leaves_the_store_although_nobody_comes() {
    for place in Place::all() {
        let opening = opening(Limits::default());
        let store = place.open_with(AT_ONCE, &opening);
        for n in 1..=3 {
            put(&*store, with_ttl(n, HOUR, "a")).await;
            put(&*store, with_ttl(n, 3 * HOUR, "gone")).await;
        }
        append(&*store, 4, &["a"]).await.unwrap();
        in_the_inbox(&*store, "a").await;
        in_the_inbox(&*store, "gone").await;
        assert_eq!((read(&*store, "a", 0).len(), store.state(&user("a")).unwrap().pending), (4, 4));
        later(&opening, 2);
        assert_eq!(read(&*store, "a", 0), [(4, 4)], "from then on it is not shown");
        until("it to be taken out", || store.state(&user("a")).unwrap().pending == 1).await;
        assert_eq!(store.pending_bytes(&user("a")).unwrap(), message(4).as_bytes().len() as u64);
        assert_eq!(missed(&*store, "a", 1, 3), [(1, 3, GapReason::Expired)]);
        assert_eq!(store.state(&user("gone")).unwrap().pending, 3, "there is time left for these");
        later(&opening, 2);
        until("all of it to be taken out", || store.state(&user("gone")).unwrap().pending == 0).await;
        if let Place::Memory(tables) = &place {
            until("its chunks to go", || tables.blocks_of("gone") == 0 && tables.blocks_of("a") == 1).await;
        }
        let store = again(store, &place, AT_ONCE, &opening).await;
        assert_eq!((read(&*store, "a", 0), read(&*store, "gone", 0)), (vec![(4, 4)], vec![]));
        assert_eq!(append(&*store, 5, &["a", "gone"]).await.unwrap(), [5, 4], "sequences go on");
    }
}

#[tokio::test]
async fn everything_ages_and_a_time_to_live_makes_that_shorter_and_never_longer() {
    for place in Place::all() {
        for tuning in [NEVER, AT_ONCE] {
            let opening = opening(Limits { age: Some(10 * HOUR), ..Limits::default() });
            let store = place.open_with(tuning, &opening);
            let base = store.state(&user("a")).unwrap().head;
            append(&*store, 1, &["a"]).await.unwrap();
            put(&*store, with_ttl(2, 5 * HOUR, "a")).await;
            put(&*store, with_ttl(3, 20 * HOUR, "a")).await;
            let shown = || read(&*store, "a", base).into_iter().map(|(_, n)| n).collect::<Vec<_>>();
            later(&opening, 4);
            assert_eq!(shown(), [1, 2, 3]);
            later(&opening, 2);
            assert_eq!(shown(), [1, 3]);
            later(&opening, 5);
            assert_eq!(shown(), [0; 0]);
            append(&*store, 4, &["a"]).await.unwrap();
            assert_eq!(shown(), [4]);
            receive(&*store, "a", 1, base + 4);
            again(store, &place, tuning, &opening).await.close().await.unwrap();
        }
    }
}

/// Messages of one size, of which five are allowed, with bytes for ten.
const SIZE: usize = 100;
const FIVE: Limits = Limits {
    messages: 5,
    bytes: 10 * SIZE as u64,
    age: None,
    overflow: Overflow::DropOldest,
    device_age: None,
    devices: 16,
    ids_window: HOUR,
    ids: 1000,
    store_bytes: None,
    free_bytes: 0,
};

/// Appends messages of one size, and waits until they are settled, where they are to be.
async fn fill(store: &dyn Store, numbers: std::ops::RangeInclusive<u64>, settled: bool) {
    for n in numbers {
        let appended = put(store, Append::new(sized(n, SIZE), vec![user("a")])).await;
        assert_eq!((appended.seqs, appended.dropped), (vec![Ok(n)], 0));
    }
    if settled {
        in_the_inbox(store, "a").await;
    }
}

#[tokio::test]
async fn the_oldest_go_for_a_new_one_wherever_they_are_and_it_is_told_which() {
    for (settled, after) in [(5, 0), (0, 5), (3, 2)] {
        for place in Place::all() {
            the_oldest_go(place, settled, after).await;
        }
    }
}

/// With so many of the first five messages in the inbox, and so many in the journal.
async fn the_oldest_go(place: Place, settled: u64, after: u64) {
    let opening = opening(FIVE);
    let mut store = place.open_with(AT_ONCE, &opening);
    if settled > 0 {
        fill(&*store, 1..=settled, true).await;
    }
    store = again(store, &place, NEVER, &opening).await;
    fill(&*store, settled + 1..=settled + after, false).await;
    // By its bytes it takes the place of four.
    let large = put(&*store, Append::new(sized(6, 9 * SIZE), vec![user("a")])).await;
    assert_eq!((large.seqs, large.dropped), (vec![Ok(6)], 4), "{settled} in the inbox");
    // By its number it needs none to go, by its bytes the last of the five.
    let next = put(&*store, Append::new(sized(7, SIZE), vec![user("a")])).await;
    assert_eq!((next.seqs, next.dropped), (vec![Ok(7)], 1));
    for _ in 0..2 {
        assert_eq!(read(&*store, "a", 0), [(6, 6), (7, 7)]);
        assert_eq!(missed(&*store, "a", 1, 5), [(1, 5, GapReason::Quota)]);
        assert_eq!(missed(&*store, "a", 3, 4), [(3, 4, GapReason::Quota)]);
        assert_eq!(store.state(&user("a")).unwrap().pending, 2);
        assert_eq!(store.pending_bytes(&user("a")).unwrap(), 10 * SIZE as u64);
        store = again(store, &place, NEVER, &opening).await;
    }
}

#[tokio::test]
async fn what_was_received_is_not_counted_among_those_that_were_dropped() {
    for place in Place::all() {
        for tuning in [NEVER, AT_ONCE] {
            let opening = opening(FIVE);
            let place = place.another();
            let store = place.open_with(tuning, &opening);
            fill(&*store, 1..=5, tuning.flush_delay.is_zero()).await;
            receive(&*store, "a", 2, 3);
            let large = put(&*store, Append::new(sized(6, 9 * SIZE), vec![user("a")])).await;
            assert_eq!((large.seqs, large.dropped), (vec![Ok(6)], 2), "the first and the fourth");
            assert_eq!(read(&*store, "a", 0), [(5, 5), (6, 6)]);
        }
    }
}

#[tokio::test]
async fn a_message_too_many_is_refused_and_taken_when_something_was_received() {
    for place in Place::all() {
        for tuning in [NEVER, AT_ONCE] {
            let opening = opening(Limits { overflow: Overflow::Reject, ..FIVE });
            let store = place.open_with(tuning, &opening);
            let base = store.state(&user("a")).unwrap().head;
            let send = async |n: u64, bytes: usize| {
                let mut appended = put(&*store, Append::new(sized(n, bytes), vec![user("a"), user("b")])).await;
                receive(&*store, "b", 1, Seq::MAX);
                assert!(appended.seqs.pop().unwrap().is_ok(), "the other has room");
                appended.seqs.pop().unwrap().map(|seq| seq - base)
            };
            for n in 1..=5 {
                assert_eq!(send(n, SIZE).await, Ok(n));
            }
            if tuning.flush_delay.is_zero() {
                in_the_inbox(&*store, "a").await;
            }
            assert_eq!(send(6, SIZE).await, Err(Reason::Quota), "six are too many");
            receive(&*store, "a", 1, base + 1);
            assert_eq!(send(6, 6 * SIZE + 1).await, Err(Reason::Quota), "one byte too many");
            assert_eq!(send(6, 6 * SIZE).await, Ok(6));
            assert_eq!(send(7, SIZE).await, Err(Reason::Quota));
            receive(&*store, "a", 1, base + 6);
            assert_eq!(send(7, SIZE).await, Ok(7), "a message that was refused has no number");
            receive(&*store, "a", 1, base + 7);
            store.close().await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_newer_message_takes_the_place_of_a_pending_one_wherever_that_is() {
    for settled in [false, true] {
        for place in Place::all() {
            for hold in [None, Some(0)] {
                let place = place.another();
                let opening = opening(Limits::default());
                let mut store = place.open_with(if settled { AT_ONCE } else { NEVER }, &opening);
                put(&*store, with_key(1, "state", "a")).await;
                put(&*store, with_key(2, "other", "a")).await;
                if settled {
                    in_the_inbox(&*store, "a").await;
                }
                store.report(&user("a"), SessionReport { hold, ..SessionReport::default() });
                put(&*store, with_key(3, "state", "a")).await;
                for _ in 0..2 {
                    assert_eq!(read(&*store, "a", 0), [(2, 2), (3, 3)], "settled {settled}, hold {hold:?}");
                    assert_eq!(missed(&*store, "a", 1, 1), [(1, 1, GapReason::Collapsed)]);
                    assert_eq!(store.state(&user("a")).unwrap().pending, 2);
                    assert_eq!(store.pending_bytes(&user("a")).unwrap(), 2 * message(1).as_bytes().len() as u64);
                    store = again(store, &place, NEVER, &opening).await;
                }
                // Keys are known over a restart, too.
                put(&*store, with_key(4, "other", "a")).await;
                assert_eq!(read(&*store, "a", 0), [(3, 3), (4, 4)]);
            }
        }
    }
}

#[tokio::test]
async fn what_was_received_and_is_held_for_another_session_is_not_taken_from_it() {
    for place in Place::all() {
        for tuning in [NEVER, AT_ONCE] {
            let opening = opening(Limits::default());
            let store = place.open_with(tuning, &opening);
            let base = store.state(&user("a")).unwrap().head;
            put(&*store, with_key(1, "state", "a")).await;
            if tuning.flush_delay.is_zero() {
                in_the_inbox(&*store, "a").await;
            }
            store.report(
                &user("a"),
                SessionReport { acknowledged: Some((1, base + 1)), hold: Some(base), ..SessionReport::default() },
            );
            put(&*store, with_key(2, "state", "a")).await;
            assert_eq!(read(&*store, "a", base), [(base + 1, 1), (base + 2, 2)]);
            receive(&*store, "a", 1, base + 2);
            store.close().await.unwrap();
        }
    }
}

fn once(n: u64, users: &[&str]) -> Append {
    let refused = vec![Rejected { user: "not a user".into(), reason: Reason::Invalid }];
    let online = vec![true, false];
    let idempotency = Idempotency { id: DispatchId::new("order 66").unwrap(), online, rejected: refused };
    Append { idempotency: Some(idempotency), ..Append::new(message(n), users.iter().map(|id| user(id)).collect()) }
}

#[tokio::test]
async fn an_id_is_answered_as_it_was_the_first_time_for_as_long_as_its_window() {
    for place in Place::all() {
        for tuning in [NEVER, AT_ONCE] {
            let place = place.another();
            let opening = opening(Limits { messages: 1, ids_window: 10 * HOUR, ..Limits::default() });
            let mut store = place.open_with(tuning, &opening);
            append(&*store, 1, &["full"]).await.unwrap();
            let first = put(&*store, once(2, &["a", "full"])).await;
            assert_eq!((first.duplicate, &first.seqs[..]), (false, &[Ok(1), Err(Reason::Quota)][..]));
            let answered = first.summary.unwrap();
            assert_eq!((answered.recipients, answered.online, answered.offline), (3, 1, 0));
            let told: Vec<_> = answered.rejected.iter().map(|one| (&*one.user, one.reason)).collect();
            assert_eq!(told, [("not a user", Reason::Invalid), ("full", Reason::Quota)]);
            for round in 0..3 {
                if tuning.flush_delay.is_zero() {
                    in_the_inbox(&*store, "a").await;
                }
                // Now there would be room, and nobody is there.
                receive(&*store, "full", 1, 1);
                let repeat = put(&*store, Append { payload: message(9), ..once(9, &["a", "full"]) }).await;
                assert_eq!((repeat.duplicate, repeat.seqs.len(), repeat.summary), (true, 0, Some(answered.clone())));
                assert_eq!(read(&*store, "a", 0), [(1, 2)], "round {round}");
                assert_eq!(store.state(&user("full")).unwrap().head, 1);
                later(&opening, 3);
                if round < 2 {
                    store = again(store, &place, tuning, &opening).await;
                }
            }
            later(&opening, 2);
            receive(&*store, "a", 1, 1);
            let anew = put(&*store, once(3, &["a", "full"])).await;
            assert_eq!((anew.duplicate, anew.seqs), (false, vec![Ok(2), Ok(2)]), "after its window it is a new one");
        }
    }
}

/// An answer whose rejected users stand in several records, of which some are settled apart from the rest.
#[tokio::test]
async fn an_answer_with_very_many_rejected_is_the_same_after_its_records_were_settled_apart() {
    let place = Place::Memory(mesa::embedded::tables::memory::Memory::default());
    let opening = opening(Limits { ids_window: 10 * HOUR, ..Limits::default() });
    let tuning = Tuning { wal_bytes_max: 150 << 10, ..NEVER };
    let store = place.open_with(tuning, &opening);
    let refused: Vec<_> = (0..2000)
        .map(|n| Rejected { user: format!("{n}{}", "x".repeat(96)).into(), reason: Reason::Invalid })
        .collect();
    let again_and_again = || {
        let id = DispatchId::new("order 67").unwrap();
        let idempotency = Idempotency { id, online: vec![true], rejected: refused.clone() };
        Append { idempotency: Some(idempotency), ..Append::new(message(1), vec![user("a")]) }
    };
    let first = put(&*store, again_and_again()).await.summary.unwrap();
    assert_eq!(first.rejected.len(), 2000);
    // Something of it is settled, because the journal is larger than it may be.
    in_the_inbox(&*store, "a").await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let store = again(store, &place, tuning, &opening).await;
    let repeat = put(&*store, again_and_again()).await;
    assert!(repeat.duplicate);
    assert_eq!(repeat.summary.unwrap().rejected.len(), first.rejected.len());
}

/// What is replaced while it is on its way into the inbox is not counted there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_replaced_while_it_is_being_settled_is_not_counted() {
    let place = Place::Memory(mesa::embedded::tables::memory::Memory::default());
    let store = place.open_with(Tuning { idle_seconds: 3600, ..AT_ONCE }, &opening(Limits::default()));
    // Or all that is replaced would be at the front, and be released.
    append(&*store, 99, &["a"]).await.unwrap();
    for round in 0..20_u64 {
        let load = (0..3000).map(|n| Append::new(message(n), vec![user(&format!("user-{}", n % 500))]));
        store.append_all([with_key(round, "k", "a")].into_iter().chain(load).collect()).await.unwrap();
        for n in 0..20 {
            put(&*store, with_key(n, "k", "a")).await;
        }
    }
    in_the_inbox(&*store, "a").await;
    assert_eq!(read(&*store, "a", 0).len(), 2);
    assert_eq!(store.state(&user("a")).unwrap().pending, 2);
}

/// A recipient that is no user id may be as long as a request.
#[tokio::test]
async fn a_rejected_user_of_any_length_does_no_harm() {
    let named = |name: &str, refused: Vec<Rejected>| {
        let idempotency = Idempotency { id: DispatchId::new(name).unwrap(), online: vec![true], rejected: refused };
        Append { idempotency: Some(idempotency), ..Append::new(message(1), vec![user("a")]) }
    };
    let invalid = |bytes: usize| Rejected { user: "x".repeat(bytes).into(), reason: Reason::Invalid };
    for place in Place::all() {
        let opening = opening(Limits::default());
        let store = place.open_with(NEVER, &opening);
        put(&*store, named("order 68", (0..250).map(|_| invalid(100)).collect())).await;
        // As long as fits into a request.
        put(&*store, named("order 69", vec![invalid(1_040_000)])).await;
        let store = again(store, &place, AT_ONCE, &opening).await;
        in_the_inbox(&*store, "a").await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        let store = again(store, &place, NEVER, &opening).await;
        append(&*store, 2, &["a"]).await.unwrap();
    }
}
