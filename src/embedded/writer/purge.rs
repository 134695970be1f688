//! Removes hidden, expired and released entries from the blocks of a log, in steps between commits.
//!
//! - A purge of *hidden* entries visits only the blocks that may contain them. It follows replaced messages.
//! - A purge of *all* blocks also removes expired entries, and counts the entries that stay.
//!
//! It reads only blocks of which a part must stay.

use std::time::{Duration, Instant};

use super::{
    count::{LIST_BLOCKS, ListedBlock, key_after, live_usage},
    jobs::{Purge, Scope},
    state::Committer,
};
use crate::{
    embedded::{
        tables::{
            contract::{EngineError, Table},
            schema::log_key,
        },
        user_log::{Usage, UserLog, earlier, is_expired, usage::CountRule},
        value_log::{
            block::{Block, BlockEntry},
            summary::BlockSummary,
        },
    },
    message::{Seq, UserId},
    store::gaps::Gap,
};

/// Interval of counts of a user's blocks to free quota, in seconds.
const COUNT_INTERVAL_S: u32 = 10;

/// Time limit of a step, and so the delay that purges add to a commit.
const STEP_TIMEOUT: Duration = Duration::from_millis(1);

/// Limit of blocks that one step reads and may write again. At its end, it syncs those that it has written.
const STEP_READS_MAX: usize = 16;

/// Limit of parts of logs that one step visits. Each has at most [`LIST_BLOCKS`] blocks.
const STEP_PARTS_MAX: usize = 4;

/// Number of expired entries at which a part of a log ends. Whether they are pending is checked one by one.
const PART_EXPIRED_MAX: usize = 4096;

/// Describes what a purge does to one block.
struct Outcome {
    /// Last sequence of the block before.
    last: Seq,
    /// Usage of the removed entries that were counted.
    removed: Usage,
    /// Usage of the counted entries that stay, and the expiry of the first of them.
    live: (Usage, u32),
    /// Expired entries that are removed.
    expired: Vec<Seq>,
    change: Change,
}

enum Change {
    Keep,
    Remove,
    Replace(Vec<u8>),
}

/// Decides which entries of a log are needed.
struct Need {
    released: Seq,
    counted_before: CountRule,
    counted_after: CountRule,
    now_s: u32,
}

impl Need {
    fn of(log: &mut UserLog, now_s: u32) -> Self {
        let rule = log.count_rule();
        Self { released: log.trimmable(), counted_after: rule.at(now_s), counted_before: rule, now_s }
    }

    /// Returns whether an entry stays.
    fn keeps(&self, seq: Seq, expires_s: u32) -> bool {
        seq > self.released && !self.counted_before.hides(seq) && !is_expired(expires_s, self.now_s)
    }

    fn is_expired(&self, seq: Seq, expires_s: u32) -> bool {
        seq > self.released && !self.counted_before.hides(seq) && is_expired(expires_s, self.now_s)
    }

    /// Returns what happens to a block, or `None` if it must be read.
    fn outcome(&self, block: &BlockSummary) -> Option<Outcome> {
        let outcome = |change, live, removed| Outcome { last: block.last, removed, live, expired: Vec::new(), change };
        let hides_any = self.counted_before.hides_any(block.first.max(self.released + 1), block.last);
        let has_expired = is_expired(block.first_expiry_s, self.now_s);
        // A trim removes a block of which everything is released.
        if block.last <= self.released || !hides_any && !has_expired {
            let live = self.counted_after.usage(block)?;
            let first_expiry_s = if block.last <= self.released { 0 } else { block.first_expiry_s };
            return Some(outcome(Change::Keep, (live, first_expiry_s), Usage::default()));
        }
        if self.counted_before.hides_all(block.first, block.last) {
            return Some(outcome(Change::Remove, Default::default(), Usage::default()));
        }
        let all_expired = is_expired(block.last_expiry_s, self.now_s) && block.is_dense();
        if all_expired && !hides_any && block.first > self.released {
            let removed = self.counted_before.usage(block)?;
            let expired = (block.first..=block.last).collect();
            return Some(Outcome { expired, ..outcome(Change::Remove, Default::default(), removed) });
        }
        None
    }

    /// Returns what happens to a block that was read.
    fn outcome_of(&self, entries: &[BlockEntry<'_>], block: &BlockSummary, owner: (u32, &str)) -> Outcome {
        let kept: Vec<_> = entries.iter().copied().filter(|(seq, at, _)| self.keeps(*seq, *at)).collect();
        let mut removed = Usage::default();
        for (seq, expires_s, payload) in entries {
            if !self.keeps(*seq, *expires_s) && self.counted_before.counts(*seq, *expires_s) {
                removed.add(payload.len() as u64);
            }
        }
        let expired = entries.iter().filter(|(seq, expires_s, _)| self.is_expired(*seq, *expires_s));
        let expired = expired.map(|(seq, ..)| *seq).collect();
        if block.last <= self.released || kept.len() == entries.len() {
            let live = live_usage(entries, &self.counted_after);
            return Outcome { last: block.last, removed: Usage::default(), live, expired, change: Change::Keep };
        }
        let live = live_usage(&kept, &self.counted_after);
        let change = if kept.is_empty() {
            Change::Remove
        } else {
            let (namespace, user) = owner;
            Change::Replace(Block::V1 { namespace, user, entries: kept }.encode())
        };
        Outcome { last: block.last, removed, live, expired, change }
    }
}

impl Committer {
    /// Queues a purge of the hidden entries of these users.
    pub(super) fn queue_hidden_purges(&mut self, users: Vec<UserId>) -> Result<(), EngineError> {
        for user in users {
            let gaps = self.with_log(&user, |log| {
                let is_due = log.gaps.is_nearly_full() && !log.purging_hidden;
                is_due.then(|| {
                    log.purging_hidden = true;
                    log.gaps.lowest()
                })
            })?;
            let purge = |gaps| Purge { user, scope: Scope::Hidden { gaps, after: 0 }, reported: 0 };
            self.purges.extend(gaps.map(purge));
        }
        Ok(())
    }

    /// Queues a purge of all blocks of these users.
    pub(super) fn queue_full_purges(&mut self, users: Vec<UserId>) -> Result<(), EngineError> {
        let now_s = self.shared.clock.now_s();
        for user in users {
            let is_new = self.with_log(&user, |log| {
                let is_new = !std::mem::replace(&mut log.purging_all, true);
                if is_new {
                    log.begin_recount();
                }
                is_new
            })?;
            if is_new {
                let scope = Scope::All { now_s, from: log_key(user.as_str(), 0), expires_s: 0 };
                self.purges.push_back(Purge { user, scope, reported: 0 });
            }
        }
        Ok(())
    }

    /// Returns whether a count of a user's blocks may free quota.
    ///
    /// It may if entries have expired, or if the usage may be wrong.
    pub(super) fn purge_is_due(&self, user: &UserId) -> Result<bool, EngineError> {
        let now_s = self.shared.clock.now_s();
        self.drop_expired(user, now_s)?;
        self.with_log(user, |log| {
            let is_due = log.scanned_s.is_none_or(|scanned_s| now_s.saturating_sub(scanned_s) >= COUNT_INTERVAL_S);
            // Before the first count, the usage may be slightly too high because of a crash.
            let may_free = is_expired(log.blocks_expire_s, now_s) || log.scanned_s.is_none();
            // A commit that gave up leaves the count to a purge.
            log.has_blocks && may_free && is_due && !log.counting_by_purge
        })
    }

    /// Runs one step of the purges.
    ///
    /// Must not run during a commit: entries that the commit replaces are needed until it is written.
    pub(in crate::embedded) fn purge_step(&mut self) -> Result<(), EngineError> {
        if self.purges.is_empty() {
            return Ok(());
        }
        // A power cut must not keep the removal of entries and lose the records that caused it.
        self.sync_if_not_durable()?;
        let (until, mut reads) = (Instant::now() + STEP_TIMEOUT, STEP_READS_MAX);
        for _ in 0..STEP_PARTS_MAX {
            let Some(mut purge) = self.purges.pop_front() else { break };
            match self.purge_part(&mut purge, &mut reads) {
                Ok(true) => {}
                done => {
                    self.purges.push_back(purge);
                    done?;
                }
            }
            if reads == 0 || Instant::now() >= until {
                break;
            }
        }
        Ok(())
    }

    /// Purges the next part of a log. Returns true after the last part. After an error, a retry repeats the part.
    fn purge_part(&mut self, purge: &mut Purge, reads: &mut usize) -> Result<bool, EngineError> {
        let is_hidden = matches!(purge.scope, Scope::Hidden { .. });
        let is_queued =
            self.with_log(&purge.user, |log| if is_hidden { log.purging_hidden } else { log.purging_all })?;
        if !is_queued {
            // The log was removed meanwhile, and must get no row.
            return Ok(true);
        }
        let (now_s, blocks) = match &purge.scope {
            Scope::Hidden { gaps, after } => {
                (self.shared.clock.now_s(), self.hidden_blocks(&purge.user, gaps, *after)?)
            }
            Scope::All { now_s, from, .. } => (*now_s, self.list_blocks(&purge.user, from, LIST_BLOCKS)?),
        };
        let need = self.with_log(&purge.user, |log| Need::of(log, now_s))?;
        let (mut outcomes, mut through, mut expired, mut is_complete) = (Vec::new(), 0, 0, true);
        for ListedBlock { key, summary } in &blocks {
            let outcome = match summary {
                None => None,
                Some(block) => match need.outcome(block) {
                    Some(outcome) => Some(outcome),
                    None if *reads == 0 => {
                        is_complete = false;
                        break;
                    }
                    None => {
                        *reads -= 1;
                        let owner = (self.shared.namespace, purge.user.as_str());
                        self.read_block(&purge.user, key, |entries| need.outcome_of(entries, block, owner))?
                    }
                },
            };
            through = summary.map_or(through, |block| block.last);
            expired += outcome.as_ref().map_or(0, |outcome| outcome.expired.len());
            outcomes.push((key, outcome));
            if expired >= PART_EXPIRED_MAX {
                is_complete = false;
                break;
            }
        }
        self.apply_purge(purge, &outcomes)?;
        let is_last = match &mut purge.scope {
            Scope::Hidden { after, .. } => {
                *after = through.max(*after);
                blocks.is_empty()
            }
            Scope::All { from, expires_s, .. } => {
                let known = outcomes.iter().filter_map(|(_, outcome)| outcome.as_ref());
                *expires_s = known.fold(*expires_s, |first, outcome| earlier(first, outcome.live.1));
                if let Some((last, _)) = outcomes.last() {
                    *from = key_after(last);
                }
                is_complete && blocks.len() < LIST_BLOCKS
            }
        };
        if is_last {
            self.end_purge(purge)?;
        }
        Ok(is_last)
    }

    /// Lists the first block after `after` for each of the gaps that hide flushed entries, and those that follow in the
    /// same gap.
    fn hidden_blocks(&self, user: &UserId, gaps: &[Gap], after: Seq) -> Result<Vec<ListedBlock>, EngineError> {
        let (released, flushed) = self.with_log(user, |log| (log.trimmable(), log.flushed))?;
        let mut after = after.max(released);
        let mut blocks = Vec::new();
        for gap in gaps.iter().filter(|gap| gap.hides() && gap.from <= flushed) {
            let mut from = self.block_key(user, gap.from.max(after.saturating_add(1)))?;
            while gap.to > after {
                let max = STEP_READS_MAX - blocks.len();
                let listed = self.list_blocks(user, &from, max)?;
                let is_end = listed.len() < max;
                for block in listed {
                    from = key_after(&block.key);
                    let Some(summary) = block.summary else { continue };
                    let is_hit = summary.last > after && summary.first <= gap.to && summary.last >= gap.from;
                    if is_hit {
                        after = summary.last;
                        blocks.push(block);
                    } else if summary.first > gap.to {
                        after = after.max(gap.to);
                        break;
                    }
                }
                if blocks.len() == STEP_READS_MAX {
                    return Ok(blocks);
                }
                if is_end {
                    break;
                }
            }
        }
        Ok(blocks)
    }

    /// Applies the outcomes of a part.
    ///
    /// The events of expired entries are stored before the entries are removed, so that a crash repeats an event and
    /// loses none. Replaced blocks are synced before their rows are set.
    fn apply_purge(&mut self, purge: &mut Purge, outcomes: &[(&Vec<u8>, Option<Outcome>)]) -> Result<(), EngineError> {
        let known = || outcomes.iter().filter_map(|(key, outcome)| Some((*key, outcome.as_ref()?)));
        let expired: Vec<Seq> = known().flat_map(|(_, outcome)| outcome.expired.iter().copied()).collect();
        let reported = purge.reported;
        let new: Vec<Seq> = self.with_log(&purge.user, |log| {
            let is_new = |seq: &Seq| *seq > reported && !log.cursors.is_acknowledged(*seq);
            expired.iter().copied().filter(is_new).collect()
        })?;
        if let Some(last) = new.last() {
            self.shared.record_expired(&purge.user, &new);
            purge.reported = *last;
            self.write_outbox()?;
        }
        let replaced: Vec<_> = known()
            .filter_map(|(key, outcome)| match &outcome.change {
                Change::Replace(block) => Some((key.clone(), block.clone())),
                _ => None,
            })
            .collect();
        if !replaced.is_empty() {
            self.check_margin()?;
            // Before the removals, because this may fail and be retried.
            self.shared.engine.replace(Table::Log, &replaced)?;
        }
        let removed = known().filter(|(_, outcome)| matches!(outcome.change, Change::Remove));
        removed.into_iter().try_for_each(|(key, _)| self.shared.engine.remove(Table::Log, key))?;
        let is_full = matches!(purge.scope, Scope::All { .. });
        self.with_log(&purge.user, |log| {
            for (_, outcome) in known() {
                if !matches!(outcome.change, Change::Keep) {
                    log.remove_from_blocks(outcome.last, outcome.removed);
                }
                if is_full {
                    log.add_to_recount(outcome.last, outcome.live.0);
                }
            }
            log.remove_collapse_entries(&expired);
        })
    }

    /// Ends the purge of a log: no block has an entry that it would remove.
    fn end_purge(&mut self, purge: &Purge) -> Result<(), EngineError> {
        let user = &purge.user;
        match &purge.scope {
            Scope::Hidden { gaps, .. } => {
                self.with_log(user, |log| {
                    // A backup may have read entries that these gaps hide.
                    if !log.pins.any() {
                        log.gaps.forget(gaps);
                    }
                    log.purging_hidden = false;
                })?;
                self.put_row_if_flushed(user)
            }
            Scope::All { now_s, expires_s, .. } => {
                self.with_log(user, |log| {
                    log.end_recount(*now_s);
                    log.blocks_expire_s = *expires_s;
                    (log.purging_all, log.counting_by_purge) = (false, false);
                })?;
                // Without the new row, the expiry finds the same user again.
                self.put_reported_row(user).map(drop)
            }
        }
    }
}
