//! Removes blocks from the value log in which all entries are released, in steps between commits.
//!
//! A trim follows acknowledgements. It works by the summaries of the blocks, and reads at most the block in which the
//! released entries end.

use std::time::{Duration, Instant};

use super::{
    count::{LIST_BLOCKS, ReleasedBlocks},
    jobs::TrimJob,
    state::Committer,
};
use crate::{
    embedded::tables::{
        contract::{EngineError, Table, TableSpace},
        schema::log_key,
    },
    message::UserId,
};

/// Time limit of a step, and so the delay that trims add to a commit.
const STEP_TIMEOUT: Duration = Duration::from_millis(1);

/// Limit of parts of logs that one step trims. Each has at most [`LIST_BLOCKS`] blocks.
const STEP_PARTS_MAX: usize = 4;

/// Limit of users that one step trims. Each may have a row to write.
const STEP_USERS_MAX: usize = 64;

impl Committer {
    /// Queues these users, and runs one step of the trims.
    ///
    /// Acknowledgements in the WAL come first, then the removal of blocks, then the row. A crash in between leaves
    /// blocks that the next trim removes, and a row that counts removed entries until the next count.
    ///
    /// Must not run during a commit, which needs the released entries until it is written.
    pub(in crate::embedded) fn trim_step(&mut self, users: Vec<UserId>) -> Result<(), EngineError> {
        let job = |user: UserId| TrimJob { from: log_key(user.as_str(), 0), user, remain: false };
        // Otherwise the log was emptied meanwhile, because its user was erased.
        let is_trimming = |user: &UserId| self.shared.logs.with_loaded(user, |log| log.trimming) == Some(true);
        self.trims.jobs.extend(users.into_iter().filter(is_trimming).map(job));
        if self.trims.jobs.is_empty() || self.trims.blocked && !self.may_retry() {
            return Ok(());
        }
        // A power cut must not keep the removal of blocks and lose the records that caused it.
        self.trims.blocked = !self.is_written() || self.table_space() < TableSpace::Little;
        if self.trims.blocked {
            return Ok(());
        }
        self.sync_if_not_durable()?;
        let (until, mut parts) = (Instant::now() + STEP_TIMEOUT, STEP_PARTS_MAX * LIST_BLOCKS);
        for _ in 0..STEP_USERS_MAX {
            let Some(mut job) = self.trims.jobs.pop_front() else { break };
            match self.trim_part(&mut job, &mut parts) {
                Ok(true) => {}
                Ok(false) => self.trims.jobs.push_back(job),
                Err(error) => {
                    self.with_log(&job.user, |log| log.trimming = true)?;
                    self.trims.jobs.push_back(job);
                    self.trims.blocked = true;
                    return self.suspend(error);
                }
            }
            if parts < LIST_BLOCKS || Instant::now() >= until {
                break;
            }
        }
        Ok(())
    }

    /// Runs all trims that are queued. Call this before the store is closed.
    pub(super) fn finish_trims(&mut self) -> Result<(), EngineError> {
        self.trims.blocked = false;
        while self.trims.is_ready() {
            self.trim_step(Vec::new())?;
        }
        Ok(())
    }

    /// Trims the next part of a log. Returns true after the last part. Subtracts its blocks from `blocks_left`.
    fn trim_part(&self, job: &mut TrimJob, blocks_left: &mut usize) -> Result<bool, EngineError> {
        let user = &job.user;
        // A log that was removed meanwhile has no trim, and must get no row.
        let released = self.with_log(user, |log| log.trimming.then(|| log.trimmable()))?;
        let Some(released) = released else { return Ok(true) };
        let ReleasedBlocks { keys, next, remain } = self.count_released(user, &job.from, released)?;
        *blocks_left = blocks_left.saturating_sub(keys.len());
        keys.iter().try_for_each(|key| self.shared.engine.remove(Table::Log, key))?;
        job.remain |= remain;
        if let Some(next) = next {
            job.from = next;
            return Ok(false);
        }
        self.with_log(user, |log| {
            log.trimming = false;
            log.has_blocks &= job.remain;
            log.damaged &= job.remain;
            if !job.remain {
                // After a crash, the row may count blocks that were removed before it.
                log.reset_block_usage();
                log.blocks_expire_s = 0;
            }
            if log.released() > released {
                // Entries were released meanwhile.
                self.shared.release(user, log);
            }
        })?;
        self.put_row_if_flushed(user)?;
        Ok(true)
    }
}
