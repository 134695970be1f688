//! Telling a backend what happens: events in batches, over HTTP, signed, in order, each at least once.
//!
//! Nothing is told from where it happens. Events go into the store's [`Outbox`] first, which survives what messages survive;
//! one task reads it from its front and posts a batch at a time, again and again until it is taken. So everything is in one
//! order, and a receiver that is down, slow or wrong costs nothing but room in the outbox, which has a bound.
//!
//! - `recorder`: what clients do, into the outbox
//! - `undelivered`: messages that nobody received for a while, into the outbox
//! - `delivery`: out of it
//! - `payload`: what is posted, byte by byte
//! - `backoff`: how long to wait before trying again
//!
//! What the store itself puts in (`delivered`, `expired`, `dropped`) is in `embedded/outbox`.

mod backoff;
mod blocking;
mod delivery;
mod payload;
mod recorder;
mod undelivered;

use std::{sync::Arc, time::Duration};

use tokio::{task::JoinSet, time::Instant};

use self::blocking::on_disk_thread;
use crate::{
    config,
    health::{Health, supervise},
    http_client::{Outgoing, UrlError},
    hub::{EventKind, Hub, Outbox, OutboxOptions, Store},
    metrics::Metrics,
};
use backoff::Backoff;
use delivery::Delivery;
use recorder::Feed;
use undelivered::Watch;

/// How often it is looked how the outbox is.
const LOOK: Duration = Duration::from_secs(1);

/// How often it is said that events are being lost, while they are.
const SAY: Duration = Duration::from_secs(60);

/// What the store has to keep for a webhook.
#[must_use]
pub fn outbox_options(webhook: &config::Webhook) -> OutboxOptions {
    let named = |kind: &EventKind| webhook.events.iter().any(|name| name == kind.as_str());
    OutboxOptions {
        events: webhook.outbox_events,
        bytes: webhook.outbox_bytes,
        kinds: EventKind::CHOICE.into_iter().filter(named).collect(),
    }
}

/// A webhook that is set up.
pub struct Webhook {
    delivery: Delivery,
    watch: Option<Arc<Watch>>,
    outbox: Arc<dyn Outbox>,
    metrics: Arc<Metrics>,
}

/// A webhook at work. Dropping it stops it; what it has not told stays in the outbox.
#[derive(Debug)]
pub struct Telling {
    _tasks: JoinSet<()>,
}

impl Webhook {
    /// Sets it up: from here on what happens goes into the outbox.
    ///
    /// # Errors
    /// When the address is refused, or the system's certificates cannot be used.
    pub fn new(
        webhook: &config::Webhook,
        hub: &Hub,
        store: Arc<dyn Store>,
        outbox: Arc<dyn Outbox>,
        metrics: Arc<Metrics>,
    ) -> Result<Self, UrlError> {
        let delivery = Delivery {
            outgoing: Outgoing::new(&webhook.url, webhook.timeout, webhook.allow_private)?,
            outbox: outbox.clone(),
            secret: webhook.secret.clone(),
            max_events: webhook.max_events,
            max_bytes: webhook.max_bytes,
            backoff: Backoff::new(webhook.retry_min, webhook.retry_max),
            metrics: metrics.clone(),
        };
        hub.listen(Arc::new(Feed::new(outbox.clone())));
        let watch = outbox.wants(EventKind::Undelivered).then(|| {
            let watch = Arc::new(Watch::new(store, outbox.clone(), webhook.undelivered_after));
            let told = watch.clone();
            hub.on_appended(move |users| told.appended(users));
            watch
        });
        Ok(Self { delivery, watch, outbox, metrics })
    }

    /// Begins to tell. To be called on a runtime.
    #[must_use = "it stops when this is dropped"]
    pub fn start(self, health: &Arc<Health>) -> Telling {
        let Self { delivery, watch, outbox, metrics } = self;
        let mut tasks = JoinSet::new();
        // They end when they are dropped. The outbox outlives them: it is in the store, which is closed later.
        let over = || false;
        tasks.spawn(supervise(health.clone(), "webhook_delivery", delivery, over, |delivery| Box::pin(delivery.run())));
        if let Some(watch) = watch {
            tasks.spawn(supervise(health.clone(), "webhook_watch", watch, over, |watch| Box::pin(watch.run())));
        }
        tasks.spawn(supervise(health.clone(), "webhook_metrics", 0, over, move |lost| {
            Box::pin(observe(outbox.clone(), metrics.clone(), lost))
        }));
        Telling { _tasks: tasks }
    }
}

impl std::fmt::Debug for Webhook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Webhook").field("delivery", &self.delivery).finish_non_exhaustive()
    }
}

/// Keeps the metrics of the outbox, and says so while events are being lost.
async fn observe(outbox: Arc<dyn Outbox>, metrics: Arc<Metrics>, lost: &mut u64) {
    let mut said = None::<Instant>;
    loop {
        let status = outbox.status();
        metrics.webhook_outbox_events.set(status.events.cast_signed());
        metrics.webhook_outbox_bytes.set(status.bytes.cast_signed());
        metrics.webhook_lost.inc_by(status.lost - *lost);
        if status.lost > *lost && said.is_none_or(|said| said.elapsed() >= SAY) {
            said = Some(Instant::now());
            tracing::error!(
                lost = status.lost,
                "the outbox of the webhook is full (portal.webhook.outboxEvents, outboxBytes): so many events were lost since the \
                 start"
            );
        }
        *lost = status.lost;
        tokio::time::sleep(LOOK).await;
    }
}
