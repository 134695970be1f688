//! Validates the settings of trusted proxies.

use super::Checks;
use crate::config::{Config, error::excerpt, parse_network};

/// Most trusted networks. Each connection is compared with all of them.
const NETWORKS_MAX: usize = 1000;

impl Checks {
    pub(super) fn proxies(&mut self, config: &Config) {
        let networks = &config.trusted_proxies;
        if networks.len() > NETWORKS_MAX {
            let count = networks.len();
            self.reject(
                &["trustedProxies"],
                format!("trustedProxies has {count} networks; it may have at most {NETWORKS_MAX}"),
            );
        }
        for (index, text) in networks.iter().enumerate() {
            match parse_network(text) {
                None => self.reject(&["trustedProxies"], format!(
                    "trustedProxies[{index}] must be a network or an address, like 10.0.0.0/8 or ::1, but is \"{}\"",
                    excerpt(text)
                )),
                Some(network) if network.prefix_len() == 0 => self.warn(format!(
                    "trustedProxies[{index}] is {text}: every client can choose the address that limits apply to; name the \
                     networks of your proxies"
                )),
                Some(_) => {}
            }
        }
        if config.proxy_protocol && networks.is_empty() {
            self.reject(
                &["proxyProtocol", "trustedProxies"],
                "proxyProtocol is on, and trustedProxies names no proxy that may use it; set trustedProxies, or \
                 proxyProtocol to false",
            );
        }
    }
}
