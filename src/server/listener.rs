//! Accepts connections on one port for HTTP and WebSocket.

use std::{
    convert::Infallible,
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use axum::body::{Body, HttpBody};
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
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
    connection_limit::{ConnectionLimiter, LimitReached, Permit},
    context::ServerContext,
    http_io::{HttpIo, ResponseBody},
    is_stopped,
    preface::Opened,
    stopped,
    unreadable::HEAD_BYTES_MAX,
    ws_upgrade,
};
use crate::{
    health::{LogLimit, supervise},
    http::{Caller, Http, error_response},
    metrics::Metrics,
    util::backoff::Backoff,
};

/// First delay after a failed accept (most often no descriptor is free), doubled up to 1 s.
const ACCEPT_RETRY_DELAY_MIN: Duration = Duration::from_millis(5);
const ACCEPT_RETRY_DELAY_MAX: Duration = Duration::from_secs(1);

/// Connections that the system queues before they are accepted. The system may have a lower limit.
///
/// When a thousand clients reconnect at once, none of them must repeat its SYN, which takes a second.
const BACKLOG: u32 = 4096;

/// Maximum size of the crowded range: the last quarter of all permits.
///
/// Connections in it are evicted before earlier ones, so that a flood does not evict established connections.
const CROWDED_MAX: usize = 256;

/// Time for which a new connection waits for the permit of an evicted one; then it is rejected.
const EVICTION_TIMEOUT: Duration = Duration::from_millis(250);

/// Minimum interval between log lines about rejected connections.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// Maximum bytes of a body that hyper discards after an early response without closing the connection.
const SHORT_BODY_BYTES: u64 = 4 << 10;

/// Maximum age of unacknowledged TCP data. Then the connection ends: its peer is unreachable, or does not read.
#[cfg(target_os = "linux")]
const UNACKNOWLEDGED_TIMEOUT: Duration = Duration::from_secs(60);

/// Idle time after which TCP keepalive probes a peer. Without an answer the connection ends a minute later.
///
/// A stream of dispatches may be idle without limit, and its peer may have lost its network.
const KEEPALIVE_IDLE_TIMEOUT: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
const KEEPALIVE_TRIES: u32 = 3;

/// Listens on an address, with a large backlog.
///
/// # Errors
/// When the address is in use, not of this machine, or not allowed.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // Connections of a server that has just stopped are still in TIME_WAIT, and must not block the port.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Permits of a listener's connections, and the connections that hold them.
pub(super) struct Admission {
    pub limiter: Arc<ConnectionLimiter>,
    activities: Arc<Activities>,
}

impl Admission {
    pub(super) fn new(limiter: Arc<ConnectionLimiter>) -> Self {
        Self { limiter, activities: Arc::default() }
    }

    /// Reports whether so few permits are left that the connections with the last ones are evicted first.
    fn is_crowded(&self) -> bool {
        let max = self.limiter.connections_max();
        self.limiter.in_use() > max - (max / 4).min(CROWDED_MAX)
    }

    /// Acquires a permit for a new connection, if necessary by evicting another connection.
    async fn admit(&self, address: Option<IpAddr>, metrics: &Metrics) -> Result<(Permit, Entry), LimitReached> {
        let deadline = Instant::now() + EVICTION_TIMEOUT;
        loop {
            let released = self.limiter.released();
            match self.limiter.acquire(address) {
                Ok(permit) => return Ok((permit, self.activities.enter(self.is_crowded()))),
                Err(LimitReached::Address) => return Err(LimitReached::Address),
                Err(LimitReached::Total) => {}
            }
            if !self.activities.evict() {
                return Err(LimitReached::Total);
            }
            metrics.evicted_connections.inc();
            timeout_at(deadline, released).await.map_err(|_| LimitReached::Total)?;
        }
    }
}

/// Accepts connections until `stop` is set.
pub(super) async fn accept(
    listener: TcpListener,
    context: Arc<ServerContext>,
    http: Http,
    admission: Arc<Admission>,
    stop: watch::Receiver<bool>,
) {
    let (health, stopping) = (context.hub.health(), stop.clone());
    let is_over = move || is_stopped(&stopping);
    let state = (Acceptor::new(listener), context, http, admission);
    supervise(health, "accept_loop", state, is_over, |(acceptor, context, http, admission)| {
        Box::pin(accept_from(acceptor, context, http, admission, stop.clone()))
    })
    .await;
}

async fn accept_from(
    acceptor: &mut Acceptor,
    context: &Arc<ServerContext>,
    http: &Http,
    admission: &Admission,
    mut stop: watch::Receiver<bool>,
) {
    let mut log_interval = LogInterval::default();
    loop {
        let accepted = tokio::select! {
            accepted = acceptor.next() => accepted,
            () = stopped(&mut stop) => {
                http.stop();
                return;
            }
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Most often no descriptor is free although permits are limited: other components use more than
                // assumed.
                if admission.activities.evict_without_key() {
                    context.metrics.evicted_connections.inc();
                }
                acceptor.pause(&error).await;
                continue;
            }
        };
        // A proxy has many clients, whose addresses are not known yet.
        let address = (!context.proxies.contains(peer.ip())).then(|| peer.ip());
        match admission.admit(address, &context.metrics).await {
            Ok((permit, entry)) => {
                tokio::spawn(serve(stream, peer, context.clone(), http.clone(), (permit, entry), stop.clone()));
            }
            Err(limit) => {
                context.metrics.rejected_connections.inc();
                match limit {
                    LimitReached::Total if log_interval.is_due() => tracing::warn!(
                        "a connection was rejected: there are as many as limits.connections or the limit of open files \
                         allows; raise them, or see mesa_connections_rejected_total for how often this happens"
                    ),
                    LimitReached::Total => {}
                    LimitReached::Address => {
                        tracing::debug!(%peer, "a connection was rejected: limits.connectionsPerAddress");
                    }
                }
            }
        }
    }
}

/// Limits log lines to one per [`LOG_INTERVAL`].
#[derive(Default)]
pub(super) struct LogInterval(Option<Instant>);

impl LogInterval {
    pub(super) fn is_due(&mut self) -> bool {
        let due = self.0.is_none_or(|last| last.elapsed() > LOG_INTERVAL);
        if due {
            self.0 = Some(Instant::now());
        }
        due
    }
}

/// Limits the log lines about failed accepts, which a flood of connections can repeat.
static ACCEPT_FAILED: LogLimit = LogLimit::new();

/// A listener that ignores errors of single connections, and sets the TCP options of accepted ones.
pub(super) struct Acceptor {
    listener: TcpListener,
    backoff: Backoff,
}

impl Acceptor {
    pub(super) fn new(listener: TcpListener) -> Self {
        Self { listener, backoff: Backoff::new(ACCEPT_RETRY_DELAY_MIN, ACCEPT_RETRY_DELAY_MAX) }
    }

    /// Accepts the next connection. After an error the caller has to [`pause`](Self::pause).
    pub(super) async fn next(&mut self) -> io::Result<(TcpStream, SocketAddr)> {
        loop {
            match self.listener.accept().await {
                Ok((stream, peer)) => {
                    self.backoff.reset();
                    set_tcp_options(&stream);
                    return Ok((stream, peer));
                }
                Err(error) if is_caused_by_peer(&error) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Delays the next accept after an error: 5 ms, doubled each time up to 1 s.
    pub(super) async fn pause(&mut self, error: &io::Error) {
        let delay = self.backoff.next();
        if let Some(suppressed) = ACCEPT_FAILED.due("accept") {
            tracing::error!(%error, suppressed, "accepting connections failed; next attempt in {delay:?}");
        }
        tokio::time::sleep(delay).await;
    }
}

fn set_tcp_options(stream: &TcpStream) {
    // A response is one write, which Nagle's algorithm would only delay.
    _ = stream.set_nodelay(true);
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE_TIMEOUT)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_TRIES);
    let socket = SockRef::from(stream);
    _ = socket.set_tcp_keepalive(&keepalive);
    #[cfg(target_os = "linux")]
    {
        _ = socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED_TIMEOUT));
    }
}

/// Reports whether the peer closed the connection before it was accepted. Such an error concerns no other connection.
fn is_caused_by_peer(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

/// Serves HTTP on one connection until it ends or becomes a WebSocket.
async fn serve(
    stream: TcpStream,
    peer: SocketAddr,
    context: Arc<ServerContext>,
    http: Http,
    (permit, entry): (Permit, Entry),
    mut stop: watch::Receiver<bool>,
) {
    let activity = &entry.activity;
    let head_deadline = Instant::now() + context.live.load().limits.header_timeout;
    let accepted_from = peer;
    let (peer, permit, opened) = if context.preface.is_expected(peer.ip()) {
        // Boxed, so that other connections do not hold the space for a handshake.
        let reading = Box::pin(read_preface(&context, stream, peer, permit));
        let opened = tokio::select! {
            opened = timeout_at(head_deadline, reading) => opened.ok().flatten(),
            () = activity.evicted() => None,
            () = stopped(&mut stop) => None,
        };
        let Some(opened) = opened else { return };
        opened
    } else {
        (peer, permit, Opened::plain(stream))
    };
    let Opened { stream, is_rejected } = opened;
    // The address of each request is in its headers. A proxy that sends a PROXY header passes bytes on, so it is never the
    // author of the headers: those that tell an address would be its client's.
    let passes_bytes = context.preface.expects_header(accepted_from.ip()) && peer == accepted_from;
    let is_proxy = context.proxies.contains(peer.ip()) && !passes_bytes;
    let is_secure = stream.is_tls();
    let caller = Caller::new(Some(peer.ip())).secure(is_secure);
    let rejected_upgrade = Mutex::new(None);
    let service = service_fn(|request: Request<Incoming>| async {
        activity.enter(Phase::Busy);
        let upgrade = request.extensions().get::<OnUpgrade>().cloned();
        let is_upgrade = ws_upgrade::is_upgrade_request(request.headers());
        let mut address = None;
        let response = if is_rejected {
            plain_http_response()
        } else if is_proxy {
            let client = context.proxies.client(peer, request.headers());
            match permit.acquire_address(client.address.ip()) {
                Err(_) => too_many_of_address(&context),
                Ok(permitted) if is_upgrade => {
                    upgrade_at_path(&context, &permit.with_address(permitted), client.address, request)
                }
                Ok(permitted) => {
                    address = permitted;
                    // Clients share the connection, so none of them proves the address of another one.
                    let caller = Caller::new(Some(client.address.ip())).secure(is_secure || client.is_secure);
                    respond(&http, &caller, activity, request).await
                }
            }
        } else if is_upgrade {
            upgrade_at_path(&context, &permit, peer, request)
        } else {
            respond(&http, &caller, activity, request).await
        };
        if upgrade.is_some() && response.status() != StatusCode::SWITCHING_PROTOCOLS {
            *rejected_upgrade.lock() = upgrade;
        }
        Ok::<_, Infallible>(response.map(|body| ResponseBody::new(body, activity.clone(), address)))
    });
    let io = HttpIo::new(stream, activity.clone(), &context.live.load().limits, head_deadline);
    // In a block, so that hyper's connection is dropped before `rejected_upgrade` is awaited, which would otherwise
    // hang.
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
                // A request that has begun is answered; no further one is accepted.
                activity.stop();
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        }
    };
    if let Err(error) = result {
        tracing::debug!(%peer, %error, "an HTTP connection ended");
    }
    // hyper does not close a connection after an upgrade request, even a rejected one.
    let rejected_upgrade = rejected_upgrade.lock().take();
    if let Some(rejected_upgrade) = rejected_upgrade
        && let Ok(upgraded) = rejected_upgrade.await
    {
        _ = TokioIo::new(upgraded).shutdown().await;
    }
}

/// Reads the preface of a connection. Returns the client's address, and the permit together with that of the address.
///
/// `None`: the preface is unusable, or the address has too many connections.
async fn read_preface(
    context: &ServerContext,
    mut stream: TcpStream,
    proxy: SocketAddr,
    mut permit: Permit,
) -> Option<(SocketAddr, Permit, Opened)> {
    let peer = context.preface.read_header(&mut stream, proxy, &context.metrics).await?;
    // The permit of a direct connection has its address already, and a further proxy has many clients.
    if peer != proxy && !context.proxies.contains(peer.ip()) {
        let Ok(address) = permit.acquire_address(peer.ip()) else {
            context.metrics.rejected_connections.inc();
            tracing::debug!(%peer, "a connection through a proxy was rejected: limits.connectionsPerAddress");
            return None;
        };
        permit = permit.with_address(address);
    }
    let opened = context.preface.secure(stream, peer, &context.metrics).await?;
    Some((peer, permit, opened))
}

/// Responds to a request through a proxy, if its client has too many others.
fn too_many_of_address(context: &ServerContext) -> Response<Body> {
    context.metrics.rejected_connections.inc();
    error_response::with_header(
        StatusCode::SERVICE_UNAVAILABLE,
        "this address has as many connections as limits.connectionsPerAddress allows; try again later",
        (header::RETRY_AFTER, "5"),
    )
}

/// Responds to a request without TLS on a port with TLS.
fn plain_http_response() -> Response<Body> {
    let mut response = Response::new(Body::from("This port speaks TLS: connect by https:// or wss://.\n"));
    *response.status_mut() = StatusCode::BAD_REQUEST;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

/// Responds to an HTTP request, and records whether the connection has presented a valid key.
async fn respond(http: &Http, caller: &Caller, activity: &Activity, request: Request<Incoming>) -> Response<Body> {
    let needs_key = needs_key(request.method(), request.uri().path());
    let has_long_body = !request.body().is_end_stream()
        && request.body().size_hint().exact().is_none_or(|bytes| bytes > SHORT_BODY_BYTES);
    let mut response = http.respond(caller, request).await;
    if needs_key && response.status().is_success() {
        activity.set_keyed();
    }
    // hyper closes the connection if much of the body is unread, so the header announces it.
    if has_long_body && may_be_early(response.status()) {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// Reports whether a request succeeds only with a valid API key, or with a session of the admin page.
fn needs_key(method: &Method, path: &str) -> bool {
    // A preflight (OPTIONS) succeeds without one.
    method != Method::OPTIONS && ["/v1/", "/admin/v1/"].iter().any(|prefix| path.starts_with(prefix))
}

/// Reports whether a response of this status may be sent before its request is read to the end.
fn may_be_early(status: StatusCode) -> bool {
    matches!(status.as_u16(), 400 | 401 | 403 | 404 | 405 | 408 | 413 | 415 | 429)
}

/// Responds to an upgrade request, if it is for the WebSocket path.
fn upgrade_at_path(
    context: &Arc<ServerContext>,
    permit: &Permit,
    peer: SocketAddr,
    request: Request<Incoming>,
) -> Response<Body> {
    if request.uri().path() == context.config.path {
        return ws_upgrade::answer(context, request, Some(peer), permit.clone());
    }
    context.metrics.rejected_connections.inc();
    error_response::response(
        StatusCode::NOT_FOUND,
        "there is no WebSocket at this path: see `path` in the server's configuration",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn successful_preflight_proves_no_key() {
        for path in ["/v1/users", "/admin/v1/users"] {
            assert!(needs_key(&Method::GET, path) && needs_key(&Method::POST, path));
            assert!(!needs_key(&Method::OPTIONS, path), "{path}");
        }
        assert!(!needs_key(&Method::GET, "/metrics"));
    }
}
