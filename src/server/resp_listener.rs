//! Accepts connections of the Redis protocol, on a port of their own.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
    time::timeout,
};

use super::{
    ServerError,
    connection_limit::ConnectionLimiter,
    is_stopped,
    listener::{Acceptor, LogInterval, bind},
    portal_id_file::PortalIdFile,
    preface::{Opened, Preface},
    stopped,
    stream::AcceptedStream,
};
use crate::{
    config,
    health::{Health, supervise},
    metrics::Metrics,
    resp::{AnnouncedPortal, RespServer},
};

/// Time for writing the portal ids at shutdown.
const PERSIST_TIMEOUT: Duration = Duration::from_secs(1);

/// Time for a client without TLS to read why it is rejected.
const REJECTION_TIMEOUT: Duration = Duration::from_secs(2);

/// The bound port and its settings.
pub(super) struct RespListener {
    listener: TcpListener,
    pub(super) address: SocketAddr,
    pub(super) server: Arc<RespServer>,
    limiter: Arc<ConnectionLimiter>,
    metrics: Arc<Metrics>,
    /// What precedes the protocol on a connection, and its time limit.
    preface: (Preface, Duration),
    /// File of portal ids; `None`: they are not persisted.
    ids: Option<PortalIdFile>,
}

impl RespListener {
    /// Binds the port, if one is configured.
    pub(super) fn bind(config: &config::RedisProtocol) -> Result<Option<TcpListener>, ServerError> {
        let Some(port) = config.port else { return Ok(None) };
        let host = if config.host == "localhost" { "127.0.0.1" } else { &config.host };
        let bind_error = |error: std::io::Error| {
            let why = format!(
                "redisProtocol.port {port} at {host}: {error}. Stop what uses it, a Redis mostly, or choose another redisProtocol.port"
            );
            ServerError::Listen(std::io::Error::new(error.kind(), why))
        };
        // Cannot fail: the configuration is validated.
        let host = host.parse().map_err(|_| bind_error(std::io::ErrorKind::InvalidInput.into()))?;
        bind(SocketAddr::new(host, port)).map(Some).map_err(bind_error)
    }

    pub(super) fn new(
        listener: TcpListener,
        connections: usize,
        server: Arc<RespServer>,
        metrics: Arc<Metrics>,
        preface: (Preface, Duration),
        ids: Option<PortalIdFile>,
    ) -> Result<Self, ServerError> {
        let address = listener.local_addr()?;
        Ok(Self { listener, address, server, limiter: ConnectionLimiter::new(connections, 0), metrics, preface, ids })
    }

    /// Accepts connections until `stop` is set.
    pub(super) fn open(self, health: &Arc<Health>, stop: watch::Receiver<bool>) -> RunningListener {
        let Self { listener, server, limiter, metrics, preface, ids, .. } = self;
        let is_over = || {
            let stop = stop.clone();
            move || is_stopped(&stop)
        };
        let persisting = ids.zip(server.announced()).map(|ids_and_announced| {
            let stop = stop.clone();
            tokio::spawn(supervise(
                health.clone(),
                "redis_protocol_portals",
                ids_and_announced,
                is_over(),
                move |ids_and_announced| persist(ids_and_announced, stop.clone()),
            ))
        });
        let permits = limiter.clone();
        let acceptor = Acceptor::new(listener);
        let accepting =
            tokio::spawn(supervise(health.clone(), "redis_protocol", acceptor, is_over(), move |acceptor| {
                let (server, permits, metrics, stop) = (server.clone(), permits.clone(), metrics.clone(), stop.clone());
                let preface = preface.clone();
                Box::pin(async move { accept(acceptor, &server, &permits, &metrics, &preface, stop).await })
            }));
        RunningListener { limiter, accepting, persisting }
    }
}

/// Reads the preface, and returns the client's address. `None` if it is unusable, takes too long, or the server stops.
async fn read_preface(
    preface: &Preface,
    time_limit: Duration,
    mut stream: TcpStream,
    peer: SocketAddr,
    metrics: &Metrics,
    mut stop: watch::Receiver<bool>,
) -> Option<(SocketAddr, Opened)> {
    let reading = async {
        let peer = preface.read_header(&mut stream, peer, metrics).await?;
        Some((peer, preface.secure(stream, peer, metrics).await?))
    };
    tokio::select! {
        opened = timeout(time_limit, reading) => opened.ok()?,
        () = stopped(&mut stop) => None,
    }
}

/// Replies with an error, and discards what the peer sends. Otherwise it could lose the reply.
async fn reject_plain(mut stream: AcceptedStream) {
    _ = stream.write_all(b"-ERR this port needs TLS; connect by rediss://\r\n").await;
    _ = stream.shutdown().await;
    let mut discarded = [0; 4 << 10];
    while stream.read(&mut discarded).await.is_ok_and(|read| read > 0) {}
}

/// A listener that accepts connections.
pub(super) struct RunningListener {
    pub(super) limiter: Arc<ConnectionLimiter>,
    accepting: JoinHandle<()>,
    persisting: Option<JoinHandle<()>>,
}

impl RunningListener {
    /// Resolves when no new connection is accepted any more.
    pub(super) async fn closed(self) {
        // The task may have panicked; shutdown continues anyway.
        _ = self.accepting.await;
        if let Some(persisting) = self.persisting {
            _ = timeout(PERSIST_TIMEOUT, persisting).await;
        }
    }
}

/// Writes the portal ids until `stop` is set.
fn persist(
    (ids, announced): &mut (PortalIdFile, watch::Receiver<Vec<AnnouncedPortal>>),
    stop: watch::Receiver<bool>,
) -> BoxFuture<'_, ()> {
    Box::pin(ids.persist(announced, stop))
}

async fn accept(
    acceptor: &mut Acceptor,
    server: &Arc<RespServer>,
    limiter: &Arc<ConnectionLimiter>,
    metrics: &Arc<Metrics>,
    preface: &(Preface, Duration),
    mut stop: watch::Receiver<bool>,
) {
    let mut log_interval = LogInterval::default();
    loop {
        let accepted = tokio::select! {
            accepted = acceptor.next() => accepted,
            () = stopped(&mut stop) => return,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                acceptor.pause(&error).await;
                continue;
            }
        };
        let Ok(permit) = limiter.acquire(None) else {
            metrics.rejected_connections.inc();
            if log_interval.is_due() {
                tracing::warn!(
                    "a connection of the Redis protocol was rejected: there are as many as redisProtocol.connections or the limit of \
                     open files allows"
                );
            }
            continue;
        };
        let (server, metrics, (preface, time_limit), stop) =
            (server.clone(), metrics.clone(), preface.clone(), stop.clone());
        tokio::spawn(async move {
            let opened = if preface.is_expected(peer.ip()) {
                // Boxed, so that other connections do not hold the space for a handshake.
                Box::pin(read_preface(&preface, time_limit, stream, peer, &metrics, stop)).await
            } else {
                Some((peer, Opened::plain(stream)))
            };
            match opened {
                Some((_, Opened { stream, is_rejected: true })) => {
                    _ = timeout(REJECTION_TIMEOUT, reject_plain(stream)).await;
                }
                Some((peer, Opened { stream, .. })) => server.serve(stream, peer.ip()).await,
                None => {}
            }
            drop(permit);
        });
    }
}
