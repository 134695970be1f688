//! Capacity of the store, and quotas of users: rejects appends, evicts entries, and purges blocks.

use std::{
    cell::Cell,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    cost::Cost,
    state::{Capacity, Commit, Committer, REPORTS_RESERVE_BYTES},
};
use crate::{
    embedded::{
        tables::{
            contract::{EngineError, Table, TableSpace},
            schema::{is_log_key_of, log_key},
        },
        user_log::{Usage, UserLog, earlier, is_expired},
        value_log::block::{Block, block_entries},
    },
    logging::excerpt,
    message::{Seq, UserId},
    store::{GapReason, Limits, StoreError},
};

/// Interval of capacity checks. Far less than `store.minFree` is written in between.
const CHECK_INTERVAL: Duration = Duration::from_millis(100);

/// The WAL may take one part in this many of the remaining capacity before it is flushed. Flush steps become longer at
/// three times that, which still fits.
const WAL_SHARE: u64 = 4;

/// After the disk was full, one part in this many of `store.minFree` must be free in addition, before messages are accepted.
const HYSTERESIS_SHARE: u64 = 16;

/// Interval of scans of a user's blocks to free quota, in seconds.
const PURGE_INTERVAL_S: u32 = 10;

/// Limit of blocks in memory during a scan.
const PURGE_BLOCKS_MAX: usize = 16;

/// Limit of an append's cost after the flush, in bytes, for which a rejection makes the whole store full until it fits. A
/// larger append is rejected alone.
const ORDINARY_BYTES_MAX: u64 = 128 << 10;

impl Capacity {
    pub(in crate::embedded) fn new(value_log_bytes: u64) -> Self {
        let (value_log_bytes, is_scarce) = (Cell::new(value_log_bytes), Cell::new(false));
        Self { value_log_bytes, checked: Instant::now(), is_scarce, last_rejected: Cost::default() }
    }

    /// Records that the usage of one user's value log has changed.
    pub(in crate::embedded) fn changed(&self, before: u64, after: u64) {
        let bytes = self.value_log_bytes.get();
        self.value_log_bytes.set((bytes + after).saturating_sub(before));
    }

    /// Returns whether `free` bytes are too few. After that was so, a [sixteenth](HYSTERESIS_SHARE) more than `least` must be
    /// free.
    ///
    /// Files of acknowledged entries are removed one by one. Without the extra part, appends accepted after the first removal
    /// would be rejected again at once.
    fn is_scarce(&self, free: u64, least: u64) -> bool {
        let enough = if self.is_scarce.get() { least.saturating_add(least / HYSTERESIS_SHARE) } else { least };
        self.is_scarce.set(free < enough);
        self.is_scarce.get()
    }
}

impl Committer {
    /// Refreshes the capacity periodically.
    pub(super) fn refresh_capacity_if_due(&mut self) {
        if self.capacity.checked.elapsed() >= CHECK_INTERVAL {
            self.refresh_capacity();
        }
    }

    /// Measures the capacity, and reports whether the store is full.
    pub(in crate::embedded) fn refresh_capacity(&mut self) {
        self.capacity.checked = Instant::now();
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
        *self.shared.full.write() = disk.clone().or_else(|| store.map(Into::into));
        self.shared.health.set("disk_full", disk);
    }

    /// Reserves the cost of appends, or rejects them. The engine reserves space in the WAL. The entries themselves reserve
    /// their space in the value log: their cost counts until they are flushed.
    ///
    /// # Errors
    /// The outer error is a final one of the engine, the inner one a rejection.
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
            let full = "the disk is full: it has no space for the tables";
            self.suspend(EngineError::no_space(full))?;
            return Ok(Err(StoreError::Full(full.into())));
        }
        Ok(Ok(()))
    }

    /// Returns why appends of this cost are rejected, if they are.
    fn rejection(&mut self, cost: &Cost) -> Option<StoreError> {
        let (pending, most) = (self.pending_bytes(), self.limits.store_bytes.unwrap_or(u64::MAX));
        let why = if pending.saturating_add(cost.payload) > most {
            format!(
                "this would be {} bytes of messages for all its recipients together; {pending} bytes are pending, and {most} \
                 are allowed (store.maxBytes)",
                cost.payload
            )
        } else {
            let (free, reserved) = (self.disk_free()?, self.shared.logs.reserved());
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

    /// Returns the bytes of payload that are pending.
    fn pending_bytes(&self) -> u64 {
        self.capacity.value_log_bytes.get() + self.shared.logs.unflushed()
    }

    /// Returns the bound of the WAL. Above it, records are flushed before they are old.
    ///
    /// All entries in the WAL count as pending until the flush, although many may be acknowledged. With little capacity left, a
    /// lower bound corrects that early.
    pub(in crate::embedded) fn wal_bytes_max(&self) -> usize {
        let left =
            self.limits.store_bytes.map_or(u64::MAX, |max| max.saturating_sub(self.capacity.value_log_bytes.get()));
        self.tuning.wal_bytes_max.min(usize::try_from(left / WAL_SHARE).unwrap_or(usize::MAX))
    }

    fn why_over_limit(&self) -> Option<String> {
        let (pending, most) = (self.pending_bytes(), self.limits.store_bytes?);
        let is_full = pending >= most || pending.saturating_add(self.capacity.last_rejected.payload) > most;
        is_full.then(|| format!("{pending} bytes are pending, and {most} are allowed (store.maxBytes)"))
    }

    /// Returns why the smallest append, or one like the last rejected one, does not fit into the WAL or the tables.
    fn why_nothing_fits(&self, tables: TableSpace, free: u64) -> Option<String> {
        if tables < TableSpace::Enough {
            return Some("the disk is full: it has no space for the tables".into());
        }
        let wanted = self.shared.engine.wal_bytes_required(REPORTS_RESERVE_BYTES + self.capacity.last_rejected.wal);
        (free < wanted).then(|| format!("the disk has {free} bytes left, and the next WAL segment needs {wanted}"))
    }

    /// Returns why entries do not fit into the value log, if `free` bytes are too few.
    fn why_below_reserve(&self, free: u64) -> Option<String> {
        let (reserved, least) = (self.shared.logs.reserved(), self.limits.free_bytes);
        let left = free.saturating_sub(reserved);
        self.capacity.is_scarce(left, least.saturating_add(self.capacity.last_rejected.flushed)).then(|| {
            format!(
                "the disk has {free} bytes left, {reserved} of them reserved for accepted messages, and {least} must \
                 stay free (store.minFree), a sixteenth more after it was full; {} bytes are pending",
                self.pending_bytes()
            )
        })
    }

    /// Purges a user's blocks if some entries have expired. Returns true if it did.
    pub(super) fn purge_if_due(&self, user: &UserId) -> Result<bool, EngineError> {
        let due = self.purge_is_due(user)?;
        if due {
            self.purge(user)?;
        }
        Ok(due)
    }

    /// Returns whether a scan of a user's blocks may free quota: entries have expired, or the usage may be wrong.
    pub(super) fn purge_is_due(&self, user: &UserId) -> Result<bool, EngineError> {
        let now_s = self.shared.clock.now_s();
        self.drop_expired(user, now_s)?;
        self.with_log(user, |log| {
            let rested = log.scanned_s.is_none_or(|scanned_s| now_s.saturating_sub(scanned_s) >= PURGE_INTERVAL_S);
            // After a crash the usage may be slightly too high.
            let stale = is_expired(log.blocks_expire_s, now_s) || log.scanned_s.is_none();
            log.has_blocks && stale && rested
        })
    }

    /// Removes released, hidden and expired entries from a user's blocks, and counts the others. Must not run during a commit:
    /// entries that the commit replaces are needed until it is written.
    pub(super) fn purge(&self, user: &UserId) -> Result<(), EngineError> {
        self.scan_blocks(user, true)?;
        self.with_log(user, |log| log.gaps.shrink_if_full())?;
        self.put_row_if_flushed(user)
    }

    /// Scans a user's blocks, and counts the entries that are needed. With `remove`, removes the others.
    ///
    /// Each block keeps its key, so that every state in between is readable.
    pub(in crate::embedded) fn scan_blocks(&self, user: &UserId, remove: bool) -> Result<(), EngineError> {
        let now_s = self.shared.clock.now_s();
        let (released, gaps, mut keyed) =
            self.with_log(user, |log| (log.released(), log.gaps.clone(), log.flushed_keys()))?;
        let (mut usage, mut expires_s) = (Usage::default(), 0);
        let mut from = log_key(user.as_str(), 0);
        loop {
            let mut blocks = Vec::new();
            self.shared.engine.scan(Table::Log, &from, &mut |key, value| {
                let is_own = is_log_key_of(key, user.as_str());
                if is_own {
                    blocks.push((key.to_vec(), value));
                }
                is_own && blocks.len() < PURGE_BLOCKS_MAX
            })?;
            let Some((last, _)) = blocks.last() else { break };
            from.clone_from(last);
            from.push(0);
            let (mut replaced, mut removed, mut expired) = (Vec::new(), Vec::new(), Vec::new());
            for (key, value) in &blocks {
                let entries = match block_entries(value) {
                    Ok(entries) => entries,
                    Err(error) => {
                        tracing::error!(user = %excerpt(user), %error, "a block of this user's log cannot be read and is left as it is; save the rest with `mesa inspect --salvage`");
                        continue;
                    }
                };
                let whole = entries.len();
                let wanted = |seq: Seq| seq > released && !gaps.hides(seq);
                let now_expired =
                    entries.iter().filter(|(entry, expires_s)| wanted(entry.seq) && is_expired(*expires_s, now_s));
                expired.extend(now_expired.map(|(entry, _)| entry.seq));
                let live: Vec<_> = entries
                    .iter()
                    .filter(|(entry, expires_s)| wanted(entry.seq) && !is_expired(*expires_s, now_s))
                    .map(|(entry, expires_s)| (entry.seq, *expires_s, &entry.payload.as_bytes()[..]))
                    .collect();
                for (seq, at_s, payload) in &live {
                    keyed.retain(|keyed| keyed != seq);
                    usage.add(payload.len() as u64);
                    expires_s = earlier(expires_s, *at_s);
                }
                if !remove {
                    continue;
                }
                if live.is_empty() {
                    removed.push(key);
                } else if live.len() < whole {
                    let block =
                        Block::V1 { namespace: self.shared.namespace, user: user.as_str(), entries: live }.encode();
                    replaced.push((key.clone(), block));
                }
            }
            if !replaced.is_empty() {
                // Replaced before removals, because this may fail and be retried.
                self.shared.engine.replace(Table::Log, &replaced)?;
            }
            removed.into_iter().try_for_each(|key| self.shared.engine.remove(Table::Log, key))?;
            if remove && !expired.is_empty() {
                self.with_log(user, |log| expired.retain(|seq| !log.cursors.is_acknowledged(*seq)))?;
                self.shared.record_expired(user, &expired);
            }
        }
        self.with_log(user, |log| {
            log.block_usage = usage;
            log.counted = released;
            log.blocks_expire_s = expires_s;
            log.scanned_s = Some(now_s);
            log.remove_keys(&keyed);
        })
    }

    /// Evicts a user's oldest entries until one more of `bytes` fits. Returns the range, and its number of pending entries.
    pub(in crate::embedded) fn evict_oldest(
        &self,
        user: &UserId,
        bytes: u64,
    ) -> Result<Option<(Seq, Seq, u64)>, EngineError> {
        let limits = &self.limits;
        let (first, mut dropped) = (self.with_log(user, |log| log.cursors.through() + 1)?, 0);
        let mut last = 0;
        while self.with_log(user, |log| log.block_usage.entries > 0 && !log.fits(bytes, limits))? {
            let front = self.first_block(user)?;
            self.with_log(user, |log| match front {
                Some(front) => last = last.max(evict_front(log, &front, bytes, limits, &mut dropped)),
                // The usage was wrong: no block has a counted entry.
                None => log.block_usage = Usage::default(),
            })?;
        }
        self.with_log(user, |log| {
            if last >= first {
                log.drop_range(first, last, GapReason::Quota);
            }
            // Acknowledged entries up to the end of the range are released too, even if a session holds them.
            log.release_held(last);
            self.shared.release(user, log);
            while !log.fits(bytes, limits) {
                let Some(oldest) = log.oldest_slot() else { break };
                dropped += u64::from(!log.cursors.is_acknowledged(oldest));
                // An acknowledged entry may still be there because a session holds it.
                log.drop_range(oldest.min(log.cursors.through() + 1), oldest, GapReason::Quota);
                last = oldest;
                self.shared.release(user, log);
            }
        })?;
        Ok((last >= first).then_some((first, last, dropped)))
    }

    /// Returns the entries of the first block that are counted: sequence and bytes.
    fn first_block(&self, user: &UserId) -> Result<Option<Vec<(Seq, u64)>>, EngineError> {
        let (counted, gaps, scanned_s) = self.with_log(user, |log| (log.counted, log.gaps.clone(), log.scanned_s))?;
        let wanted = log_key(user.as_str(), counted + 1);
        let before = self.shared.engine.last_at_or_before(Table::Log, &wanted)?;
        let from = before.filter(|(key, _)| is_log_key_of(key, user.as_str())).map_or(wanted, |(key, _)| key.to_vec());
        let mut front = None;
        self.shared.engine.scan(Table::Log, &from, &mut |key, value| {
            if !is_log_key_of(key, user.as_str()) {
                return false;
            }
            // An unreadable block cannot be evicted. It is reported when it is read.
            let entries = block_entries(&value).unwrap_or_default();
            let entries = entries
                .iter()
                // Entries that had expired at the last scan are not counted.
                .filter(|(_, expires_s)| scanned_s.is_none_or(|scanned_s| !is_expired(*expires_s, scanned_s)))
                .map(|(entry, _)| (entry.seq, entry.payload.as_bytes().len() as u64));
            let counting: Vec<_> = entries.filter(|(seq, _)| *seq > counted && !gaps.hides(*seq)).collect();
            front = (!counting.is_empty()).then_some(counting);
            front.is_none()
        })?;
        Ok(front)
    }
}

/// Evicts entries from the front of a block until the append fits. Returns the last evicted one.
fn evict_front(log: &mut UserLog, front: &[(Seq, u64)], bytes: u64, limits: &Limits, dropped: &mut u64) -> Seq {
    let mut last = 0;
    for &(seq, size) in front {
        if log.fits(bytes, limits) {
            break;
        }
        log.block_usage.subtract(size);
        log.counted = seq;
        *dropped += u64::from(!log.cursors.is_acknowledged(seq));
        last = seq;
    }
    last
}

impl crate::embedded::shared::StoreState {
    /// Returns why appends are rejected at present, if they are.
    pub(in crate::embedded) fn check_capacity(&self) -> Result<(), StoreError> {
        self.full.read().clone().map_or(Ok(()), |why| Err(StoreError::Full(why)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disk_that_was_full_has_capacity_again_with_a_sixteenth_more_free() {
        let capacity = Capacity::new(0);
        let scarce = [1600, 1599, 1600, 1699, 1700, 1600, 1599].map(|free| capacity.is_scarce(free, 1600));
        assert_eq!(scarce, [false, true, true, true, false, false, true]);
        assert!([0, 0].iter().all(|free| !Capacity::new(0).is_scarce(*free, 0)), "no bytes must stay free");
    }
}
