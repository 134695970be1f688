//! Everything of a server but how clients get to it: put together, watched, and ended.

use std::{
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::BoxFuture;
use tokio::{net::TcpListener, sync::watch, task::JoinHandle, time::timeout};

use super::{
    Handle, Opened, ServerError,
    connection_limit::Slots,
    context::Shared,
    descriptors::Descriptors,
    handler::Called,
    handler_queue::{Calls, Telling},
    portal_id_file::PortalIds,
    resp_listener::WirePort,
    settings, shutdown,
};
use crate::{
    auth::{ApiKeys, Authenticator, Guesses},
    config::Config,
    health::supervise,
    http::{Api, Http},
    hub::{Hub, Store},
    metrics::Metrics,
    middleware::Middleware,
    resp::Wire,
    webhook::Webhook,
};

/// What is done before a server stops.
pub(super) type BeforeExit = Box<dyn FnOnce() -> BoxFuture<'static, ()> + Send>;

/// Makes a middleware for the server there is to be.
pub(super) type Adds = Box<dyn FnOnce(&Handle) -> Arc<dyn Middleware> + Send>;

/// How long what is to be done before the end may take.
const BEFORE_EXIT_MAX: Duration = Duration::from_secs(5);

/// Everything of a server but how clients get to it.
pub(super) struct Assembled {
    pub(super) shared: Arc<Shared>,
    pub(super) store: Arc<dyn Store>,
    pub(super) http: Http,
    pub(super) before_exit: Option<BeforeExit>,
    pub(super) webhook: Option<Webhook>,
    pub(super) wire: Option<WirePort>,
    pub(super) descriptors: Descriptors,
}

impl Assembled {
    pub(super) fn new(
        config: Config,
        (store, cluster): Opened,
        authenticator: Option<Arc<dyn Authenticator>>,
        handlers: Vec<Arc<dyn Called>>,
        middleware: Vec<Adds>,
        before_exit: Option<BeforeExit>,
        (wire, ids, descriptors): (Option<TcpListener>, Option<PortalIds>, Descriptors),
    ) -> Result<Self, ServerError> {
        let metrics = Arc::new(Metrics::with(store.health().restarted()));
        let hub = Hub::new(settings(&config), store.clone(), metrics.clone(), cluster);
        let guesses = Arc::new(Guesses::default());
        let http = Http::new(Api {
            hub: hub.clone(),
            keys: ApiKeys::new(&config.api),
            guesses: guesses.clone(),
            metrics: metrics.clone(),
            limits: config.limits.clone(),
            local_only: config.is_local_only(),
        });
        if config.portal.webhook.is_some() && store.outbox().is_none() {
            tracing::warn!("portal.webhook has no effect: the store was opened without an outbox");
        }
        let webhook = config.portal.webhook.as_ref().zip(store.outbox());
        let webhook =
            webhook.map(|(to, outbox)| Webhook::new(to, &hub, store.clone(), outbox, metrics.clone())).transpose()?;
        let wire = match wire {
            None => None,
            Some(listener) => {
                let remembered = ids.as_ref().map(PortalIds::read).unwrap_or_default();
                let wire = Wire::new(&config, hub.clone(), metrics.clone(), guesses, remembered);
                Some(WirePort::new(listener, descriptors.wire, wire, metrics.clone(), ids)?)
            }
        };
        let calls = (!handlers.is_empty()).then(|| Calls::new(handlers));
        if let Some(calls) = &calls {
            hub.listen(Arc::new(Telling(calls.clone())));
        }
        let shared = Arc::new(Shared::new(config, hub, metrics, authenticator, calls, descriptors.sockets));
        let parts = Self { shared, store, http, before_exit, webhook, wire, descriptors };
        let handle = parts.handle();
        parts.shared.hub.install(middleware.into_iter().map(|make| make(&handle)).collect());
        if let Some(calls) = &parts.shared.calls {
            calls.belong_to(handle);
        }
        Ok(parts)
    }

    pub(super) fn handle(&self) -> Handle {
        Handle { hub: Arc::downgrade(&self.shared.hub), recipients_max: self.shared.config.limits.recipients }
    }

    /// Watches over it until the end, and ends it.
    pub(super) async fn run(
        self,
        shutdown: impl Future<Output = ()> + Send,
        slots: &Slots,
        stop: &watch::Sender<bool>,
        accepting: JoinHandle<()>,
    ) -> Result<(), ServerError> {
        let Self { shared, store, before_exit, webhook, wire, .. } = self;
        let speaking = wire.as_ref().map(|wire| wire.wire.clone());
        let health = shared.hub.health();
        let wire = wire.map(|wire| wire.open(&health, stop.subscribe()));
        let telling = webhook.map(|webhook| webhook.start(&health));
        let (hub, authenticator) = (shared.hub.clone(), shared.authenticator.clone());
        let watching = tokio::spawn(supervise(
            health,
            "upkeep",
            (),
            || false,
            move |()| Box::pin(look_around(hub.clone(), speaking.clone(), authenticator.clone())),
        ));
        let mut failed = tokio::select! {
            () = shutdown => None,
            error = store.failure() => Some(error),
        };
        if let (None, Some(before_exit)) = (&failed, before_exit) {
            // A task of its own, so that a panic in it is its own.
            let last = timeout(BEFORE_EXIT_MAX, tokio::spawn(async { before_exit().await }));
            failed = tokio::select! {
                done = last => {
                    match done {
                        Ok(Ok(())) => {}
                        Ok(Err(panic)) => tracing::error!("what was to be done before the end did not end: {panic}"),
                        Err(_) => tracing::warn!("what was to be done before the end took too long; stopping all the same"),
                    }
                    None
                }
                error = store.failure() => Some(error),
            };
        }
        watching.abort();
        let stopped = shutdown::stop(&shared, &store, slots, stop, accepting, wire, failed).await;
        // Last: clients that went are in the outbox now, for the next start.
        drop(telling);
        stopped.map_err(ServerError::from)
    }
}

/// Removes portals that are gone, and asks once a second for the conditions that nobody reports.
async fn look_around(hub: Arc<Hub>, wire: Option<Arc<Wire>>, authenticator: Option<Arc<dyn Authenticator>>) {
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        if let Some(portals) = hub.portals() {
            portals.sweep(Instant::now());
        }
        if let Some(wire) = &wire {
            wire.sweep(Instant::now());
        }
        if let Some(authenticator) = &authenticator {
            hub.health().set("authentication", authenticator.failed_task().map(Into::into));
        }
        // Conditions that change are logged there.
        _ = hub.ready();
    }
}
