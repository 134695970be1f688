//! Taking connections in: one port for HTTP and WebSocket.

use std::{
    convert::Infallible,
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use axum::body::{Body, HttpBody};
use http::{HeaderValue, Request, Response, StatusCode, header};
use hyper::{body::Incoming, server::conn::http1, service::service_fn, upgrade::OnUpgrade};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpListener, TcpSocket, TcpStream},
    sync::watch,
    time::{Instant, timeout_at},
};

use super::{
    activity::{Activities, Activity, Entry, Phase},
    connection_limit::{Full, Slot, Slots},
    context::Shared,
    http_io::{Answer, HttpIo},
    is_stopped, stopped,
    unreadable::HEAD_BYTES_MAX,
    ws_upgrade,
};
use crate::{
    health::{LogLimit, supervise},
    http::{Caller, Http, refusal},
    metrics::Metrics,
};

/// Pause after the system refused a connection (out of file descriptors, mostly), doubled up to a second.
const ACCEPT_PAUSE_MIN: Duration = Duration::from_millis(5);
const ACCEPT_PAUSE_MAX: Duration = Duration::from_secs(1);

/// Connections the system keeps for us until we accept them: a thousand clients coming back at once must not be sent
/// away for a second. The system may have a lower bound of its own.
const BACKLOG: u32 = 4096;

/// Connections beyond the first three quarters, at most so many, are evicted before those that came earlier: a crowd does
/// not push out what was there before it.
const CROWD_MAX: usize = 256;

/// How long a new connection waits for the place of an evicted one; then it is refused.
const EVICTION_TIMEOUT: Duration = Duration::from_millis(250);

/// Of refused connections one line is logged in this time.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// Bytes of a body that hyper discards after an early response without closing the connection.
const SHORT_BODY_BYTES: u64 = 4 << 10;

/// What the peer's side has not acknowledged for this long ends the connection: a stream to a peer that has lost its
/// network, or that reads nothing.
#[cfg(target_os = "linux")]
const UNACKNOWLEDGED_TIMEOUT: Duration = Duration::from_secs(60);

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

/// The places of a listener's connections, and who has them.
pub(super) struct Places {
    pub slots: Arc<Slots>,
    activities: Arc<Activities>,
    /// Connections above this count are evicted first.
    crowded_above: usize,
}

impl Places {
    pub(super) fn new(connections: usize, per_address: usize) -> Self {
        let crowded_above = connections - (connections / 4).min(CROWD_MAX);
        Self { slots: Slots::new(connections, per_address), activities: Arc::default(), crowded_above }
    }

    /// A place for a new connection. Where there is none, a connection that waits for its peer gives up its own.
    async fn take(&self, address: IpAddr, metrics: &Metrics) -> Result<(Slot, Entry), Full> {
        let give_up = Instant::now() + EVICTION_TIMEOUT;
        loop {
            let freed = self.slots.freed();
            match self.slots.take(address) {
                Ok(slot) => return Ok((slot, self.activities.enter(self.slots.taken() > self.crowded_above))),
                Err(Full::Address) => return Err(Full::Address),
                Err(Full::All) => {}
            }
            if !self.activities.evict() {
                return Err(Full::All);
            }
            metrics.evicted_connections.inc();
            timeout_at(give_up, freed).await.map_err(|_| Full::All)?;
        }
    }
}

/// Accepts connections until `stop` says so.
pub(super) async fn accept(
    listener: TcpListener,
    shared: Arc<Shared>,
    http: Http,
    places: Arc<Places>,
    stop: watch::Receiver<bool>,
) {
    let (health, stopping) = (shared.hub.health(), stop.clone());
    let is_over = move || is_stopped(&stopping);
    let state = (Door::new(listener), shared, http, places);
    supervise(health, "accept_loop", state, is_over, |(door, shared, http, places)| {
        Box::pin(accept_from(door, shared, http, places, stop.clone()))
    })
    .await;
}

async fn accept_from(
    door: &mut Door,
    shared: &Arc<Shared>,
    http: &Http,
    places: &Places,
    mut stop: watch::Receiver<bool>,
) {
    let mut full = Seldom::default();
    loop {
        let accepted = tokio::select! {
            accepted = door.next() => accepted,
            () = stopped(&mut stop) => {
                http.stop();
                return;
            }
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, mostly, although places are limited: another part of the process has taken them.
                if places.activities.evict_without_key() {
                    shared.metrics.evicted_connections.inc();
                }
                door.pause(&error).await;
                continue;
            }
        };
        match places.take(peer.ip(), &shared.metrics).await {
            Ok((slot, entry)) => {
                tokio::spawn(serve(stream, peer, shared.clone(), http.clone(), (slot, entry), stop.clone()));
            }
            Err(why) => {
                shared.metrics.refused_connections.inc();
                match why {
                    Full::All if full.is_due() => tracing::warn!(
                        "a connection was refused: there are as many as limits.connections or the limit of open files \
                         allows; raise them, or see mesa_connections_refused_total for how often this happens"
                    ),
                    Full::All => {}
                    Full::Address => tracing::debug!("a connection was refused: limits.connectionsPerAddress"),
                }
            }
        }
    }
}

/// Lets one line in [`LOG_INTERVAL`] through.
#[derive(Default)]
pub(super) struct Seldom(Option<Instant>);

impl Seldom {
    pub(super) fn is_due(&mut self) -> bool {
        let due = self.0.is_none_or(|last| last.elapsed() > LOG_INTERVAL);
        if due {
            self.0 = Some(Instant::now());
        }
        due
    }
}

/// Peers that come and go make the system refuse connections again and again.
static NO_MORE: LogLimit = LogLimit::new();

/// A listener that goes on after what goes wrong with a single connection.
pub(super) struct Door {
    listener: TcpListener,
    pause: Duration,
}

impl Door {
    pub(super) fn new(listener: TcpListener) -> Self {
        Self { listener, pause: ACCEPT_PAUSE_MIN }
    }

    /// The next connection, made ready for short answers and for peers who lose their network. On an error of the system
    /// the caller has to [`pause`](Self::pause).
    pub(super) async fn next(&mut self) -> io::Result<(TcpStream, SocketAddr)> {
        loop {
            match self.listener.accept().await {
                Ok((stream, peer)) => {
                    self.pause = ACCEPT_PAUSE_MIN;
                    prepare(&stream);
                    return Ok((stream, peer));
                }
                Err(error) if is_of_the_peer(&error) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Waits, because the system gives no connections; longer each time, up to a second.
    pub(super) async fn pause(&mut self, error: &io::Error) {
        let pause = self.pause;
        if let Some(suppressed) = NO_MORE.due("accept") {
            tracing::error!(%error, suppressed, "the system gives no more connections; trying again in {pause:?}");
        }
        tokio::time::sleep(pause).await;
        self.pause = (pause * 2).min(ACCEPT_PAUSE_MAX);
    }
}

fn prepare(stream: &TcpStream) {
    // An answer is one write, and a backend waits for it.
    _ = stream.set_nodelay(true);
    let keepalive =
        TcpKeepalive::new().with_time(KEEPALIVE_AFTER).with_interval(KEEPALIVE_INTERVAL).with_retries(KEEPALIVE_TRIES);
    let socket = SockRef::from(stream);
    _ = socket.set_tcp_keepalive(&keepalive);
    #[cfg(target_os = "linux")]
    {
        _ = socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED_TIMEOUT));
    }
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
    (slot, entry): (Slot, Entry),
    mut stop: watch::Receiver<bool>,
) {
    let activity = &entry.activity;
    let caller = Caller::new(Some(peer.ip()));
    let refused = Mutex::new(None);
    let service = service_fn(|request: Request<Incoming>| async {
        activity.enter(Phase::Busy);
        let upgrade = request.extensions().get::<OnUpgrade>().cloned();
        let response = if ws_upgrade::is_asked_for(request.headers()) {
            self::upgrade(&shared, &slot, peer, request)
        } else {
            respond(&http, &caller, activity, request).await
        };
        if upgrade.is_some() && response.status() != StatusCode::SWITCHING_PROTOCOLS {
            *refused.lock() = upgrade;
        }
        Ok::<_, Infallible>(response.map(|body| Answer::new(body, activity.clone())))
    });
    let io = HttpIo::new(stream, activity.clone(), &shared.config.limits);
    // In a block: of a connection that has failed nothing may be left that `refused` waits for.
    let result = {
        let connection = http1::Builder::new()
            // The socket has all deadlines, see `http_io`.
            .header_read_timeout(None)
            .max_buf_size(HEAD_BYTES_MAX)
            .writev(false)
            .serve_connection(TokioIo::new(io), service)
            .with_upgrades();
        tokio::pin!(connection);
        tokio::select! {
            result = connection.as_mut() => result,
            () = stopped(&mut stop) => {
                // What was begun is answered; nothing new is taken.
                activity.stop();
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        }
    };
    if let Err(error) = result {
        tracing::debug!(%peer, %error, "an HTTP connection ended");
    }
    // hyper gives up a connection that was asked for an upgrade without closing it, also where that was refused.
    let refused = refused.lock().take();
    if let Some(refused) = refused
        && let Ok(upgraded) = refused.await
    {
        _ = TokioIo::new(upgraded).shutdown().await;
    }
}

async fn respond(http: &Http, caller: &Caller, activity: &Activity, request: Request<Incoming>) -> Response<Body> {
    let api = request.uri().path().starts_with("/v1/");
    let long = !request.body().is_end_stream()
        && request.body().size_hint().exact().is_none_or(|bytes| bytes > SHORT_BODY_BYTES);
    let mut response = http.respond(caller, request).await;
    if api && response.status().is_success() {
        activity.has_key();
    }
    // hyper reads the rest of a short body and keeps the connection; here it closes, and the peer should know.
    if long && is_answered_early(response.status()) {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// Whether a response of this status may come before its request is read to the end.
fn is_answered_early(status: StatusCode) -> bool {
    matches!(status.as_u16(), 400 | 401 | 403 | 404 | 405 | 408 | 413 | 415 | 429)
}

fn upgrade(shared: &Arc<Shared>, slot: &Slot, peer: SocketAddr, request: Request<Incoming>) -> Response<Body> {
    if request.uri().path() == shared.config.path {
        return ws_upgrade::answer(shared, request, Some(peer), slot.clone());
    }
    shared.metrics.refused_connections.inc();
    refusal::response(
        StatusCode::NOT_FOUND,
        "there is no WebSocket at this path: see `path` in the server's configuration",
    )
}
