//! The store over an engine's tables: what callers see of it. The work is done by the commit thread ([`commit`]), by
//! [`read`](super::read) on the callers' side, and by [`recovery`] when it is opened.
//!
//! [`commit`]: super::commit
//! [`recovery`]: super::recovery

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant, UNIX_EPOCH},
};

use futures_util::future::BoxFuture;
use parking_lot::{Mutex, RwLock};
use tokio::sync::{oneshot, watch};

use super::{
    Append, Appended, Attached, CommitListener, DeviceState, Durability, Found, KnownUser, Limits, Missed, Note,
    ReadLimit, Store, StoreError, UserState,
    clock::{Clock, millis},
    commit::Committer,
    cost::Cost,
    cursors::Cursor,
    engine::Engine,
    index::Index,
    log::Log,
    outbox::{Outbox, OutboxOptions},
    queue::{Op, Queue},
    recent::Recent,
    record::fingerprint,
    recovery,
};
use crate::{
    health::Health,
    logging::excerpt,
    message::{DeviceId, Seq, UserId},
    planted::{self, Bug},
};

/// How a store is to behave, whatever it stands on.
#[derive(Clone, Debug)]
pub struct Options {
    /// A store belongs to one namespace for good.
    pub namespace: Option<String>,
    /// When an append is answered.
    pub durability: Durability,
    /// Ops that may wait for the commit thread.
    pub queue: usize,
    /// What is kept at most.
    pub limits: Limits,
    /// Memory for the newest records of the journal, in bytes.
    pub recent_bytes: usize,
    /// What is to be told to the outside world, if anything is.
    pub outbox: Option<OutboxOptions>,
    /// Where the store reports its condition. Default: one of its own.
    pub health: Arc<Health>,
    /// For tests.
    pub tuning: Tuning,
    /// Milliseconds by which the store's clock is ahead of what it would be: for tests of what takes days.
    #[doc(hidden)]
    pub ahead_ms: Arc<AtomicU64>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            namespace: None,
            durability: Durability::Always,
            queue: 10_000,
            limits: Limits::default(),
            recent_bytes: 32 << 20,
            outbox: None,
            health: Arc::default(),
            tuning: Tuning::default(),
            ahead_ms: Arc::default(),
        }
    }
}

/// When what is in the journal is settled in the inboxes. Tests make it sooner.
#[derive(Clone, Copy, Debug)]
pub struct Tuning {
    /// Records older than this are settled: most of what is online is confirmed long before, and never is.
    pub settle_after: Duration,
    /// A journal larger than this is settled from its old end: bounds the time to open.
    pub journal_bytes_max: usize,
    /// Logs unused for this many seconds may leave memory.
    pub idle_seconds: u32,
    /// How often a few users are looked at who have something that expires.
    pub sweep_pause: Duration,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            settle_after: if planted::is(Bug::SettleSoon) {
                Duration::from_millis(100)
            } else {
                Duration::from_secs(10)
            },
            journal_bytes_max: 64 << 20,
            idle_seconds: super::index::IDLE_SECONDS,
            sweep_pause: Duration::from_secs(1),
        }
    }
}

/// What the commit thread and the callers share.
pub(super) struct Shared {
    pub engine: Arc<dyn Engine>,
    pub namespace: u32,
    pub index: Index,
    pub recent: Recent,
    pub queue: Arc<Queue>,
    pub listener: RwLock<Option<CommitListener>>,
    pub failed: watch::Sender<Option<StoreError>>,
    /// The commit thread has ended.
    pub ended: watch::Sender<bool>,
    /// When the running commit began, in milliseconds since `opened`, plus one; 0 = none is running.
    pub committing: AtomicU64,
    pub opened: Instant,
    pub clock: Clock,
    pub devices_max: usize,
    /// What is to be told to the outside world, if anything is.
    pub outbox: Option<Arc<Outbox>>,
    pub health: Arc<Health>,
    /// Why nothing is taken for now, if nothing is.
    pub full: RwLock<Option<Arc<str>>>,
    /// Where the store was opened from, if that was a runtime.
    pub runtime: Option<tokio::runtime::Handle>,
}

/// A store over an engine's tables.
pub(super) struct Journal {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// Opens a store over tables that are open already.
///
/// # Errors
/// When they belong to another namespace or version, or are damaged.
pub(super) fn open(engine: Arc<dyn Engine>, options: Options) -> Result<Arc<dyn Store>, StoreError> {
    let namespace = options.namespace.clone().unwrap_or_default();
    let recovered = recovery::recover(engine.clone(), &namespace, &options)?;
    let queue = Queue::new(options.queue);
    let outbox = options.outbox.clone();
    let outbox = outbox.map(|kept| Outbox::open(engine.clone(), queue.clone(), recovered.clock.clone(), kept));
    let shared = Arc::new(Shared {
        engine,
        namespace: fingerprint(&namespace),
        index: recovered.index,
        recent: recovered.recent,
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
    committer.look_at_room();
    committer.look_for_events();
    let thread = thread::Builder::new().name("mesa-commit".into()).spawn(move || committer.run());
    let thread = thread.map_err(|error| StoreError::Failed(format!("cannot start a thread: {error}").into()))?;
    Ok(Arc::new(Journal { shared, thread: Mutex::new(Some(thread)) }))
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
                self.shared.check_room()?;
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
        let noted = self.shared.index.with(user, |log| {
            let Noted { dirty, trim, new } = take_note(log, &note, self.shared.index.now());
            // Before the commit thread learns of the receipt.
            self.shared.tell_delivered(user, note.device.as_ref(), new);
            self.shared.announce(user, dirty, trim);
        });
        // Messages whose receipt was not noted are sent again, and nothing worse. A read of this log reports what is wrong.
        if let Err(error) = noted {
            tracing::error!(user = %excerpt(user), %error, "a receipt could not be noted");
        }
    }

    fn attach(&self, user: &UserId, device: Option<&DeviceId>) -> Result<Attached, StoreError> {
        let (now, now_ms) = (self.shared.index.now(), self.shared.clock.now_ms());
        self.shared.index.with(user, |log| {
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
        _ = self.shared.index.with(user, |log| {
            log.cursors.detach(device, now_ms);
            self.shared.announce(user, !std::mem::replace(&mut log.dirty, true), false);
        });
    }

    fn read(&self, user: &UserId, after: Seq, limit: ReadLimit) -> Result<Found, StoreError> {
        self.shared.read(user, after, limit)
    }

    fn recent(&self, user: &UserId, after: Seq, limit: ReadLimit) -> Option<Found> {
        self.shared.recent(user, after, limit)
    }

    fn missed(&self, user: &UserId, device: Option<&DeviceId>, from: Seq, to: Seq) -> Result<Vec<Missed>, StoreError> {
        self.shared.missed(user, device, from, to)
    }

    fn outbox(&self) -> Option<Arc<Outbox>> {
        self.shared.outbox.clone()
    }

    fn lacking(&self, user: &UserId, seq: Seq) -> Result<Vec<Option<DeviceId>>, StoreError> {
        self.shared.index.with(user, |log| log.cursors.lacking(seq))
    }

    fn health(&self) -> Arc<Health> {
        self.shared.health.clone()
    }

    fn full(&self) -> Option<Arc<str>> {
        self.shared.full.read().clone()
    }

    fn state(&self, user: &UserId) -> Result<UserState, StoreError> {
        let now_s = self.shared.clock.now_s();
        self.shared.index.with(user, |log| state(log, now_s))
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

    fn backup(
        &self,
        out: &mut dyn std::io::Write,
    ) -> Result<super::portable::Contents, super::portable::PortableError> {
        self.shared.backup(out)
    }

    fn close(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            let (done, answer) = oneshot::channel();
            self.shared.queue.close(done)?;
            // Taken before the wait: if a disk hangs, whoever gives up waiting must not wait again in our drop.
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

impl Shared {
    /// Lets the commit thread know of a log that was just marked as changed (`dirty`), or as one to be trimmed.
    ///
    /// To be called while the log is still locked. A caller that finds the mark relies on it and announces nothing: if the user
    /// were not in the queue by then, a dispatch that comes later could be committed without what that caller has changed.
    pub fn announce(&self, user: &UserId, dirty: bool, trim: bool) {
        if dirty {
            self.queue.dirty(user.clone());
        }
        if trim {
            self.queue.trim(user.clone());
        }
    }

    /// Fails the store for good: refuses what waits and what comes, and has the server stop.
    pub fn fail(&self, error: StoreError) {
        if self.failed.borrow().is_some() {
            return;
        }
        self.queue.fail(&error);
        let reason = format!("the thread that writes the store has ended ({error}); start the server again");
        self.failed.send_replace(Some(error.clone()));
        // The log last: nothing about it keeps anybody waiting.
        tracing::error!(%error, "the commit thread has stopped");
        self.health.mark("commit_thread", reason.into());
    }
}

impl Journal {
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

pub(super) fn state(log: &mut Log, now_s: u32) -> UserState {
    let time = |ms: u64| (ms > 0).then(|| UNIX_EPOCH + Duration::from_millis(ms));
    let (received, pending) = log.pending(log.head, now_s);
    let device = |(device, cursor): &(DeviceId, Cursor)| DeviceState {
        device: device.clone(),
        pending: log.waiting(&cursor.received, log.head, now_s).entries,
        seen: time(cursor.seen_ms),
    };
    UserState {
        known: log.row_lapses.is_some() || log.dirty,
        head: log.head,
        received,
        pending: pending.entries,
        pending_bytes: pending.bytes,
        damaged: log.damaged,
        seen: time(log.seen_ms),
        devices: log.cursors.devices().iter().map(device).collect(),
    }
}

/// What the commit thread is to be told of a note.
pub(super) struct Noted {
    dirty: bool,
    trim: bool,
    /// What was received for the first time on its device, from the first new one on.
    new: Option<(Seq, Seq)>,
}

fn take_note(log: &mut Log, note: &Note, now: u32) -> Noted {
    log.touched = now;
    let (mut changed, mut new) = (false, None);
    if let Some((from, to)) = note.received {
        // A client cannot have received what it was never sent: what is beyond the head is a mistake or an attack.
        let to = to.min(log.head);
        let had = log.cursors.get(note.device.as_ref()).map_or(0, |cursor| cursor.received.through());
        changed |= log.cursors.receive(note.device.as_ref(), from, to);
        new = changed.then_some((from.max(had + 1), to));
        if planted::is(Bug::DeviceShares) {
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
    Noted { dirty, trim, new }
}
