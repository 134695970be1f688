//! Counts what the clients receive, and finds lost, repeated and reordered messages.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use parking_lot::Mutex;
use serde::Deserialize;
use tokio::sync::Notify;

/// Histograms that clients share, so that few of them wait for each other.
const SHARDS: usize = 16;

/// Significant digits of latencies, and the longest one, in microseconds: an hour. A longer one counts as that.
const DIGITS: u8 = 3;
const LATENCY_US_MAX: u64 = 3_600_000_000;

/// Longest time without any message until a measurement ends, in case of a loss.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(30);

/// Data of a message.
#[derive(Deserialize)]
pub struct Stamp {
    /// Number among the messages of its user, from 0.
    pub n: u64,
    /// Time of the dispatch, in microseconds since the start of the measurement.
    pub at: u64,
}

/// Counts messages of all clients.
#[derive(Debug)]
pub struct Deliveries {
    start: Instant,
    received: AtomicU64,
    repeated: AtomicU64,
    reordered: AtomicU64,
    closed: AtomicU64,
    changed: Notify,
    /// Number of messages after which waiters are woken.
    expected: AtomicU64,
    latencies: Vec<Mutex<Histogram<u64>>>,
}

impl Deliveries {
    pub fn new() -> Self {
        let histogram = || Mutex::new(new_histogram());
        Self {
            start: Instant::now(),
            received: AtomicU64::new(0),
            repeated: AtomicU64::new(0),
            reordered: AtomicU64::new(0),
            closed: AtomicU64::new(0),
            changed: Notify::new(),
            expected: AtomicU64::new(u64::MAX),
            latencies: std::iter::repeat_with(histogram).take(SHARDS).collect(),
        }
    }

    /// Returns microseconds since the start.
    pub fn now_us(&self) -> u64 {
        self.start.elapsed().as_micros() as u64
    }

    /// Counts a message of client `number`, which expects the number `next`. Returns the number that it expects then.
    pub fn receive(&self, number: usize, next: u64, stamp: &Stamp) -> u64 {
        if stamp.n < next {
            self.repeated.fetch_add(1, Relaxed);
            return next;
        }
        // A missing message that arrives later counts as repeated: the run fails in any case.
        self.reordered.fetch_add(u64::from(stamp.n > next), Relaxed);
        let latency = self.now_us().saturating_sub(stamp.at).max(1);
        self.latencies[number % SHARDS].lock().saturating_record(latency);
        if self.received.fetch_add(1, Relaxed) + 1 >= self.expected.load(Relaxed) {
            self.changed.notify_waiters();
        }
        stamp.n + 1
    }

    /// Records a latency that is not one of a message.
    pub fn record(&self, number: usize, latency: Duration) {
        self.latencies[number % SHARDS].lock().saturating_record(latency.as_micros().max(1) as u64);
    }

    /// Counts a connection that the server has closed.
    pub fn close(&self) {
        self.closed.fetch_add(1, Relaxed);
        self.changed.notify_waiters();
    }

    /// Waits until clients have received `expected` messages, or nothing arrives for [`SILENCE_TIMEOUT`].
    pub async fn wait_for(&self, expected: u64, mut progress: impl FnMut(u64)) {
        self.expected.store(expected, Relaxed);
        let (mut last, mut since) = (0, Instant::now());
        loop {
            let changed = self.changed.notified();
            let received = self.received();
            progress(received);
            if received >= expected {
                return;
            }
            if received > last {
                (last, since) = (received, Instant::now());
            } else if since.elapsed() > SILENCE_TIMEOUT {
                return;
            }
            _ = tokio::time::timeout(Duration::from_millis(100), changed).await;
        }
    }

    pub fn received(&self) -> u64 {
        self.received.load(Relaxed)
    }

    pub fn repeated(&self) -> u64 {
        self.repeated.load(Relaxed)
    }

    pub fn reordered(&self) -> u64 {
        self.reordered.load(Relaxed)
    }

    pub fn closed(&self) -> u64 {
        self.closed.load(Relaxed)
    }

    /// Returns all latencies, in microseconds.
    pub fn latencies(&self) -> Histogram<u64> {
        let mut all = new_histogram();
        for shard in &self.latencies {
            all.add(&*shard.lock()).expect("histograms of the same precision");
        }
        all
    }
}

fn new_histogram() -> Histogram<u64> {
    Histogram::new_with_max(LATENCY_US_MAX, DIGITS).expect("three digits are allowed")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_in_order_are_received_and_others_are_violations() {
        let deliveries = Deliveries::new();
        let mut next = 0;
        for n in [0, 1, 1, 3, 2, 4] {
            next = deliveries.receive(0, next, &Stamp { n, at: 0 });
        }
        assert_eq!((deliveries.received(), deliveries.repeated(), deliveries.reordered(), next), (4, 2, 1, 5));
        deliveries.record(1, Duration::from_millis(1500));
        let latencies = deliveries.latencies();
        assert_eq!(latencies.len(), 5);
        assert!(latencies.max().abs_diff(1_500_000) < 2_000, "{}", latencies.max());
    }
}
