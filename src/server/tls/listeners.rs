//! TLS of both ports.

use std::sync::Arc;

use tokio::task::spawn_blocking;

use super::{error::SetupError, source::Tls};
use crate::config::{Config, RedisProtocolTls, Tls as Settings};

/// TLS of the listeners. Both may share one.
#[derive(Clone, Default)]
pub(in crate::server) struct ListenerTls {
    pub(in crate::server) http: Option<Arc<Tls>>,
    pub(in crate::server) resp: Option<Arc<Tls>>,
}

impl ListenerTls {
    /// Returns each TLS once.
    pub(in crate::server) fn distinct(&self) -> impl Iterator<Item = &Arc<Tls>> {
        let resp = self.resp.as_ref();
        let own = resp.filter(|resp| !self.http.as_ref().is_some_and(|http| Arc::ptr_eq(http, resp)));
        self.http.iter().chain(own)
    }

    /// Loads the configured certificates.
    pub(in crate::server) async fn load(config: &Config) -> Result<Self, SetupError> {
        let http = match &config.tls {
            Some(settings) => Some(load(settings.clone(), "tls").await?),
            None => None,
        };
        let resp = match &config.redis_protocol.tls {
            _ if config.redis_protocol.port.is_none() => None,
            RedisProtocolTls::Off => None,
            RedisProtocolTls::Shared => http.clone(),
            RedisProtocolTls::Own(certificate) => {
                Some(load(Settings::new(certificate.clone()), "redisProtocol.tls").await?)
            }
        };
        Ok(Self { http, resp })
    }
}

async fn load(settings: Settings, key: &'static str) -> Result<Arc<Tls>, SetupError> {
    let loading = spawn_blocking(move || Tls::load(settings, key));
    // Cancelled only when the runtime stops; loading does not panic.
    let loaded = loading.await.unwrap_or_else(|error| Err(SetupError(format!("{key} was not loaded: {error}. Retry"))));
    loaded.map(Arc::new)
}
