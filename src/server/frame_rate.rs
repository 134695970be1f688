//! How many frames a client may send.
//!
//! An answer to what the server has sent is free: one op 3 for each message written to a client that resumes, one op 11
//! for each op 1, one pong for each ping. Further ones are charged like any frame.

use std::time::Instant;

/// A client may save up this many seconds of its rate: catching up after a pause is no flood.
const BURST_SECONDS: f32 = 10.0;

/// A token bucket.
#[derive(Debug)]
pub(super) struct FrameBudget {
    per_second: f32,
    left: f32,
    at: Instant,
    /// Acknowledgements (op 3) that are free.
    acknowledgements: u32,
}

impl FrameBudget {
    pub(super) fn new(frames_per_second: u32, now: Instant) -> Self {
        let per_second = frames_per_second as f32;
        Self { per_second, left: per_second * BURST_SECONDS, at: now, acknowledgements: 0 }
    }

    /// Takes `frames` off the budget; false if there are not so many left.
    pub(super) fn spend(&mut self, frames: u32, now: Instant) -> bool {
        let earned = now.saturating_duration_since(self.at).as_secs_f32() * self.per_second;
        self.left = (self.left + earned).min(self.per_second * BURST_SECONDS) - frames as f32;
        self.at = now;
        self.left >= 0.0
    }

    /// Makes one more acknowledgement free: something was written that a client may acknowledge.
    pub(super) fn expect_acknowledgement(&mut self) {
        self.acknowledgements = self.acknowledgements.saturating_add(1);
    }

    /// Takes an acknowledgement; false if none is free, so that it has to be charged.
    pub(super) fn take_acknowledgement(&mut self) -> bool {
        let free = self.acknowledgements > 0;
        self.acknowledgements -= u32::from(free);
        free
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
        assert!((0..100).all(|_| budget.spend(1, now)));
        assert!(!budget.spend(1, now));
        let later = now + Duration::from_secs(1);
        assert_eq!((0..20).filter(|_| budget.spend(1, later)).count(), 9);
    }

    #[test]
    fn acknowledgements_are_free_once_for_each_message() {
        let mut budget = FrameBudget::new(1, Instant::now());
        (0..3).for_each(|_| budget.expect_acknowledgement());
        assert_eq!((0..5).filter(|_| budget.take_acknowledgement()).count(), 3);
    }
}
