//! Adds appends, clears and reports to a commit.

use super::{
    dedup,
    state::{Commit, Committer},
};
use crate::{
    embedded::{
        tables::{
            contract::EngineError,
            schema::{StoredCursor, VALUE_BYTES_MAX},
        },
        user_log::{UserLog, WalSlot},
        wal::record::{Item, RECORD_BYTES},
    },
    logging::excerpt,
    message::{COLLAPSE_KEY_CHARACTERS_MAX, DeviceId, Seq, USER_ID_BYTES_MAX, UserId},
    store::{
        Append, AppendResult, DispatchSummary, GapReason, Idempotency, Overflow, REJECTED_BYTES_MAX, Reason, Rejected,
        StoreError, clock::seconds,
    },
};

/// Capacity a record keeps for what is said of one recipient: a stamp, and what went for it.
const STAMP_BYTES_MAX: usize = 3 * (USER_ID_BYTES_MAX + 32);

/// Capacity for the options of a message.
const OPTIONS_BYTES_MAX: usize = 4 * COLLAPSE_KEY_CHARACTERS_MAX + 16;

/// Capacity for one rejected user.
const REJECTION_BYTES_MAX: usize = REJECTED_BYTES_MAX + 16;

/// Capacity for an id with its answer.
const ONCE_BYTES_MAX: usize = 600;

/// Capacity for one cursor, with as many ranges as there can be.
const CURSOR_BYTES_MAX: usize = USER_ID_BYTES_MAX + 700;

/// An append under way.
struct Message<'a> {
    append: &'a Append,
    /// When it expires, in seconds of the Unix epoch; 0 = never.
    expires_s: u32,
    now_s: u32,
    /// Where it stands in the open record, if it does.
    at: Option<u32>,
}

/// What the log of a recipient has to say to a message.
enum Step {
    /// It gets this place; that entry goes for it.
    Given(Seq, Option<Seq>),
    /// There is no row yet that says that this user is known.
    NeedsRow,
    /// There is no room for it.
    NeedsRoom,
}

impl Committer {
    pub(super) fn add_append(&mut self, commit: &mut Commit, append: Append) -> Result<AppendResult, EngineError> {
        let now_ms = self.shared.clock.now_ms();
        if let Some(idempotency) = &append.idempotency
            && let Some(summary) = self.dedup.get(&idempotency.id, now_ms)
        {
            return Ok(AppendResult { summary: Some(summary.clone()), duplicate: true, ..AppendResult::default() });
        }
        let lives = append.ttl.into_iter().chain(self.limits.age).min();
        // Rounded up: nothing goes before its time.
        let expires_s = lives.map_or(0, |lives| seconds(now_ms + 999 + lives.as_millis() as u64).max(1));
        let mut message = Message { append: &append, expires_s, now_s: seconds(now_ms), at: None };
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

    fn add_recipient(
        &self,
        commit: &mut Commit,
        message: &mut Message<'_>,
        user: &UserId,
        dropped: &mut u64,
    ) -> Result<Result<Seq, Reason>, EngineError> {
        let bytes = message.append.payload.as_bytes().len();
        let mut tried = false;
        let (seq, replaced) = loop {
            let step = self.try_with_log(user, |log| self.step(log, message, commit.number));
            match step {
                Ok(Step::Given(seq, replaced)) => break (seq, replaced),
                // Before anything else of this commit is in it: a row must not know of what may never be written.
                Ok(Step::NeedsRow) => {
                    self.put_row(user)?;
                    commit.first_entries = true;
                }
                Ok(Step::NeedsRoom) if tried => return Ok(Err(Reason::Quota)),
                Ok(Step::NeedsRoom) => {
                    tried = true;
                    *dropped += match self.make_room(commit, user, bytes as u64) {
                        Err(error) if error.is_transient() => {
                            tracing::warn!(%user, %error, "cannot evict entries from this user's log now");
                            0
                        }
                        made => made?,
                    };
                }
                Err(StoreError::Damaged(damage)) => {
                    tracing::error!(user = %excerpt(user), %damage, "rejected a message for a user whose log is damaged");
                    return Ok(Err(Reason::Damaged));
                }
                Err(error) => return Err(error.into()),
            }
        };
        // A message that does not fit behind the others begins a record of its own, and one whose recipients do not
        // fit is repeated in the next.
        let length = commit.bytes();
        let full = match message.at {
            None => length > 0 && length + bytes + OPTIONS_BYTES_MAX + STAMP_BYTES_MAX > RECORD_BYTES,
            Some(_) => length + STAMP_BYTES_MAX > if bytes > RECORD_BYTES / 2 { VALUE_BYTES_MAX } else { RECORD_BYTES },
        };
        if full {
            commit.next_record();
            message.at = None;
        }
        let at = message.at.unwrap_or_else(|| commit.push(&self.shared, &message.item()));
        message.at = Some(at);
        let stamp_at = commit.push(&self.shared, &Item::To { user: user.as_str(), seq });
        if let Some(from) = replaced {
            let loss = GapReason::Collapsed as u8;
            commit.push(&self.shared, &Item::Gap { user: user.as_str(), from, to: from, loss });
        }
        let record = commit.number;
        // A payload has at most 64 KiB.
        let bytes = bytes as u32;
        let slot = WalSlot { seq, record, message_at: at, stamp_at, bytes, expires_s: message.expires_s };
        let trim = self.with_log(user, |log| {
            let trim = replaced.is_some_and(|replaced| {
                log.collapse(replaced);
                log.release()
            });
            log.trimming |= trim;
            log.push(slot, message.append.collapse.clone());
            if log.gaps.is_full() {
                commit.tidy.push(user.clone());
            }
            trim
        })?;
        if trim {
            self.shared.queue.trim(user.clone());
        }
        commit.entries.push((user.clone(), seq, record));
        Ok(Ok(seq))
    }

    fn step(&self, log: &mut UserLog, message: &Message<'_>, record: u64) -> Step {
        if log.row_lapses != Some(self.shared.logs.lapses().count) {
            // From here on the row says that something may have been appended.
            log.passed = None;
            return Step::NeedsRow;
        }
        // One more gap could make it forget one that still hides something in the inbox: until that has been gone through,
        // what is older stays beside what is newer.
        let key = message.append.collapse.as_ref().filter(|_| !log.gaps.is_full());
        let replaced = key.and_then(|key| log.pending_with_key(key, message.now_s)).map(|keyed| keyed.seq);
        // What takes the place of another needs no more room than that had, but for bytes.
        if !log.fits(message.append.payload.as_bytes().len() as u64, &self.limits) && replaced.is_none() {
            return Step::NeedsRoom;
        }
        log.assigned += 1;
        log.last_record = record;
        Step::Given(log.assigned, replaced)
    }

    /// Makes room for a message of so many bytes, where that can be done; returns how many entries went for it.
    fn make_room(&self, commit: &mut Commit, user: &UserId, bytes: u64) -> Result<u64, EngineError> {
        if self.with_log(user, |log| log.has_blocks && log.counted < log.released())? {
            // What has been received meanwhile still counts until then.
            self.count_released(user)?;
        }
        if self.purge_is_due(user)? {
            // Counted now, and taken out when what this commit replaces is not needed any more.
            self.scan_blocks(user, false)?;
            commit.tidy.push(user.clone());
        }
        if self.limits.overflow == Overflow::Reject {
            return Ok(0);
        }
        let Some((from, to, entries)) = self.evict_oldest(user, bytes)? else { return Ok(0) };
        self.shared.record_dropped(user, from, to, entries);
        commit.push(&self.shared, &Item::Gap { user: user.as_str(), from, to, loss: GapReason::Quota as u8 });
        Ok(entries)
    }

    /// Remembers the answer to an append that is done once.
    fn store_summary(
        &mut self,
        commit: &mut Commit,
        idempotency: &Idempotency,
        recipients: &[UserId],
        seqs: &[Result<Seq, Reason>],
        now_ms: u64,
    ) -> DispatchSummary {
        let taken = |at: usize| seqs.get(at).is_none_or(Result::is_ok);
        let online = idempotency.online.iter().enumerate().filter(|(at, online)| **online && taken(*at)).count();
        let offline = idempotency.online.iter().enumerate().filter(|(at, online)| !**online && taken(*at)).count();
        let refused_here = recipients.iter().zip(seqs).filter_map(|(user, seq)| {
            let reason = seq.err()?;
            Some(Rejected::new(user.as_str(), reason))
        });
        let summary = DispatchSummary {
            recipients: (idempotency.online.len() + idempotency.rejected.len()) as u32,
            online: online as u32,
            offline: offline as u32,
            stored: seqs.iter().filter(|seq| seq.is_ok()).count() as u32,
            rejected: idempotency
                .rejected
                .iter()
                .map(|one| Rejected::new(&one.user, one.reason))
                .chain(refused_here)
                .collect(),
        };
        for one in &summary.rejected {
            commit.make_room(REJECTION_BYTES_MAX);
            commit.push(&self.shared, &Item::Rejected { user: &one.user, reason: one.reason as u8 });
        }
        commit.make_room(ONCE_BYTES_MAX);
        let DispatchSummary { recipients, online, .. } = summary;
        let offline = dedup::offline_to_store(&summary);
        commit.push(&self.shared, &Item::Summary { id: idempotency.id.as_str(), recipients, online, offline });
        self.dedup.insert(idempotency.id.as_str(), now_ms, summary.clone(), now_ms);
        summary
    }

    pub(super) fn add_clear(&self, commit: &mut Commit, user: &UserId) -> Result<u64, EngineError> {
        let now_s = self.shared.clock.now_s();
        let (cleared, gone, trim) = self.with_log(user, |log| {
            // Also what this very commit has given out: it came before.
            let cleared = log.pending(log.assigned, now_s).1.entries;
            let from = log.cursors.through() + 1;
            let gone = (from <= log.assigned).then_some((from, log.assigned));
            if let Some((from, to)) = gone {
                log.cursors.all_receive(1, to);
                log.gaps.insert(from, to, GapReason::Cleared);
            }
            let trim = log.release();
            log.trimming |= trim;
            (cleared, gone, trim)
        })?;
        if trim {
            self.shared.queue.trim(user.clone());
        }
        if let Some((from, to)) = gone {
            commit.make_room(STAMP_BYTES_MAX);
            commit.push(&self.shared, &Item::Gap { user: user.as_str(), from, to, loss: GapReason::Cleared as u8 });
        }
        self.add_note(commit, user)?;
        Ok(cleared)
    }

    pub(super) fn add_notes(&mut self, commit: &mut Commit, dirty: Vec<UserId>) -> Result<(), EngineError> {
        let mut dirty = dirty.into_iter();
        while let Some(user) = dirty.next() {
            if !self.may_note(commit)? {
                self.postpone_notes(std::iter::once(user).chain(dirty));
                break;
            }
            match self.add_note(commit, &user) {
                // It could not be loaded: nothing of it was noted.
                Err(error) if error.is_transient() => {
                    self.postpone_notes(std::iter::once(user));
                    self.suspend(error)?;
                }
                noted => noted?,
            }
        }
        Ok(())
    }

    /// Writes down what a user's cursors have received and when he was seen, as it stands now.
    fn add_note(&self, commit: &mut Commit, user: &UserId) -> Result<(), EngineError> {
        let new = match self.try_with_log(user, |log| log.row_lapses.is_none()) {
            // Only a log that was never loaded can turn out to be damaged, and that has nothing to note.
            Err(StoreError::Damaged(_)) => return Ok(()),
            new => new?,
        };
        if new {
            self.put_row(user)?;
        }
        let (changes, expired, at_ms) = self.with_log(user, |log| {
            log.dirty = false;
            (log.cursors.take_changes(), std::mem::take(&mut log.reported_expired), log.seen_ms)
        })?;
        let mut push_all = |cursors: Vec<(Option<DeviceId>, StoredCursor)>, forgotten: Vec<Option<DeviceId>>| {
            for (device, cursor) in cursors {
                commit.make_room(CURSOR_BYTES_MAX);
                let device = device.as_ref().map_or("", |device| device.as_str());
                commit.push(&self.shared, &Item::Cursor { user: user.as_str(), device, cursor });
            }
            for device in forgotten {
                commit.make_room(CURSOR_BYTES_MAX);
                let device = device.as_ref().map_or("", |device| device.as_str());
                commit.push(&self.shared, &Item::CursorRemoved { user: user.as_str(), device });
            }
        };
        push_all(changes.cursors, changes.forgotten);
        push_all(changes.renewed, Vec::new());
        for (from, to) in expired {
            commit.make_room(STAMP_BYTES_MAX);
            commit.push(&self.shared, &Item::Gap { user: user.as_str(), from, to, loss: GapReason::Expired as u8 });
        }
        if at_ms > 0 {
            commit.make_room(CURSOR_BYTES_MAX);
            commit.push(&self.shared, &Item::Seen { user: user.as_str(), at_ms });
        }
        let number = commit.number;
        self.with_log(user, |log| log.last_record = number)
    }
}

impl Message<'_> {
    fn item(&self) -> Item<'_> {
        let payload = self.append.payload.as_bytes();
        match (&self.append.collapse, self.expires_s) {
            (None, 0) => Item::Message(payload),
            (collapse, expires_s) => {
                let collapse = collapse.as_ref().map_or("", |key| key.as_str());
                Item::MessageWith { payload, expires_s, collapse }
            }
        }
    }
}
