//! Engine on disk: the WAL and the value log in files, the tables in sled.
//!
//! The trees of sled are the catalogue of the store: `log` (user and first sequence → location of a block in the value
//! log), `bodies` (shared body → location), `users` (rows with cursors), `connected` (users with connections), `ids`,
//! `outbox` and `meta`. Entry bodies are in the value log (key-value separation), because sled writes data several times and its file never shrinks. With
//! bodies in sled, 100 MiB of churn took more than 700 MiB of disk, and a commit of one message took 0.3 ms of CPU. So
//! a commit is one write and one `fdatasync` of a WAL segment. sled is synced before WAL records are removed (a
//! *checkpoint*).
//!
//! Two properties of sled 0.34.7 matter here:
//! - Its `flush` writes the data but does not sync the file. This module syncs it on its own handle.
//! - Batches need a lock that a flush holds. So there are no batches, and only single values are atomic.

use std::{
    fs::File,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use parking_lot::Mutex;

use super::{
    contract::{BlockCopy, Cause, CompactionMode, EngineError, NewBlock, Table, TableSpace, Tables},
    directory::StoreDir,
    files::SLED_FILE,
    schema::{VALUE_BYTES_MAX, is_part},
    sled_error::read_error,
    space::{Runway, WriteCounter},
    watermark::WatermarkFile,
};
use crate::{
    embedded::{
        engine::Engine,
        offline::sled_file::Tail,
        user_log::Usage,
        value_log::{
            bodies::{BodyId, References},
            compaction::CompactionStep,
            file::ValueLog,
            location::BlockRow,
            summary::BlockSummary,
        },
        wal::{contract::Wal, segment::WalFiles},
    },
    failpoints::{self, Failpoint},
};

/// Shortest time between two checkpoints that only reclaim space.
const RECLAIM_INTERVAL: Duration = Duration::from_millis(100);

/// Stores the WAL and the tables on disk.
pub struct Disk {
    pub(super) db: sled::Db,
    pub(in crate::embedded) trees: Trees,
    pub(super) wal: WalFiles,
    pub(in crate::embedded) value_log: ValueLog,
    /// Highest number of a file of the value log that `meta` has. Written by the commit thread only.
    pub(super) last_file: AtomicU64,
    /// References to shared bodies. Used by the commit thread only.
    pub(super) references: Mutex<References>,
    /// Second handle of sled's file, to sync it.
    pub(super) file: File,
    /// The sync watermark.
    pub(super) watermark: WatermarkFile,
    /// End of sled's log. Used by the commit thread only.
    pub(super) tail: Mutex<Tail>,
    /// Preallocated space of sled's file. Used by the commit thread only.
    pub(super) runway: Mutex<Runway>,
    /// Bytes put into sled. Used by the commit thread only.
    pub(super) written: Mutex<WriteCounter>,
    /// Progress of space reclamation. Used by the commit thread only.
    pub(super) reclaim: Mutex<Reclaim>,
    /// A write or a sync has failed.
    pub(super) failed: AtomicBool,
    /// Called instead of syncing the WAL, in tests.
    pub(super) sync: Option<Arc<dyn Fn() -> std::io::Result<()> + Send + Sync>>,
    /// Holds the lock of the directory until everything above is closed.
    pub(super) dir: StoreDir,
}

/// The trees of sled.
pub(in crate::embedded) struct Trees {
    /// User and sequence → location and summary of a block in the value log.
    pub(in crate::embedded) log: sled::Tree,
    pub(super) users: sled::Tree,
    pub(super) connected: sled::Tree,
    pub(super) meta: sled::Tree,
    pub(super) ids: sled::Tree,
    pub(super) outbox: sled::Tree,
    /// Id of a shared body → its location in the value log.
    pub(super) bodies: sled::Tree,
}

/// State of space reclamation.
pub(super) struct Reclaim {
    /// The next step of the current compaction.
    pub(super) compaction: Option<CompactionStep>,
    /// Time of the last checkpoint.
    pub(super) checkpoint: Instant,
    /// Files to which the durable tables do not refer. They are removed a few at a time.
    pub(super) dead_files: Vec<u64>,
}

impl Disk {
    /// Returns the tree of a table.
    pub(super) fn tree(&self, table: Table) -> &sled::Tree {
        match table {
            Table::Log => &self.trees.log,
            Table::Users => &self.trees.users,
            Table::Connected => &self.trees.connected,
            Table::Bodies => &self.trees.bodies,
            Table::Meta => &self.trees.meta,
            Table::Ids => &self.trees.ids,
            Table::Outbox => &self.trees.outbox,
        }
    }

    /// Sets a value in sled. Returns the previous one.
    pub(super) fn insert(
        &self,
        tree: &sled::Tree,
        key: &[u8],
        value: &[u8],
    ) -> Result<Option<sled::IVec>, EngineError> {
        debug_assert!(value.len() <= VALUE_BYTES_MAX, "a value of {} bytes", value.len());
        self.count_write(key.len() + value.len())?;
        tree.insert(key, value).map_err(|error| self.tables_failed(error))
    }

    /// Removes a value from sled, and returns it.
    pub(super) fn take(&self, tree: &sled::Tree, key: &[u8]) -> Result<Option<sled::IVec>, EngineError> {
        self.count_write(key.len())?;
        tree.remove(key).map_err(|error| self.tables_failed(error))
    }

    /// Counts bytes before they are put into sled. After each step, preallocates space for the next step.
    fn count_write(&self, bytes: usize) -> Result<(), EngineError> {
        let is_step = self.written.lock().count(bytes);
        if is_step {
            self.write_through()?;
            self.written.lock().begin_check();
            // If this fails, the step still has the space that was preallocated before.
            _ = self.runway.lock().extend(&self.file);
        }
        Ok(())
    }

    /// Records that the engine has failed for good, and creates the error.
    pub(in crate::embedded) fn failed(&self, error: impl std::fmt::Display) -> EngineError {
        self.failed.store(true, Ordering::Relaxed);
        EngineError::new(error)
    }

    pub(super) fn tables_failed(&self, error: sled::Error) -> EngineError {
        self.failed(super::sled_error::describe(&error))
    }

    /// Converts the error of a call that may be retried after a lack of space, descriptors or memory.
    pub(in crate::embedded) fn retryable(&self, error: std::io::Error) -> EngineError {
        let error = EngineError::from(error);
        self.failed.fetch_or(!error.is_transient(), Ordering::Relaxed);
        error
    }

    fn sync_wal(&self) -> std::io::Result<()> {
        let synced = self.wal.sync(|file| match &self.sync {
            _ if failpoints::enabled(Failpoint::NoSync) => Ok(()),
            Some(sync) => sync(),
            None => file.sync_data(),
        })?;
        too_low(self.watermark.set_record(synced))
    }

    fn sync_tables(&self) -> Result<(), EngineError> {
        self.write_through()?;
        // Determined before the sync, which may not cover data written during it.
        let end = self.tail.lock().advance(&self.file).map_err(|error| self.failed(error))?;
        self.file.sync_data().map_err(|error| self.failed(error))?;
        too_low(self.watermark.set_end(end)).map_err(|error| self.failed(error))
    }
}

/// Leaks sled, with its threads and its lock, after a failure.
///
/// A dropped sled syncs its file, and panics if that fails.
pub(in crate::embedded) fn discard_sled(db: &sled::Db) {
    Box::leak(Box::new(db.clone()));
}

/// Closes sled, whose files are in `directory`, with all data durable. Leaks sled if that fails.
pub(in crate::embedded) fn close_sled(db: sled::Db, directory: &Path) -> std::io::Result<()> {
    let synced = db
        .flush()
        .map_err(super::sled_error::to_io_error)
        .and_then(|_| File::open(directory.join(SLED_FILE))?.sync_all());
    synced.inspect_err(|_| discard_sled(&db))?;
    // A dropped sled syncs once more, and panics if the disk fails just then.
    catch_unwind(AssertUnwindSafe(|| drop(db))).map_err(|_| std::io::Error::other("sled could not sync its file"))
}

/// Tolerates a watermark that the full disk does not take: it stays too low until a later sync, as after a crash.
fn too_low(written: std::io::Result<()>) -> std::io::Result<()> {
    written.or_else(|error| if Cause::of(&error) == Cause::NoSpace { Ok(()) } else { Err(error) })
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.failed.load(Ordering::Relaxed) || self.file.sync_all().is_err() {
            discard_sled(&self.db);
        }
    }
}

impl Wal for Disk {
    fn append_record(&self, number: u64, record: &[u8]) -> Result<(), EngineError> {
        self.wal.append(number, record).map_err(|error| self.retryable(error))
    }

    fn remove_record(&self, number: u64) -> Result<(), EngineError> {
        self.wal.remove(number);
        Ok(())
    }

    fn rollback_last(&self, number: u64) -> Result<(), EngineError> {
        self.wal.roll_back(number).map_err(|error| self.failed(error))
    }

    fn record_numbers(&self) -> Option<(u64, u64)> {
        self.wal.record_numbers()
    }

    fn record(&self, number: u64) -> Result<Option<Bytes>, EngineError> {
        Ok(self.wal.get(number)?)
    }

    fn scan_records(&self, visit: &mut dyn FnMut(u64, Bytes) -> bool) -> Result<(), EngineError> {
        let mut next = 0;
        // The first record may be removed meanwhile.
        while let Some((first, last)) = self.wal.record_numbers().filter(|(_, last)| *last >= next) {
            next = next.max(first);
            // A missing record was flushed and removed meanwhile.
            let record = self.wal.get(next)?;
            if record.is_some_and(|record| !visit(next, record)) || next == last {
                break;
            }
            next += 1;
        }
        Ok(())
    }

    fn records(&self, numbers: &[u64], visit: &mut dyn FnMut(u64, Option<&[u8]>) -> bool) -> Result<(), EngineError> {
        Ok(self.wal.visit(numbers, visit)?)
    }

    fn sync(&self) -> Result<(), EngineError> {
        self.sync_wal().map_err(|error| self.failed(error))
    }

    fn reserve(&self, number: u64, bytes: u64) -> Result<(), EngineError> {
        self.wal.reserve(number, bytes).map_err(|error| self.retryable(error))
    }

    fn wal_bytes_required(&self, bytes: u64) -> u64 {
        self.wal.bytes_required(bytes)
    }
}

impl Tables for Disk {
    fn put(&self, table: Table, key: &[u8], value: &[u8]) -> Result<(), EngineError> {
        match table {
            Table::Log | Table::Bodies => self.put_block(key, value),
            Table::Users => self.put_row(key, value),
            _ => self.insert(self.tree(table), key, value).map(drop),
        }
    }

    fn remove(&self, table: Table, key: &[u8]) -> Result<(), EngineError> {
        match table {
            Table::Log | Table::Bodies => self.remove_block(key, false),
            Table::Users => self.remove_row(key),
            _ => self.take(self.tree(table), key).map(drop),
        }
    }

    fn remove_erased(&self, key: &[u8]) -> Result<(), EngineError> {
        self.remove_erased_block(key)
    }

    fn put_blocks(&self, blocks: &[NewBlock]) -> Result<(), EngineError> {
        self.put_new_blocks(blocks)
    }

    fn write_copy(&self, block: NewBlock) -> Result<BlockCopy, EngineError> {
        self.write_block_copy(block)
    }

    fn set_copy(&self, copy: BlockCopy) -> Result<(), EngineError> {
        self.set_block_copy(copy)
    }

    fn discard_copy(&self, copy: BlockCopy, is_erased: bool) -> Result<(), EngineError> {
        self.discard_block_copy(&copy, is_erased)
    }

    fn put_bodies(&self, bodies: &[(BodyId, Vec<u8>)]) -> Result<(), EngineError> {
        self.put_shared_bodies(bodies)
    }

    fn forget_bodies(&self, ids: &[BodyId]) {
        self.references.lock().forget(ids);
    }

    fn unreferenced_bodies(&self, record: u64, limit: usize) -> Result<Vec<BodyId>, EngineError> {
        // Until then, a row that is not counted may list a body.
        Ok(if self.value_log.is_counted() { self.references.lock().unreferenced(record, limit) } else { Vec::new() })
    }

    fn replace(&self, table: Table, pairs: &[(Vec<u8>, Vec<u8>)]) -> Result<(), EngineError> {
        if !table.is_in_value_log() {
            return pairs.iter().try_for_each(|(key, value)| self.put(table, key, value));
        }
        let pairs: Vec<_> = pairs.iter().map(|(key, value)| (&key[..], &value[..])).collect();
        self.replace_blocks(&pairs)
    }

    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        let Some(value) = self.tree(table).get(key).map_err(read_error)? else { return Ok(None) };
        self.value(table, key, value)
    }

    fn scan(&self, table: Table, from: &[u8], visit: &mut dyn FnMut(&[u8], Bytes) -> bool) -> Result<(), EngineError> {
        if table == Table::Log {
            return self.scan_blocks(from, visit);
        }
        for pair in self.tree(table).range(from..) {
            // A failed iterator stays failed: reading on would skip data silently.
            let (key, value) = pair.map_err(read_error)?;
            if self.value(table, &key, value)?.is_some_and(|value| !visit(&key, value)) {
                break;
            }
        }
        Ok(())
    }

    fn keys(&self, table: Table, from: &[u8], visit: &mut dyn FnMut(&[u8]) -> bool) -> Result<(), EngineError> {
        for key in self.tree(table).range(from..).keys() {
            let key = key.map_err(read_error)?;
            let is_hidden = table == Table::Users && is_part(&key);
            if !is_hidden && !visit(&key) {
                break;
            }
        }
        Ok(())
    }

    fn summaries(
        &self,
        from: &[u8],
        visit: &mut dyn FnMut(&[u8], Option<BlockSummary>) -> bool,
    ) -> Result<(), EngineError> {
        for pair in self.trees.log.range(from..) {
            let (key, row) = pair.map_err(read_error)?;
            if !visit(&key, BlockRow::decode(&row).and_then(|row| row.summary)) {
                break;
            }
        }
        Ok(())
    }

    fn summaries_before(
        &self,
        from: &[u8],
        visit: &mut dyn FnMut(&[u8], Option<BlockSummary>) -> bool,
    ) -> Result<(), EngineError> {
        for pair in self.trees.log.range(..=from).rev() {
            let (key, row) = pair.map_err(read_error)?;
            if !visit(&key, BlockRow::decode(&row).and_then(|row| row.summary)) {
                break;
            }
        }
        Ok(())
    }

    fn last_at_or_before(&self, table: Table, key: &[u8]) -> Result<Option<(Bytes, Bytes)>, EngineError> {
        for pair in self.tree(table).range(..=key).rev() {
            let (key, value) = pair.map_err(read_error)?;
            if let Some(value) = self.value(table, &key, value)? {
                return Ok(Some((Bytes::from_owner(key), value)));
            }
        }
        Ok(None)
    }

    fn last_key_at_or_before(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        let mut keys = self.tree(table).range(..=key).keys().rev();
        let key = keys.find(|key| !(table == Table::Users && key.as_ref().is_ok_and(|key| is_part(key))));
        Ok(key.transpose().map_err(read_error)?.map(Bytes::from_owner))
    }

    fn write_through(&self) -> Result<(), EngineError> {
        self.written.lock().flushed();
        self.db.flush().map(drop).map_err(|error| self.tables_failed(error))
    }

    fn table_space(&self) -> Result<TableSpace, EngineError> {
        let is_behind = self.written.lock().begin_check();
        if is_behind {
            // Otherwise the file's length would lag too far behind the data in sled's memory.
            self.write_through()?;
        }
        let (space, is_shrinking) = {
            let mut runway = self.runway.lock();
            (runway.extend(&self.file)?, runway.take_shrinking())
        };
        if is_shrinking {
            // Writes sled's data in memory now. sled's own thread may take 500 ms.
            self.write_through()?;
        }
        Ok(space)
    }

    fn table_slack(&self) -> Result<u64, EngineError> {
        let mut tail = self.tail.lock();
        tail.advance(&self.file)?;
        Ok(tail.bytes_left())
    }
}

impl Engine for Disk {
    fn barrier(&self) -> Result<(), EngineError> {
        self.sync()?;
        self.value_log.sync().map_err(|error| self.failed(error))
    }

    fn checkpoint(&self) -> Result<(), EngineError> {
        self.barrier()?;
        // Determined before the sync: after it, the durable tables refer to none of these files.
        let dead = self.value_log.dead_files();
        self.sync_tables()?;
        let mut reclaim = self.reclaim.lock();
        reclaim.checkpoint = Instant::now();
        reclaim.dead_files = dead;
        self.remove_dead_files(&mut reclaim);
        Ok(())
    }

    fn collect_garbage(&self, mode: CompactionMode) -> Result<bool, EngineError> {
        if self.remove_dead_files(&mut self.reclaim.lock()) {
            return Ok(true);
        }
        if mode != CompactionMode::Off {
            let current = self.reclaim.lock().compaction.take();
            if current.is_none() && mode == CompactionMode::Eager && !self.value_log.dead_files().is_empty() {
                // Removes dead files first, because a copy takes space.
                self.checkpoint()?;
            }
            if let Some(step) = current.or_else(|| CompactionStep::begin(&self.value_log, mode)) {
                let next = self.compact(step)?;
                self.reclaim.lock().compaction = next;
                return Ok(true);
            }
        }
        self.wal.prepare();
        too_low(self.watermark.write_if_due()).map_err(|error| self.failed(error))?;
        self.value_log.refill_spare_descriptors();
        self.value_log.begin_file_if_dead().map_err(|error| self.failed(error))?;
        let is_due = self.reclaim.lock().checkpoint.elapsed() >= RECLAIM_INTERVAL;
        if is_due && !self.value_log.dead_files().is_empty() {
            self.checkpoint()?;
        }
        Ok(self.count_live_bytes())
    }

    fn live_bytes(&self) -> u64 {
        self.value_log.live_bytes()
    }

    fn stored_entries(&self) -> Usage {
        self.value_log.stored.usage()
    }

    fn disk_bytes(&self) -> Option<u64> {
        self.file_bytes()
    }

    fn set_closed(&self) {
        self.dir.set_closed();
    }

    fn disk_free(&self) -> Result<Option<u64>, EngineError> {
        Ok(Some(super::space::free_bytes(&self.file)?))
    }
}
