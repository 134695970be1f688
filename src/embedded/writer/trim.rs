//! Removes entries from the value log that are no longer needed.
//!
//! - A *trim* removes blocks in which all entries are released. It follows acknowledgements.
//! - A *purge* removes released, hidden and expired entries from blocks. It reads all blocks of a user.

use bytes::Bytes;

use super::state::Committer;
use crate::{
    embedded::{
        tables::{
            contract::{EngineError, Table},
            schema::{is_log_key_of, log_key},
        },
        user_log::{Usage, earlier, is_expired},
        value_log::block::{Block, block_entries},
    },
    logging::excerpt,
    message::{Seq, UserId},
    store::Entry,
};

/// Interval of scans of a user's blocks to free quota, in seconds.
const PURGE_INTERVAL_S: u32 = 10;

/// Limit of blocks in memory during a scan.
const SCAN_BLOCKS_MAX: usize = 16;

impl Committer {
    /// Removes blocks in which all entries are released, and updates the usage.
    ///
    /// Must not run during a commit, which needs the released entries until it is written.
    pub(in crate::embedded) fn trim(&self, user: &UserId) -> Result<(), EngineError> {
        let flushed = self.with_log(user, |log| {
            log.trimming = false;
            log.flushed
        })?;
        let (released_keys, blocks_remain) = self.count_released(user)?;
        released_keys.iter().try_for_each(|key| self.shared.engine.remove(Table::Log, key))?;
        self.with_log(user, |log| {
            log.has_blocks &= blocks_remain || log.flushed > flushed;
            log.damaged &= blocks_remain;
        })?;
        self.put_row_if_flushed(user)
    }

    /// Subtracts released entries from the usage of a user's value log.
    ///
    /// Returns the keys of blocks in which all entries are released, and whether there are others.
    pub(super) fn count_released(&self, user: &UserId) -> Result<(Vec<Vec<u8>>, bool), EngineError> {
        let (released, flushed, counted, gaps) =
            self.with_log(user, |log| (log.released(), log.flushed, log.counted, log.gaps.clone()))?;
        let (mut released_keys, mut blocks_remain) = (Vec::new(), false);
        let mut sizes = Vec::new();
        let from = log_key(user.as_str(), 0);
        if released >= flushed {
            // All blocks are released, so they need not be read.
            self.shared.engine.keys(Table::Log, &from, &mut |key| {
                let is_own = is_log_key_of(key, user.as_str());
                released_keys.extend(is_own.then(|| key.to_vec()));
                is_own
            })?;
        } else {
            self.shared.engine.scan(Table::Log, &from, &mut |key, value| {
                if !is_log_key_of(key, user.as_str()) {
                    return false;
                }
                let Some(entries) = readable_entries(user, &value) else {
                    blocks_remain = true;
                    return true;
                };
                let is_counted = |seq: Seq| seq > counted && seq <= released && !gaps.hides(seq);
                let counting = entries.iter().filter(|(entry, _)| is_counted(entry.seq));
                sizes.extend(counting.map(|(entry, _)| entry.payload.as_bytes().len() as u64));
                if entries.last().is_some_and(|(entry, _)| entry.seq > released) {
                    blocks_remain = true;
                    return false;
                }
                released_keys.push(key.to_vec());
                true
            })?;
        }
        self.with_log(user, |log| {
            if released >= flushed && log.flushed == flushed {
                log.block_usage = Usage::default();
                log.blocks_expire_s = 0;
            } else {
                sizes.iter().for_each(|bytes| log.block_usage.subtract(*bytes));
            }
            log.counted = log.counted.max(released);
        })?;
        Ok((released_keys, blocks_remain))
    }

    /// Purges a user's blocks if a scan may free quota. Returns true if it did.
    pub(super) fn purge_if_due(&self, user: &UserId) -> Result<bool, EngineError> {
        let due = self.purge_is_due(user)?;
        if due {
            self.purge(user)?;
        }
        Ok(due)
    }

    /// Returns whether a scan of a user's blocks may free quota.
    ///
    /// It may if entries have expired, or if the usage may be wrong.
    pub(super) fn purge_is_due(&self, user: &UserId) -> Result<bool, EngineError> {
        let now_s = self.shared.clock.now_s();
        self.drop_expired(user, now_s)?;
        self.with_log(user, |log| {
            let is_due = log.scanned_s.is_none_or(|scanned_s| now_s.saturating_sub(scanned_s) >= PURGE_INTERVAL_S);
            // Before the first scan, the usage may be slightly too high because of a crash.
            let may_free = is_expired(log.blocks_expire_s, now_s) || log.scanned_s.is_none();
            log.has_blocks && may_free && is_due
        })
    }

    /// Removes released, hidden and expired entries from a user's blocks, and counts the others.
    ///
    /// Must not run during a commit: entries that the commit replaces are needed until it is written.
    pub(super) fn purge(&self, user: &UserId) -> Result<(), EngineError> {
        self.scan_blocks(user, true)?;
        self.with_log(user, |log| log.gaps.shrink_if_full())?;
        self.put_row_if_flushed(user)
    }

    /// Scans a user's blocks, and counts the entries that are needed. With `remove`, removes the others.
    ///
    /// Each block keeps its key, so that every state in between is readable.
    pub(in crate::embedded) fn scan_blocks(&self, user: &UserId, remove: bool) -> Result<(), EngineError> {
        let now_s = self.shared.clock.now_s();
        let (released, gaps, mut without_entry) =
            self.with_log(user, |log| (log.released(), log.gaps.clone(), log.flushed_collapse_seqs()))?;
        let (mut usage, mut expires_s) = (Usage::default(), 0);
        let mut from = log_key(user.as_str(), 0);
        loop {
            let mut blocks = Vec::new();
            self.shared.engine.scan(Table::Log, &from, &mut |key, value| {
                let is_own = is_log_key_of(key, user.as_str());
                if is_own {
                    blocks.push((key.to_vec(), value));
                }
                is_own && blocks.len() < SCAN_BLOCKS_MAX
            })?;
            let Some((last, _)) = blocks.last() else { break };
            from.clone_from(last);
            from.push(0);
            let (mut replaced, mut removed, mut expired) = (Vec::new(), Vec::new(), Vec::new());
            for (key, value) in &blocks {
                let Some(entries) = readable_entries(user, value) else { continue };
                let count = entries.len();
                let is_needed = |seq: Seq| seq > released && !gaps.hides(seq);
                let now_expired =
                    entries.iter().filter(|(entry, expires_s)| is_needed(entry.seq) && is_expired(*expires_s, now_s));
                expired.extend(now_expired.map(|(entry, _)| entry.seq));
                let live: Vec<_> = entries
                    .iter()
                    .filter(|(entry, expires_s)| is_needed(entry.seq) && !is_expired(*expires_s, now_s))
                    .map(|(entry, expires_s)| (entry.seq, *expires_s, &entry.payload.as_bytes()[..]))
                    .collect();
                for (seq, at_s, payload) in &live {
                    without_entry.retain(|keyed| keyed != seq);
                    usage.add(payload.len() as u64);
                    expires_s = earlier(expires_s, *at_s);
                }
                if !remove {
                    continue;
                }
                if live.is_empty() {
                    removed.push(key);
                } else if live.len() < count {
                    let block =
                        Block::V1 { namespace: self.shared.namespace, user: user.as_str(), entries: live }.encode();
                    replaced.push((key.clone(), block));
                }
            }
            if !replaced.is_empty() {
                // Before the removals, because this may fail and be retried.
                self.shared.engine.replace(Table::Log, &replaced)?;
            }
            removed.into_iter().try_for_each(|key| self.shared.engine.remove(Table::Log, key))?;
            if remove && !expired.is_empty() {
                self.with_log(user, |log| expired.retain(|seq| !log.cursors.is_acknowledged(*seq)))?;
                self.shared.record_expired(user, &expired);
            }
        }
        self.with_log(user, |log| {
            log.block_usage = usage;
            log.counted = released;
            log.blocks_expire_s = expires_s;
            log.scanned_s = Some(now_s);
            log.remove_collapse_entries(&without_entry);
        })
    }
}

/// Decodes the entries of a block, each with its expiry. Logs an unreadable block, and returns `None`.
fn readable_entries(user: &UserId, block: &Bytes) -> Option<Vec<(Entry, u32)>> {
    block_entries(block)
        .inspect_err(|error| {
            tracing::error!(user = %excerpt(user), %error, "a block of this user's log cannot be read and is left as it is; save the rest with `mesa inspect --salvage`");
        })
        .ok()
}
