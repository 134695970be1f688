//! Builds, supervises and stops all components of a server except its listener.

use std::{
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::BoxFuture;
use tokio::{net::TcpListener, sync::watch, task::JoinHandle, time::timeout};

use super::{
    Handle, Opened, ServerError,
    connection_limit::ConnectionLimiter,
    context::ServerContext,
    descriptors::Descriptors,
    handler::DynHandler,
    handler_queue::{HandlerRunner, HubListener},
    is_stopped,
    portal_id_file::PortalIdFile,
    preface::{Port, Preface},
    proxies::TrustedProxies,
    reload::Reloader,
    resp_listener::RespListener,
    settings, shutdown,
    tls::ListenerTls,
};
use crate::{
    auth::{Authenticator, GuessLimiter},
    config::Config,
    health::supervise,
    http::{Admin, Api, Http},
    hub::{Hub, Store},
    live::{Live, LiveSettings},
    metrics::Metrics,
    middleware::Middleware,
    resp::RespServer,
    webhook::Webhook,
};

/// Function that runs before a server stops.
pub(super) type BeforeExit = Box<dyn FnOnce() -> BoxFuture<'static, ()> + Send>;

/// Function that creates middleware for a server.
pub(super) type MiddlewareFactory = Box<dyn FnOnce(&Handle) -> Arc<dyn Middleware> + Send>;

/// Time for the `before_exit` function; then the server stops anyway.
const BEFORE_EXIT_TIMEOUT: Duration = Duration::from_secs(5);

/// Time for aborted tasks to end.
const TASKS_TIMEOUT: Duration = Duration::from_secs(1);

/// All components of a server except its listener.
pub(super) struct Runtime {
    pub(super) context: Arc<ServerContext>,
    pub(super) store: Arc<dyn Store>,
    pub(super) http: Http,
    pub(super) before_exit: Option<BeforeExit>,
    pub(super) webhook: Option<Webhook>,
    pub(super) resp: Option<RespListener>,
    pub(super) certificates: ListenerTls,
    /// Limiter of all connections.
    pub(super) limiter: Arc<ConnectionLimiter>,
    pub(super) reloader: Arc<Reloader>,
}

impl Runtime {
    pub(super) fn new(
        config: Config,
        (store, cluster): Opened,
        (authenticator, own_authenticator): (Option<Arc<dyn Authenticator>>, bool),
        handlers: Vec<Arc<dyn DynHandler>>,
        middleware: Vec<MiddlewareFactory>,
        before_exit: Option<BeforeExit>,
        (resp, ids, descriptors, certificates): (Option<TcpListener>, Option<PortalIdFile>, Descriptors, ListenerTls),
    ) -> Result<Self, ServerError> {
        let metrics = Arc::new(Metrics::with(store.health().restarted()));
        let hub = Hub::new(settings(&config), store.clone(), metrics.clone(), cluster);
        let live = Live::new(LiveSettings::new(&config, authenticator));
        let guess_limiter = Arc::new(GuessLimiter::default());
        let http = Http::new(Api {
            hub: hub.clone(),
            guess_limiter: guess_limiter.clone(),
            metrics: metrics.clone(),
            admin: Admin::new(&config.admin, config.dev),
            live: live.clone(),
        });
        if config.portal.webhook.is_some() && store.outbox().is_none() {
            tracing::warn!("portal.webhook has no effect: the store was opened without an outbox");
        }
        let webhook = config.portal.webhook.as_ref().zip(store.outbox());
        let webhook =
            webhook.map(|(to, outbox)| Webhook::new(to, &hub, store.clone(), outbox, metrics.clone())).transpose()?;
        let proxies = Arc::new(TrustedProxies::new(&config.trusted_proxies));
        let senders = config.proxy_protocol.then(|| proxies.clone());
        let resp = match resp {
            None => None,
            Some(listener) => {
                let announced = ids.as_ref().map(PortalIdFile::read).unwrap_or_default();
                let server =
                    RespServer::new(&config, live.clone(), hub.clone(), metrics.clone(), guess_limiter, announced);
                let preface = (
                    Preface::new(Port::Resp, certificates.resp.clone(), senders.clone()),
                    config.limits.header_timeout,
                );
                Some(RespListener::new(listener, descriptors.resp, server, metrics.clone(), preface, ids)?)
            }
        };
        let runner = (!handlers.is_empty()).then(|| HandlerRunner::new(handlers));
        if let Some(runner) = &runner {
            hub.listen(Arc::new(HubListener(runner.clone())));
        }
        let limiter = ConnectionLimiter::new(descriptors.connections, config.limits.connections_per_address);
        let sockets = ConnectionLimiter::new(descriptors.sockets, 0);
        let limiters = (limiter.clone(), sockets.clone());
        let reloader = Reloader::new(&config, live.clone(), own_authenticator, limiters, descriptors).into();
        let preface = Preface::new(Port::Http, certificates.http.clone(), senders);
        let context = Arc::new(ServerContext::new(config, live, hub, metrics, runner, sockets, (preface, proxies)));
        let runtime = Self { context, store, http, before_exit, webhook, resp, certificates, limiter, reloader };
        let handle = runtime.handle();
        runtime.context.hub.install(middleware.into_iter().map(|make| make(&handle)).collect());
        if let Some(runner) = &runtime.context.runner {
            runner.set_handle(handle);
        }
        runtime.context.hub.report_interrupted();
        Ok(runtime)
    }

    pub(super) fn handle(&self) -> Handle {
        Handle {
            hub: Arc::downgrade(&self.context.hub),
            reloader: Arc::downgrade(&self.reloader),
            certificates: self.certificates.clone(),
        }
    }

    /// Supervises the components until `shutdown` resolves or the store fails, then stops them.
    pub(super) async fn run(
        self,
        shutdown: impl Future<Output = ()> + Send,
        limiter: &ConnectionLimiter,
        stop: &watch::Sender<bool>,
        accepting: JoinHandle<()>,
    ) -> Result<(), ServerError> {
        let Self { context, store, before_exit, webhook, resp, certificates, reloader: _reloader, .. } = self;
        let resp_server = resp.as_ref().map(|resp| resp.server.clone());
        let health = context.hub.health();
        let resp = resp.map(|resp| resp.open(&health, stop.subscribe()));
        for tls in certificates.distinct().cloned() {
            let (health, stopping, stop) = (health.clone(), stop.subscribe(), stop.subscribe());
            let is_over = move || is_stopped(&stopping);
            tokio::spawn(supervise(health, "certificates", tls, is_over, move |tls| {
                Box::pin(tls.maintain(stop.clone()))
            }));
        }
        let webhook_tasks = webhook.map(|webhook| webhook.start(&health));
        let (hub, live) = (context.hub.clone(), context.live.clone());
        let maintenance = tokio::spawn(supervise(
            health,
            "maintenance",
            (),
            || false,
            move |()| Box::pin(run_maintenance(hub.clone(), resp_server.clone(), live.clone())),
        ));
        let mut failed = tokio::select! {
            () = shutdown => None,
            error = store.failure() => Some(error),
        };
        if let (None, Some(before_exit)) = (&failed, before_exit) {
            // In a new task, which isolates a panic.
            let exiting = timeout(BEFORE_EXIT_TIMEOUT, tokio::spawn(async { before_exit().await }));
            failed = tokio::select! {
                done = exiting => {
                    match done {
                        Ok(Ok(())) => {}
                        Ok(Err(panic)) => tracing::error!("the before_exit function panicked: {panic}"),
                        Err(_) => tracing::warn!("the before_exit function took more than 5 s; the server stops without it"),
                    }
                    None
                }
                error = store.failure() => Some(error),
            };
        }
        maintenance.abort();
        let stopped = shutdown::stop(&context, &store, limiter, stop, accepting, resp, failed).await;
        // Both hold the store. An aborted task ends only when its thread next polls it.
        _ = timeout(TASKS_TIMEOUT, async {
            _ = maintenance.await;
            // Last, because the outbox now has the final disconnections. The next start sends them.
            if let Some(tasks) = webhook_tasks {
                tasks.stop().await;
            }
        })
        .await;
        stopped.map_err(ServerError::from)
    }
}

/// Expires portals, and polls the health conditions that no component reports, once per second.
async fn run_maintenance(hub: Arc<Hub>, resp: Option<Arc<RespServer>>, live: Arc<Live>) {
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        if let Some(portals) = hub.portals() {
            portals.expire(Instant::now());
        }
        if let Some(resp) = &resp {
            resp.sweep(Instant::now());
        }
        let authenticator = live.load().authenticator.clone();
        if let Some(authenticator) = authenticator {
            hub.health().set("authentication", authenticator.failed_task().map(Into::into));
        }
        hub.tick_latencies();
        // Changed conditions are logged by this call.
        _ = hub.ready();
    }
}
