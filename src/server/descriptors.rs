//! Divides the open-file limit of the process among the kinds of connections.
//!
//! A share is reserved for the store and the runtime. Otherwise a flood of connections could take the last descriptor,
//! and the store could not open a file.

use std::fs;

use rustix::process::{Resource, getrlimit};

use crate::config::Config;

/// Descriptors reserved for the store (which has about 50 open files), temporary files and the runtime.
///
/// With a low open-file limit a third of the free descriptors is reserved.
const RESERVE_MAX: usize = 96;

/// Connections that `WebSockets` cannot use, so that a server at its limit still serves health checks and dispatches.
const HTTP_ONLY_MAX: usize = 16;

/// Descriptors for DNS look-ups, and for kept-alive connections to the portal webhook and the JWKS server.
const OUTBOUND_EXTRA: usize = 12;

/// Number of open files assumed where the system does not report it.
const OPEN_FILES_ASSUMED: usize = 32;

/// Limits of concurrent connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Descriptors {
    /// Connections for HTTP and `WebSockets`.
    pub connections: usize,
    /// `WebSockets` among them.
    pub sockets: usize,
    /// Connections of the Redis protocol.
    pub resp: usize,
    /// Concurrent requests to the authentication webhook.
    pub outbound: usize,
    /// Descriptors that were in use before the first connection.
    open: usize,
}

impl Descriptors {
    /// Divides the system's current limit, and logs if the result is below the configuration.
    pub(super) fn divide(config: &Config) -> Self {
        let open = ["/proc/self/fd", "/dev/fd"].iter().find_map(|path| Some(fs::read_dir(path).ok()?.count()));
        Self::divide_with(open.unwrap_or(OPEN_FILES_ASSUMED), config)
    }

    /// Divides the limit again, for a changed configuration. The descriptors of present connections count as free.
    pub(super) fn divide_again(&self, config: &Config) -> Self {
        Self::divide_with(self.open, config)
    }

    fn divide_with(open: usize, config: &Config) -> Self {
        let limit = getrlimit(Resource::Nofile).current.and_then(|limit| usize::try_from(limit).ok());
        let descriptors = Self::of(limit.unwrap_or(usize::MAX), open, config);
        let configured = config.limits.connections;
        if let (Some(limit), true) = (limit, descriptors.sockets < configured) {
            let Self { connections, sockets, .. } = descriptors;
            let text = format!(
                "the process may open {limit} files: connections are limited to {connections}, of which {sockets} may be \
                 WebSockets, and limits.connections ({configured}) is not reached; raise the limit (ulimit -n, or \
                 LimitNOFILE= in a systemd unit) or lower limits.connections"
            );
            // With --dev a few connections are enough.
            if config.dev { tracing::debug!("{text}") } else { tracing::warn!("{text}") }
        }
        descriptors
    }

    /// Divides `limit`, of which `open` descriptors are in use.
    fn of(limit: usize, open: usize, config: &Config) -> Self {
        let free = limit.saturating_sub(open);
        let free = free - RESERVE_MAX.min(free / 3);
        let configured = config.authentication.webhook.as_ref().map_or(0, |webhook| webhook.concurrency);
        let sends_requests = configured > 0
            || config.portal.webhook.is_some()
            || config.authentication.jwt.as_ref().is_some_and(|jwt| jwt.jwks.is_some());
        let outbound = if sends_requests { (configured + OUTBOUND_EXTRA).min(free / 4) } else { 0 };
        let resp =
            if config.redis_protocol.port.is_some() { config.redis_protocol.connections.min(free / 4) } else { 0 };
        let connections = (free - outbound - resp).min(config.limits.connections.saturating_add(HTTP_ONLY_MAX)).max(1);
        let http_only = HTTP_ONLY_MAX.min(connections / 4);
        Self {
            connections,
            sockets: config.limits.connections.min(connections - http_only),
            resp: resp.max(1),
            outbound: outbound.saturating_sub(OUTBOUND_EXTRA).min(configured).max(1),
            open,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_divided_after_the_reserve() {
        let mut config = Config::default();
        let small = Descriptors::of(1024, 24, &config);
        assert_eq!((small.connections, small.sockets), (904, 888));
        let large = Descriptors::of(1 << 20, 24, &config);
        assert_eq!((large.connections, large.sockets), (100_016, 100_000));
        config.limits.connections = 2;
        let few = Descriptors::of(usize::MAX, 24, &config);
        assert_eq!((few.connections, few.sockets), (18, 2));
        config.limits.connections = 100_000;
        config.redis_protocol.port = Some(6379);
        config.authentication.webhook = Some(crate::config::AuthWebhook { concurrency: 64, ..Default::default() });
        let shared = Descriptors::of(1024, 24, &config);
        assert_eq!((shared.connections, shared.resp, shared.outbound), (602, 226, 64));
        let tiny = Descriptors::of(10, 24, &config);
        assert_eq!((tiny.connections, tiny.sockets, tiny.resp, tiny.outbound), (1, 1, 1, 1));
    }
}
