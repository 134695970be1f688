//! Flushes: moves pending entries from the WAL to the value log, writes their users' rows, and removes the records.
//!
//! Many records are flushed together, so that blocks are large and each row is written once. The work is cut into steps
//! between commits, so that it delays a commit by one step at most. The order is: shared bodies, the blocks of all users, a
//! barrier, merges of small blocks ([`merge`]), the rows that refer to the blocks, a checkpoint, the removal of the
//! records. After a crash, entries may be both in
//! the WAL and in the value log.

use std::{collections::VecDeque, time::Instant};

use bytes::Bytes;

use super::{
    dedup, merge,
    state::{Committer, Flush, FlushEntry, StoredIds},
    suspend::NO_TABLE_SPACE,
};
use crate::{
    embedded::{
        tables::{
            contract::{Cause, EngineError, NewBlock, Table, TableSpace},
            meta::{CLOCK_KEY, FLUSHED_KEY},
            schema::{StoredId, log_key, wal_key},
        },
        user_log::{Usage, UserLog, earlier, is_expired},
        value_log::{
            block::{Block, bodies_of, split_entries},
            bodies::{BodyId, is_shared},
            summary::BlockSummary,
        },
        wal::events::Event,
    },
    message::{Seq, UserId},
    store::Durability,
    util::saturate::saturate,
};

/// Limit of records in one flush, in bytes; at least one commit. They stay in memory until the flush ends.
const BATCH_BYTES_MAX: usize = 16 << 20;

/// Bytes of entries that are moved before the time is checked again: about six blocks. One entry may exceed it.
pub(super) const PART_BYTES: usize = 256 << 10;

/// Limit of users whose entries are moved before the time is checked again.
const GROUP_USERS_MAX: usize = 64;

/// Limit of rows that are written, and of logs that leave memory, before the time is checked again.
const GROUP_ROWS_MAX: usize = 16;

/// Limit of id blocks that one step stores, each of at most 48 KiB. Table space is checked before each step.
const STEP_ID_BLOCKS_MAX: usize = 16;

/// Divisor of the time after which an unused log leaves memory: a log that a flush has written leaves after this part.
///
/// The next message of a user who gets few is usually later than that time anyway.
const FLUSHED_IDLE_SHARE: u32 = 12;

/// Entries of one user that are moved together.
struct Part {
    user: UserId,
    /// All entries of the user that are left. The first `count` are moved.
    entries: VecDeque<FlushEntry>,
    /// No earlier entries of the user were moved by this flush.
    is_first: bool,
    count: usize,
    /// The last sequence that is moved.
    last: Seq,
    /// Usage of those that are still pending, and the expiry of the first of them.
    usage: Usage,
    expires_s: u32,
    /// Blocks up to this sequence may be merged.
    merge_through: Option<Seq>,
}

impl Committer {
    /// Returns whether a flush is due or under way.
    pub(super) fn flush_is_due(&self) -> bool {
        self.flush.is_some()
            || self.records.front().is_some_and(|oldest| {
                oldest.number <= self.flush_through
                    || oldest.committed.elapsed() >= self.tuning.flush_delay
                    || self.wal_bytes > self.wal_bytes_max()
                    || self.is_above_bound()
            })
    }

    /// Runs one step of the flush, if one is due.
    pub(in crate::embedded) fn flush_step(&mut self) -> Result<(), EngineError> {
        if !self.flush_is_due() {
            return Ok(());
        }
        let until = Instant::now() + self.flush_step_timeout();
        let mut flush = self.flush.take().unwrap_or_else(|| self.select_records());
        let done = self.flush_until(until, &mut flush);
        if !matches!(done, Ok(true)) {
            // Also after an error: a retry continues from there.
            self.flush = Some(flush);
        }
        done.map(drop)
    }

    /// Runs the flush until `until`. Returns true when it is complete. After an error, a retry repeats the failed part.
    fn flush_until(&mut self, until: Instant, flush: &mut Flush) -> Result<bool, EngineError> {
        let mut merge_reads = 0;
        while Instant::now() < until {
            if self.table_space() < TableSpace::Enough {
                return Err(EngineError::no_space(NO_TABLE_SPACE));
            }
            if flush.read < flush.records {
                self.read_record(flush)?;
                if flush.read == flush.records {
                    // With a durability other than `always`, a power cut could otherwise keep a block and lose its
                    // record.
                    self.sync_if_not_durable()?;
                }
            } else if !flush.bodies.is_empty() {
                self.flush_bodies(flush)?;
            } else if !flush.users.is_empty() {
                self.flush_group(flush)?;
            } else if !flush.merges_durable
                && flush.merges.len() < merge::COPIES_MAX
                && let Some((user, flushed)) = flush.merges_left.pop_front()
            {
                if merge_reads >= merge::STEP_READS {
                    flush.merges_left.push_front((user, flushed));
                    break;
                }
                flush.merges.extend(self.copy_small_blocks(&user, flushed, &mut merge_reads)?);
            } else if let Some(merge) = flush.merges.pop() {
                if self.blocks_not_durable.get() {
                    flush.merges.push(merge);
                    self.shared.engine.barrier()?;
                    self.blocks_not_durable.set(false);
                } else {
                    self.apply_merge(merge)?;
                }
                // The next copies are made when all of these are set, so that they share a barrier.
                flush.merges_durable = !flush.merges.is_empty();
            } else if !flush.barrier_done {
                // Rows refer to the blocks, and include the changes in the WAL.
                self.shared.engine.barrier()?;
                self.blocks_not_durable.set(false);
                flush.barrier_done = true;
            } else if !flush.rows_left.is_empty() {
                if self.durability != Durability::Always {
                    // The rows have the current state, which may be later than the barrier.
                    self.sync_if_not_durable()?;
                }
                for _ in 0..GROUP_ROWS_MAX {
                    let Some(user) = flush.rows_left.pop_front() else { break };
                    if self.flush_row(&user)? {
                        flush.logs_left.push(user);
                    } else {
                        flush.rows_left.push_back(user);
                    }
                }
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
                    // Before these records count as flushed: the table then has all events that are in them, and the WAL or
                    // the table those of expired entries, unless the disk has no space for these.
                    self.write_outbox()?;
                    if !self.put_events()? {
                        return Err(EngineError::no_space(NO_TABLE_SPACE));
                    }
                    self.put_flushed(flush.records)?;
                    self.shared.engine.checkpoint()?;
                }
                self.remove_oldest()?;
                flush.removed += 1;
            } else if !flush.logs_left.is_empty() {
                let first = self.records.front().map_or(self.next_record, |record| record.number);
                let is_above_bound = self.shared.logs.loaded_bytes() > self.tuning.memory_bytes_max as u64;
                let idle_seconds = if is_above_bound { 0 } else { self.tuning.idle_seconds / FLUSHED_IDLE_SHARE };
                for user in flush.logs_left.drain(flush.logs_left.len().saturating_sub(GROUP_ROWS_MAX)..) {
                    self.shared.logs.evict_idle(&user, first, idle_seconds);
                }
            } else {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Selects the records of the next flush: old ones, and those above the bound of the WAL.
    fn select_records(&self) -> Flush {
        let now = Instant::now();
        let bytes_max = self.wal_bytes_max();
        let mut over = self.bytes_above_bound();
        // A quarter of the bound more than necessary. Otherwise the next flush would be a single record.
        over = if over > 0 { over + bytes_max / 4 } else { 0 };
        let (mut records, mut bytes, mut is_continued) = (0, 0, false);
        for record in &self.records {
            let old =
                record.number <= self.flush_through || now.duration_since(record.committed) >= self.tuning.flush_delay;
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
        // After an error the record is partly collected, so a retry would collect entries twice. The error is final.
        let collected = self.collect_record(number, &value, flush);
        collected.map_err(|error| EngineError { cause: Cause::Failed, ..error })
    }

    /// Moves entries of the next users to the value log, with one write. After an error, a retry repeats it.
    ///
    /// Readers find the entries in the WAL until their blocks are written and have rows.
    fn flush_group(&mut self, flush: &mut Flush) -> Result<(), EngineError> {
        let now_s = self.shared.clock.now_s();
        let (mut parts, mut blocks, mut bytes) = (Vec::new(), Vec::new(), 0);
        for _ in 0..GROUP_USERS_MAX {
            if bytes >= PART_BYTES {
                break;
            }
            let Some((user, entries)) = flush.users.pop_first() else { break };
            if entries.is_empty() {
                flush.rows_left.push_back(user);
                continue;
            }
            let is_first = flush.continued.as_ref() != Some(&user);
            let (usage, merge_through) = (Usage::default(), None);
            parts.push(Part { user, entries, is_first, count: 0, last: 0, usage, expires_s: 0, merge_through });
            let Some(part) = parts.last_mut() else { break };
            if let Err(error) = self.prepare_part(part, now_s, &mut bytes, &mut blocks) {
                flush.users.extend(parts.into_iter().map(|part| (part.user, part.entries)));
                return Err(error);
            }
        }
        if !blocks.is_empty()
            && let Err(error) = self.put_blocks(&blocks)
        {
            flush.users.extend(parts.into_iter().map(|part| (part.user, part.entries)));
            return Err(error);
        }
        for mut part in parts {
            self.finish_part(&mut part, now_s)?;
            flush.merges_left.extend(part.merge_through.map(|flushed| (part.user.clone(), flushed)));
            if part.entries.is_empty() {
                flush.rows_left.push_back(part.user);
            } else {
                flush.continued = Some(part.user.clone());
                flush.users.insert(part.user, part.entries);
            }
        }
        Ok(())
    }

    /// Selects the next entries of a user, and adds blocks of those that are still pending. Adds their size to `bytes`.
    fn prepare_part(
        &self,
        part: &mut Part,
        now_s: u32,
        bytes: &mut usize,
        blocks: &mut Vec<NewBlock>,
    ) -> Result<(), EngineError> {
        let user = &part.user;
        let fits = |entry: &&FlushEntry| {
            let fits = *bytes < PART_BYTES;
            *bytes += entry.stored_bytes();
            fits
        };
        part.count = part.entries.iter().take_while(fits).count();
        let selected = &part.entries.make_contiguous()[..part.count];
        part.last = selected.last().map_or(0, |entry| entry.seq);
        let (is_first, last) = (part.is_first, part.last);
        let select = |log: &mut UserLog| {
            // Entries that were acknowledged, collapsed or dropped meanwhile have no slot.
            let is_live = |entry: &&FlushEntry| log.slot(entry.seq).is_some() && !is_expired(entry.expires_s, now_s);
            let live: Vec<_> = selected.iter().filter(is_live).collect();
            // Blocks of this flush are not merged by it.
            (live, (is_first && merge::is_due(log, last)).then_some(log.flushed))
        };
        let found = self.with_log(user, |log| (!log.may_have_expired(now_s)).then(|| select(log)))?;
        let (live, merge_through) = match found {
            Some(found) => found,
            None => {
                self.drop_expired(user, now_s)?;
                self.with_log(user, select)?
            }
        };
        part.merge_through = merge_through;
        for run in split_entries(&live, |entry| entry.payload.len()) {
            let entries: Vec<_> = run.iter().map(|entry| (entry.seq, entry.expires_s, entry.body())).collect();
            for (_, expires_s, body) in &entries {
                part.usage.add(body.len() as u64);
                part.expires_s = earlier(part.expires_s, *expires_s);
            }
            let (summary, bodies) = (BlockSummary::of_entries(&entries), bodies_of(&entries));
            let value = Block::V1 { namespace: self.shared.namespace, user: user.as_str(), entries }.encode();
            blocks.push(NewBlock { key: log_key(user.as_str(), run[0].seq), value, summary, bodies });
        }
        Ok(())
    }

    /// Writes blocks, and then the rows that locate them.
    fn put_blocks(&mut self, blocks: &[NewBlock]) -> Result<(), EngineError> {
        self.check_margin()?;
        self.blocks_not_durable.set(true);
        self.shared.engine.put_blocks(blocks)
    }

    /// Records that the selected entries are in the value log: from now on, readers read them from there.
    fn finish_part(&self, part: &mut Part, now_s: u32) -> Result<(), EngineError> {
        let moved = part.entries.drain(..part.count);
        let expired = moved.filter(|entry| is_expired(entry.expires_s, now_s));
        let expired: Vec<_> = expired.map(|entry| entry.seq).collect();
        self.with_log(&part.user, |log| {
            log.block_usage.entries += part.usage.entries;
            log.block_usage.bytes += part.usage.bytes;
            log.blocks_expire_s = earlier(log.blocks_expire_s, part.expires_s);
            log.remove_collapse_entries(&expired);
            log.set_flushed(part.last);
        })
    }

    /// Records in the tables that the oldest `records` are flushed, so that recovery ignores them.
    fn put_flushed(&self, records: usize) -> Result<(), EngineError> {
        let Some(last) = records.checked_sub(1).and_then(|at| self.records.get(at)) else { return Ok(()) };
        self.shared.engine.put(Table::Meta, CLOCK_KEY, &self.shared.clock.now_ms().to_be_bytes())?;
        self.put_live_bytes()?;
        self.shared.engine.put(Table::Meta, FLUSHED_KEY, &wal_key(last.number))
    }

    /// Packs the ids that are within the window into blocks, the last block first.
    fn pack_ids(&self, mut ids: Vec<StoredId>) -> Vec<(Vec<u8>, StoredIds)> {
        let Some(first) = self.records.front() else { return Vec::new() };
        // Keys begin with the number of the first record. After a crash that leaves some of the records, the repeated
        // flush begins with another record. So it does not overwrite the ids of the removed records.
        let number = first.number;
        let now_ms = self.shared.clock.now_ms();
        ids.retain(|id| self.dedup.is_within_window(id.at_ms, now_ms) && self.dedup.contains(&id.id));
        // Without users who were erased after these records.
        for id in ids.iter_mut().filter(|id| !id.rejected.is_empty()) {
            id.rejected = self.dedup.stored_rejected(&id.id);
        }
        let youngest_ms = ids.iter().map(|id| id.at_ms).max().unwrap_or(0);
        let blocks = dedup::pack_blocks(self.shared.namespace, ids).into_iter().enumerate().map(|(at, block)| {
            let mut key = wal_key(number).to_vec();
            key.extend(saturate(at).to_be_bytes());
            (key, StoredIds { block, youngest_ms })
        });
        let mut blocks: Vec<_> = blocks.collect();
        blocks.reverse();
        blocks
    }

    /// Stores the id blocks of one step.
    fn put_ids(&mut self, blocks: &mut Vec<(Vec<u8>, StoredIds)>) -> Result<(), EngineError> {
        for _ in 0..STEP_ID_BLOCKS_MAX {
            let Some((key, StoredIds { block, youngest_ms })) = blocks.pop() else { return Ok(()) };
            self.shared.engine.put(Table::Ids, &key, &block.encode())?;
            self.expiry.push_ids(key, youngest_ms);
        }
        self.invalidate_disk_state();
        Ok(())
    }

    /// Removes the oldest record, whose content is stored in the value log and the tables.
    fn remove_oldest(&mut self) -> Result<(), EngineError> {
        let Some(record) = self.records.pop_front() else { return Ok(()) };
        self.wal_bytes -= record.bytes;
        self.shared.engine.remove_record(record.number)?;
        self.shared.record_cache.remove_before(record.number + 1);
        Ok(())
    }

    /// Collects the users, pending entries, shared bodies and ids of a record.
    fn collect_record(&self, number: u64, value: &Bytes, flush: &mut Flush) -> Result<(), EngineError> {
        let damaged = |error: &dyn std::fmt::Display| EngineError::new(format!("WAL record {number}: {error}"));
        let mut decoder = std::mem::take(&mut flush.decoder);
        // With the offset of the message.
        let mut pending: Vec<(u32, UserId, FlushEntry)> = Vec::new();
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
                // The table of the outbox has the events.
                Event::Erased { .. } | Event::Events { .. } | Event::EventsRemoved { .. } => continue,
            };
            let user = UserId::new(user).map_err(|error| damaged(&error))?;
            let Event::Entry { seq, message, .. } = event else {
                flush.users.entry(user).or_default();
                continue;
            };
            // A log with entries in the WAL is in memory.
            let is_pending = self
                .shared
                .logs
                .with_loaded(&user, |log| log.slot(seq).is_some_and(|slot| slot.record == number) && seq > log.flushed);
            if is_pending == Some(true) {
                let (expires_s, payload) = (message.expires_s, value.slice_ref(message.payload));
                pending.push((message.at, user, FlushEntry { seq, expires_s, payload, body: None }));
            } else {
                flush.users.entry(user).or_default();
            }
        }
        flush.decoder = decoder;
        // The recipients of a message follow each other.
        for recipients in pending.chunk_by_mut(|(one, ..), (other, ..)| one == other) {
            let count = recipients.len();
            let Some((at, _, FlushEntry { payload, .. })) = recipients.first() else { continue };
            if is_shared(payload.len(), count) {
                let id = BodyId { record: number, at: *at };
                flush.bodies.push_back((id, payload.clone()));
                recipients.iter_mut().for_each(|(.., entry)| entry.body = Some(id));
            }
        }
        for (_, user, entry) in pending {
            let entries = flush.users.entry(user).or_default();
            // Most users have one entry.
            entries.reserve_exact(usize::from(entries.is_empty()));
            entries.push_back(entry);
        }
        Ok(())
    }
}
