//! How a server is put together by the program it is part of.

use std::{fmt, future::Future, io, net::SocketAddr, path::PathBuf, sync::Arc};

use futures_util::future::BoxFuture;
use serde_json::{Map, Value};
use tokio::net::{TcpListener, lookup_host};

use super::{
    Server, ServerError, bind,
    descriptors::Descriptors,
    handle::Handle,
    handler::{All, Called, Handler, OnAuthentication, OnConnection, OnDisconnection, OnMessage},
    open_store,
    peer::{Peer, Received},
    portal_id_file::PortalIds,
    resp_listener::WirePort,
    router::Attached,
    runtime::{Adds, Assembled, BeforeExit},
};
use crate::{
    auth::{self, AuthError, Authenticator, Identity},
    config::Config,
    hub::Store,
    middleware::Middleware,
};

/// Puts a server together. Nothing is opened or bound before [`Builder::start`] or [`Builder::attach`].
#[must_use = "a builder does nothing until it is started"]
#[derive(Default)]
pub struct Builder {
    config: Config,
    listener: Option<TcpListener>,
    authenticator: Option<Arc<dyn Authenticator>>,
    handlers: Vec<Arc<dyn Called>>,
    middleware: Vec<Adds>,
    before_exit: Option<BeforeExit>,
    store: Option<Arc<dyn Store>>,
}

impl Server {
    /// Puts a server together.
    pub fn builder() -> Builder {
        Builder::default()
    }
}

impl Builder {
    /// The documented options, all at once: stock's keys and ours. Default: [`Config::default`]. From a file, environment or
    /// a JSON5 text by [`config::load`](crate::config::load).
    pub fn config(mut self, config: Config) -> Self {
        self.config = config;
        self
    }

    /// Changes what is configured so far.
    ///
    /// ```
    /// # use mesa::server::Server;
    /// let builder = Server::builder().configure(|config| {
    ///     config.port = 0;
    ///     config.sync.enabled = true;
    /// });
    /// # _ = builder;
    /// ```
    pub fn configure(mut self, change: impl FnOnce(&mut Config)) -> Self {
        change(&mut self.config);
        self
    }

    /// The directory of the store: `store.path`. One process at a time may have it open.
    pub fn store_path(mut self, path: impl Into<PathBuf>) -> Self {
        self.config.store.path = path.into();
        self
    }

    /// Listens on this socket, whatever `host` and `port` say. [`bind`] makes one with room for a rush.
    pub fn listener(mut self, listener: TcpListener) -> Self {
        self.listener = Some(listener);
        self
    }

    /// Finds out who clients are in a way of your own, whatever `authentication.*` says about tokens. Its other keys
    /// (`timeout`, `required`, `disconnectOnFail` …) hold as always.
    pub fn authenticator(mut self, authenticator: impl Authenticator) -> Self {
        self.authenticator = Some(Arc::new(authenticator));
        self
    }

    /// The same by a closure: it gets what the client passed (stock's `data`) and says who that is. A panic in it
    /// lets nobody in.
    ///
    /// ```
    /// # use mesa::{auth::{AuthError, Identity}, message::UserId, server::Server};
    /// let builder = Server::builder().authenticate(|data| async move {
    ///     match data.get("token").and_then(|token| token.as_str()) {
    ///         Some("open sesame") => Ok(Identity::new(UserId::new("ali-baba").expect("a user id"))),
    ///         _ => Err(AuthError::Refused("no such token".into())),
    ///     }
    /// });
    /// # _ = builder;
    /// ```
    pub fn authenticate<F, R>(self, authenticate: F) -> Self
    where
        F: Fn(Map<String, Value>) -> R + Send + Sync + 'static,
        R: Future<Output = Result<Identity, AuthError>> + Send + 'static,
    {
        self.authenticator(Closure(authenticate))
    }

    /// Adds a handler of what happens to clients. Several are called in the order in which they were added.
    pub fn handler(mut self, handler: impl Handler) -> Self {
        self.handlers.push(Arc::new(All(handler)));
        self
    }

    /// Adds a handler of one event, as [`Handler::connection`].
    pub fn on_connection<F, R>(mut self, call: F) -> Self
    where
        F: Fn(Peer) -> R + Send + Sync + 'static,
        R: Future<Output = ()> + Send + 'static,
    {
        self.handlers.push(Arc::new(OnConnection(call)));
        self
    }

    /// Adds a handler of one event, as [`Handler::authentication`].
    pub fn on_authentication<F, R>(mut self, call: F) -> Self
    where
        F: Fn(Peer) -> R + Send + Sync + 'static,
        R: Future<Output = ()> + Send + 'static,
    {
        self.handlers.push(Arc::new(OnAuthentication(call)));
        self
    }

    /// Adds a handler of one event, as [`Handler::message`].
    pub fn on_message<F, R>(mut self, call: F) -> Self
    where
        F: Fn(Peer, Received) -> R + Send + Sync + 'static,
        R: Future<Output = ()> + Send + 'static,
    {
        self.handlers.push(Arc::new(OnMessage(call)));
        self
    }

    /// Adds a handler of one event, as [`Handler::disconnection`].
    pub fn on_disconnection<F, R>(mut self, call: F) -> Self
    where
        F: Fn(Peer, u16, String) -> R + Send + Sync + 'static,
        R: Future<Output = ()> + Send + 'static,
    {
        self.handlers.push(Arc::new(OnDisconnection(call)));
        self
    }

    /// Adds middleware: stock's `server.use`. Several are called in the order in which they were added.
    pub fn middleware(self, middleware: impl Middleware) -> Self {
        self.middleware_with(|_| middleware)
    }

    /// The same for middleware that has something to do with the server itself, as stock hands it over: to send something,
    /// or to disconnect somebody. Called once, when the server is put together.
    pub fn middleware_with<M: Middleware>(mut self, make: impl FnOnce(&Handle) -> M + Send + 'static) -> Self {
        self.middleware.push(Box::new(|handle| Arc::new(make(handle))));
        self
    }

    /// What is done when the server is told to stop, before it does: it still serves, so that there can be a last word to
    /// clients. Has five seconds; then, or if it panics, the server stops all the same. Not called when the store has failed.
    pub fn before_exit<F, R>(mut self, call: F) -> Self
    where
        F: FnOnce() -> R + Send + 'static,
        R: Future<Output = ()> + Send + 'static,
    {
        self.before_exit = Some(Box::new(|| Box::pin(call())));
        self
    }

    /// Serves from a store that is open already, instead of `store.path`.
    #[doc(hidden)]
    pub fn store(mut self, store: Arc<dyn Store>) -> Self {
        self.store = Some(store);
        self
    }

    /// Checks the configuration, opens the store and listens. Serving begins with [`Server::run`]; who connects before that
    /// waits. What the configuration allows and should not be overlooked is logged.
    ///
    /// # Errors
    /// When the configuration does not hold, the address cannot be listened on, or authentication or store cannot be set up.
    pub async fn start(mut self) -> Result<Server, ServerError> {
        // The address before the store: of two servers started by mistake, the second must not touch the first's.
        let listener = match self.listener.take() {
            Some(listener) => listener,
            None => bind(address(&self.config).await?)?,
        };
        let address = listener.local_addr()?;
        Ok(Server { listener, address, parts: self.assemble().await? })
    }

    /// As [`Builder::start`], without a listener: the routes are for a router of yours, and the rest is run beside it.
    /// `host`, `port`, `limits.headerTimeout`, `limits.idleTimeout` and [`Builder::listener`] have no effect then, and `limits.connectionsPerAddress`
    /// takes all clients for one address unless the router is served with connect info.
    ///
    /// The routes are `path` for the WebSocket, and `/v1/…`, `/healthz`, `/readyz` and `/metrics`. With a `path` of `/`, as it
    /// is by default, the router they are merged into can have no `/` of its own.
    ///
    /// ```
    /// # #[tokio::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let directory = tempfile::tempdir()?;
    /// use axum::{Router, routing::get};
    /// use mesa::server::Server;
    ///
    /// let (routes, mesa) = Server::builder()
    ///     .configure(|config| config.path = "/socket".into())
    ///     .store_path(directory.path())
    ///     .attach()
    ///     .await?;
    /// let app: Router = Router::new().route("/", get(|| async { "a page" })).merge(routes);
    /// let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    /// let serving = tokio::spawn(axum::serve(listener, app).into_future());
    /// // In a program of yours: `tokio::signal::ctrl_c()`, or what else ends it.
    /// mesa.run(async {}).await?;
    /// # serving.abort();
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// When the configuration does not hold, or authentication or store cannot be set up.
    pub async fn attach(self) -> Result<(axum::Router, Attached), ServerError> {
        Ok(super::router::attach(self.assemble().await?))
    }

    async fn assemble(mut self) -> Result<Assembled, ServerError> {
        let mut checked = self.config.clone();
        if self.authenticator.is_some() {
            // There is a way to tell who a client is, and none of the configured ones has any effect.
            let authentication = &mut checked.authentication;
            (authentication.jwt, authentication.webhook) = (None, None);
            (authentication.insecure, authentication.insecure_public) = (true, true);
        }
        for warning in checked.validate()? {
            if self.authenticator.is_none() {
                tracing::warn!("{warning}");
            }
        }
        let descriptors = Descriptors::divide(&self.config);
        if self.authenticator.is_some() {
            // Nor does it open the server to this machine's pages alone.
            self.config.authentication.insecure = false;
        }
        let authenticator = match self.authenticator {
            Some(authenticator) => Some(authenticator),
            None => {
                let mut authentication = self.config.authentication.clone();
                if let Some(webhook) = &mut authentication.webhook {
                    webhook.concurrency = webhook.concurrency.min(descriptors.outbound);
                }
                auth::from_config(&authentication)?
            }
        };
        // Before the store is opened, like the address: see there.
        let wire = WirePort::bind(&self.config.redis_protocol)?;
        let (opened, ids) = match self.store {
            Some(store) => ((store, None), None),
            None => {
                // Beside a store over Redis there is no directory to remember anything in.
                let on_disk = self.config.redis.is_none();
                let ids = on_disk.then(|| PortalIds::in_store(&self.config.store.path));
                (open_store(&self.config).await?, ids)
            }
        };
        let Self { config, handlers, middleware, before_exit, .. } = self;
        Assembled::new(config, opened, authenticator, handlers, middleware, before_exit, (wire, ids, descriptors))
    }
}

/// The first address that `host` and `port` stand for.
async fn address(config: &Config) -> io::Result<SocketAddr> {
    let host = config.host.trim_start_matches('[').trim_end_matches(']');
    let mut found = lookup_host((host, config.port)).await?;
    found.next().ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("{host} has no address")))
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let handlers = self.handlers.len();
        f.debug_struct("Builder").field("config", &self.config).field("handlers", &handlers).finish_non_exhaustive()
    }
}

struct Closure<F>(F);

impl<F, R> Authenticator for Closure<F>
where
    F: Fn(Map<String, Value>) -> R + Send + Sync + 'static,
    R: Future<Output = Result<Identity, AuthError>> + Send + 'static,
{
    fn authenticate<'a>(&'a self, data: &'a Map<String, Value>) -> BoxFuture<'a, Result<Identity, AuthError>> {
        Box::pin((self.0)(data.clone()))
    }
}
