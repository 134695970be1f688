//! Background expiry of entries, devices and idempotency ids. It runs in small steps between commits.

use std::{collections::VecDeque, time::Instant};

use super::state::{Committer, ExpiryScan};
use crate::{
    embedded::{
        tables::{
            contract::{EngineError, Table},
            schema::{Row, StoredLog},
        },
        user_log::is_expired,
    },
    message::UserId,
};

/// Rows checked each time: a million users take about an hour.
const ROWS: usize = 256;

impl ExpiryScan {
    pub(in crate::embedded) fn new(id_chunks: VecDeque<(Vec<u8>, u64)>) -> Self {
        Self { next: Vec::new(), swept: Instant::now(), id_chunks }
    }

    /// Ids were stored.
    pub(in crate::embedded) fn remember(&mut self, key: Vec<u8>, youngest_ms: u64) {
        self.id_chunks.push_back((key, youngest_ms));
    }
}

impl Committer {
    /// Checks a few rows, if it is time.
    pub(in crate::embedded) fn expire(&mut self) -> Result<(), EngineError> {
        if self.expiry.swept.elapsed() < self.tuning.expiry_interval {
            return Ok(());
        }
        self.expiry.swept = Instant::now();
        self.forget_ids()?;
        let (mut users, mut alone, mut next) = (Vec::new(), Vec::new(), Vec::new());
        let mut seen = 0;
        self.shared.engine.scan(Table::Users, &self.expiry.next, &mut |key, value| {
            seen += 1;
            if seen > ROWS {
                next = key.to_vec();
                return false;
            }
            let user = std::str::from_utf8(key).ok().and_then(|id| UserId::new(id).ok());
            // A row that cannot be read is told to whoever asks for that user.
            if let (Some(user), Ok(row)) = (user, Row::decode(&value)) {
                let stored = row.into_stored();
                if self.is_due(&stored) {
                    users.push(user);
                } else if self.is_only_device(&stored) {
                    alone.push(user);
                }
            }
            true
        })?;
        self.expiry.next = next;
        let attached = |user: &UserId| self.shared.logs.with_loaded(user, |log| log.cursors.any_attached());
        users.extend(alone.into_iter().filter(|user| attached(user).unwrap_or(false)));
        users.iter().try_for_each(|user| self.tidy(user))
    }

    /// Returns the time before which an offline device is forgotten.
    fn away_before_ms(&self) -> u64 {
        let Some(age) = self.limits.device_age else { return 0 };
        self.shared.clock.now_ms().saturating_sub(u64::try_from(age.as_millis()).unwrap_or(u64::MAX))
    }

    /// Of a device that is here, and was last written down before this, it is written down that it is. One that stays
    /// for very long would otherwise count as away for very long when a kill parts them, and be forgotten at once.
    fn see_before_ms(&self) -> u64 {
        if self.limits.device_age.is_none() {
            return 0;
        }
        u64::midpoint(self.away_before_ms(), self.shared.clock.now_ms())
    }

    fn is_due(&self, stored: &StoredLog) -> bool {
        let before = self.see_before_ms();
        let mut cursors = stored.shared.iter().chain(stored.devices.iter().map(|(_, cursor)| cursor));
        is_expired(stored.expires_s, self.shared.clock.now_s())
            || stored.devices.len() + usize::from(stored.shared.is_some()) > 1
                && cursors.any(|cursor| cursor.seen_ms < before)
    }

    /// Whether a user's only cursor is a device that was last written down long ago. It is not forgotten, so there is
    /// something to do only while it is here.
    fn is_only_device(&self, stored: &StoredLog) -> bool {
        let only = stored.devices.first().filter(|_| stored.devices.len() == 1 && stored.shared.is_none());
        only.is_some_and(|(_, cursor)| cursor.seen_ms < self.see_before_ms())
    }

    /// Takes out of one user's log what is not needed any more. The row may be older than what is in memory, so this
    /// asks again.
    fn tidy(&mut self, user: &UserId) -> Result<(), EngineError> {
        let (away, see, now_ms) = (self.away_before_ms(), self.see_before_ms(), self.shared.clock.now_ms());
        self.with_log(user, |log| {
            let forgotten = log.cursors.any_away(away) && log.cursors.forget_away(away);
            let changed = log.cursors.see_attached(see, now_ms) || forgotten;
            let trim = forgotten && log.release();
            log.trimming |= trim;
            let note = changed && !log.dirty;
            log.dirty |= changed;
            self.shared.announce(user, note, trim);
        })?;
        // What takes the place of entries is not to be forgotten when they are gone.
        self.sync_if_unsynced()?;
        if self.purge_if_due(user)? {
            // Or the next sweep would find the same.
            self.put_row(user)?;
        }
        Ok(())
    }

    fn forget_ids(&mut self) -> Result<(), EngineError> {
        let now_ms = self.shared.clock.now_ms();
        self.dedup.forget(now_ms);
        while let Some((key, youngest_ms)) = self.expiry.id_chunks.front() {
            if self.dedup.is_young(*youngest_ms, now_ms) {
                break;
            }
            self.shared.engine.remove(Table::Ids, key)?;
            self.expiry.id_chunks.pop_front();
        }
        Ok(())
    }
}
