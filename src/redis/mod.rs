//! Stores and shares everything on Redis: user logs, membership, presence, portals, interoperation with the original.
//!
//! - `connection`: a client whose connection reconnects
//! - `refusal`: classifies errors of Redis
//! - `cluster_connection`: nodes of a Redis Cluster and routing · `outage`: deadline of requests to missing slots
//! - `link`: one server's link to the cluster · `keys`: key schema
//! - `membership`: leases and the failover epoch · `reaper`: removes the state of dead servers
//! - `subscriber`: a subscription that reconnects · `notifications`: handles its messages · `broadcast`: codec of broadcasts
//! - `presence`: which users are connected to which server · `portals`: the shared portal pool and its events
//! - `original`: interoperation with servers of the original
//! - [`store`]: user logs, with the scripts in `lua/` · [`import_export`]: `mesa import` and `mesa export`
//! - [`RedisBackplane`]: implements [`Cluster`](crate::cluster::Cluster) with these
//!
//! The link has its own runtime with one thread. So a request is completed even if its caller stops waiting, and a
//! caller may block on any thread.

mod backplane;
mod broadcast;
mod cluster_connection;
mod connection;
pub mod import_export;
pub mod keys;
mod link;
mod membership;
mod notifications;
mod original;
mod outage;
mod portals;
mod presence;
mod reaper;
mod refusal;
pub mod store;
mod subscriber;

use std::{
    fmt,
    future::Future,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use futures_util::future::BoxFuture;
use parking_lot::{Mutex, RwLock};
use tokio::{sync::watch, task::JoinSet};

pub use self::{
    backplane::RedisBackplane,
    connection::Script,
    link::{LinkOptions, Listener, Membership, Notification, ServerLink},
    refusal::RedisError,
};
use self::{connection::RedisClient, keys::Keys};
use crate::{
    config,
    health::{Health, supervise},
};

/// Time limit for reaching Redis at the start. Then the start fails.
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);

/// Time without a subscription after which a server is not ready. Resubscribing takes some hundred milliseconds.
const RESUBSCRIBE_TIMEOUT: Duration = Duration::from_secs(2);

/// Time limit for publishing queued broadcasts and events at the stop. The rest is lost.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

impl ServerLink {
    /// Connects and joins the other servers. Blocks for 5 s at most.
    ///
    /// # Errors
    /// When Redis cannot be reached or used.
    pub fn open(
        redis: &config::Redis,
        namespace: Option<&str>,
        LinkOptions { ahead_ms, reply_timeout }: LinkOptions,
    ) -> Result<Arc<Self>, RedisError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("mesa-redis")
            .enable_all()
            .build()
            .map_err(|error| RedisError::Refused(format!("starting a thread failed: {error}").into()))?;
        let (client, keys) = (RedisClient::new(redis, reply_timeout)?, Keys::new(namespace));
        let (done, opened) = mpsc::channel();
        let until = Instant::now() + OPEN_TIMEOUT;
        let joining = {
            let (client, keys) = (client.clone(), keys.clone());
            async move {
                loop {
                    match membership::join(&client, &keys).await {
                        Err(RedisError::Unavailable(_)) if Instant::now() < until => {
                            tokio::time::sleep(Duration::from_millis(100)).await;
                        }
                        joined => {
                            _ = done.send(joined);
                            return;
                        }
                    }
                }
            }
        };
        runtime.spawn(joining);
        let joined = opened.recv().unwrap_or_else(|_| Err(RedisError::Unavailable("joining did not end".into())));
        let joined = match joined {
            Ok(joined) => joined,
            Err(error) => {
                runtime.shutdown_background();
                return Err(error);
            }
        };
        let link = Arc::new(Self {
            client,
            keys,
            server_name: joined.server_name,
            membership: RwLock::new(joined.membership),
            ahead_ms,
            base_ms: joined.base_ms,
            opened: Instant::now(),
            health: Arc::default(),
            listeners: RwLock::default(),
            tasks: Mutex::default(),
            reaped: AtomicBool::new(false),
            grace_until: Mutex::new(None),
            renew_now: Arc::default(),
            highest_sequence: AtomicU64::new(0),
            renewing: tokio::sync::Mutex::default(),
            subscribed: watch::Sender::new(false),
            unsubscribed_since: Mutex::default(),
            pending_publishes: Arc::default(),
            deregistered: watch::Sender::new(false),
            runtime: Some(runtime),
        });
        link.spawn("cluster_lease", (), |link, ()| Box::pin(membership::keep_renewing(link)));
        link.spawn("cluster_subscriber", (), |link, ()| Box::pin(notifications::listen(link)));
        // The server must be subscribed before its first client connects. Otherwise it could miss broadcasts for that
        // client.
        let mut subscribed = link.subscribed.subscribe();
        let left = until.saturating_duration_since(Instant::now());
        let subscribed_in_time = link.wait(async move {
            let waiting = tokio::time::timeout(left, subscribed.wait_for(|subscribed| *subscribed));
            let timed_out = || RedisError::Unavailable("subscribing took too long".into());
            waiting.await.map_err(|_| timed_out())?.map(|_| ()).map_err(|_| timed_out())
        });
        subscribed_in_time.map(|()| link)
    }

    /// Spawns a task that runs until this server deregisters.
    ///
    /// `part` names it in `/readyz`. The task returns when its owner is dropped. After a panic it restarts with the
    /// same `state`.
    pub fn spawn<S: Send + 'static>(
        self: &Arc<Self>,
        part: &'static str,
        state: S,
        task: impl for<'a> Fn(Weak<Self>, &'a mut S) -> BoxFuture<'a, ()> + Send + Sync + 'static,
    ) {
        let Some(runtime) = &self.runtime else { return };
        let (link, returned) = (Arc::downgrade(self), Arc::<AtomicBool>::default());
        let is_over = returned.clone();
        let supervised = supervise(
            self.health.clone(),
            part,
            (state, returned),
            move || is_over.load(Ordering::Relaxed),
            move |(state, returned)| {
                let running = task(link.clone(), state);
                Box::pin(async move {
                    running.await;
                    returned.store(true, Ordering::Relaxed);
                })
            },
        );
        self.tasks.lock().push(runtime.spawn(supervised).abort_handle());
    }

    /// Runs `work` to its end, even if the caller stops waiting, and returns its result.
    ///
    /// # Errors
    /// Those of `work`, or when the connection is closed.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, RedisError>> + Send + 'static,
    ) -> Result<T, RedisError> {
        let Some(runtime) = &self.runtime else {
            return Err(RedisError::Unavailable("the connection is closed".into()));
        };
        match runtime.spawn(work).await {
            Ok(result) => result,
            Err(_) => Err(RedisError::Unavailable("the connection was closed".into())),
        }
    }

    /// Runs `work`, and cancels it when the caller stops waiting. Only for reads: a cancelled write may have been done.
    ///
    /// # Errors
    /// Those of `work`, or when the connection is closed.
    pub async fn run_cancellable<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, RedisError>> + Send + 'static,
    ) -> Result<T, RedisError> {
        let Some(runtime) = &self.runtime else {
            return Err(RedisError::Unavailable("the connection is closed".into()));
        };
        // Aborts its tasks when dropped.
        let mut running = JoinSet::new();
        running.spawn_on(work, runtime.handle());
        match running.join_next().await {
            Some(Ok(result)) => result,
            _ => Err(RedisError::Unavailable("the connection was closed".into())),
        }
    }

    /// Runs `work` and blocks until it ends. Must not be called from a task of this runtime.
    ///
    /// # Errors
    /// Those of `work`.
    pub fn wait<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, RedisError>> + Send + 'static,
    ) -> Result<T, RedisError> {
        let (done, result) = mpsc::channel();
        if let Some(runtime) = &self.runtime {
            runtime.spawn(async move { _ = done.send(work.await) });
        }
        result.recv().unwrap_or_else(|_| Err(RedisError::Unavailable("the connection was closed".into())))
    }

    /// Returns the health conditions of this server.
    pub fn health(&self) -> &Arc<Health> {
        &self.health
    }

    /// Returns the client that sends requests.
    pub fn client(&self) -> &RedisClient {
        &self.client
    }

    /// Returns the key schema.
    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// Returns the name of this server: the time when it joined, and a random number.
    pub fn server_name(&self) -> &str {
        &self.server_name
    }

    /// Returns the live servers and the failover epoch, as last seen.
    pub fn membership(&self) -> Membership {
        self.membership.read().clone()
    }

    /// Renews the lease, and adopts the failover epoch of the Redis or begins one.
    ///
    /// # Errors
    /// When Redis cannot be queried.
    pub async fn renew(&self) -> Result<(), RedisError> {
        let guard = self.renewing.lock().await;
        self.renew_locked(&guard).await
    }

    /// Renews after a step was rejected in the epoch `used`. Does nothing if another epoch was adopted since.
    ///
    /// # Errors
    /// As [`ServerLink::renew`].
    pub async fn adopt(&self, used: &str) -> Result<(), RedisError> {
        let guard = self.renewing.lock().await;
        if self.membership.read().epoch_id() == used { self.renew_locked(&guard).await } else { Ok(()) }
    }

    async fn renew_locked(&self, _guard: &tokio::sync::MutexGuard<'_, ()>) -> Result<(), RedisError> {
        let (before, grace) =
            (self.membership(), if self.in_grace_period() { membership::LEASE_TTL } else { Duration::ZERO });
        let seen = (self.highest_sequence.load(Ordering::Relaxed), grace);
        let (_, mut current, was_valid) =
            membership::renew(&self.client, &self.keys, &self.server_name, &before, seen).await?;
        let has_changed = current.epoch != before.epoch || current.dataset != before.dataset;
        let (epoch, base_seq) = (current.epoch, current.base_seq);
        {
            let mut now = self.membership.write();
            if !has_changed {
                // An append may have been answered meanwhile.
                current.appends = current.appends.max(now.appends);
            }
            *now = current;
        }
        if has_changed {
            tracing::warn!(
                epoch,
                base_seq,
                "Redis was emptied, restarted or failed over: it may have lost messages, and sequences \
                 continue above base_seq"
            );
        }
        if has_changed || !was_valid {
            self.mark_reaped();
        }
        if has_changed {
            self.notify(&Notification::EpochAdopted);
        }
        Ok(())
    }

    /// Records how many append steps the epoch `used` has seen.
    pub fn record_appends(&self, used: &str, steps: u64) {
        let mut current = self.membership.write();
        if steps > current.appends && current.epoch_id() == used {
            current.appends = steps;
        }
    }

    /// Records the highest sequence of a log that this server has seen.
    pub fn record_sequence(&self, seq: u64) {
        self.highest_sequence.fetch_max(seq, Ordering::Relaxed);
    }

    /// Starts a lease period in which no server is taken for dead.
    fn start_grace_period(&self) {
        *self.grace_until.lock() = Some(Instant::now() + membership::LEASE_TTL);
    }

    fn in_grace_period(&self) -> bool {
        self.grace_until.lock().is_some_and(|until| Instant::now() < until)
    }

    /// Records that Redis may not have this server's state.
    fn mark_reaped(&self) {
        self.reaped.store(true, Ordering::Relaxed);
        self.notify(&Notification::StateLost);
    }

    fn take_reaped(&self) -> bool {
        self.reaped.swap(false, Ordering::Relaxed)
    }

    /// Returns by how many milliseconds the (test) clock is ahead of that of Redis.
    pub fn ahead_ms(&self) -> u64 {
        self.base_ms + self.ahead_ms.load(Ordering::Relaxed)
    }

    /// Returns the time since this server joined, by the same clock.
    pub fn uptime(&self) -> Duration {
        self.opened.elapsed() + Duration::from_millis(self.ahead_ms.load(Ordering::Relaxed))
    }

    /// Adds a listener of notifications.
    pub fn listen(&self, listener: Listener) {
        self.listeners.write().push(listener);
    }

    fn notify(&self, notification: &Notification) {
        let listeners = self.listeners.read().clone();
        listeners.iter().for_each(|listener| listener(notification));
    }

    /// Returns why Redis cannot be used now, and since when. `None` while it can.
    pub fn unavailable_since(&self) -> Option<(Arc<str>, Duration)> {
        let unsubscribed =
            self.unsubscribed_since.lock().map(|since| since.elapsed()).filter(|since| *since > RESUBSCRIBE_TIMEOUT);
        self.client
            .unavailable_since()
            .or_else(|| Some(("not subscribed to other servers' messages".into(), unsubscribed?)))
    }

    fn set_subscribed(&self, subscribed: bool) {
        self.subscribed.send_replace(subscribed);
        *self.unsubscribed_since.lock() = (!subscribed).then(Instant::now);
    }

    /// Leaves the cluster: publishes what is queued, then removes this server's state. A second call does nothing.
    ///
    /// # Errors
    /// When Redis cannot be reached. The lease then ends by itself.
    pub async fn leave(self: &Arc<Self>) -> Result<(), RedisError> {
        if self.deregistered.send_replace(true) {
            return Ok(());
        }
        let mut pending_publishes = self.pending_publishes.subscribe();
        let drained = async move {
            _ = tokio::time::timeout(
                DRAIN_TIMEOUT,
                pending_publishes.wait_for(|pending_publishes| *pending_publishes == 0),
            )
            .await;
            Ok(())
        };
        _ = self.run(drained).await;
        self.tasks.lock().drain(..).for_each(|task| task.abort());
        let link = self.clone();
        self.run(async move {
            membership::save_test_clock(&link.client, &link.keys, link.ahead_ms()).await?;
            reaper::deregister(&link).await
        })
        .await
    }
}

impl Drop for ServerLink {
    fn drop(&mut self) {
        self.tasks.lock().drain(..).for_each(|task| task.abort());
        if let Some(runtime) = self.runtime.take() {
            // Without waiting: this may be a task of another runtime, which must not block.
            runtime.shutdown_background();
        }
    }
}

impl fmt::Debug for ServerLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerLink").field("server", &self.server_name).finish_non_exhaustive()
    }
}
