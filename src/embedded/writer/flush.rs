//! Moves pending entries from the WAL to the value log (flush), writes their users' rows, and removes the records.
//!
//! Many records are flushed together, so that blocks are large and each row is written once. The work is cut into short
//! steps between commits, so that no commit waits long. The order is: the blocks of all users, a barrier, the rows that
//! refer to the blocks, a checkpoint, the removal of the records. A crash in between leaves entries in both places.

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::{
    dedup,
    state::{Committer, Flush, Pending, StoredIds},
};
use crate::{
    embedded::{
        tables::{
            contract::{Cause, EngineError, Table, TableSpace},
            meta::{CLOCK_KEY, FLUSHED_KEY},
            schema::{StoredId, is_log_key_of, log_key, wal_key},
        },
        user_log::{Usage, earlier, is_expired},
        value_log::block::{Block, block_entries, split_entries},
        wal::events::Event,
    },
    logging::excerpt,
    message::{Seq, UserId},
    store::Durability,
};

/// Bytes of records in one flush, one record at least. They stay in memory until the flush ends.
const BATCH_BYTES_MAX: usize = 16 << 20;

/// Time limit of a step, and so the delay that a flush adds to a commit.
const STEP_TIMEOUT: Duration = Duration::from_millis(2);

/// Time limit of a step while the WAL is far above its bound. Flushing takes precedence then, or the WAL would keep growing.
const HURRIED_STEP_TIMEOUT: Duration = Duration::from_millis(50);

/// Multiple of the WAL's bound above which steps are longer.
const HURRY_FACTOR: usize = 3;

/// Blocks of ids that one step stores, each of at most 48 KiB. Table space is checked before each step.
const STEP_ID_BLOCKS_MAX: usize = 16;

impl Committer {
    /// Returns whether a flush is due or under way.
    pub(super) fn flush_is_due(&self) -> bool {
        self.flush.is_some()
            || self.records.front().is_some_and(|oldest| {
                oldest.committed.elapsed() >= self.tuning.flush_delay || self.wal_bytes > self.wal_bytes_max()
            })
    }

    /// Runs one step of the flush, if one is due.
    pub(in crate::embedded) fn flush_step(&mut self) -> Result<(), EngineError> {
        if !self.flush_is_due() {
            return Ok(());
        }
        let hurry = self.wal_bytes / HURRY_FACTOR > self.wal_bytes_max();
        let until = Instant::now() + if hurry { HURRIED_STEP_TIMEOUT } else { STEP_TIMEOUT };
        let mut flush = self.flush.take().unwrap_or_else(|| self.select_records());
        let done = self.flush_until(until, &mut flush);
        if !matches!(done, Ok(true)) {
            // Also after an error: a retry continues there.
            self.flush = Some(flush);
        }
        done.map(drop)
    }

    /// Runs the flush until a time. Returns true when it is complete. After an error, a retry skips nothing.
    fn flush_until(&mut self, until: Instant, flush: &mut Flush) -> Result<bool, EngineError> {
        while Instant::now() < until {
            if self.table_space() < TableSpace::Enough {
                return Err(EngineError::no_space("the disk is full: it has no space for the tables"));
            }
            if flush.read < flush.records {
                self.read_record(flush)?;
                if flush.read == flush.records {
                    flush.users_left = flush.users.drain().collect();
                    // Without this, a block could survive a power cut that takes its record, if durability is not `always`.
                    self.sync_if_unsynced()?;
                }
            } else if let Some(user) = flush.users_left.pop() {
                if let Some(mut entries) = flush.pending.remove(&user)
                    && let Err(error) = self.flush_entries(&user, &mut entries)
                {
                    flush.pending.insert(user.clone(), entries);
                    flush.users_left.push(user);
                    return Err(error);
                }
                flush.rows_left.push(user);
            } else if !flush.barrier_done {
                // Rows refer to the blocks, and include everything that the WAL has.
                self.shared.engine.barrier()?;
                self.blocks_unsynced.set(false);
                flush.barrier_done = true;
            } else if let Some(user) = flush.rows_left.pop() {
                if self.durability != Durability::Always {
                    // The row has the current state, which may be newer than the barrier.
                    self.sync_if_unsynced()?;
                }
                self.flush_row(&user)?;
            } else if flush.removed < flush.records {
                if flush.removed == 0 {
                    if flush.id_blocks.is_none() {
                        flush.id_blocks = Some(self.pack_ids(std::mem::take(&mut flush.ids)));
                    }
                    if let Some(blocks) = &mut flush.id_blocks
                        && !blocks.is_empty()
                    {
                        self.put_ids(blocks)?;
                        continue;
                    }
                    self.put_flushed(flush.records)?;
                    // Events of entries that expired meanwhile must be stored before their records are removed.
                    self.write_outbox()?;
                    self.shared.engine.checkpoint()?;
                }
                self.remove_oldest()?;
                flush.removed += 1;
            } else {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Selects the records of the next flush: those that are old enough, or that exceed the bound of the WAL.
    fn select_records(&self) -> Flush {
        let now = Instant::now();
        let bytes_max = self.wal_bytes_max();
        let mut over = self.wal_bytes.saturating_sub(bytes_max);
        // A quarter of the bound more than necessary, so that the next flush is not a single record.
        over = if over > 0 { over + bytes_max / 4 } else { 0 };
        let (mut records, mut bytes, mut is_continued) = (0, 0, false);
        for record in &self.records {
            let old = now.duration_since(record.committed) >= self.tuning.flush_delay;
            // A commit is flushed as a whole: its items of one id may be in several records.
            if !is_continued && (records > 0 && bytes + record.bytes > BATCH_BYTES_MAX || !old && over == 0) {
                break;
            }
            is_continued = record.is_continued;
            records += 1;
            bytes += record.bytes;
            over = over.saturating_sub(record.bytes);
        }
        Flush { records, ..Flush::default() }
    }

    /// Reads and decodes the next record of the flush.
    fn read_record(&self, flush: &mut Flush) -> Result<(), EngineError> {
        let number = self.records[flush.read].number;
        let value = self.shared.record(number)?;
        let value = value.ok_or_else(|| EngineError::new(format!("WAL record {number} is missing")))?;
        flush.read += 1;
        // After an error the record is partly collected, so it must not be read again.
        let collected = self.collect_record(number, &value, flush);
        collected.map_err(|error| EngineError { cause: Cause::Failed, ..error })
    }

    /// Moves a user's entries to the value log. After an error, `entries` has the entries that are not moved.
    fn flush_entries(&mut self, user: &UserId, entries: &mut Vec<Pending>) -> Result<(), EngineError> {
        let Some(last) = entries.last().map(|entry| entry.seq) else { return Ok(()) };
        let now_s = self.shared.clock.now_s();
        self.drop_expired(user, now_s)?;
        // Entries that were acknowledged, collapsed or dropped since they were collected have no slot any more.
        let in_wal: Vec<bool> =
            self.with_log(user, |log| entries.iter().map(|entry| log.slot(entry.seq).is_some()).collect())?;
        let in_wal = entries.iter().zip(in_wal).filter(|(_, in_wal)| *in_wal).map(|(entry, _)| entry);
        let live: Vec<_> = in_wal.filter(|entry| !is_expired(entry.expires_s, now_s)).collect();
        if !live.is_empty() {
            self.check_margin()?;
        }
        let mut done = 0;
        let put = self.put_blocks(user, &live, &mut done);
        if let Err(error) = put {
            entries.retain(|entry| entry.seq > done);
            return Err(error);
        }
        let expired: Vec<_> =
            entries.iter().filter(|entry| is_expired(entry.expires_s, now_s)).map(|entry| entry.seq).collect();
        self.with_log(user, |log| {
            log.remove_keys(&expired);
            log.set_flushed(last);
        })
    }

    /// Writes a user's row, and queues a trim if necessary.
    fn flush_row(&self, user: &UserId) -> Result<(), EngineError> {
        self.put_row(user)?;
        self.with_log(user, |log| self.shared.release(user, log))
    }

    /// Writes the row of a user without items in the WAL. The flush writes the rows of all others.
    pub(super) fn put_row_if_flushed(&self, user: &UserId) -> Result<(), EngineError> {
        let first = self.records.front().map_or(self.next_record, |record| record.number);
        if self.with_log(user, |log| log.last_record < first && !log.dirty && log.assigned == log.head)? {
            self.put_row(user)?;
        }
        Ok(())
    }

    pub(super) fn put_row(&self, user: &UserId) -> Result<(), EngineError> {
        if self.blocks_unsynced.replace(false) {
            // The row may refer to one of these blocks.
            self.shared.engine.barrier()?;
        }
        let lossy_restarts = self.shared.logs.lossy_restarts().count;
        let row = self.with_log(user, |log| {
            let row = log.row(lossy_restarts);
            log.row_lossy_restarts = Some(row.lossy_restarts);
            row
        })?;
        self.shared.engine.put(Table::Users, user.as_str().as_bytes(), &row.encode())
    }

    /// Records that this many of the oldest records are flushed, so that recovery does not need them.
    fn put_flushed(&self, records: usize) -> Result<(), EngineError> {
        let Some(last) = records.checked_sub(1).and_then(|at| self.records.get(at)) else { return Ok(()) };
        self.shared.engine.put(Table::Meta, CLOCK_KEY, &self.shared.clock.now_ms().to_be_bytes())?;
        self.shared.engine.put(Table::Meta, FLUSHED_KEY, &wal_key(last.number))
    }

    /// Packs the ids for which a retry may still come into blocks, the last block first.
    fn pack_ids(&self, mut ids: Vec<StoredId>) -> Vec<(Vec<u8>, StoredIds)> {
        let Some(first) = self.records.front() else { return Vec::new() };
        // Keys begin with the first record. If a crash leaves some of the records, the repeated flush begins with another
        // one, and does not overwrite the ids of the removed records.
        let number = first.number;
        let now_ms = self.shared.clock.now_ms();
        ids.retain(|id| self.dedup.is_young(id.at_ms, now_ms) && self.dedup.knows(&id.id));
        let youngest_ms = ids.iter().map(|id| id.at_ms).max().unwrap_or(0);
        let blocks = dedup::blocks(self.shared.namespace, ids).into_iter().enumerate().map(|(at, block)| {
            let mut key = wal_key(number).to_vec();
            key.extend((at as u32).to_be_bytes());
            (key, StoredIds { block, youngest_ms })
        });
        let mut blocks: Vec<_> = blocks.collect();
        blocks.reverse();
        blocks
    }

    /// Stores the blocks of ids of one step, before the records with these ids are removed.
    fn put_ids(&mut self, blocks: &mut Vec<(Vec<u8>, StoredIds)>) -> Result<(), EngineError> {
        for _ in 0..STEP_ID_BLOCKS_MAX {
            let Some((key, StoredIds { block, youngest_ms })) = blocks.pop() else { return Ok(()) };
            self.shared.engine.put(Table::Ids, &key, &block.encode())?;
            self.expiry.push_ids(key, youngest_ms);
        }
        self.invalidate_disk_state();
        Ok(())
    }

    /// Removes the oldest record, after everything in it is stored elsewhere.
    fn remove_oldest(&mut self) -> Result<(), EngineError> {
        let Some(record) = self.records.pop_front() else { return Ok(()) };
        self.wal_bytes -= record.bytes;
        self.shared.engine.remove_record(record.number)?;
        self.shared.record_cache.remove_before(record.number + 1);
        Ok(())
    }

    fn collect_record(&self, number: u64, value: &Bytes, flush: &mut Flush) -> Result<(), EngineError> {
        let damaged = |error: &dyn std::fmt::Display| EngineError::new(format!("WAL record {number}: {error}"));
        let mut decoder = std::mem::take(&mut flush.decoder);
        for event in decoder.events(value).map_err(|error| damaged(&error))? {
            let event = event.map_err(|error| damaged(&error))?;
            let user = match event {
                Event::Entry { user, .. }
                | Event::Seen { user, .. }
                | Event::Cursor { user, .. }
                | Event::CursorRemoved { user, .. }
                | Event::Gap { user, .. } => user,
                Event::Summary(id) => {
                    flush.ids.push(id);
                    continue;
                }
            };
            let user = match flush.users.get(user) {
                Some(user) => user.clone(),
                None => {
                    let user = UserId::new(user).map_err(|error| damaged(&error))?;
                    flush.users.insert(user.clone());
                    user
                }
            };
            if let Event::Entry { seq, message, .. } = event {
                let is_pending = self.with_log(&user, |log| {
                    log.slot(seq).is_some_and(|slot| slot.record == number && seq > log.flushed)
                })?;
                if is_pending {
                    let (expires_s, payload) = (message.expires_s, value.slice_ref(message.payload));
                    flush.pending.entry(user).or_default().push(Pending { seq, expires_s, payload });
                }
            }
        }
        flush.decoder = decoder;
        Ok(())
    }

    /// Writes entries as blocks. `done` is the last sequence that is in a block.
    fn put_blocks(&self, user: &UserId, entries: &[&Pending], done: &mut Seq) -> Result<(), EngineError> {
        for part in split_entries(entries, |entry| entry.payload.len()) {
            let entries = part.iter().map(|entry| (entry.seq, entry.expires_s, &entry.payload[..])).collect();
            let value = Block::V1 { namespace: self.shared.namespace, user: user.as_str(), entries }.encode();
            self.blocks_unsynced.set(true);
            self.shared.engine.put(Table::Log, &log_key(user.as_str(), part[0].seq), &value)?;
            *done = part[part.len() - 1].seq;
            // From now on readers use the value log, which has these entries.
            self.with_log(user, |log| {
                for entry in part {
                    log.block_usage.add(entry.payload.len() as u64);
                    log.blocks_expire_s = earlier(log.blocks_expire_s, entry.expires_s);
                }
                log.set_flushed(*done);
            })?;
        }
        Ok(())
    }

    /// Removes blocks in which all entries are released, and updates the usage. Must not run during a commit, which needs
    /// the released entries until it is written.
    pub(in crate::embedded) fn trim(&self, user: &UserId) -> Result<(), EngineError> {
        let flushed = self.with_log(user, |log| {
            log.trimming = false;
            log.flushed
        })?;
        let (released_keys, blocks_remain) = self.count_released(user)?;
        released_keys.iter().try_for_each(|key| self.shared.engine.remove(Table::Log, key))?;
        self.with_log(user, |log| {
            log.has_blocks &= blocks_remain || log.flushed > flushed;
            log.damaged &= blocks_remain;
        })?;
        self.put_row_if_flushed(user)
    }

    /// Subtracts released entries from the usage of a user's value log.
    ///
    /// Returns the keys of blocks in which all entries are released, and whether there are others.
    pub(super) fn count_released(&self, user: &UserId) -> Result<(Vec<Vec<u8>>, bool), EngineError> {
        let (released, flushed, counted, hidden) =
            self.with_log(user, |log| (log.released(), log.flushed, log.counted, log.gaps.clone()))?;
        let (mut released_keys, mut blocks_remain) = (Vec::new(), false);
        let mut sizes = Vec::new();
        let from = log_key(user.as_str(), 0);
        if released >= flushed {
            // All blocks are released, so they need not be read.
            self.shared.engine.keys(Table::Log, &from, &mut |key| {
                let is_own = is_log_key_of(key, user.as_str());
                released_keys.extend(is_own.then(|| key.to_vec()));
                is_own
            })?;
        } else {
            self.shared.engine.scan(Table::Log, &from, &mut |key, value| {
                if !is_log_key_of(key, user.as_str()) {
                    return false;
                }
                let entries = match block_entries(&value) {
                    Ok(entries) => entries,
                    Err(error) => {
                        tracing::error!(user = %excerpt(user), %error, "a block of this user's log cannot be read and is left as it is; save the rest with `mesa inspect --salvage`");
                        blocks_remain = true;
                        return true;
                    }
                };
                let counts = |seq: Seq| seq > counted && seq <= released && !hidden.hides(seq);
                let counting = entries.iter().filter(|(entry, _)| counts(entry.seq));
                sizes.extend(counting.map(|(entry, _)| entry.payload.as_bytes().len() as u64));
                if entries.last().is_some_and(|(entry, _)| entry.seq > released) {
                    blocks_remain = true;
                    return false;
                }
                released_keys.push(key.to_vec());
                true
            })?;
        }
        self.with_log(user, |log| {
            if released >= flushed && log.flushed == flushed {
                log.block_usage = Usage::default();
                log.blocks_expire_s = 0;
            } else {
                sizes.iter().for_each(|bytes| log.block_usage.subtract(*bytes));
            }
            log.counted = log.counted.max(released);
        })?;
        Ok((released_keys, blocks_remain))
    }
}
