//! Limits the rate at which a client sends, because a server closes the connection of a client that sends too fast.

use std::time::Duration;

use tokio::time::Instant;

/// Default rate: half of a server's default `limits.framesPerSecond`. The other half is left for other frames.
pub(super) const MESSAGES_PER_SECOND: u32 = 50;

/// Burst, in seconds of the rate. A server averages over the same time.
const BURST_SECONDS: f64 = 10.0;

/// Token bucket for the messages of one client, over all of its connections.
#[derive(Debug)]
pub(super) struct Pace {
    per_second: f64,
    tokens: f64,
    /// Time at which `tokens` was computed.
    at: Instant,
}

impl Pace {
    /// Creates a full bucket. A rate of 0 counts as 1.
    pub fn new(per_second: u32, now: Instant) -> Self {
        let per_second = f64::from(per_second.max(1));
        Self { per_second, tokens: per_second * BURST_SECONDS, at: now }
    }

    /// Returns when the next message may be sent; `None`: now.
    pub fn due(&mut self, now: Instant) -> Option<Instant> {
        let earned = now.saturating_duration_since(self.at).as_secs_f64() * self.per_second;
        self.tokens = (self.tokens + earned).min(self.per_second * BURST_SECONDS);
        self.at = now;
        // Rounded up, so that the token exists when the timer fires.
        (self.tokens < 1.0)
            .then(|| now + Duration::from_secs_f64((1.0 - self.tokens) / self.per_second) + Duration::from_millis(1))
    }

    /// Charges a message that is sent.
    pub fn spend(&mut self) {
        self.tokens -= 1.0;
    }

    /// Halves the rate, to 1 message per second at least. For a server that closed the connection because of the rate.
    pub fn slow_down(&mut self) {
        self.per_second = (self.per_second / 2.0).max(1.0);
        self.tokens = self.tokens.min(self.per_second * BURST_SECONDS);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns how many messages may be sent at `now`.
    fn burst(pace: &mut Pace, now: Instant) -> usize {
        std::iter::from_fn(|| pace.due(now).is_none().then(|| pace.spend())).count()
    }

    #[test]
    fn default_pace_stays_below_default_limit_of_a_server() {
        let start = Instant::now();
        let mut pace = Pace::new(MESSAGES_PER_SECOND, start);
        assert_eq!(burst(&mut pace, start), 500);
        // A server's bucket starts with 1,000 and earns 100 per second.
        let (mut now, mut sent) = (start, 500);
        while now < start + Duration::from_secs(60) {
            now = pace.due(now).expect("the burst is spent");
            sent += burst(&mut pace, now);
        }
        let allowed = (500 + 50 * 59)..=(500 + 50 * 61);
        assert!(allowed.contains(&sent), "{sent}");
        assert_eq!(burst(&mut pace, now + Duration::from_secs(3_600)), 500, "an idle hour earns one burst");
    }

    #[test]
    fn slow_down_halves_rate_and_burst_down_to_one_per_second() {
        let now = Instant::now();
        let mut pace = Pace::new(MESSAGES_PER_SECOND, now);
        pace.slow_down();
        assert_eq!(burst(&mut pace, now), 250);
        (0..20).for_each(|_| pace.slow_down());
        assert_eq!(burst(&mut pace, now + Duration::from_secs(60)), 10);
        assert_eq!(burst(&mut pace, now + Duration::from_secs(62)), 2);
    }
}
