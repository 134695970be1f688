//! How long to wait before trying again: twice as long each time, up to a bound, and never exactly as long as others do.

use std::time::Duration;

/// Pauses. Each is chosen from the upper half of what it may be, so that receivers which went down together are not asked
/// together.
#[derive(Clone, Copy, Debug)]
pub(super) struct Backoff {
    min: Duration,
    max: Duration,
    tries: u32,
}

impl Backoff {
    pub fn new(min: Duration, max: Duration) -> Self {
        Self { min, max, tries: 0 }
    }

    /// It has worked: the next pause is the shortest.
    pub fn reset(&mut self) {
        self.tries = 0;
    }

    /// The next pause; at least as long as the receiver asked for.
    pub fn next(&mut self, asked: Option<Duration>) -> Duration {
        let most = self.min.saturating_mul(2_u32.saturating_pow(self.tries)).min(self.max);
        self.tries = self.tries.saturating_add(1);
        // Without chance the pause is the longest: nothing that has to be told to anybody.
        let chance = f64::from(getrandom::u32().unwrap_or(u32::MAX)) / f64::from(u32::MAX);
        (most / 2 + (most / 2).mul_f64(chance)).max(asked.unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_their_bound_and_begin_anew() {
        let millis = Duration::from_millis;
        let mut backoff = Backoff::new(millis(100), millis(1000));
        for most in [100, 200, 400, 800, 1000, 1000] {
            let pause = backoff.next(None);
            assert!((millis(most / 2)..=millis(most)).contains(&pause), "{pause:?} of {most} ms");
        }
        for _ in 0..100 {
            assert!(backoff.next(None) <= millis(1000));
        }
        assert_eq!(backoff.next(Some(millis(5000))), millis(5000));
        backoff.reset();
        let pauses: Vec<_> = (0..20).map(|_| Backoff::new(millis(100), millis(1000)).next(None)).collect();
        assert!(pauses.iter().all(|pause| *pause <= millis(100)));
        assert!(pauses.iter().any(|pause| *pause != pauses[0]), "there is no chance in {pauses:?}");
        assert!(backoff.next(None) <= millis(100));
    }
}
