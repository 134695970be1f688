//! Enforces the capacity of the store and the quotas of users: rejects appends, and evicts entries.

use std::{
    cell::Cell,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    cost::Cost,
    count::FirstCounted,
    state::{Capacity, Commit, Committer},
    suspend::{NO_TABLE_SPACE, REPORTS_RESERVE_BYTES},
};
use crate::{
    embedded::{
        tables::{
            contract::{EngineError, Table, TableSpace},
            meta::LIVE_BYTES_KEY,
        },
        user_log::UserLog,
    },
    message::{Seq, UserId},
    store::{GapReason, StoreError},
};

/// Interval of capacity checks, in which far less than `store.minFree` is written.
const CHECK_INTERVAL: Duration = Duration::from_millis(100);

/// Divisor of the remaining capacity: above this part, the WAL is flushed early. At three times this part, which still
/// fits, flush steps become longer.
const WAL_SHARE: u64 = 4;

/// Divisor of `store.minFree`: after the disk was full, this part must be free in addition before messages are
/// accepted.
const HYSTERESIS_SHARE: u64 = 16;

/// Largest cost after the flush, in bytes, with which a rejected append marks the store as full until it would fit.
///
/// A rejected append of a higher cost does not affect others.
const ORDINARY_BYTES_MAX: u64 = 128 << 10;

impl Capacity {
    pub(in crate::embedded) fn new() -> Self {
        Self { last_check: Instant::now(), was_scarce: Cell::new(false), last_rejected: Cost::default() }
    }

    /// Returns whether `free` bytes are too few. Once they are, a [sixteenth](HYSTERESIS_SHARE) more than `least` must
    /// be free.
    ///
    /// Files of acknowledged entries are removed one by one. Without the extra part, appends would be accepted after
    /// the first removal, and soon rejected again.
    fn is_scarce(&self, free: u64, least: u64) -> bool {
        let enough = if self.was_scarce.get() { least.saturating_add(least / HYSTERESIS_SHARE) } else { least };
        self.was_scarce.set(free < enough);
        free < enough
    }
}

impl Committer {
    /// Refreshes the capacity periodically.
    pub(super) fn refresh_capacity_if_due(&mut self) {
        if self.capacity.last_check.elapsed() >= CHECK_INTERVAL {
            self.refresh_capacity();
        }
    }

    /// Measures the capacity, and reports whether the store is full.
    pub(in crate::embedded) fn refresh_capacity(&mut self) {
        self.capacity.last_check = Instant::now();
        let free = self.disk_free();
        let tables = self.table_space();
        let disk = self
            .why_suspended()
            .or_else(|| self.why_nothing_fits(tables, free?))
            .or_else(|| self.why_below_reserve(free?));
        let store = self.why_over_limit();
        if disk.is_none() && store.is_none() {
            self.capacity.last_rejected = Cost::default();
        }
        let disk: Option<Arc<str>> = disk.map(Into::into);
        *self.shared.full_reason.write() = disk.clone().or_else(|| store.map(Into::into));
        self.shared.health.set("disk_full", disk);
        self.shared.figures.set_wal(self.wal_bytes, self.records.front().map(|oldest| oldest.committed));
        self.shared.figures.set_disk(self.shared.engine.disk_bytes(), free);
    }

    /// Reserves disk space for appends, or rejects them.
    ///
    /// The engine reserves space in the WAL. Space in the value log is reserved by counting the cost of entries until
    /// they are flushed.
    ///
    /// # Errors
    /// The outer error is final. The inner error is a rejection.
    pub(in crate::embedded) fn admit(
        &mut self,
        commit: &Commit,
        cost: &Cost,
    ) -> Result<Result<(), StoreError>, EngineError> {
        let rejected = self.shared.check_capacity().err().or_else(|| self.rejection(cost));
        if let Some(rejected) = rejected {
            return Ok(Err(rejected));
        }
        let bytes = commit.all_bytes() + cost.wal + REPORTS_RESERVE_BYTES;
        let reserved = self.shared.engine.reserve(self.next_record, bytes);
        match reserved {
            Err(error) if !error.is_transient() => return Err(error),
            Err(error) => {
                if cost.flushed <= ORDINARY_BYTES_MAX {
                    self.capacity.last_rejected = *cost;
                }
                let rejected = Ok(Err(StoreError::from(error.clone())));
                return self.suspend(error).and(rejected);
            }
            Ok(()) => {}
        }
        if self.table_space() < TableSpace::Enough {
            // New users need rows.
            self.suspend(EngineError::no_space(NO_TABLE_SPACE))?;
            return Ok(Err(StoreError::Full(NO_TABLE_SPACE.into())));
        }
        Ok(Ok(()))
    }

    /// Returns why appends of this cost are rejected, if they are.
    fn rejection(&mut self, cost: &Cost) -> Option<StoreError> {
        let over_limit = self.limits.store_bytes.map(|most| (self.pending_bytes(), most));
        let over_limit = over_limit.filter(|(pending, most)| pending.saturating_add(cost.flushed) > *most);
        let why = if let Some((pending, most)) = over_limit {
            format!(
                "this would take {} bytes for all its recipients together; pending messages take {pending} bytes, and \
                 {most} are allowed (store.maxBytes)",
                cost.flushed
            )
        } else {
            let (free, reserved) = (self.disk_free()?, self.shared.logs.reserved_bytes());
            let least = self.limits.free_bytes;
            if free >= least.saturating_add(reserved).saturating_add(cost.flushed) {
                return None;
            }
            format!(
                "this would take {} bytes on the disk for all its recipients together; {free} bytes are left, {least} of \
                 them must stay free (store.minFree), and {reserved} are reserved for accepted messages",
                cost.flushed
            )
        };
        if cost.flushed <= ORDINARY_BYTES_MAX {
            self.capacity.last_rejected = *cost;
            self.refresh_capacity();
            if let Err(full) = self.shared.check_capacity() {
                return Some(full);
            }
        }
        Some(StoreError::Full(why.into()))
    }

    /// Returns the bytes that pending messages take in the value log, or will take after their flush.
    ///
    /// Until the live bytes are counted after opening, those of the value log are an estimate of the last flush.
    fn pending_bytes(&self) -> u64 {
        self.shared.engine.live_bytes() + self.shared.logs.reserved_bytes()
    }

    /// Stores the live bytes of the value log, so that the next opening need not count them first.
    pub(super) fn put_live_bytes(&self) -> Result<(), EngineError> {
        self.shared.engine.put(Table::Meta, LIVE_BYTES_KEY, &self.shared.engine.live_bytes().to_be_bytes())
    }

    /// Returns the bound of the WAL. Above it, records are flushed before they are old.
    ///
    /// Entries in the WAL count as pending until the flush, even if they are acknowledged. With little capacity left,
    /// the bound is lower, so that these entries are subtracted early.
    pub(in crate::embedded) fn wal_bytes_max(&self) -> usize {
        let left = self.limits.store_bytes.map_or(u64::MAX, |max| max.saturating_sub(self.shared.engine.live_bytes()));
        self.tuning.wal_bytes_max.min(usize::try_from(left / WAL_SHARE).unwrap_or(usize::MAX))
    }

    /// Returns why the store is full by its limit of pending bytes, if it is.
    fn why_over_limit(&self) -> Option<String> {
        let most = self.limits.store_bytes?;
        let pending = self.pending_bytes();
        let is_full = pending >= most || pending.saturating_add(self.capacity.last_rejected.flushed) > most;
        is_full.then(|| format!("pending messages take {pending} bytes, and {most} are allowed (store.maxBytes)"))
    }

    /// Returns why the last rejected append still does not fit into the WAL or the tables.
    ///
    /// Without a rejected append, it checks the smallest one.
    fn why_nothing_fits(&self, tables: TableSpace, free: u64) -> Option<String> {
        if tables < TableSpace::Enough {
            return Some(NO_TABLE_SPACE.into());
        }
        let wanted = self.shared.engine.wal_bytes_required(REPORTS_RESERVE_BYTES + self.capacity.last_rejected.wal);
        (free < wanted).then(|| format!("the disk has {free} bytes left, and the next WAL segment needs {wanted}"))
    }

    /// Returns why entries do not fit into the value log, if the free bytes are too few.
    fn why_below_reserve(&self, free: u64) -> Option<String> {
        let (reserved, least) = (self.shared.logs.reserved_bytes(), self.limits.free_bytes);
        let left = free.saturating_sub(reserved);
        self.capacity.is_scarce(left, least.saturating_add(self.capacity.last_rejected.flushed)).then(|| {
            format!(
                "the disk has {free} bytes left, {reserved} of them reserved for accepted messages, and {least} must \
                 stay free (store.minFree), a sixteenth more after it was full; pending messages take {} bytes",
                self.pending_bytes()
            )
        })
    }

    /// Evicts a user's oldest entries until one more of `bytes` fits. Returns the range, and its number of pending
    /// entries.
    pub(in crate::embedded) fn evict_oldest(
        &self,
        user: &UserId,
        bytes: u64,
    ) -> Result<Option<(Seq, Seq, u64)>, EngineError> {
        let limits = &self.limits;
        let (first, mut dropped) = (self.with_log(user, |log| log.cursors.through() + 1)?, 0);
        let mut last = 0;
        loop {
            let needs_more = self.with_log(user, |log| {
                while log.block_usage.entries > 0 && !log.fits(bytes, limits) {
                    let Some(seq) = log.take_front(Seq::MAX) else { return true };
                    dropped += u64::from(!log.cursors.is_acknowledged(seq));
                    last = seq;
                }
                false
            })?;
            if !needs_more {
                break;
            }
            let Some(FirstCounted { block, usage, key, rule }) = self.first_counted(user)? else {
                // No block has a counted entry, so the usage was wrong.
                self.with_log(user, UserLog::reset_block_usage)?;
                break;
            };
            // A block of which everything must go is not read.
            let evicted = self.with_log(user, |log| {
                let usage = usage.filter(|usage| !log.fits_without(*usage, bytes, limits))?;
                let any_acknowledged = log.cursors.any_acknowledged(block.first, block.last);
                (!any_acknowledged).then(|| {
                    log.subtract_from_blocks(block.last, usage);
                    log.counted = block.last;
                    usage.entries
                })
            })?;
            if let Some(entries) = evicted {
                (dropped, last) = (dropped + entries, block.last);
                continue;
            }
            let entries = self.counted_entries(user, &key, &rule)?.unwrap_or_default();
            self.with_log(user, |log| {
                if entries.is_empty() {
                    // A damaged block cannot be evicted, and another one has no counted entry.
                    log.counted = log.counted.max(block.last);
                }
                log.set_front(&entries);
            })?;
        }
        self.with_log(user, |log| {
            if last >= first {
                log.drop_range(first, last, GapReason::Quota);
            }
            // Acknowledged entries of the range are released, even if a session holds them.
            log.release_held(last);
            self.shared.release(user, log);
            while !log.fits(bytes, limits) {
                let Some(oldest) = log.oldest_slot_seq() else { break };
                dropped += u64::from(!log.cursors.is_acknowledged(oldest));
                // An acknowledged entry may have a slot because a session holds it.
                log.drop_range(oldest.min(log.cursors.through() + 1), oldest, GapReason::Quota);
                last = oldest;
                self.shared.release(user, log);
            }
        })?;
        Ok((last >= first).then_some((first, last, dropped)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_disk_has_capacity_again_with_a_sixteenth_more_free() {
        let capacity = Capacity::new();
        let scarce = [1600, 1599, 1600, 1699, 1700, 1600, 1599].map(|free| capacity.is_scarce(free, 1600));
        assert_eq!(scarce, [false, true, true, true, false, false, true]);
        assert!([0, 0].iter().all(|free| !Capacity::new().is_scarce(*free, 0)), "no bytes must stay free");
    }
}
