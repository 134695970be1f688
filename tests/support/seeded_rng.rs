//! Seeded random numbers. Each test prints its seed, and `MESA_SEED` repeats it.

use std::{
    io::Write as _,
    ops::RangeInclusive,
    time::{SystemTime, UNIX_EPOCH},
};

/// Generates random numbers with `SplitMix64`, which is small and good enough to choose points in time.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Creates a generator from `MESA_SEED` or the clock, and prints the seed.
    ///
    /// The seed bypasses the output capture of the test harness.
    pub fn from_env(test: &str) -> Self {
        Self(seed_from_env(test))
    }

    /// Creates a generator from a seed that was printed before.
    pub fn from_seed(seed: u64) -> Self {
        Self(seed)
    }

    /// Creates an independent generator, for another thread.
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

    /// Returns a number in the range.
    pub fn within(&mut self, range: RangeInclusive<u64>) -> u64 {
        range.start() + self.next() % (range.end() - range.start() + 1)
    }

    /// Returns true with a probability of 1 in `times`.
    pub fn one_in(&mut self, times: u64) -> bool {
        self.within(1..=times) == 1
    }
}

/// Returns the seed from `MESA_SEED` or the clock, and prints it.
///
/// It bypasses the output capture of the test harness.
pub fn seed_from_env(test: &str) -> u64 {
    let seed = match std::env::var("MESA_SEED") {
        Ok(seed) => seed.parse().expect("MESA_SEED is a number"),
        Err(_) => {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970");
            now.as_nanos() as u64
        }
    };
    // One write, so that output of other tests cannot split the line.
    _ = std::io::stderr().write_all(format!("{test}: MESA_SEED={seed}\n").as_bytes());
    seed
}
