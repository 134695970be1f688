//! The network that counts as one client.

use std::net::{IpAddr, Ipv6Addr};

/// Returns the network that counts as one client: the IPv4 address, or the /64 of an IPv6 address.
///
/// One host commonly has a whole /64, so a limit per IPv6 address would be no limit.
pub fn client_network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        address @ IpAddr::V4(_) => address,
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn addresses_of_one_network_count_together() {
        let network = |text: &str| super::client_network(text.parse().unwrap());
        assert_eq!(network("2001:db8::1"), network("2001:db8::ffff:1"));
        assert_ne!(network("2001:db8::1"), network("2001:db8:0:1::1"));
        assert_eq!(network("::ffff:10.0.0.1"), network("10.0.0.1"));
    }
}
