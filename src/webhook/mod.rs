//! Sends events to a backend over HTTP: in batches, signed (`http_client::signing`), in order, each at least once.
//!
//! Events are first put into the store's [`Outbox`], which is as durable as messages. One task reads the oldest events
//! and sends one batch at a time, with retries until the receiver accepts it. So all events are in one order. A
//! receiver that fails or is slow uses only space in the outbox, which is bounded.
//!
//! - `recorder`: puts client events into the outbox
//! - `undelivered`: puts messages that were not acknowledged in time into the outbox
//! - `delivery`: sends events from the outbox
//! - `payload`: encodes the body of a request
//!
//! The store itself puts in `delivered`, `expired` and `dropped`; see `embedded/outbox`.

mod delivery;
mod payload;
mod recorder;
mod undelivered;

use std::{sync::Arc, time::Duration};

use tokio::{task::JoinSet, time::Instant};

use crate::{
    config,
    health::{Health, supervise},
    http_client::{HttpClient, UrlError},
    hub::{EventKind, Hub, Outbox, OutboxOptions, Store},
    metrics::Metrics,
    util::backoff::Backoff,
};
use delivery::Delivery;
use recorder::EventRecorder;
use undelivered::UndeliveredMonitor;

/// Interval between updates of the metrics of the outbox.
const METRICS_INTERVAL: Duration = Duration::from_secs(1);

/// Minimum interval between log lines about lost events.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// Returns the outbox options of the store for a webhook.
#[must_use]
pub fn outbox_options(webhook: &config::Webhook) -> OutboxOptions {
    let is_configured = |kind: &EventKind| webhook.events.iter().any(|name| name == kind.as_str());
    OutboxOptions {
        events: webhook.outbox_events,
        bytes: webhook.outbox_bytes,
        kinds: EventKind::CONFIGURABLE.into_iter().filter(is_configured).collect(),
    }
}

/// Holds a configured webhook before it starts.
pub struct Webhook {
    delivery: Delivery,
    monitor: Option<Arc<UndeliveredMonitor>>,
    outbox: Arc<dyn Outbox>,
    metrics: Arc<Metrics>,
}

/// Runs the tasks of a webhook. Dropping it stops them; unsent events stay in the outbox.
#[derive(Debug)]
pub struct WebhookTasks {
    tasks: JoinSet<()>,
}

impl WebhookTasks {
    /// Stops the tasks, and waits until they have ended.
    pub async fn stop(mut self) {
        self.tasks.shutdown().await;
    }
}

impl Webhook {
    /// Configures the webhook. From now on, events are put into the outbox.
    ///
    /// # Errors
    /// Fails if the URL is rejected, or the system's certificates cannot be loaded.
    pub fn new(
        webhook: &config::Webhook,
        hub: &Hub,
        store: Arc<dyn Store>,
        outbox: Arc<dyn Outbox>,
        metrics: Arc<Metrics>,
    ) -> Result<Self, UrlError> {
        let delivery = Delivery {
            http: HttpClient::new(&webhook.url, webhook.timeout, webhook.allow_private)?,
            outbox: outbox.clone(),
            secret: webhook.secret.clone(),
            max_events: webhook.max_events,
            max_bytes: webhook.max_bytes,
            backoff: Backoff::new(webhook.retry_min, webhook.retry_max),
            metrics: metrics.clone(),
        };
        hub.listen(Arc::new(EventRecorder::new(outbox.clone())));
        let monitor = outbox.is_enabled(EventKind::Undelivered).then(|| {
            let monitor = Arc::new(UndeliveredMonitor::new(store, outbox.clone(), webhook.undelivered_after));
            let listener = monitor.clone();
            hub.on_appended(move |users| listener.on_appended(users));
            monitor
        });
        Ok(Self { delivery, monitor, outbox, metrics })
    }

    /// Starts the tasks. Call it on a runtime.
    #[must_use = "it stops when this is dropped"]
    pub fn start(self, health: &Arc<Health>) -> WebhookTasks {
        let Self { delivery, monitor, outbox, metrics } = self;
        let mut tasks = JoinSet::new();
        // The tasks end when they are dropped. The outbox outlives them: it is in the store, which closes later.
        let is_over = || false;
        tasks.spawn(supervise(health.clone(), "webhook_delivery", delivery, is_over, |delivery| {
            Box::pin(delivery.run())
        }));
        if let Some(monitor) = monitor {
            tasks.spawn(supervise(health.clone(), "webhook_undelivered", monitor, is_over, |monitor| {
                Box::pin(monitor.run())
            }));
        }
        tasks.spawn(supervise(health.clone(), "webhook_metrics", 0, is_over, move |lost| {
            Box::pin(observe_outbox(outbox.clone(), metrics.clone(), lost))
        }));
        WebhookTasks { tasks }
    }
}

impl std::fmt::Debug for Webhook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Webhook").field("delivery", &self.delivery).finish_non_exhaustive()
    }
}

/// Updates the metrics of the outbox, and logs lost events.
async fn observe_outbox(outbox: Arc<dyn Outbox>, metrics: Arc<Metrics>, lost: &mut u64) {
    let mut logged = None::<Instant>;
    loop {
        let status = outbox.status();
        metrics.webhook_outbox_events.set(status.events.cast_signed());
        metrics.webhook_outbox_bytes.set(status.bytes.cast_signed());
        metrics.webhook_lost.inc_by(status.lost - *lost);
        if status.lost > *lost && logged.is_none_or(|at| at.elapsed() >= LOG_INTERVAL) {
            logged = Some(Instant::now());
            tracing::error!(
                lost = status.lost,
                "the outbox of the webhook is full, and events were lost since the start; check the receiver, or raise \
                portal.webhook.outboxEvents or outboxBytes"
            );
        }
        *lost = status.lost;
        tokio::time::sleep(METRICS_INTERVAL).await;
    }
}
