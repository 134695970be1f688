//! The server: builds everything else, listens, and stops in order.
//!
//! - [`builder`], [`runtime`]: how it is put together, and run; [`router`]: as part of somebody's router
//! - `settings`: opens the store, converts the configuration · `error`: errors · `stop`: the stop signal
//! - [`context`]: state that all connections share · [`frame_rate`]: token bucket of a connection
//! - [`handler`]: what a program does when something happens to clients, and [`handler_queue`], which calls it
//! - [`peer`]: a client as that program sees it; [`handle`]: the server as it sees it
//! - [`listener`]: taking connections in, HTTP and WebSocket on one port
//! - [`connection_limit`]: places counted · [`descriptors`]: how many there are · [`activity`]: which connection gives up its own
//! - [`http_io`]: the deadlines of an HTTP connection, and how it closes · [`unreadable`]: refusals of hyper's own
//! - [`ws_upgrade`]: from an HTTP request to a WebSocket
//! - [`socket`]: the WebSocket itself; [`fragments`] and [`close_frame`] see what its library does not report
//! - [`connection`]: the life of a connection, with its steps in [`inbound`], [`outbound`] and [`closing`]
//! - [`resp_listener`]: the port of the Redis protocol, with [`portal_id_file`], what it remembers
//! - [`heartbeat`]: the one question and answer behind liveness and receipts
//! - [`hold`]: holds back deliveries until the client has answered the op 1 that follows op 22
//! - [`shutdown`]: the order in which everything stops

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
mod resp_listener;
mod router;
mod runtime;
mod settings;
mod shutdown;
mod socket;
mod stop;
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
    peer::{CloseCodeError, Peer, Received},
    router::Attached,
};
use self::{
    settings::{Opened, open_store, settings},
    stop::{is_stopped, stopped},
};
use crate::config::Config;
pub use crate::hub::{DeviceReport, Outcome, Reason, Rejected, StoreError, UserReport};
use listener::Places;
use runtime::Assembled;

/// A server that has opened its store, listens, and is ready to serve.
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    parts: Assembled,
}

impl Server {
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

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("address", &self.address).finish_non_exhaustive()
    }
}
