//! Reads the header of the PROXY protocol, versions 1 and 2, with which a proxy tells the address of its client.
//!
//! Only the header is taken from the socket, so that TLS or HTTP can follow.

use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    str,
};

use tokio::{io::AsyncReadExt as _, net::TcpStream};

/// Longest header of version 1, with its line end.
const V1_BYTES_MAX: usize = 107;

/// Longest addresses and additions of version 2. `HAProxy` sends up to 536 bytes with default settings.
const V2_BYTES_MAX: usize = 4 << 10;

/// Begin of version 1.
const V1_BEGIN: &[u8] = b"PROXY ";

/// Begin of version 2.
const V2_BEGIN: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// Bytes of version 2 before the addresses.
const V2_HEAD_BYTES: usize = 16;

/// Why a connection has no usable header.
#[derive(Debug)]
pub(in crate::server) enum HeaderError {
    /// The connection begins with something else.
    Missing,
    /// The header breaks a rule.
    Malformed(&'static str),
    /// The connection has ended.
    Ended,
}

impl fmt::Display for HeaderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("it sent no PROXY header"),
            Self::Malformed(why) => write!(f, "its PROXY header is malformed: {why}"),
            Self::Ended => f.write_str("it has closed the connection"),
        }
    }
}

impl From<io::Error> for HeaderError {
    fn from(_: io::Error) -> Self {
        Self::Ended
    }
}

/// Reports whether the first bytes of a connection are those of a PROXY header.
pub(in crate::server) fn is_proxy_header(bytes: &[u8]) -> bool {
    bytes.starts_with(V1_BEGIN) || bytes.starts_with(V2_BEGIN)
}

/// Reads a header. `None`: the proxy speaks for itself, or its client has no IP address. The caller limits the time.
pub(in crate::server) async fn read_header(stream: &mut TcpStream) -> Result<Option<SocketAddr>, HeaderError> {
    let mut first = [0];
    if stream.peek(&mut first).await? == 0 {
        return Err(HeaderError::Ended);
    }
    match first[0] {
        b'P' => read_v1(stream).await,
        b'\r' => read_v2(stream).await,
        _ => Err(HeaderError::Missing),
    }
}

async fn read_v1(stream: &mut TcpStream) -> Result<Option<SocketAddr>, HeaderError> {
    let (mut line, mut next) = (Vec::with_capacity(V1_BYTES_MAX), [0; V1_BYTES_MAX]);
    while !line.ends_with(b"\n") {
        let space = V1_BYTES_MAX - line.len();
        if space == 0 {
            return Err(HeaderError::Malformed("it has more than 107 bytes"));
        }
        // What was peeked belongs to the header up to the end of its line, and is taken only so far.
        let peeked = stream.peek(&mut next[..space]).await?;
        let taken = next[..peeked].iter().position(|byte| *byte == b'\n').map_or(peeked, |end| end + 1);
        if taken == 0 {
            return Err(HeaderError::Ended);
        }
        stream.read_exact(&mut next[..taken]).await?;
        line.extend_from_slice(&next[..taken]);
        let compared = line.len().min(V1_BEGIN.len());
        if line[..compared] != V1_BEGIN[..compared] {
            return Err(HeaderError::Missing);
        }
    }
    parse_v1(&line)
}

/// Parses `PROXY TCP4 SOURCE DESTINATION SOURCE-PORT DESTINATION-PORT`, or `PROXY UNKNOWN…`.
fn parse_v1(line: &[u8]) -> Result<Option<SocketAddr>, HeaderError> {
    const SHAPE: HeaderError = HeaderError::Malformed("version 1 must be PROXY TCP4|TCP6 and two addresses and ports");
    let line = line.strip_suffix(b"\r\n").and_then(|line| str::from_utf8(line).ok()).ok_or(SHAPE)?;
    let words: Vec<&str> = line.split(' ').collect();
    if words.get(1) == Some(&"UNKNOWN") {
        return Ok(None);
    }
    let [_, family, source, destination, source_port, destination_port] = words[..] else { return Err(SHAPE) };
    let address = |text: &str| match family {
        "TCP4" => text.parse().ok().map(IpAddr::V4),
        "TCP6" => text.parse().ok().map(IpAddr::V6),
        _ => None,
    };
    match (address(source), address(destination), source_port.parse::<u16>(), destination_port.parse::<u16>()) {
        (Some(source), Some(_), Ok(port), Ok(_)) => Ok(Some(SocketAddr::new(source, port))),
        _ => Err(SHAPE),
    }
}

async fn read_v2(stream: &mut TcpStream) -> Result<Option<SocketAddr>, HeaderError> {
    let mut head = [0; V2_HEAD_BYTES];
    stream.read_exact(&mut head).await?;
    if !head.starts_with(V2_BEGIN) {
        return Err(HeaderError::Missing);
    }
    let length = usize::from(u16::from_be_bytes([head[14], head[15]]));
    if length > V2_BYTES_MAX {
        return Err(HeaderError::Malformed("version 2 may have at most 4096 bytes of addresses and additions"));
    }
    let mut addresses = vec![0; length];
    stream.read_exact(&mut addresses).await?;
    parse_v2(head[12], head[13], &addresses)
}

/// Parses version, command, family and addresses. Additions after the addresses are ignored.
fn parse_v2(version_and_command: u8, family: u8, addresses: &[u8]) -> Result<Option<SocketAddr>, HeaderError> {
    match version_and_command {
        // LOCAL: a health check of the proxy itself.
        0x20 => return Ok(None),
        0x21 => {}
        _ => return Err(HeaderError::Malformed("version 2 has an unknown version or command")),
    }
    let too_short = HeaderError::Malformed("version 2 has too few bytes of addresses");
    let port = |at: usize| addresses.get(at..at + 2).map(|port| u16::from_be_bytes([port[0], port[1]]));
    let source = match family {
        0x11 => addresses.first_chunk::<4>().map(|source| IpAddr::V4(Ipv4Addr::from(*source))).zip(port(8)),
        0x21 => addresses.first_chunk::<16>().map(|source| IpAddr::V6(Ipv6Addr::from(*source))).zip(port(32)),
        // UDP, sockets of a file system, or unspecified.
        _ => return Ok(None),
    };
    let bytes = if family == 0x11 { 12 } else { 36 };
    let source = source.filter(|_| addresses.len() >= bytes).ok_or(too_short)?;
    Ok(Some(SocketAddr::from(source)))
}

#[cfg(test)]
mod tests;
