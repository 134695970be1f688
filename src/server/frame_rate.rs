//! Limits the rate of frames from a client.
//!
//! Answers to frames of the server are free: one op 3 for each message written to a resuming client, one op 11 for each
//! op 1, one pong for each ping. All other frames are charged.

use std::time::Instant;

/// Burst, in seconds of the rate: a client may send more frames after a pause.
const BURST_SECONDS: f32 = 10.0;

/// Token bucket of one connection.
#[derive(Debug)]
pub(super) struct FrameRateLimiter {
    tokens: f32,
    /// Time of the last charge.
    charged: Instant,
    /// Acknowledgements (op 3) that are free.
    acknowledgements: u32,
}

impl FrameRateLimiter {
    pub(super) fn new(frames_per_second: u32, now: Instant) -> Self {
        Self { tokens: frames_per_second as f32 * BURST_SECONDS, charged: now, acknowledgements: 0 }
    }

    /// Charges `frames` frames; false if the limit of `frames_per_second` is exceeded.
    pub(super) fn spend(&mut self, frames: u32, frames_per_second: u32, now: Instant) -> bool {
        let per_second = frames_per_second as f32;
        let earned = now.saturating_duration_since(self.charged).as_secs_f32() * per_second;
        self.tokens = (self.tokens + earned).min(per_second * BURST_SECONDS) - frames as f32;
        self.charged = now;
        self.tokens >= 0.0
    }

    /// Makes one more acknowledgement free, for a message that was written.
    pub(super) fn expect_acknowledgement(&mut self) {
        self.acknowledgements = self.acknowledgements.saturating_add(1);
    }

    /// Uses a free acknowledgement; false if there is none, so that the frame has to be charged.
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
    fn burst_within_ten_seconds_of_the_rate_is_allowed_and_more_is_not() {
        let now = Instant::now();
        let mut limiter = FrameRateLimiter::new(10, now);
        assert!((0..100).all(|_| limiter.spend(1, 10, now)));
        assert!(!limiter.spend(1, 10, now));
        let later = now + Duration::from_secs(1);
        assert_eq!((0..20).filter(|_| limiter.spend(1, 10, later)).count(), 9);
    }

    #[test]
    fn lower_rate_after_a_reload_applies_to_a_present_burst() {
        let now = Instant::now();
        let mut limiter = FrameRateLimiter::new(100, now);
        assert_eq!((0..100).filter(|_| limiter.spend(1, 1, now)).count(), 10);
    }

    #[test]
    fn acknowledgement_is_free_once_per_written_message() {
        let mut limiter = FrameRateLimiter::new(1, Instant::now());
        (0..3).for_each(|_| limiter.expect_acknowledgement());
        assert_eq!((0..5).filter(|_| limiter.take_acknowledgement()).count(), 3);
    }
}
