//! Tests counting, expiry and eviction in long logs, where the store does not visit every entry, against a plain list.

use std::{collections::BTreeMap, time::Duration};

use mesa::{
    message::{Payload, Seq},
    store::{Append, GapReason, Limits, Overflow, ReadLimit, SessionReport, Store},
};

use crate::support::{ALL, FLUSH_AT_ONCE, HOUR, Location, advance_clock, device, open_options, user};

/// Enough for several blocks of any kind that a store groups entries in.
const MESSAGES: u64 = 3_000;

/// Creates a small message, or for each 700th number one larger than its small neighbors together.
fn sized(n: u64) -> Payload {
    let bytes = if n.is_multiple_of(700) { 60_000 } else { 10 + n as usize % 50 };
    Payload::encode(0, Some(&format!("[{n},\"{}\"]", "x".repeat(bytes))), Some("N")).unwrap()
}

async fn fill(store: &dyn Store, id: &str, ttl: impl Fn(u64) -> Option<Duration>) -> BTreeMap<Seq, u64> {
    let numbers: Vec<u64> = (1..=MESSAGES).collect();
    for chunk in numbers.chunks(500) {
        let appends = chunk.iter().map(|n| Append { ttl: ttl(*n), ..Append::new(sized(*n), vec![user(id)]) }).collect();
        for result in store.append_all(appends).await.unwrap() {
            assert!(result.seqs[0].is_ok());
        }
    }
    numbers.into_iter().map(|n| (n, sized(n).as_bytes().len() as u64)).collect()
}

/// Reads a log by page, and checks the bounds of each page; returns the sequences.
fn pages(store: &dyn Store, id: &str, after: Seq) -> Vec<Seq> {
    let (limit, mut after, mut all) = (ReadLimit { entries: 300, bytes: 20_000 }, after, Vec::new());
    loop {
        let page = store.read(&user(id), after, limit).unwrap();
        let bytes: usize = page.entries.iter().map(|entry| entry.payload.as_bytes().len()).sum();
        assert!(page.entries.len() == 1 || (page.entries.len() <= 300 && bytes <= 20_000), "{bytes} bytes");
        all.extend(page.entries.iter().map(|entry| entry.seq));
        if page.entries.is_empty() {
            return all;
        }
        after = page.through;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pending_entries_of_a_long_log_are_counted_exactly_for_each_device_before_and_after_expiry() {
    for location in Location::all() {
        let options = open_options(Limits::default());
        let store = location.open_with(FLUSH_AT_ONCE, &options);
        let acknowledged: [(&str, &[(Seq, Seq)]); 3] =
            [("phone", &[(1, 1700)]), ("laptop", &[(1, 600), (900, 2100), (2500, 2501)]), ("watch", &[(1, 613)])];
        for (name, _) in &acknowledged {
            store.attach(&user("a"), Some(&device(name))).unwrap();
        }
        let mut stored = fill(&*store, "a", |n| n.is_multiple_of(3).then_some(HOUR)).await;
        let check = |stored: &BTreeMap<Seq, u64>, acknowledged: &[(&str, &[(Seq, Seq)]); 3]| {
            let has = |ranges: &[(Seq, Seq)], seq: Seq| ranges.iter().any(|(from, to)| (*from..=*to).contains(&seq));
            let state = store.state(&user("a")).unwrap();
            for (at, (name, ranges)) in acknowledged.iter().enumerate() {
                let pending = stored.keys().filter(|seq| !has(ranges, **seq)).count() as u64;
                assert_eq!((state.devices[at].device.as_str(), state.devices[at].pending), (*name, pending));
            }
            let pending = stored.iter().filter(|(seq, _)| !acknowledged.iter().all(|(_, ranges)| has(ranges, **seq)));
            let (count, bytes) = pending.clone().fold((0, 0), |(count, all), (_, bytes)| (count + 1, all + bytes));
            assert_eq!((state.pending, store.pending_bytes(&user("a")).unwrap()), (count, bytes));
            let pending: Vec<Seq> = pending.map(|(seq, _)| *seq).collect();
            assert_eq!(pages(&*store, "a", 0), pending);
            let result = store.read(&user("a"), 0, ALL).unwrap();
            assert!(result.through >= MESSAGES && result.entries.iter().map(|entry| entry.seq).eq(pending));
        };
        check(&stored, &acknowledged.map(|(name, _)| (name, &[][..])));
        for (name, ranges) in &acknowledged {
            for range in *ranges {
                let report = SessionReport {
                    device: Some(device(name)),
                    acknowledged: Some(*range),
                    ..SessionReport::default()
                };
                store.report(&user("a"), report);
            }
        }
        check(&stored, &acknowledged);
        advance_clock(&options, 2);
        stored.retain(|seq, _| !seq.is_multiple_of(3));
        // An embedded store counts expired entries until expiry visits the log, which tests in `limits` wait for.
        if !store.is_remote() {
            assert_eq!(pages(&*store, "a", 0), stored.range(601..).map(|(seq, _)| *seq).collect::<Vec<_>>());
            continue;
        }
        check(&stored, &acknowledged);
        assert_eq!(store.clear(&user("a")).await.unwrap(), stored.range(601..).count() as u64);
        assert!(pages(&*store, "a", 0).is_empty());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_message_evicts_exactly_as_many_small_ones_as_it_needs() {
    for location in Location::all() {
        let all: u64 = (1..=MESSAGES).map(|n| sized(n).as_bytes().len() as u64).sum();
        let limits = Limits { bytes: all, overflow: Overflow::DropOldest, ..Limits::default() };
        let store = location.open_with(FLUSH_AT_ONCE, &open_options(limits));
        let stored = fill(&*store, "a", |_| None).await;
        let large = Payload::encode(0, Some(&format!("\"{}\"", "x".repeat(50_000))), Some("N")).unwrap();
        let (mut freed, mut dropped) = (0, 0);
        for bytes in stored.values() {
            if freed >= large.as_bytes().len() as u64 {
                break;
            }
            (freed, dropped) = (freed + bytes, dropped + 1);
        }
        let result = store.append(Append::new(large, vec![user("a")])).await.unwrap();
        assert_eq!((result.seqs, result.dropped), (vec![Ok(MESSAGES + 1)], dropped));
        assert_eq!(pages(&*store, "a", 0), (dropped + 1..=MESSAGES + 1).collect::<Vec<_>>());
        let gaps = store.explain_gaps(&user("a"), None, 1, dropped).unwrap();
        assert_eq!((gaps.len(), gaps[0].from, gaps[0].to, gaps[0].reason), (1, 1, dropped, GapReason::Quota));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_with_the_longest_ttl_do_not_retain_expired_ones() {
    for location in Location::all() {
        let limits = Limits { messages: 1_600, ..Limits::default() };
        let options = open_options(limits);
        let store = location.open_with(FLUSH_AT_ONCE, &options);
        // The longest TTL of a message, 2^32 - 1 s. Its end does not fit into 32 bits.
        let ttl = |n: u64| if n <= 1_500 { Duration::from_secs(u32::MAX.into()) } else { HOUR };
        let appends = (1..=1_600).map(|n| Append { ttl: Some(ttl(n)), ..Append::new(sized(n), vec![user("a")]) });
        store.append_all(appends.collect()).await.unwrap();
        assert!(
            store.append(Append::new(sized(1), vec![user("a")])).await.unwrap().seqs[0].is_err(),
            "expected a rejection above the quota"
        );
        advance_clock(&options, 2);
        let result = store.append(Append::new(sized(1), vec![user("a")])).await.unwrap();
        assert_eq!(result.seqs, [Ok(1_601)]);
        assert_eq!(pages(&*store, "a", 0), (1..=1_500).chain([1_601]).collect::<Vec<_>>());
    }
}
