//! Tests of merges of small blocks: how many blocks a log has, and a power cut at every write of a merge.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;

use super::{intercept::Intercept, power_cut::Cut, wait::until};
use crate::{
    embedded::{
        self,
        options::{Options, Tuning},
        tables::{
            DiskOptions,
            contract::{EngineError, Table, Tables},
            memory::{self, Memory},
        },
        wal::contract::Wal,
    },
    message::{Payload, Seq, UserId},
    store::{Append, Limits, ReadLimit, SessionReport, Store},
};

/// Engine in memory that counts the blocks that are read, and the bytes of those that are written.
#[derive(Clone, Default)]
struct Counted {
    tables: Memory,
    /// Blocks read, and bytes written.
    counts: Arc<Mutex<(usize, usize)>>,
}

impl Intercept for Counted {
    fn memory(&self) -> &Memory {
        &self.tables
    }

    fn on_read(&self, table: Table, _: &bytes::Bytes) {
        self.counts.lock().0 += usize::from(table == Table::Log);
    }

    fn on_put(&self, table: Table, key: &[u8], value: &[u8]) -> Result<(), EngineError> {
        self.counts.lock().1 += if table == Table::Log { value.len() } else { 0 };
        self.tables.put(table, key, value)
    }
}

fn options(flush_delay: Duration) -> Options {
    let tuning = Tuning { flush_delay, ..Tuning::default() };
    Options { tuning, limits: Limits { free_bytes: 0, ..Limits::default() }, ..Options::default() }
}

fn user() -> UserId {
    UserId::new("a").unwrap()
}

fn payload() -> Payload {
    Payload::encode(0, Some(&format!("\"{}\"", "x".repeat(280))), Some("N")).unwrap()
}

/// Appends messages one by one. Each is flushed before the next, because the flush has no delay. Returns how many were
/// answered.
async fn append(store: &dyn Store, count: usize) -> u64 {
    for n in 0..count {
        if store.append(Append::new(payload(), vec![user()])).await.is_err() {
            return n as u64;
        }
    }
    count as u64
}

fn sequences(store: &dyn Store) -> Vec<Seq> {
    let all = ReadLimit { entries: usize::MAX, bytes: usize::MAX };
    store.read(&user(), 0, all).unwrap().entries.iter().map(|entry| entry.seq).collect()
}

/// Counts the entries of all blocks. An entry in two blocks counts twice.
fn stored_entries(tables: &Memory) -> u64 {
    let mut entries = 0;
    let counted = tables.summaries(&[], &mut |_, summary| {
        entries += u64::from(summary.unwrap().entries);
        true
    });
    counted.unwrap();
    entries
}

#[tokio::test]
async fn log_of_single_messages_has_few_blocks_and_is_read_in_few_reads() {
    const COUNT: usize = 1_500;
    let counted = Counted::default();
    let store = embedded::open(Arc::new(counted.clone()), options(Duration::ZERO)).unwrap();
    append(&*store, COUNT).await;
    until("the flush", || counted.tables.record_numbers().is_none()).await;
    let blocks = counted.tables.blocks_of("a");
    assert!(blocks <= 48, "{blocks} blocks of {COUNT} messages");
    let written = counted.counts.lock().1;
    let bytes = COUNT * (payload().as_bytes().len() + 16);
    assert!(written <= 7 * bytes, "{written} bytes written for {bytes} bytes of entries");
    counted.counts.lock().0 = 0;
    let all: Vec<Seq> = (1..=COUNT as u64).collect();
    assert_eq!(sequences(&*store), all);
    let reads = counted.counts.lock().0;
    assert!(reads <= blocks, "{reads} reads of {blocks} blocks");
    assert_eq!(stored_entries(&counted.tables), COUNT as u64);
    // In the middle of a merged block.
    store.report(&user(), SessionReport { acknowledged: Some((1, 700)), ..SessionReport::default() });
    let state = || store.state(&user()).unwrap();
    until("the trim", || counted.tables.blocks_of("a") < blocks && state().pending == 800).await;
    until("the count", || state().pending_bytes == 800 * payload().as_bytes().len() as u64).await;
    for after in [699, 700, 701, 1_100, 1_499] {
        let limit = ReadLimit { entries: 3, bytes: 1 << 20 };
        let read = store.read(&user(), after, limit).unwrap().entries;
        let expected = (after.max(700) + 1..=COUNT as u64).take(3).collect::<Vec<_>>();
        assert_eq!(read.iter().map(|entry| entry.seq).collect::<Vec<_>>(), expected);
    }
    store.close().await.unwrap();
}

/// Cuts the power after a number of writes, and checks the store. Returns false if no write failed.
async fn cut_after(filled: &Memory, flushed: u64, writes: i64) -> bool {
    let (tables, before) = (filled.deep_clone(), filled.deep_clone());
    let cut = Cut::new(&tables, writes);
    let mut answered = flushed;
    if let Ok(store) = embedded::open(cut.clone(), options(Duration::ZERO)) {
        answered += append(&*store, 4).await;
        until("the flush, or the power cut", || cut.has_failed() || tables.record_numbers().is_none()).await;
        _ = store.close().await;
    }
    let failed = cut.has_failed();
    let tables = cut.after_power_cut(before);
    for flush_delay in [Duration::from_secs(3600), Duration::ZERO] {
        let store = memory::open(&tables, options(flush_delay)).unwrap();
        let found = sequences(&*store);
        let count = found.len() as u64;
        assert_eq!(found, (1..=count).collect::<Vec<_>>(), "cut after {writes}");
        assert!((answered..=answered + 1).contains(&count), "{count} of {answered}, cut after {writes}");
        assert_eq!(store.state(&user()).unwrap().pending, count, "cut after {writes}");
        until("the flush", || flush_delay > Duration::ZERO || tables.record_numbers().is_none()).await;
        assert_eq!(sequences(&*store), found, "cut after {writes}");
        if flush_delay.is_zero() {
            assert_eq!(stored_entries(&tables), count, "an entry is in two blocks, cut after {writes}");
        }
        store.close().await.unwrap();
    }
    failed
}

// covers: G1, G2
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn power_cut_during_merge_loses_and_repeats_no_entry() {
    let filled = Memory::default();
    let store = memory::open(&filled, options(Duration::ZERO)).unwrap();
    append(&*store, 29).await;
    until("the flush", || filled.record_numbers().is_none()).await;
    store.close().await.unwrap();
    drop(store);
    assert!(filled.blocks_of("a") > 10, "{} blocks, which the next flushes merge", filled.blocks_of("a"));
    let mut cuts = 0;
    while cut_after(&filled, 29, cuts).await {
        cuts += 1;
    }
    assert!(cuts > 50, "more than 50 writes, not {cuts}");
}

/// Readers of a file see blocks come and go while the commit thread merges them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_during_merges_miss_no_entry() {
    let home = tempfile::tempdir().unwrap();
    let tuning = Tuning { flush_delay: Duration::ZERO, ..Tuning::default() };
    let limits = Limits { free_bytes: 0, ..Limits::default() };
    let disk = DiskOptions { limits, tuning, ..DiskOptions::new(home.path().join("store")) };
    let store = embedded::tables::open(disk).unwrap();
    let reader = {
        let store = store.clone();
        std::thread::spawn(move || {
            let mut last = 0;
            while last < 300 {
                let found = sequences(&*store);
                assert_eq!(found, (1..=found.len() as u64).collect::<Vec<_>>());
                last = found.len();
            }
        })
    };
    append(&*store, 300).await;
    tokio::task::spawn_blocking(|| reader.join().unwrap()).await.unwrap();
    store.close().await.unwrap();
}
