//! Tests of a power cut after the nth write, for every n. No answered message is lost.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;

use super::intercept::Intercept;
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
    message::{DispatchId, Payload, Seq, UserId},
    store::{Append, AppendResult, Idempotency, ReadLimit, SessionReport, Store, StoreError},
};

/// An engine that fails after a number of writes.
///
/// A power cut leaves what the contract of an [`Engine`](embedded::engine::Engine) allows: of the WAL, the value log
/// and the tables a prefix each, with at least everything that was synced.
pub(in crate::embedded) struct Cut {
    /// The current content, as readers see it.
    tables: Memory,
    /// Writes that succeed before the power cut.
    pub(super) writes_left: AtomicI64,
    /// All writes, and how many of them are durable.
    written: Mutex<WriteLog>,
    /// Seed that chooses the length of each prefix.
    seed: u64,
}

#[derive(Default)]
struct WriteLog {
    /// Appended records, and removed ones (`None`).
    wal: Vec<(u64, Option<Vec<u8>>)>,
    wal_durable: usize,
    /// Keys of blocks whose values may still be lost.
    blocks: Vec<(usize, Vec<u8>)>,
    tables: Vec<Change>,
    tables_durable: usize,
}

#[derive(Clone)]
struct Change {
    table: Table,
    key: Vec<u8>,
    value: Option<Vec<u8>>,
}

impl Cut {
    pub(in crate::embedded) fn new(tables: &Memory, writes: i64) -> Arc<Self> {
        let written = Mutex::default();
        Arc::new(Self {
            tables: tables.clone(),
            writes_left: AtomicI64::new(writes),
            written,
            seed: writes.unsigned_abs(),
        })
    }

    fn write(&self) -> Result<(), EngineError> {
        if self.writes_left.fetch_sub(1, Ordering::SeqCst) > 0 {
            Ok(())
        } else {
            Err(EngineError::new("the power has failed"))
        }
    }

    fn change_wal(&self, number: u64, record: Option<&[u8]>) -> Result<(), EngineError> {
        self.write()?;
        self.written.lock().wal.push((number, record.map(<[u8]>::to_vec)));
        apply_record(&self.tables, number, record)
    }

    fn change(&self, table: Table, key: &[u8], value: Option<&[u8]>) -> Result<(), EngineError> {
        self.write()?;
        let mut written = self.written.lock();
        // A block that replaces another one is durable before its location is set.
        if table.is_in_value_log() && value.is_some() && self.tables.get(table, key)?.is_none() {
            let at = written.tables.len();
            written.blocks.push((at, key.to_vec()));
        }
        written.tables.push(Change { table, key: key.to_vec(), value: value.map(<[u8]>::to_vec) });
        drop(written);
        match value {
            Some(value) => self.tables.put(table, key, value),
            None => self.tables.remove(table, key),
        }
    }

    /// Returns whether the power has failed.
    pub(in crate::embedded) fn has_failed(&self) -> bool {
        self.writes_left.load(Ordering::SeqCst) < 0
    }

    /// Returns the content after the power cut, given that from before the test.
    pub(in crate::embedded) fn after_power_cut(&self, before: Memory) -> Memory {
        self.after_power_cut_with(before, self.seed)
    }

    /// As [`after_power_cut`](Self::after_power_cut), with another seed, so with other prefixes of the same writes.
    pub(in crate::embedded) fn after_power_cut_with(&self, before: Memory, mut seed: u64) -> Memory {
        let written = self.written.lock();
        let mut choose = |from: usize, to: usize| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            // The complete and the empty prefix are the most frequent.
            match (seed >> 33) % 4 {
                0 => from,
                1 => to,
                _ => from + (seed >> 35) as usize % (to - from + 1),
            }
        };
        let wal = choose(written.wal_durable, written.wal.len());
        let tables = choose(written.tables_durable, written.tables.len());
        let blocks = choose(0, written.blocks.len());
        let apply = |change: &Change, garbage: bool| match &change.value {
            Some(_) if garbage => before.put(change.table, &change.key, b""),
            Some(value) => before.put(change.table, &change.key, value),
            None => before.remove(change.table, &change.key),
        };
        // A removal from the WAL is never synced, but it follows a checkpoint.
        written.wal[..wal].iter().for_each(|(at, record)| apply_record(&before, *at, record.as_deref()).unwrap());
        for (at, change) in written.tables[..tables].iter().enumerate() {
            let lost = written.blocks[blocks..].iter().any(|(write, _)| *write == at);
            apply(change, lost).unwrap();
        }
        drop(written);
        before
    }
}

/// Appends a record, or removes it (`None`).
fn apply_record(memory: &Memory, number: u64, record: Option<&[u8]>) -> Result<(), EngineError> {
    record.map_or_else(|| memory.remove_record(number), |record| memory.append_record(number, record))
}

impl Intercept for Cut {
    fn memory(&self) -> &Memory {
        &self.tables
    }

    fn on_append_record(&self, number: u64, record: &[u8]) -> Result<(), EngineError> {
        self.change_wal(number, Some(record))
    }

    fn on_remove_record(&self, number: u64) -> Result<(), EngineError> {
        self.change_wal(number, None)
    }

    fn on_put(&self, table: Table, key: &[u8], value: &[u8]) -> Result<(), EngineError> {
        self.change(table, key, Some(value))
    }

    fn on_remove(&self, table: Table, key: &[u8]) -> Result<(), EngineError> {
        self.change(table, key, None)
    }

    fn on_rollback_last(&self, number: u64) -> Result<(), EngineError> {
        self.change_wal(number, None)?;
        let mut written = self.written.lock();
        written.wal_durable = written.wal.len();
        Ok(())
    }

    fn on_flush(&self) -> Result<(), EngineError> {
        self.write()
    }

    fn on_sync(&self) -> Result<(), EngineError> {
        self.write()?;
        let mut written = self.written.lock();
        written.wal_durable = written.wal.len();
        Ok(())
    }

    fn on_barrier(&self) -> Result<(), EngineError> {
        self.on_sync()?;
        self.written.lock().blocks.clear();
        Ok(())
    }

    fn on_checkpoint(&self) -> Result<(), EngineError> {
        self.on_barrier()?;
        let mut written = self.written.lock();
        written.tables_durable = written.tables.len();
        Ok(())
    }
}

/// Last sequence that is acknowledged between two flushes. It shifts the blocks of the second flush.
///
/// With this value a block of the second flush spans the last block of the first.
const ACKNOWLEDGED: Seq = 14;

const USERS: [&str; 2] = ["a", "b"];

fn options(flush_delay: Duration) -> Options {
    let tuning = Tuning { flush_delay, ..Tuning::default() };
    Options { tuning, ..Options::default() }
}

fn user(at: usize) -> UserId {
    UserId::new(USERS[at]).unwrap()
}

/// Creates a payload of 3 kB, so that a few dozen fill several blocks.
fn payload() -> Payload {
    Payload::encode(0, Some(&format!("\"{}\"", "x".repeat(3000))), None).unwrap()
}

/// Reads everything above `after`, a few entries at a time, as a session would.
fn sequences(store: &dyn Store, at: usize, mut after: Seq) -> Vec<Seq> {
    let mut sequences = Vec::new();
    loop {
        let entries = store.read(&user(at), after, ReadLimit { entries: 7, bytes: 1 << 30 }).unwrap().entries;
        let Some(last) = entries.last() else { return sequences };
        after = last.seq;
        sequences.extend(entries.iter().map(|entry| entry.seq));
    }
}

/// Appends until the power fails. Returns the last answered sequence of each user.
async fn append(store: &dyn Store, count: usize) -> [Seq; 2] {
    let mut answered = [0; 2];
    for n in 0..count {
        let to: Vec<usize> = if n % 3 == 0 { vec![0, 1] } else { vec![0] };
        let recipients = to.iter().map(|at| user(*at)).collect();
        let Ok(appended) = store.append(Append::new(payload(), recipients)).await else { break };
        for (at, seq) in to.into_iter().zip(appended.seqs) {
            answered[at] = seq.unwrap();
        }
    }
    answered
}

/// Waits until the WAL is flushed or the power has failed, so that the result does not depend on timing.
async fn flushed_or_cut(cut: &Cut) {
    let is_flushed = || cut.tables.record_numbers().is_none();
    let waited = tokio::time::timeout(Duration::from_secs(60), async {
        while cut.writes_left.load(Ordering::SeqCst) >= 0 && !is_flushed() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    waited.await.expect("the WAL is flushed, or the power fails");
}

/// Cuts the power after a number of writes, and checks the store. Returns false if no write failed.
async fn cut_after(writes: i64) -> bool {
    let tables = Memory::default();
    // Entries in the WAL are flushed while the power fails.
    let store = crate::embedded::tables::memory::open(&tables, options(Duration::from_secs(3600))).unwrap();
    let mut answered = append(&*store, 40).await;
    store.close().await.unwrap();
    drop(store);

    let before = tables.deep_clone();
    let cut = Cut::new(&tables, writes);
    let mut failed = true;
    if let Ok(store) = embedded::open(cut.clone(), options(Duration::ZERO)) {
        let more = append(&*store, 6).await;
        answered = [answered[0].max(more[0]), answered[1].max(more[1])];
        flushed_or_cut(&cut).await;
        failed = store.close().await.is_err();
    }

    // After the power cut: some entries are acknowledged, some are appended, and everything is flushed again.
    let tables = cut.after_power_cut(before);
    let store = crate::embedded::tables::memory::open(&tables, options(Duration::from_secs(3600))).unwrap();
    for (at, answered) in answered.iter().enumerate() {
        let found = sequences(&*store, at, 0);
        assert_eq!(found, (1..=found.len() as Seq).collect::<Vec<_>>(), "no gap, cut after {writes}");
        assert!(found.len() as Seq >= *answered, "all answered messages, cut after {writes}");
        store.report(&user(at), SessionReport { acknowledged: Some((1, ACKNOWLEDGED)), ..SessionReport::default() });
    }
    append(&*store, 9).await;
    store.close().await.unwrap();
    drop(store);
    let store = crate::embedded::tables::memory::open(&tables, options(Duration::ZERO)).unwrap();
    let flushed = async {
        while tables.record_numbers().is_some() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), flushed).await.expect("the WAL is flushed");
    for at in 0..2 {
        let head = store.state(&user(at)).unwrap().head;
        assert_eq!(
            sequences(&*store, at, ACKNOWLEDGED),
            (ACKNOWLEDGED + 1..=head).collect::<Vec<_>>(),
            "all pending messages, cut after {writes}"
        );
    }
    store.close().await.unwrap();
    failed
}

// covers: G1
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn power_cut_at_any_write_keeps_answered_messages() {
    let mut cuts = 0;
    while cut_after(cuts).await {
        cuts += 1;
    }
    assert!(cuts > 60, "more than 60 writes are cut, not {cuts}");
}

/// Appends messages that fill several records, in one commit, each with an idempotency id.
async fn append_batch(store: &dyn Store) -> Result<Vec<AppendResult>, StoreError> {
    let append = |n: u64| {
        let id = DispatchId::new(&format!("batch {n}")).unwrap();
        let idempotency = Some(Idempotency { id, online: vec![true, false], rejected: Vec::new() });
        Append { idempotency, ..Append::new(payload(), vec![user(0), user(1)]) }
    };
    store.append_all((0..BATCH).map(append).collect()).await
}

const BATCH: u64 = 60;

/// Cuts the power during a commit of several records, and checks the store. Returns false if no write failed.
async fn batch_cut_after(writes: i64) -> bool {
    let tables = Memory::default();
    let cut = Cut::new(&tables, writes);
    let mut answered = false;
    if let Ok(store) = embedded::open(cut.clone(), options(Duration::ZERO)) {
        answered = append_batch(&*store).await.is_ok();
        flushed_or_cut(&cut).await;
        _ = store.close().await;
    }
    let failed = cut.writes_left.load(Ordering::SeqCst) < 0;
    let tables = cut.after_power_cut(Memory::default());
    for flush_delay in [Duration::from_secs(3600), Duration::ZERO] {
        let store = crate::embedded::tables::memory::open(&tables, options(flush_delay)).unwrap();
        let counts = [0, 1].map(|at| sequences(&*store, at, 0).len() as u64);
        assert!(counts == [0, 0] || counts == [BATCH, BATCH], "{counts:?}, cut after {writes}");
        assert!(counts == [BATCH, BATCH] || !answered, "cut after {writes}");
        // A retry returns the first result, or appends now. In both cases each message is stored once.
        let retried = append_batch(&*store).await.unwrap();
        assert!(retried.iter().all(|one| one.duplicate == (counts[0] > 0)), "cut after {writes}");
        assert!(retried.iter().all(|one| one.summary.as_ref().is_some_and(|one| (one.online, one.offline) == (1, 1))));
        assert_eq!(sequences(&*store, 0, 0).len() as u64, BATCH);
        store.close().await.unwrap();
    }
    failed
}

// covers: G1
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn power_cut_keeps_commit_of_several_records_and_its_ids_atomically() {
    let mut cuts = 0;
    while batch_cut_after(cuts).await {
        cuts += 1;
    }
    assert!(cuts > 20, "more than 20 writes are cut, not {cuts}");
}

/// The power fails within a commit with a collapse and an append that evicts entries.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn power_cut_keeps_replaced_entries_until_the_commit_is_written() {
    use crate::{message::CollapseKey, store::Limits};
    let limits = Limits { messages: 3, free_bytes: 0, ..Limits::default() };
    let with = |flush_delay| Options { limits, ..options(flush_delay) };
    let key = || Some(CollapseKey::new("k").unwrap());
    for writes in 0..40 {
        let tables = Memory::default();
        let store = crate::embedded::tables::memory::open(&tables, with(Duration::ZERO)).unwrap();
        for collapse in [None, key(), None] {
            store.append(Append { collapse, ..Append::new(payload(), vec![user(0)]) }).await.unwrap();
        }
        while tables.record_numbers().is_some() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        store.close().await.unwrap();
        drop(store);
        let before = tables.deep_clone();
        let cut = Cut::new(&tables, writes);
        if let Ok(store) = embedded::open(cut.clone(), with(Duration::from_secs(3600))) {
            let newer = Append { collapse: key(), ..Append::new(payload(), vec![user(0)]) };
            _ = store.append_all(vec![newer, Append::new(payload(), vec![user(0)])]).await;
            _ = store.close().await;
        }
        let tables = cut.after_power_cut(before);
        let store = crate::embedded::tables::memory::open(&tables, with(Duration::from_secs(3600))).unwrap();
        let found = sequences(&*store, 0, 0);
        assert!(found == [1, 2, 3] || found == [1, 3, 4], "{found:?}, cut after {writes}");
        store.close().await.unwrap();
    }
}

/// The power fails while flushed records are removed. They are flushed again, and the store is opened once more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ids_survive_interrupted_and_repeated_flush() {
    let once = |n: u64| {
        let id = DispatchId::new(&format!("order {n}")).unwrap();
        Append {
            idempotency: Some(Idempotency { id, online: vec![true], rejected: Vec::new() }),
            ..Append::new(payload(), vec![user(0)])
        }
    };
    for writes in 0..80 {
        let tables = Memory::default();
        let store = crate::embedded::tables::memory::open(&tables, options(Duration::from_secs(3600))).unwrap();
        for n in 0..10 {
            store.append(once(n)).await.unwrap();
        }
        store.close().await.unwrap();
        drop(store);
        let before = tables.deep_clone();
        let cut = Cut::new(&tables, writes);
        if let Ok(store) = embedded::open(cut.clone(), options(Duration::ZERO)) {
            for _ in 0..100 {
                if tables.record_numbers().is_none() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            _ = store.close().await;
        }
        let tables = cut.after_power_cut(before);
        let store = crate::embedded::tables::memory::open(&tables, options(Duration::ZERO)).unwrap();
        while tables.record_numbers().is_some() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        store.close().await.unwrap();
        drop(store);
        let store = crate::embedded::tables::memory::open(&tables, options(Duration::from_secs(3600))).unwrap();
        for n in 0..10 {
            let retried = store.append(once(n)).await.unwrap();
            assert!(retried.duplicate, "order {n} is a duplicate, cut after {writes}");
        }
        store.close().await.unwrap();
    }
}
