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

/// Time limit of a flush step close to the second bound.
const LONGEST_STEP_TIMEOUT: Duration = Duration::from_millis(50);

/// Ratio of the second bound to the first.
const BOUND_FACTOR: usize = 2;

impl Committer {
    /// Returns whether operations must wait for a flush.
    pub(super) fn is_congested(&self) -> bool {
        let is_disk_full = self.suspended.why.as_ref().is_some_and(|why| why.cause == Cause::NoSpace);
        let [wal, memory] = self.fill_levels();
        !is_disk_full && (wal >= BOUND_FACTOR as f64 || memory >= BOUND_FACTOR as f64)
    }

    /// Returns whether the WAL or its memory is above its first bound.
    pub(super) fn is_above_bound(&self) -> bool {
        self.fill_levels().into_iter().any(|level| level > 1.0)
    }

    /// Returns the bytes of records that must be flushed so that the WAL and its memory are below their first bounds.
    pub(super) fn bytes_above_bound(&self) -> usize {
        let [_, memory] = self.fill_levels();
        let by_wal = self.wal_bytes.saturating_sub(self.wal_bytes_max());
        // The share of the WAL that holds the excess entries, if all records have as many.
        let by_memory = if memory > 1.0 { self.wal_bytes as f64 * (1.0 - memory.recip()) } else { 0.0 };
        by_wal.max(by_memory as usize)
    }

    /// Returns the time limit of a flush step.
    pub(super) fn flush_step_timeout(&self) -> Duration {
        let level = self.fill_levels().into_iter().fold(0.0, f64::max);
        let share = ((level - 1.0) / (BOUND_FACTOR as f64 - 1.0)).clamp(0.0, 1.0);
        STEP_TIMEOUT + (LONGEST_STEP_TIMEOUT - STEP_TIMEOUT).mul_f64(share)
    }

    /// Returns the sizes of the WAL and of its memory, as multiples of their first bounds.
    fn fill_levels(&self) -> [f64; 2] {
        let memory_max = self.tuning.memory_bytes_max.max(1);
        let wal_max = self.tuning.wal_bytes_max.max(1);
        [self.wal_bytes as f64 / wal_max as f64, self.shared.logs.pinned_bytes() as f64 / memory_max as f64]
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
