//! Flush: moves entries that stay pending from the WAL to the value log, writes the rows of their users, and removes
//! the records.
//!
//! Many records are flushed together, so that blocks are large and a row is written once for all of them. The work is
//! cut into short steps between commits, so that no commit waits long. First the blocks of all users, and a barrier;
//! then the rows that refer to them, and a checkpoint; then the records are removed. A crash in between leaves
//! entries in both places.

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::{
    dedup::{self, stored_from_wal},
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
        value_log::block::{BLOCK_BYTES_MAX, Block, block_entries},
        wal::record::{Header, Item, RecordReader},
    },
    logging::excerpt,
    message::{Seq, UserId},
    store::{Durability, Reason, Rejected},
};

/// Bytes of records in one flush (one record at least). They are in memory until it ends.
const BATCH_BYTES_MAX: usize = 16 << 20;

/// Time budget of a step: the longest that a commit waits for one.
const STEP: Duration = Duration::from_millis(2);

/// Time budget while the WAL is several times its bound: the flush then takes precedence, or the WAL would grow
/// further.
const HURRIED_STEP: Duration = Duration::from_millis(50);

/// Times its bound at which the journal is in that state.
const HURRY_FACTOR: usize = 3;

/// Chunks of ids put in one step, of [`BLOCK_BYTES_MAX`] each. Before each step the tables' space is looked at.
const ID_CHUNKS_STEP: usize = 16;

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
        let until = Instant::now() + if hurry { HURRIED_STEP } else { STEP };
        let mut flush = self.flush.take().unwrap_or_else(|| self.select_records());
        let done = self.flush_until(until, &mut flush);
        if !matches!(done, Ok(true)) {
            // Also where it failed: it goes on there if it is repeated.
            self.flush = Some(flush);
        }
        done.map(drop)
    }

    /// Returns true when the flush is complete. On an error nothing is skipped.
    fn flush_until(&mut self, until: Instant, flush: &mut Flush) -> Result<bool, EngineError> {
        while Instant::now() < until {
            if self.table_space() < TableSpace::Enough {
                return Err(EngineError::no_space("the disk is full: it has no space for the tables"));
            }
            if flush.read < flush.records {
                self.read_record(flush)?;
                if flush.read == flush.records {
                    flush.left = flush.users.drain().collect();
                    // Or a chunk could outlive the record it was made of, where answers do not wait for the disk.
                    self.sync_if_unsynced()?;
                }
            } else if let Some(user) = flush.left.pop() {
                if let Some(mut entries) = flush.pending.remove(&user)
                    && let Err(error) = self.flush_entries(&user, &mut entries)
                {
                    flush.pending.insert(user.clone(), entries);
                    flush.left.push(user);
                    return Err(error);
                }
                flush.rows.push(user);
            } else if !flush.moved {
                // Rows count on the chunks, and on all that the journal says.
                self.shared.engine.barrier()?;
                self.blocks_unsynced.set(false);
                flush.moved = true;
            } else if let Some(user) = flush.rows.pop() {
                if self.durability != Durability::Always {
                    // A row says how the log is now: more than the barrier has seen, where answers do not wait.
                    self.sync_if_unsynced()?;
                }
                self.flush_row(&user)?;
            } else if flush.removed < flush.records {
                if flush.removed == 0 {
                    if flush.id_chunks.is_none() {
                        flush.id_chunks = Some(self.cut_ids(std::mem::take(&mut flush.ids)));
                    }
                    if let Some(chunks) = &mut flush.id_chunks
                        && !chunks.is_empty()
                    {
                        self.put_ids(chunks)?;
                        continue;
                    }
                    self.put_settled(flush.records)?;
                    // What expired on the way is told before the records that had it go.
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

    /// The records to be settled next: those that are old enough, or too many.
    fn select_records(&self) -> Flush {
        let now = Instant::now();
        let bytes_max = self.wal_bytes_max();
        let mut over = self.wal_bytes.saturating_sub(bytes_max);
        // A quarter more than has to go, so that the next batch is not a single record.
        over = if over > 0 { over + bytes_max / 4 } else { 0 };
        let (mut records, mut bytes, mut is_continued) = (0, 0, false);
        for record in &self.records {
            let old = now.duration_since(record.committed) >= self.tuning.flush_delay;
            // A commit is settled as a whole: what it says of an id may stand in several of its records.
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

    /// Reads the next record of the flush.
    fn read_record(&self, flush: &mut Flush) -> Result<(), EngineError> {
        let number = self.records[flush.read].number;
        let value = self.shared.record(number)?;
        let value = value.ok_or_else(|| EngineError::new(format!("WAL record {number} is missing")))?;
        flush.read += 1;
        // Half of a record is never gathered again.
        let gathered = self.collect_record(number, &value, flush);
        gathered.map_err(|error| EngineError { cause: Cause::Failed, ..error })
    }

    /// Moves a user's entries to the value log. On an error `entries` are those that are left.
    fn flush_entries(&mut self, user: &UserId, entries: &mut Vec<Pending>) -> Result<(), EngineError> {
        let Some(last) = entries.last().map(|entry| entry.seq) else { return Ok(()) };
        let now_s = self.shared.clock.now_s();
        self.drop_expired(user, now_s)?;
        // What has been received, replaced or dropped since they were gathered has no slot any more.
        let there: Vec<bool> =
            self.with_log(user, |log| entries.iter().map(|entry| log.slot(entry.seq).is_some()).collect())?;
        let there = entries.iter().zip(there).filter(|(_, there)| *there).map(|(entry, _)| entry);
        let kept: Vec<_> = there.filter(|entry| !is_expired(entry.expires_s, now_s)).collect();
        if !kept.is_empty() {
            self.check_margin()?;
        }
        let mut done = 0;
        let put = self.put_chunks(user, &kept, &mut done);
        if let Err(error) = put {
            entries.retain(|entry| entry.seq > done);
            return Err(error);
        }
        let past: Vec<_> =
            entries.iter().filter(|entry| is_expired(entry.expires_s, now_s)).map(|entry| entry.seq).collect();
        self.with_log(user, |log| {
            log.remove_keys(&past);
            log.set_flushed(last);
        })
    }

    /// Writes down where a user's log stands.
    fn flush_row(&self, user: &UserId) -> Result<(), EngineError> {
        self.put_row(user)?;
        let trim = self.with_log(user, |log| {
            let trim = log.release();
            log.trimming |= trim;
            trim
        })?;
        if trim {
            self.shared.queue.trim(user.clone());
        }
        Ok(())
    }

    /// Writes the row of a user of whom the journal says nothing: of others it is written when that is settled.
    pub(super) fn put_row_if_alone(&self, user: &UserId) -> Result<(), EngineError> {
        let first = self.records.front().map_or(self.next_record, |record| record.number);
        if self.with_log(user, |log| log.last_record < first && !log.dirty && log.assigned == log.head)? {
            self.put_row(user)?;
        }
        Ok(())
    }

    pub(super) fn put_row(&self, user: &UserId) -> Result<(), EngineError> {
        if self.blocks_unsynced.replace(false) {
            // It may count on one of them.
            self.shared.engine.barrier()?;
        }
        let lapses = self.shared.logs.lapses().count;
        let row = self.with_log(user, |log| {
            let row = log.row(lapses);
            log.row_lapses = Some(row.lapses());
            row
        })?;
        self.shared.engine.put(Table::Users, user.as_str().as_bytes(), &row.encode())
    }

    /// Writes down that this many of the oldest records are not needed any more, so that nobody misses them.
    fn put_settled(&self, records: usize) -> Result<(), EngineError> {
        let Some(last) = records.checked_sub(1).and_then(|at| self.records.get(at)) else { return Ok(()) };
        self.shared.engine.put(Table::Meta, CLOCK_KEY, &self.shared.clock.now_ms().to_be_bytes())?;
        self.shared.engine.put(Table::Meta, FLUSHED_KEY, &wal_key(last.number))
    }

    /// Chunks of ids that a repeat may still come for, the last first.
    fn cut_ids(&self, mut ids: Vec<StoredId>) -> Vec<(Vec<u8>, StoredIds)> {
        let Some(first) = self.records.front() else { return Vec::new() };
        // By the first record: where a crash leaves some of these, and they are settled again, what was stored of those
        // that are gone is not written over.
        let number = first.number;
        let now_ms = self.shared.clock.now_ms();
        ids.retain(|id| self.dedup.is_young(id.at_ms, now_ms) && self.dedup.knows(&id.id));
        let youngest_ms = ids.iter().map(|id| id.at_ms).max().unwrap_or(0);
        let chunks = dedup::chunks(self.shared.namespace, ids).into_iter().enumerate().map(|(at, chunk)| {
            let mut key = wal_key(number).to_vec();
            key.extend((at as u32).to_be_bytes());
            (key, StoredIds { chunk, youngest_ms })
        });
        let mut chunks: Vec<_> = chunks.collect();
        chunks.reverse();
        chunks
    }

    /// Puts a step's worth of ids into their own table, before the records that name them go.
    fn put_ids(&mut self, chunks: &mut Vec<(Vec<u8>, StoredIds)>) -> Result<(), EngineError> {
        for _ in 0..ID_CHUNKS_STEP {
            let Some((key, StoredIds { chunk, youngest_ms })) = chunks.pop() else { return Ok(()) };
            self.shared.engine.put(Table::Ids, &key, &chunk.encode())?;
            self.expiry.remember(key, youngest_ms);
        }
        self.forget_disk_state();
        Ok(())
    }

    /// Removes the oldest record: everything it says is said elsewhere.
    fn remove_oldest(&mut self) -> Result<(), EngineError> {
        let Some(record) = self.records.pop_front() else { return Ok(()) };
        self.wal_bytes -= record.bytes;
        self.shared.engine.remove(Table::Wal, &wal_key(record.number))?;
        self.shared.record_cache.forget_before(record.number + 1);
        Ok(())
    }

    fn collect_record(&self, number: u64, value: &Bytes, flush: &mut Flush) -> Result<(), EngineError> {
        let damaged = |error: &dyn std::fmt::Display| EngineError::new(format!("WAL record {number}: {error}"));
        let mut reader = RecordReader::new(value).map_err(|error| damaged(&error))?;
        let Header::V1 { at_ms, .. } = reader.header;
        let mut message: &[u8] = &[];
        while let Some(item) = reader.next_item() {
            let (_, item) = item.map_err(|error| damaged(&error))?;
            let user = match item {
                Item::Message(payload) | Item::MessageWith { payload, .. } => {
                    message = payload;
                    continue;
                }
                Item::Rejected { user, reason } => {
                    let reason = Reason::from_stored(reason).unwrap_or(Reason::Invalid);
                    flush.rejected.push(Rejected { user: user.into(), reason });
                    continue;
                }
                Item::Summary { .. } => {
                    flush.ids.extend(stored_from_wal(&item, at_ms, &std::mem::take(&mut flush.rejected)));
                    continue;
                }
                Item::More => continue,
                Item::To { user, .. }
                | Item::Acknowledged { user, .. }
                | Item::Seen { user, .. }
                | Item::Cursor { user, .. }
                | Item::CursorRemoved { user, .. }
                | Item::Gap { user, .. } => user,
            };
            let user = match flush.users.get(user) {
                Some(user) => user.clone(),
                None => {
                    let user = UserId::new(user).map_err(|error| damaged(&error))?;
                    flush.users.insert(user.clone());
                    user
                }
            };
            if let Item::To { seq, .. } = item {
                let expires_s = self.with_log(&user, |log| {
                    let slot = log.slot(seq).filter(|slot| slot.record == number && seq > log.flushed);
                    slot.map(|slot| slot.expires_s)
                })?;
                if let Some(expires_s) = expires_s {
                    let payload = value.slice_ref(message);
                    flush.pending.entry(user).or_default().push(Pending { seq, expires_s, payload });
                }
            }
        }
        Ok(())
    }

    /// Puts entries into chunks. `done` is the last that is in one.
    fn put_chunks(&self, user: &UserId, entries: &[&Pending], done: &mut Seq) -> Result<(), EngineError> {
        let mut rest = entries;
        while let Some(first) = rest.first() {
            let mut bytes = 0;
            let fits = |entry: &&&Pending| {
                bytes += entry.payload.len() + 16;
                bytes <= BLOCK_BYTES_MAX
            };
            let count = rest.iter().take_while(fits).count().max(1);
            let (chunk, after) = rest.split_at(count);
            let entries = chunk.iter().map(|entry| (entry.seq, entry.expires_s, &entry.payload[..])).collect();
            let value = Block::V2 { namespace: self.shared.namespace, user: user.as_str(), entries }.encode();
            self.blocks_unsynced.set(true);
            self.shared.engine.put(Table::Log, &log_key(user.as_str(), first.seq), &value)?;
            *done = chunk[count - 1].seq;
            // From here on readers ask the inbox, which has them.
            self.with_log(user, |log| {
                for entry in chunk {
                    log.block_usage.add(entry.payload.len() as u64);
                    log.blocks_expire_s = earlier(log.blocks_expire_s, entry.expires_s);
                }
                log.set_flushed(*done);
            })?;
            rest = after;
        }
        Ok(())
    }

    /// Removes the blocks in which all entries are released, and updates the usage. Not during a commit: the released
    /// entries are needed until it is written.
    pub(in crate::embedded) fn trim(&self, user: &UserId) -> Result<(), EngineError> {
        let settled = self.with_log(user, |log| {
            log.trimming = false;
            log.flushed
        })?;
        let (gone, left) = self.count_released(user)?;
        gone.iter().try_for_each(|key| self.shared.engine.remove(Table::Log, key))?;
        self.with_log(user, |log| {
            log.has_blocks &= left || log.flushed > settled;
            log.damaged &= left;
        })?;
        self.put_row_if_alone(user)
    }

    /// Takes what has been released off the usage of a user's inbox; returns the keys of the chunks in which
    /// nothing else is, and whether there are others.
    pub(super) fn count_released(&self, user: &UserId) -> Result<(Vec<Vec<u8>>, bool), EngineError> {
        let (released, settled, counted, hidden) =
            self.with_log(user, |log| (log.released(), log.flushed, log.counted, log.gaps.clone()))?;
        let (mut gone, mut left) = (Vec::new(), false);
        let mut sizes = Vec::new();
        let from = log_key(user.as_str(), 0);
        if released >= settled {
            // All of the inbox was released: there is no need to look into it.
            self.shared.engine.keys(Table::Log, &from, &mut |key| {
                let ours = is_log_key_of(key, user.as_str());
                gone.extend(ours.then(|| key.to_vec()));
                ours
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
                        left = true;
                        return true;
                    }
                };
                let counts = |seq: Seq| seq > counted && seq <= released && !hidden.hides(seq);
                let counting = entries.iter().filter(|(entry, _)| counts(entry.seq));
                sizes.extend(counting.map(|(entry, _)| entry.payload.as_bytes().len() as u64));
                if entries.last().is_some_and(|(entry, _)| entry.seq > released) {
                    left = true;
                    return false;
                }
                gone.push(key.to_vec());
                true
            })?;
        }
        self.with_log(user, |log| {
            if released >= settled && log.flushed == settled {
                log.block_usage = Usage::default();
                log.blocks_expire_s = 0;
            } else {
                sizes.iter().for_each(|bytes| log.block_usage.subtract(*bytes));
            }
            log.counted = log.counted.max(released);
        })?;
        Ok((gone, left))
    }
}
