//! The server: builds everything else, listens, and stops in order.
//!
//! - [`builder`]: how it is put together; [`attach`]: as part of somebody's router
//! - [`handler`]: what a program does when something happens to clients, and [`calls`], which calls it
//! - [`peer`]: a client as that program sees it; [`handle`]: the server as it sees it
//! - [`listener`]: taking connections in, HTTP and WebSocket on one port
//! - [`slots`]: who has a place
//! - [`upgrade`]: from an HTTP request to a WebSocket
//! - [`socket`]: the WebSocket itself
//! - [`connection`]: the life of a connection, with its steps in [`inbound`], [`outbound`] and [`farewell`]
//! - [`heartbeat`]: the one question and answer behind liveness and receipts
//! - [`shutdown`]: the order in which everything stops

mod attach;
mod budget;
mod builder;
mod calls;
mod connection;
mod farewell;
mod handle;
mod handler;
mod heartbeat;
mod inbound;
mod listener;
mod mix_up;
mod outbound;
mod peer;
mod shared;
mod shutdown;
mod slots;
mod socket;
mod upgrade;

use std::{
    future::Future,
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{net::TcpListener, sync::watch, task::JoinHandle, time::timeout};

pub use self::{
    attach::Attached,
    builder::Builder,
    handle::{Handle, SendError},
    handler::Handler,
    listener::bind,
    peer::{CloseCodeError, Peer, Received},
};
pub use crate::hub::{DeviceReport, Outcome, Reason, Rejected, StoreError, UserReport};
use crate::{
    auth::{self, ApiKeys, Authenticator},
    config::{self, Config, ConfigError},
    http::{Api, Http},
    hub::{Hub, MailboxBounds, PortalSettings, Settings, Store, SyncSettings, portals},
    metrics::Metrics,
    outgoing::UrlError,
    store::{
        Durability, Limits, Overflow,
        disk::{DiskOptions, open},
    },
    webhook::{self, Webhook},
};
use builder::{Adds, BeforeExit};
use calls::{Calls, Telling};
use handler::Called;
use shared::Shared;
use slots::Slots;

/// How long what is to be done before the end may take.
const BEFORE_EXIT_MAX: Duration = Duration::from_secs(5);

/// How long handlers may take over what has happened to clients by the end.
const HANDLERS_MAX: Duration = Duration::from_secs(2);

/// Why a server did not start, or stopped by itself.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// The configuration contradicts itself.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The authentication cannot be set up: a key file is missing or is no key, mostly.
    #[error(transparent)]
    Auth(#[from] auth::AuthSetupError),
    /// The store cannot be opened, or has failed while the server ran.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The webhook cannot be set up.
    #[error("portal.webhook: its address {0}")]
    Webhook(#[from] UrlError),
    /// The listener has gone wrong.
    #[error("cannot listen: {0}")]
    Listen(#[from] io::Error),
}

/// A server that has opened its store, listens, and is ready to serve.
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    parts: Assembled,
}

/// Everything of a server but how clients get to it.
struct Assembled {
    shared: Arc<Shared>,
    store: Arc<dyn Store>,
    http: Http,
    before_exit: Option<BeforeExit>,
    webhook: Option<Webhook>,
}

impl Server {
    /// Puts a server together.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Opens the store and builds a server that will listen on `listener`, as configured and without handlers of its own.
    ///
    /// # Errors
    /// When the configuration does not hold, or authentication or store cannot be set up.
    pub async fn start(config: Config, listener: TcpListener) -> Result<Self, ServerError> {
        Self::builder().config(config).listener(listener).start().await
    }

    /// Where the server listens.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// What can be done with the server while it runs, and before.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.parts.handle()
    }

    /// Serves until `shutdown` resolves, then stops in order: nothing new is taken, requests under way are answered,
    /// clients are told (1001), handlers come to their end, the store is closed. Takes at most twelve seconds for that, and
    /// five more where there is something to do before it ([`Builder::before_exit`]).
    ///
    /// # Errors
    /// When the store fails while serving: clients are told (1011), and nothing more is promised.
    pub async fn run(self, shutdown: impl Future<Output = ()> + Send) -> Result<(), ServerError> {
        let Self { listener, parts, .. } = self;
        let limits = &parts.shared.config.limits;
        let slots = Slots::new(limits.connections, limits.connections_per_address);
        let (stop, stopped) = watch::channel(false);
        let (shared, http) = (parts.shared.clone(), parts.http.clone());
        let accepting = tokio::spawn(listener::accept(listener, shared, http, slots.clone(), stopped));
        parts.run(shutdown, &slots, &stop, accepting).await
    }
}

impl Assembled {
    fn new(
        config: Config,
        store: Arc<dyn Store>,
        authenticator: Option<Arc<dyn Authenticator>>,
        handlers: Vec<Arc<dyn Called>>,
        middleware: Vec<Adds>,
        before_exit: Option<BeforeExit>,
    ) -> Result<Self, ServerError> {
        let metrics = Arc::new(Metrics::new());
        let hub = Hub::new(settings(&config), store.clone(), metrics.clone());
        let http = Http::new(Api {
            hub: hub.clone(),
            keys: ApiKeys::new(&config.api),
            metrics: metrics.clone(),
            limits: config.limits.clone(),
        });
        let webhook = config.portal.webhook.as_ref().zip(store.outbox());
        let webhook =
            webhook.map(|(to, outbox)| Webhook::new(to, &hub, store.clone(), outbox, metrics.clone())).transpose()?;
        let calls = (!handlers.is_empty()).then(|| Calls::new(handlers));
        if let Some(calls) = &calls {
            hub.listen(Arc::new(Telling(calls.clone())));
        }
        let shared = Arc::new(Shared::new(config, hub, metrics, authenticator, calls));
        let parts = Self { shared, store, http, before_exit, webhook };
        let handle = parts.handle();
        parts.shared.hub.install(middleware.into_iter().map(|make| make(&handle)).collect());
        if let Some(calls) = &parts.shared.calls {
            calls.belong_to(handle);
        }
        Ok(parts)
    }

    fn handle(&self) -> Handle {
        Handle { hub: Arc::downgrade(&self.shared.hub), recipients_max: self.shared.config.limits.recipients }
    }

    /// Watches over it until the end, and ends it.
    async fn run(
        self,
        shutdown: impl Future<Output = ()> + Send,
        slots: &Slots,
        stop: &watch::Sender<bool>,
        accepting: JoinHandle<()>,
    ) -> Result<(), ServerError> {
        let Self { shared, store, before_exit, webhook, .. } = self;
        let telling = webhook.map(Webhook::start);
        let watching = tokio::spawn(look_around(shared.hub.clone()));
        let mut failed = tokio::select! {
            () = shutdown => None,
            error = store.failure() => Some(error),
        };
        if let (None, Some(before_exit)) = (&failed, before_exit) {
            // A task of its own, so that a panic in it is its own.
            let last = timeout(BEFORE_EXIT_MAX, tokio::spawn(async { before_exit().await }));
            failed = tokio::select! {
                done = last => {
                    match done {
                        Ok(Ok(())) => {}
                        Ok(Err(panic)) => tracing::error!("what was to be done before the end did not end: {panic}"),
                        Err(_) => tracing::warn!("what was to be done before the end took too long; stopping all the same"),
                    }
                    None
                }
                error = store.failure() => Some(error),
            };
        }
        watching.abort();
        let stopped = shutdown::stop(&shared, &store, slots, stop, accepting, failed).await;
        // Last: clients that went are in the outbox now, for the next start.
        drop(telling);
        stopped.map_err(ServerError::from)
    }
}

/// Opens the store that is configured. Replays a journal: not for the event loop.
async fn open_store(config: &Config) -> Result<Arc<dyn Store>, StoreError> {
    let options = DiskOptions {
        namespace: config.namespace.clone(),
        durability: durability(config.store.durability),
        cache_bytes: config.store.cache_bytes,
        queue: config.limits.queue,
        limits: limits(config),
        outbox: config.portal.webhook.as_ref().map(webhook::outbox_options),
        ..DiskOptions::new(&config.store.path)
    };
    let store = tokio::task::spawn_blocking(move || open(options)).await;
    store.map_err(|error| StoreError::Damaged(format!("opening did not end: {error}").into()))?
}

/// Resolves when the server is to stop, or is gone.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    _ = stop.wait_for(|stop| *stop).await;
}

/// Says so when the disk keeps a commit waiting: the server can do nothing about it, but somebody should know. And looks
/// after the portals.
async fn look_around(hub: Arc<Hub>) {
    let mut waiting = false;
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        if let Some(portals) = hub.portals() {
            portals.sweep(Instant::now());
        }
        match hub.ready() {
            Err(reason) if !waiting => {
                waiting = true;
                tracing::error!("{reason}");
            }
            Ok(()) if waiting => {
                waiting = false;
                tracing::info!("commits go through again");
            }
            _ => {}
        }
    }
}

fn durability(durability: config::Durability) -> Durability {
    match durability {
        config::Durability::Always => Durability::Always,
        config::Durability::Interval(interval) => Durability::Interval(interval),
        config::Durability::Never => Durability::Never,
    }
}

fn limits(config: &Config) -> Limits {
    let (sync, store) = (&config.sync, &config.store);
    let unless_zero = |duration: Duration| (!duration.is_zero()).then_some(duration);
    Limits {
        messages: sync.max_messages,
        bytes: sync.max_bytes,
        age: unless_zero(sync.max_age),
        overflow: match sync.overflow {
            config::Overflow::Reject => Overflow::Reject,
            config::Overflow::DropOldest => Overflow::DropOldest,
        },
        device_age: unless_zero(sync.device_max_age),
        devices: sync.max_devices,
        ids_window: config.api.id_window,
        ids: config.api.ids,
        store_bytes: (store.max_bytes > 0).then_some(store.max_bytes),
        free_bytes: store.min_free,
    }
}

fn settings(config: &Config) -> Settings {
    let redelivery_interval = config.sync.redelivery_interval;
    let bounds = portals::Bounds { patience: config.limits.write_timeout, ..portals::Bounds::default() };
    let portals = PortalSettings { in_turn: config.portal.distribute_load, bounds };
    Settings {
        sync: config.sync.enabled.then_some(SyncSettings { redelivery_interval }),
        authentication_required: config.authentication.required,
        store_connected_users: config.authentication.store_connected_users,
        mailbox: MailboxBounds { messages: config.limits.unsynced_messages, bytes: config.limits.unsynced_bytes },
        portals: config.portal.enabled.then_some(portals),
    }
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("address", &self.address).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_configured_by_default_is_what_the_store_does_by_default() {
        assert_eq!(limits(&Config::default()), Limits::default());
    }
}
