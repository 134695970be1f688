//! Reads the numbers of a command line. Errors say what would do.

use std::num::NonZeroU32;

/// For how long a message is kept.
pub(super) fn seconds(typed: &str) -> Result<NonZeroU32, String> {
    typed.parse().map_err(|_| {
        format!("give a number of seconds from 1 to {}; without --ttl it is kept until it is received", u32::MAX)
    })
}

pub(super) fn port(typed: &str) -> Result<u16, String> {
    typed.parse().map_err(|_| format!("give a port from 0 to {}", u16::MAX))
}

pub(super) fn whole(typed: &str) -> Result<u64, String> {
    typed.parse().map_err(|_| "give a whole number, 0 or more".into())
}

pub(super) fn count(typed: &str) -> Result<usize, String> {
    typed.parse().map_err(|_| "give a whole number, 0 or more".into())
}
