//! The server: builds everything else, listens, and stops in order.
//!
//! - [`builder`], [`assembled`]: how it is put together, and run; [`attach`]: as part of somebody's router
//! - [`handler`]: what a program does when something happens to clients, and [`calls`], which calls it
//! - [`peer`]: a client as that program sees it; [`handle`]: the server as it sees it
//! - [`listener`]: taking connections in, HTTP and WebSocket on one port
//! - [`slots`]: places counted · [`descriptors`]: how many there are · [`activity`]: which connection gives up its own
//! - [`http_io`]: the deadlines of an HTTP connection, and how it closes · [`unreadable`]: refusals of hyper's own
//! - [`upgrade`]: from an HTTP request to a WebSocket
//! - [`socket`]: the WebSocket itself; [`fragments`] and [`close_frame`] see what its library does not report
//! - [`connection`]: the life of a connection, with its steps in [`inbound`], [`outbound`] and [`farewell`]
//! - [`wire`]: the port of the Redis protocol, with [`portal_ids`], what it remembers
//! - [`heartbeat`]: the one question and answer behind liveness and receipts
//! - [`hold`]: holds back deliveries until the client has answered the op 1 that follows op 22
//! - [`shutdown`]: the order in which everything stops

mod activity;
mod assembled;
mod attach;
mod budget;
mod builder;
mod calls;
mod close_frame;
mod connection;
mod descriptors;
mod farewell;
mod fragments;
mod handle;
mod handler;
mod heartbeat;
mod hold;
mod http_io;
mod inbound;
mod listener;
mod mix_up;
mod outbound;
mod peer;
mod portal_ids;
mod shared;
mod shutdown;
mod slots;
mod socket;
mod unreadable;
mod upgrade;
mod wire;

use std::{future::Future, io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{net::TcpListener, sync::watch};

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
    auth,
    cluster::Cluster,
    config::{self, Config, ConfigError},
    hub::{MailboxBounds, PortalSettings, Settings, Store, SyncSettings, portals},
    outgoing::UrlError,
    store::{
        Durability, Limits, Overflow,
        disk::{DiskOptions, open},
    },
    webhook,
};
use assembled::Assembled;
use listener::Places;

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

    /// Where the server speaks the Redis protocol; `None`: nowhere.
    #[must_use]
    pub fn wire_addr(&self) -> Option<SocketAddr> {
        self.parts.wire.as_ref().map(|wire| wire.address)
    }

    /// Serves until `shutdown` resolves, then stops in order: nothing new is taken, requests under way are answered, clients
    /// are told (1001) and heard until they know, portals are told of the last of them, handlers come to their end, the
    /// store is closed. Takes at most twelve seconds for that, and five more where there is something to do before it
    /// ([`Builder::before_exit`]).
    ///
    /// # Errors
    /// When the store fails while serving: clients are told (1011), and nothing more is promised.
    pub async fn run(self, shutdown: impl Future<Output = ()> + Send) -> Result<(), ServerError> {
        let Self { listener, parts, .. } = self;
        let per_address = parts.shared.config.limits.connections_per_address;
        let places = Arc::new(Places::new(parts.descriptors.connections, per_address));
        let slots = places.slots.clone();
        let (stop, stopped) = watch::channel(false);
        let (shared, http) = (parts.shared.clone(), parts.http.clone());
        let accepting = tokio::spawn(listener::accept(listener, shared, http, places, stopped));
        parts.run(shutdown, &slots, &stop, accepting).await
    }
}

/// What is opened for a server: its store, and the other servers where it shares that with any.
type Opened = (Arc<dyn Store>, Option<Arc<dyn Cluster>>);

/// Opens the store that is configured: on disk, or over Redis, among other servers. Replays a journal, or waits for a
/// network: not for the event loop.
async fn open_store(config: &Config) -> Result<Opened, StoreError> {
    if let Some(redis) = config.redis.clone() {
        return open_redis(config, redis).await;
    }
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
    let store = store.map_err(|error| StoreError::Damaged(format!("opening did not end: {error}").into()))??;
    Ok((store, None))
}

#[cfg(feature = "redis")]
async fn open_redis(config: &Config, redis: config::Redis) -> Result<Opened, StoreError> {
    use crate::{
        cluster::redis::{Link, LinkOptions, Servers},
        store::redis::{RedisOptions, open},
    };
    let (namespace, addresses) = (config.namespace.clone(), redis.addresses());
    let joining = move || Link::open(&redis, namespace.as_deref(), LinkOptions::default());
    let link = tokio::task::spawn_blocking(joining).await;
    let link = link.map_err(|error| StoreError::Damaged(format!("opening did not end: {error}").into()))?;
    let link =
        link.map_err(|error| StoreError::Unreachable(format!("the key `redis`, {addresses}: {error}").into()))?;
    let options = RedisOptions {
        namespace: config.namespace.clone(),
        limits: limits(config),
        queue: config.limits.queue,
        ..RedisOptions::default()
    };
    let servers = Servers::new(link.clone());
    Ok((open(link, options), Some(servers)))
}

#[cfg(not(feature = "redis"))]
fn open_redis(_: &Config, _: config::Redis) -> std::future::Ready<Result<Opened, StoreError>> {
    let why = "this build cannot speak to Redis; build it with `--features redis`, or remove `redis`";
    std::future::ready(Err(StoreError::Incompatible(why.to_owned())))
}

/// Whether the server is to stop, or is gone.
fn is_stopped(stop: &watch::Receiver<bool>) -> bool {
    *stop.borrow() || stop.has_changed().is_err()
}

/// Resolves when the server is to stop, or is gone.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    _ = stop.wait_for(|stop| *stop).await;
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
