//! Errors of a server.

use std::io;

use super::tls::SetupError as TlsSetupError;
use crate::{auth, config::ConfigError, http_client::UrlError, hub::StoreError};

/// Error for which a server did not start, or stopped by itself.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// The configuration is invalid.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The authentication cannot be set up; most often a key file is missing or invalid.
    #[error(transparent)]
    Auth(#[from] auth::AuthSetupError),
    /// The certificates cannot be used; most often a file is missing, or the key is of another certificate.
    #[error(transparent)]
    Tls(#[from] TlsSetupError),
    /// The store cannot be opened, or has failed while the server ran.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The webhook cannot be set up.
    #[error("portal.webhook: its address {0}")]
    Webhook(#[from] UrlError),
    /// `MESA_FAILPOINT` or `MESA_FAILPOINT_PANIC` has an unknown name. Only builds with the cargo feature `failpoints` read it.
    #[doc(hidden)]
    #[error("{0}")]
    Failpoint(String),
    /// The server has stopped.
    #[error("the server has stopped")]
    Stopped,
    /// The listener has failed.
    #[error("cannot listen: {0}")]
    Listen(#[from] io::Error),
}
