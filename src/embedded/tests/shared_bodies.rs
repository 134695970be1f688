//! Tests of bodies that several logs share: each is stored once, read by all, and freed after the last.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use super::{intercept::Intercept, power_cut::Cut, wait::until};
use crate::{
    embedded::{
        self,
        backup::restore::restore,
        file_io::file_numbers,
        offline::{inspect::Inspection, reader::OfflineReader, salvage::salvage},
        options::{Options, Tuning},
        tables::{
            DiskOptions,
            contract::{Cause, EngineError, Table, Tables},
            files::VALUE_LOG,
            memory::{self, Memory},
            meta::FLUSHED_KEY,
            open::open_engine,
            schema::wal_key,
        },
        value_log::bodies::BodyId,
        wal::contract::Wal,
    },
    message::{Payload, Seq, UserId},
    store::{Append, Limits, ReadLimit, SessionReport, Store, StoreError},
};

fn options(flush_delay: Duration) -> Options {
    let tuning = Tuning { flush_delay, ..Tuning::default() };
    Options { tuning, limits: Limits { free_bytes: 0, ..Limits::default() }, ..Options::default() }
}

fn users(count: usize) -> Vec<UserId> {
    (0..count).map(|n| UserId::new(&format!("user-{n:04}")).unwrap()).collect()
}

/// Creates the payload of message `n`. No two messages have the same.
fn payload(n: u64, bytes: usize) -> Payload {
    Payload::encode(0, Some(&format!("\"message {n} {}\"", "x".repeat(bytes))), None).unwrap()
}

/// Reads a user's log, and checks that entry `n` has the payload of message `n`. Returns the sequences.
fn read(store: &dyn Store, user: &UserId, bytes: usize) -> Result<Vec<Seq>, StoreError> {
    let entries = store.read(user, 0, ReadLimit { entries: 1000, bytes: 1 << 30 })?.entries;
    for entry in &entries {
        assert_eq!(entry.payload.as_bytes(), payload(entry.seq, bytes).as_bytes(), "entry {} of {user:?}", entry.seq);
    }
    Ok(entries.iter().map(|entry| entry.seq).collect())
}

fn acknowledge(store: &dyn Store, user: &UserId, through: Seq) {
    store.report(user, SessionReport { acknowledged: Some((1, through)), ..SessionReport::default() });
}

fn value_log_bytes(path: &Path) -> u64 {
    let directory = path.join(VALUE_LOG);
    let length =
        |number| std::fs::metadata(directory.join(embedded::file_io::file_name(number))).map_or(0, |file| file.len());
    file_numbers(&directory).unwrap().into_iter().map(length).sum()
}

/// Returns the number of stored bodies.
fn bodies(tables: &impl Tables) -> usize {
    let mut bodies = 0;
    let count = &mut |_: &[u8]| {
        bodies += 1;
        true
    };
    tables.keys(Table::Bodies, &[], count).unwrap();
    bodies
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fan_out_to_offline_users_takes_each_body_once_until_the_last_acknowledgement() {
    const USERS: usize = 1000;
    const BYTES: usize = 50_000;
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("store");
    // A hundredth of the copies.
    let limits = Limits { free_bytes: 0, store_bytes: Some(1_500_000), ..Limits::default() };
    let open = || {
        let engine = Arc::new(open_engine(&DiskOptions::new(&path)).unwrap());
        (embedded::open(engine.clone(), Options { limits, ..options(Duration::ZERO) }).unwrap(), engine)
    };
    let (store, engine) = open();
    let users = users(USERS);
    for n in 1..=2 {
        store.append(Append::new(payload(n, BYTES), users.clone())).await.unwrap();
    }
    until("the flush", || engine.record_numbers().is_none()).await;
    let bytes = value_log_bytes(&path);
    assert!(bytes < 1_000_000, "{bytes} bytes in the value log");
    for user in &users {
        assert_eq!(read(&*store, user, BYTES).unwrap(), [1, 2]);
    }
    store.close().await.unwrap();
    drop((store, engine));

    let (store, engine) = open();
    let (last, others) = users.split_last().unwrap();
    others.iter().for_each(|user| acknowledge(&*store, user, 2));
    acknowledge(&*store, last, 1);
    until("the removal of the first body", || bodies(&*engine) == 1 && engine.record_numbers().is_none()).await;
    assert_eq!(read(&*store, last, BYTES).unwrap(), [2]);
    acknowledge(&*store, last, 2);
    until("free disk space", || bodies(&*engine) == 0 && value_log_bytes(&path) == 0).await;
    store.close().await.unwrap();
    drop((store, engine));
    let reader = OfflineReader::open(&path, false).unwrap();
    assert_eq!(reader.keys(Table::Bodies).count() + reader.keys(Table::Log).count(), 0);
}

/// A store that just fits would otherwise not be restored, or not saved from damage.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restored_and_salvaged_fan_out_takes_each_body_once_until_the_last_acknowledgement() {
    const BYTES: usize = 50_000;
    let home = tempfile::tempdir().unwrap();
    let path = |name: &str| home.path().join(name);
    let open = |name: &str| {
        let engine = Arc::new(open_engine(&DiskOptions::new(path(name))).unwrap());
        (embedded::open(engine.clone(), options(Duration::ZERO)).unwrap(), engine)
    };
    let users = users(60);
    let (store, engine) = open("store");
    for n in 1..=2 {
        store.append(Append::new(payload(n, BYTES), users.clone())).await.unwrap();
    }
    // Another user has the same payload from another dispatch.
    let other = vec![UserId::new("a later user").unwrap()];
    store.append(Append::new(payload(1, BYTES), other.clone())).await.unwrap();
    let mut backup = Vec::new();
    store.backup(&mut backup).unwrap();
    store.close().await.unwrap();
    drop((store, engine));
    std::fs::write(path("backup"), &backup).unwrap();
    restore(&path("backup"), &path("restored")).unwrap();
    let mut inspection = Inspection::open(&path("restored")).unwrap();
    salvage(&mut inspection, &path("salvaged")).unwrap();
    assert!(inspection.is_undamaged());
    drop(inspection);

    for name in ["restored", "salvaged"] {
        let bytes = value_log_bytes(&path(name));
        assert!(bytes < 500_000, "{name}: {bytes} bytes in the value log");
        let (store, engine) = open(name);
        // Otherwise an id could be assigned again, and a body would stay until the WAL has that many records.
        assert_eq!(engine.get(Table::Meta, FLUSHED_KEY).unwrap().unwrap(), wal_key(2)[..], "{name}");
        let new = store.append(Append::new(payload(3, BYTES), users.clone())).await.unwrap().seqs[0].unwrap();
        until("the flush", || engine.record_numbers().is_none()).await;
        assert_eq!(bodies(&*engine), 3, "{name}");
        for user in &users {
            let entries = store.read(user, 0, ReadLimit { entries: 9, bytes: 1 << 30 }).unwrap().entries;
            let found: Vec<_> = entries.iter().map(|entry| (entry.seq, entry.payload.clone())).collect();
            assert_eq!(found, [(1, payload(1, BYTES)), (2, payload(2, BYTES)), (new, payload(3, BYTES))], "{name}");
        }
        assert_eq!(read(&*store, &other[0], BYTES).unwrap(), [1], "{name}");
        users.iter().chain(&other).for_each(|user| acknowledge(&*store, user, new));
        until("free disk space", || bodies(&*engine) == 0 && value_log_bytes(&path(name)) == 0).await;
        store.close().await.unwrap();
    }
}

/// Cuts the power after a number of writes of a flush, of acknowledgements and of removals. Returns false if no write
/// failed.
async fn cut_after(writes: i64) -> bool {
    const BYTES: usize = 5000;
    let users = users(5);
    let tables = Memory::default();
    let store = memory::open(&tables, options(Duration::from_secs(3600))).unwrap();
    // In one commit, so that a record has several bodies.
    let appends = (1..=6).map(|n| Append::new(payload(n, BYTES), users.clone())).collect();
    store.append_all(appends).await.unwrap();
    let mut answered = 6;
    store.close().await.unwrap();
    drop(store);
    let before = tables.deep_clone();
    let cut = Cut::new(&tables, writes);
    if let Ok(store) = embedded::open(cut.clone(), options(Duration::ZERO)) {
        for n in 7..=8 {
            if store.append(Append::new(payload(n, BYTES), users.clone())).await.is_ok() {
                answered = n;
            }
        }
        until("the flush or the cut", || cut.has_failed() || tables.record_numbers().is_none()).await;
        // The last user needs all bodies, and the others none.
        users[..4].iter().for_each(|user| acknowledge(&*store, user, 8));
        // In the same log, so that it is committed after the acknowledgements.
        _ = store.clear(&users[0]).await;
        until("the flush or the cut", || cut.has_failed() || tables.record_numbers().is_none()).await;
        _ = store.close().await;
    }
    let failed = cut.has_failed();
    let tables = cut.after_power_cut(before);
    for flush_delay in [Duration::from_secs(3600), Duration::ZERO, Duration::from_secs(3600)] {
        let store = memory::open(&tables, options(flush_delay)).unwrap();
        if flush_delay.is_zero() {
            until("the second flush", || tables.record_numbers().is_none()).await;
        }
        for user in &users {
            let found = read(&*store, user, BYTES).unwrap();
            assert!(found.windows(2).all(|pair| pair[0] + 1 == pair[1]), "{found:?}, cut after {writes}");
            let is_last = user == &users[4];
            assert!(
                !is_last || (found.first() == Some(&1) && found.last() >= Some(&answered)),
                "{found:?}, cut after {writes}"
            );
        }
        store.close().await.unwrap();
    }
    let store = memory::open(&tables, options(Duration::ZERO)).unwrap();
    users.iter().for_each(|user| acknowledge(&*store, user, 8));
    until("the removal of all bodies", || tables.record_numbers().is_none() && tables.bodies() == 0).await;
    assert!(users.iter().all(|user| tables.blocks_of(user.as_str()) == 0), "cut after {writes}");
    store.close().await.unwrap();
    failed
}

// covers: G1
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn power_cut_at_any_write_keeps_bodies_while_they_are_needed_and_no_longer() {
    let mut cuts = 0;
    while cut_after(cuts).await {
        cuts += 1;
    }
    assert!(cuts > 30, "more than 30 writes are cut, not {cuts}");
}

// covers: G6
#[tokio::test]
async fn damaged_or_missing_body_is_an_error_of_the_users_that_share_it_only() {
    const BYTES: usize = 20_000;
    let users = users(4);
    for is_missing in [false, true] {
        let tables = Memory::default();
        let store = memory::open(&tables, options(Duration::ZERO)).unwrap();
        store.append(Append::new(payload(1, BYTES), users[..2].to_vec())).await.unwrap();
        store.append(Append::new(payload(1, BYTES), users[2..].to_vec())).await.unwrap();
        until("the flush", || tables.record_numbers().is_none()).await;
        assert_eq!(tables.bodies(), 2);
        let mut first = Vec::new();
        tables
            .keys(Table::Bodies, &[], &mut |key| {
                first = key.to_vec();
                false
            })
            .unwrap();
        if is_missing { tables.remove(Table::Bodies, &first) } else { tables.put(Table::Bodies, &first, b"") }.unwrap();
        for user in &users[..2] {
            assert!(matches!(read(&*store, user, BYTES), Err(StoreError::Damaged(_))), "{user:?}");
        }
        for user in &users[2..] {
            assert_eq!(read(&*store, user, BYTES).unwrap(), [1]);
        }
        // The remedy that the error names.
        store.clear(&users[0]).await.unwrap();
        assert!(read(&*store, &users[0], BYTES).unwrap().is_empty());
        store.close().await.unwrap();
    }
}

#[tokio::test]
async fn erasure_of_the_last_user_of_a_body_removes_it() {
    const BYTES: usize = 6000;
    let users = users(4);
    let tables = Memory::default();
    let store = memory::open(&tables, options(Duration::ZERO)).unwrap();
    store.append(Append::new(payload(1, BYTES), users.clone())).await.unwrap();
    until("the flush", || tables.record_numbers().is_none()).await;
    assert!(tables.contains("message 1 "));
    store.erase(&users[0]).await.unwrap();
    assert_eq!(read(&*store, &users[1], BYTES).unwrap(), [1], "the others still need it");
    users[1..3].iter().for_each(|user| acknowledge(&*store, user, 1));
    store.erase(&users[3]).await.unwrap();
    until("the removal of the body", || !tables.contains("message 1 ")).await;
    store.close().await.unwrap();
}

/// Tables in memory that put blocks so slowly that a flush takes many turns of the commit thread.
#[derive(Clone, Default)]
struct SlowPuts {
    tables: Memory,
}

impl Intercept for SlowPuts {
    fn memory(&self) -> &Memory {
        &self.tables
    }

    fn on_put(&self, table: Table, key: &[u8], value: &[u8]) -> Result<(), EngineError> {
        if table == Table::Log {
            std::thread::sleep(Duration::from_millis(5));
        }
        self.tables.put(table, key, value)
    }
}

/// Between the turns of a flush, the body of later users has no reference yet.
#[tokio::test]
async fn body_without_references_stays_while_its_record_is_being_flushed() {
    const BYTES: usize = 2000;
    let users = users(128);
    let slow = SlowPuts::default();
    let store = embedded::open(Arc::new(slow.clone()), options(Duration::ZERO)).unwrap();
    let (first, second) = users.split_at(64);
    let appends = [first, second].map(|users| Append::new(payload(1, BYTES), users.to_vec()));
    store.append_all(appends.into()).await.unwrap();
    until("the flush", || slow.tables.record_numbers().is_none()).await;
    assert_eq!(slow.tables.bodies(), 2);
    for user in &users {
        assert_eq!(read(&*store, user, BYTES).unwrap(), [1]);
    }
    store.close().await.unwrap();
}

/// Tables in memory from which some reads of unreferenced bodies, and then some removals, fail for lack of memory.
#[derive(Clone, Default)]
struct ScarceMemory {
    tables: Memory,
    reads_fail: Arc<AtomicU64>,
    removals_fail: Arc<AtomicU64>,
}

fn fail_next(times: &AtomicU64) -> Result<(), EngineError> {
    let failed = times.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
    failed.map_or(Ok(()), |_| Err(EngineError { cause: Cause::Exhausted, what: "no memory is left".into() }))
}

impl Intercept for ScarceMemory {
    fn memory(&self) -> &Memory {
        &self.tables
    }

    fn on_unreferenced_bodies(&self) -> Result<(), EngineError> {
        fail_next(&self.reads_fail)
    }

    fn on_remove(&self, table: Table, key: &[u8]) -> Result<(), EngineError> {
        if table == Table::Bodies {
            fail_next(&self.removals_fail)?;
        }
        self.tables.remove(table, key)
    }
}

// covers: G6
#[tokio::test]
async fn lack_of_memory_during_a_removal_of_bodies_does_not_stop_the_store() {
    let scarce = ScarceMemory::default();
    scarce.tables.put(Table::Bodies, &BodyId { record: 0, at: 1 }.key(), b"").unwrap();
    scarce.reads_fail.store(2, Ordering::SeqCst);
    scarce.removals_fail.store(2, Ordering::SeqCst);
    let store = embedded::open(Arc::new(scarce.clone()), options(Duration::ZERO)).unwrap();
    until("the removal of the body", || scarce.tables.bodies() == 0).await;
    assert_eq!([scarce.reads_fail, scarce.removals_fail].map(|left| left.load(Ordering::SeqCst)), [0, 0]);
    store.append(Append::new(payload(1, 10), users(1))).await.unwrap();
    store.close().await.unwrap();
}

/// Removals in steps without pauses. With a pause of up to a second after each step, they would take a minute.
#[tokio::test]
async fn idle_store_removes_thousands_of_unreferenced_bodies_at_once() {
    const BODIES: u32 = 64 * 60;
    let tables = Memory::default();
    (0..BODIES).for_each(|at| tables.put(Table::Bodies, &BodyId { record: 0, at }.key(), b"").unwrap());
    let store = memory::open(&tables, options(Duration::ZERO)).unwrap();
    until("the removal of all bodies", || tables.bodies() == 0).await;
    store.close().await.unwrap();
}

#[tokio::test]
async fn replayed_fan_out_reserves_its_body_once() {
    const BYTES: usize = 50_000;
    let users = users(1000);
    let tables = Memory::default();
    // A tenth of the copies.
    let limits = Limits { free_bytes: 0, store_bytes: Some(5_000_000), ..Limits::default() };
    let open = || memory::open(&tables, Options { limits, ..options(Duration::from_secs(3600)) }).unwrap();
    for n in 1..=3 {
        let store = open();
        let appended = store.append(Append::new(payload(n, BYTES), users.clone())).await;
        assert!(appended.is_ok(), "after {} restarts: {appended:?}", n - 1);
        store.close().await.unwrap();
    }
    let store = open();
    assert_eq!(read(&*store, &users[999], BYTES).unwrap(), [1, 2, 3]);
    store.close().await.unwrap();
}
