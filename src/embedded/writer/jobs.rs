//! Defines what is left of background work that is done in steps, and what one commit may still do.

use std::collections::VecDeque;

use crate::{
    embedded::{tables::contract::BlockCopy, value_log::summary::BlockSummary},
    message::{Seq, UserId},
    store::gaps::Gap,
};

/// Limit of blocks that one commit counts again: as many as a log of 96 MiB has. Counting them takes about 3 ms.
const COMMIT_BLOCKS_MAX: usize = 2048;

/// Limit of blocks that one commit reads to count them again.
const COMMIT_READS_MAX: usize = 16;

/// Bounds the work of one commit that counts logs again.
pub(in crate::embedded) struct CountBudget {
    pub(super) blocks: usize,
    pub(super) reads: usize,
}

impl Default for CountBudget {
    fn default() -> Self {
        Self { blocks: COMMIT_BLOCKS_MAX, reads: COMMIT_READS_MAX }
    }
}

/// Queues users whose blocks must be trimmed.
#[derive(Default)]
pub(in crate::embedded) struct TrimQueue {
    /// Each user at most once: [`UserLog::trimming`](crate::embedded::user_log::UserLog::trimming).
    pub(super) jobs: VecDeque<TrimJob>,
    /// The last step could not work. The next one retries it.
    pub(super) blocked: bool,
}

/// Holds the progress of the trim of one log.
pub(super) struct TrimJob {
    pub(super) user: UserId,
    /// Key of the first block of the next part.
    pub(super) from: Vec<u8>,
    /// There are blocks that must stay.
    pub(super) remain: bool,
}

impl TrimQueue {
    /// Returns whether there is work that can be done now.
    pub(super) fn is_ready(&self) -> bool {
        !self.jobs.is_empty() && !self.blocked
    }

    /// Returns whether there is work that must be retried.
    pub(super) fn is_blocked(&self) -> bool {
        !self.jobs.is_empty() && self.blocked
    }
}

/// Holds a copy of small blocks of a log, whose row is set after a barrier.
pub(in crate::embedded) struct Merge {
    pub(super) user: UserId,
    /// Keys and summaries of the copied blocks, ascending.
    pub(super) sources: Vec<(Vec<u8>, BlockSummary)>,
    pub(super) copy: BlockCopy,
}

/// Holds the progress of the purge of one log.
pub(in crate::embedded) struct Purge {
    pub(super) user: UserId,
    pub(super) scope: Scope,
    /// Expiry of entries up to this sequence is recorded.
    pub(super) reported: Seq,
}

/// Selects the blocks of a purge.
pub(super) enum Scope {
    /// Blocks that may contain entries which these gaps hide.
    Hidden {
        gaps: Vec<Gap>,
        /// Blocks up to this sequence are done.
        after: Seq,
    },
    /// All blocks.
    All {
        /// Time at which the purge began, in seconds of the Unix epoch.
        now_s: u32,
        /// Key of the next block.
        from: Vec<u8>,
        /// Expiry of the first entry that expires in the blocks that are done.
        expires_s: u32,
    },
}
