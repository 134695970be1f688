//! Adds jitter to retry delays.

use std::time::Duration;

/// Varies a delay to half to one and a half times its length, so that concurrent failures do not retry together.
pub(crate) fn jitter(delay: Duration) -> Duration {
    let mut bytes = [0_u8; 4];
    // Without randomness all callers wait equally long.
    let share =
        getrandom::fill(&mut bytes).map_or(0.5, |()| f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX));
    delay.mul_f64(0.5 + share)
}
