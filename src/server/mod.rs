//! The server: builds everything else, listens, and stops in order.
//!
//! - [`listener`]: taking connections in, HTTP and WebSocket on one port
//! - [`slots`]: who has a place
//! - [`upgrade`]: from an HTTP request to a WebSocket
//! - [`socket`]: the WebSocket itself
//! - [`connection`]: the life of a connection, with its steps in [`inbound`], [`outbound`] and [`farewell`]
//! - [`wire`]: the port of the Redis protocol, with [`portal_ids`], what it remembers
//! - [`heartbeat`]: the one question and answer behind liveness and receipts
//! - [`shutdown`]: the order in which everything stops

mod budget;
mod connection;
mod farewell;
mod heartbeat;
mod inbound;
mod listener;
mod mix_up;
mod outbound;
mod portal_ids;
mod shared;
mod shutdown;
mod slots;
mod socket;
mod upgrade;
mod wire;

use std::{
    future::Future,
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{net::TcpListener, sync::watch};

use crate::{
    auth::{self, ApiKeys},
    config::{self, Config, ConfigError},
    http::{Api, Http},
    hub::{Hub, MailboxBounds, PortalSettings, Settings, Store, StoreError, SyncSettings, portals},
    metrics::Metrics,
    store::{
        Durability, Limits, Overflow,
        disk::{DiskOptions, open},
    },
    wire::Wire,
};
pub use listener::bind;
use portal_ids::PortalIds;
use shared::Shared;
use slots::Slots;
use wire::WirePort;

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
    /// The listener has gone wrong.
    #[error("cannot listen: {0}")]
    Listen(#[from] io::Error),
}

/// A server that has opened its store and is ready to serve.
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    shared: Arc<Shared>,
    store: Arc<dyn Store>,
    http: Http,
    wire: Option<WirePort>,
}

impl Server {
    /// Opens the store and builds a server that will listen on `listener`, and on `wire.port` where that is set. Checks the configuration first.
    ///
    /// # Errors
    /// When the configuration does not hold, or authentication or store cannot be set up.
    pub async fn start(config: Config, listener: TcpListener) -> Result<Self, ServerError> {
        config.validate()?;
        // Before the store is opened: of two servers started by mistake the second must not touch the first's.
        let wire = WirePort::bind(&config.wire)?;
        let options = DiskOptions {
            namespace: config.namespace.clone(),
            durability: durability(config.store.durability),
            cache_bytes: config.store.cache_bytes,
            queue: config.limits.queue,
            limits: limits(&config),
            ..DiskOptions::new(&config.store.path)
        };
        // Opening replays a journal: not for the event loop.
        let store = tokio::task::spawn_blocking(move || open(options)).await;
        let store = store.map_err(|error| StoreError::Damaged(format!("opening did not end: {error}").into()))??;
        let ids = PortalIds::in_store(&config.store.path);
        Self::build(config, listener, store, wire, Some(ids))
    }

    /// Builds a server over a store that is open already.
    ///
    /// # Errors
    /// When the configuration does not hold, or authentication cannot be set up.
    pub fn over(config: Config, listener: TcpListener, store: Arc<dyn Store>) -> Result<Self, ServerError> {
        config.validate()?;
        let wire = WirePort::bind(&config.wire)?;
        Self::build(config, listener, store, wire, None)
    }

    fn build(
        config: Config,
        listener: TcpListener,
        store: Arc<dyn Store>,
        wire: Option<TcpListener>,
        ids: Option<PortalIds>,
    ) -> Result<Self, ServerError> {
        let authenticator = auth::from_config(&config.authentication)?;
        let metrics = Arc::new(Metrics::new());
        let hub = Hub::new(settings(&config), store.clone(), metrics.clone());
        let http = Http::new(Api {
            hub: hub.clone(),
            keys: ApiKeys::new(&config.api),
            metrics: metrics.clone(),
            limits: config.limits.clone(),
        });
        let address = listener.local_addr()?;
        let wire = match wire {
            None => None,
            Some(listener) => {
                let remembered = ids.as_ref().map(PortalIds::read).unwrap_or_default();
                let wire = Wire::new(&config, hub.clone(), metrics.clone(), remembered);
                Some(WirePort::new(listener, &config.wire, wire, metrics.clone(), ids)?)
            }
        };
        let shared = Arc::new(Shared::new(config, hub, metrics, authenticator));
        Ok(Self { listener, address, shared, store, http, wire })
    }

    /// Where the server listens.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Where the server speaks the Redis protocol; `None`: nowhere.
    #[must_use]
    pub fn wire_addr(&self) -> Option<SocketAddr> {
        self.wire.as_ref().map(|wire| wire.address)
    }

    /// Serves until `shutdown` resolves, then stops in order: nothing new is taken, requests under way are answered,
    /// clients are told (1001), the store is closed. Takes at most ten seconds for that.
    ///
    /// # Errors
    /// When the store fails while serving: clients are told (1011), and nothing more is promised.
    pub async fn run(self, shutdown: impl Future<Output = ()> + Send) -> Result<(), ServerError> {
        let Self { listener, shared, store, http, wire, .. } = self;
        let limits = &shared.config.limits;
        let slots = Slots::new(limits.connections, limits.connections_per_address);
        let (stop, stopped) = watch::channel(false);
        let accepting = tokio::spawn(listener::accept(listener, shared.clone(), http, slots.clone(), stopped.clone()));
        let speaking = wire.as_ref().map(|wire| wire.wire.clone());
        let wire = wire.map(|wire| wire.open(stopped));
        let watching = tokio::spawn(look_around(shared.hub.clone(), speaking));
        let failed = tokio::select! {
            () = shutdown => None,
            error = store.failure() => Some(error),
        };
        watching.abort();
        shutdown::stop(&shared.hub, &store, &slots, &stop, accepting, wire, failed).await.map_err(ServerError::from)
    }
}

/// Says so when the disk keeps a commit waiting: the server can do nothing about it, but somebody should know. And looks
/// after the portals.
async fn look_around(hub: Arc<Hub>, wire: Option<Arc<Wire>>) {
    let mut waiting = false;
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        if let Some(portals) = hub.portals() {
            portals.sweep(Instant::now());
        }
        if let Some(wire) = &wire {
            wire.sweep(Instant::now());
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
