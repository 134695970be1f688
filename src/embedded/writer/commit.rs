//! The commit thread: takes everything queued, assigns sequences, writes WAL records, makes them durable, then
//! publishes entries, wakes sessions and replies (group commit).
//!
//! There is no delay to collect more: what arrives while one commit is made is the next. A lone message costs one
//! sync; under load a sync is shared by many. (Waiting 0.3 ms for company behind a busy commit was tried with 50 callers
//! over HTTP: a tenth of the work went away, and a quarter of the throughput with it.)

use std::{
    cell::Cell,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use super::{
    queue::{Batch, Op},
    reply::{Replies, Reply, ReplySender},
    state::{Capacity, Commit, Committer, ExpiryScan, Suspended},
};
use crate::{
    embedded::{
        recovery::{RecordInfo, RecoveredJournal},
        shared::{Options, Shared},
        tables::{
            contract::{Cause, EngineError, Table},
            schema::wal_key,
        },
        user_log::{UserLog, lossy_restarts::SEQUENCE_RESERVE},
        wal::record::{Item, RECORD_BYTES, RecordWriter},
    },
    failpoints::{self, Failpoint},
    logging::panic_text,
    message::UserId,
    store::{Append, Durability, StoreError},
};
use bytes::Bytes;

/// Delay of acknowledgements and presence, so that more share a commit. A killed process loses at most this much of
/// them.
const REPORT_DELAY: Duration = Duration::from_millis(20);

/// Interval at which the idle thread checks for due work.
const IDLE_INTERVAL: Duration = Duration::from_secs(1);

/// Replies and users notified on the commit thread itself. More are notified from a task.
const INLINE_NOTIFY_MAX: usize = 4;

/// Bytes that a file adds to those of a record, at most.
const FRAME_BYTES: u64 = 64;

impl Committer {
    pub(in crate::embedded) fn new(shared: Arc<Shared>, recovered: RecoveredJournal, options: &Options) -> Self {
        let now = Instant::now();
        Self {
            shared,
            durability: options.durability,
            tuning: options.tuning,
            limits: options.limits,
            dedup: recovered.dedup,
            capacity: Capacity::new(recovered.inbox_bytes),
            expiry: ExpiryScan::new(recovered.id_chunks),
            wal_bytes: recovered.records.iter().map(|record| record.bytes).sum(),
            records: recovered.records,
            flush: None,
            next_record: recovered.next_record,
            unsynced: 0,
            wal_unsynced: false,
            blocks_unsynced: Cell::new(false),
            outbox_unsynced: false,
            has_garbage: false,
            suspended: Suspended::default(),
            synced: now,
            evicted: now,
        }
    }

    /// Runs until the store is closed or has failed.
    pub(in crate::embedded) fn run(mut self) {
        // A panic down there must not leave anybody waiting for an answer that nobody will give.
        let ended = catch_unwind(AssertUnwindSafe(|| self.serve()));
        let ended = ended.unwrap_or_else(|panic| {
            Err(EngineError::new(format!("the commit thread panicked: {}", panic_text(panic.as_ref()))))
        });
        if let Err(error) = ended {
            self.shared.fail(StoreError::Failed(error.what));
        }
        self.shared.ended.send_replace(true);
    }

    fn serve(&mut self) -> Result<(), EngineError> {
        loop {
            let mut taken = self.shared.queue.take(REPORT_DELAY, self.wait_timeout());
            if let Some(StoreError::Failed(why)) = &*self.shared.failed.borrow() {
                // Users were not told of a commit: see `publish`.
                return Err(EngineError::new(why));
            }
            let close = match taken.ops.pop() {
                Some(Op::Close { done }) => Some(done),
                Some(op) => {
                    taken.ops.push(op);
                    None
                }
                None => None,
            };
            let trim = std::mem::take(&mut taken.trim);
            let idle = taken.ops.is_empty() && taken.dirty.is_empty();
            if self.may_commit(&mut taken)? {
                self.commit(taken)?;
            }
            self.write_outbox()?;
            self.trim_all(trim)?;
            if let Some(done) = close {
                let closed = self.close();
                let answer = closed.clone().map_err(StoreError::from);
                _ = done.send(answer);
                return closed;
            }
            self.sync_if_due(idle)?;
            self.work()?;
            self.refresh_capacity_if_due();
            if self.evicted.elapsed() > Duration::from_secs(u64::from(self.tuning.idle_seconds / 2)) {
                self.evicted = Instant::now();
                let first = self.records.front().map_or(self.next_record, |record| record.number);
                self.shared.logs.evict(first, self.tuning.idle_seconds);
            }
        }
    }

    fn wait_timeout(&self) -> Duration {
        let retry = self.retry_delay();
        match self.durability {
            _ if self.has_garbage || retry.is_none() && self.flush_is_due() => Duration::ZERO,
            Durability::Interval(interval) if self.unsynced > 0 => {
                interval.saturating_sub(self.synced.elapsed()).min(retry.unwrap_or(IDLE_INTERVAL))
            }
            _ => retry.unwrap_or(IDLE_INTERVAL),
        }
    }

    /// Commits what was taken; on an error everybody in it has been refused.
    pub(in crate::embedded) fn commit(&mut self, taken: Batch) -> Result<(), EngineError> {
        if !taken.ops.is_empty() {
            failpoints::panic_at("commit_thread");
        }
        let began = u64::try_from(self.shared.opened.elapsed().as_millis()).unwrap_or(u64::MAX - 1);
        self.shared.committing.store(began + 1, Ordering::Relaxed);
        let mut commit = Commit {
            records: Vec::new(),
            writer: None,
            number: self.next_record,
            entries: Vec::new(),
            first_entries: false,
            tidy: Vec::new(),
            replies: Vec::new(),
            bytes: 0,
            has_replies: false,
        };
        let mut ops = taken.ops.into_iter();
        let added = ops
            .by_ref()
            .try_for_each(|op| self.add(&mut commit, op))
            .and_then(|()| self.add_notes(&mut commit, taken.dirty));
        let written = added.map(|()| self.write(&mut commit));
        self.shared.committing.store(0, Ordering::Relaxed);
        match written {
            Ok(Ok(())) => self.finish(commit),
            Ok(Err(error)) => self.keep_stuck(commit, error),
            Err(error) => {
                let refusal = StoreError::Failed(error.what.clone());
                commit.reject(&refusal);
                ops.for_each(|op| op.reject(&refusal));
                // What is in memory is not what is in the journal: whatever the cause, this cannot be repeated.
                Err(EngineError { cause: Cause::Failed, ..error })
            }
        }
    }

    /// Shows what has been written.
    pub(in crate::embedded) fn finish(&mut self, mut commit: Commit) -> Result<(), EngineError> {
        let tidy = std::mem::take(&mut commit.tidy);
        self.publish(commit);
        self.purge_all(tidy)
    }

    fn add(&mut self, commit: &mut Commit, op: Op) -> Result<(), EngineError> {
        match op {
            Op::Append { appends, cost, done } => {
                // What was done before is answered as it was.
                let now_ms = self.shared.clock.now_ms();
                let known = |append: &Append| {
                    append.idempotency.as_ref().is_some_and(|one| self.dedup.get(&one.id, now_ms).is_some())
                };
                if !appends.iter().all(known)
                    && let Err(full) = self.admit(commit, &cost)?
                {
                    _ = done.send(Err(full));
                    return Ok(());
                }
                let made = appends.into_iter().map(|append| self.add_append(commit, append)).collect();
                commit.push_reply(made, done, Reply::Append)
            }
            Op::Clear { user, done } => {
                // One that cannot be read cannot be cleared, and is nobody else's concern.
                if let Err(error @ (StoreError::Damaged(_) | StoreError::Unreachable(_))) =
                    self.try_with_log(&user, |_| ())
                {
                    _ = done.send(Err(error));
                    return Ok(());
                }
                if !self.may_note(commit)? {
                    _ = done.send(Err(StoreError::Full(self.why_suspended().unwrap_or_default().into())));
                    return Ok(());
                }
                let made = self.add_clear(commit, &user);
                commit.push_reply(made, done, Reply::Clear)
            }
            // Closing is always the last thing in the queue, and was taken out before.
            Op::Close { .. } => unreachable!("nothing is taken behind a close"),
        }
    }

    /// Writes the records and makes them as durable as configured.
    ///
    /// # Errors
    /// Where that may be repeated, nothing of it is in the journal.
    pub(in crate::embedded) fn write(&mut self, commit: &mut Commit) -> Result<(), EngineError> {
        commit.finish_record();
        // Acknowledgements alone are not worth a sync: losing them repeats messages and loses none.
        commit.has_replies |=
            commit.replies.iter().any(|answer| matches!(answer, Reply::Append(..) | Reply::Clear(..)));
        if commit.records.is_empty() {
            // All that was asked for had been done before.
            return Ok(());
        }
        if failpoints::enabled(Failpoint::EarlyResponse) {
            commit.replies.drain(..).for_each(Reply::send);
        }
        // Before what it tells of: what a crash leaves of that was told.
        self.write_outbox()?;
        let engine = &self.shared.engine;
        for (at, (number, record)) in commit.records.iter().enumerate() {
            if failpoints::one_in(Failpoint::LostRecord, 50) {
                let nothing = RecordWriter::new(self.shared.namespace, self.shared.clock.now_ms()).finish();
                engine.put(Table::Wal, &wal_key(*number), &nothing)?;
                continue;
            }
            if let Err(error) = engine.put(Table::Wal, &wal_key(*number), record) {
                if error.is_transient() {
                    commit.records[..at].iter().rev().try_for_each(|(number, _)| engine.rollback_last(*number))?;
                }
                return Err(error);
            }
        }
        self.wal_unsynced = true;
        self.unsynced += commit.entries.len().max(commit.replies.len()) as u64;
        match self.durability {
            Durability::Always if commit.has_replies => self.sync(),
            Durability::Always => Ok(()),
            // Sequences are set aside for this many: no more may be at risk.
            _ if self.unsynced >= SEQUENCE_RESERVE => self.sync(),
            // That a log was given sequences since the last lapse is not to be taken back: see `lapses`.
            _ if commit.first_entries => self.sync(),
            _ => self.sync_if_due(false),
        }
    }

    fn sync_if_due(&mut self, idle: bool) -> Result<(), EngineError> {
        match self.durability {
            // Receipts wait for the next message, but not for ever.
            Durability::Always if idle && self.synced.elapsed() >= IDLE_INTERVAL => self.sync_if_unsynced(),
            Durability::Interval(interval) if self.unsynced > 0 && self.synced.elapsed() >= interval => self.sync(),
            _ => Ok(()),
        }
    }

    /// What is not in the journal for good must not be counted on by what is put elsewhere.
    pub(super) fn sync_if_unsynced(&mut self) -> Result<(), EngineError> {
        if self.wal_unsynced { self.sync() } else { Ok(()) }
    }

    /// Syncs all that was written to the journal, and what was put into the outbox with it.
    fn sync(&mut self) -> Result<(), EngineError> {
        if std::mem::take(&mut self.outbox_unsynced) {
            self.shared.engine.checkpoint()?;
        } else {
            self.shared.engine.sync()?;
        }
        self.wal_unsynced = false;
        self.unsynced = 0;
        self.synced = Instant::now();
        Ok(())
    }

    /// Shows what is durable now, tells who waits for it, and answers.
    fn publish(&mut self, commit: Commit) {
        let committed = Instant::now();
        let last = commit.records.last().map_or(0, |(number, _)| *number);
        for (number, record) in commit.records {
            self.wal_bytes += record.len();
            let is_continued = number != last;
            self.records.push_back(RecordInfo { number, bytes: record.len(), committed, is_continued });
            self.next_record = number + 1;
            // Without the room it had to grow in, which may be many times its length.
            self.shared.record_cache.push(number, Bytes::from(record.into_boxed_slice()));
        }
        let now = self.shared.logs.now();
        let told = commit.replies.len() + commit.entries.len();
        let mut users: Vec<UserId> = Vec::with_capacity(commit.entries.len());
        for (user, seq, record) in commit.entries {
            // It was loaded when the sequence was given out, and a log with a sequence under way is never evicted.
            let shown = self.shared.logs.with_loaded(&user, |log| {
                log.touched = now;
                log.publish(seq, record);
            });
            assert!(shown.is_some(), "the log of a recipient left memory in the middle of a commit");
            users.push(user);
        }
        users.sort_unstable();
        users.dedup();
        let replies = Replies(commit.replies);
        let listener = self.shared.listener.read().clone();
        let shared = self.shared.clone();
        let tell = move || {
            // The commit is durable, whatever becomes of those who listen: it is answered as such.
            let told = catch_unwind(AssertUnwindSafe(|| {
                if let (Some(listener), false) = (listener, users.is_empty()) {
                    failpoints::panic_at("commit_listener");
                    listener(&users);
                }
            }));
            drop(replies);
            if let Err(panic) = told {
                // Sessions were not woken, and would deliver late or never: clients come back to the next server.
                let why = format!("sessions were not woken after a commit: {}", panic_text(panic.as_ref()));
                shared.fail(StoreError::Failed(why.into()));
            }
        };
        match &self.shared.runtime {
            // Waking a task from outside costs a system call more often than not; from inside it does not. So where
            // there are many to wake, one is, and wakes the others.
            Some(runtime) if told > INLINE_NOTIFY_MAX => drop(runtime.spawn(async move { tell() })),
            _ => tell(),
        }
    }

    /// Works on a user's log.
    pub(in crate::embedded) fn with_log<T>(
        &self,
        user: &UserId,
        work: impl FnOnce(&mut UserLog) -> T,
    ) -> Result<T, EngineError> {
        Ok(self.try_with_log(user, work)?)
    }

    /// The same, telling a log that cannot be read from a table that cannot.
    pub(super) fn try_with_log<T>(&self, user: &UserId, work: impl FnOnce(&mut UserLog) -> T) -> Result<T, StoreError> {
        self.shared.logs.with(user, |log| {
            let before = log.block_usage.bytes;
            let result = work(log);
            self.capacity.changed(before, log.block_usage.bytes);
            result
        })
    }
}

impl Commit {
    /// Keeps the answer until the commit is durable; where it could not be made, refuses at once.
    fn push_reply<T>(
        &mut self,
        made: Result<T, EngineError>,
        done: ReplySender<T>,
        answer: fn(ReplySender<T>, T) -> Reply,
    ) -> Result<(), EngineError> {
        match made {
            Ok(made) => {
                self.replies.push(answer(done, made));
                Ok(())
            }
            Err(error) => {
                _ = done.send(Err(StoreError::from(error.clone())));
                if error.is_transient() { Ok(()) } else { Err(error) }
            }
        }
    }

    /// Replies everybody that it was not done.
    pub(in crate::embedded) fn reject(&mut self, error: &StoreError) {
        self.replies.drain(..).for_each(|answer| answer.reject(error));
    }

    /// Bytes of all its records, with what they take in a file.
    pub(super) fn all_bytes(&self) -> u64 {
        self.bytes + self.bytes() as u64 + FRAME_BYTES
    }

    /// Bytes of the record that is being written.
    pub(in crate::embedded) fn bytes(&self) -> usize {
        self.writer.as_ref().map_or(0, RecordWriter::bytes)
    }

    /// Writes an item into the open record; returns where it stands.
    pub(in crate::embedded) fn push(&mut self, shared: &Shared, item: &Item<'_>) -> u32 {
        let new = || RecordWriter::new(shared.namespace, shared.clock.now_ms());
        self.writer.get_or_insert_with(new).push(item)
    }

    /// Goes on in a new record where an item of `bytes` would not fit into this one.
    pub(in crate::embedded) fn make_room(&mut self, bytes: usize) {
        if self.bytes() + bytes > RECORD_BYTES {
            self.next_record();
        }
    }

    /// Goes on in a new record: what a crash leaves of a commit without its last record counts as nothing.
    pub(in crate::embedded) fn next_record(&mut self) {
        if let Some(writer) = &mut self.writer {
            writer.push(&Item::More);
            self.finish_record();
        }
    }

    fn finish_record(&mut self) {
        if let Some(writer) = self.writer.take() {
            let record = writer.finish();
            self.bytes += record.len() as u64 + FRAME_BYTES;
            self.records.push((self.number, record));
            self.number += 1;
        }
    }
}
