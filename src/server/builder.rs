//! Builds a server for the program that embeds it.

use std::{fmt, future::Future, io, net::SocketAddr, path::PathBuf, sync::Arc};

use futures_util::future::BoxFuture;
use serde_json::{Map, Value};
use tokio::net::{TcpListener, lookup_host};

use super::{
    Server, ServerError, bind,
    descriptors::Descriptors,
    handle::Handle,
    handler::{DynHandler, Handler, OnAuthentication, OnConnection, OnDisconnection, OnMessage, WholeHandler},
    open_store,
    peer::{Peer, ReceivedMessage},
    portal_id_file::PortalIdFile,
    reload,
    resp_listener::RespListener,
    router::Attached,
    runtime::{BeforeExit, MiddlewareFactory, Runtime},
    tls::ListenerTls,
};
use crate::{
    auth::{AuthError, Authenticator, Identity},
    config::{self, Config},
    failpoints,
    hub::Store,
    middleware::Middleware,
};

/// Builder of a server. It opens and binds nothing before [`Builder::start`] or [`Builder::attach`].
#[must_use = "a builder does nothing until it is started"]
#[derive(Default)]
pub struct Builder {
    config: Config,
    listener: Option<TcpListener>,
    authenticator: Option<Arc<dyn Authenticator>>,
    handlers: Vec<Arc<dyn DynHandler>>,
    middleware: Vec<MiddlewareFactory>,
    before_exit: Option<BeforeExit>,
    store: Option<Arc<dyn Store>>,
}

impl Server {
    /// Returns a builder with the default configuration.
    pub fn builder() -> Builder {
        Builder::default()
    }
}

impl Builder {
    /// Sets the configuration. Default: [`Config::default`].
    ///
    /// [`config::load`](crate::config::load) reads a configuration from a file, the environment or a JSON5 text.
    pub fn config(mut self, config: Config) -> Self {
        self.config = config;
        self
    }

    /// Changes the current configuration.
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

    /// Sets the directory of the store (`store.path`). Only one process at a time can open it.
    pub fn store_path(mut self, path: impl Into<PathBuf>) -> Self {
        self.config.store.path = path.into();
        self
    }

    /// Serves WebSocket and HTTP over TLS (`tls`).
    ///
    /// ```
    /// # use mesa::{config::{Certificate, Tls}, server::Server};
    /// let builder = Server::builder().tls(Tls::new(Certificate::files("fullchain.pem", "privkey.pem")));
    /// # _ = builder;
    /// ```
    pub fn tls(self, tls: config::Tls) -> Self {
        self.configure(|config| config.tls = Some(tls))
    }

    /// Listens on this socket instead of `host` and `port`. [`bind`] creates one with a large backlog.
    pub fn listener(mut self, listener: TcpListener) -> Self {
        self.listener = Some(listener);
        self
    }

    /// Authenticates clients with your own implementation instead of the token settings of `authentication`.
    ///
    /// The other keys (`timeout`, `required`, `disconnectOnFail` …) remain in effect.
    pub fn authenticator(mut self, authenticator: impl Authenticator) -> Self {
        self.authenticator = Some(Arc::new(authenticator));
        self
    }

    /// Authenticates clients with a closure.
    ///
    /// It receives `d` of the client's authentication frame and returns the identity. If it panics, the client is not
    /// authenticated.
    ///
    /// ```
    /// # use mesa::{auth::{AuthError, Identity}, message::UserId, server::Server};
    /// let builder = Server::builder().authenticate(|data| async move {
    ///     match data.get("token").and_then(|token| token.as_str()) {
    ///         Some("open sesame") => Ok(Identity::new(UserId::new("ali-baba").expect("a user id"))),
    ///         _ => Err(AuthError::Rejected("no such token".into())),
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

    /// Adds a handler of client events. Several are called in the order in which they were added.
    pub fn handler(mut self, handler: impl Handler) -> Self {
        self.handlers.push(Arc::new(WholeHandler(handler)));
        self
    }

    /// Adds a handler of connections, see [`Handler::connection`].
    pub fn on_connection<F, R>(mut self, call: F) -> Self
    where
        F: Fn(Peer) -> R + Send + Sync + 'static,
        R: Future<Output = ()> + Send + 'static,
    {
        self.handlers.push(Arc::new(OnConnection(call)));
        self
    }

    /// Adds a handler of authentications, see [`Handler::authentication`].
    pub fn on_authentication<F, R>(mut self, call: F) -> Self
    where
        F: Fn(Peer) -> R + Send + Sync + 'static,
        R: Future<Output = ()> + Send + 'static,
    {
        self.handlers.push(Arc::new(OnAuthentication(call)));
        self
    }

    /// Adds a handler of messages, see [`Handler::message`].
    pub fn on_message<F, R>(mut self, call: F) -> Self
    where
        F: Fn(Peer, ReceivedMessage) -> R + Send + Sync + 'static,
        R: Future<Output = ()> + Send + 'static,
    {
        self.handlers.push(Arc::new(OnMessage(call)));
        self
    }

    /// Adds a handler of disconnections, see [`Handler::disconnection`].
    pub fn on_disconnection<F, R>(mut self, call: F) -> Self
    where
        F: Fn(Peer, u16, String) -> R + Send + Sync + 'static,
        R: Future<Output = ()> + Send + 'static,
    {
        self.handlers.push(Arc::new(OnDisconnection(call)));
        self
    }

    /// Adds middleware, like the original's `server.use`. Several are called in the order in which they were added.
    pub fn middleware(self, middleware: impl Middleware) -> Self {
        self.middleware_with(|_| middleware)
    }

    /// Adds middleware that needs the server itself, to send messages or to disconnect clients.
    ///
    /// `make` is called once, while the server is built.
    pub fn middleware_with<M: Middleware>(mut self, make: impl FnOnce(&Handle) -> M + Send + 'static) -> Self {
        self.middleware.push(Box::new(|handle| Arc::new(make(handle))));
        self
    }

    /// Sets a function that runs at shutdown, before the server stops serving. It can still send to clients.
    ///
    /// After 5 s, or if the function panics, the server stops anyway. It is not called when the store has failed.
    pub fn before_exit<F, R>(mut self, call: F) -> Self
    where
        F: FnOnce() -> R + Send + 'static,
        R: Future<Output = ()> + Send + 'static,
    {
        self.before_exit = Some(Box::new(|| Box::pin(call())));
        self
    }

    /// Uses an open store instead of `store.path`.
    #[doc(hidden)]
    pub fn store(mut self, store: Arc<dyn Store>) -> Self {
        self.store = Some(store);
        self
    }

    /// Validates the configuration, opens the store and binds the listener.
    ///
    /// Serving begins with [`Server::run`]; clients that connect earlier wait. Risky settings are logged as warnings.
    ///
    /// # Errors
    /// When the configuration is invalid, the address cannot be bound, or authentication or store cannot be set up.
    pub async fn start(mut self) -> Result<Server, ServerError> {
        // The address before the store: a second server, started by mistake, must not touch the store of the first.
        let listener = match self.listener.take() {
            Some(listener) => listener,
            None => bind(address(&self.config).await?)?,
        };
        let address = listener.local_addr()?;
        Ok(Server { listener, address, runtime: self.assemble().await? })
    }

    /// Builds a server without a listener; returns its routes for your router, and the server to run.
    ///
    /// `host`, `port`, `tls`, `limits.headerTimeout`, `limits.idleTimeout` and [`Builder::listener`] have no effect then.
    /// Unless the router is served with connect info, `limits.connectionsPerAddress` counts all clients as one address.
    ///
    /// The routes are `path` for the WebSocket, and `/v1/…`, `/healthz`, `/readyz`, `/metrics`, `/client.js`,
    /// `/client.d.ts`, `/openapi.json`, `/docs` and `/docs/docs.css`, and `/admin` if `admin.password` is set. With the
    /// default `path` (`/`) your router cannot have a route `/`.
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
    /// // In your program: `tokio::signal::ctrl_c()`, or another future that ends it.
    /// mesa.run(async {}).await?;
    /// # serving.abort();
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// When the configuration is invalid, or authentication or store cannot be set up.
    pub async fn attach(self) -> Result<(axum::Router, Attached), ServerError> {
        Ok(super::router::attach(self.assemble().await?))
    }

    /// Validates the configuration and builds all components except the listener.
    async fn assemble(mut self) -> Result<Runtime, ServerError> {
        failpoints::check().map_err(ServerError::Failpoint)?;
        let own_authenticator = self.authenticator.is_some();
        for warning in reload::validate(&self.config, own_authenticator)? {
            tracing::warn!("{warning}");
        }
        let descriptors = Descriptors::divide(&self.config);
        if own_authenticator {
            // The embedder's authenticator is in effect, so the restriction of `insecure` to local pages must not
            // apply.
            self.config.authentication.insecure = false;
        }
        let authenticator = match self.authenticator {
            Some(authenticator) => Some(authenticator),
            None => reload::authenticator(&self.config, descriptors.outbound)?,
        };
        // Before the store is opened, like the address above.
        let certificates = ListenerTls::load(&self.config).await?;
        let resp = RespListener::bind(&self.config.redis_protocol)?;
        let (opened, ids) = match self.store {
            Some(store) => ((store, None), None),
            None => {
                // A store on Redis has no directory to persist portal ids in.
                let on_disk = self.config.redis.is_none();
                let ids = on_disk.then(|| PortalIdFile::in_store(&self.config.store.path));
                (open_store(&self.config).await?, ids)
            }
        };
        let Self { config, handlers, middleware, before_exit, .. } = self;
        let authenticator = (authenticator, own_authenticator);
        let parts = (resp, ids, descriptors, certificates);
        Runtime::new(config, opened, authenticator, handlers, middleware, before_exit, parts)
    }
}

/// Resolves `host` and `port` to their first address.
async fn address(config: &Config) -> io::Result<SocketAddr> {
    let host = config.host.trim_start_matches('[').trim_end_matches(']');
    let mut addresses = lookup_host((host, config.port)).await?;
    addresses.next().ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("{host} has no address")))
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let handlers = self.handlers.len();
        f.debug_struct("Builder").field("config", &self.config).field("handlers", &handlers).finish_non_exhaustive()
    }
}

/// Authenticator that calls a closure.
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
