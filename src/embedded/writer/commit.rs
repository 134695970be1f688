//! Runs the commit thread, and makes group commits.
//!
//! A commit takes the queued operations, assigns sequences, writes WAL records, and makes them durable. Then it
//! publishes the entries, wakes sessions, and replies. Operations that arrive meanwhile are in the next commit. So a
//! single message costs one sync, and under load many messages share one.
//!
//! The thread never waits for more operations. A delay of 0.3 ms after a busy commit was measured with 50 callers over
//! HTTP: it saved a tenth of the CPU time and cost a quarter of the throughput.

use std::{
    cell::Cell,
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;

use super::{
    jobs::TrimQueue,
    queue::{Batch, Op},
    reply::{Replies, Reply},
    state::{Capacity, Commit, Committer, Eviction, ExpiryScan, RecordInfo, Suspended},
};
use crate::{
    embedded::{
        options::Options,
        outbox::StepWrites,
        progress::Step,
        recovery::RecoveredWal,
        store_state::StoreState,
        tables::{
            contract::{Cause, EngineError, Table, TableSpace},
            meta::{CLOCK_KEY, CLOSED, OPEN_KEY},
            watermark::WRITE_INTERVAL,
        },
        user_log::{UserLog, lossy_restarts::SEQUENCE_RESERVE},
        wal::record::RecordWriter,
    },
    failpoints::{self, Failpoint},
    logging::panic_text,
    message::UserId,
    store::{Append, Durability, StoreError},
};

/// Delay of acknowledgements and presence, so that several share a commit. A killed process loses the delayed ones.
const REPORT_DELAY: Duration = Duration::from_millis(20);

/// Interval at which the idle thread checks for background work.
const IDLE_INTERVAL: Duration = Duration::from_secs(1);

/// Limit of replies and entries for which the commit thread notifies tasks itself. Above it, one task notifies the
/// others.
const INLINE_NOTIFY_MAX: usize = 4;

impl Committer {
    pub(in crate::embedded) fn new(shared: Arc<StoreState>, recovered: RecoveredWal, options: &Options) -> Self {
        let now = Instant::now();
        Self {
            shared,
            durability: options.durability,
            tuning: options.tuning,
            limits: options.limits,
            dedup: recovered.dedup,
            capacity: Capacity::new(),
            expiry: ExpiryScan::new(recovered.id_blocks),
            wal_bytes: recovered.records.iter().map(|record| record.bytes).sum(),
            records: recovered.records,
            flush: None,
            flush_through: 0,
            erasure: None,
            erasures: VecDeque::new(),
            next_record: recovered.next_record,
            not_durable: 0,
            wal_not_durable: false,
            blocks_not_durable: Cell::new(false),
            unput_events: VecDeque::new(),
            has_connected_rows: false,
            interrupted_event: 0,
            has_garbage: false,
            suspended: Suspended::default(),
            last_sync: now,
            trims: TrimQueue::default(),
            purges: VecDeque::new(),
            last_body_removal: now,
            eviction: Eviction { next: 0, last: now },
        }
    }

    /// Runs until the store is closed or has failed.
    pub(in crate::embedded) fn run(mut self) {
        // A panic must not leave callers waiting for a reply.
        let ended = catch_unwind(AssertUnwindSafe(|| self.serve()));
        let ended = ended.unwrap_or_else(|panic| {
            Err(EngineError::new(format!("the commit thread panicked: {}", panic_text(panic.as_ref()))))
        });
        if let Err(error) = ended {
            self.shared.fail(StoreError::Failed(error.what));
        }
        self.shared.ended.send_replace(true);
    }

    /// Commits batches and does background work until the store is closed.
    fn serve(&mut self) -> Result<(), EngineError> {
        loop {
            self.shared.progress.wait();
            let mut batch = self.shared.queue.take(REPORT_DELAY, self.wait_timeout(), self.is_congested());
            self.shared.progress.begin(Step::Commit);
            self.reject_overdue(std::mem::take(&mut batch.overdue));
            if let Some(StoreError::Failed(why)) = &*self.shared.failed.borrow() {
                // `publish` failed the store, because it could not wake sessions.
                return Err(EngineError::new(why));
            }
            // Neither is part of a commit. Each is always the last operation of a batch.
            let (mut close, mut erase) = (None, None);
            match batch.ops.pop() {
                Some(Op::Close { done }) => close = Some(done),
                Some(Op::Erase { user, done }) => erase = Some((user, done)),
                Some(op) => batch.ops.push(op),
                None => {}
            }
            let trim = std::mem::take(&mut batch.trim);
            let idle = batch.ops.is_empty() && batch.dirty.is_empty();
            if self.may_commit(&mut batch)? {
                self.commit(batch)?;
            }
            self.shared.progress.begin(Step::Outbox);
            self.write_outbox()?;
            self.shared.progress.begin(Step::Connected);
            self.write_connected()?;
            self.shared.progress.begin(Step::Trim);
            self.trim_step(trim)?;
            if let Some((user, done)) = erase {
                self.shared.progress.begin(Step::Commit);
                self.queue_erasure(user, done)?;
            }
            if let Some(done) = close {
                self.shared.progress.begin(Step::Close);
                let closed = self.close();
                let result = closed.clone().map_err(StoreError::from);
                _ = done.send(result);
                return closed;
            }
            self.shared.progress.begin(Step::Commit);
            self.sync_if_due(idle)?;
            self.work()?;
            self.refresh_capacity_if_due();
            self.evict_step();
        }
    }

    /// Returns how long the thread may wait for operations.
    fn wait_timeout(&self) -> Duration {
        let retry = self.retry_delay();
        let idle = if self.last_sync.elapsed() < 2 * WRITE_INTERVAL { WRITE_INTERVAL } else { IDLE_INTERVAL };
        match self.durability {
            _ if self.has_garbage
                || self.has_connected_rows
                || self.trims.is_ready()
                || retry.is_none() && self.has_steps() =>
            {
                Duration::ZERO
            }
            Durability::Interval(interval) if self.not_durable > 0 => {
                interval.saturating_sub(self.last_sync.elapsed()).min(retry.unwrap_or(idle))
            }
            _ => retry.unwrap_or(idle),
        }
    }

    /// Returns whether another step of background work is due.
    fn has_steps(&self) -> bool {
        self.erasure.is_some()
            || !self.erasures.is_empty()
            || self.flush_is_due()
            || !self.purges.is_empty()
            || self.expiry.has_steps()
    }

    /// Commits a batch. After an error, all its operations have been rejected.
    pub(in crate::embedded) fn commit(&mut self, batch: Batch) -> Result<(), EngineError> {
        if !batch.ops.is_empty() {
            failpoints::panic_at("commit_thread");
        }
        let mut commit = Commit::new(self.next_record);
        let mut ops = batch.ops.into_iter();
        let added = ops
            .by_ref()
            .try_for_each(|op| self.add_op(&mut commit, op))
            .and_then(|()| self.add_reports(&mut commit, batch.dirty));
        let written = added.map(|()| self.write(&mut commit));
        match written {
            Ok(Ok(())) => self.finish(commit),
            Ok(Err(error)) => self.keep_stuck(commit, error),
            Err(error) => {
                let rejection = StoreError::Failed(error.what.clone());
                commit.reject(&rejection);
                ops.for_each(|op| op.reject(&rejection));
                // Memory is ahead of the WAL now, so the commit cannot be retried, whatever the cause.
                Err(EngineError { cause: Cause::Failed, ..error })
            }
        }
    }

    /// Publishes a written commit, and queues purges of the blocks whose entries it replaced.
    pub(in crate::embedded) fn finish(&mut self, mut commit: Commit) -> Result<(), EngineError> {
        let (hidden, all) = (std::mem::take(&mut commit.purge_hidden), std::mem::take(&mut commit.purge_all));
        self.publish(commit);
        self.queue_hidden_purges(hidden)?;
        self.queue_full_purges(all)
    }

    /// Adds an operation to the commit, or rejects it.
    fn add_op(&mut self, commit: &mut Commit, op: Op) -> Result<(), EngineError> {
        match op {
            Op::Append { appends, cost, done } => {
                // A retry of a known id is answered even if the store is full.
                let now_ms = self.shared.clock.now_ms();
                let is_retry = |append: &Append| {
                    append
                        .idempotency
                        .as_ref()
                        .is_some_and(|idempotency| self.dedup.get(&idempotency.id, now_ms).is_some())
                };
                if !appends.iter().all(is_retry)
                    && let Err(full) = self.admit(commit, &cost)?
                {
                    _ = done.send(Err(full));
                    return Ok(());
                }
                let result = appends.into_iter().map(|append| self.add_append(commit, append)).collect();
                commit.push_reply(result, done, Reply::Append)
            }
            Op::Clear { user, done } => {
                // An unreadable log cannot be cleared. Other users are not affected.
                if let Err(error @ (StoreError::Damaged(_) | StoreError::Unreachable(_))) =
                    self.try_with_log(&user, |_| ())
                {
                    _ = done.send(Err(error));
                    return Ok(());
                }
                if !self.reserve_report(commit)? {
                    _ = done.send(Err(StoreError::Full(self.why_suspended().unwrap_or_default().into())));
                    return Ok(());
                }
                let result = self.add_clear(commit, &user);
                commit.push_reply(result, done, Reply::Clear)
            }
            // `serve` has removed it.
            Op::Close { .. } | Op::Erase { .. } => unreachable!("it is the last operation of a batch"),
        }
    }

    /// Writes the records, and makes them as durable as configured.
    ///
    /// # Errors
    /// After a transient error, the WAL has no record of the commit.
    pub(in crate::embedded) fn write(&mut self, commit: &mut Commit) -> Result<(), EngineError> {
        // A stuck commit has its events already.
        if commit.records.is_empty() || commit.writer.is_some() {
            // With the records that depend on these events, so that a crash cannot leave such a record without its event.
            self.add_events(commit)?;
        }
        self.write_records(commit)
    }

    /// Writes the records, and then the events that they have into the table of the outbox.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub(in crate::embedded) fn write_records(&mut self, commit: &mut Commit) -> Result<(), EngineError> {
        commit.finish_record();
        self.append_records(commit)?;
        self.unput_events.extend(commit.events.drain(..));
        self.put_events().map(drop)
    }

    /// Appends the records to the WAL, and makes them as durable as configured.
    fn append_records(&mut self, commit: &mut Commit) -> Result<(), EngineError> {
        // Reports alone need no sync: losing them repeats messages and loses none. Events need one before they are read.
        commit.has_replies |= commit.replies.iter().any(|reply| matches!(reply, Reply::Append(..) | Reply::Clear(..)));
        commit.has_replies |= commit.events.iter().any(StepWrites::has_events);
        if commit.records.is_empty() {
            // All operations were retries of known ids.
            return Ok(());
        }
        if failpoints::enabled(Failpoint::EarlyResponse) {
            commit.replies.drain(..).for_each(Reply::send);
        }
        let engine = &self.shared.engine;
        for (at, (number, record)) in commit.records.iter().enumerate() {
            if failpoints::one_in(Failpoint::LostRecord, 50) {
                let nothing = RecordWriter::new(self.shared.namespace, self.shared.clock.now_ms()).finish();
                engine.append_record(*number, &nothing)?;
                continue;
            }
            if let Err(error) = engine.append_record(*number, record) {
                if error.is_transient() {
                    commit.records[..at].iter().rev().try_for_each(|(number, _)| engine.rollback_last(*number))?;
                }
                return Err(error);
            }
        }
        self.wal_not_durable = true;
        let has_events = usize::from(!commit.events.is_empty());
        self.not_durable += commit.entries.len().max(commit.replies.len()).max(has_events) as u64;
        match self.durability {
            Durability::Always if commit.has_replies => {
                self.shared.progress.begin(Step::Sync);
                self.sync()
            }
            Durability::Always => Ok(()),
            // A log skips only this many sequences after a lossy restart, so no more answered messages may be not
            // durable.
            _ if self.not_durable >= SEQUENCE_RESERVE => self.sync(),
            // The first entry of a log after a lossy restart must be durable: see `lossy_restarts`.
            _ if commit.first_entries => self.sync(),
            _ => self.sync_if_due(false),
        }
    }

    /// Syncs the WAL if the durability requires it now.
    fn sync_if_due(&mut self, idle: bool) -> Result<(), EngineError> {
        match self.durability {
            // Reports are synced with the next message, or after this interval.
            Durability::Always if idle && self.last_sync.elapsed() >= IDLE_INTERVAL => self.sync_if_not_durable(),
            Durability::Interval(interval) if self.not_durable > 0 && self.last_sync.elapsed() >= interval => {
                self.sync()
            }
            _ => Ok(()),
        }
    }

    /// Syncs the WAL if it has records that are not durable. Call this before a write that relies on them.
    pub(super) fn sync_if_not_durable(&mut self) -> Result<(), EngineError> {
        if self.wal_not_durable { self.sync() } else { Ok(()) }
    }

    /// Syncs all WAL records.
    fn sync(&mut self) -> Result<(), EngineError> {
        self.shared.engine.sync()?;
        self.wal_not_durable = false;
        self.not_durable = 0;
        self.last_sync = Instant::now();
        Ok(())
    }

    /// Makes a durable commit visible, wakes sessions, and sends the replies.
    fn publish(&mut self, commit: Commit) {
        let committed = Instant::now();
        if commit.has_replies {
            self.shared.figures.commit_latency.record(committed - commit.began);
        }
        let last = commit.records.last().map_or(0, |(number, _)| *number);
        for (number, record) in commit.records {
            self.wal_bytes += record.len();
            let is_continued = number != last;
            self.records.push_back(RecordInfo { number, bytes: record.len(), committed, is_continued });
            self.next_record = number + 1;
            // Without spare capacity, which may be a multiple of its length.
            self.shared.record_cache.push(number, Bytes::from(record.into_boxed_slice()));
        }
        let now = self.shared.logs.now();
        let notified = commit.replies.len() + commit.entries.len();
        let mut users: Vec<UserId> = Vec::with_capacity(commit.entries.len());
        for (user, seq, record) in commit.entries {
            // The log was loaded when the sequence was assigned, and a log with an unpublished sequence is never
            // evicted.
            let published = self.shared.logs.with_loaded(&user, |log| {
                log.used_s = now;
                log.publish(seq, record);
            });
            assert!(published.is_some(), "the log of a recipient left memory during a commit");
            users.push(user);
        }
        users.sort_unstable();
        users.dedup();
        let replies = Replies(commit.replies);
        let listener = self.shared.listener.read().clone();
        let shared = self.shared.clone();
        let notify = move || {
            // The commit is durable, so it succeeds even if the listener panics.
            let woken = catch_unwind(AssertUnwindSafe(|| {
                if let (Some(listener), false) = (listener, users.is_empty()) {
                    failpoints::panic_at("commit_listener");
                    listener(&users);
                }
            }));
            drop(replies);
            if let Err(panic) = woken {
                // Sessions that were not woken would deliver late or never. So the server stops, and its clients
                // reconnect.
                let why = format!("sessions were not woken after a commit: {}", panic_text(panic.as_ref()));
                shared.fail(StoreError::Failed(why.into()));
            }
        };
        match &self.shared.runtime {
            // Waking a task from outside the runtime usually costs a system call; from inside, it does not. So one task
            // is woken from here, and wakes the others.
            Some(runtime) if notified > INLINE_NOTIFY_MAX => drop(runtime.spawn(async move { notify() })),
            _ => notify(),
        }
    }

    /// Closes the store after the last commit.
    ///
    /// Writes suspended reports, events and rows of connected users, and marks the store as closed.
    pub(in crate::embedded) fn close(&mut self) -> Result<(), EngineError> {
        self.write_suspended()?;
        if let Err(error) = self.finish_erasures() {
            // The next start completes it.
            self.suspend(error)?;
        }
        if self.table_space() < TableSpace::Little {
            tracing::warn!("the disk is full: the store is left as after a crash, and recovers at the next start");
            // Not even the counts can be stored.
            self.drop_waiting_events();
            return self.sync_if_not_durable();
        }
        self.write_outbox()?;
        self.finish_trims()?;
        self.discard_waiting_events()?;
        self.write_all_connected()?;
        let engine = &self.shared.engine;
        engine.checkpoint()?;
        engine.put(Table::Meta, CLOCK_KEY, &self.shared.clock.now_ms().to_be_bytes())?;
        self.put_live_bytes()?;
        engine.put(Table::Meta, OPEN_KEY, CLOSED)?;
        engine.checkpoint()
    }

    /// Runs `work` on a user's log. An unreadable log is an error of the engine.
    pub(in crate::embedded) fn with_log<T>(
        &self,
        user: &UserId,
        work: impl FnOnce(&mut UserLog) -> T,
    ) -> Result<T, EngineError> {
        Ok(self.try_with_log(user, work)?)
    }

    /// Runs `work` on a user's log. The error distinguishes an unreadable log from an unreadable table.
    pub(super) fn try_with_log<T>(&self, user: &UserId, work: impl FnOnce(&mut UserLog) -> T) -> Result<T, StoreError> {
        self.shared.logs.with(user, work)
    }
}
