//! State that all connections of a server use.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use super::{
    connection_limit::ConnectionLimiter, handler_queue::HandlerRunner, preface::Preface, proxies::TrustedProxies,
};
use crate::{
    config::Config,
    hub::Hub,
    live::Live,
    metrics::Metrics,
    protocol::encode::{self, Hello},
    util::millis::millis,
};

/// Components, configuration and constants that all connections of a server use.
pub(super) struct ServerContext {
    /// Settings at the start. Those that a reload changes are in `live`.
    pub config: Config,
    pub live: Arc<Live>,
    pub hub: Arc<Hub>,
    pub metrics: Arc<Metrics>,
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
        live: Arc<Live>,
        hub: Arc<Hub>,
        metrics: Arc<Metrics>,
        runner: Option<Arc<HandlerRunner>>,
        sockets: Arc<ConnectionLimiter>,
        (preface, proxies): (Preface, Arc<TrustedProxies>),
    ) -> Self {
        let hello = encode::hello(&hello(&config));
        // A nonce has to differ from payloads of clients and gateways, but need not be secret. So the time is
        // sufficient.
        let seed = std::time::UNIX_EPOCH.elapsed().map_or(1, |since| since.as_nanos() as u64);
        let nonces = AtomicU64::new(seed);
        Self { config, live, hub, metrics, runner, sockets, preface, proxies, hello: hello.into(), nonces }
    }

    /// Encodes the second op 10 of a connection that the server closes: with its own reconnect interval.
    ///
    /// `None`: clients do not reconnect by themselves, or store messages. Clients of the original forget stored messages
    /// at each op 10. The rule `enforce_equal_versions` is left out, because they would send their version again.
    pub(super) fn closing_hello(&self) -> Option<String> {
        if !self.config.reconnect.enabled || self.config.store_messages {
            return None;
        }
        // Consecutive numbers are evenly distributed, more evenly than random ones.
        let fraction = (self.nonce() >> 11) as f64 / (1_u64 << 53) as f64;
        let delay = self.hub.reconnect_delay(self.config.reconnect.interval, fraction);
        let hello = Hello { reconnect_interval_ms: Some(millis(delay)), ..hello(&self.config) };
        Some(encode::hello(&Hello { enforce_equal_versions: false, ..hello }))
    }

    /// Returns a number that is unique among the connections of this process.
    pub(super) fn nonce(&self) -> u64 {
        self.nonces.fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::Relaxed)
    }
}

/// Returns the content of the first frame.
fn hello(config: &Config) -> Hello {
    Hello {
        heartbeat_interval_ms: config.heartbeat.enabled.then(|| millis(config.heartbeat.interval)),
        reconnect_interval_ms: config.reconnect.enabled.then(|| millis(config.reconnect.interval)),
        authentication_timeout_ms: Some(millis(config.authentication.timeout)),
        enforce_equal_versions: config.client.enforce_equal_versions,
        store_messages: config.store_messages,
        sends_user_object: config.authentication.send_user_object,
    }
}
