//! Computes the delays between attempts: doubled for each attempt up to a bound, with jitter.

use std::time::Duration;

/// Yields the delays between attempts. They double from `min` up to `max`, and each has [`jitter`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Backoff {
    min: Duration,
    max: Duration,
    attempts: u32,
}

impl Backoff {
    /// Creates a sequence of delays. A `max` below `min` counts as `min`.
    pub fn new(min: Duration, max: Duration) -> Self {
        Self { min, max, attempts: 0 }
    }

    /// Changes the first delay. The number of attempts stays.
    pub fn set_min(&mut self, min: Duration) {
        self.min = min;
    }

    /// Starts over with the first delay. Call it after a success.
    pub fn reset(&mut self) {
        self.attempts = 0;
    }

    /// Returns the delay before the next attempt.
    pub fn next(&mut self) -> Duration {
        let delay = self.min.saturating_mul(2_u32.saturating_pow(self.attempts)).min(self.max.max(self.min));
        self.attempts = self.attempts.saturating_add(1);
        jitter(delay)
    }
}

/// Returns a random duration between half of `delay` and `delay`.
///
/// Clients that failed at the same time then retry at different times.
#[must_use]
pub fn jitter(delay: Duration) -> Duration {
    // If the system has no random number, the result is `delay`.
    let share = f64::from(getrandom::u32().unwrap_or(u32::MAX)) / f64::from(u32::MAX);
    delay / 2 + (delay / 2).mul_f64(share)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn delay_doubles_up_to_bound_and_reset_begins_again() {
        let mut backoff = Backoff::new(SECOND, 30 * SECOND);
        for _ in 0..2 {
            for whole in [1, 2, 4, 8, 16, 30, 30] {
                let delay = backoff.next();
                assert!((SECOND * whole / 2..=SECOND * whole).contains(&delay), "{delay:?} of {whole} s");
            }
            backoff.reset();
        }
        backoff.attempts = u32::MAX - 1;
        assert!((0..3).all(|_| (15 * SECOND..=30 * SECOND).contains(&backoff.next())));
    }

    #[test]
    fn bound_below_first_delay_does_not_shorten_it() {
        let mut backoff = Backoff::new(SECOND, 30 * SECOND);
        backoff.set_min(60 * SECOND);
        assert!((0..3).all(|_| (30 * SECOND..=60 * SECOND).contains(&backoff.next())));
    }

    #[test]
    fn jitter_varies_between_half_and_whole() {
        let delays: Vec<_> = (0..64).map(|_| jitter(SECOND)).collect();
        assert!(delays.iter().all(|delay| (SECOND / 2..=SECOND).contains(delay)), "{delays:?}");
        assert!(delays.iter().any(|delay| *delay != delays[0]));
    }
}
