//! Applies a changed configuration to a running server.
//!
//! Everything that can fail is prepared first. Then the new values replace the old ones at once, so a rejected
//! configuration changes nothing. Connected clients stay connected.

use std::{path::Path, sync::Arc};

use parking_lot::Mutex;

use super::{ServerError, connection_limit::ConnectionLimiter, descriptors::Descriptors};
use crate::{
    auth::{self, AuthSetupError, Authenticator, KEY_FILE_BYTES_MAX},
    config::{self, Config, ConfigError},
    live::{Live, LiveSettings},
    util::read_bounded::read_bounded,
};

/// Result of a reload: the changed keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Reloaded {
    /// Changed keys that are in effect now. For `authentication.jwt.keyFile` and `tls` a file has changed.
    pub applied: Vec<&'static str>,
    /// Changed keys that take effect at the next start.
    pub at_next_start: Vec<&'static str>,
    /// Warnings about the new configuration, one sentence each.
    pub warnings: Vec<String>,
}

/// What a reload needs of a running server.
pub(super) struct Reloader {
    pub(super) live: Arc<Live>,
    /// Whether the embedding program has its own authenticator, which a reload keeps.
    own_authenticator: bool,
    /// Limiter of all connections.
    connections: Arc<ConnectionLimiter>,
    /// Limiter of `WebSockets`.
    sockets: Arc<ConnectionLimiter>,
    descriptors: Descriptors,
    running: Mutex<Running>,
}

/// The settings in effect.
struct Running {
    config: Config,
    /// Content of `authentication.jwt.keyFile`.
    key_file: Option<Vec<u8>>,
}

impl Reloader {
    pub(super) fn new(
        config: &Config,
        live: Arc<Live>,
        own_authenticator: bool,
        (connections, sockets): (Arc<ConnectionLimiter>, Arc<ConnectionLimiter>),
        descriptors: Descriptors,
    ) -> Self {
        let running = Running { config: config.clone(), key_file: key_file(config) };
        Self { live, own_authenticator, connections, sockets, descriptors, running: Mutex::new(running) }
    }

    /// Checks whether `new` could be applied, without the files that it names.
    pub(super) fn check(&self, new: &Config) -> Result<(), ServerError> {
        Ok(self.next(&self.running.lock().config, new).map(drop)?)
    }

    /// Returns the configuration that `new` leads to, and the warnings about `new`.
    fn next(&self, running: &Config, new: &Config) -> Result<(Config, Vec<String>), ConfigError> {
        let warnings = validate(new, self.own_authenticator)?;
        let mut next = running.clone();
        next.take_reloadable(new);
        if self.own_authenticator {
            // The token settings have no effect, and are compared as unchanged.
            next.authentication.clone_from(&running.authentication);
        }
        // A new value may be valid only with another one that takes effect at the next start, such as
        // `authentication.insecure` with `host`.
        validate(&next, self.own_authenticator)?;
        Ok((next, warnings))
    }

    /// Applies `new`, as far as a running server can. A rejected configuration changes nothing.
    pub(super) fn reload(&self, new: &Config) -> Result<Reloaded, ServerError> {
        let mut running = self.running.lock();
        let (next, warnings) = self.next(&running.config, new)?;
        let mut applied = running.config.changed_keys(&next);
        let key_file = key_file(&next);
        if key_file != running.key_file && !applied.contains(&KEY_FILE) {
            applied.push(KEY_FILE);
        }
        let descriptors = self.descriptors.divide_again(&next);
        let authenticator = if self.own_authenticator || !applied.iter().any(|key| is_of_tokens(key)) {
            // With its cache of published keys, and its requests in progress.
            self.live.load().authenticator.clone()
        } else {
            authenticator(&next, descriptors.outbound)?
        };
        // From here on nothing fails.
        self.connections.set_limits(descriptors.connections, next.limits.connections_per_address);
        self.sockets.set_limits(descriptors.sockets, 0);
        self.live.replace(LiveSettings::new(&next, authenticator));
        let at_next_start = next.changed_keys(new);
        *running = Running { config: next, key_file };
        Ok(Reloaded { applied, at_next_start, warnings })
    }
}

const KEY_FILE: &str = "authentication.jwt.keyFile";

/// Reports whether a key changes how tokens are checked.
fn is_of_tokens(key: &str) -> bool {
    ["authentication.jwt.", "authentication.webhook.", "authentication.insecure"].iter().any(|of| key.starts_with(of))
}

/// Reads the key file, to detect a change of its content. An unreadable one is reported by the authenticator.
fn key_file(config: &Config) -> Option<Vec<u8>> {
    let path: &Path = config.authentication.jwt.as_ref()?.key_file.as_ref()?;
    // The authenticator rejects a file above the limit, so the rest of one need not be compared.
    read_bounded(path, KEY_FILE_BYTES_MAX).ok()
}

/// Validates a configuration, and returns its warnings.
///
/// With the embedding program's own authenticator the token settings have no effect, so none is required.
pub(super) fn validate(config: &Config, own_authenticator: bool) -> Result<Vec<String>, ConfigError> {
    if !own_authenticator {
        return config.validate();
    }
    let mut config = config.clone();
    let authentication = &mut config.authentication;
    (authentication.jwt, authentication.webhook) = (None, None);
    (authentication.insecure, authentication.insecure_public) = (true, true);
    config.validate().map(|_| Vec::new())
}

/// Creates the configured authenticator, which sends at most `outbound` requests at the same time.
pub(super) fn authenticator(
    config: &Config,
    outbound: usize,
) -> Result<Option<Arc<dyn Authenticator>>, AuthSetupError> {
    let mut authentication: config::Authentication = config.authentication.clone();
    if let Some(webhook) = &mut authentication.webhook {
        webhook.concurrency = webhook.concurrency.min(outbound);
    }
    auth::from_config(&authentication)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_file_without_end_is_compared_up_to_the_limit() {
        let file = tempfile::NamedTempFile::new().unwrap();
        // It takes no space on the disk. `/dev/zero` would fill the memory without the limit.
        file.as_file().set_len(8 << 20).unwrap();
        let key = |name: &str| format!("authentication.jwt.{name}");
        let flags = vec![
            (key("keyFile"), file.path().to_str().unwrap().into(), "--key-file".to_owned()),
            (key("algorithms"), vec!["EdDSA"].into(), "--key-file".to_owned()),
        ];
        let config = config::load(&config::Sources { flags, ..Default::default() }).unwrap().config;
        assert!(key_file(&config).is_some_and(|content| content.len() < 1 << 20));
    }
}
