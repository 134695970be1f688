//! Counts the entries of a log in the value log, without reading a block for each of them.

use super::{Usage, UserLog, is_expired};
use crate::{
    embedded::value_log::summary::BlockSummary,
    message::Seq,
    store::{Limits, gaps::GapList},
};

/// Limit of entries in a [`Front`].
const FRONT_ENTRIES_MAX: usize = 512;

/// Decides which entries of a log are counted in its usage, as of one moment.
#[derive(Clone, Debug)]
pub struct CountRule {
    /// Entries up to this sequence are not counted.
    pub counted: Seq,
    gaps: GapList,
    /// Entries that had expired at this time are not counted, in seconds of the Unix epoch; 0 = all are counted.
    expired_s: u32,
}

impl CountRule {
    /// Returns the rule that a count of all entries at `now_s` uses.
    pub fn at(&self, now_s: u32) -> Self {
        Self { expired_s: now_s, ..self.clone() }
    }

    pub fn hides(&self, seq: Seq) -> bool {
        self.gaps.hides(seq)
    }

    pub fn hides_any(&self, from: Seq, to: Seq) -> bool {
        self.gaps.hides_any(from, to)
    }

    pub fn hides_all(&self, from: Seq, to: Seq) -> bool {
        self.gaps.hides_all(from, to)
    }

    /// Returns whether some entries of a block had expired.
    pub fn has_expired(&self, block: &BlockSummary) -> bool {
        is_expired(block.first_expiry_s, self.expired_s)
    }

    pub fn counts(&self, seq: Seq, expires_s: u32) -> bool {
        seq > self.counted && !self.gaps.hides(seq) && !is_expired(expires_s, self.expired_s)
    }

    /// Returns the usage of the counted entries of a block, or `None` if the block must be read.
    pub fn usage(&self, block: &BlockSummary) -> Option<Usage> {
        let BlockSummary { first, last, .. } = *block;
        let all_expired = is_expired(block.last_expiry_s, self.expired_s);
        if last <= self.counted || all_expired || self.gaps.hides_all(first, last) {
            return Some(Usage::default());
        }
        let counts_all = first > self.counted && !self.has_expired(block) && !self.gaps.hides_any(first, last);
        counts_all.then(|| Usage { entries: u64::from(block.entries), bytes: u64::from(block.bytes) })
    }
}

/// Holds the sizes of the first counted entries, so that evictions and acknowledgements read their block once.
#[derive(Debug, Default)]
pub struct Front {
    /// Sequence and bytes, the last first.
    entries: Vec<(Seq, u32)>,
    /// The front has every counted entry up to this sequence.
    through: Seq,
}

/// Holds a count of all blocks that is made in steps.
#[derive(Debug, Default)]
pub struct Recount {
    /// Last sequence of the last block that is counted.
    through: Seq,
    usage: Usage,
}

impl UserLog {
    /// Returns the rule by which `block_usage` counts entries.
    pub fn count_rule(&self) -> CountRule {
        CountRule { counted: self.counted, gaps: self.gaps.clone(), expired_s: self.scanned_s.unwrap_or(0) }
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
