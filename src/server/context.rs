//! What all connections of a server have in common.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use super::{connection_limit::Slots, handler_queue::Calls};
use crate::{
    auth::Authenticator,
    config::Config,
    hub::Hub,
    metrics::Metrics,
    protocol::encode::{self, Hello},
};

pub(super) struct Shared {
    pub config: Config,
    pub hub: Arc<Hub>,
    pub metrics: Arc<Metrics>,
    /// `None`: nobody can authenticate.
    pub authenticator: Option<Arc<dyn Authenticator>>,
    /// The handlers of the program that this server is part of, if it has any.
    pub calls: Option<Arc<Calls>>,
    /// The places of `WebSockets`: fewer than those of connections, so that HTTP requests find one. The server also waits here
    /// until the last WebSocket has gone.
    pub sockets: Arc<Slots>,
    /// The first frame of every connection.
    pub hello: Arc<str>,
    nonces: AtomicU64,
}

impl Shared {
    pub(super) fn new(
        config: Config,
        hub: Arc<Hub>,
        metrics: Arc<Metrics>,
        authenticator: Option<Arc<dyn Authenticator>>,
        calls: Option<Arc<Calls>>,
        sockets_max: usize,
    ) -> Self {
        let millis = |duration: std::time::Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let hello = encode::hello(&Hello {
            heartbeat_interval_ms: config.heartbeat.enabled.then(|| millis(config.heartbeat.interval)),
            reconnect_interval_ms: config.reconnect.enabled.then(|| millis(config.reconnect.interval)),
            authentication_timeout_ms: Some(millis(config.authentication.timeout)),
            enforce_equal_versions: config.client.enforce_equal_versions,
            store_messages: config.store_messages,
            sends_user_object: config.authentication.send_user_object,
        });
        // A nonce need not be secret, only unlike what a client or a gateway makes up by itself: the time will do.
        let seed = std::time::UNIX_EPOCH.elapsed().map_or(1, |since| since.as_nanos() as u64);
        let sockets = Slots::new(sockets_max, 0);
        Self { config, hub, metrics, authenticator, calls, sockets, hello: hello.into(), nonces: AtomicU64::new(seed) }
    }

    /// A number no other connection of this process has.
    pub(super) fn nonce(&self) -> u64 {
        self.nonces.fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::Relaxed)
    }
}
