//! Logs in a Redis that several servers share: the same contract, as far as that Redis keeps what it has acknowledged.
//!
//! Every step on a log is one script (`steps`), which Redis runs as a whole or not at all; a log is two keys of one slot.
//! Nothing of a log is kept here but what this server has still to say of it ([`unflushed`]): receipts and who holds what,
//! which go to Redis within some 20 ms, and in any case before the next question about that user.
//!
//! - `scripts`: the scripts, of the parts in `lua/`
//! - `script_client`: what they are asked, and what their answers mean
//! - `unflushed`: what this server has still to say
//! - `undelivered`: what the original has left for a user; `taken`: one list of it, and `json_list`: its elements
//! - [`super::import_export`]: what waits in a stock set-up, into a store, and back
//! - `append`: appends, also those that are done once
//!
//! # What is not the same
//!
//! - *Durability* is that of the Redis (`appendfsync`, replicas); `store.durability` means nothing here.
//! - *Sequences* rise by more than one where the Redis may have lost some (a failover, a restart, being emptied): the gap is
//!   [`Loss::Lost`]. Every step checks the failover epoch before it reads or writes (`lua/check_epoch.lua`); what an epoch is, and the
//!   invariant, stand in `redis/membership.rs`.
//! - *Atomicity and order.* Appends made together are one step up to [`append::ITEMS_MAX`] copies; beyond that, and in a
//!   Redis Cluster, where users are in different slots, an append is several steps, and what a crash or a lost line leaves
//!   of it may be some of its recipients. Under an id ([`Once`](crate::store::Once)) it can be asked for again, and reaches each once.
//! - [`Limits::ids`], [`Limits::store_bytes`] and [`Limits::free_bytes`] mean nothing: Redis has `maxmemory`, and what it refuses
//!   is [`StoreError::Full`].
//! - A message is stored once for each recipient.
//! - [`Store::recent`] has nothing: every read asks Redis. [`Store::backup`] refuses: Redis makes its own.
//! - There is no [`Store::outbox`]: events of webhooks need the embedded store.
//!
//! # What a step may cost
//!
//! Redis does one thing at a time: what takes long keeps everybody waiting. So the state of a log says for *blocks* of up to 512
//! entries or 256 kB (and one entry) how many there are, how large, and when the first expires, and only the blocks at the ends of
//! a range are read to measure it: two for each range of a cursor, each once in a step, however many cursors there are. A read
//! fetches what it gives back and about as much again, and ends a step after 1024 entries or 1 MB; what is past goes in
//! steps of as many. Where more is to be done the next step goes on (`calls`), and others have their turn in between. Only room for
//! a message that is larger than many is made in one step, in runs.
//!
//! # Without room
//!
//! What Redis refuses for want of `maxmemory` is an append. All other steps are done nevertheless, since they are what makes room; a
//! script may do that whose first write takes none.

pub(super) mod append;
pub(super) mod background;
mod script_client;
mod scripts;
mod unflushed;

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::BoxFuture;
use parking_lot::{Mutex, RwLock};
use tokio::sync::{Notify, mpsc, oneshot};

use self::{
    background::{SWEEP_PAUSE, Shared, flush_reports, keep_sweeping},
    script_client::{ScriptClient, told},
    unflushed::UnflushedReports,
};
use crate::{
    health::Health,
    message::{DeviceId, Seq, UserId},
    redis::{Notification, RedisError, ServerLink},
    store::{
        Append, Appended, Attached, CommitListener, Contents, Found, KnownUser, Limits, Loss, Missed, Note,
        PortableError, ReadLimit, Store, StoreError, UserState, fingerprint, gaps::Gone,
    },
};

/// How a store over Redis is to behave.
#[derive(Clone, Debug)]
pub struct RedisOptions {
    /// A store belongs to one namespace for good; as the link's.
    pub namespace: Option<String>,
    /// What is kept at most.
    pub limits: Limits,
    /// Appends that may wait for their turn; one more waits outside.
    pub queue: usize,
    /// How often a few users are looked at who have something that expires. For tests.
    #[doc(hidden)]
    pub sweep_pause: Duration,
}

impl Default for RedisOptions {
    fn default() -> Self {
        Self { namespace: None, limits: Limits::default(), queue: 10_000, sweep_pause: SWEEP_PAUSE }
    }
}

/// The store over a Redis.
struct RedisStore {
    link: Arc<ServerLink>,
    shared: Arc<Shared>,
    namespace: u32,
    queue: mpsc::Sender<append::Waiting>,
}

/// Opens the store of a link's namespace.
#[must_use]
pub fn open(link: Arc<ServerLink>, options: RedisOptions) -> Arc<dyn Store> {
    let namespace = fingerprint(options.namespace.as_deref().unwrap_or_default());
    let shared = Arc::new(Shared {
        caller: ScriptClient::new(Arc::downgrade(&link), options.limits, namespace),
        locals: UnflushedReports::default(),
        owed: Mutex::default(),
        dirty: Notify::new(),
        listener: RwLock::default(),
        gap: RwLock::default(),
        full: RwLock::default(),
        closed: RwLock::new(false),
    });
    let telling = Arc::downgrade(&shared);
    let (come, came) = mpsc::channel(super::original::undelivered::CAME_MAX);
    let taking = telling.clone();
    link.spawn("redis_undelivered", came, move |_, came| {
        Box::pin(super::original::undelivered::keep_taking(taking.clone(), came))
    });
    link.listen(Arc::new(move |told| {
        let Some(shared) = telling.upgrade() else { return };
        match told {
            Notification::LogsAppended(users) => shared.woken(users),
            Notification::Resync | Notification::EpochAdopted => {
                if let Some(gap) = shared.gap.read().clone() {
                    gap();
                }
            }
            Notification::OriginalPresent(users) => {
                if come.try_send((Instant::now(), users.clone())).is_err() {
                    tracing::debug!("what stock has left meanwhile for who has come waits until he comes again");
                }
            }
            Notification::StateLost => {
                shared.locals.say_again();
                shared.dirty.notify_one();
            }
            Notification::ChannelMessage { .. } => {}
        }
    }));
    let (noting, sweeping) = (Arc::downgrade(&shared), Arc::downgrade(&shared));
    let pause = options.sweep_pause.max(Duration::from_millis(20));
    link.spawn("redis_acknowledgements", (), move |_, ()| Box::pin(flush_reports(noting.clone())));
    link.spawn("redis_expiry", (), move |_, ()| Box::pin(keep_sweeping(sweeping.clone(), pause)));
    let (queue, waiting) = mpsc::channel(options.queue.max(1));
    let appending = Arc::downgrade(&shared);
    link.spawn("redis_appends", waiting, move |_, waiting| {
        Box::pin(append::keep_appending(appending.clone(), waiting))
    });
    Arc::new(RedisStore { link, shared, namespace, queue })
}

impl RedisStore {
    fn check_open(&self) -> Result<(), StoreError> {
        if *self.shared.closed.read() { Err(StoreError::Closed) } else { Ok(()) }
    }

    /// Appends behind all that waits.
    async fn append_in_turn(&self, appends: Vec<Append>) -> Result<Vec<Appended>, RedisError> {
        let closed = || RedisError::Unavailable("the line is closed".into());
        let (done, answer) = oneshot::channel();
        self.queue.send((appends, done)).await.map_err(|_| closed())?;
        answer.await.map_err(|_| closed())?
    }

    /// Asks on a thread that may wait.
    fn wait<T, F>(&self, work: impl FnOnce(Arc<Shared>) -> F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, RedisError>> + Send + 'static,
    {
        self.link.wait(work(self.shared.clone())).map_err(told)
    }
}

impl Store for RedisStore {
    fn namespace(&self) -> u32 {
        self.namespace
    }

    fn append_all(&self, appends: Vec<Append>) -> BoxFuture<'_, Result<Vec<Appended>, StoreError>> {
        Box::pin(async move {
            self.check_open()?;
            if appends.iter().all(|append| append.recipients.is_empty() && append.once.is_none()) {
                return Ok(vec![Appended::default(); appends.len()]);
            }
            let appended = self.append_in_turn(appends).await;
            if appended.is_ok() && self.shared.full.read().is_some() {
                *self.shared.full.write() = None;
            }
            appended.map_err(told)
        })
    }

    fn clear(&self, user: &UserId) -> BoxFuture<'_, Result<u64, StoreError>> {
        let (user, shared) = (user.clone(), self.shared.clone());
        Box::pin(async move {
            self.check_open()?;
            let clearing = async move {
                shared.settle(&user).await?;
                shared.caller.clear(&user).await
            };
            self.link.run(clearing).await.map_err(told)
        })
    }

    fn attach(&self, user: &UserId, device: Option<&DeviceId>) -> Result<Attached, StoreError> {
        self.check_open()?;
        let report = self.shared.locals.attach(user, device, self.link.uptime());
        let (whose, which) = (user.clone(), device.cloned());
        let attached = self.wait(|shared| async move {
            shared.take_undelivered(&whose).await?;
            let attached = shared.caller.attach(&whose, which.as_ref(), &report).await?;
            shared.locals.said(&whose, &report);
            Ok(attached.map(|(attached, era)| {
                shared.locals.attached(&whose, which.as_ref(), &attached, era);
                shared.dirty.notify_one();
                attached
            }))
        });
        let attached =
            attached.and_then(|attached| attached.ok_or(StoreError::Devices(self.shared.caller.limits().devices)));
        if attached.is_err() {
            self.detach(user, device);
        }
        attached
    }

    fn detach(&self, user: &UserId, device: Option<&DeviceId>) {
        self.shared.locals.detach(user, device, self.link.uptime());
        self.shared.dirty.notify_one();
    }

    fn note(&self, user: &UserId, note: Note) {
        if self.shared.locals.note(user, note) {
            self.shared.dirty.notify_one();
        }
    }

    fn read(&self, user: &UserId, after: Seq, limit: ReadLimit) -> Result<Found, StoreError> {
        let user = user.clone();
        self.wait(|shared| async move { shared.read(&user, after, limit).await })
    }

    fn read_far(
        &self,
        user: &UserId,
        after: Seq,
        limit: ReadLimit,
    ) -> Option<BoxFuture<'static, Result<Found, StoreError>>> {
        let (link, shared, user) = (self.link.clone(), self.shared.clone(), user.clone());
        let reading = async move { shared.read(&user, after, limit).await };
        Some(Box::pin(async move { link.run_cancellable(reading).await.map_err(told) }))
    }

    fn recent(&self, _user: &UserId, _after: Seq, _limit: ReadLimit) -> Option<Found> {
        None
    }

    fn missed(&self, user: &UserId, device: Option<&DeviceId>, from: Seq, to: Seq) -> Result<Vec<Missed>, StoreError> {
        let (user, device) = (user.clone(), device.cloned());
        let (received, gone) = self.wait(|shared| async move {
            shared.settle(&user).await?;
            shared.caller.missed(&user, device.as_ref()).await
        })?;
        let mut missed = Vec::new();
        for (from, to, reason) in Gone::from_stored(&gone).explain(from, to) {
            match reason {
                Some(reason) => missed.push(Missed { from, to, reason }),
                None => {
                    let had = received.min(to);
                    missed.extend((from <= had).then_some(Missed { from, to: had, reason: Loss::Received }));
                    let rest = from.max(had + 1);
                    missed.extend((rest <= to).then_some(Missed { from: rest, to, reason: Loss::Expired }));
                }
            }
        }
        Ok(missed)
    }

    fn lacking(&self, user: &UserId, seq: Seq) -> Result<Vec<Option<DeviceId>>, StoreError> {
        let user = user.clone();
        self.wait(|shared| async move {
            shared.settle(&user).await?;
            shared.caller.lacking(&user, seq).await
        })
    }

    fn state(&self, user: &UserId) -> Result<UserState, StoreError> {
        let user = user.clone();
        self.wait(|shared| async move {
            shared.settle(&user).await?;
            Ok(shared.caller.state(&user).await?.0)
        })
    }

    fn pending_bytes(&self, user: &UserId) -> Result<u64, StoreError> {
        let user = user.clone();
        self.wait(|shared| async move {
            shared.settle(&user).await?;
            Ok(shared.caller.state(&user).await?.1)
        })
    }

    fn users(&self, after: Option<&UserId>, limit: usize) -> Result<Vec<KnownUser>, StoreError> {
        let after = after.cloned();
        self.wait(|shared| async move {
            shared.note_all().await?;
            shared.caller.states(shared.caller.users(after.as_ref(), limit).await?).await
        })
    }

    fn states(&self, users: Vec<UserId>) -> Result<Vec<KnownUser>, StoreError> {
        self.wait(|shared| async move {
            shared.note_all().await?;
            shared.caller.states(users).await
        })
    }

    fn on_commit(&self, listener: CommitListener) {
        *self.shared.listener.write() = Some(listener);
    }

    fn on_gap(&self, listener: Arc<dyn Fn() + Send + Sync>) {
        *self.shared.gap.write() = Some(listener);
    }

    fn failure(&self) -> BoxFuture<'_, StoreError> {
        // A Redis that is away comes back; until then what is asked is refused.
        Box::pin(std::future::pending())
    }

    fn is_far(&self) -> bool {
        true
    }

    fn unreachable(&self) -> Option<Arc<str>> {
        self.link.unavailable_since().map(|(why, _)| why)
    }

    fn health(&self) -> Arc<Health> {
        self.link.health().clone()
    }

    fn full(&self) -> Option<Arc<str>> {
        self.shared.full.read().as_ref().map(|(why, _)| why.clone())
    }

    fn stalled(&self) -> Option<Duration> {
        None
    }

    fn backup(&self, _out: &mut dyn std::io::Write) -> Result<Contents, PortableError> {
        let text = "the logs are in Redis, which makes its own backups: BGSAVE, or a copy of its append-only files";
        Err(PortableError::Failed(text.to_owned()))
    }

    fn close(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            if std::mem::replace(&mut *self.shared.closed.write(), true) {
                return Err(StoreError::Closed);
            }
            // In turn: behind all that was taken.
            _ = self.append_in_turn(Vec::new()).await;
            let shared = self.shared.clone();
            let closing = async move { shared.note_all().await };
            // What cannot be written down repeats messages, and loses none.
            if let Err(error) = self.link.run(closing).await {
                tracing::warn!(%error, "the last receipts could not be written down");
            }
            if let Err(error) = self.link.leave().await {
                tracing::warn!(%error, "the others could not be told that this server leaves");
            }
            Ok(())
        })
    }
}

impl fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStore").field("link", &self.link).finish_non_exhaustive()
    }
}
