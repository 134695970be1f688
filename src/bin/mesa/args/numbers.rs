//! Parses numbers of the command line. Errors name the accepted values.

use std::num::{NonZeroU32, NonZeroU64, NonZeroUsize};

/// Parses a time to live.
pub(super) fn seconds(typed: &str) -> Result<NonZeroU32, String> {
    typed
        .parse()
        .map_err(|_| format!("give a number of seconds from 1 to {}; without --ttl it does not expire", u32::MAX))
}

pub(super) fn port(typed: &str) -> Result<u16, String> {
    typed.parse().map_err(|_| format!("give a port from 0 to {}", u16::MAX))
}

pub(super) fn whole(typed: &str) -> Result<u64, String> {
    typed.parse().map_err(|_| "give a whole number, 0 or more".into())
}

pub(super) fn at_least_one(typed: &str) -> Result<NonZeroUsize, String> {
    typed.parse().map_err(|_| "give a whole number, 1 or more".into())
}

pub(super) fn count(typed: &str) -> Result<usize, String> {
    typed.parse().map_err(|_| "give a whole number, 0 or more".into())
}

/// Parses a number of operations.
pub(super) fn from_one(typed: &str) -> Result<NonZeroU64, String> {
    typed.parse().map_err(|_| "give a whole number, 1 or more".into())
}
