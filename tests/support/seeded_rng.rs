//! Chance that can be repeated: every test prints its seed, and `MESA_SEED` sets it.

use std::{
    io::Write as _,
    ops::RangeInclusive,
    time::{SystemTime, UNIX_EPOCH},
};

/// `SplitMix64`: small, and good enough to choose moments.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Starts from `MESA_SEED`, or from the clock; prints the seed past the test harness' capture.
    pub fn announced(test: &str) -> Self {
        Self(announced_seed(test))
    }

    /// From a seed that was announced before.
    pub fn from_seed(seed: u64) -> Self {
        Self(seed)
    }

    /// A stream of its own, for another thread.
    pub fn split(&mut self) -> Self {
        Self(self.next())
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number of the range.
    pub fn within(&mut self, range: RangeInclusive<u64>) -> u64 {
        range.start() + self.next() % (range.end() - range.start() + 1)
    }

    /// True once in `times`.
    pub fn once_in(&mut self, times: u64) -> bool {
        self.within(1..=times) == 1
    }
}

/// From `MESA_SEED`, or from the clock; printed past the test harness' capture.
pub fn announced_seed(test: &str) -> u64 {
    let seed = match std::env::var("MESA_SEED") {
        Ok(seed) => seed.parse().expect("MESA_SEED is a number"),
        Err(_) => {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970");
            now.as_nanos() as u64
        }
    };
    // In one piece, so that other tests' lines do not get into it.
    _ = std::io::stderr().write_all(format!("{test}: MESA_SEED={seed}\n").as_bytes());
    seed
}
