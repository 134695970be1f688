//! Defines the settings of TLS. Files are read when the server starts, and again when they change.

use std::{fmt, path::PathBuf};

/// `tls.*`: certificates of the port for WebSocket and HTTP.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Tls {
    /// `tls.cert` and `tls.key`, or `tls.certificates`. The first one serves clients that name no known host.
    pub certificates: Vec<Certificate>,
    /// `tls.clientCa`: PEM file with the authorities of client certificates. `None` (default): none are requested.
    pub client_ca: Option<PathBuf>,
    /// `tls.clientCertificates`: whether a client must have a certificate of `client_ca`. Default required.
    pub client_certificates: ClientCertificates,
}

impl Tls {
    /// Returns settings with one certificate.
    #[must_use]
    pub fn new(certificate: Certificate) -> Self {
        Self { certificates: vec![certificate], ..Self::default() }
    }
}

/// A certificate with its private key, in PEM.
///
/// The chain begins with the server's certificate. Those of its intermediate authorities follow.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Certificate {
    /// Files, which are read again when they change.
    Files {
        /// The chain.
        cert: PathBuf,
        /// The private key.
        key: PathBuf,
    },
    /// Texts, set by a program.
    Pem {
        /// The chain.
        cert: String,
        /// The private key.
        key: String,
    },
}

impl Certificate {
    /// Returns a certificate of two files.
    #[must_use]
    pub fn files(cert: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        Self::Files { cert: cert.into(), key: key.into() }
    }

    /// Returns a certificate of two texts.
    #[must_use]
    pub fn pem(cert: impl Into<String>, key: impl Into<String>) -> Self {
        Self::Pem { cert: cert.into(), key: key.into() }
    }
}

/// Omits keys.
impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Files { cert, .. } => f.debug_struct("Files").field("cert", cert).finish_non_exhaustive(),
            Self::Pem { .. } => f.debug_struct("Pem").finish_non_exhaustive(),
        }
    }
}

/// Whether clients must have a certificate, if `tls.clientCa` is set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClientCertificates {
    /// A handshake without one fails.
    #[default]
    Required,
    /// A client may connect without one. A certificate of another authority fails.
    Optional,
}

/// `redisProtocol.tls`
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum RedisProtocolTls {
    /// `false`: plain TCP.
    #[default]
    Off,
    /// `true`: the certificates of `tls`, with its `clientCa`.
    Shared,
    /// A certificate of its own, without client certificates.
    Own(Certificate),
}
