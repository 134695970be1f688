//! Taking connections in that speak the Redis protocol, on a port of their own.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use tokio::{net::TcpListener, sync::watch, task::JoinHandle, time::timeout};

use super::{
    ServerError,
    connection_limit::Slots,
    is_stopped,
    listener::{Door, Seldom, bind},
    portal_id_file::PortalIds,
    stopped,
};
use crate::{
    config,
    health::{Health, supervise},
    metrics::Metrics,
    resp::{Announced, Wire},
};

/// How long it may take to write down which portals there are, when the server stops.
const REMEMBER_MAX: Duration = Duration::from_secs(1);

/// What is needed to speak it.
pub(super) struct WirePort {
    listener: TcpListener,
    pub(super) address: SocketAddr,
    pub(super) wire: Arc<Wire>,
    slots: Arc<Slots>,
    metrics: Arc<Metrics>,
    /// Where portals are remembered; `None`: nowhere.
    ids: Option<PortalIds>,
}

impl WirePort {
    /// Takes the port, if there is to be one.
    pub(super) fn bind(config: &config::RedisProtocol) -> Result<Option<TcpListener>, ServerError> {
        let Some(port) = config.port else { return Ok(None) };
        let host = if config.host == "localhost" { "127.0.0.1" } else { &config.host };
        let told = |error: std::io::Error| {
            let why = format!(
                "redisProtocol.port {port} at {host}: {error}. Stop what uses it, a Redis mostly, or choose another redisProtocol.port"
            );
            ServerError::Listen(std::io::Error::new(error.kind(), why))
        };
        // It was checked with the whole configuration.
        let host = host.parse().map_err(|_| told(std::io::ErrorKind::InvalidInput.into()))?;
        bind(SocketAddr::new(host, port)).map(Some).map_err(told)
    }

    pub(super) fn new(
        listener: TcpListener,
        connections: usize,
        wire: Arc<Wire>,
        metrics: Arc<Metrics>,
        ids: Option<PortalIds>,
    ) -> Result<Self, ServerError> {
        let address = listener.local_addr()?;
        Ok(Self { listener, address, wire, slots: Slots::new(connections, 0), metrics, ids })
    }

    /// Accepts connections until `stop` says so.
    pub(super) fn open(self, health: &Arc<Health>, stop: watch::Receiver<bool>) -> Open {
        let Self { listener, wire, slots, metrics, ids, .. } = self;
        let is_over = || {
            let stop = stop.clone();
            move || is_stopped(&stop)
        };
        let remembering = ids.zip(wire.announced()).map(|remembered| {
            let stop = stop.clone();
            tokio::spawn(supervise(
                health.clone(),
                "redis_protocol_portals",
                remembered,
                is_over(),
                move |remembered| keep(remembered, stop.clone()),
            ))
        });
        let places = slots.clone();
        let door = Door::new(listener);
        let accepting = tokio::spawn(supervise(health.clone(), "redis_protocol", door, is_over(), move |door| {
            let (wire, places, metrics, stop) = (wire.clone(), places.clone(), metrics.clone(), stop.clone());
            Box::pin(async move { accept(door, &wire, &places, &metrics, stop).await })
        }));
        Open { slots, accepting, remembering }
    }
}

/// A port that is open.
pub(super) struct Open {
    pub(super) slots: Arc<Slots>,
    accepting: JoinHandle<()>,
    remembering: Option<JoinHandle<()>>,
}

impl Open {
    /// Resolves when nothing new is taken any more.
    pub(super) async fn closed(self) {
        // It may have panicked; there is nothing to do about that here but to go on stopping.
        _ = self.accepting.await;
        if let Some(remembering) = self.remembering {
            _ = timeout(REMEMBER_MAX, remembering).await;
        }
    }
}

/// Writes down which portals there are, until `stop` says so.
fn keep(
    (ids, announced): &mut (PortalIds, watch::Receiver<Vec<Announced>>),
    stop: watch::Receiver<bool>,
) -> BoxFuture<'_, ()> {
    Box::pin(ids.keep(announced, stop))
}

async fn accept(
    door: &mut Door,
    wire: &Arc<Wire>,
    slots: &Arc<Slots>,
    metrics: &Metrics,
    mut stop: watch::Receiver<bool>,
) {
    let mut full = Seldom::default();
    loop {
        let accepted = tokio::select! {
            accepted = door.next() => accepted,
            () = stopped(&mut stop) => return,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                door.pause(&error).await;
                continue;
            }
        };
        let Ok(slot) = slots.take(peer.ip()) else {
            metrics.refused_connections.inc();
            if full.is_due() {
                tracing::warn!(
                    "a connection of the Redis protocol was refused: there are as many as redisProtocol.connections or the limit of \
                     open files allows"
                );
            }
            continue;
        };
        let wire = wire.clone();
        tokio::spawn(async move {
            wire.serve(stream, peer.ip()).await;
            drop(slot);
        });
    }
}
