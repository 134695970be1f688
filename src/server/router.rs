//! Routes of a server for another program's axum router: the original's `server:` option.

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
use http::{StatusCode, header, uri::Scheme};
use tokio::sync::watch;
use tower::service_fn;

use super::{
    Handle, ServerError,
    connection_limit::ConnectionLimiter,
    context::ServerContext,
    proxies::{Client, TrustedProxies},
    runtime::Runtime,
    stopped, ws_upgrade,
};
use crate::http::{Caller, error_response};

/// A server whose routes are in your router. Run it while that router is served: [`Attached::run`].
#[must_use = "the server is supervised and stopped by running it"]
pub struct Attached {
    runtime: Runtime,
    limiter: Arc<ConnectionLimiter>,
    stop: watch::Sender<bool>,
}

impl Attached {
    /// Returns a handle to control the server while it runs.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.runtime.handle()
    }

    /// Runs the server until `shutdown` resolves, then stops it in order, as [`Server::run`](super::Server::run) does.
    ///
    /// New `WebSockets` get 503, streams of dispatches end, clients are closed with 1001, and the store is closed.
    /// Later requests get 503, so stop serving the router at the same time.
    ///
    /// # Errors
    /// When the store fails. Clients are then closed with 1011, and no guarantee holds any more.
    pub async fn run(self, shutdown: impl Future<Output = ()> + Send) -> Result<(), ServerError> {
        let Self { runtime, limiter, stop } = self;
        let (http, mut stopping) = (runtime.http.clone(), stop.subscribe());
        let ending = tokio::spawn(async move {
            stopped(&mut stopping).await;
            http.stop();
        });
        runtime.run(shutdown, &limiter, &stop, ending).await
    }
}

impl fmt::Debug for Attached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attached").field("handle", &self.handle()).finish_non_exhaustive()
    }
}

/// Builds the routes of a server.
pub(super) fn attach(runtime: Runtime) -> (Router, Attached) {
    let limiter = runtime.limiter.clone();
    let (stop, stopping) = watch::channel(false);
    let http = runtime.http.clone();
    let (context, permits) = (runtime.context.clone(), limiter.clone());
    let (path, proxies) = (runtime.context.config.path.clone(), runtime.context.proxies.clone());
    let socket = any_service(service_fn(move |request: Request| {
        let response = serve_websocket(&context, &permits, &stopping, request);
        async move { Ok::<_, Infallible>(response) }
    }));
    let api = any_service(service_fn(move |mut request: Request| {
        let http = http.clone();
        // Each request counts as a connection, because its connection is unknown here.
        let client = client(&proxies, &request);
        let is_secure = client.as_ref().is_some_and(|client| client.is_secure);
        let caller = Caller::new(client.map(|client| client.address.ip()))
            .secure(is_secure || request.uri().scheme() == Some(&Scheme::HTTPS));
        // The path that this router matched would become a part of the path that the router of the API matches.
        request.extensions_mut().clear();
        async move { Ok::<_, Infallible>(http.respond(&caller, request).await) }
    }));
    let routes = [
        "/v1/{*rest}",
        "/healthz",
        "/readyz",
        "/metrics",
        "/client.js",
        "/client.d.ts",
        "/openapi.json",
        "/docs",
        "/docs/docs.css",
    ];
    // The embedding program may have a page of its own there.
    let has_admin = runtime.context.config.admin.password.is_some();
    let admin = ["/admin", "/admin/", "/admin/{*rest}"].into_iter().filter(|_| has_admin);
    let router = routes
        .into_iter()
        .chain(admin)
        .fold(Router::new().route(&path, socket), |router, at| router.route(at, api.clone()));
    (router, Attached { runtime, limiter, stop })
}

/// Returns the client of a request; `None` unless the router is served with connect info.
fn client(proxies: &TrustedProxies, request: &Request) -> Option<Client> {
    let peer = request.extensions().get::<ConnectInfo<SocketAddr>>()?.0;
    Some(proxies.client(peer, request.headers()))
}

/// Answers a request for the WebSocket path.
fn serve_websocket(
    context: &Arc<ServerContext>,
    limiter: &Arc<ConnectionLimiter>,
    stopping: &watch::Receiver<bool>,
    request: Request,
) -> Response {
    if !ws_upgrade::is_upgrade_request(request.headers()) {
        let upgrade = (header::UPGRADE, "websocket");
        return error_response::with_header(StatusCode::UPGRADE_REQUIRED, "a WebSocket is served here", upgrade);
    }
    if *stopping.borrow() {
        return error_response::stopping("the server is stopping");
    }
    // Known only if the router is served with connect info; otherwise all clients count as one address.
    let from = client(&context.proxies, &request).map(|client| client.address);
    let address = from.map_or(IpAddr::V6(Ipv6Addr::UNSPECIFIED), |from| from.ip());
    let Ok(permit) = limiter.acquire(Some(address)) else {
        context.metrics.rejected_connections.inc();
        return error_response::response(
            StatusCode::SERVICE_UNAVAILABLE,
            "the limit of connections is reached; try again later",
        );
    };
    ws_upgrade::answer(context, request, from, permit)
}
