//! Reads a log: from memory, the value log and the WAL.

use bytes::Bytes;

use super::{
    store_state::StoreState,
    tables::contract::Table,
    unreadable::damaged,
    user_log::{UserLog, WalSlot, is_expired},
    wal::record::entry_at,
};
use crate::{
    message::{DeviceId, Seq, UserId},
    store::{Entry, Gap, KnownUser, ReadLimit, ReadResult, StoreError, gaps::GapList},
};

/// Limit of attempts of a read whose entries are flushed meanwhile. Each attempt finds at least one more record
/// flushed, so more than a few mean damage.
const ATTEMPTS_MAX: usize = 100;

/// Limit of payload that one request reads to count pending bytes, in bytes. Above it, the count is an estimate.
const COUNT_BYTES_MAX: usize = 1 << 20;

/// Holds a snapshot of a log for a read, so that no lock is held during disk access.
struct ReadPlan {
    /// Entries above this sequence are read.
    from: Seq,
    /// Entries above `from` and up to this sequence are in the value log.
    flushed: Seq,
    /// Entries in the WAL.
    slots: Vec<WalSlot>,
    /// Acknowledged ranges in the value log, which the read skips.
    hidden: Vec<(Seq, Seq)>,
    gaps: GapList,
    now_s: u32,
    /// The read covers everything up to this sequence.
    through: Seq,
}

/// Plans a read of entries above `after`.
fn plan(log: &mut UserLog, after: Seq, limit: ReadLimit, now: u32, now_s: u32) -> ReadPlan {
    log.used_s = now;
    let mut through = log.head.max(after);
    let from = after.max(log.released());
    let flushed = if log.has_blocks { log.flushed } else { 0 };
    let (mut slots, mut bytes) = (Vec::new(), 0);
    // During a flush, entries are in the WAL and in the value log. Up to `flushed` they are read from the value log.
    for slot in log.slots_after(from.max(flushed)) {
        bytes += slot.bytes as usize;
        if !slots.is_empty() && bytes > limit.bytes || slots.len() >= limit.entries {
            through = slot.seq - 1;
            break;
        }
        if log.is_visible(slot.seq) && !is_expired(slot.expires_s, now_s) {
            slots.push(*slot);
        } else {
            bytes -= slot.bytes as usize;
        }
    }
    let (hidden, gaps) = if from < flushed {
        let (hold, acknowledged) = (log.hold.unwrap_or(Seq::MAX), log.cursors.acknowledged());
        // The acknowledged prefix is above `released` only while a hold delays the release.
        let prefix = (acknowledged.through() > log.released()).then_some((1, acknowledged.through()));
        let hidden = prefix.into_iter().chain(acknowledged.ranges().iter().copied());
        (hidden.map(|(from, to)| (from, to.min(hold))).collect(), log.gaps.clone())
    } else {
        (Vec::new(), GapList::default())
    };
    ReadPlan { from, flushed, slots, hidden, gaps, now_s, through }
}

/// Returns the numbers of the records with these slots, ascending.
fn records_of(slots: &[WalSlot]) -> Vec<u64> {
    let mut numbers: Vec<u64> = slots.iter().map(|slot| slot.record).collect();
    numbers.dedup();
    numbers
}

impl StoreState {
    /// See [`Store::read_cached`](crate::store::Store::read_cached).
    pub(super) fn read_cached(&self, user: &UserId, after: Seq, limit: ReadLimit) -> Option<ReadResult> {
        let (now, now_s) = (self.logs.now(), self.clock.now_s());
        let plan = self.logs.with_loaded(user, |log| plan(log, after, limit, now, now_s))?;
        if plan.from < plan.flushed {
            return None;
        }
        let numbers = records_of(&plan.slots);
        let cached = self.record_cache.newest_of(&numbers);
        if cached.len() < numbers.len() {
            return None;
        }
        let (mut entries, mut slots) = (Vec::with_capacity(plan.slots.len()), plan.slots.iter().peekable());
        for (number, record) in numbers.iter().zip(&cached) {
            while let Some(slot) = slots.next_if(|slot| slot.record == *number) {
                entries.push(self.entry(user, slot, record, |part| record.slice_ref(part)).ok()?);
            }
        }
        Some(ReadResult { entries, through: plan.through })
    }

    /// See [`Store::read`](crate::store::Store::read).
    pub(super) fn read(&self, user: &UserId, after: Seq, limit: ReadLimit) -> Result<ReadResult, StoreError> {
        for _ in 0..ATTEMPTS_MAX {
            let (now, now_s) = (self.logs.now(), self.clock.now_s());
            let plan = self.logs.with(user, |log| plan(log, after, limit, now, now_s))?;
            if let Some(result) = self.read_planned(user, &plan, limit)? {
                return Ok(result);
            }
        }
        Err(damaged(format!("WAL records of user {user:?} above {after} are missing")))
    }

    /// Reads the planned entries. Returns `None` if some have been flushed meanwhile.
    fn read_planned(&self, user: &UserId, plan: &ReadPlan, limit: ReadLimit) -> Result<Option<ReadResult>, StoreError> {
        let mut entries = Vec::new();
        let mut bytes = 0;
        if plan.from < plan.flushed && !self.read_planned_blocks(user, plan, limit, &mut entries, &mut bytes)? {
            let through = entries.last().map_or(plan.from, |entry| entry.seq);
            return Ok(Some(ReadResult { entries, through }));
        }
        let (mut slots_read, mut through) = (0, plan.through);
        for slot in &plan.slots {
            bytes += slot.bytes as usize;
            let count = entries.len() + slots_read;
            if count > 0 && (count >= limit.entries || bytes > limit.bytes) {
                through = slot.seq - 1;
                break;
            }
            slots_read += 1;
        }
        let all_found = self.read_slots(user, &plan.slots[..slots_read], &mut |_, entry| entries.push(entry))?;
        Ok(all_found.then_some(ReadResult { entries, through }))
    }

    /// Visits the entries of these slots in order. Returns false if some have been flushed meanwhile.
    pub(super) fn read_slots(
        &self,
        user: &UserId,
        slots: &[WalSlot],
        visit: &mut dyn FnMut(&WalSlot, Entry),
    ) -> Result<bool, StoreError> {
        let numbers = records_of(slots);
        let cached = self.record_cache.newest_of(&numbers);
        let (on_disk, in_memory) = numbers.split_at(numbers.len() - cached.len());
        let (mut slots, mut all_found, mut damage) = (slots.iter().peekable(), true, None);
        if !on_disk.is_empty() {
            let read = self.engine.records(on_disk, &mut |number, record| {
                let Some(record) = record else {
                    all_found = false;
                    return false;
                };
                while let Some(slot) = slots.next_if(|slot| slot.record == number) {
                    // Copied, so that a slow session does not pin a whole record for each message.
                    match self.entry(user, slot, record, Bytes::copy_from_slice) {
                        Ok(entry) => visit(slot, entry),
                        Err(error) => {
                            damage = Some(error);
                            return false;
                        }
                    }
                }
                true
            });
            read?;
        }
        if let Some(damage) = damage {
            return Err(damage);
        }
        if all_found {
            for (number, record) in in_memory.iter().zip(&cached) {
                while let Some(slot) = slots.next_if(|slot| slot.record == *number) {
                    visit(slot, self.entry(user, slot, record, |part| record.slice_ref(part))?);
                }
            }
        }
        Ok(all_found)
    }

    /// Reads the planned entries of the value log. Returns false if the limit is reached.
    fn read_planned_blocks(
        &self,
        user: &UserId,
        plan: &ReadPlan,
        limit: ReadLimit,
        entries: &mut Vec<Entry>,
        bytes: &mut usize,
    ) -> Result<bool, StoreError> {
        self.read_value_log(user, plan.from, plan.flushed, &mut |found| {
            let hidden = plan.hidden.iter().any(|(from, to)| (*from..=*to).contains(&found.seq))
                || plan.gaps.hides(found.seq)
                || is_expired(found.expires_s, plan.now_s);
            if hidden {
                return true;
            }
            if !entries.is_empty() && (entries.len() >= limit.entries || *bytes + found.bytes > limit.bytes) {
                return false;
            }
            if let Some(entry) = found.entry() {
                *bytes += found.bytes;
                entries.push(entry);
            }
            true
        })
    }

    /// Returns a WAL record from memory or disk; `None` if it has been flushed.
    pub(super) fn record(&self, number: u64) -> Result<Option<Bytes>, StoreError> {
        match self.record_cache.get(number) {
            Some(record) => Ok(Some(record)),
            None => Ok(self.engine.record(number)?),
        }
    }

    /// Reads the entry of a slot, and checks its sequence, owner and namespace.
    fn entry(
        &self,
        user: &UserId,
        slot: &WalSlot,
        record: &[u8],
        to_bytes: impl Fn(&[u8]) -> Bytes,
    ) -> Result<Entry, StoreError> {
        let entry = entry_at(record, slot.message_at, slot.recipient_at, to_bytes);
        let is_expected = |entry: &Entry| entry.seq == slot.seq && entry.is_owned_by(self.namespace, user);
        entry.filter(is_expected).ok_or_else(|| {
            let location = format!("WAL record {} at offset {}", slot.record, slot.recipient_at);
            damaged(format!("{location} is not entry {} of user {user:?}", slot.seq))
        })
    }

    /// See [`Store::pending_bytes`](crate::store::Store::pending_bytes).
    pub(super) fn pending_bytes(&self, user: &UserId) -> Result<u64, StoreError> {
        let now_s = self.clock.now_s();
        let (estimate, exact) = self.logs.peek(user, |log| {
            let (acknowledged, pending) = log.pending(log.head, now_s);
            (pending.bytes, log.counts_exactly(&acknowledged, now_s))
        })?;
        if exact || estimate > COUNT_BYTES_MAX as u64 {
            return Ok(estimate);
        }
        let (mut total, mut after, mut budget) = (0, 0, COUNT_BYTES_MAX);
        loop {
            let limit = ReadLimit { entries: 4096, bytes: COUNT_BYTES_MAX };
            let ReadResult { entries, .. } = self.read(user, after, limit)?;
            let Some(last) = entries.last() else { return Ok(total) };
            after = last.seq;
            let read = entries.iter().map(|entry| entry.payload.as_bytes().len()).sum();
            let Some(remaining) = budget.checked_sub(read) else { return Ok(estimate) };
            budget = remaining;
            let acknowledged = self.logs.with(user, |log| log.cursors.acknowledged())?;
            let pending = entries.iter().filter(|entry| !acknowledged.contains(entry.seq));
            total += pending.map(|entry| entry.payload.as_bytes().len() as u64).sum::<u64>();
        }
    }

    /// See [`Store::users`](crate::store::Store::users).
    pub(super) fn users(&self, after: Option<&UserId>, limit: usize) -> Result<Vec<KnownUser>, StoreError> {
        let now_s = self.clock.now_s();
        let known = |user: UserId| match self.logs.peek(&user, |log| log.user_state(now_s)) {
            Err(error) if !matches!(error, StoreError::Damaged(_)) => Err(error),
            state => Ok((user, state)),
        };
        self.user_ids(after, limit)?.into_iter().map(known).collect()
    }

    /// Lists users above `after`, at most `limit`, in the order of their ids.
    pub(super) fn user_ids(&self, after: Option<&UserId>, limit: usize) -> Result<Vec<UserId>, StoreError> {
        let mut users = Vec::new();
        if limit == 0 {
            return Ok(users);
        }
        // First: the flush writes a row before it removes the user from this list.
        let without_row = self.logs.users_without_row(after, limit);
        let mut from = after.map_or_else(Vec::new, |after| after.as_str().as_bytes().to_vec());
        if after.is_some() {
            // The lowest key above `after`.
            from.push(0);
        }
        self.engine.keys(Table::Users, &from, &mut |key| {
            users.extend(std::str::from_utf8(key).ok().and_then(|id| UserId::new(id).ok()));
            users.len() < limit
        })?;
        if !without_row.is_empty() {
            users.extend(without_row);
            users.sort_unstable();
            users.dedup();
            users.truncate(limit);
        }
        Ok(users)
    }

    /// See [`Store::explain_gaps`](crate::store::Store::explain_gaps).
    pub(super) fn explain_gaps(
        &self,
        user: &UserId,
        device: Option<&DeviceId>,
        from: Seq,
        to: Seq,
    ) -> Result<Vec<Gap>, StoreError> {
        self.logs.with(user, |log| {
            let acknowledged = log.cursors.get(device).map(|cursor| cursor.acknowledged.through()).unwrap_or_default();
            log.gaps.explain_missing(from, to, acknowledged.max(log.released()))
        })
    }
}
