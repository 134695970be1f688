//! Settings that a reload changes while the server runs.
//!
//! A reload replaces all of them at once. Readers load the current values, without a lock.

use std::{fmt, ops::Deref, sync::Arc};

use arc_swap::ArcSwap;
use tokio::sync::watch;

use crate::{
    auth::{ApiKeys, Authenticator, Password},
    config::{Config, Limits},
};

/// The settings, as one generation.
pub struct LiveSettings {
    /// Keys that backends authenticate with.
    pub api_keys: ApiKeys,
    /// `None`: no authentication is configured.
    pub authenticator: Option<Arc<dyn Authenticator>>,
    /// Origins of the web pages that may call the API.
    pub cors_origins: Vec<String>,
    /// Bounds. Components that copy one of them at the start keep that value.
    pub limits: Limits,
    /// Whether only web pages of this machine are served.
    pub local_only: bool,
    /// Origins of the web pages that may open a WebSocket; `None`: all.
    pub origins: Option<Vec<String>>,
    /// Password of the Redis protocol; `None`: none is needed.
    pub redis_protocol_password: Option<Password>,
}

impl LiveSettings {
    /// Takes the settings from a validated configuration.
    #[must_use]
    pub fn new(config: &Config, authenticator: Option<Arc<dyn Authenticator>>) -> Self {
        Self {
            api_keys: ApiKeys::new(&config.api),
            authenticator,
            cors_origins: config.api.cors_origins.clone(),
            limits: config.limits.clone(),
            local_only: config.is_local_only(),
            origins: config.origins.clone(),
            redis_protocol_password: config.redis_protocol.password.as_deref().map(Password::new),
        }
    }
}

impl fmt::Debug for LiveSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LiveSettings").field("limits", &self.limits).finish_non_exhaustive()
    }
}

/// Holds the current settings of a server.
#[derive(Debug)]
pub struct Live {
    settings: ArcSwap<LiveSettings>,
    replaced: watch::Sender<()>,
}

impl Live {
    /// Starts with these settings.
    #[must_use]
    pub fn new(settings: LiveSettings) -> Arc<Self> {
        Arc::new(Self { settings: ArcSwap::from_pointee(settings), replaced: watch::Sender::new(()) })
    }

    /// Returns the current settings, for a short use. Costs some nanoseconds.
    #[must_use]
    pub fn load(&self) -> impl Deref<Target = Arc<LiveSettings>> + use<> {
        self.settings.load()
    }

    /// Replaces all settings.
    pub fn replace(&self, settings: LiveSettings) {
        self.settings.store(Arc::new(settings));
        self.replaced.send_replace(());
    }

    /// Resolves once `is_over` is true for the current settings.
    pub async fn wait_until(&self, is_over: impl Fn(&LiveSettings) -> bool) {
        // Subscribed before the first check, so that no replacement is missed.
        let mut replaced = self.replaced.subscribe();
        while !is_over(&self.load()) {
            // The sender lives as long as `self`.
            _ = replaced.changed().await;
        }
    }
}
