//! The proxies that are believed.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::config;

/// Networks of the proxies that are believed (`trustedProxies`).
#[derive(Debug)]
pub(in crate::server) struct TrustedProxies(Vec<IpNet>);

impl TrustedProxies {
    /// Parses validated networks.
    pub(in crate::server) fn new(networks: &[String]) -> Self {
        Self(networks.iter().filter_map(|text| config::parse_network(text)).collect())
    }

    pub(in crate::server) fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|network| network.contains(&address))
    }
}
