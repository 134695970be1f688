//! Tests of a power cut after the nth write with webhook events, dispatches, acknowledgements and removals, for every n.

use std::{collections::HashMap, sync::Arc, time::Duration};

use super::{power_cut::Cut, wait::until};
use crate::{
    embedded::{
        self,
        options::{Options, Tuning},
        outbox::tests::{all, bob, client_message, options, wait_until},
        tables::memory::{self, Memory},
        wal::contract::Wal as _,
    },
    message::Payload,
    store::{Append, Outbox, OutboxEvent, SessionReport},
};

const MESSAGES: usize = 7;

/// Events up to this number are removed after message 5.
const REMOVED: u64 = 3;

/// Numbers of the client messages whose events the outbox has.
fn messages(outbox: &Arc<dyn Outbox>) -> Vec<u64> {
    let op = |event| match event {
        OutboxEvent::Message { op, .. } => Some(op),
        _ => None,
    };
    all(outbox).into_iter().filter_map(|queued| op(queued.event)).collect()
}

/// Dispatches, acknowledges and removes events until the power fails after `writes` writes, and checks the store after
/// several power cuts at that write. Returns false if no write failed.
async fn cut_after(writes: i64, flush_delay: Duration) -> bool {
    let tuning = Tuning { flush_delay, ..Tuning::default() };
    let with_outbox = Options { tuning, ..options(1000, 10 << 20) };
    let without = Options { outbox: None, ..with_outbox.clone() };
    let tables = Memory::default();
    let (before, cut) = (tables.deep_clone(), Cut::new(&tables, writes));
    let (mut answered, mut removed, mut ids) = (0, 0, HashMap::new());
    if let Ok(store) = embedded::open(cut.clone(), with_outbox.clone()) {
        let outbox = store.outbox().unwrap();
        for n in 1..=MESSAGES {
            // One of them has several pieces.
            outbox.put(client_message(n, if n == 4 { 150_000 } else { 10 }));
            let payload = Payload::encode(0, None, None).unwrap();
            if store.append(Append::new(payload, vec![bob()])).await.is_err() {
                break;
            }
            answered = n as u64;
            if n % 2 == 0 {
                store.report(&bob(), SessionReport { acknowledged: Some((1, answered)), ..SessionReport::default() });
            }
            if n == 5 {
                removed = REMOVED;
                outbox.remove(REMOVED);
            }
            ids.extend(all(&outbox).into_iter().map(|queued| (queued.number, queued.id)));
        }
        if flush_delay.is_zero() {
            until("the flush, or the power cut", || cut.has_failed() || tables.record_numbers().is_none()).await;
        }
        _ = store.close().await;
    }
    let failed = cut.has_failed();
    for seed in 0..4 {
        let what = format!("cut after {writes} with seed {seed}");
        let tables = cut.after_power_cut_with(before.deep_clone(), writes.unsigned_abs() * 7 + seed);
        // A start without the outbox in between puts the events into the table, too.
        if seed % 2 == 1 {
            memory::open(&tables, without.clone()).unwrap().close().await.unwrap();
        }
        let store = memory::open(&tables, with_outbox.clone()).unwrap();
        let outbox = store.outbox().unwrap();
        let stored = all(&outbox);
        let numbers: Vec<u64> = stored.iter().map(|queued| queued.number).collect();
        let first = numbers.first().copied().unwrap_or(removed + 1);
        assert!(first <= removed + 1, "{numbers:?}, {what}");
        assert_eq!(numbers, (first..first + numbers.len() as u64).collect::<Vec<_>>(), "{what}");
        // Every event that was readable is still there, under the same id.
        for (number, id) in ids.iter().filter(|(number, _)| **number > removed) {
            assert!(stored.iter().any(|queued| queued.number == *number && queued.id == *id), "event {number}, {what}");
        }
        // An event precedes the dispatch that follows it.
        let found = messages(&outbox);
        assert!((removed + 1..=answered).all(|n| found.contains(&n)), "{found:?}, {what}");
        // The store has an acknowledgement only with its event.
        let acknowledged = store.attach(&bob(), None).unwrap().acknowledged.through();
        let delivered = stored.iter().any(|queued| match &queued.event {
            OutboxEvent::Delivered { to, .. } => *to >= acknowledged,
            _ => false,
        });
        assert!(acknowledged <= 2 && removed > 0 || acknowledged == 0 || delivered, "{acknowledged}, {what}");
        if writes % 8 > 0 || seed > 1 {
            // The rest takes longer, as each event waits some 20 ms for its commit.
            store.close().await.unwrap();
            continue;
        }
        // Numbers rise, also after a restart with an empty outbox.
        let mut last = numbers.last().copied().unwrap_or(0).max(ids.keys().copied().max().unwrap_or(0));
        outbox.remove(last);
        assert!(wait_until(&*store, &outbox, |outbox| outbox.status().events == 0).await);
        store.close().await.unwrap();
        drop((store, outbox));
        for outbox_is_on in [true, false, true] {
            let opening = if outbox_is_on { &with_outbox } else { &without };
            let store = memory::open(&tables, opening.clone()).unwrap();
            if let Some(outbox) = store.outbox() {
                outbox.put(client_message(99, 10));
                assert!(wait_until(&*store, &outbox, |outbox| !all(outbox).is_empty()).await);
                let number = all(&outbox)[0].number;
                assert!(number > last, "{number} after {last}, {what}");
                last = number;
                outbox.remove(last);
                assert!(wait_until(&*store, &outbox, |outbox| outbox.status().events == 0).await);
            }
            store.close().await.unwrap();
        }
    }
    failed
}

// covers: G4
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn power_cut_at_any_write_keeps_events_and_their_ids() {
    for flush_delay in [Duration::from_secs(3600), Duration::ZERO] {
        let mut writes = 0;
        while cut_after(writes, flush_delay).await {
            writes += 1;
            assert!(writes < 2000, "the store writes fewer than 2000 times");
        }
        assert!(writes > 30, "more than 30 writes are cut, not {writes}");
    }
}
