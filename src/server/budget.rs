//! How many frames a client may send.

use std::time::Instant;

/// A client may save up this many seconds of its rate: catching up after a pause is no flood.
const BURST_SECONDS: f32 = 10.0;

/// A token bucket.
#[derive(Debug)]
pub(super) struct FrameBudget {
    per_second: f32,
    left: f32,
    at: Instant,
}

impl FrameBudget {
    pub(super) fn new(frames_per_second: u32, now: Instant) -> Self {
        let per_second = frames_per_second as f32;
        Self { per_second, left: per_second * BURST_SECONDS, at: now }
    }

    /// Takes one frame off the budget; false if there is none left.
    pub(super) fn spend(&mut self, now: Instant) -> bool {
        let earned = now.saturating_duration_since(self.at).as_secs_f32() * self.per_second;
        self.left = (self.left + earned).min(self.per_second * BURST_SECONDS) - 1.0;
        self.at = now;
        self.left >= 0.0
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_client_may_catch_up_but_not_flood() {
        let now = Instant::now();
        let mut budget = FrameBudget::new(10, now);
        assert!((0..100).all(|_| budget.spend(now)));
        assert!(!budget.spend(now));
        let later = now + Duration::from_secs(1);
        assert_eq!((0..20).filter(|_| budget.spend(later)).count(), 9);
    }
}
