//! Embedded store: user logs in sled tables, a write-ahead log and a value log.
//!
//! - `writer`: the commit thread · `wal`: the write-ahead log
//! - `user_log`: one user's log in memory · `value_log`: files with entry bodies
//! - [`tables`]: ordered tables, on disk ([`tables::sled`]) or in memory ([`tables::memory`])
//! - `read`: reads from memory, or from files · `recovery`: opens a store · `other_format`: stores of other versions
//! - `shared`: options, and state that the commit thread and callers share · `encoding`, `unreadable`: bincode, and its errors
//! - `outbox`: webhook events · [`backup`]: backup and restore
//! - [`offline`]: closed or damaged stores
//!
//! # How it is written
//!
//! Every commit is one or more records in the *journal*: each message once, with whose it is, and between the messages
//! receipts and presence. A record is at most some 64 KiB, so a commit of ten thousand messages is a handful of
//! writes and one sync. What is still unread after a while is *settled* into the recipients' *inboxes*, many messages
//! to a chunk, and the record removed. Rows in *users* say where each log stands.
//!
//! On disk the journal and the chunks are in plain files, which are appended to and removed; the tables are sled's. So
//! what a crash leaves of these three is a prefix each, and the order between them is made by hand: chunks, a *barrier*,
//! the rows that count on them, a *checkpoint*, the removal of the records that they replace. There is no batch and no
//! transaction anywhere. The contract of an engine says it exactly, and a test cuts the power after every single write.

pub mod backup;
mod encoding;
pub mod offline;
mod other_format;
mod outbox;
mod read;
mod recovery;
mod shared;
pub mod tables;
#[cfg(test)]
mod tests;
mod unreadable;
mod user_log;
mod value_log;
mod wal;
mod writer;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use futures_util::future::BoxFuture;
use parking_lot::{Mutex, RwLock};
use tokio::sync::{oneshot, watch};

pub use self::shared::{Options, Tuning};
use self::{
    outbox::Outbox,
    shared::{Shared, state},
    tables::contract::Engine,
    user_log::UserLog,
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
    store::{
        Append, Appended, Attached, CommitListener, Contents, Found, KnownUser, Missed, Note, PortableError, ReadLimit,
        Store, StoreError, UserState, clock::millis, fingerprint,
    },
};

/// A store over an engine's tables.
struct Journal {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// Opens a store over tables that are open already.
///
/// # Errors
/// When they belong to another namespace or version, or are damaged.
fn open(engine: Arc<dyn Engine>, options: Options) -> Result<Arc<dyn Store>, StoreError> {
    Ok(Arc::new(Journal::open(engine, options)?))
}

impl Store for Journal {
    fn namespace(&self) -> u32 {
        self.shared.namespace
    }

    fn append_all(&self, appends: Vec<Append>) -> BoxFuture<'_, Result<Vec<Appended>, StoreError>> {
        Box::pin(async move {
            if appends.iter().all(|append| append.recipients.is_empty() && append.once.is_none()) {
                return Ok(vec![Appended::default(); appends.len()]);
            }
            if appends.iter().all(|append| append.once.is_none()) {
                self.shared.check_capacity()?;
            }
            let (done, answer) = oneshot::channel();
            let cost = Cost::of(&appends);
            self.shared.queue.put(Op::Append { appends, cost, done }).await?;
            self.answer(answer).await
        })
    }

    fn clear(&self, user: &UserId) -> BoxFuture<'_, Result<u64, StoreError>> {
        let user = user.clone();
        Box::pin(async move {
            let (done, answer) = oneshot::channel();
            self.shared.queue.put(Op::Clear { user, done }).await?;
            self.answer(answer).await
        })
    }

    fn note(&self, user: &UserId, note: Note) {
        let noted = self.shared.logs.with(user, |log| {
            let ReportEffect { dirty, trim, new } = apply_report(log, &note, self.shared.logs.now());
            // Before the commit thread learns of the receipt.
            self.shared.record_delivered(user, note.device.as_ref(), new);
            self.shared.announce(user, dirty, trim);
        });
        // Not noted is repeated later, and nothing worse; whoever reads this user's log is told what is wrong.
        if let Err(error) = noted {
            tracing::error!(user = %excerpt(user), %error, "a receipt could not be noted");
        }
    }

    fn attach(&self, user: &UserId, device: Option<&DeviceId>) -> Result<Attached, StoreError> {
        let (now, now_ms) = (self.shared.logs.now(), self.shared.clock.now_ms());
        self.shared.logs.with(user, |log| {
            log.touched = now;
            let received = log.cursors.attach(device, self.shared.devices_max, now_ms)?;
            let dirty = !std::mem::replace(&mut log.dirty, true);
            // A device that was forgotten for this one may have been what kept something.
            let trim = log.release();
            log.trimming |= trim;
            self.shared.announce(user, dirty, trim);
            Ok(Attached { received, head: log.head })
        })?
    }

    fn detach(&self, user: &UserId, device: Option<&DeviceId>) {
        let now_ms = self.shared.clock.now_ms();
        // A log that was attached to could be read then; if it cannot be now, nothing is lost but when it was.
        _ = self.shared.logs.with(user, |log| {
            log.cursors.detach(device, now_ms);
            self.shared.announce(user, !std::mem::replace(&mut log.dirty, true), false);
        });
    }

    fn read(&self, user: &UserId, after: Seq, limit: ReadLimit) -> Result<Found, StoreError> {
        self.shared.read(user, after, limit)
    }

    fn recent(&self, user: &UserId, after: Seq, limit: ReadLimit) -> Option<Found> {
        self.shared.read_cached(user, after, limit)
    }

    fn missed(&self, user: &UserId, device: Option<&DeviceId>, from: Seq, to: Seq) -> Result<Vec<Missed>, StoreError> {
        self.shared.missed(user, device, from, to)
    }

    fn outbox(&self) -> Option<Arc<dyn crate::store::Outbox>> {
        self.shared.outbox.clone().map(|outbox| outbox as Arc<dyn crate::store::Outbox>)
    }

    fn lacking(&self, user: &UserId, seq: Seq) -> Result<Vec<Option<DeviceId>>, StoreError> {
        self.shared.logs.with(user, |log| log.cursors.lacking(seq))
    }

    fn health(&self) -> Arc<Health> {
        self.shared.health.clone()
    }

    fn full(&self) -> Option<Arc<str>> {
        self.shared.full.read().clone()
    }

    fn state(&self, user: &UserId) -> Result<UserState, StoreError> {
        let now_s = self.shared.clock.now_s();
        self.shared.logs.with(user, |log| state(log, now_s))
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
                // Closed in order: there is no failure to wait for any more.
                _ => std::future::pending().await,
            }
        })
    }

    fn stalled(&self) -> Option<Duration> {
        let began = self.shared.committing.load(Ordering::Relaxed).checked_sub(1)?;
        Some(self.shared.opened.elapsed().saturating_sub(Duration::from_millis(began)))
    }

    fn backup(&self, out: &mut dyn std::io::Write) -> Result<Contents, PortableError> {
        self.shared.backup(out)
    }

    fn close(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            let (done, answer) = oneshot::channel();
            self.shared.queue.close(done)?;
            // Batch before the wait: if a disk hangs, whoever gives up waiting must not wait again in our drop.
            let thread = self.thread.lock().take();
            self.answer(answer).await?;
            if let Some(thread) = thread {
                // It has answered, so it is at its end.
                _ = thread.join();
            }
            Ok(())
        })
    }
}

impl Journal {
    fn open(engine: Arc<dyn Engine>, options: Options) -> Result<Self, StoreError> {
        let namespace = options.namespace.clone().unwrap_or_default();
        let recovered = recovery::recover(engine.clone(), &namespace, &options)?;
        let queue = Queue::new(options.queue);
        let outbox = options.outbox.clone();
        let outbox = outbox.map(|kept| Outbox::open(engine.clone(), queue.clone(), recovered.clock.clone(), kept));
        let shared = Arc::new(Shared {
            engine,
            namespace: fingerprint(&namespace),
            logs: recovered.logs,
            record_cache: recovered.record_cache,
            queue,
            listener: RwLock::default(),
            failed: watch::Sender::new(None),
            ended: watch::Sender::new(false),
            committing: AtomicU64::new(0),
            opened: Instant::now(),
            clock: recovered.clock,
            devices_max: options.limits.devices,
            outbox: outbox.transpose()?,
            health: options.health.clone(),
            full: RwLock::default(),
            runtime: tokio::runtime::Handle::try_current().ok(),
        });
        for user in recovered.trim {
            shared.queue.trim(user);
        }
        let mut committer = Committer::new(shared.clone(), recovered.journal, &options);
        // Whoever opens a store that is full is told so by its first answer.
        committer.refresh_capacity();
        committer.refresh_outbox_space();
        let thread = thread::Builder::new().name("mesa-commit".into()).spawn(move || committer.run());
        let thread = thread.map_err(|error| StoreError::Failed(format!("cannot start a thread: {error}").into()))?;
        Ok(Self { shared, thread: Mutex::new(Some(thread)) })
    }

    async fn answer<T>(&self, answer: oneshot::Receiver<Result<T, StoreError>>) -> Result<T, StoreError> {
        match answer.await {
            Ok(result) => result,
            // The commit thread panicked in the middle of this commit. It reports that before it ends.
            Err(_) => {
                _ = self.shared.ended.subscribe().wait_for(|ended| *ended).await;
                Err(self.shared.failed.borrow().clone().unwrap_or(StoreError::Closed))
            }
        }
    }
}

impl Drop for Journal {
    /// Ends the commit thread, so that whoever opens the store again finds it free. What was taken is committed.
    fn drop(&mut self) {
        let (done, _) = oneshot::channel();
        _ = self.shared.queue.close(done);
        if let Some(thread) = self.thread.lock().take() {
            _ = thread.join();
        }
    }
}

/// What the commit thread is to be told of a note.
struct ReportEffect {
    dirty: bool,
    trim: bool,
    /// What was received for the first time on its device, from the first new one on.
    new: Option<(Seq, Seq)>,
}

fn apply_report(log: &mut UserLog, note: &Note, now: u32) -> ReportEffect {
    log.touched = now;
    let (mut changed, mut new) = (false, None);
    if let Some((from, to)) = note.received {
        // A client cannot have received what it was never sent: what is beyond the head is a mistake or an attack.
        let to = to.min(log.head);
        let had = log.cursors.get(note.device.as_ref()).map_or(0, |cursor| cursor.received.through());
        changed |= log.cursors.receive(note.device.as_ref(), from, to);
        new = changed.then_some((from.max(had + 1), to));
        if failpoints::enabled(Failpoint::SharedCursor) {
            log.cursors.all_receive(from, to);
        }
    }
    if let Some(seen) = note.seen {
        log.seen_ms = millis(seen);
        changed = true;
    }
    log.hold = note.hold;
    let trim = log.release();
    log.trimming |= trim;
    let dirty = changed && !log.dirty;
    log.dirty |= changed;
    ReportEffect { dirty, trim, new }
}
