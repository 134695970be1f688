//! Out of the outbox: one batch at a time, again and again until the receiver has taken it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{backoff::Backoff, on_disk_thread, payload};
use crate::{
    http_client::{Answer, Outgoing, OutgoingError, signing},
    hub::{KeptEvent, Outbox},
    metrics::Metrics,
};

/// Events that may be taken by the receiver and not yet removed from the disk. After a crash no more than these and one
/// batch are told again. More than are written together, which is how they are removed.
const AHEAD_MAX: u64 = 5_000;

/// How often it is said that the receiver takes nothing.
const SAY: Duration = Duration::from_secs(60);

/// The status of a receiver for which a request is too large.
const TOO_LARGE: u16 = 413;

/// What is needed to tell.
#[derive(Debug)]
pub(super) struct Delivery {
    pub outgoing: Outgoing,
    pub outbox: Arc<dyn Outbox>,
    pub secret: String,
    pub max_events: usize,
    pub max_bytes: u64,
    pub backoff: Backoff,
    pub metrics: Arc<Metrics>,
}

/// Since when the receiver takes nothing, and when that was last said.
struct Trouble {
    since: Instant,
    said: Instant,
    requests: u64,
}

impl Delivery {
    /// Tells, for as long as it is let.
    pub async fn run(&mut self) {
        let mut changes = self.outbox.changes();
        // After a panic events that were taken and not removed yet are posted again, with the same ids.
        let mut through = self.outbox.status().removed;
        let mut trouble = None;
        loop {
            changes.borrow_and_update();
            let ahead = through.saturating_sub(self.outbox.status().removed);
            let events = if ahead > AHEAD_MAX { Vec::new() } else { self.read(through).await };
            if events.is_empty() {
                // Ends only when the outbox does, and so does this.
                if changes.changed().await.is_err() {
                    return;
                }
                continue;
            }
            let taken = self.tell(&events, &mut trouble).await;
            if let Some(last) = events[..taken].last() {
                through = last.number;
                self.outbox.remove(through);
            }
        }
    }

    /// The next events; none where there are none.
    async fn read(&self, after: u64) -> Vec<KeptEvent> {
        loop {
            let (outbox, events, bytes) = (self.outbox.clone(), self.max_events, self.max_bytes);
            match on_disk_thread(move || outbox.read(after, events, bytes)).await {
                Some(Ok(events)) => return events,
                Some(Err(error)) => tracing::error!(%error, "events cannot be read from the outbox of the webhook"),
                None => {}
            }
            tokio::time::sleep(SAY).await;
        }
    }

    /// Posts these until the receiver takes them; returns how many that were. What is too large for it is halved.
    async fn tell(&mut self, events: &[KeptEvent], trouble: &mut Option<Trouble>) -> usize {
        let mut count = events.len();
        loop {
            let body = payload::encode(&events[..count]);
            // Made anew each time: receivers refuse old ones.
            let headers = signing::headers(&self.secret, &body);
            let answer = self.outgoing.post(body, &headers).await;
            if answer.as_ref().is_ok_and(Answer::is_success) {
                self.metrics.webhook_sent.inc_by(count as u64);
                self.backoff.reset();
                if let Some(Trouble { since, requests, .. }) = trouble.take() {
                    let seconds = since.elapsed().as_secs();
                    tracing::info!(seconds, requests, "the receiver of the webhook takes events again");
                }
                return count;
            }
            self.metrics.webhook_failures.inc();
            say(trouble, &answer);
            if count > 1 && answer.as_ref().is_ok_and(|answer| answer.status == TOO_LARGE) {
                count = count.div_ceil(2);
                continue;
            }
            let asked = answer.ok().and_then(|answer| answer.retry_after);
            tokio::time::sleep(self.backoff.next(asked)).await;
        }
    }
}

/// Says what is wrong: at first, and then once in a while.
fn say(trouble: &mut Option<Trouble>, answer: &Result<Answer, OutgoingError>) {
    let now = Instant::now();
    let first = trouble.is_none();
    let trouble = trouble.get_or_insert(Trouble { since: now, said: now, requests: 0 });
    trouble.requests += 1;
    if !first && now.duration_since(trouble.said) < SAY {
        return;
    }
    trouble.said = now;
    let why = match answer {
        Ok(answer) => match answer.status {
            300..=399 => format!("it answers {}, and redirections are not followed", answer.status),
            status => format!("it answers {status}"),
        },
        Err(error) => error.to_string(),
    };
    let (requests, seconds) = (trouble.requests, trouble.since.elapsed().as_secs());
    tracing::warn!(%why, requests, seconds, "the receiver of the webhook takes no events; they wait in the outbox");
}
