//! State that all connections of a server use.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use super::{
    connection_limit::ConnectionLimiter, handler_queue::HandlerRunner, preface::Preface, proxies::TrustedProxies,
};
use crate::{
    auth::Authenticator,
    config::Config,
    hub::Hub,
    metrics::Metrics,
    protocol::encode::{self, Hello},
    util::millis::millis,
};

/// Components, configuration and constants that all connections of a server use.
pub(super) struct ServerContext {
    pub config: Config,
    pub hub: Arc<Hub>,
    pub metrics: Arc<Metrics>,
    /// `None`: no authentication is configured.
    pub authenticator: Option<Arc<dyn Authenticator>>,
    /// Handlers of the embedding program, if it has any.
    pub runner: Option<Arc<HandlerRunner>>,
    /// Limiter of `WebSockets`. Its limit is lower than that of connections, so that HTTP requests find a permit.
    ///
    /// At shutdown the server waits for it until the last WebSocket has closed.
    pub sockets: Arc<ConnectionLimiter>,
    /// What precedes HTTP on a connection.
    pub preface: Preface,
    pub proxies: Arc<TrustedProxies>,
    /// The first frame of every connection.
    pub hello: Arc<str>,
    nonces: AtomicU64,
}

impl ServerContext {
    pub(super) fn new(
        config: Config,
        hub: Arc<Hub>,
        metrics: Arc<Metrics>,
        authenticator: Option<Arc<dyn Authenticator>>,
        runner: Option<Arc<HandlerRunner>>,
        sockets_max: usize,
        (preface, proxies): (Preface, Arc<TrustedProxies>),
    ) -> Self {
        let hello = encode::hello(&Hello {
            heartbeat_interval_ms: config.heartbeat.enabled.then(|| millis(config.heartbeat.interval)),
            reconnect_interval_ms: config.reconnect.enabled.then(|| millis(config.reconnect.interval)),
            authentication_timeout_ms: Some(millis(config.authentication.timeout)),
            enforce_equal_versions: config.client.enforce_equal_versions,
            store_messages: config.store_messages,
            sends_user_object: config.authentication.send_user_object,
        });
        // A nonce has to differ from payloads of clients and gateways, but need not be secret. So the time is
        // sufficient.
        let seed = std::time::UNIX_EPOCH.elapsed().map_or(1, |since| since.as_nanos() as u64);
        let sockets = ConnectionLimiter::new(sockets_max, 0);
        let nonces = AtomicU64::new(seed);
        Self { config, hub, metrics, authenticator, runner, sockets, preface, proxies, hello: hello.into(), nonces }
    }

    /// Returns a number that is unique among the connections of this process.
    pub(super) fn nonce(&self) -> u64 {
        self.nonces.fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::Relaxed)
    }
}
