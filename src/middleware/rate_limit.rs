//! Limits the messages of clients, per user.

use std::{collections::HashMap, time::Instant};

use foldhash::fast::RandomState;
use parking_lot::Mutex;

use super::{Client, Decision, InboundMessage, Middleware, MiddlewareResult};
use crate::message::UserId;

/// Number of buckets from which full ones, which hold no state, are removed.
const SWEEP_AT: usize = 1024;

/// Rejects messages of clients that send too many: a token bucket for each user, shared by all connections, and for each
/// connection that has not authenticated.
///
/// Messages above the rate are dropped ([`Decision::Reject`]), or close the connection ([`RateLimit::disconnecting`]).
/// Heartbeats, acknowledgements and authentications do not count, and `limits.framesPerSecond` applies in addition.
///
/// Memory: a bucket for each sender within the time that fills a bucket, and at most twice that many. A restart fills all.
#[derive(Debug)]
pub struct RateLimit {
    per_second: f64,
    burst: f64,
    beyond: Decision,
    buckets: Mutex<Buckets>,
}

#[derive(Debug)]
struct Buckets {
    all: HashMap<BucketKey, Bucket, RandomState>,
    sweep_at: usize,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum BucketKey {
    User(UserId),
    Connection(u64),
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

impl RateLimit {
    /// Allows `per_second` messages per second on average, and `burst` at once. The minimum is 0.001 per second, and a burst
    /// of 1.
    #[must_use]
    pub fn new(per_second: f64, burst: u32) -> Self {
        Self {
            // `max` also turns NaN into the minimum.
            per_second: per_second.max(0.001),
            burst: f64::from(burst.max(1)),
            beyond: Decision::Reject,
            buckets: Mutex::new(Buckets { all: HashMap::default(), sweep_at: SWEEP_AT }),
        }
    }

    /// Closes the connection (1008) of clients above the rate.
    #[must_use]
    pub fn disconnecting(self) -> Self {
        Self { beyond: Decision::Disconnect, ..self }
    }

    fn take(&self, key: BucketKey, now: Instant) -> bool {
        let mut buckets = self.buckets.lock();
        if buckets.all.len() >= buckets.sweep_at {
            buckets.all.retain(|_, bucket| self.tokens(*bucket, now) < self.burst);
            buckets.sweep_at = (buckets.all.len() * 2).max(SWEEP_AT);
        }
        let bucket = buckets.all.entry(key).or_insert(Bucket { tokens: self.burst, at: now });
        let tokens = self.tokens(*bucket, now);
        let allowed = tokens >= 1.0;
        *bucket = Bucket { tokens: if allowed { tokens - 1.0 } else { tokens }, at: now };
        allowed
    }

    fn tokens(&self, bucket: Bucket, now: Instant) -> f64 {
        let earned = now.saturating_duration_since(bucket.at).as_secs_f64() * self.per_second;
        (bucket.tokens + earned).min(self.burst)
    }
}

impl Middleware for RateLimit {
    fn on_message_received(&self, _: &InboundMessage<'_>, client: &Client<'_>) -> MiddlewareResult<Decision> {
        let key = client.user.map_or(BucketKey::Connection(client.connection), |user| BucketKey::User(user.clone()));
        Ok(if self.take(key, Instant::now()) { Decision::Pass } else { self.beyond })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn burst_passes_then_rate_limits() {
        let (limit, now) = (RateLimit::new(2.0, 5), Instant::now());
        let take = |n: u64, at| limit.take(BucketKey::Connection(n), at);
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
            assert!(limit.take(BucketKey::Connection(n), now + Duration::from_millis(10 * n)));
        }
        assert!(limit.buckets.lock().all.len() <= SWEEP_AT);
    }

    #[test]
    fn nan_rate_is_minimum_rate() {
        let limit = RateLimit::new(f64::NAN, 0);
        let now = Instant::now();
        assert!(limit.take(BucketKey::Connection(1), now) && !limit.take(BucketKey::Connection(1), now));
    }
}
