//! Tables on disk. The bulk, which comes and goes, is in files of ours: the journal's records and the chunks of inboxes. sled
//! has the rest, which is small: where each chunk is, rows, facts, ids.
//!
//! What passes through sled is written several times over, and its file never shrinks: with everything in it, 100 MiB of
//! messages filled and drained again and again took more than 700 MiB, and a commit of one message a third of a
//! millisecond of work for its threads. So a commit is one write and one `fdatasync` of a journal file, and sled is
//! synced when records are let go (a *checkpoint*).
//!
//! Two things about sled 0.34.7 shape what is left of it here. Its `flush` hands writes to the system and waits for the data
//! to be written, but does not sync the file: that is done here, on a handle of our own. And batches take a lock that a
//! flush holds: there are none, an atomic unit is one value.

use std::{
    fs::File,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use parking_lot::Mutex;

use super::{
    contract::{Cause, Copying, Engine, EngineError, Table, TableSpace},
    directory::StoreDir,
    files::DB,
    space::{Runway, Written},
    watermark::WatermarkFile,
};
use crate::{
    embedded::{
        offline::sled_file::Tail,
        tables::schema::{wal_key, wal_number},
        value_log::{
            compaction::CompactionStep,
            file::{BlockLocation, BlockRead, ValueLog, no_place},
        },
        wal::segment::WalFiles,
    },
    failpoints::{self, Failpoint},
};

/// Shortest time between two checkpoints that are made for want of room alone.
const TIDY_PAUSE: Duration = Duration::from_millis(100);

/// How often a chunk is looked up again that was moved while it was read. More, and the table leads nowhere.
const MOVES_MAX: usize = 8;

/// Tables on disk.
pub struct Disk {
    pub(super) db: sled::Db,
    pub(in crate::embedded) trees: Trees,
    pub(super) records: WalFiles,
    pub(in crate::embedded) chunks: ValueLog,
    /// Our own handle of the file sled appends to.
    pub(super) file: File,
    /// How far all of it went when it was last synced.
    pub(super) mark: WatermarkFile,
    /// How far sled's file goes. Only the commit thread asks.
    pub(super) tail: Mutex<Tail>,
    /// Space set aside for it. Likewise.
    pub(super) runway: Mutex<Runway>,
    /// What was put into sled. Likewise.
    pub(super) written: Mutex<Written>,
    /// Only the commit thread tidies up.
    pub(super) tidying: Mutex<Tidying>,
    /// A write or a sync has failed.
    pub(super) failed: AtomicBool,
    /// Calls instead of syncing, in tests.
    pub(super) sync: Option<Arc<dyn Fn() -> std::io::Result<()> + Send + Sync>>,
    /// Held until everything above is closed.
    pub(super) _locked: StoreDir,
}

/// The tables that sled has.
pub(in crate::embedded) struct Trees {
    /// Where the chunks of inboxes are.
    pub(in crate::embedded) places: sled::Tree,
    pub(super) users: sled::Tree,
    pub(super) meta: sled::Tree,
    pub(super) ids: sled::Tree,
    pub(super) outbox: sled::Tree,
}

pub(super) struct Tidying {
    pub(super) compaction: Option<CompactionStep>,
    pub(super) checkpoint: Instant,
}

impl Disk {
    /// What sled has of a table; the journal is none of that.
    fn tree(&self, table: Table) -> &sled::Tree {
        match table {
            Table::Wal => unreachable!("the journal has files of its own"),
            Table::Log => &self.trees.places,
            Table::Users => &self.trees.users,
            Table::Meta => &self.trees.meta,
            Table::Ids => &self.trees.ids,
            Table::Outbox => &self.trees.outbox,
        }
    }

    /// Sets a value of sled's; what was there before.
    fn insert(&self, tree: &sled::Tree, key: &[u8], value: &[u8]) -> Result<Option<sled::IVec>, EngineError> {
        self.count(key.len() + value.len())?;
        tree.insert(key, value).map_err(|error| self.tables_failed(error))
    }

    /// Removes a value of sled's; what was there before.
    fn take(&self, tree: &sled::Tree, key: &[u8]) -> Result<Option<sled::IVec>, EngineError> {
        self.count(key.len())?;
        tree.remove(key).map_err(|error| self.tables_failed(error))
    }

    /// Counts what is about to be put into sled. Where it is more than a step, space is set aside for the next.
    fn count(&self, bytes: usize) -> Result<(), EngineError> {
        let is_step = self.written.lock().count(bytes);
        if is_step {
            self.flush()?;
            self.written.lock().look();
            // Where there is no more, this step still has what was set aside before.
            _ = self.runway.lock().extend(&self.file);
        }
        Ok(())
    }

    pub(in crate::embedded) fn failed(&self, error: impl std::fmt::Display) -> EngineError {
        self.failed.store(true, Ordering::Relaxed);
        EngineError::new(error)
    }

    fn tables_failed(&self, error: sled::Error) -> EngineError {
        self.failed(super::sled_error::sentence(&error))
    }

    /// The same, for what may be repeated if it fails for want of space or descriptors.
    pub(in crate::embedded) fn refused(&self, error: std::io::Error) -> EngineError {
        let error = EngineError::from(error);
        self.failed.fetch_or(!error.is_transient(), Ordering::Relaxed);
        error
    }

    /// The chunk that is at a place, or why that is not what was written; `None` where the key is gone.
    fn chunk(&self, key: &[u8], place: &[u8]) -> Result<Option<Bytes>, EngineError> {
        let Some(mut place) = BlockLocation::decode(place) else { return Ok(Some(no_place().to_value())) };
        for _ in 0..MOVES_MAX {
            match self.chunks.read(place, key)? {
                BlockRead::Block(value) => return Ok(Some(value)),
                BlockRead::Damaged(why) => return Ok(Some(why.to_value())),
                BlockRead::Missing => {
                    // It was moved or removed since the table was asked.
                    let Some(now) = self.trees.places.get(key).map_err(unread)? else { return Ok(None) };
                    let Some(now) = BlockLocation::decode(&now) else { return Ok(Some(no_place().to_value())) };
                    if now == place {
                        break;
                    }
                    place = now;
                }
            }
        }
        Ok(Some(place.missing().to_value()))
    }

    fn put_chunk(&self, key: &[u8], value: &[u8]) -> Result<(), EngineError> {
        if self.trees.places.contains_key(key).map_err(|error| self.tables_failed(error))? {
            return self.replace_chunks(&[(key, value)]);
        }
        let place = self.chunks.append(key, value).map_err(|error| self.refused(error))?;
        self.set_place(key, place)
    }

    /// sled writes when it likes, and what is to be replaced is counted on: the new chunks last before any place is set.
    fn replace_chunks(&self, pairs: &[(&[u8], &[u8])]) -> Result<(), EngineError> {
        let mut places = Vec::with_capacity(pairs.len());
        for (key, value) in pairs {
            match self.chunks.append(key, value) {
                Ok(place) => places.push(place),
                Err(error) => {
                    places.into_iter().for_each(|place| self.chunks.release(place));
                    return Err(self.refused(error));
                }
            }
        }
        self.chunks.sync().map_err(|error| self.failed(error))?;
        pairs.iter().zip(places).try_for_each(|((key, _), place)| self.set_place(key, place))
    }

    pub(super) fn set_place(&self, key: &[u8], place: BlockLocation) -> Result<(), EngineError> {
        let before = self.insert(&self.trees.places, key, &place.encode())?;
        before
            .and_then(|before| BlockLocation::decode(&before))
            .into_iter()
            .for_each(|before| self.chunks.release(before));
        Ok(())
    }

    fn remove_chunk(&self, key: &[u8]) -> Result<(), EngineError> {
        let before = self.take(&self.trees.places, key)?;
        before
            .and_then(|before| BlockLocation::decode(&before))
            .into_iter()
            .for_each(|before| self.chunks.release(before));
        Ok(())
    }

    fn sync_records(&self) -> std::io::Result<()> {
        let synced = self.records.sync(|file| match &self.sync {
            _ if failpoints::enabled(Failpoint::NoSync) => Ok(()),
            Some(sync) => sync(),
            None => file.sync_data(),
        })?;
        match self.mark.set_record(synced) {
            // It says too little then, as after a crash, until the next sync.
            Err(error) if Cause::of(&error) == Cause::NoSpace => Ok(()),
            set => set,
        }
    }

    fn sync_tables(&self) -> Result<(), EngineError> {
        self.flush()?;
        // Asked before: what is written meanwhile may not be synced.
        let length = self.file.metadata().map_err(|error| self.failed(error))?.len();
        let end = self.tail.lock().advance(&self.file).map_err(|error| self.failed(error))?;
        self.file.sync_data().map_err(|error| self.failed(error))?;
        match self.mark.set_end(length, end) {
            // As above.
            Err(error) if Cause::of(&error) != Cause::NoSpace => Err(self.failed(error)),
            _ => Ok(()),
        }
    }
}

/// Leaves sled standing as it is, with its threads and its lock. At its end it syncs its file and panics where that
/// fails; and after a failure there is nothing more to be had from it.
pub(in crate::embedded) fn discard_sled(db: &sled::Db) {
    Box::leak(Box::new(db.clone()));
}

/// Ends the sled that has its files in `log`, with everything durable that it has, or leaves it standing where that fails.
pub(in crate::embedded) fn close_sled(db: sled::Db, log: &Path) -> std::io::Result<()> {
    let synced = db.flush().map_err(super::sled_error::of).and_then(|_| File::open(log.join(DB))?.sync_all());
    synced.inspect_err(|_| discard_sled(&db))?;
    // It syncs once more, and nothing was written since; a disk that fails just then is met here.
    catch_unwind(AssertUnwindSafe(|| drop(db))).map_err(|_| std::io::Error::other("sled could not sync its file"))
}

/// What sled could not read. Where the system had no memory for it, it may be asked again.
fn unread(error: sled::Error) -> EngineError {
    match super::sled_error::of_the_system(&error).map(EngineError::from) {
        Some(error) if error.is_transient() => error,
        _ => EngineError::new(super::sled_error::sentence(&error)),
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.failed.load(Ordering::Relaxed) || self.file.sync_all().is_err() {
            discard_sled(&self.db);
        }
    }
}

impl Engine for Disk {
    fn put(&self, table: Table, key: &[u8], value: &[u8]) -> Result<(), EngineError> {
        match table {
            Table::Wal => {
                let number = wal_number(key).ok_or_else(|| EngineError::new("a record without a number"))?;
                self.records.append(number, value).map_err(|error| self.refused(error))
            }
            Table::Log => self.put_chunk(key, value),
            _ => self.insert(self.tree(table), key, value).map(drop),
        }
    }

    fn remove(&self, table: Table, key: &[u8]) -> Result<(), EngineError> {
        match table {
            Table::Wal => {
                let number = wal_number(key).ok_or_else(|| EngineError::new("a record without a number"))?;
                self.records.remove(number);
                Ok(())
            }
            Table::Log => self.remove_chunk(key),
            _ => self.take(self.tree(table), key).map(drop),
        }
    }

    fn rollback_last(&self, number: u64) -> Result<(), EngineError> {
        self.records.take_back(number).map_err(|error| self.failed(error))
    }

    fn replace(&self, table: Table, pairs: &[(Vec<u8>, Vec<u8>)]) -> Result<(), EngineError> {
        if table != Table::Log {
            return pairs.iter().try_for_each(|(key, value)| self.put(table, key, value));
        }
        let pairs: Vec<_> = pairs.iter().map(|(key, value)| (&key[..], &value[..])).collect();
        self.replace_chunks(&pairs)
    }

    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        if table == Table::Wal {
            let record = wal_number(key).map(|number| self.records.get(number)).transpose();
            return Ok(record?.flatten());
        }
        let value = self.tree(table).get(key).map_err(unread)?;
        match value {
            Some(place) if table == Table::Log => self.chunk(key, &place),
            value => Ok(value.map(Bytes::from_owner)),
        }
    }

    fn scan(&self, table: Table, from: &[u8], visit: &mut dyn FnMut(&[u8], Bytes) -> bool) -> Result<(), EngineError> {
        if table == Table::Wal {
            let from = if from.is_empty() { Some(0) } else { wal_number(from) };
            let mut next = from.ok_or_else(|| EngineError::new("records are looked at by number"))?;
            // The first may go meanwhile.
            while let Some((first, last)) = self.records.ends().filter(|(_, last)| *last >= next) {
                next = next.max(first);
                // One that is not there any more was settled meanwhile.
                let value = self.records.get(next)?;
                if value.is_some_and(|value| !visit(&wal_key(next), value)) || next == last {
                    break;
                }
                next += 1;
            }
            return Ok(());
        }
        for pair in self.tree(table).range(from..) {
            // An iterator that failed stays failed: what follows would be a silent hole.
            let (key, value) = pair.map_err(unread)?;
            let value = if table == Table::Log { self.chunk(&key, &value)? } else { Some(Bytes::from_owner(value)) };
            if value.is_some_and(|value| !visit(&key, value)) {
                break;
            }
        }
        Ok(())
    }

    fn keys(&self, table: Table, from: &[u8], visit: &mut dyn FnMut(&[u8]) -> bool) -> Result<(), EngineError> {
        if table == Table::Wal {
            return self.scan(table, from, &mut |key, _| visit(key));
        }
        for key in self.tree(table).range(from..).keys() {
            if !visit(&key.map_err(unread)?) {
                break;
            }
        }
        Ok(())
    }

    fn last_at_or_before(&self, table: Table, key: &[u8]) -> Result<Option<(Bytes, Bytes)>, EngineError> {
        if table == Table::Wal {
            let Some((_, last)) = self.records.ends() else { return Ok(None) };
            let wanted = wal_number(key).unwrap_or(u64::MAX).min(last);
            let value = self.records.get(wanted)?;
            return Ok(value.map(|value| (Bytes::copy_from_slice(&wal_key(wanted)), value)));
        }
        for pair in self.tree(table).range(..=key).rev() {
            let (key, value) = pair.map_err(unread)?;
            let value = if table == Table::Log { self.chunk(&key, &value)? } else { Some(Bytes::from_owner(value)) };
            if let Some(value) = value {
                return Ok(Some((Bytes::from_owner(key), value)));
            }
        }
        Ok(None)
    }

    fn last_key_at_or_before(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        if table == Table::Wal {
            return Ok(self.last_at_or_before(table, key)?.map(|(key, _)| key));
        }
        let pair = self.tree(table).range(..=key).next_back().transpose().map_err(unread)?;
        Ok(pair.map(|(key, _)| Bytes::from_owner(key)))
    }

    fn records(&self, numbers: &[u64], visit: &mut dyn FnMut(u64, Option<&[u8]>) -> bool) -> Result<(), EngineError> {
        Ok(self.records.each(numbers, visit)?)
    }

    fn flush(&self) -> Result<(), EngineError> {
        self.written.lock().flushed();
        self.db.flush().map(drop).map_err(|error| self.tables_failed(error))
    }

    fn sync(&self) -> Result<(), EngineError> {
        self.sync_records().map_err(|error| self.failed(error))
    }

    fn barrier(&self) -> Result<(), EngineError> {
        self.sync()?;
        self.chunks.sync().map_err(|error| self.failed(error))
    }

    fn checkpoint(&self) -> Result<(), EngineError> {
        self.barrier()?;
        // Of what goes now the table says since before that it is not needed.
        let dead = self.chunks.dead();
        self.sync_tables()?;
        self.tidying.lock().checkpoint = Instant::now();
        self.chunks.remove(&dead);
        Ok(())
    }

    fn collect_garbage(&self, copying: Copying) -> Result<bool, EngineError> {
        if copying != Copying::No {
            let under_way = self.tidying.lock().compaction.take();
            if under_way.is_none() && copying == Copying::Eager && !self.chunks.dead().is_empty() {
                // Before the next file is copied: that takes space.
                self.checkpoint()?;
            }
            if let Some(step) = under_way.or_else(|| CompactionStep::begin(&self.chunks, copying)) {
                let next = self.compact(step)?;
                self.tidying.lock().compaction = next;
                return Ok(true);
            }
        }
        self.records.prepare();
        self.chunks.prepare();
        self.chunks.leave_empty().map_err(|error| self.failed(error))?;
        let rested = self.tidying.lock().checkpoint.elapsed() >= TIDY_PAUSE;
        if rested && !self.chunks.dead().is_empty() {
            self.checkpoint()?;
        }
        Ok(false)
    }

    fn disk_free(&self) -> Result<Option<u64>, EngineError> {
        Ok(Some(super::space::free(&self.file)?))
    }

    fn reserve(&self, number: u64, bytes: u64) -> Result<(), EngineError> {
        self.records.reserve(number, bytes).map_err(|error| self.refused(error))
    }

    fn wal_bytes_required(&self, bytes: u64) -> u64 {
        self.records.wants(bytes)
    }

    fn table_space(&self) -> Result<TableSpace, EngineError> {
        let is_behind = self.written.lock().look();
        if is_behind {
            // Or the length of the file would not say how far sled is.
            self.flush()?;
        }
        let (space, is_shrinking) = {
            let mut runway = self.runway.lock();
            (runway.extend(&self.file)?, runway.take_shrinking())
        };
        if is_shrinking {
            // What sled has in memory is written now, and not within half a second.
            self.flush()?;
        }
        Ok(space)
    }

    fn table_slack(&self) -> Result<u64, EngineError> {
        let mut tail = self.tail.lock();
        tail.advance(&self.file)?;
        Ok(tail.left())
    }

    fn synced_watermark(&self) -> Result<Option<u64>, EngineError> {
        Ok(self.mark.record())
    }
}
