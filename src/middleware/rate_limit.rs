//! How many messages a client may send: by user, whatever connection they come over.

use std::{collections::HashMap, time::Instant};

use foldhash::fast::RandomState;
use parking_lot::Mutex;

use super::{Client, InboundMessage, Middleware, MiddlewareResult, Verdict};
use crate::message::UserId;

/// Buckets there are before it is looked at first whether some are full again, and so say nothing.
const SWEEP_AT: usize = 1024;

/// Refuses messages of clients that send too many: a token bucket for each user, shared by all his connections, and for
/// each connection that has not authenticated.
///
/// What is beyond it is dropped ([`Verdict::Refuse`]), or closes the connection ([`RateLimit::disconnecting`]). Heartbeats,
/// receipts and authentications do not count, and `limits.framesPerSecond` holds besides.
///
/// Keeps a bucket for whoever has spoken within the time it takes to fill one, twice that many at most. A restart fills all.
#[derive(Debug)]
pub struct RateLimit {
    per_second: f64,
    burst: f64,
    beyond: Verdict,
    buckets: Mutex<Buckets>,
}

#[derive(Debug)]
struct Buckets {
    all: HashMap<Whose, Bucket, RandomState>,
    sweep_at: usize,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Whose {
    User(UserId),
    Connection(u64),
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    left: f64,
    at: Instant,
}

impl RateLimit {
    /// `per_second` messages a second in the long run, and `burst` at once after a pause. Less than one of either counts as
    /// one in a thousand seconds, and as one.
    #[must_use]
    pub fn new(per_second: f64, burst: u32) -> Self {
        Self {
            // `max` also makes a number of what is none.
            per_second: per_second.max(0.001),
            burst: f64::from(burst.max(1)),
            beyond: Verdict::Refuse,
            buckets: Mutex::new(Buckets { all: HashMap::default(), sweep_at: SWEEP_AT }),
        }
    }

    /// Closes the connection (1008) of who sends too many.
    #[must_use]
    pub fn disconnecting(self) -> Self {
        Self { beyond: Verdict::Disconnect, ..self }
    }

    fn spend(&self, whose: Whose, now: Instant) -> bool {
        let mut buckets = self.buckets.lock();
        if buckets.all.len() >= buckets.sweep_at {
            buckets.all.retain(|_, bucket| self.left(*bucket, now) < self.burst);
            buckets.sweep_at = (buckets.all.len() * 2).max(SWEEP_AT);
        }
        let bucket = buckets.all.entry(whose).or_insert(Bucket { left: self.burst, at: now });
        let left = self.left(*bucket, now);
        let may = left >= 1.0;
        *bucket = Bucket { left: if may { left - 1.0 } else { left }, at: now };
        may
    }

    fn left(&self, bucket: Bucket, now: Instant) -> f64 {
        let earned = now.saturating_duration_since(bucket.at).as_secs_f64() * self.per_second;
        (bucket.left + earned).min(self.burst)
    }
}

impl Middleware for RateLimit {
    fn on_message_received(&self, _: &InboundMessage<'_>, client: &Client<'_>) -> MiddlewareResult<Verdict> {
        let whose = client.user.map_or(Whose::Connection(client.connection), |user| Whose::User(user.clone()));
        Ok(if self.spend(whose, Instant::now()) { Verdict::Pass } else { self.beyond })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_burst_passes_and_then_the_rate() {
        let (limit, now) = (RateLimit::new(2.0, 5), Instant::now());
        let spend = |n: u64, at| limit.spend(Whose::Connection(n), at);
        assert_eq!((0..20).filter(|_| spend(1, now)).count(), 5);
        assert!(spend(2, now), "another's bucket is another's");
        let later = now + Duration::from_secs(1);
        assert_eq!((0..20).filter(|_| spend(1, later)).count(), 2);
        assert_eq!((0..20).filter(|_| spend(1, now + Duration::from_secs(3600))).count(), 5);
    }

    #[test]
    fn whoever_has_not_spoken_for_long_costs_nothing() {
        let (limit, now) = (RateLimit::new(1.0, 1), Instant::now());
        for n in 0..10_000_u64 {
            assert!(limit.spend(Whose::Connection(n), now + Duration::from_millis(10 * n)));
        }
        assert!(limit.buckets.lock().all.len() <= SWEEP_AT);
    }

    #[test]
    fn a_rate_that_is_no_number_is_a_slow_one() {
        let limit = RateLimit::new(f64::NAN, 0);
        let now = Instant::now();
        assert!(limit.spend(Whose::Connection(1), now) && !limit.spend(Whose::Connection(1), now));
    }
}
