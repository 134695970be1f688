//! Counts the entries of a log in the value log, without reading a block for each of them.

use super::{
    UserLog,
    usage::{CountRule, FRONT_ENTRIES_MAX, Front, Recount, Usage, is_expired},
};
use crate::{
    message::Seq,
    store::{AckSet, Limits},
};

impl UserLog {
    /// Returns the rule by which `block_usage` counts entries.
    pub fn count_rule(&self) -> CountRule {
        CountRule { counted: self.counted, gaps: self.gaps.clone(), expired_s: self.scanned_s.unwrap_or(0) }
    }

    /// Returns whether the usage of the value log is exact: it counts only pending entries.
    pub fn counts_exactly(&self, acknowledged: &AckSet, now_s: u32) -> bool {
        let acknowledged_beyond = acknowledged.ranges().iter().any(|(from, _)| *from <= self.flushed);
        let counted = acknowledged.through() <= self.counted && !acknowledged_beyond;
        !self.has_blocks || counted && !is_expired(self.blocks_expire_s, now_s)
    }

    /// Returns the number of entries in the WAL, and their bytes of payload.
    pub fn in_wal(&self) -> Usage {
        Usage { entries: self.slots.len() as u64, bytes: self.slot_bytes }
    }

    /// Returns the sequence up to which blocks may be removed: entries are released, and the WAL states it.
    ///
    /// A crash must not keep the removal of a block and lose the acknowledgement that caused it.
    pub fn trimmable(&mut self) -> Seq {
        if !self.dirty {
            self.released_in_wal = self.released;
        }
        self.released_in_wal
    }

    /// Subtracts counted entries of one block from the usage. `seq` is one of them.
    pub fn subtract_from_blocks(&mut self, seq: Seq, usage: Usage) {
        self.block_usage.subtract(usage);
        if let Some(recount) = self.recount.as_mut().filter(|recount| seq <= recount.through) {
            recount.usage.subtract(usage);
        }
    }

    /// Subtracts counted entries that are removed from one block. `last` is the last sequence that the block had.
    pub fn remove_from_blocks(&mut self, last: Seq, usage: Usage) {
        // It may have entries that no longer exist.
        self.front = None;
        self.subtract_from_blocks(last, usage);
    }

    /// Sets the usage after all entries were counted at `now_s`.
    pub fn set_block_usage(&mut self, usage: Usage, now_s: u32) {
        (self.block_usage, self.scanned_s) = (usage, Some(now_s));
        // It may have entries that are no longer counted, or lack some that are.
        self.front = None;
        self.recount = None;
    }

    /// Resets the usage: no entry is counted.
    pub fn reset_block_usage(&mut self) {
        self.block_usage = Usage::default();
        (self.front, self.recount) = (None, None);
    }

    /// Sets the first counted entries: those of one block, ascending.
    pub fn set_front(&mut self, entries: &[(Seq, u32)]) {
        let part = &entries[..entries.len().min(FRONT_ENTRIES_MAX)];
        self.front = part.last().map(|last| {
            let entries = part.iter().rev().copied().collect();
            Box::new(Front { entries, through: last.0 })
        });
    }

    /// Takes the first counted entry up to `to`, and subtracts it. Returns `None` if the front has no further one.
    pub fn take_front(&mut self, to: Seq) -> Option<Seq> {
        let mut front = self.front.take()?;
        let mut taken = None;
        while let Some((seq, bytes)) = front.entries.last().copied().filter(|(seq, _)| *seq <= to) {
            front.entries.pop();
            if seq > self.counted && !self.gaps.hides(seq) {
                self.counted = seq;
                self.subtract_from_blocks(seq, Usage { entries: 1, bytes: u64::from(bytes) });
                taken = Some(seq);
                break;
            }
        }
        // An empty front is dropped: the next entry is in another block.
        self.front = Some(front).filter(|front| !front.entries.is_empty());
        taken
    }

    /// Returns whether the front has every counted entry up to `to`.
    pub fn front_covers(&self, to: Seq) -> bool {
        self.front.as_ref().is_some_and(|front| front.through >= to)
    }

    /// Returns whether one more entry of `bytes` fits the limits after `usage` is subtracted.
    pub fn fits_without(&self, usage: Usage, bytes: u64, limits: &Limits) -> bool {
        let mut rest = self.usage();
        rest.subtract(usage);
        rest.entries < limits.messages && rest.bytes + bytes <= limits.bytes
    }

    /// Begins to count all blocks in steps.
    pub fn begin_recount(&mut self) {
        self.recount = Some(Recount::default());
    }

    /// Adds a block, whose last sequence is `through`, to the count in steps.
    pub fn add_to_recount(&mut self, through: Seq, usage: Usage) {
        if let Some(recount) = &mut self.recount {
            recount.through = recount.through.max(through);
            recount.usage.entries += usage.entries;
            recount.usage.bytes += usage.bytes;
        }
    }

    /// Uses the count that was made in steps and is complete.
    ///
    /// `now_s` is the time at which it began. Does nothing if another count replaced it.
    pub fn end_recount(&mut self, now_s: u32) {
        if let Some(recount) = self.recount.take() {
            self.set_block_usage(recount.usage, now_s);
        }
    }
}
