//! Tests that one turn of the commit thread does little work on the value log, however long a log is.
//!
//! They count blocks and not time, so that they do not depend on the machine.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bytes::Bytes;
use parking_lot::Mutex;

use super::{intercept::Intercept, wait::until};
use crate::{
    embedded::{
        self,
        options::{Options, Tuning},
        tables::{
            contract::{EngineError, Table, Tables},
            memory::Memory,
        },
        wal::contract::Wal,
    },
    message::{CollapseKey, Payload, Seq, UserId},
    store::{Append, Limits, Overflow, ReadLimit, SessionReport, Store},
};

/// Limit of blocks that the commit thread may read in one turn.
const READS_MAX: u64 = 48;

/// Limit of blocks that the commit thread may write or remove in one turn.
const CHANGES_MAX: u64 = 600;

/// Bytes of data of a message of which a block has one.
const LARGE: usize = 25_000;

/// Bytes of data of a message of which a block has some forty.
const SMALL: usize = 1_000;

/// Counts accesses to blocks of the value log.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    /// Blocks read.
    read: u64,
    /// Bytes of these blocks.
    read_bytes: u64,
    /// Blocks written or removed.
    changed: u64,
}

/// Engine in memory that counts accesses to blocks, in all and in each turn of the commit thread.
#[derive(Clone, Default)]
struct Probe {
    tables: Memory,
    /// Time that a write of a block takes.
    write_time: Duration,
    /// Removals of blocks have no effect, as if a crash came before them.
    loses_removals: bool,
    /// All accesses, those of the current turn, and the most of one turn.
    counts: Arc<Mutex<[Counts; 3]>>,
}

impl Probe {
    fn count(&self, table: Table, read: u64, read_bytes: u64, changed: u64) {
        if table == Table::Log {
            for counts in &mut self.counts.lock()[..2] {
                counts.read += read;
                counts.read_bytes += read_bytes;
                counts.changed += changed;
            }
        }
    }

    /// Returns all accesses since the last call, and the most of one turn.
    fn take(&self) -> (Counts, Counts) {
        self.end_turn();
        let [all, _, most] = std::mem::take(&mut *self.counts.lock());
        (all, most)
    }

    fn end_turn(&self) {
        let [_, turn, most] = &mut *self.counts.lock();
        *most = Counts {
            read: most.read.max(turn.read),
            read_bytes: most.read_bytes.max(turn.read_bytes),
            changed: most.changed.max(turn.changed),
        };
        *turn = Counts::default();
    }
}

impl Intercept for Probe {
    fn memory(&self) -> &Memory {
        &self.tables
    }

    fn on_read(&self, table: Table, value: &Bytes) {
        self.count(table, 1, value.len() as u64, 0);
    }

    fn on_put(&self, table: Table, key: &[u8], value: &[u8]) -> Result<(), EngineError> {
        self.count(table, 0, 0, 1);
        if table == Table::Log && !self.write_time.is_zero() {
            std::thread::sleep(self.write_time);
        }
        self.tables.put(table, key, value)
    }

    fn on_remove(&self, table: Table, key: &[u8]) -> Result<(), EngineError> {
        self.count(table, 0, 0, 1);
        if table == Table::Log && self.loses_removals { Ok(()) } else { self.tables.remove(table, key) }
    }

    fn on_collect_garbage(&self) {
        self.end_turn();
    }
}

fn user(id: &str) -> UserId {
    UserId::new(id).unwrap()
}

fn payload(bytes: usize) -> Payload {
    Payload::encode(0, Some(&format!("\"{}\"", "x".repeat(bytes))), Some("N")).unwrap()
}

fn options() -> Options {
    let tuning =
        Tuning { flush_delay: Duration::ZERO, expiry_interval: Duration::from_millis(20), ..Tuning::default() };
    let limits = Limits { messages: u64::MAX, bytes: u64::MAX, free_bytes: 0, ..Limits::default() };
    Options { limits, tuning, ..Options::default() }
}

fn open(probe: &Probe, options: &Options) -> Arc<dyn Store> {
    embedded::open(Arc::new(probe.clone()), options.clone()).unwrap()
}

async fn until_flushed(probe: &Probe) {
    until("the flush", || probe.tables.record_numbers().is_none()).await;
}

/// Appends `count` messages to each user in commits of a few MiB, and waits until they are in the value log.
async fn fill(probe: &Probe, store: &dyn Store, users: &[&str], count: usize, append: impl Fn(usize) -> Append) {
    let recipients: Vec<UserId> = users.iter().map(|id| user(id)).collect();
    let numbers: Vec<usize> = (0..count).collect();
    for part in numbers.chunks(100) {
        let appends = part.iter().map(|n| Append { recipients: recipients.clone(), ..append(*n) }).collect();
        for result in store.append_all(appends).await.unwrap() {
            assert!(result.seqs.iter().all(Result::is_ok));
        }
    }
    until_flushed(probe).await;
}

fn message(bytes: usize) -> impl Fn(usize) -> Append {
    let payload = payload(bytes);
    move |_| Append::new(payload.clone(), Vec::new())
}

/// Asserts that no turn read or changed too many blocks. Returns all accesses.
fn check_turns(probe: &Probe, what: &str) -> Counts {
    let (all, most) = probe.take();
    assert!(most.read <= READS_MAX, "{what}: {most:?} in one turn, {all:?} in all");
    assert!(most.changed <= CHANGES_MAX, "{what}: {most:?} in one turn, {all:?} in all");
    all
}

fn sequences(store: &dyn Store, id: &str) -> Vec<Seq> {
    let all = ReadLimit { entries: usize::MAX, bytes: usize::MAX };
    store.read(&user(id), 0, all).unwrap().entries.iter().map(|entry| entry.seq).collect()
}

#[tokio::test]
async fn flush_of_long_log_writes_few_blocks_in_one_turn() {
    let mut probe = Probe::default();
    let mut options = options();
    options.tuning.flush_delay = Duration::from_secs(3600);
    let store = open(&probe, &options);
    let recipients = vec![user("a")];
    for _ in 0..14 {
        let appends = vec![Append::new(payload(2 * LARGE), recipients.clone()); 50];
        store.append_all(appends).await.unwrap();
    }
    store.close().await.unwrap();
    drop(store);
    options.tuning.flush_delay = Duration::ZERO;
    // The time limit of a step is over after a few blocks.
    probe.write_time = Duration::from_millis(1);
    probe.take();
    let store = open(&probe, &options);
    until_flushed(&probe).await;
    let (all, most) = probe.take();
    assert_eq!(all.changed, 700, "a block for each message");
    assert!(most.changed <= 20, "{most:?}");
    store.close().await.unwrap();
}

#[tokio::test]
async fn acknowledgement_and_clear_of_long_log_read_one_block_and_remove_few_in_one_turn() {
    let probe = Probe::default();
    let store = open(&probe, &options());
    fill(&probe, &*store, &["a"], 1_500, message(LARGE)).await;
    fill(&probe, &*store, &["a"], 100, message(SMALL)).await;
    probe.take();
    // In the middle of a block.
    store.report(&user("a"), SessionReport { acknowledged: Some((1, 1_520)), ..SessionReport::default() });
    until("the trim", || probe.tables.blocks_of("a") < 10).await;
    let all = check_turns(&probe, "trim");
    assert!(all.read <= 1, "{all:?}");
    let state = store.state(&user("a")).unwrap();
    let bytes = payload(SMALL).as_bytes().len() as u64;
    assert_eq!((state.pending, state.pending_bytes), (80, 80 * bytes));
    assert_eq!(sequences(&*store, "a"), (1_521..=1_600).collect::<Vec<_>>());

    fill(&probe, &*store, &["b"], 1_500, message(LARGE)).await;
    probe.take();
    assert_eq!(store.clear(&user("b")).await.unwrap(), 1_500);
    until("the clear", || probe.tables.blocks_of("b") == 0).await;
    let all = check_turns(&probe, "clear");
    assert_eq!(all.read, 0, "{all:?}");
    store.close().await.unwrap();
}

/// A flush may write the row in the middle of a trim, and remove the acknowledgement from the WAL. Then a crash may come.
#[tokio::test]
async fn trim_that_a_crash_interrupted_is_resumed() {
    let mut probe = Probe { loses_removals: true, ..Probe::default() };
    let store = open(&probe, &options());
    fill(&probe, &*store, &["a"], 5, message(LARGE)).await;
    store.report(&user("a"), SessionReport { acknowledged: Some((1, 3)), ..SessionReport::default() });
    // The commit of a later message has the report.
    fill(&probe, &*store, &["b"], 1, message(SMALL)).await;
    store.close().await.unwrap();
    drop(store);
    assert_eq!(probe.tables.blocks_of("a"), 5);
    probe.loses_removals = false;
    let store = open(&probe, &options());
    until("the trim", || probe.tables.blocks_of("a") == 2).await;
    assert_eq!((sequences(&*store, "a"), store.state(&user("a")).unwrap().pending), (vec![4, 5], 2));
    store.close().await.unwrap();
}

#[tokio::test]
async fn collapsing_messages_do_not_read_whole_log() {
    let probe = Probe::default();
    let store = open(&probe, &options());
    fill(&probe, &*store, &["a"], 200, message(LARGE)).await;
    probe.take();
    for n in 0..640 {
        let collapse = (n % 2 == 0).then(|| CollapseKey::new("state").unwrap());
        let append = Append { collapse, ..Append::new(payload(SMALL), vec![user("a")]) };
        store.append(append).await.unwrap();
    }
    until_flushed(&probe).await;
    let all = check_turns(&probe, "collapse");
    assert!(all.read_bytes < 4 << 20, "{all:?}");
    assert_eq!(store.state(&user("a")).unwrap().pending, 200 + 320 + 1);
    let expected: Vec<Seq> = (1..=200).chain((202..=840).filter(|seq| seq % 2 == 0 || *seq == 839)).collect();
    assert_eq!(sequences(&*store, "a"), expected);
    store.close().await.unwrap();
}

#[tokio::test]
async fn collapsed_entries_in_many_blocks_are_removed_in_steps() {
    let probe = Probe::default();
    let store = open(&probe, &options());
    // Each block of the first 64 has one entry with a key.
    let keyed = |n: usize| {
        let collapse = n.is_multiple_of(20).then(|| CollapseKey::new(&format!("key {n}")).unwrap());
        Append { collapse, ..Append::new(payload(2_000), Vec::new()) }
    };
    fill(&probe, &*store, &["a"], 64 * 20, keyed).await;
    probe.take();
    for n in 0..64 {
        let collapse = CollapseKey::new(&format!("key {}", n * 20)).ok();
        store.append(Append { collapse, ..Append::new(payload(SMALL), vec![user("a")]) }).await.unwrap();
    }
    until_flushed(&probe).await;
    check_turns(&probe, "collapse");
    let first: Seq = 64 * 20;
    let expected: Vec<Seq> = (1..=first).filter(|seq| seq % 20 != 1).chain(first + 1..=first + 64).collect();
    assert_eq!(sequences(&*store, "a"), expected);
    assert_eq!(store.state(&user("a")).unwrap().pending, expected.len() as u64);
    store.close().await.unwrap();
}

#[tokio::test]
async fn expiry_of_many_users_and_of_mixed_blocks_works_in_steps() {
    let probe = Probe::default();
    let options = options();
    let store = open(&probe, &options);
    let hour = Duration::from_secs(3600);
    let ids: Vec<String> = (0..250).map(|n| format!("user-{n}")).collect();
    let users: Vec<&str> = ids.iter().map(String::as_str).collect();
    let expiring = |_| Append { ttl: Some(hour), ..Append::new(payload(LARGE), Vec::new()) };
    fill(&probe, &*store, &users, 4, expiring).await;
    // Every block of this log has entries that expire and entries that do not.
    let mixed = |n: usize| Append { ttl: (n % 10 == 3).then_some(hour), ..Append::new(payload(2_000), Vec::new()) };
    fill(&probe, &*store, &["mixed"], 4_000, mixed).await;
    probe.take();
    options.ahead_ms.fetch_add(2 * 3_600_000, Ordering::Relaxed);
    let pending = |id: &str| store.state(&user(id)).unwrap().pending;
    until("the expiry", || pending("mixed") == 3_600 && users.iter().all(|id| pending(id) == 0)).await;
    until("the removal", || users.iter().all(|id| probe.tables.blocks_of(id) == 0)).await;
    let all = check_turns(&probe, "expiry");
    assert!(all.read <= 250, "only mixed blocks are read: {all:?}");
    assert_eq!(sequences(&*store, "mixed"), (1..=4_000).filter(|seq| seq % 10 != 4).collect::<Vec<_>>());
    let bytes = payload(2_000).as_bytes().len() as u64;
    assert_eq!(store.state(&user("mixed")).unwrap().pending_bytes, 3_600 * bytes);
    store.close().await.unwrap();
}

#[tokio::test]
async fn quota_of_expired_entries_in_many_blocks_is_freed_after_the_commit() {
    const COUNT: usize = 4_000;
    let probe = Probe::default();
    let mut options = options();
    options.limits.messages = COUNT as u64;
    // Only the message above the quota starts the purge.
    options.tuning.expiry_interval = Duration::from_secs(3600);
    let store = open(&probe, &options);
    let ttl = Duration::from_secs(3600);
    let mixed = |n: usize| Append { ttl: (n % 10 == 3).then_some(ttl), ..Append::new(payload(2_000), Vec::new()) };
    fill(&probe, &*store, &["a"], COUNT, mixed).await;
    probe.take();
    options.ahead_ms.fetch_add(2 * 3_600_000, Ordering::Relaxed);
    let message = || Append::new(payload(SMALL), vec![user("a")]);
    let mut rejected = 0;
    while store.append(message()).await.unwrap().seqs[0].is_err() {
        rejected += 1;
        assert!(rejected < 1_000, "the purge frees quota");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let pending = |count: u64| store.state(&user("a")).unwrap().pending == count;
    until("the purge", || pending(COUNT as u64 * 9 / 10 + 1)).await;
    check_turns(&probe, "quota");
    store.close().await.unwrap();
}

#[tokio::test]
async fn messages_above_the_quota_read_a_block_once() {
    for (limits, count) in [
        (Limits { messages: 4_000, bytes: u64::MAX, free_bytes: 0, ..Limits::default() }, 4_000),
        (Limits { messages: u64::MAX, bytes: 4_000_000, free_bytes: 0, ..Limits::default() }, 3_900),
    ] {
        for overflow in [Overflow::DropOldest, Overflow::Reject] {
            let probe = Probe::default();
            let options = Options { limits: Limits { overflow, ..limits }, ..options() };
            let store = open(&probe, &options);
            fill(&probe, &*store, &["a"], count, message(SMALL)).await;
            store.close().await.unwrap();
            drop(store);
            // After a restart, the usage in the row may be too high. So the first message above the quota counts again.
            let store = open(&probe, &options);
            probe.take();
            let (mut accepted, mut dropped) = (0, 0);
            for _ in 0..200 {
                let result = store.append(Append::new(payload(SMALL), vec![user("a")])).await.unwrap();
                accepted += u64::from(result.seqs[0].is_ok());
                dropped += result.dropped;
            }
            until_flushed(&probe).await;
            let bytes = payload(SMALL).as_bytes().len() as u64;
            let fitting = limits.messages.min(limits.bytes / bytes) - count as u64;
            match overflow {
                Overflow::Reject => assert_eq!((accepted, dropped), (fitting, 0)),
                Overflow::DropOldest => assert_eq!((accepted, dropped), (200, 200 - fitting)),
            }
            let all = check_turns(&probe, "quota");
            // Merges read the small blocks of accepted messages, most of them once.
            assert!(all.read <= 12 + 2 * accepted && all.read_bytes < 3 << 19, "{overflow:?}: {all:?}");
            store.close().await.unwrap();
        }
    }
}
