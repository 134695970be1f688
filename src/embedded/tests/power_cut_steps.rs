//! Tests of a power cut while blocks are trimmed and purged in steps. No pending message is lost, and none returns.

use std::{sync::atomic::Ordering, time::Duration};

use super::{power_cut::Cut, wait::until};
use crate::{
    embedded::{
        self,
        options::{Options, Tuning},
        tables::memory::{self, Memory},
        wal::contract::Wal,
    },
    message::{CollapseKey, Payload, Seq, UserId},
    store::{Append, GapReason, Limits, ReadLimit, SessionReport, Store},
};

/// Number of entries in the value log before the power cut. Every second one has a collapse key.
const ENTRIES: Seq = 120;

/// Entries up to this sequence are acknowledged during the test, in two reports.
const ACKNOWLEDGED: [Seq; 2] = [31, 62];

/// Entries with these sequences expire during the test.
fn expires(seq: Seq) -> bool {
    seq % 10 == 4
}

fn options(flush_delay: Duration) -> Options {
    let tuning = Tuning { flush_delay, expiry_interval: Duration::ZERO, ..Tuning::default() };
    Options { tuning, limits: Limits { free_bytes: 0, ..Limits::default() }, ..Options::default() }
}

fn user() -> UserId {
    UserId::new("a").unwrap()
}

fn append(seq: Seq) -> Append {
    let payload = Payload::encode(0, Some(&format!("\"{}\"", "x".repeat(3000))), None).unwrap();
    let collapse = (seq % 2 == 1).then(|| CollapseKey::new(&format!("key {seq}")).unwrap());
    let ttl = expires(seq).then_some(Duration::from_secs(1000));
    Append { ttl, collapse, ..Append::new(payload, vec![user()]) }
}

fn sequences(store: &dyn Store) -> Vec<Seq> {
    let all = ReadLimit { entries: usize::MAX, bytes: usize::MAX };
    store.read(&user(), 0, all).unwrap().entries.iter().map(|entry| entry.seq).collect()
}

/// Cuts the power after a number of writes, and checks the store. Returns false if no write failed.
async fn cut_after(filled: &Memory, writes: i64) -> bool {
    let (tables, before) = (filled.deep_clone(), filled.deep_clone());
    let cut = Cut::new(&tables, writes);
    let mut replaced = Vec::new();
    let options = options(Duration::ZERO);
    options.ahead_ms.store(2_000_000, Ordering::Relaxed);
    if let Ok(store) = embedded::open(cut.clone(), options.clone()) {
        let acknowledge = |to| {
            store.report(&user(), SessionReport { acknowledged: Some((1, to)), ..SessionReport::default() });
        };
        acknowledge(ACKNOWLEDGED[0]);
        for seq in (1..=ENTRIES).filter(|seq| seq % 2 == 1) {
            if seq == ACKNOWLEDGED[1] + 1 {
                acknowledge(ACKNOWLEDGED[1]);
            }
            // Replaces the entry with this sequence, if it is not acknowledged.
            let Ok(result) = store.append(append(seq)).await else { break };
            replaced.push((seq, result.seqs[0].unwrap()));
        }
        until("the flush, or the power cut", || cut.has_failed() || tables.record_numbers().is_none()).await;
        _ = store.close().await;
    }
    let failed = cut.has_failed();
    let tables = cut.after_power_cut(before);
    for flush_delay in [Duration::from_secs(3600), Duration::ZERO] {
        let options = Options { ahead_ms: options.ahead_ms.clone(), ..self::options(flush_delay) };
        let store = memory::open(&tables, options).unwrap();
        let found = sequences(&*store);
        let has = |seq: Seq| found.binary_search(&seq).is_ok();
        for seq in 1..=ENTRIES {
            let is_replaced = replaced.iter().any(|(old, _)| *old == seq);
            // The power may have failed after the commit that replaces this entry, and before its answer.
            let may_be_replaced = seq % 2 == 1 && replaced.last().is_none_or(|(last, _)| seq > *last);
            let gaps = store.explain_gaps(&user(), None, seq, seq).unwrap();
            if is_replaced || expires(seq) {
                assert!(!has(seq), "{seq} is back, cut after {writes}");
            } else if !has(seq) && !may_be_replaced {
                let is_acknowledged = gaps.iter().all(|gap| gap.reason == GapReason::Acknowledged);
                assert!(seq <= ACKNOWLEDGED[1] && is_acknowledged, "{seq} is lost: {gaps:?}, cut after {writes}");
            }
        }
        assert!(replaced.iter().all(|(_, new)| has(*new)), "all answered messages, cut after {writes}");
        until("the flush", || flush_delay > Duration::ZERO || tables.record_numbers().is_none()).await;
        assert_eq!(sequences(&*store), found, "cut after {writes}");
        store.close().await.unwrap();
    }
    failed
}

// covers: G1
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn power_cut_during_trim_and_purge_loses_no_pending_entry_and_returns_no_replaced_one() {
    let filled = Memory::default();
    let store = memory::open(&filled, options(Duration::ZERO)).unwrap();
    for seq in 1..=ENTRIES {
        store.append(append(seq)).await.unwrap();
    }
    until("the flush", || filled.record_numbers().is_none()).await;
    store.close().await.unwrap();
    drop(store);
    let mut cuts = 0;
    // The first writes and every seventh later one are cut.
    while cut_after(&filled, cuts).await {
        cuts += if cuts < 60 { 1 } else { 7 };
    }
    assert!(cuts > 100, "more than 100 writes, not {cuts}");
}
