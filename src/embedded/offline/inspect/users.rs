//! Visits all users in the order of their ids, with all readable data of each.

use std::{collections::BTreeMap, iter::Peekable};

use bytes::Bytes;

use super::{
    Damage, InspectSink, LogFacts,
    user_log::{Assembly, damage},
    wal_events::WalEvents,
};
use crate::{
    embedded::{
        offline::reader::{OfflineReader, TablePairs},
        tables::{
            contract::Table,
            schema::{StoredLog, is_log_key_of},
        },
        unreadable::Unreadable,
        user_log::lossy_restarts::LossyRestarts,
        value_log::block::block_entries,
    },
    message::{Seq, UserId},
    store::StoreError,
};

/// Reports why the iteration stopped early.
pub enum VisitError {
    Sink(StoreError),
    Read(std::io::Error),
}

impl From<std::io::Error> for VisitError {
    fn from(error: std::io::Error) -> Self {
        Self::Read(error)
    }
}

/// Visits users. The maps are by user id.
pub struct UserWalk<'a> {
    pub reader: &'a OfflineReader,
    pub rows: Peekable<TablePairs<'a>>,
    pub blocks: Peekable<TablePairs<'a>>,
    pub wal_events: &'a WalEvents,
    pub orphan_entries: &'a BTreeMap<String, Vec<(Seq, u32, Bytes)>>,
    pub orphan_rows: &'a BTreeMap<String, StoredLog>,
    pub namespace: u32,
    pub lossy_restarts: LossyRestarts,
    /// Whether the store has damage. Then missing entries are reported too.
    pub damaged: bool,
    /// The only user to visit, if set.
    pub only: Option<&'a str>,
    pub damage_found: &'a mut Vec<Damage>,
    pub now_s: u32,
}

/// Finds keys that belong to no user. [`UserWalk`] skips them.
pub fn invalid_keys(reader: &OfflineReader) -> std::io::Result<Vec<Damage>> {
    let mut invalid = Vec::new();
    let tables =
        [(Table::Users, "users", "it is not a user id"), (Table::Log, "value-log", "it is not the key of a block")];
    for (table, place, what) in tables {
        let user = if table == Table::Log { block_owner } else { user_of };
        for key in reader.keys(table) {
            let key = key?;
            if user(&key).is_none() {
                invalid.push(Damage { place, key: format!("{key:?}"), what: what.into(), user: None });
            }
        }
    }
    Ok(invalid)
}

/// Reports that the next pair cannot be read.
struct ReadFailed;

/// Returns the user of the next pair. Skips keys that belong to no user.
fn first_user(
    pairs: &mut Peekable<TablePairs<'_>>,
    user: fn(&[u8]) -> Option<String>,
) -> Result<Option<String>, ReadFailed> {
    while let Some(pair) = pairs.peek() {
        let Ok((key, _)) = pair else { return Err(ReadFailed) };
        if let Some(user) = user(key) {
            return Ok(Some(user));
        }
        pairs.next();
    }
    Ok(None)
}

impl UserWalk<'_> {
    /// Visits all users, or `only` one.
    pub fn visit_users(&mut self, sink: &mut dyn InspectSink) -> Result<(), VisitError> {
        let mut after: Option<String> = None;
        while let Some(user) = self.next_user(after.as_deref())? {
            if self.only.is_some_and(|only| *only < *user) {
                break;
            }
            let wanted = self.only.is_none_or(|only| *only == *user);
            let facts = self.user(&user, sink)?;
            if let Some(facts) = facts.filter(|_| wanted) {
                sink.log(facts).map_err(VisitError::Sink)?;
            }
            after = Some(user);
        }
        Ok(())
    }

    /// Returns the next user with any data.
    fn next_user(&mut self, after: Option<&str>) -> Result<Option<String>, VisitError> {
        let row = first_user(&mut self.rows, user_of);
        let row = row.map_err(|ReadFailed| VisitError::Read(self.failed()))?;
        let block = first_user(&mut self.blocks, block_owner);
        let block = block.map_err(|ReadFailed| VisitError::Read(self.failed()))?;
        let from = match (after, self.only) {
            (Some(after), _) => std::ops::Bound::Excluded(after.to_owned()),
            (None, Some(only)) => std::ops::Bound::Included(only.to_owned()),
            (None, None) => std::ops::Bound::Unbounded,
        };
        let range = (from, std::ops::Bound::Unbounded);
        let wal_user = self.wal_events.users.range(range.clone()).next().map(|(user, _)| user.clone());
        let orphan = self.orphan_entries.range(range.clone()).next().map(|(user, _)| user.clone());
        let orphan_row = self.orphan_rows.range(range).next().map(|(user, _)| user.clone());
        Ok([row, block, wal_user, orphan, orphan_row].into_iter().flatten().min())
    }

    fn failed(&mut self) -> std::io::Error {
        let error = self.rows.next().and_then(Result::err).or_else(|| self.blocks.next().and_then(Result::err));
        error.unwrap_or_else(|| std::io::ErrorKind::Other.into())
    }

    /// Visits a user. Returns `None` if the user is erased.
    fn user(&mut self, user: &str, sink: &mut dyn InspectSink) -> Result<Option<LogFacts>, VisitError> {
        let wanted = self.only.is_none_or(|only| only == user);
        let row = self.row(user)?;
        let flushed = row.as_ref().map_or(0, |row| row.flushed);
        let mut assembly = Assembly::new(user.to_owned(), row);
        for entry in self.wal_events.users.get(user).into_iter().flatten() {
            assembly.add_wal_event(entry.clone(), self.damaged);
        }
        for (seq, expires_s, payload) in self.orphan_entries.get(user).into_iter().flatten() {
            if !assembly.add_orphan_entry(*seq, *expires_s, payload.clone()) {
                let what = "two different entries have this sequence; the first is used";
                self.damage_found.push(damage(user, "wal", format!("entry {seq}"), what));
            }
        }
        assembly.skip_lossy_restarts(self.lossy_restarts);
        while self.blocks.peek().is_some_and(|pair| pair.as_ref().is_ok_and(|(key, _)| is_within(key, user))) {
            let Some((key, value)) = self.blocks.next().transpose()? else { break };
            if !is_log_key_of(&key, user) {
                // Stopping here would visit the user again for the blocks that follow, then without the row.
                continue;
            }
            if let Some(entries) = self.block_entries(assembly.user(), flushed, &key, &value) {
                let pending = assembly.take_pending(Some(entries), self.now_s);
                if wanted && !pending.is_empty() {
                    sink.entries(user, &pending).map_err(VisitError::Sink)?;
                }
            }
        }
        let pending = assembly.take_pending(None, self.now_s);
        if wanted && !pending.is_empty() {
            sink.entries(user, &pending).map_err(VisitError::Sink)?;
        }
        if assembly.is_gone() {
            return Ok(None);
        }
        let facts = assembly.finish();
        if self.damaged {
            for (from, to) in &facts.missing {
                let what = "missing: lost or expired";
                self.damage_found.push(damage(user, "entries", format!("{from} to {to}"), what));
            }
        }
        Ok(Some(facts))
    }

    fn row(&mut self, user: &str) -> Result<Option<StoredLog>, VisitError> {
        let own = self.rows.peek().is_some_and(|pair| pair.as_ref().is_ok_and(|(key, _)| key == user.as_bytes()));
        let Some((_, value)) = (if own { self.rows.next().transpose()? } else { None }) else {
            if let Some(row) = self.orphan_rows.get(user) {
                return Ok(Some(row.clone()));
            }
            // The WAL may have entries of a user whose row was not written yet at a power cut.
            if !self.wal_events.users.contains_key(user) {
                self.damage_found.push(damage(user, "users", "the row".into(), "it is missing"));
            }
            return Ok(None);
        };
        match StoredLog::decode(&value) {
            Ok(row) => Ok(Some(row)),
            Err(error) => {
                self.damage_found.push(damage(user, "users", "the row".into(), error));
                Ok(None)
            }
        }
    }

    /// Returns the entries of a block, if it belongs to this user.
    fn block_entries(
        &mut self,
        user: &str,
        flushed: Seq,
        key: &Bytes,
        value: &Bytes,
    ) -> Option<Vec<(Seq, u32, Bytes)>> {
        let first = key.last_chunk().map_or(0, |first| u64::from_be_bytes(*first));
        let part = || format!("the block from sequence {first} on");
        let reader = self.reader;
        let mut read_body = |id, namespace, length| reader.body(id, namespace, length);
        let (namespace, owner, entries) = match block_entries(value, &mut read_body) {
            Ok(entries) => entries,
            // A power cut interrupted the write of this block. No row refers to it yet, and the WAL has all its
            // entries.
            Err(_)
                if Unreadable::from_value(value).is_some()
                    && first > flushed
                    && self.wal_events.users.contains_key(user) =>
            {
                return None;
            }
            Err(error) => {
                self.damage_found.push(damage(user, "value-log", part(), error));
                return None;
            }
        };
        if owner != user.as_bytes() || namespace != self.namespace {
            self.damage_found.push(damage(user, "value-log", part(), "it belongs to another user"));
            return None;
        }
        let in_wal = self.wal_events.users.contains_key(user);
        let mut read = Vec::with_capacity(entries.len());
        for (entry, expires_s) in entries {
            match entry {
                Ok(entry) => read.push((entry.seq, expires_s, entry.payload.as_bytes().clone())),
                // As above: a power cut interrupted the write of this body.
                Err((seq, _)) if seq > flushed && in_wal => {}
                Err((seq, error)) => {
                    self.damage_found.push(damage(user, "value-log", format!("the message of sequence {seq}"), error));
                }
            }
        }
        Some(read)
    }
}

fn user_of(key: &[u8]) -> Option<String> {
    let id = std::str::from_utf8(key).ok()?;
    UserId::new(id).ok().map(|_| id.to_owned())
}

/// Returns whether a key, valid or not, is among the block keys of a user.
///
/// No id contains a zero byte, so no valid key of another user is between them.
fn is_within(key: &[u8], user: &str) -> bool {
    key.strip_prefix(user.as_bytes()).is_some_and(|rest| rest.first() == Some(&0))
}

fn block_owner(key: &[u8]) -> Option<String> {
    let at = key.len().checked_sub(9)?;
    user_of(&key[..at]).filter(|user| is_log_key_of(key, user))
}
