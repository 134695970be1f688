//! Holds one user's log in memory: positions of entries, cursors and gaps, but no payloads.

pub(super) mod backup_pin;
pub(super) mod cache;
mod counting;
pub(super) mod cursors;
pub(super) mod lossy_restarts;
pub(super) mod usage;

use std::{
    collections::VecDeque,
    time::{Duration, UNIX_EPOCH},
};

pub use self::usage::{Usage, earlier, is_expired};
use self::{
    backup_pin::BackupPins,
    cursors::{Cursor, Cursors},
    lossy_restarts::{LossyRestarts, SEQUENCE_RESERVE},
    usage::{Front, Recount},
};
use super::tables::schema::StoredLog;
use crate::{
    message::{CollapseKey, DeviceId, Seq},
    store::{AckSet, DeviceState, GapReason, Limits, UserState, gaps::GapList},
};

/// Limit of remembered collapse keys of one user. One more removes the oldest key, whose entry then no longer
/// collapses.
pub const COLLAPSE_KEYS_MAX: usize = 64;

/// Estimated memory of a log without entries, in bytes: the log, its place in the cache, its id and its cursor.
pub const LOG_BYTES: u64 = size_of::<UserLog>() as u64 + 128;

/// Locates an entry in the WAL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalSlot {
    pub seq: Seq,
    pub record: u64,
    /// Offset of the message in the record.
    pub message_at: u32,
    /// Offset of the recipient in the record.
    pub recipient_at: u32,
    /// Bytes of payload.
    pub bytes: u32,
    /// Bytes of payload that the flush will write for it: its share, if several logs may share the payload.
    pub reserved: u32,
    /// Expiry in seconds of the Unix epoch; 0 = never.
    pub expires_s: u32,
}

/// Describes a pending entry with a collapse key. A newer entry with the same key replaces it.
#[derive(Clone, Debug)]
pub struct CollapseEntry {
    pub key: CollapseKey,
    pub seq: Seq,
    pub bytes: u32,
    pub expires_s: u32,
}

/// Holds a user's log without payloads.
#[derive(Debug, Default)]
pub struct UserLog {
    /// Last assigned sequence, visible or not.
    pub assigned: Seq,
    /// Last visible sequence.
    pub head: Seq,
    pub cursors: Cursors,
    /// Entries above this sequence are not trimmed, even if they are acknowledged.
    pub hold: Option<Seq>,
    /// Entries up to this sequence are no longer needed.
    released: Seq,
    /// The part of `released` that the WAL states.
    pub released_in_wal: Seq,
    /// Entries up to this sequence are in the value log, later ones in the WAL.
    pub flushed: Seq,
    /// The value log may have blocks of this user.
    pub has_blocks: bool,
    /// The log is queued for the commit thread to trim its blocks.
    pub trimming: bool,
    /// The log is queued for the commit thread to remove hidden entries from its blocks.
    pub purging_hidden: bool,
    /// The log is queued for the commit thread to remove unneeded entries from all its blocks, and to count the others.
    pub purging_all: bool,
    /// A commit could not count all blocks, and the purge does it.
    pub counting_by_purge: bool,
    /// Usage of the value log. Excludes gaps, and entries up to `counted`.
    pub block_usage: Usage,
    /// Entries up to this sequence are subtracted from `block_usage`, because they are released or evicted.
    pub counted: Seq,
    /// Expiry of the first entry in the value log that expires, in seconds of the Unix epoch; 0 = none expires.
    pub blocks_expire_s: u32,
    /// Time of the last count of all blocks, in seconds of the Unix epoch. Entries that had expired are not counted.
    pub scanned_s: Option<u32>,
    /// The first counted entries, if their block was read.
    front: Option<Box<Front>>,
    /// A count of all blocks that is made in steps.
    recount: Option<Recount>,
    /// Entries in the WAL, ascending. Those above `head` are not visible yet.
    slots: VecDeque<WalSlot>,
    /// Bytes of payload of the entries in the WAL.
    slot_bytes: u64,
    /// Bytes of payload that the flush will write for them.
    slot_reserved: u64,
    /// Earliest possible expiry of an entry in the WAL, in seconds of the Unix epoch; 0 = none expires.
    slots_expire_s: u32,
    pub gaps: GapList,
    /// Pending entries with a collapse key, by sequence. Most users have none.
    collapse_entries: Vec<CollapseEntry>,
    /// Last time at which the user connected or disconnected, in milliseconds of the Unix epoch; 0 = never.
    pub seen_ms: u64,
    /// Acknowledgements or presence are not in the WAL yet.
    pub dirty: bool,
    /// Number of lossy restarts that the row includes. `None`: there is no row.
    pub row_lossy_restarts: Option<u32>,
    /// The row is written with the first flush. Until then the write-ahead log has all of the log.
    pub lacks_row: bool,
    /// The next entry must be synced before it is visible ([`lossy_restarts`]): no entry followed the row that states
    /// the lossy restarts. Contains the next record at the write of this row, which is durable once that record is
    /// removed.
    pub row_before_entry: Option<u64>,
    /// Head and number of lossy restarts before the log skipped sequences. Set until the next append.
    pub before_skip: Option<(Seq, u32)>,
    /// The last WAL record with an item of this user.
    pub last_record: u64,
    /// Last use, in seconds since the store was opened.
    pub used_s: u32,
    /// Ranges in the WAL whose `expired` event is in the outbox, and which no record states yet.
    pub reported_expired: Vec<(Seq, Seq)>,
    /// A read found unreadable entries.
    pub damaged: bool,
    /// Backups that read the log.
    pub pins: BackupPins,
    /// The user is being erased, so no session may attach.
    pub is_erasing: bool,
}

impl UserLog {
    /// Restores a row, and skips sequences for the lossy restarts that it does not include. Without a row, the log
    /// starts at `floor`.
    pub fn from_row(row: Option<StoredLog>, lossy_restarts: LossyRestarts, floor: Seq) -> Self {
        let is_new = row.is_none();
        let mut log = Self::as_stored(row);
        if is_new && floor > 0 {
            log.skip_to(floor);
        }
        log.skip_lossy_restarts(lossy_restarts, log.row_lossy_restarts);
        log.released = log.cursors.through();
        log
    }

    /// Restores a row without skipping sequences.
    pub fn as_stored(row: Option<StoredLog>) -> Self {
        let mut log = Self::default();
        if let Some(stored) = row {
            log.head = stored.head;
            log.cursors = Cursors::from_stored(&stored);
            log.flushed = stored.flushed;
            log.has_blocks = stored.flushed > 0;
            log.seen_ms = stored.seen_ms;
            log.row_lossy_restarts = Some(stored.lossy_restarts);
            log.gaps = GapList::from_stored(&stored.gaps);
            (log.block_usage.entries, log.block_usage.bytes) = stored.block_usage;
            log.counted = stored.counted;
            log.blocks_expire_s = stored.expires_s;
            let collapse_entry = |(key, seq, bytes, expires_s): (String, Seq, u32, u32)| {
                Some(CollapseEntry { key: CollapseKey::new(&key).ok()?, seq, bytes, expires_s })
            };
            log.collapse_entries = stored.keys.into_iter().filter_map(collapse_entry).collect();
        }
        log.assigned = log.head;
        log.released = log.cursors.through();
        log.released_in_wal = log.released;
        log
    }

    /// Returns the row to store. `lossy_restarts` is the current number of lossy restarts.
    pub fn row(&self, lossy_restarts: u32) -> StoredLog {
        let (head, lossy_restarts) = self.before_skip.unwrap_or((self.head, lossy_restarts));
        let mut stored = StoredLog {
            head,
            flushed: self.flushed,
            lossy_restarts,
            seen_ms: self.seen_ms,
            gaps: self.gaps.stored(),
            keys: self.collapse_entries.iter().map(CollapseEntry::stored).collect(),
            block_usage: (self.block_usage.entries, self.block_usage.bytes),
            counted: self.counted,
            expires_s: self.blocks_expire_s,
            ..StoredLog::default()
        };
        self.cursors.store_in(&mut stored);
        stored
    }

    /// Returns the sequence up to which entries are no longer needed.
    pub fn released(&self) -> Seq {
        self.released
    }

    /// Returns whether reads return this entry: it is pending, or above the hold.
    pub fn is_visible(&self, seq: Seq) -> bool {
        self.hold.is_some_and(|hold| seq > hold) || !self.cursors.is_acknowledged(seq)
    }

    /// Releases acknowledged entries up to the hold, and removes their slots. Returns true if the log must be queued
    /// for a trim.
    pub fn release(&mut self) -> bool {
        let through = self.cursors.through();
        let released = self.released.max(self.hold.map_or(through, |hold| hold.min(through)));
        self.released = released;
        self.pop_slots(released);
        let stale = self.collapse_entries.partition_point(|entry| entry.seq <= released);
        self.collapse_entries.drain(..stale);
        if self.slots.is_empty() {
            // An idle user's log must not hold memory for entries that no longer exist.
            self.slots.shrink_to_fit();
            self.slots_expire_s = 0;
            self.collapse_entries.shrink_to_fit();
        }
        self.has_blocks && !self.trimming && released > 0
    }

    /// Releases acknowledged entries up to `to` despite a hold, to free quota. [`UserLog::release`] removes their
    /// slots.
    pub fn release_held(&mut self, to: Seq) {
        self.released = self.released.max(to.min(self.cursors.through()));
    }

    fn pop_slots(&mut self, through: Seq) {
        while let Some(slot) = self.slots.front().filter(|slot| slot.seq <= through) {
            self.slot_bytes -= u64::from(slot.bytes);
            self.slot_reserved -= u64::from(slot.reserved);
            self.slots.pop_front();
        }
    }

    /// Adds an entry of the current commit, or of a replayed one.
    pub fn push(&mut self, slot: WalSlot, key: Option<CollapseKey>) {
        if slot.expires_s > 0 {
            self.slots_expire_s = earlier(self.slots_expire_s, slot.expires_s);
        }
        self.slot_bytes += u64::from(slot.bytes);
        self.slot_reserved += u64::from(slot.reserved);
        self.slots.push_back(slot);
        if let Some(key) = key {
            self.collapse_entries.retain(|entry| entry.key != key);
            if self.collapse_entries.len() >= COLLAPSE_KEYS_MAX {
                self.collapse_entries.remove(0);
            }
            let WalSlot { seq, bytes, expires_s, .. } = slot;
            self.collapse_entries.push(CollapseEntry { key, seq, bytes, expires_s });
        }
    }

    /// Sets the bytes that the flush will write for the payload of an entry, if the WAL has it.
    pub fn set_reserved(&mut self, seq: Seq, bytes: u32) {
        if let Ok(at) = self.slots.binary_search_by_key(&seq, |slot| slot.seq) {
            let before = std::mem::replace(&mut self.slots[at].reserved, bytes);
            self.slot_reserved = self.slot_reserved - u64::from(before) + u64::from(bytes);
        }
    }

    /// Makes a committed entry visible.
    pub fn publish(&mut self, seq: Seq, record: u64) {
        assert!(seq > self.head, "sequence {seq} behind head {}", self.head);
        self.head = seq;
        self.last_record = record;
    }

    /// Returns the visible slots above `after`.
    pub fn slots_after(&self, after: Seq) -> impl Iterator<Item = &WalSlot> {
        let start = self.slots.partition_point(|slot| slot.seq <= after);
        self.slots.range(start..).take_while(|slot| slot.seq <= self.head)
    }

    pub fn slot(&self, seq: Seq) -> Option<&WalSlot> {
        self.slots.binary_search_by_key(&seq, |slot| slot.seq).ok().map(|at| &self.slots[at])
    }

    /// Returns the last slot, visible or not.
    pub fn last_slot(&self) -> Option<&WalSlot> {
        self.slots.back()
    }

    /// Returns the sequence of the oldest entry in the WAL.
    pub fn oldest_slot_seq(&self) -> Option<Seq> {
        self.slots.front().map(|slot| slot.seq)
    }

    /// Returns the number of entries in the WAL, and the bytes of payload that their flush will write.
    pub fn unflushed(&self) -> Usage {
        Usage { entries: self.slots.len() as u64, bytes: self.slot_reserved }
    }

    /// Returns the usage of the log, including entries that are not visible yet.
    ///
    /// Entries that were acknowledged out of order count until those before them are acknowledged.
    pub fn usage(&self) -> Usage {
        Usage {
            entries: self.slots.len() as u64 + self.block_usage.entries,
            bytes: self.slot_bytes + self.block_usage.bytes,
        }
    }

    /// Returns whether one more entry of `bytes` fits the limits.
    pub fn fits(&self, bytes: u64, limits: &Limits) -> bool {
        self.fits_without(Usage::default(), bytes, limits)
    }

    /// Returns the pending entry with this key.
    pub fn pending_with_key(&self, key: &CollapseKey, now_s: u32) -> Option<&CollapseEntry> {
        let is_pending =
            |entry: &CollapseEntry| !self.cursors.is_acknowledged(entry.seq) && !is_expired(entry.expires_s, now_s);
        self.collapse_entries.iter().find(|entry| entry.key == *key && is_pending(entry))
    }

    /// Drops `from..=to` with a gap reason. The caller subtracts entries in the value log from the usage.
    ///
    /// A range that adjoins the acknowledged prefix is acknowledged by every cursor. A later one is only a gap.
    pub fn drop_range(&mut self, from: Seq, to: Seq, reason: GapReason) {
        if from > to {
            return;
        }
        self.remove_slots(from, to);
        self.gaps.insert(from, to, reason);
        if from <= self.cursors.through() + 1 {
            self.cursors.acknowledge_all(1, to);
        }
    }

    /// Removes the slots and collapse keys of a range, without a gap.
    pub fn remove_slots(&mut self, from: Seq, to: Seq) {
        let start = self.slots.partition_point(|slot| slot.seq < from);
        let end = self.slots.partition_point(|slot| slot.seq <= to).max(start);
        for slot in self.slots.drain(start..end) {
            self.slot_bytes -= u64::from(slot.bytes);
            self.slot_reserved -= u64::from(slot.reserved);
        }
        self.collapse_entries.retain(|entry| !(from..=to).contains(&entry.seq));
    }

    /// Drops an entry that a newer one with the same key replaces.
    pub fn collapse(&mut self, seq: Seq) {
        let bytes = self.collapse_entries.iter().find(|entry| entry.seq == seq).map_or(0, |entry| entry.bytes);
        if self.slot(seq).is_none() && seq > self.counted {
            self.subtract_from_blocks(seq, Usage { entries: 1, bytes: u64::from(bytes) });
        }
        self.drop_range(seq, seq, GapReason::Collapsed);
    }

    /// Returns whether the WAL may have expired entries.
    pub fn may_have_expired(&self, now_s: u32) -> bool {
        is_expired(self.slots_expire_s, now_s)
    }

    /// Removes the slots of expired entries. Returns the sequences of those that were pending, ascending.
    ///
    /// The entries stay in the WAL until the flush, but are not visible.
    pub fn drop_expired(&mut self, now_s: u32) -> Vec<Seq> {
        if !self.may_have_expired(now_s) {
            return Vec::new();
        }
        let (mut bytes, mut next, head) = (0, 0, self.head);
        let mut dropped = Vec::new();
        self.slots.retain(|slot| {
            // An entry above the head is part of the current commit, and must stay.
            let keep = slot.seq > head || !is_expired(slot.expires_s, now_s);
            if keep {
                bytes += u64::from(slot.bytes);
                next = if slot.expires_s > 0 { earlier(next, slot.expires_s) } else { next };
            } else {
                dropped.push(slot.seq);
            }
            keep
        });
        (self.slot_bytes, self.slots_expire_s) = (bytes, next);
        self.slot_reserved = self.slots.iter().map(|slot| u64::from(slot.reserved)).sum();
        self.remove_collapse_entries(&dropped);
        dropped.retain(|seq| !self.cursors.is_acknowledged(*seq));
        dropped
    }

    /// Removes the collapse keys of entries that no longer exist. `seqs` must ascend.
    pub fn remove_collapse_entries(&mut self, seqs: &[Seq]) {
        self.collapse_entries.retain(|entry| seqs.binary_search(&entry.seq).is_err());
    }

    /// Records that entries up to `flushed` are in the value log.
    pub fn set_flushed(&mut self, flushed: Seq) {
        self.flushed = self.flushed.max(flushed);
        self.has_blocks = true;
        self.pop_slots(self.flushed);
    }

    /// Returns whether the tables hold the complete log, so that it may leave memory.
    pub fn is_idle(&self, first_record: u64) -> bool {
        self.slots.is_empty()
            && !self.dirty
            && !self.damaged
            && !self.trimming
            && !self.purging_hidden
            && !self.purging_all
            && self.hold.is_none()
            && !self.cursors.any_attached()
            && !self.pins.any()
            && self.assigned == self.head
            && self.last_record < first_record
            && self.row_before_entry.is_none_or(|record| record < first_record)
    }

    /// Returns what every cursor has acknowledged, and the usage of pending entries up to `head`.
    pub fn pending(&self, head: Seq, now_s: u32) -> (AckSet, Usage) {
        let acknowledged = self.cursors.acknowledged();
        let pending = self.pending_for(&acknowledged, head, now_s);
        (acknowledged, pending)
    }

    /// Counts entries up to `head` that are not in `acknowledged`, without reading any.
    ///
    /// Bytes in the value log are an estimate while the usage includes acknowledged entries
    /// ([`UserLog::counts_exactly`]).
    pub fn pending_for(&self, acknowledged: &AckSet, head: Seq, now_s: u32) -> Usage {
        let is_pending = |slot: &&WalSlot| {
            slot.seq <= head && !acknowledged.contains(slot.seq) && !is_expired(slot.expires_s, now_s)
        };
        let mut usage = Usage::default();
        self.slots.iter().filter(is_pending).for_each(|slot| usage.add(u64::from(slot.bytes)));
        if self.has_blocks && self.block_usage.entries > 0 {
            // The usage may include acknowledged entries, and the missing sequences may include gaps.
            let entries = self.block_usage.entries.min(acknowledged.missing(self.flushed));
            let bytes = u128::from(self.block_usage.bytes) * u128::from(entries) / u128::from(self.block_usage.entries);
            usage.entries += entries;
            // At most `block_usage.bytes`.
            usage.bytes += bytes as u64;
        }
        usage
    }

    /// Returns the queryable state of the user.
    pub fn user_state(&self, now_s: u32) -> UserState {
        let time = |ms: u64| (ms > 0).then(|| UNIX_EPOCH + Duration::from_millis(ms));
        let (acknowledged, pending) = self.pending(self.head, now_s);
        let device = |(device, cursor): &(DeviceId, Cursor)| DeviceState {
            device: device.clone(),
            acknowledged: cursor.acknowledged.through(),
            pending: self.pending_for(&cursor.acknowledged, self.head, now_s).entries,
            seen: time(cursor.seen_ms),
        };
        UserState {
            known: self.row_lossy_restarts.is_some() || self.dirty,
            head: self.head,
            acknowledged,
            pending: pending.entries,
            pending_bytes: pending.bytes,
            damaged: self.damaged,
            seen: time(self.seen_ms),
            devices: self.cursors.devices().iter().map(device).collect(),
            gaps: self.gaps.as_slice().to_vec(),
        }
    }
}

impl CollapseEntry {
    fn stored(&self) -> (String, Seq, u32, u32) {
        (self.key.as_str().to_owned(), self.seq, self.bytes, self.expires_s)
    }
}

impl UserLog {
    /// Skips the sequences that lossy restarts may have lost. `in_row` is the number of restarts that the row includes.
    pub fn skip_lossy_restarts(&mut self, lossy_restarts: LossyRestarts, in_row: Option<u32>) {
        let due = lossy_restarts.due(in_row, self.head);
        if due > 0 {
            self.before_skip = Some((self.head, in_row.unwrap_or(0)));
            self.skip_to(self.head + SEQUENCE_RESERVE * u64::from(due));
        }
        self.assigned = self.head;
    }

    /// Skips the sequences up to `to`. No entry has them, so they count as acknowledged by every cursor.
    pub fn skip_to(&mut self, to: Seq) {
        let from = self.head + 1;
        // With a full list, this reason is not recorded: one more gap could remove one that hides an entry in the value
        // log.
        if !self.gaps.is_full() {
            self.gaps.insert(from, to, GapReason::Restart);
        }
        self.cursors.acknowledge_all(from, to);
        (self.head, self.assigned) = (to, to);
    }
}

#[cfg(test)]
mod tests;
