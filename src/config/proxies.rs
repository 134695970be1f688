//! Parses the networks of trusted proxies.

use std::net::IpAddr;

use ipnet::IpNet;

/// Parses a network (`10.0.0.0/8`), or an address as the network of that address.
pub(crate) fn parse_network(text: &str) -> Option<IpNet> {
    text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
}
