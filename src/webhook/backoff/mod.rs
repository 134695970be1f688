//! Computes retry delays: doubled for each attempt up to a bound, with jitter.

use std::time::Duration;

/// Yields delays. Each is random within the upper half of its range, so that receivers which failed together do not get
/// all retries at once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Backoff {
    min: Duration,
    max: Duration,
    attempts: u32,
}

impl Backoff {
    pub fn new(min: Duration, max: Duration) -> Self {
        Self { min, max, attempts: 0 }
    }

    /// Resets the delay after a success.
    pub fn reset(&mut self) {
        self.attempts = 0;
    }

    /// Returns the next delay; at least `requested`, the receiver's `Retry-After`.
    pub fn next(&mut self, requested: Option<Duration>) -> Duration {
        let most = self.min.saturating_mul(2_u32.saturating_pow(self.attempts)).min(self.max);
        self.attempts = self.attempts.saturating_add(1);
        // Without randomness the delay is the longest of its range.
        let random = f64::from(getrandom::u32().unwrap_or(u32::MAX)) / f64::from(u32::MAX);
        (most / 2 + (most / 2).mul_f64(random)).max(requested.unwrap_or_default())
    }
}

#[cfg(test)]
mod tests;
