//! Capacity: whether the store as a whole has any, and making some in one user's log.

use std::{
    cell::Cell,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    cost::Cost,
    state::{Capacity, Commit, Committer, NOTES_BYTES},
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

/// Interval of capacity checks. Far less than the free reserve is written in between.
const LOOK: Duration = Duration::from_millis(100);

/// The part of the room that is left which the journal may take before it is settled. It is settled in a hurry when it has
/// grown to three times that, and still fits.
const JOURNAL_SHARE: u64 = 4;

/// The part of what is to stay free that has to be free besides, before what was refused for want of it is taken again.
const MORE: u64 = 16;

/// Delay, in seconds, before a user's blocks are scanned again for space.
const PURGE_PAUSE_S: u32 = 10;

/// Blocks in memory at once during a scan.
const PURGE_CHUNKS: usize = 16;

/// A message of which not more than this is stored and which is refused makes the store full as a whole: until it would fit. What
/// is larger is refused alone.
const ORDINARY_BYTES_MAX: u64 = 128 << 10;

impl Capacity {
    pub(in crate::embedded) fn new(inbox_bytes: u64) -> Self {
        let (inbox_bytes, is_scarce) = (Cell::new(inbox_bytes), Cell::new(false));
        Self { inbox_bytes, looked: Instant::now(), is_scarce, refused: Cost::default() }
    }

    /// The usage of one inbox has changed.
    pub(in crate::embedded) fn changed(&self, before: u64, after: u64) {
        let bytes = self.inbox_bytes.get();
        self.inbox_bytes.set((bytes + after).saturating_sub(before));
    }

    /// Whether the disk, which has so many bytes left, has too little room. Where it had, it needs [some](MORE) more than the
    /// least: the files of what has been received go one after the other, and what is taken at the first of them would be refused
    /// again at once.
    fn is_scarce(&self, free: u64, least: u64) -> bool {
        let enough = if self.is_scarce.get() { least.saturating_add(least / MORE) } else { least };
        self.is_scarce.set(free < enough);
        self.is_scarce.get()
    }
}

impl Committer {
    /// Refreshes the capacity periodically.
    pub(super) fn refresh_capacity_if_due(&mut self) {
        if self.capacity.looked.elapsed() >= LOOK {
            self.refresh_capacity();
        }
    }

    /// Measures the capacity, and reports whether the store is full.
    pub(in crate::embedded) fn refresh_capacity(&mut self) {
        self.capacity.looked = Instant::now();
        let free = self.disk_free();
        let tables = self.table_space();
        let disk =
            self.why_suspended().or_else(|| self.why_none_fits(tables, free?)).or_else(|| self.why_scarce(free?));
        let store = self.why_too_much();
        if disk.is_none() && store.is_none() {
            self.capacity.refused = Cost::default();
        }
        let disk: Option<Arc<str>> = disk.map(Into::into);
        *self.shared.full.write() = disk.clone().or_else(|| store.map(Into::into));
        self.shared.health.set("disk_full", disk);
    }

    /// Whether what appends cost is there, on the disk and by what is allowed. Then it is set aside: in the journal by the
    /// engine, and for later by the entries themselves, which are counted until they have been settled.
    ///
    /// # Errors
    /// Outside: of the engine, for good. State: the refusal.
    pub(in crate::embedded) fn admit(
        &mut self,
        commit: &Commit,
        cost: &Cost,
    ) -> Result<Result<(), StoreError>, EngineError> {
        let refused = self.shared.check_capacity().err().or_else(|| self.why_not(cost));
        if let Some(refused) = refused {
            return Ok(Err(refused));
        }
        let bytes = commit.all_bytes() + cost.wal + NOTES_BYTES;
        let reserved = self.shared.engine.reserve(self.next_record, bytes);
        match reserved {
            Err(error) if !error.is_transient() => return Err(error),
            Err(error) => {
                if cost.flushed <= ORDINARY_BYTES_MAX {
                    self.capacity.refused = *cost;
                }
                let refused = Ok(Err(StoreError::from(error.clone())));
                return self.suspend(error).and(refused);
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

    /// Returns why appends of this cost do not fit.
    fn why_not(&mut self, cost: &Cost) -> Option<StoreError> {
        let (kept, most) = (self.kept(), self.limits.store_bytes.unwrap_or(u64::MAX));
        let why = if kept.saturating_add(cost.payload) > most {
            format!(
                "this would be {} bytes of messages for all its recipients together; {kept} bytes are pending, and {most} \
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
                 them are to stay free (store.minFree), and {reserved} are set aside for messages that were taken before",
                cost.flushed
            )
        };
        if cost.flushed <= ORDINARY_BYTES_MAX {
            self.capacity.refused = *cost;
            self.refresh_capacity();
            if let Err(full) = self.shared.check_capacity() {
                return Some(full);
            }
        }
        Some(StoreError::Full(why.into()))
    }

    /// Returns the bytes of payload that are pending.
    fn kept(&self) -> u64 {
        self.capacity.inbox_bytes.get() + self.shared.logs.unflushed()
    }

    /// How large the journal may grow before it is settled although it is young. What is in it counts as pending, though
    /// most of it may have been received: where the store as a whole has little room left, that is found out in time.
    pub(in crate::embedded) fn wal_bytes_max(&self) -> usize {
        let left = self.limits.store_bytes.map_or(u64::MAX, |max| max.saturating_sub(self.capacity.inbox_bytes.get()));
        self.tuning.wal_bytes_max.min(usize::try_from(left / JOURNAL_SHARE).unwrap_or(usize::MAX))
    }

    fn why_too_much(&self) -> Option<String> {
        let (kept, most) = (self.kept(), self.limits.store_bytes?);
        let is_full = kept >= most || kept.saturating_add(self.capacity.refused.payload) > most;
        is_full.then(|| format!("{kept} bytes are pending, and {most} are allowed (store.maxBytes)"))
    }

    /// Why the smallest message, or the one that was refused last, would be refused for want of what it takes at once.
    fn why_none_fits(&self, tables: TableSpace, free: u64) -> Option<String> {
        if tables < TableSpace::Enough {
            return Some("the disk is full: it has no space for the tables".into());
        }
        let wanted = self.shared.engine.wal_bytes_required(NOTES_BYTES + self.capacity.refused.wal);
        (free < wanted).then(|| format!("the disk has {free} bytes left, and the next WAL segment needs {wanted}"))
    }

    /// Whether the disk, which has so many bytes left, has too little for what is to be stored there.
    fn why_scarce(&self, free: u64) -> Option<String> {
        let (reserved, least) = (self.shared.logs.reserved(), self.limits.free_bytes);
        let left = free.saturating_sub(reserved);
        self.capacity.is_scarce(left, least.saturating_add(self.capacity.refused.flushed)).then(|| {
            format!(
                "the disk has {free} bytes left, {reserved} of them set aside for messages that were taken, and {least} are \
                 to stay free (store.minFree), a little more where it was full; {} bytes are pending",
                self.kept()
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

    /// Whether going through a user's inbox may make room: some of it has expired, or the usage may be off.
    pub(super) fn purge_is_due(&self, user: &UserId) -> Result<bool, EngineError> {
        let now_s = self.shared.clock.now_s();
        self.drop_expired(user, now_s)?;
        self.with_log(user, |log| {
            let rested = log.scanned_s.is_none_or(|scanned_s| now_s.saturating_sub(scanned_s) >= PURGE_PAUSE_S);
            // After a crash the usage may be a little too high.
            let stale = is_expired(log.blocks_expire_s, now_s) || log.scanned_s.is_none();
            log.has_blocks && stale && rested
        })
    }

    /// Takes out of a user's inbox what is released, gone or expired, and counts what is left. Not in the middle of a
    /// commit: what that replaces is needed until it is written.
    pub(super) fn purge(&self, user: &UserId) -> Result<(), EngineError> {
        self.scan_blocks(user, true)?;
        self.with_log(user, |log| log.gaps.make_room())?;
        self.put_row_if_alone(user)
    }

    /// Goes through a user's inbox entry by entry and counts what is needed of it; `clean`: and takes out the rest. Each
    /// chunk stays under its key, so that every state in between can be read.
    pub(in crate::embedded) fn scan_blocks(&self, user: &UserId, clean: bool) -> Result<(), EngineError> {
        let now_s = self.shared.clock.now_s();
        let (released, gone, mut keyed) =
            self.with_log(user, |log| (log.released(), log.gaps.clone(), log.flushed_keys()))?;
        let (mut usage, mut expires_s) = (Usage::default(), 0);
        let mut from = log_key(user.as_str(), 0);
        loop {
            let mut chunks = Vec::new();
            self.shared.engine.scan(Table::Log, &from, &mut |key, value| {
                let ours = is_log_key_of(key, user.as_str());
                if ours {
                    chunks.push((key.to_vec(), value));
                }
                ours && chunks.len() < PURGE_CHUNKS
            })?;
            let Some((last, _)) = chunks.last() else { break };
            from.clone_from(last);
            from.push(0);
            let (mut replaced, mut removed, mut expired) = (Vec::new(), Vec::new(), Vec::new());
            for (key, value) in &chunks {
                let entries = match block_entries(value) {
                    Ok(entries) => entries,
                    Err(error) => {
                        tracing::error!(user = %excerpt(user), %error, "a block of this user's log cannot be read and is left as it is; save the rest with `mesa inspect --salvage`");
                        continue;
                    }
                };
                let whole = entries.len();
                let wanted = |seq: Seq| seq > released && !gone.hides(seq);
                let past =
                    entries.iter().filter(|(entry, expires_s)| wanted(entry.seq) && is_expired(*expires_s, now_s));
                expired.extend(past.map(|(entry, _)| entry.seq));
                let kept: Vec<_> = entries
                    .iter()
                    .filter(|(entry, expires_s)| wanted(entry.seq) && !is_expired(*expires_s, now_s))
                    .map(|(entry, expires_s)| (entry.seq, *expires_s, &entry.payload.as_bytes()[..]))
                    .collect();
                for (seq, at_s, payload) in &kept {
                    keyed.retain(|keyed| keyed != seq);
                    usage.add(payload.len() as u64);
                    expires_s = earlier(expires_s, *at_s);
                }
                if !clean {
                    continue;
                }
                if kept.is_empty() {
                    removed.push(key);
                } else if kept.len() < whole {
                    let chunk =
                        Block::V2 { namespace: self.shared.namespace, user: user.as_str(), entries: kept }.encode();
                    replaced.push((key.clone(), chunk));
                }
            }
            if !replaced.is_empty() {
                // First, because this may be refused, and repeated.
                self.shared.engine.replace(Table::Log, &replaced)?;
            }
            removed.into_iter().try_for_each(|key| self.shared.engine.remove(Table::Log, key))?;
            if clean && !expired.is_empty() {
                self.with_log(user, |log| expired.retain(|seq| !log.cursors.contain(*seq)))?;
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

    /// Drops a user's oldest entries until one more of `bytes` bytes fits. What was dropped: the range, and how many
    /// entries of it somebody had not received.
    pub(in crate::embedded) fn evict_oldest(
        &self,
        user: &UserId,
        bytes: u64,
    ) -> Result<Option<(Seq, Seq, u64)>, EngineError> {
        let limits = &self.limits;
        let (first, mut dropped) = (self.with_log(user, |log| log.cursors.through() + 1)?, 0);
        let mut last = 0;
        while self.with_log(user, |log| log.block_usage.entries > 0 && !log.fits(bytes, limits))? {
            let front = self.front(user)?;
            self.with_log(user, |log| match front {
                Some(front) => last = last.max(drop_front(log, &front, bytes, limits, &mut dropped)),
                // The usage was off: there is nothing.
                None => log.block_usage = Usage::default(),
            })?;
        }
        self.with_log(user, |log| {
            if last >= first {
                log.drop_range(first, last, GapReason::Quota);
            }
            // What had been received beyond what is dropped goes with it; and so does what everybody has and somebody holds.
            let mut trim = log.release_held(last);
            while !log.fits(bytes, limits) {
                let Some(oldest) = log.oldest_slot() else { break };
                dropped += u64::from(!log.cursors.contain(oldest));
                // One that everybody has may be there because it is held.
                log.drop_range(oldest.min(log.cursors.through() + 1), oldest, GapReason::Quota);
                last = oldest;
                trim |= log.release();
            }
            log.trimming |= trim;
            if trim {
                self.shared.queue.trim(user.clone());
            }
        })?;
        Ok((last >= first).then_some((first, last, dropped)))
    }

    /// Returns the entries of the first counted block: sequence and bytes.
    fn front(&self, user: &UserId) -> Result<Option<Vec<(Seq, u64)>>, EngineError> {
        let (counted, gone, scanned_s) = self.with_log(user, |log| (log.counted, log.gaps.clone(), log.scanned_s))?;
        let wanted = log_key(user.as_str(), counted + 1);
        let floor = self.shared.engine.last_at_or_before(Table::Log, &wanted)?;
        let from = floor.filter(|(key, _)| is_log_key_of(key, user.as_str())).map_or(wanted, |(key, _)| key.to_vec());
        let mut front = None;
        self.shared.engine.scan(Table::Log, &from, &mut |key, value| {
            if !is_log_key_of(key, user.as_str()) {
                return false;
            }
            // What cannot be read cannot be dropped one by one; it is told to whoever reads it.
            let entries = block_entries(&value).unwrap_or_default();
            let entries = entries
                .iter()
                // What had expired when it was last gone through is not counted.
                .filter(|(_, expires_s)| scanned_s.is_none_or(|scanned_s| !is_expired(*expires_s, scanned_s)))
                .map(|(entry, _)| (entry.seq, entry.payload.as_bytes().len() as u64));
            let counting: Vec<_> = entries.filter(|(seq, _)| *seq > counted && !gone.hides(*seq)).collect();
            front = (!counting.is_empty()).then_some(counting);
            front.is_none()
        })?;
        Ok(front)
    }
}

/// Takes entries off the usage, from the front, until it fits; returns the last one.
fn drop_front(log: &mut UserLog, front: &[(Seq, u64)], bytes: u64, limits: &Limits, dropped: &mut u64) -> Seq {
    let mut last = 0;
    for &(seq, size) in front {
        if log.fits(bytes, limits) {
            break;
        }
        log.block_usage.subtract(size);
        log.counted = seq;
        *dropped += u64::from(!log.cursors.contain(seq));
        last = seq;
    }
    last
}

impl crate::embedded::shared::Shared {
    /// Returns why appends are rejected at present, if they are.
    pub(in crate::embedded) fn check_capacity(&self) -> Result<(), StoreError> {
        self.full.read().clone().map_or(Ok(()), |why| Err(StoreError::Full(why)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_was_full_has_room_again_when_it_has_a_little_more_than_the_least() {
        let room = Capacity::new(0);
        let scarce = [1600, 1599, 1600, 1699, 1700, 1600, 1599].map(|free| room.is_scarce(free, 1600));
        assert_eq!(scarce, [false, true, true, true, false, false, true]);
        assert!([0, 0].iter().all(|free| !Capacity::new(0).is_scarce(*free, 0)), "nothing has to stay free");
    }
}
