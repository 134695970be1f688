//! Tests of webhook events in the write-ahead log: after a crash, on a full disk, without an outbox, after an erasure,
//! and over restarts.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use super::{intercept::Intercept, wait::until};
use crate::{
    embedded::{
        self,
        options::Options,
        outbox::format::event_key,
        tables::{
            contract::{EngineError, Table, TableSpace, Tables},
            memory::{self, Memory},
        },
        user_log::{cache::LogCache, lossy_restarts::LossyRestarts},
        wal::contract::Wal,
        writer::queue::Queue,
    },
    message::{Payload, UserId},
    store::{Append, EventKind, Outbox, OutboxEvent, OutboxOptions, QueuedEvent, Store, clock::Clock},
};

fn options(has_outbox: bool) -> Options {
    let outbox = OutboxOptions { events: 1000, bytes: 10 << 20, kinds: EventKind::CONFIGURABLE.to_vec() };
    Options { outbox: has_outbox.then_some(outbox), ..Options::default() }
}

fn open(tables: &Memory) -> (Arc<dyn Store>, Arc<dyn Outbox>) {
    let store = memory::open(tables, options(true)).unwrap();
    let outbox = store.outbox().unwrap();
    (store, outbox)
}

fn all(outbox: &Arc<dyn Outbox>) -> Vec<QueuedEvent> {
    outbox.read(0, usize::MAX, u64::MAX).unwrap()
}

fn client_message(user: &str, bytes: usize) -> OutboxEvent {
    let data = Some("x".repeat(bytes));
    OutboxEvent::Message { connection: String::new(), user: Some(user.into()), op: 0, data, kind: None }
}

/// Returns the keys of all pieces of events.
fn event_keys(tables: &Memory) -> Vec<Vec<u8>> {
    let mut keys = Vec::new();
    let end = event_key(u64::MAX, usize::MAX);
    let collect = &mut |key: &[u8]| {
        keys.push(key.to_vec());
        true
    };
    tables.keys(Table::Outbox, &event_key(0, 0), collect).unwrap();
    keys.retain(|key| key[..] <= end[..] && key.len() == end.len());
    keys
}

// covers: G4
#[tokio::test]
async fn crash_that_takes_events_from_the_table_loses_none_also_without_an_outbox() {
    let tables = Memory::default();
    let (_store, outbox) = open(&tables);
    let bob = UserId::new("bob").unwrap();
    outbox.put(client_message("alice", 10));
    until("the first event", || all(&outbox).len() == 1).await;
    // Several pieces.
    outbox.put(client_message("alice", 200_000));
    outbox.put(client_message("alice", 30));
    let payload = "{}".to_owned();
    let undelivered = OutboxEvent::Undelivered { user: "bob".into(), seq: 7, devices: vec![None], payload };
    assert!(outbox.put_undelivered(&bob, 7, undelivered));
    until("all events", || all(&outbox).len() == 4).await;
    let before: Vec<_> = all(&outbox).into_iter().map(|queued| (queued.number, queued.id, queued.event)).collect();
    let keys = event_keys(&tables);
    assert!(keys.len() > 4);
    // The table keeps a prefix of its writes.
    for kept in 0..=keys.len() {
        let crashed = tables.deep_clone();
        for key in &keys[kept..] {
            crashed.remove(Table::Outbox, key).unwrap();
        }
        crashed.remove(Table::Outbox, b"wbob").unwrap();
        let without = memory::open(&crashed, options(false)).unwrap();
        without.close().await.unwrap();
        let (_store, outbox) = open(&crashed);
        let after: Vec<_> = all(&outbox).into_iter().map(|queued| (queued.number, queued.id, queued.event)).collect();
        assert_eq!(after, before, "{kept} pieces kept");
        let reported = if kept < keys.len() { 7 } else { 0 };
        assert_eq!(outbox.reported(&bob).unwrap(), reported, "{kept} pieces kept");
    }
}

#[tokio::test]
async fn removed_events_stay_removed_and_their_numbers_unused() {
    let tables = Memory::default();
    let (store, outbox) = open(&tables);
    (0..3).for_each(|_| outbox.put(client_message("alice", 10)));
    until("all events", || all(&outbox).len() == 3).await;
    let keys = event_keys(&tables);
    outbox.remove(3);
    until("the removal", || outbox.status().removed == 3).await;
    assert!(!keys.is_empty() && event_keys(&tables).is_empty());
    // Neither a crash nor a clean stop repeats them, although the log still has them.
    let crashed = tables.deep_clone();
    store.close().await.unwrap();
    for tables in [crashed, tables] {
        let (_store, outbox) = open(&tables);
        assert!(all(&outbox).is_empty());
        outbox.put(client_message("alice", 10));
        until("the next event", || all(&outbox).len() == 1).await;
        assert_eq!(all(&outbox)[0].number, 4);
    }
}

#[tokio::test]
async fn crash_that_takes_a_removal_from_the_table_repeats_no_event_before_a_later_one() {
    let tables = Memory::default();
    let (store, outbox) = open(&tables);
    outbox.put(client_message("alice", 200_000));
    until("the first event", || all(&outbox).len() == 1).await;
    let with_removed = tables.deep_clone();
    outbox.remove(1);
    until("the removal", || outbox.status().removed == 1).await;
    outbox.put(client_message("alice", 10));
    until("the second event", || all(&outbox).len() == 1).await;
    // The log of the crashed store has the second event. Its table has the first, as before the removal, or a part of it.
    let keys = event_keys(&with_removed);
    for kept in 0..=keys.len() {
        let crashed = tables.deep_clone();
        event_keys(&crashed).iter().try_for_each(|key| crashed.remove(Table::Outbox, key)).unwrap();
        crashed.remove(Table::Outbox, b"removed").unwrap();
        for key in &keys[..kept] {
            crashed.put(Table::Outbox, key, &with_removed.get(Table::Outbox, key).unwrap().unwrap()).unwrap();
        }
        let (_store, outbox) = open(&crashed);
        let numbers: Vec<u64> = all(&outbox).iter().map(|queued| queued.number).collect();
        assert_eq!(numbers, [2], "{kept} pieces kept");
    }
    store.close().await.unwrap();
}

#[tokio::test]
async fn crash_that_takes_a_removal_and_keeps_a_later_one_leaves_a_store_that_opens() {
    let tables = Memory::default();
    let (store, outbox) = open(&tables);
    for n in 1..=4 {
        outbox.put(client_message("alice", 10));
        until("an event", || all(&outbox).len() == n).await;
    }
    store.close().await.unwrap();
    drop((store, outbox));
    // The removals of the third event and of the number are there, and that of the first two is not.
    tables.remove(Table::Outbox, &event_key(3, 0)).unwrap();
    tables.put(Table::Outbox, b"removed", &3_u64.to_be_bytes()).unwrap();
    let (_store, outbox) = open(&tables);
    assert_eq!(all(&outbox).iter().map(|queued| queued.number).collect::<Vec<_>>(), [4]);
    assert_eq!(outbox.status().removed, 3);
}

#[tokio::test]
async fn erasure_keeps_events_of_a_later_log() {
    let tables = Memory::default();
    let (store, outbox) = open(&tables);
    for n in 1..=3 {
        outbox.put(client_message("alice", 10));
        until("an event", || all(&outbox).len() == n).await;
    }
    drop((store, outbox));
    // As the commit thread does, for an item that was written after the second event.
    let logs = LogCache::new(Arc::new(tables.clone()), LossyRestarts::default(), 0);
    let (queue, clock) = (Queue::new(1, Duration::ZERO), Clock::new(0, Arc::default()));
    let outbox = options(true).outbox.unwrap();
    let outbox = embedded::outbox::Outbox::open(Arc::new(tables), queue, Arc::new(logs), clock, outbox).unwrap();
    assert_eq!(outbox.erase_next("alice", 0, 2).unwrap(), Some((1, true)));
    assert_eq!(outbox.erase_next("alice", 1, 2).unwrap(), Some((2, true)));
    assert_eq!(outbox.erase_next("alice", 2, 2).unwrap(), None);
    let numbers: Vec<u64> = outbox.read(0, 9, 9_999).unwrap().iter().map(|queued| queued.number).collect();
    assert_eq!(numbers, [3]);
}

/// An engine whose WAL takes no record while it is full, although space was reserved; and whose tables have little
/// space, if so set.
#[derive(Default)]
struct FullWal {
    tables: Memory,
    is_full: AtomicBool,
    has_little: AtomicBool,
}

impl Intercept for FullWal {
    fn memory(&self) -> &Memory {
        &self.tables
    }

    fn on_append_record(&self, number: u64, record: &[u8]) -> Result<(), EngineError> {
        if self.is_full.load(Ordering::SeqCst) {
            return Err(EngineError::no_space("the disk is full"));
        }
        self.tables.append_record(number, record)
    }

    fn on_table_space(&self) -> TableSpace {
        if self.has_little.load(Ordering::SeqCst) { TableSpace::Little } else { TableSpace::Enough }
    }
}

// covers: G4
#[tokio::test]
async fn events_of_a_commit_that_is_never_written_are_counted_and_the_store_opens() {
    let engine = Arc::new(FullWal::default());
    let store = embedded::open(engine.clone(), options(true)).unwrap();
    let outbox = store.outbox().unwrap();
    for n in 1..=2 {
        outbox.put(client_message("alice", 10));
        until("an event", || all(&outbox).len() == n).await;
    }
    engine.is_full.store(true, Ordering::SeqCst);
    // One event with a commit, and one alone.
    outbox.put(client_message("alice", 10));
    let payload = Payload::encode(0, None, None).unwrap();
    store.append(Append::new(payload, vec![UserId::new("bob").unwrap()])).await.unwrap_err();
    outbox.put(client_message("alice", 10));
    // A backup has them, whether or not their commit is written later.
    let mut backup = Vec::new();
    store.backup(&mut backup).unwrap();
    store.close().await.unwrap();
    assert_eq!(outbox.status().lost, 2);
    drop((store, outbox));
    let (_store, outbox) = open(&engine.tables);
    until("the report of the drops", || all(&outbox).len() == 3).await;
    let last = all(&outbox).pop().unwrap();
    let OutboxEvent::Overflow { lost, .. } = last.event else { panic!("{last:?}") };
    assert_eq!((last.number, lost), (3, vec![(EventKind::Message as u8, 2)]));
}

#[tokio::test]
async fn event_alone_waits_for_space_in_the_log_and_is_written_then() {
    let engine = Arc::new(FullWal::default());
    let store = embedded::open(engine.clone(), options(true)).unwrap();
    let outbox = store.outbox().unwrap();
    engine.is_full.store(true, Ordering::SeqCst);
    (0..3).for_each(|_| outbox.put(client_message("alice", 10)));
    until("the suspension", || store.full_reason().is_some()).await;
    assert!(all(&outbox).is_empty());
    engine.is_full.store(false, Ordering::SeqCst);
    until("the events", || all(&outbox).len() == 3).await;
    assert_eq!(all(&outbox).iter().map(|queued| queued.number).collect::<Vec<_>>(), [1, 2, 3]);
    // Removals continue while the tables have little space.
    engine.has_little.store(true, Ordering::SeqCst);
    outbox.remove(3);
    until("the removal", || outbox.status().removed == 3).await;
    engine.has_little.store(false, Ordering::SeqCst);
    store.close().await.unwrap();
}
