//! Bounds the WAL, and the memory that its entries take, by slowing down appends.
//!
//! - Above the first bound ([`Tuning::wal_bytes_max`], [`Tuning::memory_bytes_max`]), records are flushed before they are
//!   old, in steps that become longer the closer the second bound is.
//! - At the second bound, twice the first, operations stay in the queue until a flush has made room. After
//!   [`Tuning::busy_timeout`], which includes the wait for a place in the queue, they are rejected.
//!
//! On a full disk no flush can make room, so appends are not held here: they are rejected as on any full disk.
//!
//! [`Tuning::wal_bytes_max`]: crate::embedded::options::Tuning::wal_bytes_max
//! [`Tuning::memory_bytes_max`]: crate::embedded::options::Tuning::memory_bytes_max
//! [`Tuning::busy_timeout`]: crate::embedded::options::Tuning::busy_timeout

use std::time::Duration;

use super::{queue::Op, state::Committer};
use crate::{embedded::tables::contract::Cause, store::StoreError};

/// Time limit of a flush step, and so the delay that a flush adds to a commit.
const STEP_TIMEOUT: Duration = Duration::from_millis(2);

/// Microseconds that are added to it at the second bound, and a part of them before.
const EXTRA_TIMEOUT_US: u64 = 48_000;

/// A fill level at the first bound. At the second bound it is twice that.
const FIRST_BOUND: u64 = 1000;

impl Committer {
    /// Returns whether operations must wait for a flush.
    pub(super) fn is_congested(&self) -> bool {
        let is_disk_full = self.suspended.why.as_ref().is_some_and(|why| why.cause == Cause::NoSpace);
        !is_disk_full && self.fill_levels().into_iter().any(|level| level >= 2 * FIRST_BOUND)
    }

    /// Returns whether the WAL or its memory is above its first bound.
    pub(super) fn is_above_bound(&self) -> bool {
        self.fill_levels().into_iter().any(|level| level > FIRST_BOUND)
    }

    /// Returns the bytes of records that must be flushed so that the WAL and its memory are below their first bounds.
    pub(super) fn bytes_above_bound(&self) -> usize {
        let [_, memory] = self.fill_levels();
        let by_wal = self.wal_bytes.saturating_sub(self.wal_bytes_max());
        // The share of the WAL that holds the excess entries, if all records have as many.
        let excess = u128::from(memory.saturating_sub(FIRST_BOUND)) * self.wal_bytes as u128;
        let by_memory = excess / u128::from(memory.max(1));
        by_wal.max(usize::try_from(by_memory).unwrap_or(usize::MAX))
    }

    /// Returns the time limit of a flush step.
    pub(super) fn flush_step_timeout(&self) -> Duration {
        let level = self.fill_levels().into_iter().max().unwrap_or(0);
        let share = level.saturating_sub(FIRST_BOUND).min(FIRST_BOUND);
        STEP_TIMEOUT + Duration::from_micros(EXTRA_TIMEOUT_US * share / FIRST_BOUND)
    }

    /// Returns the fill levels of the WAL and of its memory, each in thousandths of its first bound.
    fn fill_levels(&self) -> [u64; 2] {
        let level = |bytes: u64, bound: usize| {
            let level = u128::from(bytes) * u128::from(FIRST_BOUND) / bound.max(1) as u128;
            u64::try_from(level).unwrap_or(u64::MAX)
        };
        [
            level(self.wal_bytes as u64, self.tuning.wal_bytes_max),
            level(self.shared.logs.pinned_bytes(), self.tuning.memory_bytes_max),
        ]
    }

    /// Rejects operations that have waited too long for a flush.
    pub(super) fn reject_overdue(&self, ops: Vec<Op>) {
        if ops.is_empty() {
            return;
        }
        let (wal, pinned) = (self.wal_bytes, self.shared.logs.pinned_bytes());
        let busy = StoreError::Busy(
            format!(
                "messages arrive faster than the disk takes them. The write-ahead log has {wal} bytes (store.walBytes), \
                 and its messages take {pinned} bytes of memory (store.memoryBytes)"
            )
            .into(),
        );
        ops.into_iter().for_each(|op| op.reject(&busy));
    }
}
