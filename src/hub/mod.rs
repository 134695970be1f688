//! Who is here and what they have had. Knows no socket and no wire format, and never waits for a socket.
//!
//! - [`dispatch`](Hub::dispatch): the path of a message from a backend
//! - [`mailbox`]: what the hub leaves for a connection to pick up
//! - [`registry`]: every connection, and the sessions of every user
//! - [`connection`]: a connection, from before anybody knows whose it is, and what is told about it
//! - [`session`]: a cursor on a user's log
//! - [`presence`]: which users are here, in order
//! - [`queries`]: what can be asked about users
//! - [`cluster`]: the other servers, if there are any
//! - [`events`]: what happens to clients, told to whoever listens
//! - [`portals`]: the backends that are told, each event to one of them
//! - [`backup`](Hub::backup): the whole store, piece by piece

mod backup;
mod cluster;
mod connection;
mod dispatch;
mod events;
mod mailbox;
pub mod portals;
mod presence;
mod queries;
mod registry;
mod session;
#[cfg(test)]
mod tests;

use std::{
    fmt,
    sync::{Arc, OnceLock},
    time::{Duration, SystemTime},
};

use futures_util::future::BoxFuture;
use tokio::sync::{Semaphore, watch};

pub use self::{
    connection::Connected,
    dispatch::{Dispatch, Kept, Outcome, Taken},
    events::{ConnectionId, Event, InboundMessage, Listener},
    mailbox::{Leave, MailboxBounds, Signals},
    queries::{DeviceReport, UserReport},
    session::{Attach, Batch, Mark, Resumed, Session},
};
pub use crate::store::{
    Entry, EventKind, Kept as KeptEvent, Missed, Outbox, OutboxEvent, OutboxOptions, ReadLimit, Reason, Rejected,
    Store, StoreError,
};
use crate::{
    cluster::Cluster,
    message::{DeviceId, Payload, Seq, UserId},
    metrics::Metrics,
    middleware::{Chain, Middleware},
    store::{CommitListener, Found, Note},
};
use events::Listeners;
use portals::{Bounds, Portals};
use presence::Presence;
use registry::{Registry, Seat};

/// Reads that may wait for the disk at the same time: the budget of all replays together. Sessions beyond that wait their
/// turn, one batch each, first come first served; who is at the head of his log reads from memory and never waits here. A
/// thousand users coming back at once must not take every thread from those who are being sent something new. (On two
/// cores, beside twenty replays, a live message took 1.4 ms longer with four, 0.5 with two and 0.5 with one; the replays
/// got 456, 427 and 295 MB a second: `cargo bench --bench fairness`.)
const COLD_READS_MAX: usize = 2;

/// The same where the log is on the other side of a network: waiting for that costs a thread and no disk.
const FAR_READS_MAX: usize = 64;

/// How the hub is to behave.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Keep messages for users who are away; `None`: sync is off.
    pub sync: Option<SyncSettings>,
    /// Connections that are not authenticated get no message for everyone.
    pub authentication_required: bool,
    /// Write down when users come and go.
    pub store_connected_users: bool,
    /// What waits for one slow connection.
    pub mailbox: MailboxBounds,
    /// Who is told what happens to clients; `None`: no portals.
    pub portals: Option<PortalSettings>,
}

/// How portals are told what happens to clients.
#[derive(Clone, Copy, Debug)]
pub struct PortalSettings {
    /// Each in turn, rather than at random.
    pub in_turn: bool,
    /// How much is held for them.
    pub bounds: Bounds,
}

/// How messages are kept.
#[derive(Clone, Copy, Debug)]
pub struct SyncSettings {
    /// Pause between the messages owed to a user who comes back. Zero: none.
    pub redelivery_interval: Duration,
}

/// Everything that is shared between connections.
pub struct Hub {
    settings: Settings,
    store: Arc<dyn Store>,
    metrics: Arc<Metrics>,
    registry: Arc<Registry>,
    presence: Presence,
    cluster: Option<Arc<dyn Cluster>>,
    listeners: Listeners,
    middleware: Arc<Chain>,
    portals: Option<Arc<Portals>>,
    /// Who else is told of commits.
    appended: Arc<OnceLock<CommitListener>>,
    cold_reads: Arc<Semaphore>,
    /// One at a time.
    backups: Arc<Semaphore>,
    /// Nothing more will happen to clients.
    over: watch::Sender<bool>,
}

impl Hub {
    /// A hub over `store`, whose commits it listens to from here on.
    #[must_use]
    #[cfg(test)]
    pub fn new(settings: Settings, store: Arc<dyn Store>, metrics: Arc<Metrics>) -> Arc<Self> {
        Self::among(settings, store, metrics, None)
    }

    /// The same, as one of several servers.
    #[must_use]
    pub fn among(
        settings: Settings,
        store: Arc<dyn Store>,
        metrics: Arc<Metrics>,
        cluster: Option<Arc<dyn Cluster>>,
    ) -> Arc<Self> {
        let registry = Arc::new(Registry::new());
        let appended: Arc<OnceLock<CommitListener>> = Arc::default();
        let (listening, also) = (registry.clone(), appended.clone());
        store.on_commit(Arc::new(move |users| {
            users.iter().for_each(|user| listening.wake(user));
            if let Some(also) = also.get() {
                also(users);
            }
        }));
        let gaps = registry.clone();
        store.on_gap(Arc::new(move || gaps.everyone(|_, mailbox| mailbox.log_has_more())));
        let cold_reads = Arc::new(Semaphore::new(if store.is_far() { FAR_READS_MAX } else { COLD_READS_MAX }));
        let backups = Arc::new(Semaphore::new(1));
        let (presence, listeners, middleware) = (Presence::default(), Listeners::default(), Arc::default());
        let portals = settings.portals.map(|told| Portals::new(told.in_turn, told.bounds, metrics.clone()));
        if let Some(portals) = &portals {
            if let Some(cluster) = &cluster {
                portals.stand_among(&**cluster);
            }
            listeners.add(portals.clone());
        }
        let hub = Arc::new(Self {
            settings,
            store,
            metrics,
            registry,
            presence,
            cluster,
            listeners,
            middleware,
            portals,
            appended,
            cold_reads,
            backups,
            over: watch::Sender::new(false),
        });
        hub.hear_others();
        hub
    }

    /// Sets the middleware; before anything happens, and once.
    pub fn install(&self, middleware: Vec<Arc<dyn Middleware>>) {
        self.middleware.set(middleware);
        if let (true, Some(portals)) = (self.middleware.any(), &self.portals) {
            let chain = self.middleware.clone();
            portals.on_change(Box::new(move |portal, joins| {
                chain.each(None, |one| if joins { one.on_portal_join(portal) } else { one.on_portal_leave(portal) });
            }));
        }
    }

    /// The middleware.
    #[must_use]
    pub fn middleware(&self) -> &Chain {
        &self.middleware
    }

    /// Leaves an unsynced message for one connection; false if it is gone. A message too many drops the oldest.
    pub fn send_to_connection(&self, connection: ConnectionId, payload: &Payload) -> bool {
        let Some(mailbox) = self.registry.mailbox(connection) else { return false };
        self.metrics.unsynced_dropped.inc_by(mailbox.put(payload));
        true
    }

    /// Tells one connection to go; false if it is gone.
    pub fn leave_connection(&self, connection: ConnectionId, why: Leave) -> bool {
        self.registry.mailbox(connection).is_some_and(|mailbox| {
            mailbox.leave(why);
            true
        })
    }

    /// From here on `listener` is told what happens to clients. For as long as there is a hub.
    pub fn listen(&self, listener: Arc<dyn Listener>) {
        self.listeners.add(listener);
    }

    /// The pool of portals; `None` where there are to be none.
    #[must_use]
    pub fn portals(&self) -> Option<&Arc<Portals>> {
        self.portals.as_ref()
    }

    /// From here on `listener` is told which users have new messages in their logs, on the thread that commits them: it must
    /// not wait for anything. Only the first that is set is told.
    pub fn on_appended(&self, listener: impl Fn(&[UserId]) + Send + Sync + 'static) {
        _ = self.appended.set(Arc::new(listener));
    }

    /// Whether messages are kept for users who are away.
    #[must_use]
    pub fn keeps(&self) -> bool {
        self.settings.sync.is_some()
    }

    /// Connections in all, authenticated or not.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.registry.count()
    }

    /// Says that nothing more will happen to clients: the last of them has gone. Who is told of them comes to an end too.
    pub fn finish(&self) {
        self.over.send_replace(true);
    }

    /// Becomes true when nothing more will happen to clients, and all that has happened has been told.
    #[must_use]
    pub fn over(&self) -> watch::Receiver<bool> {
        self.over.subscribe()
    }

    /// Tells every connection to go.
    pub fn everyone_leave(&self, why: Leave) {
        self.registry.everyone(|_, mailbox| mailbox.leave(why));
    }

    /// So many sessions of this user are here now. Under the lock of the registry, so that of two the later one holds.
    fn counts(&self, user: &UserId, sessions: usize) {
        self.presence.counts(user, sessions);
        if let Some(cluster) = &self.cluster {
            cluster.set_local_connections(user, sessions);
        }
    }

    /// A session is over. Called when it is dropped.
    fn end(&self, user: &UserId, seat: &Seat) {
        self.metrics.sessions.dec();
        self.registry.rise(user, seat.connection, |sessions| self.counts(user, sessions));
        self.seen(user);
    }

    fn seen(&self, user: &UserId) {
        if self.settings.store_connected_users {
            let seen = Some(SystemTime::now());
            self.registry.with_hold(user, |hold| self.store.note(user, Note { hold, seen, ..Note::default() }));
        }
    }

    /// A client has received `range` of `user`'s log, both ends included.
    fn received(&self, user: &UserId, device: Option<&DeviceId>, range: (Seq, Seq)) {
        let (received, device) = (Some(range), device.cloned());
        self.registry.with_hold(user, |hold| self.store.note(user, Note { device, received, hold, seen: None }));
    }

    /// Finds out why something is not there, where that has to wait for a network.
    fn missed(
        &self,
        user: UserId,
        device: Option<DeviceId>,
        from: Seq,
        to: Seq,
    ) -> BoxFuture<'static, Result<Vec<Missed>, StoreError>> {
        let store = self.store.clone();
        Box::pin(on_disk_thread(move || store.missed(&user, device.as_ref(), from, to)))
    }

    /// Reads from the log where that may have to wait for a disk.
    fn read(&self, user: UserId, after: Seq, limit: ReadLimit) -> BoxFuture<'static, Result<Found, StoreError>> {
        let (store, turn) = (self.store.clone(), self.cold_reads.clone());
        Box::pin(async move {
            // Never closed, so a permit always comes.
            let turn = turn.acquire_owned().await.expect("the semaphore is never closed");
            if let Some(reading) = store.read_far(&user, after, limit) {
                return reading.await;
            }
            on_disk_thread(move || {
                // Given back when the disk is done, also if nobody waits for it any more.
                let _turn = turn;
                store.read(&user, after, limit)
            })
            .await
        })
    }
}

/// A hub over a store in memory, for tests of who speaks for one.
#[cfg(test)]
pub(crate) fn for_test(metrics: Arc<Metrics>) -> Arc<Hub> {
    tests::over(metrics, Duration::ZERO)
}

/// Runs what may wait for a disk away from the event loop.
async fn on_disk_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        // Cancelled only when the runtime stops; a panic below is our fault and ends as a failed read, not as a hang.
        Err(error) => Err(StoreError::Damaged(format!("a read did not end: {error}").into())),
    }
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hub").field("connections", &self.connections()).finish_non_exhaustive()
    }
}
