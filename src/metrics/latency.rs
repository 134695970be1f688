//! Measures durations: a histogram for Prometheus, and quantiles of the last minute.

use std::{
    collections::VecDeque,
    fmt::Error,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use prometheus_client::{
    encoding::{EncodeMetric, MetricEncoder, NoLabelSet},
    metrics::MetricType,
};

/// Upper bounds of the buckets that a scrape shows, in microseconds: 50 µs to 10 s.
const SHOWN: [u64; 17] = [
    50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000, 1_000_000, 2_000_000,
    5_000_000, 10_000_000,
];

/// Upper bounds of the inner buckets of a decade. They divide those of [`SHOWN`], so quantiles are off by 15 % at most.
const DECADE: [u64; 15] = [10, 12, 15, 17, 20, 25, 30, 35, 40, 45, 50, 60, 70, 80, 90];
const DECADES: usize = 6;

/// Number of inner buckets. The last one has no upper bound.
const BUCKETS: usize = DECADES * DECADE.len() + 2;

/// Upper bounds of the inner buckets, in microseconds.
static BOUNDS: LazyLock<[u64; BUCKETS - 1]> = LazyLock::new(|| {
    let bound = |at: usize| DECADE[at % DECADE.len()] * 10_u64.pow((at / DECADE.len()) as u32);
    std::array::from_fn(bound)
});

/// Calls of [`Latency::tick`] between two snapshots, and the number of snapshots: together one minute.
const SNAPSHOT_TICKS: u32 = 5;
const SNAPSHOTS_MAX: usize = 12;

/// Measures durations. Recording one is two atomic additions. Clones share the counts.
#[derive(Clone, Debug, Default)]
pub struct Latency(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    buckets: [AtomicU64; BUCKETS],
    sum_us: AtomicU64,
    /// Longest duration since the last snapshot.
    max_us: AtomicU64,
    window: Mutex<Window>,
}

/// Counts of the last minute's beginning and since then.
#[derive(Debug, Default)]
struct Window {
    ticks: u32,
    /// Counts at a time, and the longest duration of the interval that ended then. The oldest first.
    snapshots: VecDeque<([u64; BUCKETS], u64)>,
}

/// Quantiles of durations, in microseconds; 0 without any.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quantiles {
    /// Half of the durations are at most this long.
    pub p50: u64,
    /// 99 % of the durations are at most this long.
    pub p99: u64,
    /// The longest duration.
    pub max: u64,
}

impl Default for Inner {
    fn default() -> Self {
        let buckets = std::array::from_fn(|_| AtomicU64::default());
        Self { buckets, sum_us: AtomicU64::default(), max_us: AtomicU64::default(), window: Mutex::default() }
    }
}

impl Latency {
    /// Records a duration.
    pub fn record(&self, duration: Duration) {
        let us = u64::try_from(duration.as_nanos().div_ceil(1000)).unwrap_or(u64::MAX);
        let inner = &*self.0;
        inner.buckets[BOUNDS.partition_point(|bound| *bound < us)].fetch_add(1, Ordering::Relaxed);
        inner.sum_us.fetch_add(us, Ordering::Relaxed);
        // Usually no write.
        if us > inner.max_us.load(Ordering::Relaxed) {
            inner.max_us.fetch_max(us, Ordering::Relaxed);
        }
    }

    /// Advances the window of [`recent`](Self::recent). Called once per second.
    pub fn tick(&self) {
        let mut window = self.0.window.lock();
        window.ticks += 1;
        if window.ticks < SNAPSHOT_TICKS {
            return;
        }
        window.ticks = 0;
        if window.snapshots.len() >= SNAPSHOTS_MAX {
            window.snapshots.pop_front();
        }
        window.snapshots.push_back((self.counts(), self.0.max_us.swap(0, Ordering::Relaxed)));
    }

    /// Returns the number of recorded durations.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts().iter().sum()
    }

    /// Returns the quantiles of the last minute.
    #[must_use]
    pub fn recent(&self) -> Quantiles {
        let window = self.0.window.lock();
        let mut counts = self.counts();
        // The window is full once the oldest snapshot is that of its begin.
        let is_full = window.snapshots.len() >= SNAPSHOTS_MAX;
        if let Some((before, _)) = window.snapshots.front().filter(|_| is_full) {
            counts.iter_mut().zip(before).for_each(|(count, before)| *count -= before);
        }
        let maxima = window.snapshots.iter().skip(usize::from(is_full)).map(|(_, max)| *max);
        let max = maxima.fold(self.0.max_us.load(Ordering::Relaxed), u64::max);
        Quantiles { p50: quantile(&counts, 50, max), p99: quantile(&counts, 99, max), max }
    }

    fn counts(&self) -> [u64; BUCKETS] {
        std::array::from_fn(|at| self.0.buckets[at].load(Ordering::Relaxed))
    }
}

/// Returns the duration that `percent` of the durations do not exceed, as if those of a bucket were spread evenly.
fn quantile(counts: &[u64; BUCKETS], percent: u64, max: u64) -> u64 {
    let rank = (counts.iter().sum::<u64>() * percent).div_ceil(100);
    let mut before = 0;
    for (at, count) in counts.iter().enumerate().filter(|(_, count)| **count > 0) {
        if before + count >= rank {
            let from = if at == 0 { 0 } else { BOUNDS[at - 1] };
            let to = BOUNDS.get(at).map_or(max, |bound| max.min(*bound)).max(from);
            return from + (to - from) * (rank - before) / count;
        }
        before += count;
    }
    0
}

impl EncodeMetric for Latency {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), Error> {
        let counts = self.counts();
        let mut shown = Vec::with_capacity(SHOWN.len() + 1);
        let mut from = 0;
        for bound in SHOWN {
            let to = BOUNDS.partition_point(|inner| *inner <= bound);
            shown.push((bound as f64 / 1e6, counts[from..to].iter().sum()));
            from = to;
        }
        shown.push((f64::INFINITY, counts[from..].iter().sum()));
        let sum = self.0.sum_us.load(Ordering::Relaxed) as f64 / 1e6;
        encoder.encode_histogram::<NoLabelSet>(sum, counts.iter().sum(), &shown, None)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn duration_is_counted_in_the_bucket_of_its_bound() {
        assert!(BOUNDS.is_sorted() && SHOWN.iter().all(|bound| BOUNDS.contains(bound)));
        let latency = Latency::default();
        let durations = [1, 50_000, 50_001, 999_999, 1_000_000, 2_000_000, 10_000_000_000, 10_000_000_001, u64::MAX];
        durations.into_iter().for_each(|nanos| latency.record(Duration::from_nanos(nanos)));
        let counts = latency.counts();
        let up_to = |bound: u64| counts[..BOUNDS.partition_point(|inner| *inner <= bound)].iter().sum::<u64>();
        assert_eq!([50, 100, 1000, 2000, 10_000_000].map(up_to), [2, 3, 5, 6, 7]);
        assert_eq!(latency.count(), 9);
    }

    #[test]
    fn quantiles_cover_the_last_minute_only() {
        let latency = Latency::default();
        assert_eq!(latency.recent(), Quantiles::default());
        let record = |us: u64, times: u32| (0..times).for_each(|_| latency.record(Duration::from_micros(us)));
        let is_near = |found: u64, expected: u64| found.abs_diff(expected) * 100 <= expected * 15;
        record(3_000_000, 100);
        record(7, 1);
        let recent = latency.recent();
        assert!(is_near(recent.p50, 3_000_000) && is_near(recent.p99, 3_000_000), "{recent:?}");
        assert_eq!(recent.max, 3_000_000);
        // A minute passes, and the window moves on by one interval.
        (0..SNAPSHOT_TICKS).for_each(|_| latency.tick());
        record(400, 98);
        record(70_000, 2);
        (0..SNAPSHOT_TICKS * (SNAPSHOTS_MAX as u32 - 1)).for_each(|_| latency.tick());
        let recent = latency.recent();
        assert!(is_near(recent.p50, 400) && is_near(recent.p99, 70_000), "{recent:?}");
        assert_eq!(recent.max, 70_000);
        (0..SNAPSHOT_TICKS).for_each(|_| latency.tick());
        assert_eq!(latency.recent(), Quantiles::default());
        assert_eq!(latency.count(), 201);
    }

    #[test]
    fn quantile_is_never_above_the_longest_duration() {
        let latency = Latency::default();
        latency.record(Duration::from_micros(101));
        let recent = latency.recent();
        assert!(recent.p99 <= 101 && recent.p50 >= 100, "{recent:?}");
        latency.record(Duration::from_secs(60));
        assert_eq!(latency.recent().p99, 60_000_000);
    }
}
