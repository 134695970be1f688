//! Drains a server: it takes no new connections, and closes the present ones spread over a time.
//!
//! Clients reconnect after the interval that the server gives them. Without a spread, all clients of a stopped server
//! return in the same second.

use std::{
    sync::{Arc, Weak, atomic::Ordering},
    time::{Duration, Instant},
};

use super::{CloseReason, ConnectionId, Hub};

/// Name of the part in `/readyz`.
const PART: &str = "draining";

/// Interval at which connections are closed.
const STEP_INTERVAL: Duration = Duration::from_millis(50);

/// Reconnections per second for which the spread is sized. A server accepts more than ten times as many.
const RECONNECTIONS_PER_SECOND: usize = 500;

/// Longest spread of reconnections.
const SPREAD_MAX: Duration = Duration::from_secs(60);

impl Hub {
    /// Refuses new connections from now on, and closes the present ones over `time`. Returns their number.
    ///
    /// A later call replaces the time. The server stays like this until it stops, or [`Hub::cancel_drain`].
    pub fn drain(self: &Arc<Self>, time: Duration) -> usize {
        let mut generation = self.drain.generation.lock();
        *generation += 1;
        let connections = self.begin_closing();
        self.drain.draining.store(true, Ordering::Release);
        let why =
            "the server is draining: it takes no new connections until it is restarted, or until `mesa drain --cancel`";
        self.health().not_ready_logged(PART, why.into());
        tracing::info!(connections, seconds = time.as_secs_f64(), "draining: no new connections are taken");
        // A connection that was upgrading may not be registered yet: the task finds it later.
        tokio::spawn(close_over(Arc::downgrade(self), *generation, time));
        connections
    }

    /// Cancels a drain: new connections are taken again, and no further ones are closed. Returns the open connections.
    ///
    /// Connections that were already requested to close still close. Without a drain, nothing changes.
    pub fn cancel_drain(&self) -> usize {
        let mut generation = self.drain.generation.lock();
        let connections = self.connection_count();
        if self.drain.draining.swap(false, Ordering::AcqRel) {
            // Ends the task that closes connections.
            *generation += 1;
            self.drain.closing.store(0, Ordering::Relaxed);
            self.health().ready(PART);
            tracing::info!(connections, "the drain is cancelled: new connections are taken");
        }
        connections
    }

    /// Reports whether new connections are refused because of a drain.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.drain.draining.load(Ordering::Acquire)
    }

    /// Records that the connections are about to be closed, and returns their number.
    pub fn begin_closing(&self) -> usize {
        let connections = self.connection_count();
        self.drain.closing.fetch_max(connections, Ordering::Relaxed);
        connections
    }

    /// Returns the delay before a closed client reconnects: `interval`, spread by `fraction` (0 to 1).
    ///
    /// Delays begin at half of the interval. They are spread over the interval, or over the time in which
    /// [`RECONNECTIONS_PER_SECOND`] clients per second return, if that is longer.
    #[must_use]
    pub fn reconnect_delay(&self, interval: Duration, fraction: f64) -> Duration {
        spread(interval, self.drain.closing.load(Ordering::Relaxed), fraction)
    }
}

fn spread(interval: Duration, connections: usize, fraction: f64) -> Duration {
    let needed = Duration::from_secs_f64(connections as f64 / RECONNECTIONS_PER_SECOND as f64).min(SPREAD_MAX);
    interval / 2 + needed.max(interval).mul_f64(fraction.clamp(0.0, 1.0))
}

/// Closes the connections of a hub at an even rate, until none is left, another drain begins, or it is cancelled.
async fn close_over(hub: Weak<Hub>, generation: u64, time: Duration) {
    let end = Instant::now() + time;
    let mut last = 0;
    // Connections that are due, and the fraction of the next one.
    let mut due = 0.0;
    loop {
        {
            let Some(hub) = hub.upgrade() else { return };
            if *hub.drain.generation.lock() != generation {
                return;
            }
            let open = hub.connection_count();
            if open == 0 {
                tracing::info!("drained: all connections are closed");
                return;
            }
            // A connection takes up to some seconds to close, so those that were requested to close are counted again.
            let left = end.saturating_duration_since(Instant::now());
            due += open as f64 * (STEP_INTERVAL.as_secs_f64() / left.as_secs_f64()).min(1.0);
            #[expect(clippy::cast_sign_loss, reason = "a sum of positive numbers")]
            let count = due as usize;
            last = hub.close_some(last, count);
            due = due.fract();
        }
        tokio::time::sleep(STEP_INTERVAL).await;
    }
}

impl Hub {
    /// Requests up to `count` connections above the id `after` to close, in the order of their arrival.
    ///
    /// Returns the last of their ids; 0 after the last connection, so that the next call begins again.
    fn close_some(&self, after: ConnectionId, count: usize) -> ConnectionId {
        if count == 0 {
            return after;
        }
        let mut ids = Vec::new();
        self.registry.for_each_connection(|id, _| {
            if id > after {
                ids.push(id);
            }
        });
        let is_last = ids.len() <= count;
        if !is_last {
            ids.select_nth_unstable(count - 1);
            ids.truncate(count);
        }
        for id in &ids {
            self.close_connection(*id, CloseReason::Shutdown);
        }
        if is_last { 0 } else { ids.iter().copied().max().unwrap_or(0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_thousand_clients_return_over_twenty_seconds() {
        let interval = Duration::from_secs(5);
        let mut delays: Vec<_> = (0..10_000).map(|n| spread(interval, 10_000, f64::from(n) / 10_000.0)).collect();
        delays.sort();
        assert_eq!((delays[0], delays[9_999].as_secs()), (Duration::from_millis(2500), 22));
        let most = delays.iter().fold([0; 30], |mut counts: [usize; 30], delay| {
            counts[delay.as_secs() as usize] += 1;
            counts
        });
        assert!(most.iter().all(|count| *count <= RECONNECTIONS_PER_SECOND), "{most:?}");
        assert_eq!(spread(interval, 3, 1.0), Duration::from_millis(7500), "few clients return in a few seconds");
        assert_eq!(spread(interval, usize::MAX, 1.0), Duration::from_millis(2500) + SPREAD_MAX);
    }
}
