//! Finds the client's address in the headers of a trusted proxy.
//!
//! Each proxy appends the address of its peer. So the last addresses are of trusted proxies, and the first one before
//! them is the client's. What precedes it was sent by the client, and may be anything.

use std::{
    net::{IpAddr, SocketAddr},
    str,
};

use http::{HeaderMap, HeaderName, header::FORWARDED};

use super::trusted::TrustedProxies;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// Client of a request.
pub(in crate::server) struct Client {
    /// Address of the client. Its port is 0 if a proxy does not tell it.
    pub address: SocketAddr,
    /// Whether a proxy tells that the client uses TLS.
    pub is_secure: bool,
}

impl TrustedProxies {
    /// Returns the client of a request that this peer has sent.
    ///
    /// It is the peer itself, if that is no trusted proxy, or tells no usable address.
    pub(in crate::server) fn client(&self, peer: SocketAddr, headers: &HeaderMap) -> Client {
        if !self.contains(peer.ip()) {
            return Client { address: peer, is_secure: false };
        }
        let Forwarded { address, is_secure } = Forwarded::read(headers, self);
        Client { address: address.unwrap_or(peer), is_secure }
    }
}

/// What the headers of a trusted proxy tell.
struct Forwarded {
    /// `None`: they have no usable address.
    address: Option<SocketAddr>,
    is_secure: bool,
}

impl Forwarded {
    /// Reads the headers of a request.
    ///
    /// With both headers, and different addresses in them, neither is used: a proxy sets one, and passes the other one on
    /// as its client has sent it.
    fn read(headers: &HeaderMap, proxies: &TrustedProxies) -> Self {
        let nodes = headers.contains_key(FORWARDED).then(|| {
            let elements = elements(headers, &FORWARDED);
            let clients = elements.map(|element| parameter(element, "for").and_then(parse_node));
            client(clients, proxies)
        });
        let listed = headers
            .contains_key(X_FORWARDED_FOR)
            .then(|| client(elements(headers, &X_FORWARDED_FOR).map(parse_node), proxies));
        let address = match (nodes, listed) {
            (Some(one), Some(other)) if one.map(|one| one.ip()) != other.map(|other| other.ip()) => None,
            (Some(address), _) | (None, Some(address)) => address,
            (None, None) => None,
        };
        let proto = elements(headers, &X_FORWARDED_PROTO).next();
        let proto = proto.or_else(|| elements(headers, &FORWARDED).next().and_then(|last| parameter(last, "proto")));
        Self { address, is_secure: proto.is_some_and(|proto| proto.eq_ignore_ascii_case("https")) }
    }
}

/// Returns the last address that is not of a trusted proxy, or else the first one. `None` if one before that is unusable.
fn client(from_last: impl Iterator<Item = Option<SocketAddr>>, proxies: &TrustedProxies) -> Option<SocketAddr> {
    let mut first = None;
    for address in from_last {
        let address = address?;
        if !proxies.contains(address.ip()) {
            return Some(address);
        }
        first = Some(address);
    }
    first
}

/// Returns the elements of all headers of a name, the last one first.
///
/// In `Forwarded` a comma in quotes separates nothing. Headers have at most 16 KiB, so the work is bounded.
fn elements<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let has_quotes = *name == FORWARDED;
    let mut elements = Vec::new();
    for value in headers.get_all(name) {
        let mut quoted = false;
        elements.extend(value.as_bytes().split(|byte| {
            quoted ^= has_quotes && *byte == b'"';
            *byte == b',' && !quoted
        }));
    }
    // Other bytes make only their own element unusable.
    elements.into_iter().rev().map(|element| str::from_utf8(element).unwrap_or("?").trim())
}

/// Returns the value of a parameter of a `Forwarded` element (RFC 7239), without quotes.
fn parameter<'a>(element: &'a str, name: &str) -> Option<&'a str> {
    let pairs = element.split(';').filter_map(|pair| pair.split_once('='));
    let mut values = pairs.filter(|(key, _)| key.trim().eq_ignore_ascii_case(name)).map(|(_, value)| value.trim());
    let value = values.next()?;
    let unquoted = value.strip_prefix('"').map_or(Some(value), |rest| rest.strip_suffix('"'));
    unquoted.filter(|_| values.next().is_none())
}

/// Parses an address, with or without port; an IPv6 address may have brackets.
fn parse_node(text: &str) -> Option<SocketAddr> {
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Some(SocketAddr::new(address.ip().to_canonical(), address.port()));
    }
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    bare.parse::<IpAddr>().ok().map(|address| SocketAddr::new(address.to_canonical(), 0))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn read(pairs: &[(&str, &str)]) -> (Option<String>, bool) {
        let proxies = TrustedProxies::new(&["10.0.0.0/8".into(), "fd00::/8".into(), "192.0.2.1".into()]);
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            headers.append(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        let read = Forwarded::read(&headers, &proxies);
        (read.address.map(|address| address.to_string()), read.is_secure)
    }

    fn address(name: &str, value: &str) -> Option<String> {
        read(&[(name, value)]).0
    }

    #[test]
    fn client_is_the_last_address_that_is_not_trusted() {
        for (value, expected) in [
            ("203.0.113.7", "203.0.113.7:0"),
            ("203.0.113.7:5000", "203.0.113.7:5000"),
            ("2001:db8::9", "[2001:db8::9]:0"),
            ("[2001:db8::9]", "[2001:db8::9]:0"),
            ("[2001:db8::9]:5000", "[2001:db8::9]:5000"),
            ("::ffff:203.0.113.7", "203.0.113.7:0"),
            ("198.51.100.1, 203.0.113.7", "203.0.113.7:0"),
            ("198.51.100.1,203.0.113.7 , 10.1.2.3,\t192.0.2.1", "203.0.113.7:0"),
            ("203.0.113.7, ::ffff:10.1.2.3, fd00::1", "203.0.113.7:0"),
            // Anything that the client has sent.
            ("garbage, 203.0.113.7", "203.0.113.7:0"),
            ("\"unclosed, 203.0.113.7", "203.0.113.7:0"),
            ("\u{e9}, 203.0.113.7", "203.0.113.7:0"),
            // A client within the trusted network.
            ("10.9.9.9, 10.1.2.3", "10.9.9.9:0"),
        ] {
            assert_eq!(address("x-forwarded-for", value).as_deref(), Some(expected), "{value}");
        }
        for (value, expected) in [
            ("for=203.0.113.7", "203.0.113.7:0"),
            ("For=\"203.0.113.7:5000\";proto=http;by=10.0.0.1", "203.0.113.7:5000"),
            ("for=198.51.100.1, for=\"[2001:db8::9]:5000\" , for=10.1.2.3", "[2001:db8::9]:5000"),
            ("for=\"a,b\", proto=https; for=203.0.113.7", "203.0.113.7:0"),
        ] {
            assert_eq!(address("forwarded", value).as_deref(), Some(expected), "{value}");
        }
        // Several headers of a name are one list.
        let pairs = [("x-forwarded-for", "198.51.100.1"), ("x-forwarded-for", "203.0.113.7")];
        assert_eq!(read(&pairs).0.as_deref(), Some("203.0.113.7:0"));
    }

    #[test]
    fn unusable_header_has_no_client() {
        for value in ["", ",", "unknown", "203.0.113.7, ", "203.0.113.7, x, 10.0.0.1", "203.0.113.256", "[::1", "é"] {
            assert_eq!(address("x-forwarded-for", value), None, "{value}");
        }
        for value in [
            "",
            "for",
            "for=",
            "for=unknown",
            "for=_hidden",
            "proto=https",
            "for=\"203.0.113.7",
            "for=\"",
            "for=é",
            "for=203.0.113.7;for=203.0.113.7",
        ] {
            assert_eq!(address("forwarded", value), None, "{value}");
        }
        assert_eq!(read(&[]), (None, false));
    }

    #[test]
    fn headers_that_disagree_have_no_client() {
        let both = |forwarded, listed| read(&[("forwarded", forwarded), ("x-forwarded-for", listed)]).0;
        assert_eq!(both("for=203.0.113.7", "198.51.100.1"), None);
        assert_eq!(both("for=unknown", "198.51.100.1"), None);
        assert_eq!(both("for=203.0.113.7", "203.0.113.7").as_deref(), Some("203.0.113.7:0"));
    }

    #[test]
    fn scheme_is_that_of_the_last_proxy() {
        let is_secure = |name, value| read(&[(name, value)]).1;
        assert!(is_secure("x-forwarded-proto", "HTTPS") && is_secure("forwarded", "for=::1;proto=https"));
        assert!(!is_secure("x-forwarded-proto", "https, http") && !is_secure("forwarded", "proto=https, proto=http"));
    }
}
