//! One Redis that several servers share: the line to it, and what they tell each other over it.
//!
//! - `line`: a connection that is made again when it is lost, and never takes one reply for another
//! - `refusal`: what an error of Redis means
//! - `spread`: the nodes of a Redis Cluster, and how a command finds its own; `outage`: since when some of them are missing
//! - `names`: what stands in the Redis under which key
//! - `lease`: which servers live, and whether the Redis may have forgotten something
//! - `feed`: what other servers say; `ear`: a connection that listens, made again when it is lost
//! - `portals`: which portals there are, stock's too, and what is told to them; `event`: how that is written
//! - `presence`: who is connected to which server
//! - `burial`: takes away what servers have left that have died
//! - `stock`: what stock's servers and Dispatchers say
//! - `from_stock`: keeps what stock says to users of ours, once, whichever of the servers is there
//! - `words`: what servers tell each other, as it is written
//! - [`Servers`]: all of that as a [`Cluster`](super::Cluster)
//!
//! The line has a small runtime of its own. So a caller that gives up leaves its request to come to its end, and one that
//! may wait can do so on any thread.

mod burial;
mod ear;
mod event;
mod feed;
mod from_stock;
mod lease;
mod line;
pub mod names;
mod outage;
mod portals;
mod presence;
mod refusal;
mod servers;
mod spread;
mod stock;
mod words;

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
use tokio::{
    runtime::Runtime,
    sync::{Notify, watch},
    task::{AbortHandle, JoinSet},
};

pub use self::{
    feed::Told,
    lease::Live,
    line::{LinkError, Script},
    servers::Servers,
    stock::StockMessage,
};
use self::{
    line::{Lines, REPLY_TIMEOUT},
    names::Names,
};
use crate::{
    config,
    health::{Health, supervise},
};

/// A Redis that cannot be reached for this long when a server starts is not waited for.
const OPEN_PATIENCE: Duration = Duration::from_secs(5);

/// For how long a server may not hear the others before it says that it is not ready: making the connection anew takes some
/// hundred milliseconds.
const DEAF_PATIENCE: Duration = Duration::from_secs(2);

/// For how long a server that leaves goes on telling the others what has happened here.
const TELL_PATIENCE: Duration = Duration::from_secs(1);

/// Who is told what other servers say: on the line's own threads, so it must not block.
pub type Listener = Arc<dyn Fn(&Told) + Send + Sync>;

/// A server's place at a Redis.
pub struct Link {
    lines: Lines,
    names: Names,
    node: String,
    live: RwLock<Live>,
    /// Milliseconds by which the clock is ahead: for tests.
    ahead_ms: Arc<AtomicU64>,
    /// What an earlier opening with such a clock has left.
    base_ms: u64,
    came: Instant,
    /// Conditions of the server that this link belongs to.
    health: Arc<Health>,
    listeners: RwLock<Vec<Listener>>,
    tasks: Mutex<Vec<AbortHandle>>,
    /// Another server has taken this one for dead, or the Redis may have forgotten something: what was said of who is here
    /// has to be said again.
    buried: AtomicBool,
    /// Until then nobody is taken for dead whose lease has ended while nobody could renew his.
    forgiving: Mutex<Option<Instant>>,
    /// Another server has begun a failover epoch.
    beats_sooner: Arc<Notify>,
    /// The highest sequence that was given out or read here.
    seen: AtomicU64,
    /// One renews the lease at a time, or the later answer might be of the earlier time.
    beating: tokio::sync::Mutex<()>,
    /// Whether this server hears what others say.
    hears: watch::Sender<bool>,
    deaf_since: Mutex<Option<Instant>>,
    /// What waits to be told to others, or is on its way.
    untold: Arc<watch::Sender<usize>>,
    /// Set once this server is not one of them any more.
    left: watch::Sender<bool>,
    runtime: Option<Runtime>,
}

/// Options of a [`Link`] that a server leaves at their defaults.
#[derive(Clone, Debug)]
pub struct LinkOptions {
    /// Milliseconds by which the clock is ahead; the caller may raise it at any time.
    pub ahead_ms: Arc<AtomicU64>,
    /// Time limit for a reply of Redis; then the connection is replaced and the request fails.
    pub reply_timeout: Duration,
}

impl Default for LinkOptions {
    fn default() -> Self {
        Self { ahead_ms: Arc::default(), reply_timeout: REPLY_TIMEOUT }
    }
}

impl Link {
    /// Connects, and joins the servers that are there. Blocks for five seconds at most.
    ///
    /// # Errors
    /// When the Redis cannot be reached, or is none that can be used.
    pub fn open(
        redis: &config::Redis,
        namespace: Option<&str>,
        LinkOptions { ahead_ms, reply_timeout }: LinkOptions,
    ) -> Result<Arc<Self>, LinkError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("mesa-redis")
            .enable_all()
            .build()
            .map_err(|error| LinkError::Refused(format!("a thread cannot be started: {error}").into()))?;
        let (lines, names) = (Lines::new(redis, reply_timeout)?, Names::new(namespace));
        let (done, opened) = mpsc::channel();
        let until = Instant::now() + OPEN_PATIENCE;
        let joining = {
            let (lines, names) = (lines.clone(), names.clone());
            async move {
                loop {
                    match lease::join(&lines, &names).await {
                        Err(LinkError::Lost(_)) if Instant::now() < until => {
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
        let joined = opened.recv().unwrap_or_else(|_| Err(LinkError::Lost("the attempt did not end".into())));
        let joined = match joined {
            Ok(joined) => joined,
            Err(error) => {
                runtime.shutdown_background();
                return Err(error);
            }
        };
        let link = Arc::new(Self {
            lines,
            names,
            node: joined.node,
            live: RwLock::new(joined.live),
            ahead_ms,
            base_ms: joined.base_ms,
            came: Instant::now(),
            health: Arc::default(),
            listeners: RwLock::default(),
            tasks: Mutex::default(),
            buried: AtomicBool::new(false),
            forgiving: Mutex::new(None),
            beats_sooner: Arc::default(),
            seen: AtomicU64::new(0),
            beating: tokio::sync::Mutex::default(),
            hears: watch::Sender::new(false),
            deaf_since: Mutex::default(),
            untold: Arc::default(),
            left: watch::Sender::new(false),
            runtime: Some(runtime),
        });
        link.keep("cluster_lease", (), |link, ()| Box::pin(lease::keep(link)));
        link.keep("cluster_subscriber", (), |link, ()| Box::pin(feed::listen(link)));
        // Or what is said to the first who comes might not be heard.
        let mut hears = link.hears.subscribe();
        let left = until.saturating_duration_since(Instant::now());
        let heard = link.wait(async move {
            let waiting = tokio::time::timeout(left, hears.wait_for(|hears| *hears));
            let silent = || LinkError::Lost("it does not let anybody subscribe".into());
            waiting.await.map_err(|_| silent())?.map(|_| ()).map_err(|_| silent())
        });
        heard.map(|()| link)
    }

    /// Runs a task for as long as this is one of the servers.
    ///
    /// `part` names it in `/readyz`. It returns when what it works for is gone; after a panic it is started again with the same
    /// `state`.
    pub fn keep<S: Send + 'static>(
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
        work: impl Future<Output = Result<T, LinkError>> + Send + 'static,
    ) -> Result<T, LinkError> {
        let Some(runtime) = &self.runtime else { return Err(LinkError::Lost("the line is closed".into())) };
        match runtime.spawn(work).await {
            Ok(result) => result,
            Err(_) => Err(LinkError::Lost("the line was closed".into())),
        }
    }

    /// The same, for what changes nothing that somebody has to know of: it ends when nobody waits for it any more.
    ///
    /// # Errors
    /// As what is run, or when the line is closed.
    pub async fn run_while_wanted<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, LinkError>> + Send + 'static,
    ) -> Result<T, LinkError> {
        let Some(runtime) = &self.runtime else { return Err(LinkError::Lost("the line is closed".into())) };
        // Aborts what it holds when it is dropped.
        let mut running = JoinSet::new();
        running.spawn_on(work, runtime.handle());
        match running.join_next().await {
            Some(Ok(result)) => result,
            _ => Err(LinkError::Lost("the line was closed".into())),
        }
    }

    /// The same, for a thread that may wait. Not from a task of the line's own.
    ///
    /// # Errors
    /// As what is run.
    pub fn wait<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, LinkError>> + Send + 'static,
    ) -> Result<T, LinkError> {
        let (done, result) = mpsc::channel();
        if let Some(runtime) = &self.runtime {
            runtime.spawn(async move { _ = done.send(work.await) });
        }
        result.recv().unwrap_or_else(|_| Err(LinkError::Lost("the line was closed".into())))
    }

    /// Conditions of the server that this link belongs to.
    pub fn health(&self) -> &Arc<Health> {
        &self.health
    }

    /// The lines to send requests over.
    pub fn lines(&self) -> &Lines {
        &self.lines
    }

    /// What stands under which key.
    pub fn names(&self) -> &Names {
        &self.names
    }

    /// What this server is called among the others: the time at which it came, and something of its own.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// Which servers live.
    pub fn live(&self) -> Live {
        self.live.read().clone()
    }

    /// Renews the lease, and adopts the failover epoch that is there, or begins one.
    ///
    /// # Errors
    /// When the Redis cannot be asked.
    pub async fn beat(&self) -> Result<(), LinkError> {
        let turn = self.beating.lock().await;
        self.beat_in_turn(&turn).await
    }

    /// The same for a step that was refused in the epoch `used`: does nothing where another was adopted since.
    ///
    /// # Errors
    /// As [`Link::beat`].
    pub async fn adopt(&self, used: &str) -> Result<(), LinkError> {
        let turn = self.beating.lock().await;
        if self.live.read().epoch() == used { self.beat_in_turn(&turn).await } else { Ok(()) }
    }

    async fn beat_in_turn(&self, _turn: &tokio::sync::MutexGuard<'_, ()>) -> Result<(), LinkError> {
        let (before, grace) = (self.live(), if self.forgives() { lease::LEASE } else { Duration::ZERO });
        let seen = (self.seen.load(Ordering::Relaxed), grace);
        let (_, mut live, known) = lease::beat(&self.lines, &self.names, &self.node, &before, seen).await?;
        let is_another = live.era != before.era || live.birth != before.birth;
        let (era, base) = (live.era, live.base);
        {
            let mut now = self.live.write();
            if !is_another {
                // An append may have been answered meanwhile.
                live.steps = live.steps.max(now.steps);
            }
            *now = live;
        }
        if is_another {
            tracing::warn!(
                era,
                base,
                "Redis was emptied, or has taken over from another, or has come back: it may have lost messages, and sequences \
                 go on above base"
            );
        }
        if is_another || !known {
            self.bury();
        }
        if is_another {
            self.tell(&Told::Epoch);
        }
        Ok(())
    }

    /// So many steps have appended in the epoch `used`.
    pub fn saw_steps(&self, used: &str, steps: u64) {
        let mut live = self.live.write();
        if steps > live.steps && live.epoch() == used {
            live.steps = steps;
        }
    }

    /// A log has come as far as this.
    pub fn saw(&self, seq: u64) {
        self.seen.fetch_max(seq, Ordering::Relaxed);
    }

    /// For as long as a lease nobody is taken for dead.
    fn forgive(&self) {
        *self.forgiving.lock() = Some(Instant::now() + lease::LEASE);
    }

    fn forgives(&self) -> bool {
        self.forgiving.lock().is_some_and(|until| Instant::now() < until)
    }

    fn bury(&self) {
        self.buried.store(true, Ordering::Relaxed);
        self.tell(&Told::Forgotten);
    }

    fn was_buried(&self) -> bool {
        self.buried.swap(false, Ordering::Relaxed)
    }

    /// Milliseconds by which the clock is ahead of that of the Redis.
    pub fn ahead_ms(&self) -> u64 {
        self.base_ms + self.ahead_ms.load(Ordering::Relaxed)
    }

    /// Time since this server came, by the same clock.
    pub fn steady(&self) -> Duration {
        self.came.elapsed() + Duration::from_millis(self.ahead_ms.load(Ordering::Relaxed))
    }

    /// From here on `listener` is told what other servers say.
    pub fn listen(&self, listener: Listener) {
        self.listeners.write().push(listener);
    }

    fn tell(&self, told: &Told) {
        let listeners = self.listeners.read().clone();
        listeners.iter().for_each(|listener| listener(told));
    }

    /// Why nothing can be asked for or heard now, and since when; `None` while all is well.
    pub fn down(&self) -> Option<(Arc<str>, Duration)> {
        let deaf = self.deaf_since.lock().map(|since| since.elapsed()).filter(|since| *since > DEAF_PATIENCE);
        self.lines.down().or_else(|| Some(("what other servers say is not heard".into(), deaf?)))
    }

    fn set_hears(&self, hears: bool) {
        self.hears.send_replace(hears);
        *self.deaf_since.lock() = (!hears).then(Instant::now);
    }

    /// Leaves the servers: what has happened here is told to its end, and what it holds is not held any more. The second time
    /// does nothing.
    ///
    /// # Errors
    /// When the Redis cannot be told; its lease ends by itself then.
    pub async fn leave(self: &Arc<Self>) -> Result<(), LinkError> {
        if self.left.send_replace(true) {
            return Ok(());
        }
        let mut untold = self.untold.subscribe();
        let told = async move {
            _ = tokio::time::timeout(TELL_PATIENCE, untold.wait_for(|untold| *untold == 0)).await;
            Ok(())
        };
        _ = self.run(told).await;
        self.tasks.lock().drain(..).for_each(|task| task.abort());
        let link = self.clone();
        self.run(async move {
            lease::leave(&link.lines, &link.names, link.ahead_ms()).await?;
            burial::leave(&link).await
        })
        .await
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.tasks.lock().drain(..).for_each(|task| task.abort());
        if let Some(runtime) = self.runtime.take() {
            // Not waited for: this may be a task of another runtime.
            runtime.shutdown_background();
        }
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("node", &self.node).finish_non_exhaustive()
    }
}
