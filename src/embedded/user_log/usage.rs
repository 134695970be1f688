//! Counts entries: the types of a count, and the rule of what is counted.

use crate::{embedded::value_log::summary::BlockSummary, message::Seq, store::gaps::GapList};

/// Limit of entries in a [`Front`].
pub(super) const FRONT_ENTRIES_MAX: usize = 512;

/// Decides which entries of a log are counted in its usage, as of one moment.
#[derive(Clone, Debug)]
pub struct CountRule {
    /// Entries up to this sequence are not counted.
    pub counted: Seq,
    pub(super) gaps: GapList,
    /// Entries that had expired at this time are not counted, in seconds of the Unix epoch; 0 = all are counted.
    pub(super) expired_s: u32,
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
    pub(super) entries: Vec<(Seq, u32)>,
    /// The front has every counted entry up to this sequence.
    pub(super) through: Seq,
}

/// Holds a count of all blocks that is made in steps.
#[derive(Debug, Default)]
pub struct Recount {
    /// Last sequence of the last block that is counted.
    pub(super) through: Seq,
    pub(super) usage: Usage,
}

/// Counts entries and their bytes of payload.
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

    /// Subtracts entries. After a crash the usage may be slightly off, so it stops at 0.
    pub fn subtract(&mut self, usage: Self) {
        self.entries = self.entries.saturating_sub(usage.entries);
        self.bytes = self.bytes.saturating_sub(usage.bytes);
    }
}

/// Returns whether an expiry time, 0 = never, has passed.
pub fn is_expired(expires_s: u32, now_s: u32) -> bool {
    expires_s > 0 && expires_s <= now_s
}

/// Returns the earlier of two expiry times, of which 0 = never.
pub fn earlier(one: u32, other: u32) -> u32 {
    match (one, other) {
        (0, at) | (at, 0) => at,
        (one, other) => one.min(other),
    }
}
