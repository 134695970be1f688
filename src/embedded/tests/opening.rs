//! Tests that opening a store reads what it needs, however many users and blocks the store has.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;

use super::{intercept::Intercept, wait::until};
use crate::{
    embedded::{
        self,
        engine::Engine,
        offline::sled_file::Segments,
        options::{Options, Tuning},
        tables::{
            DiskOptions,
            contract::{Table, Tables},
            files::{SLED_DIR, SLED_FILE},
            memory::Memory,
            open::open_engine,
            watermark::SyncWatermark,
        },
        wal::contract::Wal,
    },
    message::{Payload, UserId},
    store::Append,
};

/// Tables in memory that count the rows read from the tables of users and of blocks.
#[derive(Clone, Default)]
struct RowCounter {
    tables: Memory,
    rows: Arc<AtomicU64>,
}

impl Intercept for RowCounter {
    fn memory(&self) -> &Memory {
        &self.tables
    }

    fn on_read(&self, table: Table, _: &Bytes) {
        if matches!(table, Table::Log | Table::Users) {
            self.rows.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn options(flush_delay: Duration) -> Options {
    // No step of the expiry reads rows during the test.
    let tuning = Tuning { flush_delay, expiry_interval: Duration::from_secs(3600), ..Tuning::default() };
    Options { tuning, ..Options::default() }
}

#[tokio::test]
async fn opening_reads_only_rows_of_users_with_items_in_the_wal() {
    const USERS: usize = 500;
    let tables = RowCounter::default();
    let store = embedded::open(Arc::new(tables.clone()), options(Duration::ZERO)).unwrap();
    let payload = Payload::encode(0, Some("1"), None).unwrap();
    let users: Vec<_> = (0..USERS).map(|n| UserId::new(&format!("user-{n}")).unwrap()).collect();
    store.append(Append::new(payload.clone(), users.clone())).await.unwrap();
    until("flush", || tables.tables.record_numbers().is_none()).await;
    store.close().await.unwrap();
    for in_wal in [0, 3] {
        let store = embedded::open(Arc::new(tables.clone()), options(Duration::from_secs(3600))).unwrap();
        if in_wal > 0 {
            store.append(Append::new(payload.clone(), users[..in_wal].to_vec())).await.unwrap();
        }
        store.close().await.unwrap();
        drop(store);
        tables.rows.store(0, Ordering::Relaxed);
        let store = embedded::open(Arc::new(tables.clone()), options(Duration::from_secs(3600))).unwrap();
        let rows = tables.rows.load(Ordering::Relaxed);
        assert!(rows <= in_wal as u64, "{rows} rows were read, for {in_wal} users in the WAL");
        store.close().await.unwrap();
    }
}

/// Returns the bytes that this thread has read from files; `None` if the system does not tell.
fn bytes_read() -> Option<u64> {
    let counters = std::fs::read_to_string("/proc/thread-self/io").ok()?;
    counters.lines().find_map(|line| line.strip_prefix("rchar: ")?.parse().ok())
}

#[test]
fn opening_reads_file_of_tables_once_before_sled_does() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("store");
    let disk = open_engine(&DiskOptions::new(&path)).unwrap();
    for n in 0..20_000_u64 {
        disk.put(Table::Outbox, &n.to_be_bytes(), &[7; 3000]).unwrap();
    }
    disk.checkpoint().unwrap();
    drop(disk);
    let sled_dir = path.join(SLED_DIR);
    let length = std::fs::metadata(sled_dir.join(SLED_FILE)).unwrap().len();
    // What is not known to be synced is read once more, to be rewritten. sled has reused the segment in which its log
    // ended before, because the puts took more than the file has.
    let synced = SyncWatermark::read(&path).unwrap_or_default().end;
    let segments = Segments::find(&sled_dir).unwrap();
    let unsynced: u64 = segments.ranges_after(synced).unwrap().iter().map(|(from, to)| to - from).sum();
    assert!(unsynced < length / 4, "{unsynced} bytes are not known to be synced, of a file of {length}");
    let Some(before) = bytes_read() else { return };
    let disk = open_engine(&DiskOptions::new(&path)).unwrap();
    let read = bytes_read().unwrap() - before;
    drop(disk);
    // Once by this store, at most once by sled, and the last segments to find the end.
    assert!(read < length * 11 / 4, "{read} bytes were read of a file of {length}");
}
