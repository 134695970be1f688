//! Backoff between attempts.

use std::time::Duration;

/// Half to one and a half times as long, so that many who failed together do not come back together.
pub(crate) fn jittered(pause: Duration) -> Duration {
    let mut bytes = [0_u8; 4];
    // Where there is no chance to be had, all wait equally long.
    let share =
        getrandom::fill(&mut bytes).map_or(0.5, |()| f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX));
    pause.mul_f64(0.5 + share)
}
