//! Suspends work of the commit thread while the disk is full, or the system has no descriptors or memory.
//!
//! - *Background work* (flush, trim, outbox, compaction, expiry) begins only if there is space for it. If it fails for lack
//!   of space, it is suspended and retried every 100 ms.
//! - *Acknowledgements and presence* are written while the WAL has reserved space. Afterwards they stay in memory, at most
//!   one report for each user. A crash then repeats the acknowledged messages.
//! - *A commit* that fails for lack of space is stuck, and is written when there is space. Its callers get the error that
//!   its outcome is unknown. No other commit is made before it.

use std::time::{Duration, Instant};

use super::{
    append::CURSOR_BYTES_MAX,
    queue::Batch,
    state::{Commit, Committer, DiskState, Suspended},
};
use crate::{
    embedded::{
        progress::Step,
        tables::contract::{Cause, CompactionMode, EngineError, TableSpace},
    },
    message::UserId,
    store::StoreError,
};

/// Bytes reserved in the WAL for acknowledgements on a full disk. Messages cannot use them.
pub(super) const REPORTS_RESERVE_BYTES: u64 = 1 << 20;

/// Error text for a disk without space for the tables.
pub(super) const NO_TABLE_SPACE: &str = "the disk is full: it has no space for the tables";

/// Interval of retries of suspended work.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// Time for which a measurement of the disk is reused.
const DISK_STATE_TTL: Duration = Duration::from_millis(5);

/// Free disk bytes that background work never uses.
const MARGIN_BYTES: u64 = 4 << 20;

/// Spare bytes on the disk below which dead blocks are reclaimed eagerly: four files of the value log.
///
/// Compaction copies one file at a time.
const EAGER_BYTES: u64 = 32 << 20;

/// Returns the bytes reserved for one user's report.
///
/// The report has presence, and a cursor of each device and of clients without one, all with the maximum number of
/// ranges. It is never larger than the reserve for all reports.
fn report_bytes_max(devices_max: usize) -> u64 {
    let items = (devices_max as u64).saturating_add(2);
    items.saturating_mul(CURSOR_BYTES_MAX as u64).min(REPORTS_RESERVE_BYTES)
}

impl Committer {
    /// Returns whether any work is suspended.
    pub(super) fn is_suspended(&self) -> bool {
        self.suspended.why.is_some() || !self.is_written() || self.trims.is_blocked()
    }

    /// Returns why dispatches are rejected, if the disk is full.
    pub(super) fn why_suspended(&self) -> Option<String> {
        let why = self.suspended.why.as_ref().filter(|why| why.cause == Cause::NoSpace)?;
        Some(format!(
            "{why}. Pending messages are delivered; dispatches are accepted again when there is space on the disk"
        ))
    }

    /// Returns how long the thread may wait while work is suspended.
    pub(super) fn retry_delay(&self) -> Option<Duration> {
        self.is_suspended().then_some(RETRY_INTERVAL)
    }

    /// Suspends background work that failed.
    ///
    /// # Errors
    /// Returns `error` if it is final.
    pub(in crate::embedded) fn suspend(&mut self, error: EngineError) -> Result<(), EngineError> {
        if !error.is_transient() {
            return Err(error);
        }
        if self.suspended.why.is_none() {
            tracing::warn!(%error, "background work of the store is suspended, and retried every 100 ms");
        }
        self.suspended.why = Some(error);
        self.suspended.retry = Some(Instant::now() + RETRY_INTERVAL);
        // Reports the full disk, and rejects dispatches, without waiting for the next check.
        self.refresh_capacity();
        Ok(())
    }

    /// Ends the suspension after successful work.
    fn resume(&mut self) {
        if self.suspended.stuck.is_none() && self.suspended.why.take().is_some() {
            tracing::info!("background work of the store resumes");
            self.refresh_capacity();
        }
    }

    /// Returns whether a retry of suspended work is due.
    pub(super) fn may_retry(&self) -> bool {
        self.suspended.retry.is_none_or(|retry| retry <= Instant::now())
    }

    /// Returns the state of the disk, measured at most 5 ms ago.
    fn disk_state(&mut self) -> DiskState {
        let now = Instant::now();
        if let Some(state) = self.suspended.disk_state.filter(|state| now - state.at < DISK_STATE_TTL) {
            return state;
        }
        let engine = &self.shared.engine;
        // If a measurement fails, nothing is written to the tables, and the free bytes are unknown.
        let tables = engine.table_space().unwrap_or(TableSpace::None);
        let state = DiskState { at: now, tables, free: engine.disk_free().unwrap_or(None) };
        self.suspended.disk_state = Some(state);
        state
    }

    /// Returns the free bytes of the disk; `None` in memory, or if they are unknown.
    pub(in crate::embedded) fn disk_free(&mut self) -> Option<u64> {
        self.disk_state().free
    }

    /// Discards the measurement of the disk, so that the next use measures again.
    pub(in crate::embedded) fn invalidate_disk_state(&mut self) {
        self.suspended.disk_state = None;
    }

    /// Returns the bytes that background work may use, without `store.minFree` and the bytes reserved for messages.
    pub(in crate::embedded) fn spare_space(&mut self) -> u64 {
        let Some(free) = self.disk_free() else { return u64::MAX };
        let least = self.limits.free_bytes.max(MARGIN_BYTES);
        free.saturating_sub(least).saturating_sub(self.shared.logs.reserved_bytes())
    }

    /// Returns how much may be written to the tables.
    pub(in crate::embedded) fn table_space(&mut self) -> TableSpace {
        self.disk_state().tables
    }

    /// Checks that the disk has space for background work.
    ///
    /// # Errors
    /// Fails if it has less than [`MARGIN_BYTES`].
    pub(super) fn check_margin(&mut self) -> Result<(), EngineError> {
        match self.disk_state().free {
            Some(free) if free < MARGIN_BYTES => {
                Err(EngineError::no_space(format!("the disk is full: it has {free} bytes left")))
            }
            _ => Ok(()),
        }
    }

    /// Returns whether background work may begin now.
    fn may_work(&mut self) -> Result<bool, EngineError> {
        if self.suspended.why.is_some() && !self.may_retry() {
            return Ok(false);
        }
        if self.table_space() < TableSpace::Enough {
            self.suspend(EngineError::no_space(NO_TABLE_SPACE))?;
            return Ok(false);
        }
        Ok(true)
    }

    /// Runs background work as far as there is space for it: flush, reclaiming of space, expiry, and purges.
    pub(in crate::embedded) fn work(&mut self) -> Result<(), EngineError> {
        self.begin_next_erasure()?;
        if self.erasure.is_some() {
            self.shared.progress.begin(Step::Maintenance);
            // A flush could remove the record of the erasure before the tables are clean.
            if self.may_work()? {
                match self.erase_step() {
                    Ok(()) => self.resume(),
                    Err(error) => self.suspend(error)?,
                }
            }
        } else if self.flush_is_due() {
            self.shared.progress.begin(Step::Flush);
            if self.may_work()? {
                let result = self.flush_step();
                // The flush has used disk space that was reserved for its entries.
                self.invalidate_disk_state();
                match result {
                    Ok(()) => self.resume(),
                    Err(error) => self.suspend(error)?,
                }
            }
        } else if self.suspended.why.is_some() && self.may_retry() && self.may_work()? {
            match self.check_margin() {
                Ok(()) => self.resume(),
                Err(error) => self.suspend(error)?,
            }
        }
        self.has_garbage = false;
        self.shared.progress.begin(Step::Maintenance);
        let has_bodies = self.remove_bodies().or_else(|error| self.suspend(error).map(|()| false))?;
        if self.table_space() >= TableSpace::Little {
            let mode = match self.suspended.why.is_none() && self.check_margin().is_ok() {
                true if self.spare_space() < EAGER_BYTES => CompactionMode::Eager,
                true => CompactionMode::Normal,
                false => CompactionMode::Off,
            };
            match self.shared.engine.collect_garbage(mode) {
                Ok(more) => {
                    self.has_garbage = more;
                    // Compaction has written to the tables, so the measurement is outdated.
                    self.suspended.disk_state = self.suspended.disk_state.filter(|_| !more);
                }
                Err(error) => self.suspend(error)?,
            }
        }
        // Otherwise an idle thread would remove bodies only each time it wakes up.
        self.has_garbage |= has_bodies;
        // Work that waits is suspended on a full disk. Otherwise the thread would try it without a pause.
        let has_steps = self.expiry.has_steps() || !self.purges.is_empty();
        let may_work = self.suspended.why.is_none()
            && if has_steps { self.may_work()? } else { self.table_space() == TableSpace::Enough };
        if may_work {
            let done = self.expire().and_then(|()| if self.is_written() { self.purge_step() } else { Ok(()) });
            done.or_else(|error| self.suspend(error))?;
        }
        Ok(())
    }

    /// Retries the stuck commit, if there is one and a retry is due. Returns whether one is still stuck.
    fn retry_stuck(&mut self) -> Result<bool, EngineError> {
        if self.suspended.stuck.is_none() || !self.may_retry() {
            return Ok(self.suspended.stuck.is_some());
        }
        let Some(mut commit) = self.suspended.stuck.take() else { return Ok(false) };
        match self.write(&mut commit) {
            Ok(()) => self.finish(commit).map(|()| false),
            Err(error) => self.keep_stuck(commit, error).map(|()| true),
        }
    }

    /// Keeps a commit that failed for lack of space, and replies that its outcome is unknown. The WAL has no record of
    /// it.
    ///
    /// # Errors
    /// Returns `error` if it is final. Then all callers get that error.
    pub(super) fn keep_stuck(&mut self, mut commit: Commit, error: EngineError) -> Result<(), EngineError> {
        let rejection = if error.is_transient() {
            StoreError::OutcomeUnknown(error.what.clone())
        } else {
            StoreError::Failed(error.what.clone())
        };
        commit.reject(&rejection);
        if error.is_transient() {
            self.suspended.stuck = Some(commit);
        }
        self.suspend(error)
    }

    /// Adds suspended reports to the batch, and returns whether it has anything to commit.
    ///
    /// While a commit is stuck, rejects the operations of the batch, suspends its reports, and returns false.
    pub(super) fn may_commit(&mut self, batch: &mut Batch) -> Result<bool, EngineError> {
        if self.retry_stuck()? {
            let full = StoreError::Full(self.why_suspended().unwrap_or_default().into());
            batch.ops.drain(..).for_each(|op| op.reject(&full));
            self.suspended.dirty.append(&mut batch.dirty);
            return Ok(false);
        }
        if !self.suspended.dirty.is_empty() && self.may_retry() {
            batch.dirty.append(&mut self.suspended.dirty);
        }
        Ok(!batch.ops.is_empty() || !batch.dirty.is_empty())
    }

    /// Reserves space in the WAL for one more user's report. Returns false if there is none.
    pub(super) fn reserve_report(&mut self, commit: &Commit) -> Result<bool, EngineError> {
        if self.table_space() < TableSpace::Little {
            self.suspend(EngineError::no_space(NO_TABLE_SPACE))?;
            return Ok(false);
        }
        let bytes = commit.all_bytes() + report_bytes_max(self.limits.devices);
        match self.shared.engine.reserve(self.next_record, bytes) {
            Ok(()) => Ok(true),
            Err(error) => self.suspend(error).map(|()| false),
        }
    }

    /// Suspends the reports of these users. They stay in memory.
    pub(super) fn postpone_reports(&mut self, users: impl Iterator<Item = UserId>) {
        self.suspended.dirty.extend(users);
    }

    /// Returns whether the WAL has everything that was reported or committed.
    pub(super) fn is_written(&self) -> bool {
        self.suspended.dirty.is_empty() && self.suspended.stuck.is_none()
    }

    /// Makes a last attempt to write the suspended commit and reports. If it fails, they are lost.
    pub(super) fn write_suspended(&mut self) -> Result<(), EngineError> {
        self.suspended.retry = None;
        let mut batch = Batch::default();
        if self.may_commit(&mut batch)? {
            self.commit(batch)?;
        }
        let Suspended { stuck, dirty, .. } = std::mem::take(&mut self.suspended);
        if stuck.is_some() || !dirty.is_empty() {
            tracing::warn!(
                users = dirty.len(),
                commit = stuck.is_some(),
                "the disk is full: acknowledgements of these users were not written; their messages will be sent again"
            );
        }
        if let Some(commit) = stuck {
            // They are written after all, or counted as dropped.
            self.take_back(commit);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        embedded::{
            tables::schema::StoredCursor,
            wal::record::{Item, RECORD_BYTES, RecordWriter},
            writer::records::FRAME_BYTES,
        },
        message::{DEVICE_CHARACTERS_MAX, Seq, USER_ID_BYTES_MAX},
        store::AckSet,
    };

    /// Bytes of the largest possible report: of `devices` devices, and of clients without one.
    fn largest_report(devices: usize) -> u64 {
        let (user, device) = ("u".repeat(USER_ID_BYTES_MAX), "\u{1F4F1}".repeat(DEVICE_CHARACTERS_MAX));
        let mut acknowledged = AckSet::default();
        // More ranges than a set remembers.
        (1..100).for_each(|at| _ = acknowledged.insert(Seq::MAX - 4 * at, Seq::MAX - 4 * at));
        let ranges = acknowledged.ranges().to_vec();
        let cursor = StoredCursor { through: Seq::MAX, ranges, seen_ms: u64::MAX };
        let item = Item::Cursor { user: &user, device: &device, cursor };
        let mut items = vec![item; devices + 1];
        items.push(Item::Seen { user: &user, at_ms: u64::MAX });
        let new = || RecordWriter::new(u32::MAX, u64::MAX);
        let (mut writer, mut bytes) = (new(), 0);
        for item in items {
            if writer.bytes() + CURSOR_BYTES_MAX > RECORD_BYTES {
                writer.push(&Item::More);
                bytes += std::mem::replace(&mut writer, new()).finish().len() as u64 + FRAME_BYTES;
            }
            writer.push(&item);
        }
        bytes + writer.finish().len() as u64 + FRAME_BYTES
    }

    #[test]
    fn reserve_for_report_fits_largest_report_of_configured_devices() {
        for devices in [1, 16, 128] {
            let (largest, reserved) = (largest_report(devices), report_bytes_max(devices));
            assert!(largest <= reserved, "{devices} devices: {largest} bytes, of which {reserved} are reserved");
        }
        assert_eq!(report_bytes_max(usize::MAX), REPORTS_RESERVE_BYTES);
    }
}
