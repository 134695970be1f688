//! The server: builds everything else, listens, and stops in order.
//!
//! - [`listener`]: taking connections in, HTTP and WebSocket on one port
//! - [`slots`]: who has a place
//! - [`upgrade`]: from an HTTP request to a WebSocket
//! - [`socket`]: the WebSocket itself
//! - [`connection`]: the life of a connection, with its steps in [`inbound`], [`outbound`] and [`farewell`]
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
mod shared;
mod shutdown;
mod slots;
mod socket;
mod upgrade;

use std::{future::Future, io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{net::TcpListener, sync::watch};

use crate::{
    auth::{self, ApiKeys},
    cluster::Cluster,
    config::{self, Config, ConfigError},
    http::{Api, Http},
    hub::{Hub, MailboxBounds, Settings, Store, StoreError, SyncSettings},
    metrics::Metrics,
    outgoing::UrlError,
    store::{
        Durability, Limits, Overflow,
        disk::{DiskOptions, open},
    },
    webhook::{self, Webhook},
};
pub use listener::bind;
use shared::Shared;
use slots::Slots;

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

/// A server that has opened its store and is ready to serve.
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    shared: Arc<Shared>,
    store: Arc<dyn Store>,
    http: Http,
    webhook: Option<Webhook>,
}

impl Server {
    /// Opens the store and builds a server that will listen on `listener`. Checks the configuration first.
    ///
    /// # Errors
    /// When the configuration does not hold, or authentication or store cannot be set up.
    pub async fn start(config: Config, listener: TcpListener) -> Result<Self, ServerError> {
        config.validate()?;
        if let Some(redis) = config.redis.clone() {
            return Self::start_with_redis(config, listener, redis).await;
        }
        let options = DiskOptions {
            namespace: config.namespace.clone(),
            durability: durability(config.store.durability),
            cache_bytes: config.store.cache_bytes,
            queue: config.limits.queue,
            limits: limits(&config),
            outbox: config.portal.webhook.as_ref().map(webhook::outbox_options),
            ..DiskOptions::new(&config.store.path)
        };
        // Opening replays a journal: not for the event loop.
        let store = tokio::task::spawn_blocking(move || open(options)).await;
        let store = store.map_err(|error| StoreError::Damaged(format!("opening did not end: {error}").into()))??;
        Self::over(config, listener, store)
    }

    #[cfg(feature = "redis")]
    async fn start_with_redis(
        config: Config,
        listener: TcpListener,
        redis: config::Redis,
    ) -> Result<Self, ServerError> {
        use crate::{
            cluster::redis::{Link, Servers},
            store::redis::{RedisOptions, open},
        };
        let namespace = config.namespace.clone();
        let joining = move || Link::open(&redis, namespace.as_deref(), Arc::default());
        let link = tokio::task::spawn_blocking(joining).await;
        let link = link.map_err(|error| StoreError::Damaged(format!("opening did not end: {error}").into()))?;
        let link = link.map_err(|error| StoreError::Unreachable(error.to_string().into()))?;
        let options = RedisOptions {
            namespace: config.namespace.clone(),
            limits: limits(&config),
            queue: config.limits.queue,
            ..RedisOptions::default()
        };
        let servers = Servers::new(link.clone());
        Self::among(config, listener, open(link, options), Some(servers))
    }

    #[cfg(not(feature = "redis"))]
    fn start_with_redis(_: Config, _: TcpListener, _: config::Redis) -> std::future::Ready<Result<Self, ServerError>> {
        let why = "this build cannot speak to Redis; build it with `--features redis`, or remove `redis`";
        std::future::ready(Err(StoreError::Incompatible(why.to_owned()).into()))
    }

    /// Builds a server over a store that is open already. One that was opened without an outbox has no events for
    /// webhooks.
    ///
    /// # Errors
    /// When the configuration does not hold, or authentication or webhook cannot be set up.
    pub fn over(config: Config, listener: TcpListener, store: Arc<dyn Store>) -> Result<Self, ServerError> {
        Self::among(config, listener, store, None)
    }

    /// The same, as one of several servers.
    ///
    /// # Errors
    /// As [`Server::over`].
    pub fn among(
        config: Config,
        listener: TcpListener,
        store: Arc<dyn Store>,
        cluster: Option<Arc<dyn Cluster>>,
    ) -> Result<Self, ServerError> {
        config.validate()?;
        let authenticator = auth::from_config(&config.authentication)?;
        let metrics = Arc::new(Metrics::new());
        let hub = Hub::among(settings(&config), store.clone(), metrics.clone(), cluster);
        let http = Http::new(Api {
            hub: hub.clone(),
            keys: ApiKeys::new(&config.api),
            metrics: metrics.clone(),
            limits: config.limits.clone(),
        });
        let webhook = config.portal.webhook.as_ref().zip(store.outbox());
        let webhook =
            webhook.map(|(to, outbox)| Webhook::new(to, &hub, store.clone(), outbox, metrics.clone())).transpose()?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared::new(config, hub, metrics, authenticator));
        Ok(Self { listener, address, shared, store, http, webhook })
    }

    /// Where the server listens.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `shutdown` resolves, then stops in order: nothing new is taken, requests under way are answered,
    /// clients are told (1001), the store is closed. Takes at most ten seconds for that.
    ///
    /// # Errors
    /// When the store fails while serving: clients are told (1011), and nothing more is promised.
    pub async fn run(self, shutdown: impl Future<Output = ()> + Send) -> Result<(), ServerError> {
        let Self { listener, shared, store, http, webhook, .. } = self;
        let telling = webhook.map(Webhook::start);
        let limits = &shared.config.limits;
        let slots = Slots::new(limits.connections, limits.connections_per_address);
        let (stop, stopped) = watch::channel(false);
        let accepting = tokio::spawn(listener::accept(listener, shared.clone(), http, slots.clone(), stopped));
        let watching = tokio::spawn(watch_commits(shared.hub.clone()));
        let failed = tokio::select! {
            () = shutdown => None,
            error = store.failure() => Some(error),
        };
        watching.abort();
        let stopped = shutdown::stop(&shared.hub, &store, &slots, &stop, accepting, failed).await;
        // Last: clients that went are in the outbox now, for the next start.
        drop(telling);
        stopped.map_err(ServerError::from)
    }
}

/// Says so when the disk keeps a commit waiting: the server can do nothing about it, but somebody should know.
async fn watch_commits(hub: Arc<Hub>) {
    let mut waiting = false;
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
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
    Settings {
        sync: config.sync.enabled.then_some(SyncSettings { redelivery_interval }),
        authentication_required: config.authentication.required,
        store_connected_users: config.authentication.store_connected_users,
        mailbox: MailboxBounds { messages: config.limits.unsynced_messages, bytes: config.limits.unsynced_bytes },
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
