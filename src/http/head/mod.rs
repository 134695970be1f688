//! Checks the head of every request, HTTP and WebSocket. An ambiguous head is rejected rather than guessed.
//!
//! Where every token is accepted (`--dev`, `authentication.insecure`), only web pages of this machine are served.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use axum::http::{
    HeaderMap, Request, StatusCode, Version,
    header::{HOST, ORIGIN, TRANSFER_ENCODING},
};

use super::error::ApiError;

/// Enumerates the errors of a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadError {
    /// The head is ambiguous, or not HTTP.
    Malformed(&'static str),
    /// The request comes from another site.
    ForeignPage(&'static str),
}

impl HeadError {
    /// Returns the status and the message of the response.
    #[must_use]
    pub fn status_and_message(self) -> (StatusCode, &'static str) {
        match self {
            Self::Malformed(why) => (StatusCode::BAD_REQUEST, why),
            Self::ForeignPage(why) => (StatusCode::FORBIDDEN, why),
        }
    }
}

impl From<HeadError> for ApiError {
    fn from(error: HeadError) -> Self {
        match error {
            HeadError::Malformed(why) => Self::BadHead(why),
            HeadError::ForeignPage(why) => Self::ForeignPage(why),
        }
    }
}

/// Checks a request's head.
///
/// `local_only` rejects web pages of other machines, and host names that an attacker's DNS may resolve to this machine.
///
/// # Errors
/// Fails if the head is ambiguous or malformed, or if `local_only` rejects it.
pub fn check<B>(request: &Request<B>, local_only: bool) -> Result<(), HeadError> {
    let headers = request.headers();
    // HTTP/2 and later carry the host in `:authority`, and have no transfer codings.
    if request.version() <= Version::HTTP_11 {
        let host = host(headers)?;
        if host.is_none() && request.version() == Version::HTTP_11 {
            return Err(HeadError::Malformed("an HTTP/1.1 request needs a Host header; send one"));
        }
        let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
        if let Some(coding) = codings.next()
            && (codings.next().is_some() || !coding.as_bytes().eq_ignore_ascii_case(b"chunked"))
        {
            return Err(HeadError::Malformed(
                "the only supported Transfer-Encoding is chunked; send the body uncompressed",
            ));
        }
        // An HTTP/1.0 request without a Host does not come from a browser.
        if local_only && host.is_some_and(|host| !is_local_host(host)) {
            return Err(HeadError::ForeignPage(
                "with --dev or authentication.insecure the Host must be localhost, an IP address or a name without a \
                 dot; set `origins` to serve other names",
            ));
        }
    }
    if !has_valid_escapes(request.uri().path()) {
        return Err(HeadError::Malformed("in a path, % must be followed by two hexadecimal digits"));
    }
    if local_only && headers.get_all(ORIGIN).iter().any(|origin| !is_local_origin(origin.as_bytes())) {
        return Err(HeadError::ForeignPage(
            "with --dev or authentication.insecure only web pages of this machine may connect (http://localhost:PORT); set \
             `origins` to allow others",
        ));
    }
    Ok(())
}

/// Checks that a query decodes to UTF-8. The query decoder would otherwise replace invalid bytes by U+FFFD.
pub(super) fn check_query(query: Option<&str>) -> Result<(), ApiError> {
    let query = query.unwrap_or_default();
    if !query.contains('%') {
        return Ok(());
    }
    let Some(decoded) = percent_decode(query) else {
        return Err(ApiError::BadParameter("in a query, % must be followed by two hexadecimal digits".into()));
    };
    match std::str::from_utf8(&decoded) {
        Ok(_) => Ok(()),
        Err(_) => Err(ApiError::BadParameter("a query must be UTF-8, with its bytes escaped as %XX".into())),
    }
}

/// Decodes `%XX`; `None` if a `%` is not followed by two hexadecimal digits.
pub(super) fn percent_decode(text: &str) -> Option<Vec<u8>> {
    let mut bytes = text.bytes();
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => hex_digit(bytes.next())? << 4 | hex_digit(bytes.next())?,
            byte => byte,
        });
    }
    Some(decoded)
}

fn hex_digit(byte: Option<u8>) -> Option<u8> {
    byte.and_then(|byte| char::from(byte).to_digit(16)).map(|digit| digit as u8)
}

/// Reports whether each `%` is followed by two hexadecimal digits.
fn has_valid_escapes(path: &str) -> bool {
    let mut bytes = path.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' && (hex_digit(bytes.next()).is_none() || hex_digit(bytes.next()).is_none()) {
            return false;
        }
    }
    true
}

/// Returns the value of the Host header, undecoded; `None` if there is none.
fn host(headers: &HeaderMap) -> Result<Option<&[u8]>, HeadError> {
    let mut hosts = headers.get_all(HOST).iter();
    let host = hosts.next().map(axum::http::HeaderValue::as_bytes);
    if hosts.next().is_some() {
        return Err(HeadError::Malformed("a request may have only one Host header; send one"));
    }
    let is_legal = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=:[]".contains(byte);
    if host.is_some_and(|host| !host.iter().all(is_legal)) {
        return Err(HeadError::Malformed("the Host header must be a name or an address, and a port if it is not 80"));
    }
    Ok(host)
}

/// Returns the name in `name:port`, or the address in `[address]:port`.
fn host_name(host: &[u8]) -> Option<&str> {
    let host = std::str::from_utf8(host).ok()?;
    let (name, rest) = match host.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?,
        None => host.split_at(host.find(':').unwrap_or(host.len())),
    };
    let is_port = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit());
    (rest.is_empty() || rest.strip_prefix(':').is_some_and(is_port)).then_some(name)
}

/// Reports whether a request comes from a program or page of this machine, and not through a proxy.
///
/// The peer's address has to be checked too.
pub(super) fn is_of_this_machine(headers: &HeaderMap) -> bool {
    let is_proxied =
        ["forwarded", "x-forwarded-for", "x-real-ip", "via"].iter().any(|name| headers.contains_key(*name));
    let is_local_host = |host: &[u8]| {
        host_name(host).is_some_and(|name| {
            is_localhost(name) || name.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback())
        })
    };
    let host = host(headers).ok().flatten();
    let is_local_page = headers.get_all(ORIGIN).iter().all(|origin| is_local_origin(origin.as_bytes()));
    !is_proxied && is_local_page && host.is_some_and(is_local_host)
}

fn is_localhost(name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name);
    let ends = name.len().checked_sub("localhost".len()).filter(|at| name.is_char_boundary(*at));
    ends.is_some_and(|at| {
        name[at..].eq_ignore_ascii_case("localhost") && (at == 0 || name[..at].ends_with('.') && at > 1)
    })
}

/// Reports whether a Host is safe against DNS rebinding, where an attacker's name resolves to this machine.
///
/// An address is safe, and so is a name without a dot, as of services in a container network.
fn is_local_host(host: &[u8]) -> bool {
    let Some(name) = host_name(host) else { return false };
    !name.is_empty() && (name.parse::<IpAddr>().is_ok() || is_localhost(name) || !name.contains('.'))
}

/// Reports whether an origin is this machine.
///
/// A page from a file or in a sandbox has the origin `null`. Any site can make a sandboxed page, so `null` is rejected.
fn is_local_origin(origin: &[u8]) -> bool {
    let host = std::str::from_utf8(origin).ok().and_then(|origin| origin.split_once("://")).map(|(_, host)| host);
    host.and_then(|host| host_name(host.as_bytes())).is_some_and(|name| {
        is_localhost(name)
            || name.parse::<Ipv4Addr>().is_ok_and(|address| address.is_loopback())
            || name.parse::<Ipv6Addr>().is_ok_and(|address| address.is_loopback())
    })
}

#[cfg(test)]
mod tests;
