//! Looking at a store that nobody has open, whatever has become of it: read only, and around everything that would
//! rather stop. What cannot be read is told, and the rest is shown.
//!
//! - `findings`: what an inspection reports
//! - `inspection`: the directory: locked, read and checked against what it says of itself
//! - `journal`: the records, as what they say of each user
//! - `users`: all users, one after the other
//! - `user_log`: one user's log, put together from his row, his inbox and the journal

mod findings;
mod inspection;
mod journal;
#[cfg(test)]
mod tests;
mod user_log;
mod users;

use std::{
    fmt,
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;

pub use self::findings::{Damage, DedupEntry, Ending, Facts, StoredUser};
pub use self::{inspection::Inspection, user_log::LogFacts};
use crate::{message::Seq, store::StoreError};

/// Who takes what is found, one user after the other in the order of their ids.
pub trait InspectSink {
    /// Entries that somebody has not received yet, in order, each with when it expires (seconds of the Unix epoch,
    /// 0 = never). May come in several parts.
    ///
    /// # Errors
    /// Stops everything.
    fn entries(&mut self, user: &str, entries: &[(Seq, u32, Bytes)]) -> Result<(), StoreError>;

    /// All there is of this user beside the entries, which have all come before.
    ///
    /// # Errors
    /// Stops everything.
    fn log(&mut self, facts: LogFacts) -> Result<(), StoreError>;
}

fn open_error(path: &Path, reason: impl fmt::Display) -> StoreError {
    StoreError::Open { path: path.to_owned(), reason: reason.to_string() }
}

fn now_s() -> u32 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u32::try_from(now.as_secs()).unwrap_or(u32::MAX)
}
