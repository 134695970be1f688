//! Random parameters of a history.

use std::time::Duration;

use mesa::{
    message::Payload,
    store::{Limits, Overflow},
};

use crate::seeded_rng::Random;

/// Parameters that a history chooses once.
#[derive(Debug)]
pub struct Params {
    pub limits: Limits,
    pub sizes: Sizes,
    /// Percentage of messages with a TTL.
    pub with_ttl: u64,
    /// Percentage of messages with a collapse key.
    pub with_key: u64,
    /// Number of distinct collapse keys.
    pub keys: u64,
}

/// Sizes of the messages of a history.
#[derive(Clone, Copy, Debug)]
pub enum Sizes {
    Small,
    SomeLarge,
    Large,
}

impl Params {
    pub fn new(seed: u64, random: &mut Random) -> Self {
        let pick = |random: &mut Random, list: &[u64]| list[random.within(0..=list.len() as u64 - 1) as usize];
        // In turn, so that a run of fifteen histories has every combination.
        let overflow = if seed.is_multiple_of(3) { Overflow::Reject } else { Overflow::DropOldest };
        let messages = [12, 100, 300, 700, 1500][(seed % 5) as usize];
        let age = random.one_in(6).then_some(Duration::from_secs(7200));
        let device_age = random.one_in(2).then_some(Duration::from_secs(30 * 24 * 3600));
        let limits = Limits {
            messages,
            bytes: pick(random, &[100_000, 600_000, 1_500_000, 8_000_000]),
            overflow,
            age,
            device_age,
            devices: random.within(1..=4) as usize,
            ..Limits::default()
        };
        let sizes = [Sizes::Small, Sizes::SomeLarge, Sizes::Large][random.within(0..=2) as usize];
        let with_ttl = pick(random, &[0, 15, 60]);
        Self { limits, sizes, with_ttl, with_key: pick(random, &[0, 15, 50]), keys: pick(random, &[3, 20, 100]) }
    }

    pub fn payload(&self, random: &mut Random) -> Payload {
        let characters = match self.sizes {
            Sizes::Large => random.within(4_000..=60_000),
            Sizes::SomeLarge if random.one_in(40) => random.within(20_000..=60_000),
            Sizes::SomeLarge | Sizes::Small => random.within(0..=60),
        };
        Payload::encode(0, Some(&format!("\"{}\"", "x".repeat(characters as usize))), Some("N")).unwrap()
    }

    pub fn ttl(&self, random: &mut Random, is_brief: bool) -> Option<Duration> {
        let has_ttl = random.within(1..=100) <= self.with_ttl;
        let ttl = match random.within(0..=7) {
            0 if is_brief => Duration::from_millis(1),
            0..=1 if is_brief => Duration::from_millis(random.within(2..=2500)),
            0..=2 => Duration::from_secs(20),
            3..=4 => Duration::from_secs(600),
            5 => Duration::from_secs(5 * 3600),
            6 => Duration::from_secs(10 * 24 * 3600),
            _ => Duration::from_secs(u32::MAX.into()),
        };
        has_ttl.then_some(ttl)
    }
}
