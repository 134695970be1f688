//! Tests of erasures with webhook events that come meanwhile or stay, and of erasures that wait for another.

use std::{
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::{StreamExt as _, stream::FuturesUnordered};

use super::{intercept::Intercept, wait::until};
use crate::{
    embedded::{
        self,
        options::{Options, Tuning},
        outbox::format::{Batch, event_key},
        tables::{
            contract::{EngineError, Table, TableSpace, Tables as _},
            memory::{self, Memory},
        },
        writer::erase::ERASURES_MAX,
    },
    message::{Payload, Seq, UserId},
    store::{Append, Erasure, EventKind, Outbox, OutboxEvent, OutboxOptions, Store, StoreError},
};

const SECRET: &str = "secret of erasable";

fn user(id: &str) -> UserId {
    UserId::new(id).unwrap()
}

fn options() -> Options {
    let kinds = EventKind::CONFIGURABLE.to_vec();
    Options { outbox: Some(OutboxOptions { events: 1000, bytes: 1 << 20, kinds }), ..Options::default() }
}

async fn append(store: &dyn Store, user: UserId) -> Seq {
    let payload = Payload::encode(0, Some(&format!("\"{}\"", "x".repeat(40_000))), None).unwrap();
    store.append(Append::new(payload, vec![user])).await.unwrap().seqs[0].unwrap()
}

fn put_undelivered(outbox: &dyn Outbox, id: &str, seq: Seq) -> bool {
    let event = OutboxEvent::Undelivered { user: id.into(), seq, devices: vec![None], payload: SECRET.into() };
    outbox.put_undelivered(&user(id), seq, event)
}

// covers: G2
#[tokio::test]
async fn accepted_events_next_to_erased_ones_leave_the_outbox_and_are_not_sent_again() {
    let layouts: [&[&[&str]]; 5] = [
        &[&["bob", "alice"]],
        &[&["bob"], &["alice"], &["alice"]],
        &[&["alice"], &["bob"]],
        &[&["alice", "bob", "alice"], &["alice"], &["bob", "bob", "alice", "alice"]],
        &[&["alice", "alice"], &["alice"]],
    ];
    for (layout, restarts) in layouts.iter().flat_map(|layout| [(layout, false), (layout, true)]) {
        let tables = Memory::default();
        let (mut first, mut expected) = (10, Vec::new());
        for batch in *layout {
            let event = |id: &&str| (1, Some(OutboxEvent::Expired { user: (*id).to_owned(), from: 1, to: 1 }));
            let stored = Batch::V1 { start: 1, events: batch.iter().map(event).collect() };
            tables.put(Table::Outbox, &event_key(first, 0), &stored.pieces()[0]).unwrap();
            expected.extend((first..).zip(*batch).filter(|(_, id)| **id == "bob").map(|(number, _)| number));
            first += batch.len() as u64;
        }
        let mut store = memory::open(&tables, options()).unwrap();
        assert_eq!(store.erase(&user("alice")).await.unwrap(), Erasure::Erased, "{layout:?}");
        if restarts {
            store.close().await.unwrap();
            store = memory::open(&tables, options()).unwrap();
        }
        let outbox = store.outbox().unwrap();
        let numbers: Vec<_> = outbox.read(0, 99, u64::MAX).unwrap().iter().map(|queued| queued.number).collect();
        assert_eq!(numbers, expected, "{layout:?}");
        // As the delivery of webhooks: up to the last event that the backend has accepted.
        numbers.iter().for_each(|number| outbox.remove(*number));
        until(&format!("the outbox is empty after {layout:?}"), || outbox.status().events == 0).await;
        store.close().await.unwrap();
        let store = memory::open(&tables, options()).unwrap();
        assert_eq!(store.outbox().unwrap().read(0, 99, u64::MAX).unwrap().len(), 0, "{layout:?}");
        store.close().await.unwrap();
    }
}

#[tokio::test]
async fn refused_erasure_keeps_the_reported_sequence() {
    let store = memory::open(&Memory::default(), options()).unwrap();
    let outbox = store.outbox().unwrap();
    assert_eq!(append(&*store, user("alice")).await, 1);
    assert!(put_undelivered(&*outbox, "alice", 1));
    store.attach(&user("alice"), None).unwrap();
    assert_eq!(store.erase(&user("alice")).await.unwrap(), Erasure::Online);
    assert_eq!(outbox.reported(&user("alice")).unwrap(), 1);
    store.detach(&user("alice"), None);
    assert_eq!(store.erase(&user("alice")).await.unwrap(), Erasure::Erased);
    assert_eq!(outbox.reported(&user("alice")).unwrap(), 0);
    store.close().await.unwrap();
}

/// Reports a message of alice as undelivered at one write after the beginning of the erasure, as a monitor that had
/// read the message before.
#[derive(Default)]
struct LateReport {
    tables: Memory,
    outbox: OnceLock<Weak<dyn Outbox>>,
    /// Writes until the report.
    writes_left: AtomicUsize,
    reported: AtomicBool,
}

impl LateReport {
    fn on_write(&self) {
        let Some(outbox) = self.outbox.get().and_then(Weak::upgrade) else { return };
        if self.writes_left.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.reported.store(true, Ordering::SeqCst);
            _ = put_undelivered(&*outbox, "alice", 1);
        }
    }
}

impl Intercept for LateReport {
    fn memory(&self) -> &Memory {
        &self.tables
    }

    fn on_append_record(&self, number: u64, record: &[u8]) -> Result<(), EngineError> {
        use crate::embedded::wal::contract::Wal as _;
        self.on_write();
        self.tables.append_record(number, record)
    }

    fn on_put(&self, table: Table, key: &[u8], value: &[u8]) -> Result<(), EngineError> {
        self.on_write();
        self.tables.put(table, key, value)
    }

    fn on_remove(&self, table: Table, key: &[u8]) -> Result<(), EngineError> {
        self.on_write();
        self.tables.remove(table, key)
    }

    fn on_sync(&self) -> Result<(), EngineError> {
        self.on_write();
        Ok(())
    }

    fn on_checkpoint(&self) -> Result<(), EngineError> {
        self.on_write();
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn report_of_an_undelivered_message_during_an_erasure_leaves_no_body() {
    let mut writes = 1;
    loop {
        let engine = Arc::new(LateReport { writes_left: AtomicUsize::new(writes), ..LateReport::default() });
        let tuning = Tuning { flush_delay: Duration::from_secs(3600), ..Tuning::default() };
        let store = embedded::open(engine.clone(), Options { tuning, ..options() }).unwrap();
        let outbox = store.outbox().unwrap();
        append(&*store, user("alice")).await;
        _ = engine.outbox.set(Arc::downgrade(&outbox));
        assert_eq!(store.erase(&user("alice")).await.unwrap(), Erasure::Erased);
        let reported = engine.reported.load(Ordering::SeqCst);
        engine.writes_left.store(0, Ordering::SeqCst);
        if !reported {
            // After the erasure.
            assert!(!put_undelivered(&*outbox, "alice", 1));
            append(&*store, user("alice")).await;
            assert!(!put_undelivered(&*outbox, "alice", 1));
            assert!(put_undelivered(&*outbox, "alice", 2), "a message of the later log");
        }
        append(&*store, user("bob")).await;
        let tables = engine.tables.deep_clone();
        store.close().await.unwrap();
        // Also after a crash, which repeats the erasure.
        for tables in [&engine.tables, &tables] {
            let store = memory::open(tables, options()).unwrap();
            let outbox = store.outbox().unwrap();
            let seqs: Vec<_> = outbox.read(0, 99, u64::MAX).unwrap().into_iter().map(|queued| queued.event).collect();
            let expected = usize::from(!reported);
            assert_eq!(seqs.len(), expected, "{seqs:?} after a report at write {writes}");
            assert_eq!(outbox.reported(&user("alice")).unwrap(), 2 * expected as Seq);
            store.close().await.unwrap();
        }
        if !reported {
            break;
        }
        writes += 1;
    }
    assert!(writes > 3, "reports at more than 3 writes, not {writes}");
}

/// Removes blocks slowly, counts the removals in each turn of the commit thread, and has space if a test wants it.
#[derive(Default)]
struct SlowRemovals {
    tables: Memory,
    has_space: AtomicBool,
    turn: AtomicUsize,
    most: AtomicUsize,
}

impl Intercept for SlowRemovals {
    fn memory(&self) -> &Memory {
        &self.tables
    }

    fn on_remove(&self, table: Table, key: &[u8]) -> Result<(), EngineError> {
        if table == Table::Log {
            // One part of a step takes longer than a step may.
            std::thread::sleep(Duration::from_millis(1));
            self.most.fetch_max(self.turn.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        }
        self.tables.remove(table, key)
    }

    fn on_collect_garbage(&self) {
        self.turn.store(0, Ordering::SeqCst);
    }

    fn on_table_space(&self) -> TableSpace {
        if self.has_space.load(Ordering::SeqCst) { TableSpace::Enough } else { TableSpace::Little }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn erasures_wait_for_an_earlier_one_and_each_runs_in_steps() {
    let engine = Arc::new(SlowRemovals { has_space: true.into(), ..SlowRemovals::default() });
    let tuning = Tuning { flush_delay: Duration::ZERO, ..Tuning::default() };
    let store = embedded::open(engine.clone(), Options { tuning, ..Options::default() }).unwrap();
    for _ in 0..100 {
        append(&*store, user("alice")).await;
        append(&*store, user("bob")).await;
    }
    until("the WAL is flushed", || {
        use crate::embedded::wal::contract::Wal as _;
        engine.tables.record_numbers().is_none()
    })
    .await;
    engine.most.store(0, Ordering::SeqCst);

    let (alice, bob) = (user("alice"), user("bob"));
    let (first, second) = tokio::join!(store.erase(&alice), store.erase(&bob));
    assert_eq!((first.unwrap(), second.unwrap()), (Erasure::Erased, Erasure::Erased));
    let most = engine.most.load(Ordering::SeqCst);
    assert!((1..=32).contains(&most), "{most} blocks were removed in one turn");

    // The first one waits for space, and the others for the first.
    engine.has_space.store(false, Ordering::SeqCst);
    let erase = |n| {
        let store = store.clone();
        async move { store.erase(&user(&format!("u{n}"))).await }
    };
    let mut erasures: FuturesUnordered<_> = (0..ERASURES_MAX + 2).map(erase).collect();
    let rejected = tokio::time::timeout(Duration::from_secs(30), erasures.next()).await;
    let rejected = rejected.expect("an erasure is rejected within 30 s").unwrap();
    assert!(matches!(rejected, Err(StoreError::Busy(_))), "{rejected:?}");
    engine.has_space.store(true, Ordering::SeqCst);
    while let Some(result) = erasures.next().await {
        assert_eq!(result.unwrap(), Erasure::Unknown);
    }
    store.close().await.unwrap();
}

/// An event about the new log of a user is stored while the erasure of the old log removes blocks.
// covers: G4
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn event_of_a_later_log_during_the_erasure_stays_also_after_a_crash() {
    let engine = Arc::new(SlowRemovals { has_space: true.into(), ..SlowRemovals::default() });
    let tuning = Tuning { flush_delay: Duration::ZERO, ..Tuning::default() };
    let store = embedded::open(engine.clone(), Options { tuning, ..options() }).unwrap();
    let outbox = store.outbox().unwrap();
    let event = |seq| OutboxEvent::Expired { user: "alice".into(), from: seq, to: seq };
    for _ in 0..150 {
        append(&*store, user("alice")).await;
    }
    outbox.put(event(1));
    until("the WAL is flushed", || {
        use crate::embedded::wal::contract::Wal as _;
        engine.tables.record_numbers().is_none() && outbox.status().events == 1
    })
    .await;
    engine.most.store(0, Ordering::SeqCst);
    let alice = user("alice");
    let later = async {
        until("the first blocks are removed", || engine.most.load(Ordering::SeqCst) > 0).await;
        outbox.put(event(200));
    };
    let (erased, ()) = tokio::join!(store.erase(&alice), later);
    assert_eq!(erased.unwrap(), Erasure::Erased);
    until("the later event is stored", || outbox.read(0, 9, u64::MAX).unwrap().len() == 1).await;
    let killed = engine.tables.deep_clone();
    store.close().await.unwrap();
    for tables in [&engine.tables, &killed] {
        let store = memory::open(tables, options()).unwrap();
        let stored = store.outbox().unwrap().read(0, 9, u64::MAX).unwrap();
        assert_eq!(stored.into_iter().map(|queued| queued.event).collect::<Vec<_>>(), [event(200)]);
        store.close().await.unwrap();
    }
}
