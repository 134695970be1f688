//! Does a handshake, or recognizes a peer that does not speak TLS.

use std::{io, sync::Arc};

use rustls::ServerConfig;
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, server};

use crate::logging::network_error;

/// A TLS connection with a completed handshake.
pub(in crate::server) type TlsStream = server::TlsStream<TcpStream>;

/// Bytes that TLS may buffer for a peer that does not read: one record of the largest size.
///
/// The buffer is in addition to the limits of a connection, and each byte of it delays a heartbeat.
const BUFFER_BYTES_MAX: usize = 16 << 10;

/// Result of a handshake.
pub(in crate::server) enum Handshake {
    Done(Box<TlsStream>),
    /// The peer has sent text, as a client without TLS does. Nothing was read from the socket.
    Plain(TcpStream),
    /// The peer has closed before it sent anything, as some health checks do.
    Closed,
    /// The handshake failed, with the reason.
    Failed(String),
}

/// Does a handshake. The caller has to limit its time.
pub(in crate::server) async fn handshake(config: Arc<ServerConfig>, stream: TcpStream) -> Handshake {
    let mut first = [0];
    match stream.peek(&mut first).await {
        Ok(0) => return Handshake::Closed,
        Ok(_) if first[0].is_ascii_graphic() => return Handshake::Plain(stream),
        Ok(_) => {}
        Err(error) => return failed(&error),
    }
    let limit_buffer = |connection: &mut rustls::ServerConnection| {
        connection.set_buffer_limit(Some(BUFFER_BYTES_MAX));
    };
    match TlsAcceptor::from(config).accept_with(stream, limit_buffer).await {
        Ok(stream) => Handshake::Done(Box::new(stream)),
        Err(error) => failed(&error),
    }
}

fn failed(error: &io::Error) -> Handshake {
    Handshake::Failed(network_error(error))
}
