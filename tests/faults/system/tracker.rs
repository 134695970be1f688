//! Tracks which messages were dispatched and answered, and compares them with a user's log.

use std::{collections::BTreeMap, io};

use serde_json::json;

use crate::support::http::Http;

/// Entries of a user's log: sequence and message number.
pub type Log = Vec<(u64, u64)>;

/// Dispatches of one backend. No other backend writes to its users.
///
/// The messages of each user are numbered from zero. For each the tracker has whether it was answered with 200.
#[derive(Clone, Debug, Default)]
pub struct Tracker {
    users: BTreeMap<String, Vec<bool>>,
}

impl Tracker {
    /// Dispatches the next message for `user`. Returns the status, or an error if there was no response.
    pub fn dispatch(&mut self, http: &mut Http, user: &str) -> io::Result<u16> {
        self.dispatch_padded(http, user, 0)
    }

    /// Dispatches the next message for `user`, with some `bytes` of padding.
    pub fn dispatch_padded(&mut self, http: &mut Http, user: &str, bytes: usize) -> io::Result<u16> {
        let dispatched = self.users.entry(user.to_owned()).or_default();
        let data = json!({ "n": dispatched.len(), "x": "x".repeat(bytes) });
        dispatched.push(false);
        let status = http.try_dispatch(&data, &[user.to_owned()])?;
        *dispatched.last_mut().expect("the message that was just added") = status == 200;
        Ok(status)
    }

    /// Returns the number of messages answered with 200.
    pub fn answered(&self) -> usize {
        self.users.values().flatten().filter(|answered| **answered).count()
    }

    /// Returns the number of dispatched messages.
    pub fn dispatched(&self) -> usize {
        self.users.values().map(Vec::len).sum()
    }

    /// Returns the number of messages dispatched to a user: the last message number plus one.
    pub fn dispatched_to(&self, user: &str) -> u64 {
        self.users.get(user).map_or(0, |dispatched| dispatched.len() as u64)
    }

    /// Adds the messages of another backend. Its users must be different.
    pub fn merge(&mut self, other: Self) {
        for (user, dispatched) in other.users {
            assert!(self.users.insert(user, dispatched).is_none(), "expected one backend for each user");
        }
    }

    /// Compares the logs of all users with what was dispatched.
    ///
    /// Sequences must rise by one from 1. Messages must be in order, none twice, and each answered one must be present.
    ///
    /// # Errors
    /// With the first difference.
    pub fn check(&self, http: &mut Http) -> Result<(), String> {
        self.users.iter().try_for_each(|(user, dispatched)| check_log(user, dispatched, &read_log(http, user)))
    }

    /// Compares the log of one user, as [`Tracker::check`], when other users have acknowledged entries.
    ///
    /// # Errors
    /// With the first difference.
    pub fn check_user(&self, http: &mut Http, user: &str) -> Result<(), String> {
        check_log(user, self.users.get(user).map_or(&[], Vec::as_slice), &read_log(http, user))
    }

    /// Compares the messages that a user received: in order, none twice, each answered one present.
    ///
    /// # Errors
    /// With the first difference.
    pub fn check_received(&self, user: &str, numbers: &[u64]) -> Result<(), String> {
        let log: Log = (1..).zip(numbers.iter().copied()).collect();
        check_log(user, self.users.get(user).map_or(&[], Vec::as_slice), &log)
    }
}

fn check_log(user: &str, dispatched: &[bool], log: &Log) -> Result<(), String> {
    for (expected, (seq, _)) in (1..).zip(log) {
        if *seq != expected {
            return Err(format!("{user}: expected sequence {expected}, found sequence {seq}"));
        }
    }
    for pair in log.windows(2) {
        if pair[0].1 >= pair[1].1 {
            return Err(format!("{user}: message {} after message {}", pair[1].1, pair[0].1));
        }
    }
    if let Some((_, n)) = log.iter().find(|(_, n)| *n >= dispatched.len() as u64) {
        return Err(format!("{user}: message {n} was never dispatched"));
    }
    let lost =
        (0..).zip(dispatched).find(|(n, answered)| **answered && log.binary_search_by_key(n, |(_, n)| *n).is_err());
    match lost {
        Some((n, _)) => Err(format!("{user}: message {n} was answered and is lost")),
        None => Ok(()),
    }
}

/// Reads the pending entries of a user.
pub fn read_log(http: &mut Http, user: &str) -> Log {
    let entries = http.pending_entries(user).into_iter();
    entries.map(|(seq, data)| (seq, data["n"].as_u64().expect("a number"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn check_of_log_with_violation_reports_it() {
        let dispatched = [true, true, false, true];
        let check = |log: &[(u64, u64)]| check_log("alice", &dispatched, &log.to_vec());
        assert_eq!(check(&[(1, 0), (2, 1), (3, 3)]), Ok(()));
        assert_eq!(check(&[(1, 0), (2, 1), (3, 2), (4, 3)]), Ok(()));
        for (log, violation) in [
            (&[(1, 0), (2, 1)][..], "lost"),
            (&[], "lost"),
            (&[(1, 0), (3, 1), (4, 3)], "sequence"),
            (&[(1, 1), (2, 0), (3, 3)], "after"),
            (&[(1, 0), (2, 0), (3, 1), (4, 3)], "after"),
            (&[(1, 0), (2, 1), (3, 3), (4, 4)], "never dispatched"),
        ] {
            assert!(check(log).unwrap_err().contains(violation), "{log:?}: expected an error with {violation:?}");
        }
    }
}
