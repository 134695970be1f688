//! Expires entries, devices and idempotency ids in the background, in steps between commits.

use std::{collections::VecDeque, time::Instant};

use super::state::{Committer, ExpiryScan};
use crate::{
    embedded::{
        tables::{
            contract::{EngineError, Table},
            schema::StoredLog,
        },
        user_log::is_expired,
    },
    message::UserId,
    util::millis::millis,
};

/// Limit of rows that one step checks. At one step per second, a million users take about an hour.
const STEP_ROWS_MAX: usize = 256;

impl ExpiryScan {
    pub(in crate::embedded) fn new(id_blocks: VecDeque<(Vec<u8>, u64)>) -> Self {
        Self { next: Vec::new(), last_run: Instant::now(), id_blocks }
    }

    /// Records the key of a stored block of ids.
    pub(in crate::embedded) fn push_ids(&mut self, key: Vec<u8>, youngest_ms: u64) {
        self.id_blocks.push_back((key, youngest_ms));
    }
}

impl Committer {
    /// Runs one expiry step, if it is due.
    pub(in crate::embedded) fn expire(&mut self) -> Result<(), EngineError> {
        if self.expiry.last_run.elapsed() < self.tuning.expiry_interval {
            return Ok(());
        }
        self.expiry.last_run = Instant::now();
        self.expire_ids()?;
        let (mut users, mut single_device, mut next) = (Vec::new(), Vec::new(), Vec::new());
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
                if self.is_due(&row) {
                    users.push(user);
                } else if self.is_single_device(&row) {
                    single_device.push(user);
                }
            }
            true
        })?;
        self.expiry.next = next;
        let is_attached = |user: &UserId| self.shared.logs.with_loaded(user, |log| log.cursors.any_attached());
        users.extend(single_device.into_iter().filter(|user| is_attached(user).unwrap_or(false)));
        users.iter().try_for_each(|user| self.expire_user(user))
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
        // A power cut must not keep the removal of blocks and lose the records that caused it.
        self.sync_if_not_durable()?;
        if self.purge_if_due(user)? {
            // Without the new row, the next step would find the same user.
            self.put_row(user)?;
        }
        Ok(())
    }

    /// Removes ids that are older than the window, and stored blocks in which all ids are.
    fn expire_ids(&mut self) -> Result<(), EngineError> {
        let now_ms = self.shared.clock.now_ms();
        self.dedup.expire(now_ms);
        while let Some((key, youngest_ms)) = self.expiry.id_blocks.front() {
            if self.dedup.is_within_window(*youngest_ms, now_ms) {
                break;
            }
            self.shared.engine.remove(Table::Ids, key)?;
            self.expiry.id_blocks.pop_front();
        }
        Ok(())
    }
}
