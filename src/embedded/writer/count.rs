//! Counts the entries of a log in the value log. Reads a block only if its summary does not suffice.

use super::{jobs::CountBudget, state::Committer};
use crate::{
    embedded::{
        tables::{
            contract::{EngineError, Table},
            schema::{is_log_key_of, log_key},
        },
        user_log::{Usage, earlier, usage::CountRule},
        value_log::{
            block::{Block, BlockEntry},
            summary::BlockSummary,
        },
    },
    logging::excerpt,
    message::{Seq, UserId},
    util::saturate::saturate,
};

/// Number of blocks that are listed at once.
pub(super) const LIST_BLOCKS: usize = 64;

/// A block of a user's log, as the table describes it.
pub(super) struct ListedBlock {
    pub key: Vec<u8>,
    /// `None`: the block is damaged.
    pub summary: Option<BlockSummary>,
}

/// States which blocks of a part of a log are released.
#[derive(Default)]
pub(super) struct ReleasedBlocks {
    /// Keys of blocks in which all entries are released.
    pub keys: Vec<Vec<u8>>,
    /// Key from which the next part begins. `None`: no later block has a released entry.
    pub next: Option<Vec<u8>>,
    /// There are blocks that must stay.
    pub remain: bool,
}

/// The first block of a log that has counted entries.
pub(super) struct FirstCounted {
    pub block: BlockSummary,
    /// Usage of its counted entries. `None`: the block must be read.
    pub usage: Option<Usage>,
    pub key: Vec<u8>,
    pub rule: CountRule,
}

impl Committer {
    /// Lists a user's blocks from the key `from` on: at most `max`.
    pub(super) fn list_blocks(&self, user: &UserId, from: &[u8], max: usize) -> Result<Vec<ListedBlock>, EngineError> {
        let mut blocks = Vec::new();
        self.shared.engine.summaries(from, &mut |key, summary| {
            let is_own = is_log_key_of(key, user.as_str());
            if is_own {
                blocks.push(ListedBlock { key: key.to_vec(), summary });
            }
            is_own && blocks.len() < max
        })?;
        for block in blocks.iter_mut().filter(|block| block.summary.is_none()) {
            let read = |entries: &[BlockEntry<'_>]| BlockSummary::of_entries(entries);
            block.summary = self.read_block(user, &block.key, read)?.flatten();
        }
        Ok(blocks)
    }

    /// Returns the key of the block that may contain an entry, or the key where such a block would be.
    pub(super) fn block_key(&self, user: &UserId, seq: Seq) -> Result<Vec<u8>, EngineError> {
        let wanted = log_key(user.as_str(), seq);
        let before = self.shared.engine.last_key_at_or_before(Table::Log, &wanted)?;
        Ok(before.filter(|key| is_log_key_of(key, user.as_str())).map_or(wanted, |key| key.to_vec()))
    }

    /// Reads a block, and runs `work` on its entries. Logs an unreadable block, and returns `None`.
    pub(super) fn read_block<T>(
        &self,
        user: &UserId,
        key: &[u8],
        work: impl FnOnce(&[BlockEntry<'_>]) -> T,
    ) -> Result<Option<T>, EngineError> {
        let Some(block) = self.shared.engine.get(Table::Log, key)? else { return Ok(None) };
        match Block::decode(&block) {
            Ok(Block::V1 { entries, .. }) => Ok(Some(work(&entries))),
            Err(error) => {
                tracing::error!(user = %excerpt(user), %error, "a block of this user's log cannot be read and is left as it is; save the rest with `mesa inspect --salvage`");
                Ok(None)
            }
        }
    }

    /// Returns the counted entries of a block: sequence and bytes. Returns `None` if the block is damaged.
    pub(super) fn counted_entries(
        &self,
        user: &UserId,
        key: &[u8],
        rule: &CountRule,
    ) -> Result<Option<Vec<(Seq, u32)>>, EngineError> {
        self.read_block(user, key, |entries| {
            let counted = entries.iter().filter(|(seq, expires_s, _)| rule.counts(*seq, *expires_s));
            // A payload has at most 64 KiB.
            counted.map(|(seq, _, payload)| (*seq, saturate(payload.len()))).collect()
        })
    }

    /// Subtracts released entries from the usage, in at most [`LIST_BLOCKS`] blocks from the key `from` on.
    ///
    /// Reads a block only if some of its entries are hidden, or not released. A later acknowledgement in the same block
    /// does not read it again.
    pub(super) fn count_released(
        &self,
        user: &UserId,
        from: &[u8],
        released: Seq,
    ) -> Result<ReleasedBlocks, EngineError> {
        let (flushed, rule) = self.with_log(user, |log| (log.flushed, log.count_rule()))?;
        let is_all = released >= flushed;
        let blocks = self.list_blocks(user, from, LIST_BLOCKS)?;
        let mut result = ReleasedBlocks::default();
        if let Some(last) = blocks.last().filter(|_| blocks.len() == LIST_BLOCKS) {
            result.next = Some(key_after(&last.key));
        }
        for ListedBlock { key, summary } in blocks {
            if is_all {
                result.keys.push(key);
                continue;
            }
            let Some(block) = summary else {
                result.remain = true;
                continue;
            };
            if block.last > released {
                if block.first <= released {
                    self.count_in_block(user, &key, &rule, released)?;
                }
                (result.remain, result.next) = (true, None);
                break;
            }
            let usage = match rule.usage(&block) {
                Some(usage) => usage,
                // A damaged block is removed like any other that is released. Its entries stay counted until the next
                // count of all blocks.
                None => self.counted_entries(user, &key, &rule)?.map(|entries| usage_of(&entries)).unwrap_or_default(),
            };
            self.with_log(user, |log| {
                log.subtract_from_blocks(block.last, usage);
                log.counted = log.counted.max(block.last);
            })?;
            result.keys.push(key);
        }
        self.with_log(user, |log| {
            if is_all && log.flushed == flushed {
                log.reset_block_usage();
                log.blocks_expire_s = 0;
            }
            if is_all || result.next.is_none() {
                log.counted = log.counted.max(released);
            }
        })?;
        Ok(result)
    }

    /// Subtracts the entries of one block up to `released` from the usage.
    fn count_in_block(&self, user: &UserId, key: &[u8], rule: &CountRule, released: Seq) -> Result<(), EngineError> {
        let is_known = self.with_log(user, |log| {
            let is_known = log.counted >= released || log.front_covers(released);
            while is_known && log.take_front(released).is_some() {}
            is_known
        })?;
        if is_known {
            return Ok(());
        }
        let entries = self.counted_entries(user, key, rule)?.unwrap_or_default();
        let (counting, rest) = entries.split_at(entries.partition_point(|(seq, _)| *seq <= released));
        self.with_log(user, |log| {
            log.subtract_from_blocks(released, usage_of(counting));
            log.counted = log.counted.max(released);
            log.set_front(rest);
        })
    }

    /// Counts all blocks of a user's log again, without removing any. Gives up at the budget of the commit.
    ///
    /// Returns whether an entry has expired, or the count was given up: then a purge must follow.
    pub(super) fn count_again(&self, user: &UserId, budget: &mut CountBudget) -> Result<bool, EngineError> {
        let now_s = self.shared.clock.now_s();
        let rule = self.with_log(user, |log| log.count_rule().at(now_s))?;
        let (mut usage, mut expires_s, mut has_expired) = (Usage::default(), 0, false);
        let mut from = self.block_key(user, rule.counted + 1)?;
        loop {
            let blocks = self.list_blocks(user, &from, LIST_BLOCKS)?;
            let Some(left) = budget.blocks.checked_sub(blocks.len()) else { return self.leave_count_to_purge(user) };
            budget.blocks = left;
            for ListedBlock { key, summary } in &blocks {
                let Some(block) = summary else { continue };
                let live = match rule.usage(block) {
                    Some(live) if live.entries == 0 => {
                        has_expired |= block.last > rule.counted;
                        continue;
                    }
                    Some(live) => (live, block.first_expiry_s),
                    None => {
                        let Some(left) = budget.reads.checked_sub(1) else { return self.leave_count_to_purge(user) };
                        budget.reads = left;
                        has_expired |= rule.has_expired(block);
                        let live = self.read_block(user, key, |entries| live_usage(entries, &rule))?;
                        live.unwrap_or_default()
                    }
                };
                usage.entries += live.0.entries;
                usage.bytes += live.0.bytes;
                expires_s = earlier(expires_s, live.1);
            }
            match blocks.last().filter(|_| blocks.len() == LIST_BLOCKS) {
                Some(last) => from = key_after(&last.key),
                None => break,
            }
        }
        self.with_log(user, |log| {
            log.set_block_usage(usage, now_s);
            log.blocks_expire_s = expires_s;
        })?;
        Ok(has_expired)
    }

    /// Gives up a count of all blocks. Returns true: a purge must follow.
    fn leave_count_to_purge(&self, user: &UserId) -> Result<bool, EngineError> {
        self.with_log(user, |log| log.counting_by_purge = true)?;
        Ok(true)
    }

    /// Returns the first block of a log that may have counted entries.
    pub(super) fn first_counted(&self, user: &UserId) -> Result<Option<FirstCounted>, EngineError> {
        let rule = self.with_log(user, |log| log.count_rule())?;
        let mut from = self.block_key(user, rule.counted + 1)?;
        loop {
            // The first or the second block is the one, unless all entries of several are hidden or have expired.
            let blocks = self.list_blocks(user, &from, 2)?;
            let Some(last) = blocks.last() else { return Ok(None) };
            from = key_after(&last.key);
            for ListedBlock { key, summary } in blocks {
                // A damaged block cannot be evicted. A read reports it.
                let Some(block) = summary else { continue };
                let usage = rule.usage(&block);
                if usage.is_none_or(|usage| usage.entries > 0) {
                    return Ok(Some(FirstCounted { block, usage, key, rule }));
                }
            }
        }
    }
}

/// Returns the lowest key above `key`.
pub(super) fn key_after(key: &[u8]) -> Vec<u8> {
    [key, &[0]].concat()
}

fn usage_of(entries: &[(Seq, u32)]) -> Usage {
    let mut usage = Usage::default();
    entries.iter().for_each(|(_, bytes)| usage.add(u64::from(*bytes)));
    usage
}

/// Returns the usage of the counted entries, and the expiry of the first of them that expires.
pub(super) fn live_usage(entries: &[BlockEntry<'_>], rule: &CountRule) -> (Usage, u32) {
    let (mut usage, mut first_expiry_s) = (Usage::default(), 0);
    for (_, expires_s, payload) in entries.iter().filter(|(seq, expires_s, _)| rule.counts(*seq, *expires_s)) {
        usage.add(payload.len() as u64);
        first_expiry_s = earlier(first_expiry_s, *expires_s);
    }
    (usage, first_expiry_s)
}
