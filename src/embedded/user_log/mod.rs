//! One user's log in memory: positions of entries, cursors and gaps. No payload.

pub(super) mod cache;
pub(super) mod cursors;
pub(super) mod lossy_restarts;

use std::collections::VecDeque;

use self::{
    cursors::Cursors,
    lossy_restarts::{LossyRestarts, SEQUENCE_RESERVE},
};
use super::tables::schema::{Row, StoredCursor, StoredLog};
use crate::{
    message::{CollapseKey, Seq},
    store::{AckSet, GapReason, Limits, gaps::GapList},
};

/// Keys of pending entries remembered for one user. One more, and the oldest is forgotten: its entry stays, and is not
/// replaced any more.
pub const KEYS_MAX: usize = 64;

/// Position of an entry in the WAL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalSlot {
    pub seq: Seq,
    pub record: u64,
    /// Offsets in the record: of the message, and of the stamp that says whose it is.
    pub message_at: u32,
    pub stamp_at: u32,
    /// Bytes of payload.
    pub bytes: u32,
    /// When it expires, in seconds of the Unix epoch; 0 = never.
    pub expires_s: u32,
}

/// Number of entries, and their bytes of payload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub entries: u64,
    pub bytes: u64,
}

impl Usage {
    pub fn add(&mut self, bytes: u64) {
        self.entries += 1;
        self.bytes += bytes;
    }

    /// After a crash a usage may be a little off; it never goes below nothing.
    pub fn subtract(&mut self, bytes: u64) {
        self.entries = self.entries.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

/// A pending entry that a newer one of the same key takes the place of.
#[derive(Clone, Debug)]
pub struct CollapseEntry {
    pub key: CollapseKey,
    pub seq: Seq,
    pub bytes: u32,
    pub expires_s: u32,
}

/// A user's log.
#[derive(Debug, Default)]
pub struct UserLog {
    /// Last assigned sequence, visible or not.
    pub assigned: Seq,
    /// Last visible sequence.
    pub head: Seq,
    pub cursors: Cursors,
    /// Nothing above this is trimmed, received or not.
    pub hold: Option<Seq>,
    /// Entries up to this are not needed any more.
    released: Seq,
    /// Entries up to this are in the value log, those above it in the WAL.
    pub flushed: Seq,
    /// The value log may have blocks of this user.
    pub has_blocks: bool,
    /// The commit thread has been asked to trim these blocks.
    pub trimming: bool,
    /// Usage of the value log, without entries up to `counted` and without gaps.
    pub block_usage: Usage,
    /// Up to here entries of the inbox are not counted any more.
    pub counted: Seq,
    /// When the first entry in the inbox expires, in seconds of the Unix epoch; 0 = none does.
    pub blocks_expire_s: u32,
    /// When the inbox was last gone through entry by entry, in seconds of the Unix epoch.
    pub scanned_s: Option<u32>,
    /// Entries in the WAL, ascending. Those above `head` are not visible yet.
    slots: VecDeque<WalSlot>,
    slot_bytes: u64,
    /// No entry in the journal expires before this, in seconds of the Unix epoch; 0 = none does.
    slots_expire_s: u32,
    pub gaps: GapList,
    /// Rising by sequence. Most users have none.
    keys: Vec<CollapseEntry>,
    /// When the user was seen, in milliseconds of the Unix epoch; 0 = never.
    pub seen_ms: u64,
    /// Acknowledgements or presence are not in the WAL yet.
    pub dirty: bool,
    /// Lossy restarts that the row takes into account; `None`: there is no row.
    pub row_lapses: Option<u32>,
    /// While nothing was appended since a lapse was passed over: the head before that, and the lapses it takes into account.
    pub passed: Option<(Seq, u32)>,
    /// The last journal record that says anything about this user.
    pub last_record: u64,
    /// When this was last of use, in seconds since the store was opened.
    pub touched: u32,
    /// Entries of the journal of which an `expired` event was put into the outbox, and that is not in the journal yet.
    pub reported_expired: Vec<(Seq, Seq)>,
    /// A read found unreadable entries.
    pub damaged: bool,
}

impl UserLog {
    /// What a row says, moved on over the lapses it does not take into account.
    pub fn from_row(row: Option<Row>, lapses: LossyRestarts) -> Self {
        let mut log = Self::as_stored(row);
        log.skip_lossy_restarts(lapses, log.row_lapses);
        log.released = log.cursors.through();
        log
    }

    /// What a row says.
    pub fn as_stored(row: Option<Row>) -> Self {
        let mut log = Self::default();
        if let Some(row) = row {
            let stored = row.into_stored();
            log.head = stored.head;
            log.cursors = Cursors::from_stored(&stored);
            log.flushed = stored.settled;
            log.has_blocks = stored.settled > 0;
            log.seen_ms = stored.seen_ms;
            log.row_lapses = Some(stored.lapses);
            log.gaps = GapList::from_stored(&stored.gone);
            (log.block_usage.entries, log.block_usage.bytes) = stored.inbox;
            log.counted = stored.counted;
            log.blocks_expire_s = stored.expires_s;
            let keyed = |(key, seq, bytes, expires_s): (String, Seq, u32, u32)| {
                Some(CollapseEntry { key: CollapseKey::new(&key).ok()?, seq, bytes, expires_s })
            };
            log.keys = stored.keys.into_iter().filter_map(keyed).collect();
        }
        log.assigned = log.head;
        log.released = log.cursors.through();
        log
    }

    /// What is to be stored, with `lapses` as the number there were.
    pub fn row(&self, lapses: u32) -> Row {
        let (head, lapses) = self.passed.unwrap_or((self.head, lapses));
        let mut stored = StoredLog {
            head,
            settled: self.flushed,
            lapses,
            seen_ms: self.seen_ms,
            gone: self.gaps.stored(),
            keys: self.keys.iter().map(CollapseEntry::stored).collect(),
            inbox: (self.block_usage.entries, self.block_usage.bytes),
            counted: self.counted,
            expires_s: self.blocks_expire_s,
            ..StoredLog::default()
        };
        self.cursors.store_in(&mut stored);
        Row::V2(stored)
    }

    /// Nothing up to this is needed any more.
    pub fn released(&self) -> Seq {
        self.released
    }

    /// Whether a read shows this entry: somebody has not received it, or another session may not have read it yet.
    pub fn is_visible(&self, seq: Seq) -> bool {
        self.hold.is_some_and(|hold| seq > hold) || !self.cursors.contain(seq)
    }

    /// Drops positions of released entries. Returns true if blocks are to be trimmed.
    pub fn release(&mut self) -> bool {
        let through = self.cursors.through();
        let released = self.released.max(self.hold.map_or(through, |hold| hold.min(through)));
        self.released = released;
        self.pop_slots(released);
        let stale = self.keys.partition_point(|keyed| keyed.seq <= released);
        self.keys.drain(..stale);
        if self.slots.is_empty() {
            // An idle user's log takes no memory for entries that do not exist.
            self.slots.shrink_to_fit();
            self.slots_expire_s = 0;
            self.keys.shrink_to_fit();
        }
        self.has_blocks && !self.trimming && released > 0
    }

    /// The same where what everybody has had to make room up to `to`, although somebody holds it.
    pub fn release_held(&mut self, to: Seq) -> bool {
        self.released = self.released.max(to.min(self.cursors.through()));
        self.release()
    }

    fn pop_slots(&mut self, through: Seq) {
        while let Some(slot) = self.slots.front().filter(|slot| slot.seq <= through) {
            self.slot_bytes -= u64::from(slot.bytes);
            self.slots.pop_front();
        }
    }

    /// Takes in an entry that is being committed, or that was.
    pub fn push(&mut self, slot: WalSlot, key: Option<CollapseKey>) {
        if slot.expires_s > 0 {
            self.slots_expire_s = earlier(self.slots_expire_s, slot.expires_s);
        }
        self.slot_bytes += u64::from(slot.bytes);
        self.slots.push_back(slot);
        if let Some(key) = key {
            self.keys.retain(|keyed| keyed.key != key);
            if self.keys.len() >= KEYS_MAX {
                self.keys.remove(0);
            }
            let WalSlot { seq, bytes, expires_s, .. } = slot;
            self.keys.push(CollapseEntry { key, seq, bytes, expires_s });
        }
    }

    /// Shows an entry that has been committed.
    pub fn publish(&mut self, seq: Seq, record: u64) {
        assert!(seq > self.head, "sequence {seq} behind head {}", self.head);
        self.head = seq;
        self.last_record = record;
    }

    /// The visible slots above `after`.
    pub fn slots_after(&self, after: Seq) -> impl Iterator<Item = &WalSlot> {
        let start = self.slots.partition_point(|slot| slot.seq <= after);
        self.slots.range(start..).take_while(|slot| slot.seq <= self.head)
    }

    pub fn slot(&self, seq: Seq) -> Option<&WalSlot> {
        self.slots.binary_search_by_key(&seq, |slot| slot.seq).ok().map(|at| &self.slots[at])
    }

    /// The last slot, visible or not.
    pub fn last_slot(&self) -> Option<&WalSlot> {
        self.slots.back()
    }

    /// The oldest entry that is in the journal.
    pub fn oldest_slot(&self) -> Option<Seq> {
        self.slots.front().map(|slot| slot.seq)
    }

    /// What is in the journal alone.
    pub fn unflushed(&self) -> Usage {
        Usage { entries: self.slots.len() as u64, bytes: self.slot_bytes }
    }

    /// What is kept for this user, visible or not. Entries that were received out of order count until those before
    /// them are.
    pub fn usage(&self) -> Usage {
        Usage {
            entries: self.slots.len() as u64 + self.block_usage.entries,
            bytes: self.slot_bytes + self.block_usage.bytes,
        }
    }

    /// Whether one more entry of so many bytes is within the limits.
    pub fn fits(&self, bytes: u64, limits: &Limits) -> bool {
        let usage = self.usage();
        usage.entries < limits.messages && usage.bytes + bytes <= limits.bytes
    }

    /// The pending entry with this key.
    pub fn pending_with_key(&self, key: &CollapseKey, now_s: u32) -> Option<&CollapseEntry> {
        let pending = |keyed: &CollapseEntry| !self.cursors.contain(keyed.seq) && !is_expired(keyed.expires_s, now_s);
        self.keys.iter().find(|keyed| keyed.key == *key && pending(keyed))
    }

    /// Takes `from..=to` out: they are gone, for this reason. What of it is in the inbox is hidden from here on, and
    /// is to be taken out of the usage by whoever knows its size.
    pub fn drop_range(&mut self, from: Seq, to: Seq, loss: GapReason) {
        if from > to {
            return;
        }
        self.remove_slots(from, to);
        self.gaps.insert(from, to, loss);
        if from <= self.cursors.through() + 1 {
            self.cursors.all_receive(1, to);
        }
    }

    /// Removes entries of the journal, without a reason that is remembered.
    pub fn remove_slots(&mut self, from: Seq, to: Seq) {
        let start = self.slots.partition_point(|slot| slot.seq < from);
        let end = self.slots.partition_point(|slot| slot.seq <= to).max(start);
        let bytes: u64 = self.slots.drain(start..end).map(|slot| u64::from(slot.bytes)).sum();
        self.slot_bytes -= bytes;
        self.keys.retain(|keyed| !(from..=to).contains(&keyed.seq));
    }

    /// Takes out the entry that a newer one takes the place of.
    pub fn collapse(&mut self, seq: Seq) {
        let bytes = self.keys.iter().find(|keyed| keyed.seq == seq).map_or(0, |keyed| keyed.bytes);
        if self.slot(seq).is_none() && seq > self.counted {
            self.block_usage.subtract(u64::from(bytes));
        }
        self.drop_range(seq, seq, GapReason::Collapsed);
    }

    /// Lets go of entries in the journal that have expired; they stay there until it is settled, and are not shown. Returns
    /// those that somebody had not received, rising.
    pub fn drop_expired(&mut self, now_s: u32) -> Vec<Seq> {
        if self.slots_expire_s == 0 || self.slots_expire_s > now_s {
            return Vec::new();
        }
        let (mut bytes, mut next, head) = (0, 0, self.head);
        let mut dropped = Vec::new();
        self.slots.retain(|slot| {
            // What is not visible yet is about to be.
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
        self.remove_keys(&dropped);
        dropped.retain(|seq| !self.cursors.contain(*seq));
        dropped
    }

    /// Entries in the inbox that have a key.
    pub fn flushed_keys(&self) -> Vec<Seq> {
        self.keys.iter().map(|keyed| keyed.seq).filter(|seq| *seq <= self.flushed).collect()
    }

    /// These entries are not there any more: nothing takes their place.
    pub fn remove_keys(&mut self, seqs: &[Seq]) {
        self.keys.retain(|keyed| !seqs.contains(&keyed.seq));
    }

    /// Entries in the journal up to `settled` are in the inbox now.
    pub fn set_flushed(&mut self, flushed: Seq) {
        self.flushed = self.flushed.max(flushed);
        self.has_blocks = true;
        self.pop_slots(self.flushed);
    }

    /// Nothing in memory that is not in the tables: the log can be loaded again when it is needed.
    pub fn is_idle(&self, first_record: u64) -> bool {
        self.slots.is_empty()
            && !self.dirty
            && !self.damaged
            && !self.trimming
            && self.hold.is_none()
            && !self.cursors.any_attached()
            && self.assigned == self.head
            && self.last_record < first_record
    }

    /// What all cursors have received, and the pending entries up to `head`.
    pub fn pending(&self, head: Seq, now_s: u32) -> (AckSet, Usage) {
        let received = self.cursors.received();
        let pending = self.pending_for(&received, head, now_s);
        (received, pending)
    }

    /// Counts the entries up to `head` that are not in `received`, without reading any.
    ///
    /// Bytes in the inbox are an estimate where the usage still has entries that were received: see
    /// [`UserLog::counts_exactly`].
    pub fn pending_for(&self, received: &AckSet, head: Seq, now_s: u32) -> Usage {
        let waiting =
            |slot: &&WalSlot| slot.seq <= head && !received.contains(slot.seq) && !is_expired(slot.expires_s, now_s);
        let mut usage = Usage::default();
        self.slots.iter().filter(waiting).for_each(|slot| usage.add(u64::from(slot.bytes)));
        if self.has_blocks && self.block_usage.entries > 0 {
            // What was received beyond a hole is still counted in the inbox, and what is gone there still lies in its range.
            let entries = self.block_usage.entries.min(received.missing(self.flushed));
            let bytes = u128::from(self.block_usage.bytes) * u128::from(entries) / u128::from(self.block_usage.entries);
            usage.entries += entries;
            // At most `inbox.bytes`.
            usage.bytes += bytes as u64;
        }
        usage
    }

    /// Whether the usage of the inbox has exactly what all cursors together lack, so that its bytes are no estimate.
    pub fn counts_exactly(&self, received: &AckSet, now_s: u32) -> bool {
        let received_beyond = received.ranges().iter().any(|(from, _)| *from <= self.flushed);
        // Stores of the first version had entries without their bytes.
        let uncounted = self.block_usage.entries > 0 && self.block_usage.bytes == 0;
        let settled = received.through() <= self.counted && !received_beyond && !uncounted;
        !self.has_blocks || settled && !is_expired(self.blocks_expire_s, now_s)
    }
}

impl Row {
    /// How many lapses it takes into account.
    pub fn lapses(&self) -> u32 {
        match self {
            Self::V1 { lapses, .. } => *lapses,
            Self::V2(log) => log.lapses,
        }
    }

    /// What it says, in the form of the newest version.
    pub fn into_stored(self) -> StoredLog {
        match self {
            Self::V1 { head, through, ranges, settled, seen_ms, lapses } => StoredLog {
                head,
                settled,
                lapses,
                seen_ms,
                shared: Some(StoredCursor { through, ranges, seen_ms }),
                // What the inbox has was not counted then: as much as it can be.
                inbox: (settled.saturating_sub(through), 0),
                counted: through,
                ..StoredLog::default()
            },
            Self::V2(stored) => stored,
        }
    }
}

impl CollapseEntry {
    fn stored(&self) -> (String, Seq, u32, u32) {
        (self.key.as_str().to_owned(), self.seq, self.bytes, self.expires_s)
    }
}

/// Whether a time, 0 = never, has come.
pub fn is_expired(expires_s: u32, now_s: u32) -> bool {
    expires_s > 0 && expires_s <= now_s
}

/// The earlier of two times, of which 0 = never.
pub fn earlier(one: u32, other: u32) -> u32 {
    match (one, other) {
        (0, at) | (at, 0) => at,
        (one, other) => one.min(other),
    }
}

#[cfg(test)]
mod tests;

impl UserLog {
    /// Passes over everything that lapses may have taken back. `known`: the lapses its row takes into account.
    pub fn skip_lossy_restarts(&mut self, lapses: LossyRestarts, known: Option<u32>) {
        let due = lapses.due(known, self.head);
        if due > 0 {
            self.passed = Some((self.head, known.unwrap_or(0)));
            self.skip_to(self.head + SEQUENCE_RESERVE * u64::from(due));
        }
        self.assigned = self.head;
    }

    /// Passes over the sequences up to `to`. Nothing is stored at them, so every cursor counts them as received.
    pub fn skip_to(&mut self, to: Seq) {
        let from = self.head + 1;
        // One more range may push out one that still hides an entry in the inbox; then only the reason is lost.
        if !self.gaps.is_full() {
            self.gaps.insert(from, to, GapReason::Restart);
        }
        self.cursors.all_receive(from, to);
        (self.head, self.assigned) = (to, to);
    }
}
