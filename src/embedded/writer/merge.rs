//! Merges small blocks of a log, so that a log that grows message by message is read in few reads.
//!
//! A flush looks for small blocks of a user each time the log has grown by [`INTERVAL`] sequences. It copies them into
//! one block before its barrier. After the barrier it sets the row of the copy, and removes the rows of the others.
//! Blocks are merged only into one that is at least twice as large as each of them. So their sizes form a geometric
//! series, and a message is written again about once for each doubling: at most six times until the block is full.
//!
//! # Why the order of writes is right
//! The copy has the key of the *last* block that it replaces. Its row is set first, and then the others are removed, the
//! last one first. A reader visits keys in ascending order, and skips entries up to the last one that it has seen. If it
//! misses a removed row, all rows between that one and the copy were removed before. So it sees none of them, and finds
//! their entries in the copy, which comes later.
//!
//! A crash leaves a prefix of these changes of rows. Before the row of the copy, its bytes are not used. After it, rows
//! of earlier blocks may be left over, whose entries the copy has too. The WAL still has records of the user then,
//! because they are removed after the checkpoint that follows. So recovery removes those rows (`remove_merged_blocks`).
//! Blocks of the current flush are not merged: without the user's row, recovery removes blocks above the flushed
//! sequence of the row.

use super::{count::ListedBlock, jobs::Merge, state::Committer};
use crate::{
    embedded::{
        tables::{
            contract::{EngineError, NewBlock, Table},
            schema::{is_log_key_of, log_key},
        },
        user_log::UserLog,
        value_log::{
            block::{BLOCK_BYTES_MAX, Block, BlockEntry, ENTRY_OVERHEAD_BYTES, bodies_of},
            summary::BlockSummary,
        },
    },
    message::{Seq, UserId},
};

/// Number of sequences by which a log grows before a flush looks for small blocks.
///
/// Fewer blocks are not worth a merge: it reads each of them, and removes their rows.
const INTERVAL: Seq = 16;

/// Limit of blocks that are merged into one.
const SOURCES_MAX: usize = 24;

/// Number of blocks read after which a step of the flush begins no further merge.
pub(super) const STEP_READS: usize = 8;

/// Limit of copies that wait for the same barrier, and are in memory as keys and summaries.
pub(super) const COPIES_MAX: usize = 1024;

/// Returns whether small blocks of a log may be merged, which grows from `flushed` to `last` flushed sequences.
pub(super) fn is_due(log: &UserLog, last: Seq) -> bool {
    log.has_blocks && !is_busy(log) && log.flushed / INTERVAL != last / INTERVAL
}

/// Returns whether work on the blocks is in progress that relies on the blocks as they are.
fn is_busy(log: &UserLog) -> bool {
    log.damaged || log.trimming || log.purging_hidden || log.purging_all
}

/// Returns how many of the last blocks are merged. `sizes` begins with the last block.
fn mergeable(sizes: impl Iterator<Item = usize>) -> usize {
    let (mut total, mut largest, mut count) = (0, 0, 0);
    for (at, size) in sizes.enumerate() {
        (total, largest) = (total + size, largest.max(size));
        if total > BLOCK_BYTES_MAX {
            break;
        }
        if at > 0 && 2 * largest <= total {
            count = at + 1;
        }
    }
    count
}

fn size_of(block: &BlockSummary) -> usize {
    block.bytes as usize + block.entries as usize * ENTRY_OVERHEAD_BYTES
}

impl Committer {
    /// Copies the last small blocks of a user into one, among those up to the sequence `flushed`.
    ///
    /// Returns `None` if they are not merged. Adds the blocks that it reads to `reads`.
    pub(super) fn copy_small_blocks(
        &mut self,
        user: &UserId,
        flushed: Seq,
        reads: &mut usize,
    ) -> Result<Option<Merge>, EngineError> {
        let mut sources = Vec::new();
        self.shared.engine.summaries_before(&log_key(user.as_str(), flushed), &mut |key, summary| {
            let small =
                summary.filter(|block| is_log_key_of(key, user.as_str()) && 2 * size_of(block) <= BLOCK_BYTES_MAX);
            sources.extend(small.map(|block| (key.to_vec(), block)));
            small.is_some() && sources.len() < SOURCES_MAX
        })?;
        sources.truncate(mergeable(sources.iter().map(|(_, block)| size_of(block))));
        sources.reverse();
        *reads += sources.len();
        let Some(block) = self.merged(user, &sources)? else { return Ok(None) };
        // The merge is left to a later flush if there is no space for the copy.
        let copied = self.check_margin().and_then(|()| self.shared.engine.write_copy(block));
        match copied {
            Ok(copy) => {
                self.blocks_not_durable.set(true);
                Ok(Some(Merge { user: user.clone(), sources, copy }))
            }
            Err(error) if error.is_transient() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Returns a block with the entries of all `sources`, or `None` if there are none or one cannot be read.
    fn merged(&self, user: &UserId, sources: &[(Vec<u8>, BlockSummary)]) -> Result<Option<NewBlock>, EngineError> {
        let Some((last_key, _)) = sources.last() else { return Ok(None) };
        let mut values = Vec::with_capacity(sources.len());
        for (key, _) in sources {
            let Some(value) = self.shared.engine.get(Table::Log, key)? else { return Ok(None) };
            values.push(value);
        }
        let (namespace, mut merged, mut last) = (self.shared.namespace, Vec::<BlockEntry<'_>>::new(), 0);
        for value in &values {
            // A read by a session reports a damaged block.
            let Ok(Block::V1 { namespace: of, user: owner, entries }) = Block::decode(value) else { return Ok(None) };
            if of != namespace || owner != user.as_str() {
                return Ok(None);
            }
            let new = entries.into_iter().skip_while(|(seq, ..)| *seq <= last);
            merged.extend(new);
            last = merged.last().map_or(0, |(seq, ..)| *seq);
        }
        let (summary, bodies) = (BlockSummary::of_entries(&merged), bodies_of(&merged));
        let value = Block::V1 { namespace, user: user.as_str(), entries: merged }.encode();
        Ok(summary.map(|_| NewBlock { key: last_key.clone(), value, summary, bodies }))
    }

    /// Replaces the copied blocks by the copy, which is durable, unless one of them was changed meanwhile.
    pub(super) fn apply_merge(&mut self, merge: Merge) -> Result<(), EngineError> {
        let Merge { user, sources, copy } = merge;
        let Some((_, others)) = sources.split_last() else { return Ok(()) };
        let blocks = self.list_blocks(&user, &sources[0].0, sources.len())?;
        // A trim or a purge may have removed entries meanwhile. An erasure has discarded the copy.
        let is_same = |(block, (key, summary)): (&ListedBlock, &(Vec<u8>, BlockSummary))| {
            block.key == *key && block.summary == Some(*summary)
        };
        let is_unchanged = blocks.len() == sources.len() && blocks.iter().zip(&sources).all(is_same);
        if !is_unchanged || self.with_log(&user, |log| is_busy(log))? {
            return self.shared.engine.discard_copy(copy, false);
        }
        self.shared.engine.set_copy(copy)?;
        // The last one first: a reader that misses one of them finds none between it and the copy.
        others.iter().rev().try_for_each(|(key, _)| self.shared.engine.remove(Table::Log, key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_blocks_are_merged_into_one_that_is_twice_as_large_as_each() {
        let of = |sizes: &[usize]| mergeable(sizes.iter().copied());
        assert_eq!((of(&[]), of(&[5]), of(&[5, 5]), of(&[5, 6])), (0, 0, 2, 0));
        assert_eq!(of(&[1; 16]), 16);
        assert_eq!((of(&[1, 1, 1, 3]), of(&[1, 1, 1, 4]), of(&[1, 1, 1, 4, 7])), (4, 3, 5));
        let half = BLOCK_BYTES_MAX / 2;
        assert_eq!((of(&[half, half]), of(&[half, half, 1]), of(&[half, half + 1])), (2, 2, 0));
    }
}
