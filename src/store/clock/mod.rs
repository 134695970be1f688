//! Defines the store's clock, which determines the expiry of messages, dispatch ids and devices.
//!
//! When the store opens, the clock starts at the calendar time, or at the latest time that the store has written, if
//! that is later. Then it advances with a clock that counts suspended time and cannot be set. So a step of the calendar
//! expires nothing while the server runs, and messages age while the machine is suspended.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// Lead over the calendar above which the start logs a warning, in milliseconds.
const LEAD_WARNING_MS: u64 = 60_000;

/// Number of paired readings of both clocks at the start. The closest pair is used, so that an interruption has no
/// effect.
const PAIR_ATTEMPTS: usize = 8;

/// Measures the time of the store. See the module docs.
#[derive(Clone, Debug)]
pub struct Clock {
    source: Source,
    /// Time of the store at the start. Not truncated to milliseconds, like `source_start`: otherwise the clock could be
    /// behind the calendar.
    start: Duration,
    /// Reading of the source at the start.
    source_start: Duration,
    /// Added to every reading, for tests.
    ahead_ms: Arc<AtomicU64>,
}

/// Reads the clock of the machine, or one that a test sets.
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

/// Reads the time since boot, including suspended time.
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
    /// Starts at the calendar time, or at `last_ms` if that is later.
    ///
    /// `last_ms` is the latest time that the store has written. `ahead_ms` is added to every reading, for tests.
    pub fn new(last_ms: u64, ahead_ms: Arc<AtomicU64>) -> Self {
        Self::start(Source::Machine, || since_epoch(SystemTime::now()), last_ms, ahead_ms)
    }

    fn start(source: Source, calendar: impl Fn() -> Duration, last_ms: u64, ahead_ms: Arc<AtomicU64>) -> Self {
        let read = || {
            let before = source.now();
            let calendar = calendar();
            // The source is read before the calendar, so that the clock is never behind the calendar.
            (source.now().saturating_sub(before), before, calendar)
        };
        let closest = (0..PAIR_ATTEMPTS).map(|_| read()).min_by_key(|(apart, ..)| *apart);
        let (source_start, calendar) =
            closest.map_or_else(Default::default, |(_, source, calendar)| (source, calendar));
        let last = Duration::from_millis(last_ms);
        let lead = last.saturating_sub(calendar);
        if lead > Duration::from_millis(LEAD_WARNING_MS) {
            tracing::warn!(
                ahead_s = lead.as_secs(),
                "the calendar is behind the store's clock, which the store continues to use; check the system time"
            );
        }
        Self { source, start: calendar.max(last), source_start, ahead_ms }
    }

    /// Returns the milliseconds of the Unix epoch, rounded down.
    pub fn now_ms(&self) -> u64 {
        let now = self.start + self.source.now().saturating_sub(self.source_start);
        whole_ms(now).saturating_add(self.ahead_ms.load(Ordering::Relaxed))
    }

    /// Returns the seconds of the Unix epoch, rounded down.
    pub fn now_s(&self) -> u32 {
        seconds(self.now_ms())
    }
}

/// Converts milliseconds to seconds, rounded down; for times until 2106.
pub fn seconds(ms: u64) -> u32 {
    u32::try_from(ms / 1000).unwrap_or(u32::MAX)
}

/// Converts a time to milliseconds of the Unix epoch; 0 for a time before it.
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
