//! Limits guessing of API keys and passwords, per network address.
//!
//! A wrong secret is answered after a delay that grows with the number of recent ones from the same address. An address with
//! too many different wrong secrets is not compared at all until some time has passed; a connection that has presented a
//! right one is exempt, so that clients behind the same address keep working. Right secrets are never delayed.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    net::{IpAddr, Ipv6Addr},
    time::{Duration, Instant},
};

use parking_lot::Mutex;

/// Different wrong secrets that an address may present at once. Above this its secrets are not compared.
const WRONG_MAX: u32 = 20;

/// One wrong secret of an address is forgotten after each of these intervals.
const FORGET_INTERVAL: Duration = Duration::from_secs(1);

/// Delay of the answer to the first wrong secret; doubled for each further one.
const DELAY_MIN: Duration = Duration::from_millis(100);

/// Longest delay of an answer.
const DELAY_MAX: Duration = Duration::from_secs(2);

/// Addresses that are remembered. When the table is full and none can be forgotten, an arbitrary one is replaced.
const ADDRESSES_MAX: usize = 10_000;

/// Wrong secrets remembered per address. A backend that is configured with a wrong key and repeats it is no guesser, and
/// does not use up the limit of others behind its address.
const REPEATS_MAX: usize = 4;

/// Wrong secrets are reported in the log this often at most.
const REPORT_INTERVAL: Duration = Duration::from_secs(10);

/// Counts wrong secrets per address.
#[derive(Debug, Default)]
pub struct Guesses {
    addresses: Mutex<Addresses>,
    report: Mutex<Report>,
    /// Its keys are random, so that fingerprints say nothing about secrets.
    hasher: RandomState,
}

#[derive(Debug, Default)]
struct Addresses {
    known: HashMap<IpAddr, Wrong, foldhash::fast::RandomState>,
    swept: Option<Instant>,
}

/// Wrong secrets of one address.
#[derive(Debug)]
struct Wrong {
    /// How many count now.
    count: u32,
    /// When one was last forgotten, or the first counted.
    since: Instant,
    /// Fingerprints of the latest ones.
    latest: [u64; REPEATS_MAX],
}

#[derive(Debug, Default)]
struct Report {
    last: Option<Instant>,
    /// Wrong secrets since the last report.
    wrong: u64,
}

impl Wrong {
    fn forget(&mut self, now: Instant) {
        let intervals = now.saturating_duration_since(self.since).as_secs() / FORGET_INTERVAL.as_secs();
        if intervals > 0 {
            self.count = self.count.saturating_sub(u32::try_from(intervals).unwrap_or(u32::MAX));
            self.since = now;
        }
    }
}

impl Guesses {
    /// Admits a secret to be compared.
    ///
    /// An unknown address (`None`) is always admitted.
    ///
    /// # Errors
    /// With the time after which the address may try again, if it has presented too many wrong ones.
    pub fn admit(&self, address: Option<IpAddr>) -> Result<(), Duration> {
        self.admit_at(address, Instant::now())
    }

    /// Counts a wrong secret, reports it in the log, and returns how long to delay the answer.
    pub fn wrong(&self, address: Option<IpAddr>, secret: &[u8]) -> Duration {
        let now = Instant::now();
        self.report(address, now);
        self.wrong_at(address, secret, now)
    }

    fn admit_at(&self, address: Option<IpAddr>, now: Instant) -> Result<(), Duration> {
        let Some(address) = address else { return Ok(()) };
        let mut addresses = self.addresses.lock();
        let Some(wrong) = addresses.known.get_mut(&network(address)) else { return Ok(()) };
        wrong.forget(now);
        if wrong.count < WRONG_MAX { Ok(()) } else { Err(FORGET_INTERVAL) }
    }

    fn wrong_at(&self, address: Option<IpAddr>, secret: &[u8], now: Instant) -> Duration {
        let Some(address) = address else { return DELAY_MIN };
        let fingerprint = self.hasher.hash_one(secret);
        let mut addresses = self.addresses.lock();
        let wrong = addresses.entry(network(address), now);
        wrong.forget(now);
        if !wrong.latest.contains(&fingerprint) || wrong.count == 0 {
            wrong.latest.rotate_right(1);
            wrong.latest[0] = fingerprint;
            wrong.count = wrong.count.saturating_add(1).min(WRONG_MAX);
        }
        DELAY_MIN.saturating_mul(1 << (wrong.count - 1).min(16)).min(DELAY_MAX)
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
        tracing::warn!(wrong, %address, "wrong API keys or passwords were presented; the last one from this address");
    }
}

impl Addresses {
    fn entry(&mut self, address: IpAddr, now: Instant) -> &mut Wrong {
        if self.known.len() >= ADDRESSES_MAX && !self.known.contains_key(&address) {
            self.make_room(now);
        }
        self.known.entry(address).or_insert(Wrong { count: 0, since: now, latest: [0; REPEATS_MAX] })
    }

    fn make_room(&mut self, now: Instant) {
        // Going through all of them at every new address would be a cost of its own.
        if self.swept.is_none_or(|swept| now.saturating_duration_since(swept) >= FORGET_INTERVAL) {
            self.swept = Some(now);
            self.known.retain(|_, wrong| {
                wrong.forget(now);
                wrong.count > 0
            });
        }
        if self.known.len() >= ADDRESSES_MAX
            && let Some(any) = self.known.keys().next().copied()
        {
            self.known.remove(&any);
        }
    }
}

/// The network that counts as one address: an IPv6 host commonly has a whole /64 to itself.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        address @ IpAddr::V4(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const HOME: Option<IpAddr> = Some(IpAddr::V4(Ipv4Addr::LOCALHOST));

    fn guess(guesses: &Guesses, address: Option<IpAddr>, number: usize, now: Instant) -> Duration {
        guesses.wrong_at(address, number.to_string().as_bytes(), now)
    }

    #[test]
    fn guesser_is_delayed_more_and_more_and_then_not_compared() {
        let (guesses, now) = (Guesses::default(), Instant::now());
        let delays: Vec<_> = (0..7).map(|n| guess(&guesses, HOME, n, now).as_millis()).collect();
        assert_eq!(delays, [100, 200, 400, 800, 1600, 2000, 2000]);
        assert_eq!(guesses.admit_at(HOME, now), Ok(()));
        (7..1000).for_each(|n| _ = guess(&guesses, HOME, n, now));
        assert_eq!(guesses.admit_at(HOME, now), Err(FORGET_INTERVAL));
        let other = Some("10.0.0.1".parse().unwrap());
        assert_eq!(guesses.admit_at(other, now), Ok(()), "another address is not concerned");
        let later = now + FORGET_INTERVAL;
        assert_eq!(guesses.admit_at(HOME, later), Ok(()), "one more after each interval");
        guess(&guesses, HOME, 1000, later);
        assert_eq!(guesses.admit_at(HOME, later), Err(FORGET_INTERVAL));
    }

    #[test]
    fn repeated_wrong_secret_counts_once() {
        let (guesses, now) = (Guesses::default(), Instant::now());
        for _ in 0..1000 {
            assert_eq!(guess(&guesses, HOME, 7, now), DELAY_MIN);
        }
        assert_eq!(guesses.admit_at(HOME, now), Ok(()));
        let later = now + 100 * FORGET_INTERVAL;
        assert_eq!(guess(&guesses, HOME, 7, later), DELAY_MIN);
    }

    #[test]
    fn table_of_addresses_is_bounded() {
        let (guesses, now) = (Guesses::default(), Instant::now());
        let address = |n: usize| Some(IpAddr::from(u32::try_from(n).unwrap().to_be_bytes()));
        (0..3 * ADDRESSES_MAX).for_each(|n| _ = guess(&guesses, address(n), n, now));
        assert_eq!(guesses.addresses.lock().known.len(), ADDRESSES_MAX);
        let later = now + FORGET_INTERVAL;
        guess(&guesses, address(usize::MAX >> 33), 0, later);
        assert_eq!(guesses.addresses.lock().known.len(), 1, "what no longer counts is forgotten");
    }

    #[test]
    fn addresses_of_one_network_count_together() {
        let network = |text: &str| super::network(text.parse().unwrap());
        assert_eq!(network("2001:db8::1"), network("2001:db8::ffff:1"));
        assert_ne!(network("2001:db8::1"), network("2001:db8:0:1::1"));
        assert_eq!(network("::ffff:10.0.0.1"), network("10.0.0.1"));
    }
}
