//! Expires entries, devices and idempotency ids, and evicts idle logs from memory, in steps between commits.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use super::state::{Committer, ExpiryScan};
use crate::{
    embedded::{
        tables::{
            contract::{EngineError, Table},
            schema::{StoredLog, is_log_key_of, log_key},
        },
        user_log::{cache::SHARDS, is_expired},
    },
    message::{Seq, UserId},
    util::millis::millis,
};

/// Limit of rows that one step checks. At one step per second, a million users take about an hour.
const STEP_ROWS_MAX: usize = 256;

/// Time limit of a step over users that have expired entries or devices, and of one over idle logs.
const STEP_TIMEOUT: Duration = Duration::from_millis(1);

/// Limit of stored blocks of ids that one step removes.
const STEP_ID_BLOCKS_MAX: usize = 64;

impl ExpiryScan {
    pub(in crate::embedded) fn new(id_blocks: VecDeque<(Vec<u8>, u64)>) -> Self {
        Self {
            next: Vec::new(),
            last_run: Instant::now(),
            due: Vec::new(),
            id_blocks,
            has_old_ids: false,
            has_expired_ids: false,
        }
    }

    /// Returns whether another step is due at once.
    pub(super) fn has_steps(&self) -> bool {
        self.has_old_ids || self.has_expired_ids || !self.due.is_empty()
    }

    /// Records the key of a stored block of ids.
    pub(in crate::embedded) fn push_ids(&mut self, key: Vec<u8>, youngest_ms: u64) {
        self.id_blocks.push_back((key, youngest_ms));
    }
}

impl Committer {
    /// Runs one expiry step, if it is due.
    pub(in crate::embedded) fn expire(&mut self) -> Result<(), EngineError> {
        self.expire_ids()?;
        if self.expiry.has_expired_ids {
            self.expiry.has_expired_ids = self.dedup.expire(self.shared.clock.now_ms());
        }
        let until = Instant::now() + STEP_TIMEOUT;
        while let Some(user) = self.expiry.due.pop() {
            self.expire_user(&user)?;
            if Instant::now() >= until {
                return Ok(());
            }
        }
        if self.expiry.last_run.elapsed() < self.tuning.expiry_interval {
            return Ok(());
        }
        self.expiry.last_run = Instant::now();
        self.expiry.has_expired_ids = self.dedup.expire(self.shared.clock.now_ms());
        let (mut single_device, mut flushed, mut next) = (Vec::new(), Vec::new(), Vec::new());
        let mut due = Vec::new();
        let mut rows = 0;
        self.shared.engine.scan(Table::Users, &self.expiry.next, &mut |key, value| {
            rows += 1;
            if rows > STEP_ROWS_MAX {
                next = key.to_vec();
                return false;
            }
            let user = std::str::from_utf8(key).ok().and_then(|id| UserId::new(id).ok());
            // An unreadable row is reported when its user is read.
            if let (Some(user), Ok(row)) = (user, StoredLog::decode(&value)) {
                if row.flushed > 0 && row.through() > 0 {
                    flushed.push((user.clone(), row.through()));
                }
                if self.is_due(&row) {
                    due.push(user);
                } else if self.is_single_device(&row) {
                    single_device.push(user);
                }
            }
            true
        })?;
        self.expiry.next = next;
        let is_attached = |user: &UserId| self.shared.logs.with_loaded(user, |log| log.cursors.any_attached());
        due.extend(single_device.into_iter().filter(|user| is_attached(user).unwrap_or(false)));
        self.expiry.due = due;
        flushed.iter().try_for_each(|(user, through)| self.trim_if_interrupted(user, *through))
    }

    /// Queues a trim if the first block of a user is released: a crash came before its removal.
    fn trim_if_interrupted(&self, user: &UserId, through: Seq) -> Result<(), EngineError> {
        let mut first = None;
        self.shared.engine.summaries(&log_key(user.as_str(), 0), &mut |key, summary| {
            first = summary.filter(|_| is_log_key_of(key, user.as_str()));
            false
        })?;
        let Some(first) = first.filter(|block| block.last <= through) else { return Ok(()) };
        self.with_log(user, |log| {
            // A session may hold the block.
            if first.last <= log.released() {
                self.shared.release(user, log);
            }
        })
    }

    /// Returns the time before which an offline device counts as inactive, and is removed.
    fn inactive_before_ms(&self) -> u64 {
        let Some(age) = self.limits.device_age else { return 0 };
        self.shared.clock.now_ms().saturating_sub(millis(age))
    }

    /// Returns the time before which the stored time of an attached device is refreshed.
    ///
    /// Otherwise a device that was attached for longer than the limit would be removed after a crash.
    fn refresh_before_ms(&self) -> u64 {
        if self.limits.device_age.is_none() {
            return 0;
        }
        u64::midpoint(self.inactive_before_ms(), self.shared.clock.now_ms())
    }

    /// Returns whether a row has expired entries, or several cursors of which one is old.
    fn is_due(&self, stored: &StoredLog) -> bool {
        let before = self.refresh_before_ms();
        is_expired(stored.expires_s, self.shared.clock.now_s())
            || stored.cursors().nth(1).is_some() && stored.cursors().any(|cursor| cursor.seen_ms < before)
    }

    /// Returns whether the user's only cursor is a device whose stored time is old.
    ///
    /// Such a device is never removed. Its time needs a refresh only if it is attached.
    fn is_single_device(&self, stored: &StoredLog) -> bool {
        let only = stored.devices.first().filter(|_| stored.devices.len() == 1 && stored.shared.is_none());
        only.is_some_and(|(_, cursor)| cursor.seen_ms < self.refresh_before_ms())
    }

    /// Expires entries and devices of one user. The log in memory may be newer than the row, so it is checked again.
    fn expire_user(&mut self, user: &UserId) -> Result<(), EngineError> {
        let (inactive_ms, refresh_ms, now_ms) =
            (self.inactive_before_ms(), self.refresh_before_ms(), self.shared.clock.now_ms());
        self.with_log(user, |log| {
            let removed = log.cursors.any_inactive(inactive_ms) && log.cursors.remove_inactive(inactive_ms);
            if log.cursors.refresh_attached(refresh_ms, now_ms) || removed {
                self.shared.mark_dirty(user, log);
            }
            if removed {
                self.shared.release(user, log);
            }
        })?;
        if self.purge_is_due(user)? {
            self.queue_full_purges(vec![user.clone()])?;
        }
        Ok(())
    }

    /// Removes some stored blocks in which all ids are older than the window.
    fn expire_ids(&mut self) -> Result<(), EngineError> {
        let now_ms = self.shared.clock.now_ms();
        self.expiry.has_old_ids = false;
        for _ in 0..STEP_ID_BLOCKS_MAX {
            let Some((key, youngest_ms)) = self.expiry.id_blocks.front() else { return Ok(()) };
            if self.dedup.is_within_window(*youngest_ms, now_ms) {
                return Ok(());
            }
            self.shared.engine.remove(Table::Ids, key)?;
            self.expiry.id_blocks.pop_front();
        }
        self.expiry.has_old_ids = true;
        Ok(())
    }

    /// Evicts idle logs from memory: each part of the cache twice within the idle time.
    pub(super) fn evict_step(&mut self) {
        let (interval, until) = (self.eviction_interval(), Instant::now() + STEP_TIMEOUT);
        let first = self.records.front().map_or(self.next_record, |record| record.number);
        for _ in 0..SHARDS {
            if self.eviction.last.elapsed() < interval || Instant::now() >= until {
                return;
            }
            self.shared.logs.evict(self.eviction.next, first, self.tuning.idle_seconds);
            self.eviction.next = (self.eviction.next + 1) % SHARDS;
            self.eviction.last += interval;
        }
        // All parts are done. After a pause, the intervals in between are not repeated.
        self.eviction.last = Instant::now();
    }

    /// Returns the time between two parts of the log cache from which idle logs are evicted.
    fn eviction_interval(&self) -> Duration {
        Duration::from_secs(u64::from(self.tuning.idle_seconds)) / (2 * SHARDS as u32)
    }
}
