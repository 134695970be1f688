//! Delivers events from the outbox to the receiver: one batch at a time, with retries until the receiver accepts it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::task::spawn_blocking;

use super::payload;
use crate::{
    health::{LogLimit, warn_seldom},
    http_client::{HttpClient, HttpError, HttpResponse, signing},
    hub::{Outbox, QueuedEvent},
    metrics::Metrics,
    util::backoff::Backoff,
};

/// Accepted events that may not be removed from the outbox yet; above it no batch is sent.
///
/// After a crash at most these events and one batch are sent again. Events are removed in the groups in which they were
/// written, so the limit exceeds such a group.
const UNREMOVED_MAX: u64 = 5_000;

/// Minimum interval between log lines about an outage of the receiver.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// Delay before a failed read of the outbox is retried.
const READ_RETRY_DELAY: Duration = Duration::from_secs(60);

/// Status with which a receiver rejects a request as too large.
const TOO_LARGE: u16 = 413;

/// Duration of a request beyond which it is logged as slow.
const SLOW_REQUEST: Duration = Duration::from_secs(1);

/// Limits the log lines about slow requests.
static SLOW: LogLimit = LogLimit::new();

/// Delivers the events of one outbox.
#[derive(Debug)]
pub(super) struct Delivery {
    pub http: HttpClient,
    pub outbox: Arc<dyn Outbox>,
    pub secret: String,
    pub max_events: usize,
    pub max_bytes: u64,
    pub backoff: Backoff,
    pub metrics: Arc<Metrics>,
}

/// Describes an outage of the receiver: consecutive failed requests.
struct Outage {
    since: Instant,
    logged: Instant,
    requests: u64,
}

impl Delivery {
    /// Delivers events until the outbox is closed.
    pub async fn run(&mut self) {
        let mut changes = self.outbox.changes();
        // After a panic of this task, accepted events that are not removed yet are sent again, with the same ids.
        let mut through = self.outbox.status().removed;
        let mut outage = None;
        loop {
            changes.borrow_and_update();
            let unremoved = through.saturating_sub(self.outbox.status().removed);
            let events = if unremoved > UNREMOVED_MAX { Vec::new() } else { self.read(through).await };
            if events.is_empty() {
                // An error means that the outbox is closed.
                if changes.changed().await.is_err() {
                    return;
                }
                continue;
            }
            let accepted = self.deliver(&events, &mut outage).await;
            if let Some(last) = events[..accepted].last() {
                through = last.number;
                self.outbox.remove(through);
            }
        }
    }

    /// Reads the next events; empty if there are none.
    async fn read(&self, after: u64) -> Vec<QueuedEvent> {
        loop {
            let (outbox, events, bytes) = (self.outbox.clone(), self.max_events, self.max_bytes);
            match spawn_blocking(move || outbox.read(after, events, bytes)).await {
                Ok(Ok(events)) => return events,
                Ok(Err(error)) => tracing::error!(%error, "events cannot be read from the outbox of the webhook"),
                // The read panicked, or the runtime stops.
                Err(_) => {}
            }
            tokio::time::sleep(READ_RETRY_DELAY).await;
        }
    }

    /// Sends events until the receiver accepts some; returns their number. After 413 the batch is halved.
    async fn deliver(&mut self, events: &[QueuedEvent], outage: &mut Option<Outage>) -> usize {
        let mut count = events.len();
        loop {
            let body = payload::encode(&events[..count]);
            // Signed for each attempt, because receivers reject old timestamps.
            let headers = signing::headers(&self.secret, &body);
            let sent = Instant::now();
            let response = self.http.post(body, &headers).await;
            if sent.elapsed() >= SLOW_REQUEST {
                warn_seldom!(
                    SLOW,
                    seconds = sent.elapsed().as_secs_f64(),
                    events = count,
                    "the receiver of the webhook was slow to answer; further events wait in the outbox"
                );
            }
            if response.as_ref().is_ok_and(HttpResponse::is_success) {
                self.metrics.webhook_sent.inc_by(count as u64);
                self.backoff.reset();
                if let Some(Outage { since, requests, .. }) = outage.take() {
                    let seconds = since.elapsed().as_secs();
                    tracing::info!(seconds, requests, "the receiver of the webhook accepts events again");
                }
                return count;
            }
            self.metrics.webhook_failures.inc();
            log_failure(outage, &response);
            if count > 1 && response.as_ref().is_ok_and(|response| response.status == TOO_LARGE) {
                count = count.div_ceil(2);
                continue;
            }
            let requested = response.ok().and_then(|response| response.retry_after);
            tokio::time::sleep(self.backoff.next().max(requested.unwrap_or_default())).await;
        }
    }
}

/// Logs a failed request: the first of an outage, then at most once per interval.
fn log_failure(outage: &mut Option<Outage>, response: &Result<HttpResponse, HttpError>) {
    let now = Instant::now();
    let first = outage.is_none();
    let outage = outage.get_or_insert(Outage { since: now, logged: now, requests: 0 });
    outage.requests += 1;
    if !first && now.duration_since(outage.logged) < LOG_INTERVAL {
        return;
    }
    outage.logged = now;
    let why = match response {
        Ok(response) => match response.status {
            300..=399 => format!("it answered {}, and redirects are not followed", response.status),
            status => format!("it answered {status}"),
        },
        Err(error) => error.to_string(),
    };
    let (requests, seconds) = (outage.requests, outage.since.elapsed().as_secs());
    tracing::warn!(%why, requests, seconds, "the receiver of the webhook accepts no events; they wait in the outbox. Check the receiver");
}
