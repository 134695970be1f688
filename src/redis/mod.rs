//! One Redis that several servers share: the line to it, and what they tell each other over it.
//!
//! - `connection`: a connection that is made again when it is lost, and never takes one reply for another
//! - `refusal`: what an error of Redis means
//! - `cluster_connection`: the nodes of a Redis Cluster, and how a command finds its own; `outage`: since when some of them are missing
//! - `link`: state of one server
//! - `keys`: what stands in the Redis under which key
//! - `membership`: which servers live, and whether the Redis may have forgotten something
//! - `notifications`: what other servers say; `subscriber`: a connection that listens, made again when it is lost
//! - `portals`: which portals there are, and what is sent to them
//! - `presence`: who is connected to which server
//! - `reaper`: takes away what servers have left that have died
//! - `original`: interoperation with servers of the original
//! - [`store`]: user logs on Redis, with the scripts in `lua/` · [`import_export`]: `mesa import` and `mesa export`
//! - `broadcast`: what servers tell each other, as it is written
//! - [`RedisBackplane`]: all of that as a [`Cluster`](crate::cluster::Cluster)
//!
//! The line has a small runtime of its own. So a caller that gives up leaves its request to come to its end, and one that
//! may wait can do so on any thread.

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
    link::{Listener, Membership, Notification, ServerLink},
    refusal::RedisError,
};
use self::{connection::RedisClient, keys::Keys};
use crate::{
    config,
    health::{Health, supervise},
};

/// A Redis that cannot be reached for this long when a server starts is not waited for.
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);

/// For how long a server may not hear the others before it says that it is not ready: making the connection anew takes some
/// hundred milliseconds.
const RESUBSCRIBE_TIMEOUT: Duration = Duration::from_secs(2);

/// For how long a server that leaves goes on telling the others what has happened here.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

impl ServerLink {
    /// Connects, and joins the servers that are there. Blocks for five seconds at most.
    ///
    /// # Errors
    /// When the Redis cannot be reached, or is none that can be used.
    pub fn open(
        redis: &config::Redis,
        namespace: Option<&str>,
        ahead_ms: Arc<AtomicU64>,
    ) -> Result<Arc<Self>, RedisError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("mesa-redis")
            .enable_all()
            .build()
            .map_err(|error| RedisError::Refused(format!("a thread cannot be started: {error}").into()))?;
        let (client, keys) = (RedisClient::new(redis)?, Keys::new(namespace));
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
        let joined = opened.recv().unwrap_or_else(|_| Err(RedisError::Unavailable("the attempt did not end".into())));
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
            node: joined.node,
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
        // Or what is said to the first who comes might not be heard.
        let mut hears = link.subscribed.subscribe();
        let left = until.saturating_duration_since(Instant::now());
        let heard = link.wait(async move {
            let waiting = tokio::time::timeout(left, hears.wait_for(|hears| *hears));
            let silent = || RedisError::Unavailable("it does not let anybody subscribe".into());
            waiting.await.map_err(|_| silent())?.map(|_| ()).map_err(|_| silent())
        });
        heard.map(|()| link)
    }

    /// Runs a task for as long as this is one of the servers.
    ///
    /// `part` names it in `/readyz`. It returns when what it works for is gone; after a panic it is started again with the same
    /// `state`.
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

    /// Runs to its end, whether or not somebody still waits for it; resolves with what it gives.
    ///
    /// # Errors
    /// As what is run, or when the line is closed.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, RedisError>> + Send + 'static,
    ) -> Result<T, RedisError> {
        let Some(runtime) = &self.runtime else { return Err(RedisError::Unavailable("the line is closed".into())) };
        match runtime.spawn(work).await {
            Ok(result) => result,
            Err(_) => Err(RedisError::Unavailable("the line was closed".into())),
        }
    }

    /// The same, for what changes nothing that somebody has to know of: it ends when nobody waits for it any more.
    ///
    /// # Errors
    /// As what is run, or when the line is closed.
    pub async fn run_cancellable<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, RedisError>> + Send + 'static,
    ) -> Result<T, RedisError> {
        let Some(runtime) = &self.runtime else { return Err(RedisError::Unavailable("the line is closed".into())) };
        // Aborts what it holds when it is dropped.
        let mut running = JoinSet::new();
        running.spawn_on(work, runtime.handle());
        match running.join_next().await {
            Some(Ok(result)) => result,
            _ => Err(RedisError::Unavailable("the line was closed".into())),
        }
    }

    /// The same, for a thread that may wait. Not from a task of the line's own.
    ///
    /// # Errors
    /// As what is run.
    pub fn wait<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, RedisError>> + Send + 'static,
    ) -> Result<T, RedisError> {
        let (done, result) = mpsc::channel();
        if let Some(runtime) = &self.runtime {
            runtime.spawn(async move { _ = done.send(work.await) });
        }
        result.recv().unwrap_or_else(|_| Err(RedisError::Unavailable("the line was closed".into())))
    }

    /// Conditions of the server that this link belongs to.
    pub fn health(&self) -> &Arc<Health> {
        &self.health
    }

    /// The lines to send requests over.
    pub fn client(&self) -> &RedisClient {
        &self.client
    }

    /// What stands under which key.
    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// What this server is called among the others: the time at which it came, and something of its own.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// Which servers live.
    pub fn membership(&self) -> Membership {
        self.membership.read().clone()
    }

    /// Renews the lease, and adopts the failover epoch that is there, or begins one.
    ///
    /// # Errors
    /// When the Redis cannot be asked.
    pub async fn renew(&self) -> Result<(), RedisError> {
        let turn = self.renewing.lock().await;
        self.renew_locked(&turn).await
    }

    /// The same for a step that was refused in the epoch `used`: does nothing where another was adopted since.
    ///
    /// # Errors
    /// As [`ServerLink::renew`].
    pub async fn adopt(&self, used: &str) -> Result<(), RedisError> {
        let turn = self.renewing.lock().await;
        if self.membership.read().epoch_id() == used { self.renew_locked(&turn).await } else { Ok(()) }
    }

    async fn renew_locked(&self, _turn: &tokio::sync::MutexGuard<'_, ()>) -> Result<(), RedisError> {
        let (before, grace) =
            (self.membership(), if self.in_grace_period() { membership::LEASE_TTL } else { Duration::ZERO });
        let seen = (self.highest_sequence.load(Ordering::Relaxed), grace);
        let (_, mut live, known) = membership::renew(&self.client, &self.keys, &self.node, &before, seen).await?;
        let is_another = live.epoch != before.epoch || live.birth != before.birth;
        let (epoch, base) = (live.epoch, live.base);
        {
            let mut now = self.membership.write();
            if !is_another {
                // An append may have been answered meanwhile.
                live.appends = live.appends.max(now.appends);
            }
            *now = live;
        }
        if is_another {
            tracing::warn!(
                epoch,
                base,
                "Redis was emptied, or has taken over from another, or has come back: it may have lost messages, and sequences \
                 go on above base"
            );
        }
        if is_another || !known {
            self.mark_reaped();
        }
        if is_another {
            self.notify(&Notification::EpochAdopted);
        }
        Ok(())
    }

    /// So many steps have appended in the epoch `used`.
    pub fn record_appends(&self, used: &str, steps: u64) {
        let mut live = self.membership.write();
        if steps > live.appends && live.epoch_id() == used {
            live.appends = steps;
        }
    }

    /// A log has come as far as this.
    pub fn record_sequence(&self, seq: u64) {
        self.highest_sequence.fetch_max(seq, Ordering::Relaxed);
    }

    /// For as long as a lease nobody is taken for dead.
    fn start_grace_period(&self) {
        *self.grace_until.lock() = Some(Instant::now() + membership::LEASE_TTL);
    }

    fn in_grace_period(&self) -> bool {
        self.grace_until.lock().is_some_and(|until| Instant::now() < until)
    }

    fn mark_reaped(&self) {
        self.reaped.store(true, Ordering::Relaxed);
        self.notify(&Notification::StateLost);
    }

    fn take_reaped(&self) -> bool {
        self.reaped.swap(false, Ordering::Relaxed)
    }

    /// Milliseconds by which the clock is ahead of that of the Redis.
    pub fn ahead_ms(&self) -> u64 {
        self.base_ms + self.ahead_ms.load(Ordering::Relaxed)
    }

    /// Time since this server came, by the same clock.
    pub fn uptime(&self) -> Duration {
        self.opened.elapsed() + Duration::from_millis(self.ahead_ms.load(Ordering::Relaxed))
    }

    /// From here on `listener` is told what other servers say.
    pub fn listen(&self, listener: Listener) {
        self.listeners.write().push(listener);
    }

    fn notify(&self, notification: &Notification) {
        let listeners = self.listeners.read().clone();
        listeners.iter().for_each(|listener| listener(notification));
    }

    /// Why nothing can be asked for or heard now, and since when; `None` while all is well.
    pub fn unavailable_since(&self) -> Option<(Arc<str>, Duration)> {
        let deaf =
            self.unsubscribed_since.lock().map(|since| since.elapsed()).filter(|since| *since > RESUBSCRIBE_TIMEOUT);
        self.client.unavailable_since().or_else(|| Some(("what other servers say is not heard".into(), deaf?)))
    }

    fn set_subscribed(&self, hears: bool) {
        self.subscribed.send_replace(hears);
        *self.unsubscribed_since.lock() = (!hears).then(Instant::now);
    }

    /// Leaves the servers: what has happened here is told to its end, and what it holds is not held any more. The second time
    /// does nothing.
    ///
    /// # Errors
    /// When the Redis cannot be told; its lease ends by itself then.
    pub async fn leave(self: &Arc<Self>) -> Result<(), RedisError> {
        if self.deregistered.send_replace(true) {
            return Ok(());
        }
        let mut pending_publishes = self.pending_publishes.subscribe();
        let told = async move {
            _ = tokio::time::timeout(
                DRAIN_TIMEOUT,
                pending_publishes.wait_for(|pending_publishes| *pending_publishes == 0),
            )
            .await;
            Ok(())
        };
        _ = self.run(told).await;
        self.tasks.lock().drain(..).for_each(|task| task.abort());
        let link = self.clone();
        self.run(async move {
            membership::leave(&link.client, &link.keys, link.ahead_ms()).await?;
            reaper::deregister(&link).await
        })
        .await
    }
}

impl Drop for ServerLink {
    fn drop(&mut self) {
        self.tasks.lock().drain(..).for_each(|task| task.abort());
        if let Some(runtime) = self.runtime.take() {
            // Not waited for: this may be a task of another runtime.
            runtime.shutdown_background();
        }
    }
}

impl fmt::Debug for ServerLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerLink").field("node", &self.node).finish_non_exhaustive()
    }
}
