//! What was dispatched and what of it was answered, held against what a server has.

use std::{collections::BTreeMap, io};

use serde::Deserialize;
use serde_json::{Value, json};

use crate::support::http::Http;

/// Entries asked for at once.
const PAGE: usize = 1000;

/// A user's log: sequences and numbers.
pub type Log = Vec<(u64, u64)>;

/// Dispatches of one backend to users nobody else writes to, numbered from zero for each of them.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    users: BTreeMap<String, Vec<bool>>,
}

impl Ledger {
    /// Dispatches the next message for `user`: the status of the answer, or an error where none came.
    pub fn dispatch(&mut self, http: &mut Http, user: &str) -> io::Result<u16> {
        self.dispatch_padded(http, user, 0)
    }

    /// The same with a message of some `bytes` more.
    pub fn dispatch_padded(&mut self, http: &mut Http, user: &str, bytes: usize) -> io::Result<u16> {
        let sent = self.users.entry(user.to_owned()).or_default();
        let data = json!({ "n": sent.len(), "x": "x".repeat(bytes) });
        sent.push(false);
        let status = http.try_dispatch(&data, &[user.to_owned()])?;
        *sent.last_mut().expect("was just pushed") = status == 200;
        Ok(status)
    }

    /// How many were answered with success.
    pub fn answered(&self) -> usize {
        self.users.values().flatten().filter(|answered| **answered).count()
    }

    /// How many were sent.
    pub fn sent(&self) -> usize {
        self.users.values().map(Vec::len).sum()
    }

    /// How many were sent to a user: one more than the number of the last.
    pub fn sent_to(&self, user: &str) -> u64 {
        self.users.get(user).map_or(0, |sent| sent.len() as u64)
    }

    /// Takes over what another backend did, to other users.
    pub fn merge(&mut self, other: Self) {
        for (user, sent) in other.users {
            assert!(self.users.insert(user, sent).is_none(), "two backends wrote to one user");
        }
    }

    /// Holds the logs of all users against what was sent: contiguous from one, in order, each once, nothing that was
    /// answered missing.
    ///
    /// # Errors
    /// With the first thing that is wrong.
    pub fn check(&self, http: &mut Http) -> Result<(), String> {
        self.users.iter().try_for_each(|(user, sent)| check_log(user, sent, &read_log(http, user)))
    }

    /// The same of one user, where others have read theirs.
    ///
    /// # Errors
    /// With the first thing that is wrong.
    pub fn check_user(&self, http: &mut Http, user: &str) -> Result<(), String> {
        check_log(user, self.users.get(user).map_or(&[], Vec::as_slice), &read_log(http, user))
    }

    /// Holds what a user has received against what was sent: in order, each once, nothing that was answered missing.
    ///
    /// # Errors
    /// With the first thing that is wrong.
    pub fn check_received(&self, user: &str, numbers: &[u64]) -> Result<(), String> {
        let log: Log = (1..).zip(numbers.iter().copied()).collect();
        check_log(user, self.users.get(user).map_or(&[], Vec::as_slice), &log)
    }
}

fn check_log(user: &str, sent: &[bool], log: &Log) -> Result<(), String> {
    for (place, (seq, _)) in (1..).zip(log) {
        if *seq != place {
            return Err(format!("{user}: sequence {seq} at place {place}"));
        }
    }
    for pair in log.windows(2) {
        if pair[0].1 >= pair[1].1 {
            return Err(format!("{user}: number {} after number {}", pair[1].1, pair[0].1));
        }
    }
    if let Some((_, n)) = log.iter().find(|(_, n)| *n >= sent.len() as u64) {
        return Err(format!("{user}: number {n} was never sent"));
    }
    let lost = (0..).zip(sent).find(|(n, answered)| **answered && log.binary_search_by_key(n, |(_, n)| *n).is_err());
    match lost {
        Some((n, _)) => Err(format!("{user}: number {n} was answered, and is lost")),
        None => Ok(()),
    }
}

#[derive(Deserialize)]
struct Page {
    messages: Vec<Stored>,
}

#[derive(Deserialize)]
struct Stored {
    s: u64,
    d: Value,
}

/// All that waits for a user.
pub fn read_log(http: &mut Http, user: &str) -> Log {
    let mut log = Log::new();
    loop {
        let from = log.last().map_or(0, |(seq, _)| *seq);
        let path = format!("/v1/users/{user}/messages?after={from}&limit={PAGE}");
        let page: Page = http.get(&path).expect("a page of the log");
        if page.messages.is_empty() {
            return log;
        }
        log.extend(page.messages.iter().map(|stored| (stored.s, stored.d["n"].as_u64().expect("a number"))));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_ledger_is_there_to_find_it_finds() {
        let sent = [true, true, false, true];
        let check = |log: &[(u64, u64)]| check_log("alice", &sent, &log.to_vec());
        assert_eq!(check(&[(1, 0), (2, 1), (3, 3)]), Ok(()));
        assert_eq!(check(&[(1, 0), (2, 1), (3, 2), (4, 3)]), Ok(()));
        for (log, wrong) in [
            (&[(1, 0), (2, 1)][..], "lost"),
            (&[], "lost"),
            (&[(1, 0), (3, 1), (4, 3)], "sequence"),
            (&[(1, 1), (2, 0), (3, 3)], "after"),
            (&[(1, 0), (2, 0), (3, 1), (4, 3)], "after"),
            (&[(1, 0), (2, 1), (3, 3), (4, 4)], "never sent"),
        ] {
            assert!(check(log).unwrap_err().contains(wrong), "{log:?}");
        }
    }
}
