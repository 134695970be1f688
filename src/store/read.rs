//! Reading a log: from memory where it is at hand, from the inbox and the journal where it is not.

use bytes::Bytes;

use super::{
    Entry, Found, Loss, Missed, ReadLimit, StoreError, UserState,
    engine::{EngineError, Table},
    gone::Gone,
    journal::{Shared, state},
    log::{Log, Slot, is_past},
    record::{chunk_entries, entry_at, inbox_key, is_inbox_key_of, journal_key},
};
use crate::message::{DeviceId, Seq, UserId};

/// How often a read begins again because what it was about to read was settled meanwhile. Each time the log has moved
/// on by at least a record, so more than a few means that something is broken.
const RETRIES_MAX: usize = 100;

/// What a read needs to know of a log, copied so that nothing is locked while the disk is asked.
struct Plan {
    /// Everything above this is asked for.
    from: Seq,
    /// Up to this the inbox has to be asked, if above `from`.
    settled: Seq,
    slots: Vec<Slot>,
    /// Entries in the inbox that are not to be shown.
    hidden: Vec<(Seq, Seq)>,
    gone: Gone,
    now_s: u32,
    /// When all of the above has been read, everything up to this has been looked at.
    through: Seq,
}

fn plan(log: &mut Log, after: Seq, limit: ReadLimit, now: u32, now_s: u32) -> Plan {
    log.touched = now;
    let mut through = log.head.max(after);
    let from = after.max(log.released());
    let settled = if log.chunks { log.settled } else { 0 };
    let (mut slots, mut bytes) = (Vec::new(), 0);
    // While entries are being settled they are in both places; the inbox counts from the moment it is said to.
    for slot in log.slots_after(from.max(settled)) {
        bytes += slot.bytes as usize;
        if !slots.is_empty() && bytes > limit.bytes || slots.len() >= limit.entries {
            through = slot.seq - 1;
            break;
        }
        if log.shows(slot.seq) && !is_past(slot.expires_s, now_s) {
            slots.push(*slot);
        } else {
            bytes -= slot.bytes as usize;
        }
    }
    let (hidden, gone) = if from < settled {
        let (hold, received) = (log.hold.unwrap_or(Seq::MAX), log.cursors.received());
        // What everybody has received and nobody holds is released, but for a hold that came late.
        let front = (received.through() > log.released()).then_some((1, received.through()));
        let hidden = front.into_iter().chain(received.islands().iter().copied());
        (hidden.map(|(from, to)| (from, to.min(hold))).collect(), log.gone.clone())
    } else {
        (Vec::new(), Gone::default())
    };
    Plan { from, settled, slots, hidden, gone, now_s, through }
}

fn failed(error: EngineError) -> StoreError {
    StoreError::Failed(error.0)
}

impl Shared {
    /// See [`Store::recent`](super::Store::recent).
    pub(super) fn recent(&self, user: &UserId, after: Seq, limit: ReadLimit) -> Option<Found> {
        let (now, now_s) = (self.index.now(), self.clock.now_s());
        let plan = self.index.with_loaded(user, |log| plan(log, after, limit, now, now_s))?;
        if plan.from < plan.settled {
            return None;
        }
        let mut entries = Vec::with_capacity(plan.slots.len());
        let mut last: Option<(u64, Bytes)> = None;
        for slot in &plan.slots {
            if last.as_ref().is_none_or(|(number, _)| *number != slot.record) {
                last = Some((slot.record, self.recent.get(slot.record)?));
            }
            let (_, record) = last.as_ref()?;
            entries.push(self.entry(user, slot, record).ok()?);
        }
        Some(Found { entries, through: plan.through })
    }

    /// See [`Store::read`](super::Store::read).
    pub(super) fn read(&self, user: &UserId, after: Seq, limit: ReadLimit) -> Result<Found, StoreError> {
        for _ in 0..RETRIES_MAX {
            let (now, now_s) = (self.index.now(), self.clock.now_s());
            let plan = self.index.with(user, |log| plan(log, after, limit, now, now_s))?;
            if let Some(found) = self.follow(user, &plan, limit)? {
                return Ok(found);
            }
        }
        Err(StoreError::Damaged(format!("the journal has lost records of user {user:?} above {after}").into()))
    }

    /// Reads what was planned; `None` if some of it has moved to the inbox meanwhile.
    fn follow(&self, user: &UserId, plan: &Plan, limit: ReadLimit) -> Result<Option<Found>, StoreError> {
        let mut entries = Vec::new();
        let mut bytes = 0;
        if plan.from < plan.settled && !self.read_inbox(user, plan, limit, &mut entries, &mut bytes)? {
            let through = entries.last().map_or(plan.from, |entry| entry.seq);
            return Ok(Some(Found { entries, through }));
        }
        let mut last: Option<(u64, Bytes)> = None;
        for slot in &plan.slots {
            bytes += slot.bytes as usize;
            if !entries.is_empty() && (entries.len() >= limit.entries || bytes > limit.bytes) {
                return Ok(Some(Found { entries, through: slot.seq - 1 }));
            }
            let record = match last.take().filter(|(number, _)| *number == slot.record) {
                Some((_, record)) => record,
                None => match self.record(slot.record)? {
                    Some(record) => record,
                    None => return Ok(None),
                },
            };
            entries.push(self.entry(user, slot, &record)?);
            last = Some((slot.record, record));
        }
        Ok(Some(Found { entries, through: plan.through }))
    }

    /// Reads from the inbox; false if the limit was reached.
    fn read_inbox(
        &self,
        user: &UserId,
        plan: &Plan,
        limit: ReadLimit,
        entries: &mut Vec<Entry>,
        bytes: &mut usize,
    ) -> Result<bool, StoreError> {
        // The chunk that begins at or before the first wanted entry may hold it.
        let wanted = inbox_key(user.as_str(), plan.from + 1);
        let floor = self.engine.floor(Table::Inbox, &wanted).map_err(failed)?;
        let from = floor.filter(|(key, _)| is_inbox_key_of(key, user.as_str())).map_or(wanted, |(key, _)| key.to_vec());
        let (mut last, mut room) = (plan.from, true);
        let mut damage = None;
        self.engine
            .scan(Table::Inbox, &from, &mut |key, value| {
                if !is_inbox_key_of(key, user.as_str()) {
                    return false;
                }
                let chunk = match chunk_entries(&value) {
                    Ok(chunk) => chunk,
                    Err(error) => {
                        damage = Some(format!("a chunk of user {user:?} above {last}: {error}"));
                        return false;
                    }
                };
                for (entry, expires_s) in chunk {
                    if entry.owner != user.as_str().as_bytes() || entry.namespace != self.namespace {
                        damage = Some(format!("a chunk of user {user:?} above {last} is not that user's"));
                        return false;
                    }
                    // Chunks may overlap where a crash repeated some settling: what was had is passed over.
                    let (seq, size) = (entry.seq, entry.payload.as_bytes().len());
                    let hidden = plan.hidden.iter().any(|(from, to)| (*from..=*to).contains(&seq))
                        || plan.gone.hides(seq)
                        || is_past(expires_s, plan.now_s);
                    if seq <= last || seq > plan.settled || hidden {
                        continue;
                    }
                    if !entries.is_empty() && (entries.len() >= limit.entries || *bytes + size > limit.bytes) {
                        room = false;
                        return false;
                    }
                    *bytes += size;
                    last = seq;
                    entries.push(entry);
                }
                last < plan.settled
            })
            .map_err(failed)?;
        match damage {
            Some(damage) => Err(StoreError::Damaged(damage.into())),
            None => Ok(room),
        }
    }

    /// A journal record, from memory or from its table; `None` if it has been settled.
    pub(super) fn record(&self, number: u64) -> Result<Option<Bytes>, StoreError> {
        match self.recent.get(number) {
            Some(record) => Ok(Some(record)),
            None => self.engine.get(Table::Journal, &journal_key(number)).map_err(failed),
        }
    }

    /// Reads the entry of a slot, and checks that its stamp is what the slot says.
    pub(super) fn entry(&self, user: &UserId, slot: &Slot, record: &Bytes) -> Result<Entry, StoreError> {
        let entry = entry_at(record, slot.message_at, slot.stamp_at);
        let whose = |entry: &Entry| {
            entry.seq == slot.seq && entry.owner == user.as_str().as_bytes() && entry.namespace == self.namespace
        };
        entry.filter(whose).ok_or_else(|| {
            let place = format!("journal record {} at {}", slot.record, slot.stamp_at);
            StoreError::Damaged(format!("{place} is not entry {} of user {user:?}", slot.seq).into())
        })
    }

    /// See [`Store::pending_bytes`](super::Store::pending_bytes).
    pub(super) fn pending_bytes(&self, user: &UserId) -> Result<u64, StoreError> {
        let (mut total, mut after) = (0, 0);
        loop {
            let limit = ReadLimit { entries: 4096, bytes: 1 << 20 };
            let Found { entries, .. } = self.read(user, after, limit)?;
            let Some(last) = entries.last() else { return Ok(total) };
            after = last.seq;
            let received = self.index.with(user, |log| log.cursors.received())?;
            let pending = entries.iter().filter(|entry| !received.contains(entry.seq));
            total += pending.map(|entry| entry.payload.as_bytes().len() as u64).sum::<u64>();
        }
    }

    /// See [`Store::users`](super::Store::users).
    pub(super) fn users(&self, after: Option<&UserId>, limit: usize) -> Result<Vec<(UserId, UserState)>, StoreError> {
        let mut from = after.map_or_else(Vec::new, |after| after.as_str().as_bytes().to_vec());
        if after.is_some() {
            // The least key above it.
            from.push(0);
        }
        let mut users = Vec::new();
        let visit = &mut |key: &[u8], _| {
            let user = std::str::from_utf8(key).ok().and_then(|id| UserId::new(id).ok());
            users.extend(user);
            users.len() < limit
        };
        if limit > 0 {
            self.engine.scan(Table::Users, &from, visit).map_err(failed)?;
        }
        let now_s = self.clock.now_s();
        users.into_iter().map(|user| Ok((user.clone(), self.index.with(&user, |log| state(log, now_s))?))).collect()
    }

    /// See [`Store::missed`](super::Store::missed).
    pub(super) fn missed(
        &self,
        user: &UserId,
        device: Option<&DeviceId>,
        from: Seq,
        to: Seq,
    ) -> Result<Vec<Missed>, StoreError> {
        self.index.with(user, |log| {
            let received = log.cursors.get(device).map(|cursor| cursor.received.through()).unwrap_or_default();
            let mut missed = Vec::new();
            for (from, to, reason) in log.gone.explain(from, to) {
                match reason {
                    Some(reason) => missed.push(Missed { from, to, reason }),
                    None => {
                        let had = received.max(log.released()).min(to);
                        missed.extend((from <= had).then_some(Missed { from, to: had, reason: Loss::Received }));
                        let rest = from.max(had + 1);
                        missed.extend((rest <= to).then_some(Missed { from: rest, to, reason: Loss::Expired }));
                    }
                }
            }
            missed
        })
    }
}
