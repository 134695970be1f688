//! Adds appends, clears and reports to a commit.

use super::{
    cost::Cost,
    state::{Commit, Committer},
};
use crate::{
    embedded::{
        tables::{
            contract::EngineError,
            schema::{ROW_BYTES_MAX, StoredCursor},
        },
        user_log::{UserLog, WalSlot},
        wal::record::{Item, RECORD_BYTES},
    },
    logging::excerpt,
    message::{COLLAPSE_KEY_CHARACTERS_MAX, DeviceId, Seq, USER_ID_BYTES_MAX, UserId},
    store::{
        Append, AppendResult, DispatchSummary, GapReason, Idempotency, Overflow, REJECTED_BYTES_MAX, Rejected,
        RejectionReason, StoreError, clock::seconds,
    },
    util::saturate::saturate,
};

/// Bytes that a record needs for one recipient: its [`Item::To`], and the gaps of the entries it replaces and evicts.
const RECIPIENT_BYTES_MAX: usize = 3 * (USER_ID_BYTES_MAX + 32);

/// Bytes that a record needs for the options of a message.
const OPTIONS_BYTES_MAX: usize = 4 * COLLAPSE_KEY_CHARACTERS_MAX + 16;

/// Bytes that a record needs for one rejected recipient.
const REJECTION_BYTES_MAX: usize = REJECTED_BYTES_MAX + 16;

/// Bytes that a record needs for an idempotency id with its result.
const SUMMARY_BYTES_MAX: usize = 600;

/// Bytes that a record needs for one cursor with the maximum number of ranges.
pub(super) const CURSOR_BYTES_MAX: usize = USER_ID_BYTES_MAX + 700;

/// Holds an append that is being added to the commit.
struct OpenAppend<'a> {
    append: &'a Append,
    /// Expiry in seconds of the Unix epoch; 0 = never.
    expires_s: u32,
    now_s: u32,
    /// Bytes of payload that the flush will write for each recipient.
    reserved: u32,
    /// Offset of the message in the open record, if that has it.
    message_at: Option<u32>,
}

/// States the result of assigning a sequence in a recipient's log.
enum Assignment {
    /// The assigned sequence, and the entry that the new one replaces.
    Assigned(Seq, Option<Seq>),
    /// The row must be written first: it does not include the latest lossy restart.
    NeedsRow,
    /// The user's quota is exhausted.
    OverQuota,
}

impl Committer {
    /// Adds an append to the commit, or returns the first result of a known id.
    pub(super) fn add_append(&mut self, commit: &mut Commit, append: Append) -> Result<AppendResult, EngineError> {
        let now_ms = self.shared.clock.now_ms();
        if let Some(idempotency) = &append.idempotency
            && let Some(summary) = self.dedup.get(&idempotency.id, now_ms)
        {
            return Ok(AppendResult { summary: Some(summary.clone()), duplicate: true, ..AppendResult::default() });
        }
        let ttl = append.ttl.into_iter().chain(self.limits.age).min();
        // Rounded up, so that no entry expires early.
        let expires_s = ttl.map_or(0, |ttl| seconds(now_ms + 999 + ttl.as_millis() as u64).max(1));
        let (now_s, reserved) = (seconds(now_ms), Cost::payload_share(&append));
        let mut message = OpenAppend { append: &append, expires_s, now_s, reserved, message_at: None };
        let (mut seqs, mut dropped) = (Vec::with_capacity(append.recipients.len()), 0);
        for user in &append.recipients {
            seqs.push(self.add_recipient(commit, &mut message, user, &mut dropped)?);
        }
        let summary = append
            .idempotency
            .as_ref()
            .map(|idempotency| self.store_summary(commit, idempotency, &append.recipients, &seqs, now_ms));
        Ok(AppendResult { seqs, summary, duplicate: false, dropped })
    }

    /// Adds the message to a recipient's log. The inner error is the reason of a rejection.
    fn add_recipient(
        &self,
        commit: &mut Commit,
        message: &mut OpenAppend<'_>,
        user: &UserId,
        dropped: &mut u64,
    ) -> Result<Result<Seq, RejectionReason>, EngineError> {
        let bytes = message.append.payload.as_bytes().len();
        let mut quota_freed = false;
        let (seq, replaced) = loop {
            let assignment = self.try_with_log(user, |log| self.assign(user, log, message, commit));
            match assignment {
                Ok(Assignment::Assigned(seq, replaced)) => break (seq, replaced),
                // Before this commit changes the log: the row must not include changes that may never be committed.
                Ok(Assignment::NeedsRow) => self.put_row(user)?,
                Ok(Assignment::OverQuota) if quota_freed => return Ok(Err(RejectionReason::Quota)),
                Ok(Assignment::OverQuota) => {
                    quota_freed = true;
                    *dropped += match self.free_quota(commit, user, bytes as u64) {
                        Err(error) if error.is_transient() => {
                            tracing::warn!(%user, %error, "cannot evict entries from this user's log now");
                            0
                        }
                        freed => freed?,
                    };
                }
                Err(StoreError::Damaged(damage)) => {
                    tracing::error!(user = %excerpt(user), %damage, "rejected a message for a user whose log is damaged");
                    return Ok(Err(RejectionReason::Damaged));
                }
                Err(error) => return Err(error.into()),
            }
        };
        // A message that does not fit begins a new record. If its recipients do not fit, the next record repeats it.
        let length = commit.bytes();
        let full = match message.message_at {
            None => length > 0 && length + bytes + OPTIONS_BYTES_MAX + RECIPIENT_BYTES_MAX > RECORD_BYTES,
            Some(_) => {
                length + RECIPIENT_BYTES_MAX > if bytes > RECORD_BYTES / 2 { ROW_BYTES_MAX } else { RECORD_BYTES }
            }
        };
        if full {
            commit.next_record();
            message.message_at = None;
        }
        let message_at = message.message_at.unwrap_or_else(|| commit.push(&self.shared, &message.item()));
        message.message_at = Some(message_at);
        let recipient_at = commit.push(&self.shared, &Item::To { user: user.as_str(), seq });
        if let Some(from) = replaced {
            let reason = GapReason::Collapsed as u8;
            commit.push(&self.shared, &Item::Gap { user: user.as_str(), from, to: from, reason });
        }
        let record = commit.number;
        let bytes = saturate(bytes);
        let OpenAppend { reserved, expires_s, .. } = *message;
        let slot = WalSlot { seq, record, message_at, recipient_at, bytes, reserved, expires_s };
        self.with_log(user, |log| {
            if let Some(replaced) = replaced {
                log.collapse(replaced);
                self.shared.release(user, log);
            }
            log.push(slot, message.append.collapse.clone());
            // A purge of a pinned log would forget no gap.
            if log.gaps.is_nearly_full() && !log.pins.any() {
                commit.purge_hidden.push(user.clone());
            }
        })?;
        commit.entries.push((user.clone(), seq, record));
        Ok(Ok(seq))
    }

    /// Assigns the next sequence of a log, if the quota allows it.
    fn assign(&self, user: &UserId, log: &mut UserLog, message: &OpenAppend<'_>, commit: &mut Commit) -> Assignment {
        let lossy_restarts = self.shared.logs.lossy_restarts().count;
        let is_new = log.row_lossy_restarts.is_none();
        if !is_new && log.row_lossy_restarts != Some(lossy_restarts) {
            // From now on the row states that entries may have been appended.
            log.before_skip = None;
            return Assignment::NeedsRow;
        }
        // With a full gap list, one more gap could remove one that hides an entry in the value log. So nothing
        // collapses until a purge has shortened the list, nor while a backup reads the last part of the log.
        let may_collapse = !log.gaps.is_full() && !log.pins.stop_collapses();
        let key = message.append.collapse.as_ref().filter(|_| may_collapse);
        let replaced = key.and_then(|key| log.pending_with_key(key, message.now_s)).map(|entry| entry.seq);
        // A replacement may exceed the quota: it adds no entry, and few bytes.
        if !log.fits(message.append.payload.as_bytes().len() as u64, &self.limits) && replaced.is_none() {
            return Assignment::OverQuota;
        }
        if is_new {
            // The flush writes the row. Until then, this entry in the WAL shows that a sequence was assigned.
            (log.before_skip, log.row_lossy_restarts) = (None, Some(lossy_restarts));
            self.shared.logs.set_without_row(user, log);
        }
        // The row alone does not show that a sequence was assigned: it may come from a report, and be lost. At head 0,
        // even a durable row does not.
        commit.first_entries |= is_new || log.row_before_entry.take().is_some() || log.assigned == 0;
        log.assigned += 1;
        log.last_record = commit.number;
        Assignment::Assigned(log.assigned, replaced)
    }

    /// Frees a user's quota for a message of `bytes`, if possible. Returns the number of evicted entries.
    fn free_quota(&self, commit: &mut Commit, user: &UserId, bytes: u64) -> Result<u64, EngineError> {
        // Released entries count until they are subtracted here or by a trim.
        let has_released = |log: &mut UserLog| {
            let has = log.has_blocks && log.counted < log.released() && !log.fits(bytes, &self.limits);
            has.then(|| (log.counted, log.released()))
        };
        if let Some((counted, _)) = self.with_log(user, has_released)? {
            let mut from = self.block_key(user, counted + 1)?;
            while let Some((_, released)) = self.with_log(user, has_released)? {
                let Some(next) = self.count_released(user, &from, released)?.next else { break };
                from = next;
            }
        }
        if self.purge_is_due(user)? {
            // Counts without removing: entries that this commit replaces are needed until it is written.
            let must_purge = self.count_again(user, &mut commit.count_budget)?;
            commit.purge_all.extend(must_purge.then(|| user.clone()));
        }
        if self.limits.overflow == Overflow::Reject {
            return Ok(0);
        }
        let Some((from, to, entries)) = self.evict_oldest(user, bytes)? else { return Ok(0) };
        self.shared.record_dropped(user, from, to, entries);
        commit.push(&self.shared, &Item::Gap { user: user.as_str(), from, to, reason: GapReason::Quota as u8 });
        Ok(entries)
    }

    /// Adds the result of an idempotent append to the commit, and to the deduplication table.
    fn store_summary(
        &mut self,
        commit: &mut Commit,
        idempotency: &Idempotency,
        recipients: &[UserId],
        seqs: &[Result<Seq, RejectionReason>],
        now_ms: u64,
    ) -> DispatchSummary {
        let truncated = |rejected: &Rejected| Rejected::new(&rejected.user, rejected.reason);
        let accepted = |at: usize| seqs.get(at).is_none_or(Result::is_ok);
        let online = idempotency.online.iter().enumerate().filter(|(at, online)| **online && accepted(*at)).count();
        let offline = idempotency.online.iter().enumerate().filter(|(at, online)| !**online && accepted(*at)).count();
        let rejected_now = recipients.iter().zip(seqs).filter_map(|(user, seq)| {
            let reason = seq.err()?;
            Some(Rejected::new(user.as_str(), reason))
        });
        let summary = DispatchSummary {
            recipients: saturate(idempotency.online.len() + idempotency.rejected.len()),
            online: saturate(online),
            offline: saturate(offline),
            stored: saturate(seqs.iter().filter(|seq| seq.is_ok()).count()),
            rejected: idempotency.rejected.iter().map(truncated).chain(rejected_now).collect(),
        };
        for Rejected { user, reason } in &summary.rejected {
            commit.ensure_capacity(REJECTION_BYTES_MAX);
            commit.push(&self.shared, &Item::Rejected { user, reason: *reason as u8 });
        }
        commit.ensure_capacity(SUMMARY_BYTES_MAX);
        let id = idempotency.id.as_str();
        let DispatchSummary { recipients, online, offline, stored, .. } = summary;
        commit.push(&self.shared, &Item::Summary { id, recipients, online, offline, stored });
        self.dedup.insert(id, now_ms, summary.clone(), now_ms);
        summary
    }

    /// Clears a user's log. Returns the number of cleared entries.
    pub(super) fn add_clear(&self, commit: &mut Commit, user: &UserId) -> Result<u64, EngineError> {
        let now_s = self.shared.clock.now_s();
        let (cleared, range) = self.with_log(user, |log| {
            // Includes entries of this commit that precede the clear.
            let cleared = log.pending(log.assigned, now_s).1.entries;
            let from = log.cursors.through() + 1;
            let range = (from <= log.assigned).then_some((from, log.assigned));
            if let Some((from, to)) = range {
                log.cursors.acknowledge_all(1, to);
                log.gaps.insert(from, to, GapReason::Cleared);
            }
            self.shared.release(user, log);
            (cleared, range)
        })?;
        if let Some((from, to)) = range {
            commit.ensure_capacity(RECIPIENT_BYTES_MAX);
            commit.push(&self.shared, &Item::Gap { user: user.as_str(), from, to, reason: GapReason::Cleared as u8 });
        }
        self.add_report(commit, user)?;
        Ok(cleared)
    }

    /// Adds the reports of these users to the commit. Postpones those for which the WAL has no space.
    pub(super) fn add_reports(&mut self, commit: &mut Commit, dirty: Vec<UserId>) -> Result<(), EngineError> {
        let mut dirty = dirty.into_iter();
        while let Some(user) = dirty.next() {
            // Otherwise the log was emptied meanwhile, because its user was erased.
            if self.shared.logs.with_loaded(&user, |log| log.dirty) != Some(true) {
                continue;
            }
            if !self.reserve_report(commit)? {
                self.postpone_reports(std::iter::once(user).chain(dirty));
                break;
            }
            match self.add_report(commit, &user) {
                // The log could not be loaded, so the commit has no part of the report.
                Err(error) if error.is_transient() => {
                    self.postpone_reports(std::iter::once(user));
                    self.suspend(error)?;
                }
                added => added?,
            }
        }
        Ok(())
    }

    /// Adds a user's cursors and presence to the commit, in their current state.
    fn add_report(&self, commit: &mut Commit, user: &UserId) -> Result<(), EngineError> {
        let new = match self.try_with_log(user, |log| log.row_lossy_restarts.is_none()) {
            // Only a log that was never loaded can be damaged, and such a log has no changes.
            Err(StoreError::Damaged(_)) => return Ok(()),
            new => new?,
        };
        if new {
            self.put_row(user)?;
        }
        let (changes, expired, at_ms) = self.with_log(user, |log| {
            log.dirty = false;
            log.released_in_wal = log.released();
            (log.cursors.take_changes(), std::mem::take(&mut log.reported_expired), log.seen_ms)
        })?;
        let mut push_all = |cursors: Vec<(Option<DeviceId>, StoredCursor)>, removed: Vec<Option<DeviceId>>| {
            for (device, cursor) in cursors {
                commit.ensure_capacity(CURSOR_BYTES_MAX);
                let device = device.as_ref().map_or("", |device| device.as_str());
                commit.push(&self.shared, &Item::Cursor { user: user.as_str(), device, cursor });
            }
            for device in removed {
                commit.ensure_capacity(CURSOR_BYTES_MAX);
                let device = device.as_ref().map_or("", |device| device.as_str());
                commit.push(&self.shared, &Item::CursorRemoved { user: user.as_str(), device });
            }
        };
        push_all(changes.cursors, changes.removed);
        push_all(changes.recreated, Vec::new());
        for (from, to) in expired {
            commit.ensure_capacity(RECIPIENT_BYTES_MAX);
            commit.push(&self.shared, &Item::Gap { user: user.as_str(), from, to, reason: GapReason::Expired as u8 });
        }
        if at_ms > 0 {
            commit.ensure_capacity(CURSOR_BYTES_MAX);
            commit.push(&self.shared, &Item::Seen { user: user.as_str(), at_ms });
        }
        let number = commit.number;
        self.with_log(user, |log| log.last_record = number)
    }
}

impl OpenAppend<'_> {
    fn item(&self) -> Item<'_> {
        let payload = self.append.payload.as_bytes();
        let collapse = self.append.collapse.as_ref().map_or("", |key| key.as_str());
        Item::Message { payload, expires_s: self.expires_s, collapse }
    }
}
