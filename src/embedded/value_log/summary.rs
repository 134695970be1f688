//! Summary of a block. The table `log` stores it together with the block's location.
//!
//! Trims, quotas and expiry decide by the summary whether they need the block. So they read only blocks of which they
//! need a part of the entries.

use super::block::{Block, BlockEntry};
use crate::message::Seq;

/// Describes the entries of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockSummary {
    /// Sequence of the first entry.
    pub first: Seq,
    /// Sequence of the last entry.
    pub last: Seq,
    /// Number of entries; at least 1.
    pub entries: u32,
    /// Bytes of payload.
    pub bytes: u32,
    /// Expiry of the first entry that expires, in seconds of the Unix epoch; 0 = none expires.
    pub first_expiry_s: u32,
    /// Expiry of the last entry that expires, in seconds of the Unix epoch; 0 = some entry never expires.
    pub last_expiry_s: u32,
}

impl BlockSummary {
    /// Summarizes an encoded block. Returns `None` if it has no entries or cannot be read.
    pub fn of(block: &[u8]) -> Option<Self> {
        let Block::V1 { entries, .. } = Block::decode(block).ok()?;
        Self::of_entries(&entries)
    }

    /// Summarizes the entries of a block. Returns `None` if there are none.
    pub fn of_entries(entries: &[BlockEntry<'_>]) -> Option<Self> {
        let (first, last) = (entries.first()?.0, entries.last()?.0);
        let bytes = entries.iter().map(|(.., payload)| payload.len() as u64).sum::<u64>();
        let expiries = || entries.iter().map(|(_, expires_s, _)| *expires_s);
        let all_expire = expiries().all(|expires_s| expires_s > 0);
        Some(Self {
            first,
            last,
            entries: u32::try_from(entries.len()).ok()?,
            bytes: u32::try_from(bytes).ok()?,
            first_expiry_s: expiries().filter(|expires_s| *expires_s > 0).min().unwrap_or(0),
            last_expiry_s: if all_expire { expiries().max().unwrap_or(0) } else { 0 },
        })
    }

    /// Returns whether the block has an entry for each sequence from the first to the last.
    pub fn is_dense(&self) -> bool {
        self.last - self.first + 1 == u64::from(self.entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::embedded::value_log::block::Body;

    #[test]
    fn summary_states_first_and_last_expiry_and_whether_all_entries_expire() {
        let block = |entries: Vec<(u64, u32, &[u8])>| {
            let entries = entries.into_iter().map(|(seq, at, payload)| (seq, at, Body::Inline(payload))).collect();
            Block::V1 { namespace: 1, user: "a", entries }.encode()
        };
        let summary = BlockSummary::of(&block(vec![(3, 50, b"abc"), (5, 20, b""), (6, 40, b"d")])).unwrap();
        let expected = BlockSummary { first: 3, last: 6, entries: 3, bytes: 4, first_expiry_s: 20, last_expiry_s: 50 };
        assert_eq!((summary, summary.is_dense()), (expected, false));
        let mixed = BlockSummary::of(&block(vec![(3, 0, b"abc"), (4, 20, b"")])).unwrap();
        assert_eq!((mixed.first_expiry_s, mixed.last_expiry_s, mixed.is_dense()), (20, 0, true));
        assert_eq!(BlockSummary::of(&block(vec![])), None);
        assert_eq!(BlockSummary::of(b"garbage"), None);
    }
}
