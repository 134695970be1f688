//! What precedes the protocol of a port: the header of a proxy, and the TLS handshake.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use tokio::net::TcpStream;

use super::{
    proxies::{HeaderError, TrustedProxies, read_header},
    stream::AcceptedStream,
    tls::{Handshake, Tls, handshake},
};
use crate::{
    health::{LogLimit, info_seldom},
    metrics::Metrics,
};

/// Limits the log lines about peers that begin with something else, which each connection can cause.
static NO_HEADER: LogLimit = LogLimit::new();
static HANDSHAKE_FAILED: LogLimit = LogLimit::new();
static PLAIN_HTTP: LogLimit = LogLimit::new();
static PLAIN_RESP: LogLimit = LogLimit::new();

/// A port of the server.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Port {
    Http,
    Resp,
}

/// What a port expects before its protocol.
#[derive(Clone)]
pub(super) struct Preface {
    port: Port,
    tls: Option<Arc<Tls>>,
    /// Proxies that send a header; `None`: `proxyProtocol` is off.
    proxies: Option<Arc<TrustedProxies>>,
}

/// A connection whose protocol begins now.
pub(super) struct Opened {
    pub stream: AcceptedStream,
    /// Whether the peer does not speak TLS on a port with TLS, so that it gets an error only.
    pub is_rejected: bool,
}

impl Opened {
    /// Returns a connection without a preface.
    pub(super) fn plain(stream: TcpStream) -> Self {
        Self { stream: AcceptedStream::Tcp(stream), is_rejected: false }
    }
}

impl Preface {
    pub(super) fn new(port: Port, tls: Option<Arc<Tls>>, proxies: Option<Arc<TrustedProxies>>) -> Self {
        Self { port, tls, proxies }
    }

    /// Returns whether a connection of this peer has a preface.
    pub(super) fn is_expected(&self, peer: IpAddr) -> bool {
        self.tls.is_some() || self.expects_header(peer)
    }

    /// Returns whether this peer has to send the header of a proxy.
    pub(super) fn expects_header(&self, peer: IpAddr) -> bool {
        self.proxies.as_ref().is_some_and(|proxies| proxies.contains(peer))
    }

    /// Reads the header of a proxy, if one is expected, and returns the client's address. `None` if it is unusable.
    ///
    /// The caller limits the time.
    pub(super) async fn read_header(
        &self,
        stream: &mut TcpStream,
        peer: SocketAddr,
        metrics: &Metrics,
    ) -> Option<SocketAddr> {
        if !self.expects_header(peer.ip()) {
            return Some(peer);
        }
        match read_header(stream).await {
            Ok(client) => return Some(client.unwrap_or(peer)),
            Err(HeaderError::Ended) => {}
            Err(error) => {
                metrics.rejected_connections.inc();
                info_seldom!(
                    NO_HEADER, proxy = %peer,
                    "a connection of a trusted proxy was rejected: {error}; make the proxy send one (HAProxy: \
                     send-proxy-v2, nginx: proxy_protocol on), or set proxyProtocol to false"
                );
            }
        }
        None
    }

    /// Does the TLS handshake, if the port has TLS; `None` if it fails. The caller limits the time.
    pub(super) async fn secure(&self, stream: TcpStream, peer: SocketAddr, metrics: &Metrics) -> Option<Opened> {
        let Some(tls) = &self.tls else { return Some(Opened::plain(stream)) };
        let config = match self.port {
            Port::Http => tls.http(),
            Port::Resp => tls.resp(),
        };
        match handshake(config, stream).await {
            Handshake::Done(stream) => {
                return Some(Opened { stream: AcceptedStream::Tls(stream), is_rejected: false });
            }
            Handshake::Plain(stream) => {
                metrics.rejected_connections.inc();
                match self.port {
                    Port::Http => info_seldom!(
                        PLAIN_HTTP, %peer,
                        "a client sent plain HTTP, but this port speaks TLS; use wss:// and https://"
                    ),
                    Port::Resp => info_seldom!(
                        PLAIN_RESP, %peer,
                        "a client of the Redis protocol sent no TLS, but this port needs it; use rediss://"
                    ),
                }
                return Some(Opened { is_rejected: true, ..Opened::plain(stream) });
            }
            Handshake::Closed => {}
            Handshake::Failed(error) => {
                metrics.rejected_connections.inc();
                info_seldom!(HANDSHAKE_FAILED, %peer, error, "a TLS handshake failed");
            }
        }
        None
    }
}
