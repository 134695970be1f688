//! What becomes of the journal: entries that nobody has read for a while go to their user's inbox, many to a chunk;
//! rows say where each log stands; and the records are removed.
//!
//! Done in slices between commits, from the oldest record on. Chunks first, then the rows that count on them, then
//! the removal of what they replace: a crash anywhere in between leaves something that is merely there twice.

use std::{
    collections::{HashMap, HashSet},
    time::Instant,
};

use bytes::Bytes;

use super::{
    commit::Committer,
    engine::{EngineError, Table},
    record::{CHUNK_BYTES, Chunk, Item, RecordReader, chunk_entries, inbox_key, is_inbox_key_of, journal_key},
};
use crate::message::{Seq, UserId};

/// What one slice takes at most: some milliseconds of work, so that a commit does not wait longer than that.
const SLICE_RECORDS_MAX: usize = 256;
const SLICE_BYTES_MAX: usize = 1 << 20;

/// What a slice has found: users who are mentioned, and the entries that are still pending.
#[derive(Default)]
struct Slice {
    records: Vec<u64>,
    users: HashSet<UserId, foldhash::fast::RandomState>,
    pending: HashMap<UserId, Vec<(Seq, Bytes)>, foldhash::fast::RandomState>,
}

impl Committer {
    /// Whether the journal has something to settle now.
    pub(super) fn has_old_records(&self) -> bool {
        self.records.front().is_some_and(|oldest| {
            oldest.committed.elapsed() >= self.tuning.settle_after || self.journal_bytes > self.tuning.journal_bytes_max
        })
    }

    /// Settles one slice, if there is anything to settle.
    pub(super) fn settle(&mut self) -> Result<(), EngineError> {
        if !self.has_old_records() {
            return Ok(());
        }
        let slice = self.gather()?;
        let mut settled: HashMap<&UserId, Seq, foldhash::fast::RandomState> = HashMap::default();
        for (user, entries) in &slice.pending {
            self.put_chunks(user, entries)?;
            settled.extend(entries.last().map(|(seq, _)| (user, *seq)));
        }
        for user in &slice.users {
            self.with(user, |log| {
                if let Some(seq) = settled.get(user) {
                    log.settled = log.settled.max(*seq);
                    log.chunks = true;
                }
            })?;
            self.put_row(user)?;
        }
        for number in &slice.records {
            self.shared.engine.remove(Table::Journal, &journal_key(*number))?;
        }
        // Only now are the slots let go: until here a reader could still follow them.
        for (user, seq) in settled {
            let released = self.with(user, |log| {
                while log.slots.front().is_some_and(|slot| slot.seq <= seq) {
                    log.slots.pop_front();
                }
                if log.slots.is_empty() {
                    log.slots.shrink_to_fit();
                }
                log.release() && !std::mem::replace(&mut log.trimming, true)
            })?;
            if released {
                self.shared.queue.trim(user.clone());
            }
        }
        for _ in &slice.records {
            if let Some(record) = self.records.pop_front() {
                self.journal_bytes -= record.bytes;
            }
        }
        self.shared.recent.forget_before(self.records.front().map_or(u64::MAX, |record| record.number));
        Ok(())
    }

    /// Reads the oldest records.
    fn gather(&self) -> Result<Slice, EngineError> {
        let mut slice = Slice::default();
        let (mut bytes, now) = (0, Instant::now());
        let mut over = self.journal_bytes.saturating_sub(self.tuning.journal_bytes_max);
        for record in self.records.iter().take(SLICE_RECORDS_MAX) {
            let old = now.duration_since(record.committed) >= self.tuning.settle_after;
            if bytes > 0 && bytes + record.bytes > SLICE_BYTES_MAX || !old && over == 0 {
                break;
            }
            bytes += record.bytes;
            over = over.saturating_sub(record.bytes);
            let value = self.shared.record(record.number).map_err(EngineError::new)?;
            let value =
                value.ok_or_else(|| EngineError::new(format!("journal record {} is missing", record.number)))?;
            self.gather_record(record.number, &value, &mut slice)?;
            slice.records.push(record.number);
        }
        Ok(slice)
    }

    fn gather_record(&self, number: u64, value: &Bytes, slice: &mut Slice) -> Result<(), EngineError> {
        let damaged = |error: &dyn std::fmt::Display| EngineError::new(format!("journal record {number}: {error}"));
        let mut reader = RecordReader::new(value).map_err(|error| damaged(&error))?;
        let mut message: &[u8] = &[];
        while let Some(item) = reader.next_item() {
            let (_, item) = item.map_err(|error| damaged(&error))?;
            let user = match item {
                Item::Message(payload) => {
                    message = payload;
                    continue;
                }
                Item::To { user, .. } | Item::Received { user, .. } | Item::Seen { user, .. } => user,
            };
            let user = match slice.users.get(user) {
                Some(user) => user.clone(),
                None => {
                    let user = UserId::new(user).map_err(|error| damaged(&error))?;
                    slice.users.insert(user.clone());
                    user
                }
            };
            if let Item::To { seq, .. } = item {
                let pending = self.with(&user, |log| {
                    let slot = log.slots.binary_search_by_key(&seq, |slot| slot.seq);
                    slot.is_ok_and(|at| log.slots[at].record == number && seq > log.settled)
                })?;
                if pending {
                    slice.pending.entry(user).or_default().push((seq, value.slice_ref(message)));
                }
            }
        }
        Ok(())
    }

    fn put_chunks(&self, user: &UserId, entries: &[(Seq, Bytes)]) -> Result<(), EngineError> {
        let mut rest = entries;
        while let Some((first, _)) = rest.first() {
            let mut bytes = 0;
            let fits = |(_, payload): &&(Seq, Bytes)| {
                bytes += payload.len() + 16;
                bytes <= CHUNK_BYTES
            };
            let count = rest.iter().take_while(fits).count().max(1);
            let (chunk, after) = rest.split_at(count);
            let entries = chunk.iter().map(|(seq, payload)| (*seq, &payload[..])).collect();
            let value = Chunk::V1 { namespace: self.shared.namespace, user: user.as_str(), entries }.encode();
            self.shared.engine.put(Table::Inbox, &inbox_key(user.as_str(), *first), &value)?;
            rest = after;
        }
        Ok(())
    }

    /// Removes the chunks of a user's inbox in which everything has been released.
    pub(super) fn trim(&self, user: &UserId) -> Result<(), EngineError> {
        let (released, settled) = self.with(user, |log| {
            log.trimming = false;
            (log.released(), log.settled)
        })?;
        let (mut gone, mut left) = (Vec::new(), false);
        let mut damage = None;
        self.shared.engine.scan(Table::Inbox, &inbox_key(user.as_str(), 0), &mut |key, value| {
            if !is_inbox_key_of(key, user.as_str()) {
                return false;
            }
            // Where all of the inbox was released there is no need to look into it.
            let last = if released >= settled {
                0
            } else {
                match chunk_entries(&value) {
                    Ok(entries) => entries.last().map_or(0, |entry| entry.seq),
                    Err(error) => {
                        damage = Some(EngineError::new(format!("a chunk of user {user:?}: {error}")));
                        return false;
                    }
                }
            };
            left = last > released;
            if !left {
                gone.push(key.to_vec());
            }
            !left
        })?;
        if let Some(damage) = damage {
            return Err(damage);
        }
        gone.iter().try_for_each(|key| self.shared.engine.remove(Table::Inbox, key))?;
        self.with(user, |log| log.chunks &= left || log.settled > settled)
    }
}
