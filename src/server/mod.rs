//! The server: builds all components, listens, and stops in order.
//!
//! - [`builder`]: builds a server · [`runtime`]: runs its components · [`router`]: its routes for another axum router
//! - `settings`: opens the store, converts the configuration · `error`: errors · `stop`: the stop signal
//! - [`context`]: state that all connections use · [`frame_rate`]: token bucket of a connection
//! - [`handler`]: the embedding program's handlers of client events · [`handler_queue`]: the queue in front of them
//! - [`peer`]: a client, for the embedding program · [`handle`]: the server, for the embedding program
//! - [`listener`]: accepts connections, HTTP and WebSocket on one port
//! - [`connection_limit`]: connection permits · [`descriptors`]: their number · [`activity`]: which connection is evicted
//! - [`preface`]: what precedes the protocol of a port · [`proxies`]: clients behind proxies
//! - [`stream`]: TCP, or TLS over it · [`tls`]: certificates and handshakes
//! - [`http_io`]: deadlines and closing of an HTTP connection · [`unreadable`]: error responses that hyper writes
//! - [`ws_upgrade`]: upgrades an HTTP request to a WebSocket
//! - [`socket`]: the WebSocket; [`fragments`] and [`close_frame`] parse frames that its library does not report
//! - [`connection`]: the task of a connection, with its steps in [`inbound`], [`outbound`] and [`closing`]
//! - [`resp_listener`]: the port of the Redis protocol · [`portal_id_file`]: persists the ids of the original's portals
//! - [`heartbeat`]: op 1 and WebSocket pings, for liveness and acknowledgements
//! - [`hold`]: holds back deliveries until the client has answered the op 1 that follows op 22
//! - [`reload`]: applies a changed configuration while the server runs
//! - [`shutdown`]: stops all components in order

mod activity;
mod builder;
mod close_frame;
mod closing;
mod connection;
mod connection_limit;
mod context;
mod descriptors;
mod error;
mod failpoints;
mod fragments;
mod frame_rate;
mod handle;
mod handler;
mod handler_queue;
mod heartbeat;
mod hold;
mod http_io;
mod inbound;
mod listener;
mod outbound;
mod peer;
mod portal_id_file;
mod preface;
mod proxies;
mod reload;
mod resp_listener;
mod router;
mod runtime;
mod settings;
mod shutdown;
mod socket;
mod stop;
mod stream;
#[cfg(test)]
mod tests;
mod tls;
mod unreadable;
mod ws_upgrade;

use std::{future::Future, net::SocketAddr, sync::Arc};

use tokio::{net::TcpListener, sync::watch};

pub use self::error::ServerError;
pub use self::{
    builder::Builder,
    handle::{Handle, SendError},
    handler::Handler,
    listener::bind,
    peer::{CloseCodeError, Peer, ReceivedMessage},
    reload::Reloaded,
    router::Attached,
    tls::SetupError as TlsSetupError,
};
use self::{
    settings::{Opened, open_store, settings},
    stop::{is_stopped, stopped},
};
use crate::config::Config;
pub use crate::hub::{DeviceReport, Outcome, Rejected, RejectionReason, StoreError, UserReport};
use listener::Admission;
use runtime::Runtime;

/// A server that has opened its store, listens, and is ready to serve.
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    runtime: Runtime,
}

impl Server {
    /// Opens the store and creates a server on `listener`, without handlers.
    ///
    /// # Errors
    /// When the configuration is invalid, or authentication or store cannot be set up.
    pub async fn start(config: Config, listener: TcpListener) -> Result<Self, ServerError> {
        Self::builder().config(config).listener(listener).start().await
    }

    /// Returns the address on which the server listens.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Returns a handle to control the server while it runs, and before.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.runtime.handle()
    }

    /// Returns the address of the Redis protocol; `None` if it is disabled.
    #[must_use]
    pub fn redis_protocol_addr(&self) -> Option<SocketAddr> {
        self.runtime.resp.as_ref().map(|resp| resp.address)
    }

    /// Serves until `shutdown` resolves, then stops in order.
    ///
    /// It accepts no new connections and answers requests in progress. Clients are closed with 1001; messages that they
    /// send before they receive the close frame still count. Portals receive the last events, handlers finish, and the
    /// store is closed. This takes 12 s at most, and 5 s more with [`Builder::before_exit`].
    ///
    /// # Errors
    /// When the store fails. Clients are then closed with 1011, and no guarantee holds any more.
    pub async fn run(self, shutdown: impl Future<Output = ()> + Send) -> Result<(), ServerError> {
        let Self { listener, runtime, .. } = self;
        let limiter = runtime.limiter.clone();
        let admission = Arc::new(Admission::new(limiter.clone()));
        let (stop, stopped) = watch::channel(false);
        let (context, http) = (runtime.context.clone(), runtime.http.clone());
        let accepting = tokio::spawn(listener::accept(listener, context, http, admission, stopped));
        runtime.run(shutdown, &limiter, &stop, accepting).await
    }
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("address", &self.address).finish_non_exhaustive()
    }
}
