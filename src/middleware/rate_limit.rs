//! Limits the rate of clients' messages, per user.

use std::{collections::HashMap, time::Instant};

use foldhash::fast::RandomState;
use parking_lot::Mutex;

use super::{Client, Decision, InboundMessage, Middleware, MiddlewareResult};
use crate::message::UserId;

/// Minimum number of buckets at which full ones are removed: a full bucket has no state.
const CLEANUP_MIN: usize = 1024;

/// Limits messages by a token bucket for each user, and for each unauthenticated connection.
///
/// All connections of a user share one bucket. Messages above the rate are dropped ([`Decision::Reject`]), or close the
/// connection ([`RateLimit::disconnecting`]). Heartbeats, acknowledgements and authentications do not count, and
/// `limits.framesPerSecond` applies in addition.
///
/// Memory: at most two buckets for each sender within the time that fills a bucket, or 1024. A restart fills all
/// buckets.
#[derive(Debug)]
pub struct RateLimit {
    per_second: f64,
    burst: f64,
    excess_decision: Decision,
    buckets: Mutex<Buckets>,
}

#[derive(Debug)]
struct Buckets {
    by_sender: HashMap<Sender, Bucket, RandomState>,
    cleanup_at: usize,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Sender {
    User(UserId),
    Connection(u64),
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    tokens: f64,
    updated: Instant,
}

impl RateLimit {
    /// Allows `per_second` messages per second on average, and `burst` at once.
    ///
    /// The minimum is 0.001 per second, and a burst of 1.
    #[must_use]
    pub fn new(per_second: f64, burst: u32) -> Self {
        Self {
            // `max` also turns NaN into the minimum.
            per_second: per_second.max(0.001),
            burst: f64::from(burst.max(1)),
            excess_decision: Decision::Reject,
            buckets: Mutex::new(Buckets { by_sender: HashMap::default(), cleanup_at: CLEANUP_MIN }),
        }
    }

    /// Closes the connection (1008) of clients above the rate.
    #[must_use]
    pub fn disconnecting(self) -> Self {
        Self { excess_decision: Decision::Disconnect, ..self }
    }

    /// Takes a token from a sender's bucket; false if it is empty.
    fn take_token(&self, key: Sender, now: Instant) -> bool {
        let mut buckets = self.buckets.lock();
        if buckets.by_sender.len() >= buckets.cleanup_at {
            buckets.by_sender.retain(|_, bucket| self.tokens(*bucket, now) < self.burst);
            buckets.cleanup_at = (buckets.by_sender.len() * 2).max(CLEANUP_MIN);
        }
        let bucket = buckets.by_sender.entry(key).or_insert(Bucket { tokens: self.burst, updated: now });
        let tokens = self.tokens(*bucket, now);
        let allowed = tokens >= 1.0;
        *bucket = Bucket { tokens: if allowed { tokens - 1.0 } else { tokens }, updated: now };
        allowed
    }

    /// Returns the tokens of a bucket at `now`.
    fn tokens(&self, bucket: Bucket, now: Instant) -> f64 {
        let earned = now.saturating_duration_since(bucket.updated).as_secs_f64() * self.per_second;
        (bucket.tokens + earned).min(self.burst)
    }
}

impl Middleware for RateLimit {
    fn on_message_received(&self, _: &InboundMessage<'_>, client: &Client<'_>) -> MiddlewareResult<Decision> {
        let key = client.user.map_or(Sender::Connection(client.connection), |user| Sender::User(user.clone()));
        Ok(if self.take_token(key, Instant::now()) { Decision::Pass } else { self.excess_decision })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn burst_passes_then_rate_limits() {
        let (limit, now) = (RateLimit::new(2.0, 5), Instant::now());
        let take = |n: u64, at| limit.take_token(Sender::Connection(n), at);
        assert_eq!((0..20).filter(|_| take(1, now)).count(), 5);
        assert!(take(2, now), "buckets are independent");
        let later = now + Duration::from_secs(1);
        assert_eq!((0..20).filter(|_| take(1, later)).count(), 2);
        assert_eq!((0..20).filter(|_| take(1, now + Duration::from_secs(3600))).count(), 5);
    }

    #[test]
    fn full_buckets_are_removed() {
        let (limit, now) = (RateLimit::new(1.0, 1), Instant::now());
        for n in 0..10_000_u64 {
            assert!(limit.take_token(Sender::Connection(n), now + Duration::from_millis(10 * n)));
        }
        assert!(limit.buckets.lock().by_sender.len() <= CLEANUP_MIN);
    }

    #[test]
    fn nan_rate_is_minimum_rate() {
        let limit = RateLimit::new(f64::NAN, 0);
        let now = Instant::now();
        assert!(limit.take_token(Sender::Connection(1), now) && !limit.take_token(Sender::Connection(1), now));
    }
}
