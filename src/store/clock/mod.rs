//! The store's clock. Expiry of messages, dispatch ids and devices goes by it.
//!
//! It starts at the calendar when the store is opened, or at the latest time that the store has written, whichever is
//! later. From then on it advances by a clock that counts time in suspend and that no administrator can set. So a step
//! of the calendar expires nothing while the server runs, and a machine that slept ages its messages by the time it slept.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// Lead over the calendar at start, in milliseconds, that is worth a log line.
const AHEAD_MS_MAX: u64 = 60_000;

/// Attempts to read both clocks at one moment. The closest pair is used, so one interruption does no harm.
const PAIR_ATTEMPTS: usize = 8;

/// See the module.
#[derive(Clone, Debug)]
pub struct Clock {
    source: Source,
    /// Both to the nanosecond: two truncated parts would add up to a time before the calendar's.
    began: Duration,
    source_began: Duration,
    ahead_ms: Arc<AtomicU64>,
}

/// The clock of the machine, or one that a test moves.
#[derive(Clone, Debug)]
enum Source {
    Machine,
    #[cfg(test)]
    Test(Arc<AtomicU64>),
}

impl Source {
    fn now(&self) -> Duration {
        match self {
            Self::Machine => since_boot(),
            #[cfg(test)]
            Self::Test(nanos) => Duration::from_nanos(nanos.load(Ordering::Relaxed)),
        }
    }
}

/// Reads the time since boot, with the time in suspend.
fn since_boot() -> Duration {
    use rustix::time::{ClockId, clock_gettime};
    // On Linux the monotonic clock stops in suspend; on the BSDs and macOS it does not.
    #[cfg(any(target_os = "linux", target_os = "android"))]
    let clock = ClockId::Boottime;
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    let clock = ClockId::Monotonic;
    Duration::try_from(clock_gettime(clock)).unwrap_or_default()
}

impl Clock {
    /// Starts at the calendar, or at `last_ms` if that is later: the latest time this store has written.
    ///
    /// `ahead_ms` is added to every reading, for tests.
    pub fn new(last_ms: u64, ahead_ms: Arc<AtomicU64>) -> Self {
        Self::start(Source::Machine, || since_epoch(SystemTime::now()), last_ms, ahead_ms)
    }

    fn start(source: Source, calendar: impl Fn() -> Duration, last_ms: u64, ahead_ms: Arc<AtomicU64>) -> Self {
        let read = || {
            let before = source.now();
            let calendar = calendar();
            // Counted from before the calendar was read, so that the clock is never behind it.
            (source.now().saturating_sub(before), before, calendar)
        };
        let closest = (0..PAIR_ATTEMPTS).map(|_| read()).min_by_key(|(apart, ..)| *apart);
        let (source_began, calendar) =
            closest.map_or_else(Default::default, |(_, source, calendar)| (source, calendar));
        let last = Duration::from_millis(last_ms);
        let ahead = last.saturating_sub(calendar);
        if ahead > Duration::from_millis(AHEAD_MS_MAX) {
            tracing::warn!(
                ahead_s = ahead.as_secs(),
                "the calendar is behind the store's clock, by which the store goes on"
            );
        }
        Self { source, began: calendar.max(last), source_began, ahead_ms }
    }

    /// Milliseconds of the Unix epoch, rounded down.
    pub fn now_ms(&self) -> u64 {
        let now = self.began + self.source.now().saturating_sub(self.source_began);
        whole_ms(now).saturating_add(self.ahead_ms.load(Ordering::Relaxed))
    }

    /// Seconds of the Unix epoch, rounded down.
    pub fn now_s(&self) -> u32 {
        seconds(self.now_ms())
    }
}

/// Whole seconds, rounded down; for times until 2106.
pub fn seconds(ms: u64) -> u32 {
    u32::try_from(ms / 1000).unwrap_or(u32::MAX)
}

/// Milliseconds of the Unix epoch; 0 for a calendar that is set before it.
pub fn millis(time: SystemTime) -> u64 {
    whole_ms(since_epoch(time))
}

fn since_epoch(time: SystemTime) -> Duration {
    time.duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn whole_ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX / 2)
}

#[cfg(test)]
mod tests;
