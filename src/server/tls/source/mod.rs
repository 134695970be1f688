//! TLS settings with their current certificates, which follow the files.

#[cfg(test)]
mod tests;

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use parking_lot::{Mutex, RwLock};
use rustls::{
    ServerConfig,
    crypto::{self, CryptoProvider},
    server::ProducesTickets,
};
use tokio::{sync::watch, task::spawn_blocking};

use super::{certificates::Sources, error::SetupError};
use crate::{config::Tls as Settings, server::stop::stopped};

/// Interval at which the files are read, so that a renewed certificate is in use soon.
const POLL_INTERVAL: Duration = Duration::from_secs(2);

/// Remaining validity of a certificate below which a warning is logged.
const EXPIRY_WARNING: Duration = Duration::from_secs(14 * 24 * 60 * 60);

/// Protocol of the port for WebSocket and HTTP. A client that offers only others is rejected.
const HTTP: &[u8] = b"http/1.1";

/// Protocol of the port for Dispatchers, whose clients offer none.
///
/// A browser that is led to this port offers `http/1.1`, and is rejected.
const RESP: &[u8] = b"redis";

/// TLS settings with their current certificates.
pub(in crate::server) struct Tls {
    settings: Settings,
    /// Name of the settings in messages: `tls` or `redisProtocol.tls`.
    key: &'static str,
    provider: Arc<CryptoProvider>,
    current: RwLock<Loaded>,
    /// Held during a reload, so that an older content cannot replace a newer one.
    reloading: Mutex<Reloads>,
}

/// Certificates in use.
struct Loaded {
    http: Arc<ServerConfig>,
    resp: Arc<ServerConfig>,
}

/// State of reloading.
struct Reloads {
    sources: Sources,
    /// When the first certificate expires, with its source.
    expiry: Option<(SystemTime, String)>,
    /// Whether the current certificates were reported to expire soon.
    expiry_reported: bool,
    /// The last error of the periodic reload, which is logged once.
    error_reported: Option<SetupError>,
}

impl Tls {
    /// Loads the certificates. Blocks.
    pub(in crate::server) fn load(settings: Settings, key: &'static str) -> Result<Self, SetupError> {
        let provider = Arc::new(crypto::aws_lc_rs::default_provider());
        let sources = Sources::read(&settings, key)?;
        let (loaded, expiry) = build(&settings, &sources, &provider, None)?;
        let reloads = Reloads { sources, expiry, expiry_reported: false, error_reported: None };
        Ok(Self { settings, key, provider, current: RwLock::new(loaded), reloading: Mutex::new(reloads) })
    }

    /// Returns the configuration for a handshake on the port for WebSocket and HTTP.
    pub(in crate::server) fn http(&self) -> Arc<ServerConfig> {
        self.current.read().http.clone()
    }

    /// Returns the configuration for a handshake on the port of the Redis protocol.
    pub(in crate::server) fn resp(&self) -> Arc<ServerConfig> {
        self.current.read().resp.clone()
    }

    /// Reads all files, and uses their certificates for later handshakes. True if a file has changed.
    ///
    /// After an error the current certificates stay in use. Open connections are not affected.
    pub(in crate::server) async fn reload(self: &Arc<Self>) -> Result<bool, SetupError> {
        let tls = self.clone();
        // Reading files does not panic, and the task is never aborted.
        spawn_blocking(move || tls.reload_now(&mut tls.reloading.lock())).await.unwrap_or(Ok(false))
    }

    fn reload_now(&self, reloads: &mut Reloads) -> Result<bool, SetupError> {
        let sources = Sources::read(&self.settings, self.key)?;
        if sources == reloads.sources {
            reloads.error_reported = None;
            return Ok(false);
        }
        let (loaded, expiry) = {
            let current = self.current.read();
            build(&self.settings, &sources, &self.provider, Some(&current))?
        };
        *self.current.write() = loaded;
        *reloads = Reloads { sources, expiry, expiry_reported: false, error_reported: None };
        tracing::info!("{}: the certificates have changed, and are in use for new connections", self.key);
        Ok(true)
    }

    /// Reloads changed files, and reports certificates that expire soon, until `stop` is set.
    pub(in crate::server) async fn maintain(self: &Arc<Self>, mut stop: watch::Receiver<bool>) {
        loop {
            let tls = self.clone();
            _ = spawn_blocking(move || tls.poll_files(SystemTime::now())).await;
            tokio::select! {
                () = tokio::time::sleep(POLL_INTERVAL) => {}
                () = stopped(&mut stop) => return,
            }
        }
    }

    fn poll_files(&self, now: SystemTime) {
        let mut reloads = self.reloading.lock();
        if let Err(error) = self.reload_now(&mut reloads)
            && reloads.error_reported.as_ref() != Some(&error)
        {
            tracing::warn!("{error}. The certificates loaded before stay in use");
            reloads.error_reported = Some(error);
        }
        if let Some((expiry, name)) = &reloads.expiry
            && !reloads.expiry_reported
            && *expiry < now + EXPIRY_WARNING
        {
            match expiry.duration_since(now) {
                Ok(left) => {
                    let days = left.as_secs() / (24 * 60 * 60);
                    tracing::warn!("the certificate of {name} expires in {days} days; renew it");
                }
                Err(_) => {
                    tracing::warn!("the certificate of {name} has expired; clients reject it until it is renewed");
                }
            }
            reloads.expiry_reported = true;
        }
    }
}

/// Builds the configurations of both ports.
fn build(
    settings: &Settings,
    sources: &Sources,
    provider: &Arc<CryptoProvider>,
    before: Option<&Loaded>,
) -> Result<(Loaded, Option<(SystemTime, String)>), SetupError> {
    let keys = sources.keys(provider)?;
    let expiry = sources.earliest_expiry(&keys);
    let keys = Arc::new(keys);
    let verifier = sources.client_verifier(provider, settings.client_certificates)?;
    // A ticket holds the client's verified certificate. So with client certificates a reload invalidates all tickets:
    // their authority may have changed.
    let before = before.filter(|_| verifier.is_none());
    let config = |protocol: &[u8], tickets: Option<&Arc<dyn ProducesTickets>>| {
        let builder = ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions();
        let builder = builder.map_err(|error| SetupError(format!("TLS cannot be set up: {error}")))?;
        let builder = match &verifier {
            Some(verifier) => builder.with_client_cert_verifier(verifier.clone()),
            None => builder.with_no_client_auth(),
        };
        let mut config = builder.with_cert_resolver(keys.clone());
        config.alpn_protocols = vec![protocol.to_vec()];
        config.ticketer = match tickets {
            Some(tickets) => tickets.clone(),
            None => crypto::aws_lc_rs::Ticketer::new()
                .map_err(|error| SetupError(format!("TLS cannot be set up: {error}. Restart the server")))?,
        };
        Ok(Arc::new(config))
    };
    let http = config(HTTP, before.map(|before| &before.http.ticketer))?;
    let resp = config(RESP, before.map(|before| &before.resp.ticketer))?;
    Ok((Loaded { http, resp }, expiry))
}
