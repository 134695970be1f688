//! Limits brute-force guesses of API keys and passwords, with a leaky bucket per network address.
//!
//! The reply to a wrong secret is delayed: by 100 ms for the first one, and doubled for each further one up to 2 s.
//! Each wrong secret, except a repeat of the latest four, adds one to the bucket of its address. While the bucket is
//! full, secrets of the address are not compared. A connection that has presented a valid secret is exempt. Replies to
//! valid secrets are never delayed.
//!
//! A full bucket locks out all clients of the address, for example those behind one proxy. Valid secrets cannot be
//! exempt: a comparison reveals whether a secret is valid, so the limit would have no effect. Only the size of the
//! bucket can be chosen:
//!
//! - An address without a valid secret has no client to lock out. It gets 20 guesses, then 1 per second.
//! - An address with a valid secret within the last hour gets 100 guesses, then 20 per second. Only a flood locks its
//!   clients out, and 20 guesses per second do not find a key of 16 random characters.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    net::IpAddr,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use crate::util::client_network::client_network;

/// Configures the bucket of an address.
#[derive(Debug)]
struct Limit {
    /// Wrong secrets in a full bucket.
    wrong_max: u32,
    /// Interval after which one wrong secret leaves the bucket.
    leak_interval: Duration,
}

/// Limit of an address without a valid secret within [`PROVEN_TTL`].
const UNPROVEN: Limit = Limit { wrong_max: 20, leak_interval: Duration::from_secs(1) };

/// Limit of an address with a valid secret within [`PROVEN_TTL`].
const PROVEN: Limit = Limit { wrong_max: 100, leak_interval: Duration::from_millis(50) };

/// Time for which an address counts as proven after a valid secret.
const PROVEN_TTL: Duration = Duration::from_secs(60 * 60);

/// Minimum interval at which a connection renews the proof of its address.
const PROOF_INTERVAL: Duration = Duration::from_secs(60);

/// Minimum interval of removing addresses without wrong secrets.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// Delay of the reply to the first wrong secret; doubled for each further one.
const DELAY_MIN: Duration = Duration::from_millis(100);

/// Maximum delay of a reply.
const DELAY_MAX: Duration = Duration::from_secs(2);

/// Maximum number of addresses in the table. If none can be removed from a full table, an arbitrary one is replaced.
const ADDRESSES_MAX: usize = 10_000;

/// Latest wrong secrets of an address, whose repeats are not counted. A backend that repeats one wrong key is not
/// guessing, and must not lock out other clients of its address.
const LATEST_MAX: usize = 4;

/// Minimum interval of log lines about wrong secrets.
const REPORT_INTERVAL: Duration = Duration::from_secs(10);

/// Limits wrong secrets per address.
#[derive(Debug, Default)]
pub struct GuessLimiter {
    addresses: Mutex<Addresses>,
    report: Mutex<Report>,
    /// Randomly keyed, so that fingerprints reveal nothing about secrets.
    hasher: RandomState,
}

/// Records when a connection last proved its address.
#[derive(Debug, Default)]
pub struct AddressProof(Mutex<Option<Instant>>);

impl AddressProof {
    /// Returns whether the connection has presented a valid secret.
    pub fn is_given(&self) -> bool {
        self.0.lock().is_some()
    }

    /// Renews the proof. True if [`PROOF_INTERVAL`] has passed, so that the address must be recorded again.
    fn renew(&self, now: Instant) -> bool {
        let mut last = self.0.lock();
        let is_due = last.is_none_or(|last| now.saturating_duration_since(last) >= PROOF_INTERVAL);
        if is_due {
            *last = Some(now);
        }
        is_due
    }
}

#[derive(Debug, Default)]
struct Addresses {
    known: HashMap<IpAddr, Address, foldhash::fast::RandomState>,
    /// Time of the last removal of addresses without wrong secrets.
    swept: Option<Instant>,
}

/// Counts the secrets of one address.
#[derive(Debug)]
struct Address {
    /// Time of the last valid secret, to within [`PROOF_INTERVAL`].
    proven: Option<Instant>,
    /// Wrong secrets in the bucket.
    count: u32,
    /// Time at which a wrong secret last left the bucket, or the first one was added.
    since: Instant,
    /// Fingerprints of the latest wrong secrets.
    latest: [u64; LATEST_MAX],
}

#[derive(Debug, Default)]
struct Report {
    last: Option<Instant>,
    /// Wrong secrets since the last report.
    wrong: u64,
}

impl Address {
    fn is_proven(&self, now: Instant) -> bool {
        self.proven.is_some_and(|at| now.saturating_duration_since(at) < PROVEN_TTL)
    }

    /// Removes wrong secrets whose interval has passed, and returns the limit of the address.
    ///
    /// The interval that has begun counts on, however often this is called. In an empty bucket none has begun.
    fn leak(&mut self, now: Instant) -> &'static Limit {
        let limit = if self.is_proven(now) { &PROVEN } else { &UNPROVEN };
        let (passed, interval) = (now.saturating_duration_since(self.since), limit.leak_interval);
        let intervals = u32::try_from(passed.as_nanos() / interval.as_nanos()).unwrap_or(u32::MAX);
        if intervals > 0 {
            self.count = self.count.saturating_sub(intervals).min(limit.wrong_max);
            // Saturates only where the count is 0, and the time has no effect.
            self.since = self.since.checked_add(interval.saturating_mul(intervals)).unwrap_or(now);
        }
        if self.count == 0 {
            self.since = now;
        }
        limit
    }
}

impl GuessLimiter {
    /// Admits a secret to comparison. An unknown address (`None`) is always admitted.
    ///
    /// # Errors
    /// Returns the delay until a retry, if the bucket of the address is full.
    pub fn admit(&self, address: Option<IpAddr>) -> Result<(), Duration> {
        self.admit_at(address, Instant::now())
    }

    /// Records a valid secret of an address, over the connection with this proof.
    pub fn record_valid(&self, address: Option<IpAddr>, proof: &AddressProof) {
        self.record_valid_at(address, proof, Instant::now());
    }

    /// Counts a wrong secret, logs it, and returns the delay of the reply.
    pub fn record_wrong(&self, address: Option<IpAddr>, secret: &[u8]) -> Duration {
        let now = Instant::now();
        self.report(address, now);
        self.record_wrong_at(address, secret, now)
    }

    fn admit_at(&self, address: Option<IpAddr>, now: Instant) -> Result<(), Duration> {
        let Some(address) = address else { return Ok(()) };
        let mut addresses = self.addresses.lock();
        let Some(known) = addresses.known.get_mut(&client_network(address)) else { return Ok(()) };
        let limit = known.leak(now);
        if known.count < limit.wrong_max { Ok(()) } else { Err(limit.leak_interval) }
    }

    fn record_valid_at(&self, address: Option<IpAddr>, proof: &AddressProof, now: Instant) {
        if !proof.renew(now) {
            return;
        }
        let Some(address) = address else { return };
        let mut addresses = self.addresses.lock();
        let known = addresses.entry(client_network(address), now);
        // Earlier wrong secrets leave the bucket under the old limit.
        known.leak(now);
        if !known.is_proven(now) {
            // The interval that has begun is of the old limit, and longer than many of the new one.
            known.since = now;
        }
        known.proven = Some(now);
    }

    fn record_wrong_at(&self, address: Option<IpAddr>, secret: &[u8], now: Instant) -> Duration {
        let Some(address) = address else { return DELAY_MIN };
        let fingerprint = self.hasher.hash_one(secret);
        let mut addresses = self.addresses.lock();
        let known = addresses.entry(client_network(address), now);
        let limit = known.leak(now);
        if !known.latest.contains(&fingerprint) || known.count == 0 {
            known.latest.rotate_right(1);
            known.latest[0] = fingerprint;
            known.count = known.count.saturating_add(1).min(limit.wrong_max);
        }
        DELAY_MIN.saturating_mul(1 << (known.count - 1).min(16)).min(DELAY_MAX)
    }

    fn report(&self, address: Option<IpAddr>, now: Instant) {
        let mut report = self.report.lock();
        report.wrong += 1;
        if report.last.is_some_and(|last| now.saturating_duration_since(last) < REPORT_INTERVAL) {
            return;
        }
        report.last = Some(now);
        let wrong = std::mem::take(&mut report.wrong);
        drop(report);
        let address = address.map_or_else(|| "an unknown address".to_owned(), |address| address.to_string());
        tracing::info!(wrong, %address, "wrong API keys or passwords were presented; the last one from this address");
    }
}

impl Addresses {
    fn entry(&mut self, address: IpAddr, now: Instant) -> &mut Address {
        if self.known.len() >= ADDRESSES_MAX && !self.known.contains_key(&address) {
            self.remove_address(now);
        }
        self.known.entry(address).or_insert(Address { proven: None, count: 0, since: now, latest: [0; LATEST_MAX] })
    }

    fn remove_address(&mut self, now: Instant) {
        // A scan for every new address would be too costly.
        if self.swept.is_none_or(|swept| now.saturating_duration_since(swept) >= SWEEP_INTERVAL) {
            self.swept = Some(now);
            self.known.retain(|_, known| {
                known.leak(now);
                known.count > 0 || known.is_proven(now)
            });
        }
        if self.known.len() >= ADDRESSES_MAX {
            // Proven addresses are few, and are replaced last.
            let unproven = self.known.iter().find(|(_, known)| !known.is_proven(now));
            let victim = unproven.or_else(|| self.known.iter().next()).map(|(address, _)| *address);
            victim.and_then(|address| self.known.remove(&address));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const HOME: Option<IpAddr> = Some(IpAddr::V4(Ipv4Addr::LOCALHOST));

    fn guess(guesses: &GuessLimiter, address: Option<IpAddr>, number: usize, now: Instant) -> Duration {
        guesses.record_wrong_at(address, number.to_string().as_bytes(), now)
    }

    #[test]
    fn wrong_secrets_are_delayed_and_then_not_compared() {
        let (guesses, now) = (GuessLimiter::default(), Instant::now());
        let delays: Vec<_> = (0..7).map(|n| guess(&guesses, HOME, n, now).as_millis()).collect();
        assert_eq!(delays, [100, 200, 400, 800, 1600, 2000, 2000]);
        assert_eq!(guesses.admit_at(HOME, now), Ok(()));
        (7..1000).for_each(|n| _ = guess(&guesses, HOME, n, now));
        assert_eq!(guesses.admit_at(HOME, now), Err(UNPROVEN.leak_interval));
        let other = Some("10.0.0.1".parse().unwrap());
        assert_eq!(guesses.admit_at(other, now), Ok(()), "another address is not limited");
        let later = now + UNPROVEN.leak_interval;
        assert_eq!(guesses.admit_at(HOME, later), Ok(()), "one more after each interval");
        guess(&guesses, HOME, 1000, later);
        assert_eq!(guesses.admit_at(HOME, later), Err(UNPROVEN.leak_interval));
    }

    /// Returns how many of a minute's guesses are compared, and how often another client is rejected.
    fn minute(guesses: &GuessLimiter, began: Instant, per_second: u32) -> (usize, usize) {
        let (mut compared, mut rejected) = (0, 0);
        for n in 0..60 * per_second {
            let now = began + Duration::from_secs(1) * n / per_second;
            if guesses.admit_at(HOME, now).is_ok() {
                compared += 1;
                guess(guesses, HOME, n as usize, now);
            }
            rejected += usize::from(guesses.admit_at(HOME, now).is_err());
        }
        (compared, rejected)
    }

    #[test]
    fn proven_address_is_locked_out_only_by_flood() {
        let (guesses, now) = (GuessLimiter::default(), Instant::now());
        let (compared, rejected) = minute(&guesses, now, 4);
        assert!((60..90).contains(&compared) && rejected > 100, "{compared} {rejected}");
        let now = now + Duration::from_secs(60);
        guesses.record_valid_at(HOME, &AddressProof::default(), now);
        assert_eq!(minute(&guesses, now, 4), (240, 0));
        let now = now + Duration::from_secs(60);
        let (compared, rejected) = minute(&guesses, now, 1000);
        // Above the limit 20 per second are compared, whatever the rate.
        assert!((1000..60 * 20 + 110).contains(&compared) && rejected > 10_000, "{compared} {rejected}");
        let later = now + PROVEN_TTL;
        assert_eq!(guesses.admit_at(HOME, later), Ok(()));
        (0..20).for_each(|n| _ = guess(&guesses, HOME, n, later));
        assert_eq!(guesses.admit_at(HOME, later), Err(UNPROVEN.leak_interval), "the proof expires");
    }

    /// The times of requests are no multiples of the interval.
    #[test]
    fn wrong_secrets_leak_at_the_same_rate_however_often_the_address_asks() {
        for step in [7, 70, 300, 700, 999, 1300, 1900].map(Duration::from_millis) {
            let (guesses, known) = (GuessLimiter::default(), Instant::now());
            // An address that is known for long, with an empty bucket.
            guesses.record_valid_at(HOME, &AddressProof::default(), known);
            let began = known + PROVEN_TTL + UNPROVEN.leak_interval * 9 / 10;
            (0..20).for_each(|n| _ = guess(&guesses, HOME, n, began));
            let (mut compared, mut now) = (0, began);
            while now - began < Duration::from_secs(100) {
                while guesses.admit_at(HOME, now).is_ok() {
                    compared += 1;
                    guess(&guesses, HOME, 100 + compared, now);
                }
                let passed = (now - began).as_secs() as usize;
                assert!(compared == passed, "{step:?}: {compared} guesses are compared in {passed} s");
                now += step;
            }
        }
    }

    #[test]
    fn repeated_wrong_secret_counts_once() {
        let (guesses, now) = (GuessLimiter::default(), Instant::now());
        for _ in 0..1000 {
            assert_eq!(guess(&guesses, HOME, 7, now), DELAY_MIN);
        }
        assert_eq!(guesses.admit_at(HOME, now), Ok(()));
        let later = now + 100 * UNPROVEN.leak_interval;
        assert_eq!(guess(&guesses, HOME, 7, later), DELAY_MIN);
    }

    /// Covers a backend with one connection for days.
    #[test]
    fn address_stays_proven_while_connection_presents_valid_secrets() {
        let (guesses, began, proof) = (GuessLimiter::default(), Instant::now(), AddressProof::default());
        let later = began + 3 * PROVEN_TTL;
        let mut now = began;
        while now <= later {
            guesses.record_valid_at(HOME, &proof, now);
            now += PROOF_INTERVAL / 7;
        }
        (0..20).for_each(|n| _ = guess(&guesses, HOME, n, later));
        assert_eq!(guesses.admit_at(HOME, later), Ok(()));
    }

    #[test]
    fn table_of_addresses_is_bounded() {
        let (guesses, now) = (GuessLimiter::default(), Instant::now());
        let address = |n: usize| Some(IpAddr::from(u32::try_from(n).unwrap().to_be_bytes()));
        guesses.record_valid_at(HOME, &AddressProof::default(), now);
        (0..3 * ADDRESSES_MAX).for_each(|n| _ = guess(&guesses, address(n), n, now));
        assert_eq!(guesses.addresses.lock().known.len(), ADDRESSES_MAX);
        assert!(guesses.addresses.lock().known.contains_key(&HOME.unwrap()), "proven addresses are replaced last");
        let later = now + UNPROVEN.leak_interval;
        guess(&guesses, address(usize::MAX >> 33), 0, later);
        assert_eq!(guesses.addresses.lock().known.len(), 2, "addresses without wrong secrets are removed");
    }
}
