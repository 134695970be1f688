//! Long logs: what is counted, expires and makes room without every entry being looked at, against a plain list.

use std::{collections::BTreeMap, sync::atomic::Ordering, time::Duration};

use mesa::{
    message::{DeviceId, Payload, Seq},
    store::{Append, GapReason, Limits, Overflow, ReadLimit, SessionReport, Store},
};

use crate::support::{ALL, AT_ONCE, Opening, Place, user};

const HOUR: Duration = Duration::from_secs(3600);

/// So many that there are several of whatever a store keeps together.
const MESSAGES: u64 = 3_000;

fn device(name: &str) -> DeviceId {
    DeviceId::new(name).unwrap()
}

/// Most are small; a few are a good deal larger than the small ones beside them together.
fn sized(n: u64) -> Payload {
    let bytes = if n.is_multiple_of(700) { 60_000 } else { 10 + n as usize % 50 };
    Payload::encode(0, Some(&format!("[{n},\"{}\"]", "x".repeat(bytes))), Some("N")).unwrap()
}

async fn fill(store: &dyn Store, id: &str, ttl: impl Fn(u64) -> Option<Duration>) -> BTreeMap<Seq, u64> {
    let numbers: Vec<u64> = (1..=MESSAGES).collect();
    for some in numbers.chunks(500) {
        let appends = some.iter().map(|n| Append { ttl: ttl(*n), ..Append::new(sized(*n), vec![user(id)]) }).collect();
        for made in store.append_all(appends).await.unwrap() {
            assert!(made.seqs[0].is_ok());
        }
    }
    numbers.into_iter().map(|n| (n, sized(n).as_bytes().len() as u64)).collect()
}

/// Page by page; checks what a page may have at most.
fn pages(store: &dyn Store, id: &str, after: Seq) -> Vec<Seq> {
    let (limit, mut after, mut all) = (ReadLimit { entries: 300, bytes: 20_000 }, after, Vec::new());
    loop {
        let found = store.read(&user(id), after, limit).unwrap();
        let bytes: usize = found.entries.iter().map(|entry| entry.payload.as_bytes().len()).sum();
        assert!(found.entries.len() == 1 || (found.entries.len() <= 300 && bytes <= 20_000), "{bytes} bytes");
        all.extend(found.entries.iter().map(|entry| entry.seq));
        if found.entries.is_empty() {
            return all;
        }
        after = found.through;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_in_a_long_log_is_counted_exactly_for_each_device_and_does_not_wait_when_it_is_past() {
    for place in Place::all() {
        let opening = Opening { limits: Limits { free_bytes: 0, ..Limits::default() }, ..Opening::default() };
        let store = place.open_with(AT_ONCE, &opening);
        let had: [(&str, &[(Seq, Seq)]); 3] =
            [("phone", &[(1, 1700)]), ("laptop", &[(1, 600), (900, 2100), (2500, 2501)]), ("watch", &[(1, 613)])];
        for (name, _) in &had {
            store.attach(&user("a"), Some(&device(name))).unwrap();
        }
        let mut there = fill(&*store, "a", |n| n.is_multiple_of(3).then_some(HOUR)).await;
        let check = |there: &BTreeMap<Seq, u64>, had: &[(&str, &[(Seq, Seq)]); 3]| {
            let has = |ranges: &[(Seq, Seq)], seq: Seq| ranges.iter().any(|(from, to)| (*from..=*to).contains(&seq));
            let state = store.state(&user("a")).unwrap();
            for (at, (name, ranges)) in had.iter().enumerate() {
                let waits = there.keys().filter(|seq| !has(ranges, **seq)).count() as u64;
                assert_eq!((state.devices[at].device.as_str(), state.devices[at].pending), (*name, waits));
            }
            let waits = there.iter().filter(|(seq, _)| !had.iter().all(|(_, ranges)| has(ranges, **seq)));
            let (count, bytes) = waits.clone().fold((0, 0), |(count, all), (_, bytes)| (count + 1, all + bytes));
            assert_eq!((state.pending, store.pending_bytes(&user("a")).unwrap()), (count, bytes));
            let waits: Vec<Seq> = waits.map(|(seq, _)| *seq).collect();
            assert_eq!(pages(&*store, "a", 0), waits);
            let at_once = store.read(&user("a"), 0, ALL).unwrap();
            assert!(at_once.through >= MESSAGES && at_once.entries.iter().map(|entry| entry.seq).eq(waits));
        };
        check(&there, &had.map(|(name, _)| (name, &[][..])));
        for (name, ranges) in &had {
            for range in *ranges {
                let note = SessionReport {
                    device: Some(device(name)),
                    acknowledged: Some(*range),
                    ..SessionReport::default()
                };
                store.report(&user("a"), note);
            }
        }
        check(&there, &had);
        opening.ahead_ms.fetch_add((HOUR * 2).as_millis() as u64, Ordering::Relaxed);
        there.retain(|seq, _| !seq.is_multiple_of(3));
        // An embedded store counts what is past until it goes through the user's inbox, which tests in `limits` wait for.
        if !store.is_remote() {
            assert_eq!(pages(&*store, "a", 0), there.range(601..).map(|(seq, _)| *seq).collect::<Vec<_>>());
            continue;
        }
        check(&there, &had);
        assert_eq!(store.clear(&user("a")).await.unwrap(), there.range(601..).count() as u64);
        assert!(pages(&*store, "a", 0).is_empty());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_large_message_takes_the_place_of_as_many_small_ones_as_it_needs_and_not_one_more() {
    for place in Place::all() {
        let all: u64 = (1..=MESSAGES).map(|n| sized(n).as_bytes().len() as u64).sum();
        let limits = Limits { free_bytes: 0, bytes: all, overflow: Overflow::DropOldest, ..Limits::default() };
        let store = place.open_with(AT_ONCE, &Opening { limits, ..Opening::default() });
        let there = fill(&*store, "a", |_| None).await;
        let large = Payload::encode(0, Some(&format!("\"{}\"", "x".repeat(50_000))), Some("N")).unwrap();
        let (mut room, mut dropped) = (0, 0);
        for bytes in there.values() {
            if room >= large.as_bytes().len() as u64 {
                break;
            }
            (room, dropped) = (room + bytes, dropped + 1);
        }
        let made = store.append(Append::new(large, vec![user("a")])).await.unwrap();
        assert_eq!((made.seqs, made.dropped), (vec![Ok(MESSAGES + 1)], dropped));
        assert_eq!(pages(&*store, "a", 0), (dropped + 1..=MESSAGES + 1).collect::<Vec<_>>());
        let missed = store.explain_gaps(&user("a"), None, 1, dropped).unwrap();
        assert_eq!((missed.len(), missed[0].from, missed[0].to, missed[0].reason), (1, 1, dropped, GapReason::Quota));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_that_wait_for_longer_than_a_century_keep_nothing_in_its_place_that_is_past() {
    for place in Place::all() {
        let limits = Limits { free_bytes: 0, messages: 1_600, ..Limits::default() };
        let opening = Opening { limits, ..Opening::default() };
        let store = place.open_with(AT_ONCE, &opening);
        // The longest that a message can say, which ends when seconds do not fit into 32 bits any more.
        let ttl = |n: u64| if n <= 1_500 { Duration::from_secs(u32::MAX.into()) } else { HOUR };
        let appends = (1..=1_600).map(|n| Append { ttl: Some(ttl(n)), ..Append::new(sized(n), vec![user("a")]) });
        store.append_all(appends.collect()).await.unwrap();
        assert!(store.append(Append::new(sized(1), vec![user("a")])).await.unwrap().seqs[0].is_err(), "it is full");
        opening.ahead_ms.fetch_add((HOUR * 2).as_millis() as u64, Ordering::Relaxed);
        let made = store.append(Append::new(sized(1), vec![user("a")])).await.unwrap();
        assert_eq!(made.seqs, [Ok(1_601)]);
        assert_eq!(pages(&*store, "a", 0), (1..=1_500).chain([1_601]).collect::<Vec<_>>());
    }
}
