//! Connected clients and their sessions. The hub uses no socket and no wire format, and never waits for a socket.
//!
//! - [`dispatch`](Hub::dispatch): sends a backend's message to its recipients
//! - [`mailbox`]: signals and unsynced messages for one connection
//! - [`registry`]: every connection, and the sessions of every user
//! - [`connection`]: one connection, from before its authentication, and the events it causes
//! - [`session`]: a cursor on a user's log
//! - [`presence`]: online users, ordered by id
//! - [`queries`]: read-only queries about users, and readiness
//! - `monitoring`: figures for monitoring
//! - [`cluster`]: other servers, if there are any
//! - [`events`]: client events, passed to every listener
//! - [`portals`]: backends that receive client events, each event by one of them
//! - [`observers`]: copies of every client event, for people who watch
//! - [`drain`](Hub::drain), [`drain_state`]: no new connections, and the present ones closed over a time
//! - [`backup`](Hub::backup): the whole store, as a stream of chunks

mod backup;
mod cluster;
mod connection;
mod dispatch;
mod drain;
mod drain_state;
mod events;
mod mailbox;
mod monitoring;
mod observers;
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
    connection::ConnectionHandle,
    dispatch::{CommittedBatch, Dispatch, OptionsError, Outcome, PreparedDispatch},
    events::{ConnectionId, Event, InboundMessage, Listener, SERVER_RESTART},
    mailbox::{CLOSE_REASON_BYTES_MAX, CloseReason, MailboxBounds, Signals},
    observers::{Observed, Observer},
    queries::{DeviceReport, UserReport},
    session::{Attach, Batch, Resumed, SentPosition, Session},
};
pub use crate::store::{
    Entry, Erasure, EventKind, Gap, Outbox, OutboxEvent, OutboxOptions, QueuedEvent, ReadLimit, Rejected,
    RejectionReason, Store, StoreError,
};
use crate::{
    cluster::Cluster,
    message::{DeviceId, Payload, Seq, UserId},
    metrics::Metrics,
    middleware::{Chain, Middleware},
    store::{CommitListener, ReadResult, SessionReport},
};
use events::{Listeners, NO_CONNECTION};
use observers::Observers;
use portals::{Bounds, EventOrigin, Portals};
use presence::Presence;
use registry::{Registry, SessionEntry};

/// Concurrent reads from the disk, over all sessions. Further sessions queue in order, each for one batch.
///
/// A session at the head of its log reads from memory and never queues here. A thousand users who reconnect at once
/// must not take every thread from live delivery. Measured on two cores during twenty replays, with 4, 2 and 1 reads: a
/// live message took 1.4, 0.5 and 0.5 ms longer. The replays got 456, 427 and 295 MB/s (`cargo bench --bench
/// fairness`).
const COLD_READS_MAX: usize = 2;

/// The same limit for a remote store, whose reads wait for a network and occupy neither disk nor thread.
const REMOTE_READS_MAX: usize = 64;

/// Settings of the hub.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Store messages for offline users; `None`: sync is off.
    pub sync: Option<SyncSettings>,
    /// Send broadcasts to authenticated connections only.
    pub authentication_required: bool,
    /// Record when users connect and disconnect.
    pub store_connected_users: bool,
    /// Bounds of each connection's mailbox.
    pub mailbox: MailboxBounds,
    /// Distribution of client events to portals; `None`: no portals.
    pub portals: Option<PortalSettings>,
}

/// Settings of the distribution of client events to portals.
#[derive(Clone, Copy, Debug)]
pub struct PortalSettings {
    /// Round robin, rather than at random.
    pub round_robin: bool,
    /// Bounds of the portals' queues.
    pub bounds: Bounds,
}

/// Settings of message sync.
#[derive(Clone, Copy, Debug)]
pub struct SyncSettings {
    /// Interval between backlog entries of a session. Zero: no pacing.
    pub redelivery_interval: Duration,
}

/// State that all connections share.
pub struct Hub {
    settings: Settings,
    store: Arc<dyn Store>,
    metrics: Arc<Metrics>,
    registry: Arc<Registry>,
    presence: Presence,
    cluster: Option<Arc<dyn Cluster>>,
    listeners: Listeners,
    observers: Arc<Observers>,
    middleware: Arc<Chain>,
    portals: Option<Arc<Portals>>,
    /// Called after each commit, once the sessions are woken.
    append_listener: Arc<OnceLock<CommitListener>>,
    cold_reads: Arc<Semaphore>,
    /// One backup at a time.
    backups: Arc<Semaphore>,
    drain: drain_state::DrainState,
    /// Whether the listeners have received the last client event.
    drained: watch::Sender<bool>,
}

impl Hub {
    /// Creates a hub over `store` and listens to its commits; with `cluster`, as one of several servers.
    #[must_use]
    pub fn new(
        settings: Settings,
        store: Arc<dyn Store>,
        metrics: Arc<Metrics>,
        cluster: Option<Arc<dyn Cluster>>,
    ) -> Arc<Self> {
        let registry = Arc::new(Registry::new());
        let append_listener: Arc<OnceLock<CommitListener>> = Arc::default();
        let (sessions, listener) = (registry.clone(), append_listener.clone());
        store.on_commit(Arc::new(move |users| {
            users.iter().for_each(|user| sessions.wake(user));
            if let Some(listener) = listener.get() {
                listener(users);
            }
        }));
        let resync = registry.clone();
        store.on_resync(Arc::new(move || resync.for_each_connection(|_, mailbox| mailbox.signal_log())));
        let cold_reads = Arc::new(Semaphore::new(if store.is_remote() { REMOTE_READS_MAX } else { COLD_READS_MAX }));
        let backups = Arc::new(Semaphore::new(1));
        let (presence, listeners, middleware) = (Presence::default(), Listeners::default(), Arc::default());
        let portals =
            settings.portals.map(|portals| Portals::new(portals.round_robin, portals.bounds, metrics.clone()));
        if let Some(portals) = &portals {
            if let Some(cluster) = &cluster {
                portals.join_cluster(&**cluster);
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
            observers: Arc::default(),
            middleware,
            portals,
            append_listener,
            cold_reads,
            backups,
            drain: drain_state::DrainState::default(),
            drained: watch::Sender::new(false),
        });
        hub.subscribe_to_cluster();
        hub
    }

    /// Sets the middleware. Called once, before the first connection.
    pub fn install(&self, middleware: Vec<Arc<dyn Middleware>>) {
        self.middleware.set(middleware);
        if let (true, Some(portals)) = (self.middleware.any(), &self.portals) {
            let chain = self.middleware.clone();
            portals.on_change(Box::new(move |portal, joins| {
                chain.call_each(None, |middleware| {
                    if joins { middleware.on_portal_join(portal) } else { middleware.on_portal_leave(portal) }
                });
            }));
        }
    }

    /// Returns the middleware.
    #[must_use]
    pub fn middleware(&self) -> &Chain {
        &self.middleware
    }

    /// Puts an unsynced message into one connection's mailbox; false if the connection has ended.
    ///
    /// At the mailbox's bounds the oldest message is dropped.
    pub fn send_to_connection(&self, connection: ConnectionId, payload: &Payload) -> bool {
        let Some(mailbox) = self.registry.mailbox(connection) else { return false };
        self.metrics.unsynced_dropped.inc_by(mailbox.put(payload));
        true
    }

    /// Requests one connection to close; false if it has ended or is closing.
    pub fn close_connection(&self, connection: ConnectionId, reason: CloseReason) -> bool {
        self.registry.mailbox(connection).is_some_and(|mailbox| mailbox.close(reason))
    }

    /// Adds a listener for client events, for the lifetime of the hub.
    pub fn listen(&self, listener: Arc<dyn Listener>) {
        self.listeners.add(listener);
    }

    /// Adds an observer of the client events of this server; `None` at the limit of observers.
    #[must_use]
    pub fn observe(&self) -> Option<Observer> {
        self.observers.add()
    }

    /// Passes a client event to the listeners and observers.
    fn notify(&self, connection: ConnectionId, event: Event<'_>) {
        self.listeners.notify(connection, event);
        let origin = || self.portals.as_deref().map_or(EventOrigin::Local, Portals::origin);
        self.observers.notify(connection, origin, event);
    }

    /// Notifies the listeners of the users whom a kill of the previous start has disconnected.
    ///
    /// Call it once, when all listeners are added, and before the first connection. So a listener receives these
    /// disconnections before it receives that one of these users is back.
    pub fn report_interrupted(&self) {
        let users = self.store.take_interrupted();
        if users.is_empty() {
            return;
        }
        tracing::info!(
            users = users.len(),
            "the previous start ended without closing the connections of these users; their disconnection is reported now"
        );
        if let Some(portals) = &self.portals {
            // No portal is connected yet. The queue waits for the first one.
            portals.reserve_queue();
        }
        for user in &users {
            self.notify(NO_CONNECTION, Event::RestartDisconnection { user });
        }
    }

    /// Returns the pool of portals; `None` if portals are disabled.
    #[must_use]
    pub fn portals(&self) -> Option<&Arc<Portals>> {
        self.portals.as_ref()
    }

    /// Sets the listener for users whose logs have new entries. Only the first call has an effect.
    ///
    /// The listener is called on the commit thread, so it must not wait.
    pub fn on_appended(&self, listener: impl Fn(&[UserId]) + Send + Sync + 'static) {
        _ = self.append_listener.set(Arc::new(listener));
    }

    /// Reports whether messages are stored for offline users.
    #[must_use]
    pub fn is_sync_enabled(&self) -> bool {
        self.settings.sync.is_some()
    }

    /// Returns the number of connections, authenticated or not.
    #[must_use]
    pub fn connection_count(&self) -> usize {
        self.registry.connection_count()
    }

    /// Marks the end of client events: the last connection has closed. Receivers of [`Hub::drained`] end then.
    pub fn mark_drained(&self) {
        self.drained.send_replace(true);
    }

    /// Returns a flag that becomes true once the listeners have received the last client event.
    #[must_use]
    pub fn drained(&self) -> watch::Receiver<bool> {
        self.drained.subscribe()
    }

    /// Requests every connection to close.
    pub fn close_all(&self, reason: CloseReason) {
        self.registry.for_each_connection(|_, mailbox| _ = mailbox.close(reason.clone()));
    }

    /// Records a user's number of local sessions. Called under the registry's lock, so counts arrive in order.
    fn set_session_count(&self, user: &UserId, sessions: usize) {
        self.presence.set_session_count(user, sessions);
        if self.settings.store_connected_users {
            self.store.set_connections(user, sessions);
        }
        if let Some(cluster) = &self.cluster {
            cluster.set_local_connections(user, sessions);
        }
    }

    /// Ends a session. Called when it is dropped.
    fn end_session(&self, user: &UserId, entry: &SessionEntry) {
        self.metrics.sessions.dec();
        // Under the registry's lock: once no session is registered, no report follows. An erasure relies on that.
        self.registry.unregister_session(user, entry.connection, |sessions, lowest| {
            self.set_session_count(user, sessions);
            self.record_seen_above(user, lowest);
        });
    }

    /// Records that the user has connected or disconnected now.
    fn record_seen(&self, user: &UserId) {
        self.registry.with_lowest_position(user, |lowest| self.record_seen_above(user, lowest));
    }

    /// Records that the user has connected or disconnected now, and the lowest position of the user's sessions.
    fn record_seen_above(&self, user: &UserId, lowest: Option<Seq>) {
        if self.settings.store_connected_users {
            let seen = Some(SystemTime::now());
            self.store.report(user, SessionReport { hold: lowest, seen, ..SessionReport::default() });
        }
    }

    /// Records that a client has received `range` of `user`'s log, both ends included.
    fn record_acknowledged(&self, user: &UserId, device: Option<&DeviceId>, range: (Seq, Seq)) {
        let (acknowledged, device) = (Some(range), device.cloned());
        self.registry.with_lowest_position(user, |lowest| {
            self.store.report(user, SessionReport { device, acknowledged, hold: lowest, seen: None });
        });
    }

    /// Returns the reasons of missing sequences from a remote store.
    fn explain_gaps(
        &self,
        user: UserId,
        device: Option<DeviceId>,
        from: Seq,
        to: Seq,
    ) -> BoxFuture<'static, Result<Vec<Gap>, StoreError>> {
        let store = self.store.clone();
        Box::pin(run_blocking(move || store.explain_gaps(&user, device.as_ref(), from, to)))
    }

    /// Reads entries that are not in memory, from the disk or a remote store.
    fn read(&self, user: UserId, after: Seq, limit: ReadLimit) -> BoxFuture<'static, Result<ReadResult, StoreError>> {
        let (store, permits) = (self.store.clone(), self.cold_reads.clone());
        Box::pin(async move {
            let permit = permits.acquire_owned().await.expect("the semaphore is never closed");
            if let Some(reading) = store.read_remote(&user, after, limit) {
                return reading.await;
            }
            run_blocking(move || {
                // Released when the disk is done, also if the caller has dropped the future.
                let _permit = permit;
                store.read(&user, after, limit)
            })
            .await
        })
    }
}

/// Creates a hub over a store in memory, for tests of other modules.
#[cfg(test)]
pub(crate) fn for_test(metrics: Arc<Metrics>) -> Arc<Hub> {
    tests::hub_with_metrics(metrics, Duration::ZERO)
}

/// Runs blocking store access away from the event loop.
async fn run_blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        // Cancelled only when the runtime stops. A panic in `work` ends as a failed read, not as a hang.
        Err(error) => {
            Err(StoreError::Damaged(format!("a task that reads the store panicked or was cancelled: {error}").into()))
        }
    }
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hub").field("connections", &self.connection_count()).finish_non_exhaustive()
    }
}
