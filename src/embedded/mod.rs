//! Implements the embedded store: user logs in sled tables, a write-ahead log and a value log.
//!
//! - `engine`: the trait of a WAL and tables · `options`: options of a store
//! - `writer`: the commit thread · `wal`: the write-ahead log
//! - `user_log`: one user's log in memory · `value_log`: files with entry bodies
//! - [`tables`]: ordered tables, on disk ([`tables::sled`]) or in memory ([`tables::memory`])
//! - `read`: reads from memory, or from files · `recovery`: opens a store
//! - `store_state`: state that the commit thread and its callers share · `progress`: what that thread is doing
//! - `figures`: figures for monitoring
//! - `encoding`, `unreadable`: bincode, and its errors · `framing`: checksummed frames
//! - `file_io`: reads at an offset, and files with numbers as names
//! - `connected`: users with connections · `outbox`: webhook events · [`backup`]: backup and restore
//! - [`offline`]: closed or damaged stores
//!
//! # How a commit is stored
//!
//! A commit is one or more records in the write-ahead log (WAL). A record holds each message once, the recipients
//! with their sequences, and acknowledgements and presence. It is at most about 64 KiB, so a commit of 10,000
//! messages is a few writes and one sync. Entries that stay pending are *flushed*: they move into blocks of the value
//! log, many to a block, and their records are removed. Rows in the table `users` hold the position of each log.
//! A large body that several logs share is stored once, and their blocks reference it (`value_log::bodies`).
//!
//! On disk the WAL and the value log are append-only files; the tables are sled's. A crash leaves a prefix of each of
//! the three. No batch and no transaction spans them, so only the order of writes keeps them consistent. The order is:
//! shared bodies, blocks, a *barrier*, the rows that refer to the blocks, a *checkpoint*, the removal of the records. The
//! contract of an engine states this order, and a test cuts the power after every write.

pub mod backup;
mod connected;
mod encoding;
mod engine;
mod figures;
mod file_io;
mod framing;
pub mod offline;
mod options;
mod outbox;
mod progress;
mod read;
mod recovery;
mod store_state;
pub mod tables;
#[cfg(test)]
mod tests;
mod unreadable;
mod user_log;
mod value_log;
mod wal;
mod writer;

use std::{
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};

use futures_util::future::BoxFuture;
use parking_lot::{Mutex, RwLock};
use tokio::sync::{oneshot, watch};

pub use self::options::{Options, Tuning};
use self::{
    connected::ConnectedUsers,
    engine::Engine,
    figures::Figures,
    outbox::Outbox,
    progress::Progress,
    store_state::StoreState,
    user_log::UserLog,
    value_log::bodies::BodyCache,
    writer::{
        cost::Cost,
        queue::{Op, Queue},
        state::Committer,
    },
};
use crate::{
    failpoints::{self, Failpoint},
    health::Health,
    logging::excerpt,
    message::{DeviceId, Seq, UserId},
    metrics::StoreFigures,
    store::{
        Append, AppendResult, Attached, BackupError, CommitListener, Contents, Erasure, Gap, KnownUser, ReadLimit,
        ReadResult, SessionReport, Store, StoreError, UserState, clock::millis, fingerprint,
    },
};

/// Implements [`Store`] over an engine.
struct EmbeddedStore {
    shared: Arc<StoreState>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// Opens a store over an open engine.
///
/// # Errors
/// Fails if the tables belong to another namespace or version, or are damaged.
fn open(engine: Arc<dyn Engine>, options: Options) -> Result<Arc<dyn Store>, StoreError> {
    Ok(Arc::new(EmbeddedStore::open(engine, options)?))
}

impl Store for EmbeddedStore {
    fn namespace(&self) -> u32 {
        self.shared.namespace
    }

    fn append_all(&self, appends: Vec<Append>) -> BoxFuture<'_, Result<Vec<AppendResult>, StoreError>> {
        Box::pin(async move {
            if appends.iter().all(|append| append.recipients.is_empty() && append.idempotency.is_none()) {
                return Ok(vec![AppendResult::default(); appends.len()]);
            }
            if appends.iter().all(|append| append.idempotency.is_none()) {
                self.shared.check_capacity()?;
            }
            let (done, reply) = oneshot::channel();
            let cost = Cost::of(&appends);
            self.shared.queue.put(Op::Append { appends, cost, done }).await?;
            self.receive_reply(reply).await
        })
    }

    fn clear(&self, user: &UserId) -> BoxFuture<'_, Result<u64, StoreError>> {
        let user = user.clone();
        Box::pin(async move {
            let (done, reply) = oneshot::channel();
            self.shared.queue.put(Op::Clear { user, done }).await?;
            self.receive_reply(reply).await
        })
    }

    fn erase(&self, user: &UserId) -> BoxFuture<'_, Result<Erasure, StoreError>> {
        let user = user.clone();
        Box::pin(async move {
            let (done, reply) = oneshot::channel();
            self.shared.queue.put(Op::Erase { user, done }).await?;
            self.receive_reply(reply).await
        })
    }

    fn report(&self, user: &UserId, report: SessionReport) {
        let recorded = self.shared.logs.with(user, |log| {
            let ReportEffect { changed, new } = apply_report(log, &report, self.shared.logs.now());
            // Before the log is marked: a crash must not keep the acknowledgement without the event.
            self.shared.record_delivered(user, report.device.as_ref(), new);
            if changed {
                self.shared.mark_dirty(user, log);
            }
            self.shared.release(user, log);
        });
        // A lost acknowledgement causes a resend. A reader of this log gets the error.
        if let Err(error) = recorded {
            tracing::error!(user = %excerpt(user), %error, "cannot record an acknowledgement; the message will be sent again");
        }
    }

    fn attach(&self, user: &UserId, device: Option<&DeviceId>) -> Result<Attached, StoreError> {
        let (now, now_ms) = (self.shared.logs.now(), self.shared.clock.now_ms());
        self.shared.logs.with(user, |log| {
            if log.is_erasing {
                return Err(StoreError::Unreachable("the user is being erased; connect again".into()));
            }
            log.used_s = now;
            let acknowledged = log.cursors.attach(device, self.shared.devices_max, now_ms)?;
            self.shared.mark_dirty(user, log);
            // A device that was evicted for this one may have been the last to need some entries.
            self.shared.release(user, log);
            Ok(Attached { acknowledged, head: log.head })
        })?
    }

    fn detach(&self, user: &UserId, device: Option<&DeviceId>) {
        let now_ms = self.shared.clock.now_ms();
        // The log was readable at attach. If it is not now, only the time of this detach is lost.
        _ = self.shared.logs.with(user, |log| {
            log.cursors.detach(device, now_ms);
            self.shared.mark_dirty(user, log);
        });
    }

    fn read(&self, user: &UserId, after: Seq, limit: ReadLimit) -> Result<ReadResult, StoreError> {
        self.shared.read(user, after, limit)
    }

    fn read_cached(&self, user: &UserId, after: Seq, limit: ReadLimit) -> Option<ReadResult> {
        self.shared.read_cached(user, after, limit)
    }

    fn explain_gaps(
        &self,
        user: &UserId,
        device: Option<&DeviceId>,
        from: Seq,
        to: Seq,
    ) -> Result<Vec<Gap>, StoreError> {
        self.shared.explain_gaps(user, device, from, to)
    }

    fn set_connections(&self, user: &UserId, connections: usize) {
        if self.shared.connected.set(user, connections, self.shared.clock.now_ms()) {
            self.shared.queue.notify_connected();
        }
    }

    fn take_interrupted(&self) -> Vec<UserId> {
        self.shared.connected.take_untaken()
    }

    fn outbox(&self) -> Option<Arc<dyn crate::store::Outbox>> {
        self.shared.outbox.clone().map(|outbox| outbox as Arc<dyn crate::store::Outbox>)
    }

    fn unreceived_by(&self, user: &UserId, seq: Seq) -> Result<Vec<Option<DeviceId>>, StoreError> {
        self.shared.logs.with(user, |log| log.cursors.unreceived_by(seq))
    }

    fn health(&self) -> Arc<Health> {
        self.shared.health.clone()
    }

    fn full_reason(&self) -> Option<Arc<str>> {
        self.shared.full_reason.read().clone()
    }

    fn state(&self, user: &UserId) -> Result<UserState, StoreError> {
        let now_s = self.shared.clock.now_s();
        self.shared.logs.with(user, |log| log.user_state(now_s))
    }

    fn pending_bytes(&self, user: &UserId) -> Result<u64, StoreError> {
        self.shared.pending_bytes(user)
    }

    fn users(&self, after: Option<&UserId>, limit: usize) -> Result<Vec<KnownUser>, StoreError> {
        self.shared.users(after, limit)
    }

    fn on_commit(&self, listener: CommitListener) {
        *self.shared.listener.write() = Some(listener);
    }

    fn failure(&self) -> BoxFuture<'_, StoreError> {
        let mut failed = self.shared.failed.subscribe();
        Box::pin(async move {
            match failed.wait_for(Option::is_some).await.map(|error| error.clone()) {
                Ok(Some(error)) => error,
                // Closed cleanly: no failure will follow.
                _ => std::future::pending().await,
            }
        })
    }

    fn current_step(&self) -> Option<(&'static str, Duration)> {
        self.shared.progress.current()
    }

    fn figures(&self) -> Option<StoreFigures> {
        Some(self.shared.figures())
    }

    fn is_in_memory(&self, user: &UserId) -> bool {
        // In the future, so that no flush evicts the log before the attach.
        let used_s = self.shared.logs.now() + 1;
        self.shared.logs.try_with_loaded(user, |log| log.used_s = used_s).is_some()
    }

    fn backup(&self, out: &mut dyn std::io::Write) -> Result<Contents, BackupError> {
        self.shared.backup(out)
    }

    fn close(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            let (done, reply) = oneshot::channel();
            self.shared.queue.close(done)?;
            // Taken before the wait: if a disk hangs and the caller drops this future, `drop` must not wait for the
            // thread.
            let thread = self.thread.lock().take();
            self.receive_reply(reply).await?;
            if let Some(thread) = thread {
                // The thread has replied, so it is about to end.
                _ = thread.join();
            }
            self.shared.engine.set_closed();
            Ok(())
        })
    }
}

impl EmbeddedStore {
    fn open(engine: Arc<dyn Engine>, options: Options) -> Result<Self, StoreError> {
        let namespace = options.namespace.clone().unwrap_or_default();
        let recovered = recovery::recover(engine.clone(), &namespace, &options)?;
        let queue = Queue::new(options.queue, options.tuning.busy_timeout);
        let outbox = options.outbox.clone();
        let logs = Arc::new(recovered.logs);
        let outbox = outbox
            .map(|options| Outbox::open(engine.clone(), queue.clone(), logs.clone(), recovered.clock.clone(), options));
        let connected = Arc::new(ConnectedUsers::open(&*engine)?);
        let shared = Arc::new(StoreState {
            engine,
            namespace: fingerprint(&namespace),
            logs,
            record_cache: recovered.record_cache,
            bodies: BodyCache::default(),
            queue,
            listener: RwLock::default(),
            failed: watch::Sender::new(None),
            ended: watch::Sender::new(false),
            progress: Progress::new(),
            figures: Figures::new(),
            clock: recovered.clock,
            devices_max: options.limits.devices,
            outbox: outbox.transpose()?,
            connected,
            health: options.health.clone(),
            full_reason: RwLock::default(),
            runtime: tokio::runtime::Handle::try_current().ok(),
        });
        for user in recovered.trim {
            shared.queue.push_trim(user);
        }
        let mut committer = Committer::new(shared.clone(), recovered.wal, &options);
        // Before the first dispatch, so that a full store rejects it.
        committer.refresh_capacity();
        committer.refresh_outbox_space();
        // Before the first event of this start, so that a backend sees the disconnections of the previous one first.
        committer.report_all_interrupted()?;
        let thread = thread::Builder::new().name("mesa-commit".into()).spawn(move || committer.run());
        let thread = thread.map_err(|error| StoreError::Failed(format!("cannot start a thread: {error}").into()))?;
        Ok(Self { shared, thread: Mutex::new(Some(thread)) })
    }

    async fn receive_reply<T>(&self, reply: oneshot::Receiver<Result<T, StoreError>>) -> Result<T, StoreError> {
        match reply.await {
            Ok(result) => result,
            // The commit thread panicked during this commit. It reports that before it ends.
            Err(_) => {
                _ = self.shared.ended.subscribe().wait_for(|ended| *ended).await;
                Err(self.shared.failed.borrow().clone().unwrap_or(StoreError::Closed))
            }
        }
    }
}

impl Drop for EmbeddedStore {
    /// Ends the commit thread, so that the store can be opened again. Queued operations are committed first.
    fn drop(&mut self) {
        let (done, _) = oneshot::channel();
        _ = self.shared.queue.close(done);
        if let Some(thread) = self.thread.lock().take() {
            _ = thread.join();
        }
        self.shared.engine.set_closed();
    }
}

/// States the effect of a session's report on a log.
struct ReportEffect {
    /// Acknowledgements or presence have changed.
    changed: bool,
    /// Newly acknowledged range of this device, from the first new sequence.
    new: Option<(Seq, Seq)>,
}

/// Applies a session's report to a log.
fn apply_report(log: &mut UserLog, report: &SessionReport, now: u32) -> ReportEffect {
    log.used_s = now;
    let (mut changed, mut new) = (false, None);
    if let Some((from, to)) = report.acknowledged {
        // A client that acknowledges entries above the head is faulty or malicious.
        let to = to.min(log.head);
        let had = log.cursors.get(report.device.as_ref()).map_or(0, |cursor| cursor.acknowledged.through());
        changed |= log.cursors.acknowledge(report.device.as_ref(), from, to);
        new = changed.then_some((from.max(had + 1), to));
        if failpoints::enabled(Failpoint::SharedCursor) {
            log.cursors.acknowledge_all(from, to);
        }
    }
    if let Some(seen) = report.seen {
        log.seen_ms = millis(seen);
        changed = true;
    }
    log.hold = report.hold;
    ReportEffect { changed, new }
}
