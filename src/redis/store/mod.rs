//! User logs on a Redis that several servers share. The contract is that of [`Store`], with the durability of that
//! Redis.
//!
//! Every step on a log is one script, which Redis runs completely or not at all. A log is two keys in one slot. This
//! server's memory holds only acknowledgements and holds that are not written yet ([`unflushed`]). They are written
//! within about 20 ms, and before any query about that user.
//!
//! - `scripts`: the scripts, made of the parts in `lua/`
//! - `script_client`: calls of the scripts · `replies`: decodes their replies
//! - `unflushed`: reports that are not written yet
//! - `append`: appends, also idempotent ones · `background`: shared state and background tasks
//!
//! # Differences from the embedded store
//!
//! - *Durability* is that of Redis (`appendfsync`, replicas). `store.durability` has no effect.
//! - *Sequences* rise by more than one where Redis may have lost some (a failover, a restart, an emptied Redis). The gap has
//!   the reason [`Lost`](crate::store::GapReason::Lost). Every step checks the failover epoch (`lua/check_epoch.lua`).
//!   `redis/membership.rs` states the invariant.
//! - *Atomicity and order.* Appends made together are one step up to [`append::ENTRIES_MAX`] entries. Above that they are
//!   several steps. In a Redis Cluster each entry is a step, because users are in different slots. After a crash or a lost
//!   connection only some recipients may have the message. With an id ([`Idempotency`](crate::store::Idempotency)) the
//!   dispatch can be retried, and reaches each recipient once.
//! - [`Limits::ids`], [`Limits::store_bytes`] and [`Limits::free_bytes`] have no effect. Redis has `maxmemory`; what it
//!   rejects is [`StoreError::Full`].
//! - A message is stored once for each recipient.
//! - [`Store::read_cached`] returns nothing: every read queries Redis. [`Store::backup`] fails: Redis makes its own backups.
//! - There is no [`Store::outbox`]: webhook events need the embedded store.
//!
//! # Cost of a step
//!
//! Redis runs one step at a time, so a long step blocks every client. The state of a log lists *blocks* of up to 512
//! entries, or 256 KiB and one entry: how many entries, how many bytes, and when the first expires. To measure a range,
//! a step reads only the entries of the blocks at its ends: two for each range of a cursor, each once per step, however
//! many cursors there are. A read fetches what it returns and about as much again, and ends a step after 1024 entries
//! or 1 MiB. Expiry has the same bounds. The next step resumes (`script_client`), and Redis serves other clients in
//! between. Only eviction for one message is always one step.
//!
//! # Without memory
//!
//! When `maxmemory` is reached, Redis rejects appends only. All other steps still run, since they free memory: a script
//! may write if its first write needs no memory (`lua/allow_when_full.lua`).

pub(super) mod append;
pub(super) mod background;
mod replies;
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
    background::{EXPIRY_INTERVAL, Shared, expire_due_users, flush_reports},
    script_client::{ScriptClient, store_error},
    unflushed::UnflushedReports,
};
use crate::{
    health::Health,
    message::{DeviceId, Seq, UserId},
    redis::{Notification, RedisError, ServerLink},
    store::{
        Append, AppendResult, Attached, BackupError, CommitListener, Contents, Gap, KnownUser, Limits, ReadLimit,
        ReadResult, SessionReport, Store, StoreError, UserState, fingerprint, gaps::GapList,
    },
};

/// Options of a store on Redis.
#[derive(Clone, Debug)]
pub struct RedisOptions {
    /// The namespace, which must be that of the link. The namespace of a store never changes.
    pub namespace: Option<String>,
    /// Limits of a user's log.
    pub limits: Limits,
    /// Appends that may be queued. Further callers wait.
    pub queue: usize,
    /// Interval of the expiry of due users. For tests.
    #[doc(hidden)]
    pub expiry_interval: Duration,
}

impl Default for RedisOptions {
    fn default() -> Self {
        Self { namespace: None, limits: Limits::default(), queue: 10_000, expiry_interval: EXPIRY_INTERVAL }
    }
}

/// A store on Redis.
struct RedisStore {
    link: Arc<ServerLink>,
    shared: Arc<Shared>,
    namespace: u32,
    queue: mpsc::Sender<append::QueuedAppends>,
}

/// Opens the store in the namespace of a link.
#[must_use]
pub fn open(link: Arc<ServerLink>, options: RedisOptions) -> Arc<dyn Store> {
    let namespace = fingerprint(options.namespace.as_deref().unwrap_or_default());
    let shared = Arc::new(Shared {
        script_client: ScriptClient::new(Arc::downgrade(&link), options.limits, namespace),
        unflushed: UnflushedReports::default(),
        incomplete: Mutex::default(),
        dirty: Notify::new(),
        listener: RwLock::default(),
        resync: RwLock::default(),
        full: RwLock::default(),
        closed: RwLock::new(false),
    });
    let weak = Arc::downgrade(&shared);
    let (connected, waiting) = mpsc::channel(super::original::undelivered::CONNECTED_MAX);
    let importing = weak.clone();
    link.spawn("redis_undelivered", waiting, move |_, connected| {
        Box::pin(super::original::undelivered::import_on_connect(importing.clone(), connected))
    });
    link.listen(Arc::new(move |notification| {
        let Some(shared) = weak.upgrade() else { return };
        match notification {
            Notification::LogsAppended(users) => shared.notify_appended(users),
            Notification::Resync | Notification::EpochAdopted => {
                if let Some(resync) = shared.resync.read().clone() {
                    resync();
                }
            }
            Notification::OriginalPresent(users) => {
                if connected.try_send((Instant::now(), users.clone())).is_err() {
                    tracing::debug!("pending messages of the original wait until the user connects again");
                }
            }
            Notification::StateLost => {
                shared.unflushed.mark_all_dirty();
                shared.dirty.notify_one();
            }
            Notification::ChannelMessage { .. } => {}
        }
    }));
    let (reporting, expiring) = (Arc::downgrade(&shared), Arc::downgrade(&shared));
    let interval = options.expiry_interval.max(Duration::from_millis(20));
    link.spawn("redis_acknowledgements", (), move |_, ()| Box::pin(flush_reports(reporting.clone())));
    link.spawn("redis_expiry", (), move |_, ()| Box::pin(expire_due_users(expiring.clone(), interval)));
    let (queue, queued) = mpsc::channel(options.queue.max(1));
    let appending = Arc::downgrade(&shared);
    link.spawn("redis_appends", queued, move |_, queued| Box::pin(append::run_appends(appending.clone(), queued)));
    Arc::new(RedisStore { link, shared, namespace, queue })
}

impl RedisStore {
    fn check_open(&self) -> Result<(), StoreError> {
        if *self.shared.closed.read() { Err(StoreError::Closed) } else { Ok(()) }
    }

    /// Appends after all queued appends; returns a result for each.
    ///
    /// # Errors
    /// If none of them was queued, or the results are unknown.
    async fn append_in_turn(&self, appends: Vec<Append>) -> Result<Vec<Result<AppendResult, RedisError>>, RedisError> {
        let closed = || RedisError::Unavailable("the connection is closed".into());
        let (done, answer) = oneshot::channel();
        self.queue.send((appends, done)).await.map_err(|_| closed())?;
        answer.await.map_err(|_| closed())
    }

    /// Runs `work` and blocks the calling thread until it ends.
    fn wait<T, F>(&self, work: impl FnOnce(Arc<Shared>) -> F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, RedisError>> + Send + 'static,
    {
        self.link.wait(work(self.shared.clone())).map_err(store_error)
    }
}

impl Store for RedisStore {
    fn namespace(&self) -> u32 {
        self.namespace
    }

    fn append_all(&self, appends: Vec<Append>) -> BoxFuture<'_, Result<Vec<AppendResult>, StoreError>> {
        Box::pin(async move { self.append_each(appends).await.into_iter().collect() })
    }

    fn append_each(&self, appends: Vec<Append>) -> BoxFuture<'_, Vec<Result<AppendResult, StoreError>>> {
        Box::pin(async move {
            let count = appends.len();
            if let Err(error) = self.check_open() {
                return vec![Err(error); count];
            }
            if appends.iter().all(|append| append.recipients.is_empty() && append.idempotency.is_none()) {
                return vec![Ok(AppendResult::default()); count];
            }
            let appended = match self.append_in_turn(appends).await {
                Ok(appended) => appended,
                Err(error) => vec![Err(error); count],
            };
            if appended.iter().all(Result::is_ok) && self.shared.full.read().is_some() {
                *self.shared.full.write() = None;
            }
            appended.into_iter().map(|result| result.map_err(store_error)).collect()
        })
    }

    fn clear(&self, user: &UserId) -> BoxFuture<'_, Result<u64, StoreError>> {
        let (user, shared) = (user.clone(), self.shared.clone());
        Box::pin(async move {
            self.check_open()?;
            let clearing = async move {
                shared.flush_user(&user).await?;
                shared.script_client.clear(&user).await
            };
            self.link.run(clearing).await.map_err(store_error)
        })
    }

    fn attach(&self, user: &UserId, device: Option<&DeviceId>) -> Result<Attached, StoreError> {
        self.check_open()?;
        let report = self.shared.unflushed.attach(user, device, self.link.uptime());
        let (owner, device_id) = (user.clone(), device.cloned());
        let attached = self.wait(|shared| async move {
            shared.import_undelivered(&owner).await?;
            let attached = shared.script_client.attach(&owner, device_id.as_ref(), &report).await?;
            shared.unflushed.mark_flushed(&owner, &report);
            Ok(attached.map(|(attached, log_name)| {
                shared.unflushed.set_acknowledged(&owner, device_id.as_ref(), &attached, log_name);
                shared.dirty.notify_one();
                attached
            }))
        });
        let attached = attached
            .and_then(|attached| attached.ok_or(StoreError::Devices(self.shared.script_client.limits().devices)));
        if attached.is_err() {
            self.detach(user, device);
        }
        attached
    }

    fn detach(&self, user: &UserId, device: Option<&DeviceId>) {
        self.shared.unflushed.detach(user, device, self.link.uptime());
        self.shared.dirty.notify_one();
    }

    fn report(&self, user: &UserId, report: SessionReport) {
        if self.shared.unflushed.record(user, report) {
            self.shared.dirty.notify_one();
        }
    }

    fn read(&self, user: &UserId, after: Seq, limit: ReadLimit) -> Result<ReadResult, StoreError> {
        let user = user.clone();
        self.wait(|shared| async move { shared.read(&user, after, limit).await })
    }

    fn read_remote(
        &self,
        user: &UserId,
        after: Seq,
        limit: ReadLimit,
    ) -> Option<BoxFuture<'static, Result<ReadResult, StoreError>>> {
        let (link, shared, user) = (self.link.clone(), self.shared.clone(), user.clone());
        let reading = async move { shared.read(&user, after, limit).await };
        Some(Box::pin(async move { link.run_cancellable(reading).await.map_err(store_error) }))
    }

    fn read_cached(&self, _user: &UserId, _after: Seq, _limit: ReadLimit) -> Option<ReadResult> {
        None
    }

    fn explain_gaps(
        &self,
        user: &UserId,
        device: Option<&DeviceId>,
        from: Seq,
        to: Seq,
    ) -> Result<Vec<Gap>, StoreError> {
        let (user, device) = (user.clone(), device.cloned());
        let (acknowledged, stored_gaps) = self.wait(|shared| async move {
            shared.flush_user(&user).await?;
            shared.script_client.gaps(&user, device.as_ref()).await
        })?;
        Ok(GapList::from_stored(&stored_gaps).explain_missing(from, to, acknowledged))
    }

    fn unreceived_by(&self, user: &UserId, seq: Seq) -> Result<Vec<Option<DeviceId>>, StoreError> {
        let user = user.clone();
        self.wait(|shared| async move {
            shared.flush_user(&user).await?;
            shared.script_client.unreceived_by(&user, seq).await
        })
    }

    fn state(&self, user: &UserId) -> Result<UserState, StoreError> {
        let user = user.clone();
        self.wait(|shared| async move {
            shared.flush_user(&user).await?;
            Ok(shared.script_client.state(&user).await?.0)
        })
    }

    fn pending_bytes(&self, user: &UserId) -> Result<u64, StoreError> {
        let user = user.clone();
        self.wait(|shared| async move {
            shared.flush_user(&user).await?;
            Ok(shared.script_client.state(&user).await?.1)
        })
    }

    fn users(&self, after: Option<&UserId>, limit: usize) -> Result<Vec<KnownUser>, StoreError> {
        let after = after.cloned();
        self.wait(|shared| async move {
            shared.flush_all().await?;
            shared.script_client.states(shared.script_client.users(after.as_ref(), limit).await?).await
        })
    }

    fn states(&self, users: Vec<UserId>) -> Result<Vec<KnownUser>, StoreError> {
        self.wait(|shared| async move {
            shared.flush_all().await?;
            shared.script_client.states(users).await
        })
    }

    fn on_commit(&self, listener: CommitListener) {
        *self.shared.listener.write() = Some(listener);
    }

    fn on_resync(&self, listener: Arc<dyn Fn() + Send + Sync>) {
        *self.shared.resync.write() = Some(listener);
    }

    fn failure(&self) -> BoxFuture<'_, StoreError> {
        // Nothing stops this store for good: while Redis is unreachable each operation fails.
        Box::pin(std::future::pending())
    }

    fn is_remote(&self) -> bool {
        true
    }

    fn unreachable(&self) -> Option<Arc<str>> {
        self.link.unavailable_since().map(|(why, _)| why)
    }

    fn health(&self) -> Arc<Health> {
        self.link.health().clone()
    }

    fn full_reason(&self) -> Option<Arc<str>> {
        self.shared.full.read().as_ref().map(|(why, _)| why.clone())
    }

    fn current_step(&self) -> Option<(&'static str, Duration)> {
        None
    }

    fn is_in_memory(&self, _: &UserId) -> bool {
        false
    }

    fn backup(&self, _out: &mut dyn std::io::Write) -> Result<Contents, BackupError> {
        let text = "the logs are in Redis, which makes its own backups: BGSAVE, or a copy of its append-only files";
        Err(BackupError::Failed(text.to_owned()))
    }

    fn close(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            if std::mem::replace(&mut *self.shared.closed.write(), true) {
                return Err(StoreError::Closed);
            }
            // Waits for all queued appends.
            _ = self.append_in_turn(Vec::new()).await;
            let shared = self.shared.clone();
            let closing = async move { shared.flush_all().await };
            // Reports that are not written cause repeats, and no loss.
            if let Err(error) = self.link.run(closing).await {
                tracing::warn!(%error, "the last acknowledgements were not written: their messages are delivered again");
            }
            if let Err(error) = self.link.leave().await {
                tracing::warn!(%error, "this server did not deregister: its lease ends by itself");
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
