//! A server as part of somebody's router: stock's `server:` option.

use std::{
    convert::Infallible,
    fmt,
    future::Future,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use axum::{
    Router,
    extract::{ConnectInfo, Request},
    response::Response,
    routing::any_service,
};
use http::{StatusCode, header};
use tokio::sync::watch;
use tower::service_fn;

use super::{Handle, ServerError, connection_limit::Slots, context::Shared, runtime::Assembled, stopped, ws_upgrade};
use crate::http::{Caller, refusal};

/// A server whose routes are in a router of yours. It has to be run, beside that router: [`Attached::run`].
#[must_use = "the server is watched and stopped by running it"]
pub struct Attached {
    parts: Assembled,
    slots: Arc<Slots>,
    stop: watch::Sender<bool>,
}

impl Attached {
    /// What can be done with the server while it runs.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.parts.handle()
    }

    /// Watches over the server until `shutdown` resolves, then stops it in order, as [`Server::run`](super::Server::run) does:
    /// new `WebSockets` get 503, streams of dispatches end, clients are told (1001), the store is closed. Requests that come
    /// later are answered with 503, or with the error of a store that is closed: let the router end at the same time.
    ///
    /// # Errors
    /// When the store fails while serving: clients are told (1011), and nothing more is promised.
    pub async fn run(self, shutdown: impl Future<Output = ()> + Send) -> Result<(), ServerError> {
        let Self { parts, slots, stop } = self;
        let (http, mut told) = (parts.http.clone(), stop.subscribe());
        let ending = tokio::spawn(async move {
            stopped(&mut told).await;
            http.stop();
        });
        parts.run(shutdown, &slots, &stop, ending).await
    }
}

impl fmt::Debug for Attached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attached").field("handle", &self.handle()).finish_non_exhaustive()
    }
}

pub(super) fn attach(parts: Assembled) -> (Router, Attached) {
    let per_address = parts.shared.config.limits.connections_per_address;
    let slots = Slots::new(parts.descriptors.sockets, per_address);
    let (stop, told) = watch::channel(false);
    let http = parts.http.clone();
    let (shared, places) = (parts.shared.clone(), slots.clone());
    let path = parts.shared.config.path.clone();
    let socket = any_service(service_fn(move |request: Request| {
        let response = open(&shared, &places, &told, request);
        async move { Ok::<_, Infallible>(response) }
    }));
    let api = any_service(service_fn(move |request: Request| {
        let http = http.clone();
        // Each request counts as a connection of its own: which ones share one is not known here.
        let caller = Caller::new(request.extensions().get::<ConnectInfo<SocketAddr>>().map(|info| info.0.ip()));
        async move { Ok::<_, Infallible>(http.respond(&caller, request).await) }
    }));
    let routes = ["/v1/{*rest}", "/healthz", "/readyz", "/metrics"];
    let router =
        routes.into_iter().fold(Router::new().route(&path, socket), |router, at| router.route(at, api.clone()));
    (router, Attached { parts, slots, stop })
}

/// Answers a request for the WebSocket path.
fn open(shared: &Arc<Shared>, slots: &Arc<Slots>, told: &watch::Receiver<bool>, request: Request) -> Response {
    if !ws_upgrade::is_asked_for(request.headers()) {
        let upgrade = (header::UPGRADE, "websocket");
        return refusal::with_header(StatusCode::UPGRADE_REQUIRED, "a WebSocket is served here", upgrade);
    }
    if *told.borrow() {
        return refusal::response(StatusCode::SERVICE_UNAVAILABLE, "the server is stopping");
    }
    // Known only where the router is served with connect info; otherwise all count as one address.
    let from = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|info| info.0);
    let address = from.map_or(IpAddr::V6(Ipv6Addr::UNSPECIFIED), |from| from.ip());
    let Ok(slot) = slots.take(address) else {
        shared.metrics.refused_connections.inc();
        return refusal::response(StatusCode::SERVICE_UNAVAILABLE, "there are too many connections");
    };
    ws_upgrade::answer(shared, request, from, slot)
}
