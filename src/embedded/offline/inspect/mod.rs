//! Inspects a closed store, read-only: reports damage, and visits all readable data.
//!
//! - `findings`: damage, and properties of the store
//! - `inspection`: locks, reads and checks the directory
//! - `labels`: names the keys of lost ranges
//! - `connected`: users with connections, and the number of entries of each tree
//! - `wal_events`: the WAL events of each user
//! - `users`: iterates over all users
//! - `user_log`: assembles one user's log from the row, the value log and the WAL

mod connected;
mod findings;
mod inspection;
mod labels;
#[cfg(test)]
mod tests;
mod user_log;
mod users;
mod wal_events;

use std::{
    fmt,
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;

pub use self::findings::{CloseState, ConnectedUser, Damage, DedupEntry, Facts, StoredUser};
pub use self::{inspection::Inspection, user_log::LogFacts};
use crate::{message::Seq, store::StoreError};

/// Receives the users of an inspected store, in the order of their ids.
pub trait InspectSink {
    /// Receives pending entries of a user, in order: sequence, expiry in seconds of the Unix epoch (0 = never),
    /// payload.
    ///
    /// May be called several times for a user.
    ///
    /// # Errors
    /// Stops the inspection.
    fn entries(&mut self, user: &str, entries: &[(Seq, u32, Bytes)]) -> Result<(), StoreError>;

    /// Receives a user's log without its entries, after all calls of [`entries`](Self::entries) for the user.
    ///
    /// # Errors
    /// Stops the inspection.
    fn log(&mut self, facts: LogFacts) -> Result<(), StoreError>;
}

fn open_error(path: &Path, reason: impl fmt::Display) -> StoreError {
    StoreError::Open { path: path.to_owned(), reason: reason.to_string() }
}

fn now_s() -> u32 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u32::try_from(now.as_secs()).unwrap_or(u32::MAX)
}
