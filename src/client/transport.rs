//! Defines [`Transport`], the settings of a client's network connections.

use std::{fmt, path::PathBuf};

use super::address::without_userinfo;

/// Configures certificates and proxy of a client's connections.
///
/// The default trusts the authorities of the system, and uses the proxy of the environment, like `reqwest` and `curl`:
/// `HTTPS_PROXY` for `wss://`, `HTTP_PROXY` for `ws://`, `ALL_PROXY` for both, each also in lower case. `NO_PROXY` lists
/// the hosts that are reached without one. Addresses of this machine never use a proxy of the environment.
///
/// ```
/// use mesa::client::{Client, Transport};
///
/// let transport = Transport::default().ca_file("/etc/ssl/our-authority.pem").no_proxy();
/// let builder = Client::builder("wss://messages.example.org/").transport(transport);
/// ```
#[must_use]
#[derive(Clone, Debug, Default)]
pub struct Transport {
    pub(super) authorities: Authorities,
    pub(super) proxy: ProxyChoice,
}

/// Certificate authorities that a client trusts.
#[derive(Clone, Debug, Default)]
pub(super) enum Authorities {
    #[default]
    System,
    File(PathBuf),
    Pem(Vec<u8>),
}

/// Proxy that a client uses.
#[derive(Clone, Default)]
pub(super) enum ProxyChoice {
    #[default]
    Environment,
    None,
    Url(String),
}

/// Omits the password.
impl fmt::Debug for ProxyChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Environment => f.write_str("Environment"),
            Self::None => f.write_str("None"),
            Self::Url(url) => f.write_str(&without_userinfo(url)),
        }
    }
}

impl Transport {
    /// Trusts the certificates of a PEM file, in place of the system's. The file is read when the client connects first.
    pub fn ca_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.authorities = Authorities::File(path.into());
        self
    }

    /// Trusts certificates in PEM, in place of the system's.
    pub fn ca_pem(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.authorities = Authorities::Pem(pem.into());
        self
    }

    /// Connects through this proxy only: `http://[USER:PASSWORD@]HOST:PORT`, or `https://`. It must support CONNECT.
    pub fn proxy(mut self, url: impl Into<String>) -> Self {
        self.proxy = ProxyChoice::Url(url.into());
        self
    }

    /// Connects without a proxy, whatever the environment names.
    pub fn no_proxy(mut self) -> Self {
        self.proxy = ProxyChoice::None;
        self
    }
}
