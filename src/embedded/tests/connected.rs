//! Tests the table of users with connections: storms, kills, power cuts and a full disk.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
};

use futures_util::FutureExt as _;
use parking_lot::Mutex;

use super::{intercept::Intercept, power_cut::Cut, wait::until};
use crate::{
    embedded::{
        self,
        options::Options,
        tables::{
            contract::{EngineError, Table, TableSpace, Tables},
            memory::{self, Memory},
            schema::Connections,
        },
        writer::connected::STEP_ROWS_MAX,
    },
    message::{Payload, UserId},
    store::{Append, EventKind, OutboxEvent, OutboxOptions, Store},
};

fn options() -> Options {
    let outbox = OutboxOptions { events: 1_000_000, bytes: 1 << 30, kinds: vec![EventKind::Disconnection] };
    Options { outbox: Some(outbox), ..Options::default() }
}

fn user(id: impl ToString) -> UserId {
    UserId::new(&id.to_string()).unwrap()
}

fn append() -> Append {
    Append::new(Payload::encode(0, None, None).unwrap(), vec![user("recipient")])
}

/// Returns the rows of the table: user and number of connections.
fn rows(tables: &Memory) -> BTreeMap<String, u32> {
    let mut rows = BTreeMap::new();
    tables
        .scan(Table::Connected, &[], &mut |key, value| {
            let Connections::V1 { since_ms, count } = Connections::decode(&value).unwrap();
            assert!(since_ms > 1_700_000_000_000, "{since_ms}");
            rows.insert(String::from_utf8(key.to_vec()).unwrap(), count);
            true
        })
        .unwrap();
    rows
}

/// Returns the number of disconnections by restart in the outbox, by user.
fn disconnections(store: &dyn Store) -> BTreeMap<String, usize> {
    let mut found = BTreeMap::new();
    for queued in store.outbox().unwrap().read(0, usize::MAX, u64::MAX).unwrap() {
        match queued.event {
            OutboxEvent::RestartDisconnection { user } => *found.entry(user).or_default() += 1,
            other => panic!("{other:?}"),
        }
    }
    found
}

fn map<const N: usize, T>(pairs: [(&str, T); N]) -> BTreeMap<String, T> {
    pairs.into_iter().map(|(user, value)| (user.to_owned(), value)).collect()
}

/// Tables in memory that queue an append during each step of rows, and count the rows until its record is written.
#[derive(Default)]
struct StormTables {
    tables: Memory,
    store: OnceLock<Arc<dyn Store>>,
    /// Held by the test while the commit thread waits within a commit.
    gate: Mutex<()>,
    rows_since_record: AtomicUsize,
    rows_max: AtomicUsize,
    rows: AtomicUsize,
    records: AtomicUsize,
}

impl StormTables {
    fn count_row(&self) {
        self.rows.fetch_add(1, Ordering::SeqCst);
        if self.rows_since_record.fetch_add(1, Ordering::SeqCst) == 0 {
            // Queues the append. Its reply is not needed.
            assert!(self.store.get().unwrap().append(append()).now_or_never().is_none());
        }
    }
}

impl Intercept for StormTables {
    fn memory(&self) -> &Memory {
        &self.tables
    }

    fn on_append_record(&self, number: u64, record: &[u8]) -> Result<(), EngineError> {
        self.records.fetch_add(1, Ordering::SeqCst);
        drop(self.gate.lock());
        self.rows_max.fetch_max(self.rows_since_record.swap(0, Ordering::SeqCst), Ordering::SeqCst);
        crate::embedded::wal::contract::Wal::append_record(&self.tables, number, record)
    }

    fn on_put(&self, table: Table, key: &[u8], value: &[u8]) -> Result<(), EngineError> {
        if table == Table::Connected {
            self.count_row();
        }
        self.tables.put(table, key, value)
    }

    fn on_remove(&self, table: Table, key: &[u8]) -> Result<(), EngineError> {
        if table == Table::Connected {
            self.count_row();
        }
        self.tables.remove(table, key)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn storm_of_connections_is_merged_by_user_and_written_in_bounded_steps_between_commits() {
    const USERS: usize = 10_000;
    let tables = Arc::new(StormTables::default());
    let store: Arc<dyn Store> = Arc::new(embedded::EmbeddedStore::open(tables.clone(), options()).unwrap());
    assert!(tables.store.set(store.clone()).is_ok());
    {
        let gate = tables.gate.lock();
        assert!(store.append(append()).now_or_never().is_none());
        while tables.records.load(Ordering::SeqCst) == 0 {
            std::thread::yield_now();
        }
        // The commit thread waits at the gate, so all of this is one storm.
        for n in 0..USERS {
            for connections in [1, 2, 3] {
                store.set_connections(&user(n), connections);
            }
            store.set_connections(&user(format!("short {n}")), 1);
            store.set_connections(&user(format!("short {n}")), 0);
        }
        drop(gate);
    }
    until("all users have a row", || rows(&tables.tables).len() == USERS).await;
    assert_eq!(tables.rows.load(Ordering::SeqCst), USERS, "one write for each user, and none for a short connection");
    assert!(rows(&tables.tables).values().all(|connections| *connections == 3));

    for n in 0..USERS {
        store.set_connections(&user(n), 0);
    }
    until("no user has a row", || rows(&tables.tables).is_empty()).await;
    assert_eq!(tables.rows.load(Ordering::SeqCst), 2 * USERS);
    store.append(append()).await.unwrap();
    let rows_max = tables.rows_max.load(Ordering::SeqCst);
    assert!((1..=STEP_ROWS_MAX).contains(&rows_max), "{rows_max} rows between two commits");
    store.close().await.unwrap();
}

// covers: G4
#[tokio::test]
async fn killed_store_reports_connected_users_once_and_closed_store_reports_none() {
    let tables = Memory::default();
    let store = memory::open(&tables, options()).unwrap();
    for (id, connections) in [("alice", 1), ("bob", 1), ("bob", 2), ("carol", 1), ("carol", 0)] {
        store.set_connections(&user(id), connections);
    }
    until("rows", || rows(&tables) == map([("alice", 1), ("bob", 2)])).await;
    let killed = tables.deep_clone();
    for id in ["alice", "bob"] {
        store.set_connections(&user(id), 0);
    }
    store.close().await.unwrap();
    assert_eq!(rows(&tables), map([]), "the connections were closed before the store");
    let store = memory::open(&tables, options()).unwrap();
    assert_eq!((disconnections(&*store), store.take_interrupted()), (map([]), vec![]));

    let store = memory::open(&killed, options()).unwrap();
    let expected = map([("alice", 1), ("bob", 1)]);
    assert_eq!(disconnections(&*store), expected, "in the outbox when the store is open");
    assert_eq!(store.take_interrupted(), [user("alice"), user("bob")]);
    assert_eq!(store.take_interrupted(), [], "once");
    // Alice is back, and the server is killed again.
    store.set_connections(&user("alice"), 1);
    until("row", || rows(&killed) == map([("alice", 1)])).await;
    let killed = killed.deep_clone();
    let store = memory::open(&killed, options()).unwrap();
    assert_eq!(disconnections(&*store), map([("alice", 2), ("bob", 1)]));
    let again = memory::open(&killed.deep_clone(), options()).unwrap();
    assert_eq!((disconnections(&*again), again.take_interrupted()), (disconnections(&*store), vec![]), "not repeated");
}

/// Number of prefixes of the writes that are checked for each cut.
const SEEDS: u64 = 16;

/// Cuts the power while a start reports disconnections. Returns false if no write failed.
async fn cut_after(writes: i64) -> bool {
    let tables = Memory::default();
    let store = memory::open(&tables, options()).unwrap();
    for id in ["alice", "bob"] {
        store.set_connections(&user(id), 1);
    }
    store.close().await.unwrap();
    drop(store);
    assert_eq!(rows(&tables), map([("alice", 1), ("bob", 1)]), "these connections outlive the server");

    let before = tables.deep_clone();
    let cut = Cut::new(&tables, writes);
    let mut failed = true;
    if let Ok(store) = embedded::open(cut.clone(), options()) {
        store.set_connections(&user("alice"), 1);
        store.set_connections(&user("carol"), 1);
        store.set_connections(&user("carol"), 0);
        _ = store.append(append()).await;
        store.set_connections(&user("alice"), 0);
        failed = store.close().await.is_err();
    }
    for seed in 0..SEEDS {
        check_after_cut(&cut.after_power_cut_with(before.deep_clone(), seed), writes).await;
    }
    failed
}

/// Checks that the start after a power cut reports every connected user.
async fn check_after_cut(tables: &Memory, writes: i64) {
    let store = memory::open(tables, options()).unwrap();
    let found = disconnections(&*store);
    for id in ["alice", "bob"] {
        let events = found.get(id).copied().unwrap_or(0);
        // Alice may also have been connected to the start that the power cut ended.
        let events_max = if id == "alice" { 3 } else { 2 };
        assert!((1..=events_max).contains(&events), "{events} events of {id}, cut after {writes}");
    }
    assert_eq!(rows(tables), map([]), "cut after {writes}");
    store.close().await.unwrap();
    let store = memory::open(tables, options()).unwrap();
    assert_eq!((disconnections(&*store), store.take_interrupted()), (found, vec![]), "cut after {writes}");
}

// covers: G4
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn power_cut_at_any_write_loses_no_disconnection_of_the_previous_start() {
    let mut cuts = 0;
    while cut_after(cuts).await {
        cuts += 1;
    }
    assert!(cuts > 10, "more than 10 writes are cut, not {cuts}");
}

/// Tables in memory on a disk that is full or not.
#[derive(Default)]
struct FullDisk {
    tables: Memory,
    is_full: std::sync::atomic::AtomicBool,
    /// The disk has no space for events.
    has_no_spare: std::sync::atomic::AtomicBool,
    rows: AtomicUsize,
    checkpoints: AtomicUsize,
}

impl Intercept for FullDisk {
    fn memory(&self) -> &Memory {
        &self.tables
    }

    fn on_put(&self, table: Table, key: &[u8], value: &[u8]) -> Result<(), EngineError> {
        self.rows.fetch_add(usize::from(table == Table::Connected), Ordering::SeqCst);
        self.tables.put(table, key, value)
    }

    fn on_table_space(&self) -> TableSpace {
        if self.is_full.load(Ordering::SeqCst) { TableSpace::Little } else { TableSpace::Enough }
    }

    fn on_disk_free(&self) -> Option<u64> {
        self.has_no_spare.load(Ordering::SeqCst).then_some(0)
    }

    fn on_checkpoint(&self) -> Result<(), EngineError> {
        self.checkpoints.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

#[tokio::test]
async fn full_disk_delays_rows_and_disconnections_until_there_is_space() {
    /// More than one step.
    const USERS: usize = 1200;
    let killed = Memory::default();
    let earlier = memory::open(&killed, options()).unwrap();
    (0..USERS).for_each(|n| earlier.set_connections(&user(n), 1));
    earlier.close().await.unwrap();
    let disk = Arc::new(FullDisk { tables: killed, is_full: true.into(), ..FullDisk::default() });
    let store = embedded::open(disk.clone(), options()).unwrap();
    assert_eq!(store.take_interrupted().len(), USERS, "portals do not depend on the disk");
    store.set_connections(&user("bob"), 1);
    // The commit thread has looked for rows after the first reply at the latest.
    for _ in 0..2 {
        store.clear(&user("recipient")).await.unwrap();
    }
    assert_eq!((disk.rows.load(Ordering::SeqCst), disconnections(&*store)), (0, map([])));
    assert_eq!(rows(&disk.tables).len(), USERS, "kept for their events");
    disk.is_full.store(false, Ordering::SeqCst);
    until("rows and events", || rows(&disk.tables) == map([("bob", 1)])).await;
    assert_eq!(disconnections(&*store), (0..USERS).map(|n| (n.to_string(), 1)).collect());
    store.close().await.unwrap();
}

#[tokio::test]
async fn start_with_many_interrupted_users_reports_each_once_and_syncs_rarely() {
    const USERS: usize = 20_000;
    const CHECKPOINTS_MAX: usize = 12;
    let killed = Memory::default();
    for n in 0..USERS {
        let row = Connections::V1 { since_ms: 1_800_000_000_000, count: 1 };
        killed.put(Table::Connected, n.to_string().as_bytes(), &row.encode()).unwrap();
    }
    for has_no_spare in [false, true] {
        let disk = FullDisk { tables: killed.deep_clone(), has_no_spare: has_no_spare.into(), ..FullDisk::default() };
        let disk = Arc::new(disk);
        let store = embedded::open(disk.clone(), options()).unwrap();
        let checkpoints = disk.checkpoints.load(Ordering::SeqCst);
        assert!(checkpoints <= CHECKPOINTS_MAX, "{checkpoints} checkpoints");
        if has_no_spare {
            assert_eq!(disconnections(&*store), map([]), "the events wait for disk space");
            assert_eq!(rows(&disk.tables).len(), USERS);
            disk.has_no_spare.store(false, Ordering::SeqCst);
            until("all are reported", || rows(&disk.tables).is_empty()).await;
        }
        assert_eq!(disconnections(&*store), (0..USERS).map(|n| (n.to_string(), 1)).collect());
        store.close().await.unwrap();
    }
}
