//! Taking connections in: one port for HTTP and WebSocket.

use std::{convert::Infallible, io, net::SocketAddr, sync::Arc, time::Duration};

use axum::body::Body;
use http::{Request, Response, StatusCode};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    sync::watch,
};

use super::{
    is_stopped,
    shared::Shared,
    slots::{Slot, Slots},
    stopped, upgrade,
};
use crate::{
    health::supervise,
    http::{Caller, Http},
};

/// Bytes of the head of a request; a longer one gets 431.
const HEAD_BYTES_MAX: usize = 16 << 10;

/// Pause after the system refused a connection (out of file descriptors, mostly), doubled up to a second.
const ACCEPT_PAUSE_MIN: Duration = Duration::from_millis(5);
const ACCEPT_PAUSE_MAX: Duration = Duration::from_secs(1);

/// Connections the system keeps for us until we accept them: a thousand clients coming back at once must not be sent
/// away for a second. The system may have a lower bound of its own.
const BACKLOG: u32 = 4096;

/// A peer that was not heard of for this long is asked whether it is there, and taken for gone after a minute without a
/// word: a stream of dispatches may be idle for ever, and its peer may have lost its network without one.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
const KEEPALIVE_TRIES: u32 = 3;

/// Listens on an address, with room for a rush.
///
/// # Errors
/// When the address is in use, not ours, or not allowed.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // Clients of a server that was just stopped linger in the system's tables; the port is free all the same.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Accepts connections until `stop` says so.
pub(super) async fn accept(
    listener: TcpListener,
    shared: Arc<Shared>,
    http: Http,
    slots: Arc<Slots>,
    stop: watch::Receiver<bool>,
) {
    let (health, stopping) = (shared.hub.health(), stop.clone());
    let is_over = move || is_stopped(&stopping);
    let state = (Door::new(listener), shared, http, slots);
    supervise(health, "accept_loop", state, is_over, |(door, shared, http, slots)| {
        Box::pin(accept_from(door, shared, http, slots, stop.clone()))
    })
    .await;
}

async fn accept_from(
    door: &mut Door,
    shared: &Arc<Shared>,
    http: &Http,
    slots: &Arc<Slots>,
    mut stop: watch::Receiver<bool>,
) {
    loop {
        let (stream, peer) = tokio::select! {
            accepted = door.next() => accepted,
            () = stopped(&mut stop) => {
                http.stop();
                return;
            }
        };
        let Some(slot) = slots.take(peer.ip()) else {
            shared.metrics.refused_connections.inc();
            tracing::debug!("a connection was refused: limits.connections or limits.connectionsPerAddress");
            continue;
        };
        tokio::spawn(serve(stream, peer, shared.clone(), http.clone(), slot, stop.clone()));
    }
}

/// A listener that goes on after what goes wrong with a single connection, or for a while.
pub(super) struct Door {
    listener: TcpListener,
    pause: Duration,
}

impl Door {
    pub(super) fn new(listener: TcpListener) -> Self {
        Self { listener, pause: ACCEPT_PAUSE_MIN }
    }

    /// The next connection, made ready for short answers and for peers who lose their network.
    pub(super) async fn next(&mut self) -> (TcpStream, SocketAddr) {
        loop {
            match self.listener.accept().await {
                Ok((stream, peer)) => {
                    self.pause = ACCEPT_PAUSE_MIN;
                    prepare(&stream);
                    return (stream, peer);
                }
                Err(error) if is_of_the_peer(&error) => {}
                Err(error) => {
                    let pause = self.pause;
                    tracing::error!(%error, "the system gives no more connections; trying again in {pause:?}");
                    tokio::time::sleep(pause).await;
                    self.pause = (pause * 2).min(ACCEPT_PAUSE_MAX);
                }
            }
        }
    }
}

fn prepare(stream: &TcpStream) {
    // An answer is one write, and a backend waits for it.
    _ = stream.set_nodelay(true);
    let keepalive =
        TcpKeepalive::new().with_time(KEEPALIVE_AFTER).with_interval(KEEPALIVE_INTERVAL).with_retries(KEEPALIVE_TRIES);
    _ = SockRef::from(stream).set_tcp_keepalive(&keepalive);
}

/// The peer was gone before we looked: nothing is wrong with us.
fn is_of_the_peer(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

/// Serves the HTTP of one connection, until it ends or becomes a WebSocket.
async fn serve(
    stream: TcpStream,
    peer: SocketAddr,
    shared: Arc<Shared>,
    http: Http,
    slot: Slot,
    mut stop: watch::Receiver<bool>,
) {
    let header_timeout = shared.config.limits.header_timeout;
    let caller = Caller::new(Some(peer.ip()));
    let service = service_fn(|request| async {
        let response = if upgrade::is_asked_for(request.headers()) {
            upgrade(&shared, &slot, peer, request)
        } else {
            http.respond(&caller, request).await
        };
        Ok::<_, Infallible>(response)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(header_timeout)
        .max_buf_size(HEAD_BYTES_MAX)
        .writev(false)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    tokio::pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = stopped(&mut stop) => {
            // What was begun is answered; nothing new is taken.
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%peer, %error, "an HTTP connection ended");
    }
}

fn upgrade(shared: &Arc<Shared>, slot: &Slot, peer: SocketAddr, request: Request<Incoming>) -> Response<Body> {
    if request.uri().path() == shared.config.path {
        return upgrade::answer(shared, request, Some(peer), slot.clone()).map(Body::new);
    }
    shared.metrics.refused_connections.inc();
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NOT_FOUND;
    response
}
