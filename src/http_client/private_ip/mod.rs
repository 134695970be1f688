//! Classifies addresses as private or public.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// IPv4 network: address and prefix length.
type Net4 = ([u8; 4], u32);
/// IPv6 network: the first four groups of the address, and prefix length.
type Net6 = ([u16; 4], u32);

/// Networks that IANA has reserved for special purposes, and multicast.
const PRIVATE_V4: &[Net4] = &[
    ([0, 0, 0, 0], 8),       // this host
    ([10, 0, 0, 0], 8),      // private
    ([100, 64, 0, 0], 10),   // shared (carrier-grade NAT)
    ([127, 0, 0, 0], 8),     // loopback
    ([169, 254, 0, 0], 16),  // link-local, with the metadata services of clouds
    ([172, 16, 0, 0], 12),   // private
    ([192, 0, 0, 0], 24),    // protocol assignments
    ([192, 0, 2, 0], 24),    // documentation
    ([192, 88, 99, 0], 24),  // relays to IPv6
    ([192, 168, 0, 0], 16),  // private
    ([198, 18, 0, 0], 15),   // benchmarks
    ([198, 51, 100, 0], 24), // documentation
    ([203, 0, 113, 0], 24),  // documentation
    ([224, 0, 0, 0], 4),     // multicast
    ([240, 0, 0, 0], 4),     // reserved, and broadcast
];

/// Public IPv6 networks: the only range allocated so far.
const PUBLIC_V6: Net6 = ([0x2000, 0, 0, 0], 3);

/// Exceptions within the public range.
const PRIVATE_V6: &[Net6] = &[
    ([0x2001, 0, 0, 0], 23),     // protocol assignments, among them Teredo
    ([0x2001, 0xdb8, 0, 0], 32), // documentation
    ([0x3fff, 0, 0, 0], 20),     // documentation
];

/// Returns whether an address is private, loopback, link-local or reserved.
///
/// For an IPv6 address that embeds an IPv4 address (mapped, NAT64, 6to4), the IPv4 address decides.
#[must_use]
pub fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_private_v4(address),
        IpAddr::V6(address) => is_private_v6(address),
    }
}

fn is_private_v4(address: Ipv4Addr) -> bool {
    PRIVATE_V4.iter().any(|(net, bits)| {
        let differ = u32::from(address) ^ u32::from(Ipv4Addr::from(*net));
        differ >> (32 - bits) == 0
    })
}

fn is_private_v6(address: Ipv6Addr) -> bool {
    let groups = address.segments();
    let v4 = |high: u16, low: u16| Ipv4Addr::from(u32::from(high) << 16 | u32::from(low));
    match groups {
        // Mapped, and NAT64.
        [0, 0, 0, 0, 0, 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => is_private_v4(v4(high, low)),
        // 6to4.
        [0x2002, high, low, ..] => is_private_v4(v4(high, low)),
        _ => {
            let inside = |(net, bits): &Net6| {
                let first =
                    |groups: &[u16]| groups.iter().take(4).fold(0_u64, |all, group| all << 16 | u64::from(*group));
                (first(&groups) ^ first(net)) >> (64 - bits) == 0
            };
            !inside(&PUBLIC_V6) || PRIVATE_V6.iter().any(inside)
        }
    }
}

#[cfg(test)]
mod tests;
