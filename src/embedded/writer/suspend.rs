//! Behaviour of the commit thread when the disk is full or the system has no descriptors left.
//!
//! - *Work in the background* (settling, trimming, the outbox, compaction, sweeps) begins only where there is space for it. It is
//!   suspended where it fails for want of space, and tried again every 100 ms.
//! - *Receipts and presence* are written as long as the journal has space set aside. Then they stay in memory, one note for
//!   each user at most, and a crash repeats those messages.
//! - *A commit* that was begun and met a full disk all the same is written when there is space. Those who wait for it are
//!   answered that its outcome is not known. Nothing else is committed before it.

use std::time::{Duration, Instant};

use super::{
    queue::Batch,
    state::{Commit, Committer, DiskState, Suspended},
};
use crate::{
    embedded::tables::{
        contract::{Cause, Copying, EngineError, Table, TableSpace},
        meta::{CLOCK_KEY, CLOSED, OPEN_KEY},
    },
    message::UserId,
    store::StoreError,
};

/// Interval of retries of suspended work.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// How long a measurement of the disk is reused.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);

/// Free bytes of the disk that background work leaves alone.
const MARGIN_BYTES: u64 = 4 << 20;

/// With less than this to spare of the disk what is dead is given back eagerly: four files of inboxes, of which one is copied at
/// a time.
const EAGER_BYTES: u64 = 32 << 20;

/// Bytes of one user's receipts and presence at most: so many devices, each with as many ranges as it may have.
const NOTE_BYTES_MAX: u64 = 20 << 10;

impl Committer {
    /// Returns whether work waits for space or descriptors.
    pub(super) fn is_suspended(&self) -> bool {
        let Suspended { why, stuck, dirty, trim, .. } = &self.suspended;
        why.is_some() || stuck.is_some() || !dirty.is_empty() || !trim.is_empty()
    }

    /// Returns why dispatches are rejected, if the disk is full.
    pub(super) fn why_suspended(&self) -> Option<String> {
        let why = self.suspended.why.as_ref().filter(|why| why.cause == Cause::NoSpace)?;
        Some(format!("{why}. What waits is delivered; dispatches are taken again when there is space on the disk"))
    }

    /// For how long the thread may wait for something to do, where something waits for space.
    pub(super) fn retry_delay(&self) -> Option<Duration> {
        self.is_suspended().then_some(RETRY_INTERVAL)
    }

    /// Suspends background work that failed.
    ///
    /// # Errors
    /// With the same, if it cannot be repeated.
    pub(in crate::embedded) fn suspend(&mut self, error: EngineError) -> Result<(), EngineError> {
        if !error.is_transient() {
            return Err(error);
        }
        if self.suspended.why.is_none() {
            tracing::warn!(%error, "background work of the store is suspended, and retried every 100 ms");
        }
        self.suspended.why = Some(error);
        self.suspended.retry = Some(Instant::now() + RETRY_INTERVAL);
        // The sooner it is reported, and dispatches are refused.
        self.refresh_capacity();
        Ok(())
    }

    /// Ends the suspension after successful work.
    fn resume(&mut self) {
        if self.suspended.stuck.is_none() && self.suspended.why.take().is_some() {
            tracing::info!("background work of the store resumes");
            self.refresh_capacity();
        }
    }

    fn may_retry(&self) -> bool {
        self.suspended.retry.is_none_or(|retry| retry <= Instant::now())
    }

    fn look(&mut self) -> DiskState {
        let now = Instant::now();
        if let Some(look) = self.suspended.looked.filter(|look| now - look.at < LOOK_INTERVAL) {
            return look;
        }
        let engine = &self.shared.engine;
        // Where it cannot be asked, the tables get nothing, and the bounds of the disk are not known.
        let tables = engine.table_space().unwrap_or(TableSpace::None);
        let look = DiskState { at: now, tables, free: engine.disk_free().unwrap_or(None) };
        self.suspended.looked = Some(look);
        look
    }

    /// Bytes that are free on the disk, but for those that others took in the last 5 ms.
    pub(in crate::embedded) fn disk_free(&mut self) -> Option<u64> {
        self.look().free
    }

    /// What was found of the disk is found anew.
    pub(in crate::embedded) fn forget_disk_state(&mut self) {
        self.suspended.looked = None;
    }

    /// Bytes that work in the background may take: without what is to stay free, and what is set aside for messages.
    pub(in crate::embedded) fn spare_space(&mut self) -> u64 {
        let Some(free) = self.disk_free() else { return u64::MAX };
        let least = self.limits.free_bytes.max(MARGIN_BYTES);
        free.saturating_sub(least).saturating_sub(self.shared.logs.reserved())
    }

    /// How much may be put into the tables.
    pub(in crate::embedded) fn table_space(&mut self) -> TableSpace {
        self.look().tables
    }

    /// Whether there is space for what is written in the background besides.
    ///
    /// # Errors
    /// When there is none.
    pub(super) fn check_margin(&mut self) -> Result<(), EngineError> {
        match self.look().free {
            Some(free) if free < MARGIN_BYTES => {
                Err(EngineError::no_space(format!("the disk is full: it has {free} bytes left")))
            }
            _ => Ok(()),
        }
    }

    /// Returns whether background work may begin now.
    fn may_work(&mut self) -> Result<bool, EngineError> {
        if self.suspended.why.is_some() && !self.may_retry() {
            return Ok(false);
        }
        if self.table_space() < TableSpace::Enough {
            self.suspend(EngineError::no_space("the disk is full: it has no space for the tables"))?;
            return Ok(false);
        }
        Ok(true)
    }

    /// Settles, gives back room and sweeps, as far as there is space for that.
    pub(in crate::embedded) fn work(&mut self) -> Result<(), EngineError> {
        if self.flush_is_due() {
            if self.may_work()? {
                let settled = self.flush_step();
                // What was set aside for these entries is on the disk now.
                self.suspended.looked = None;
                match settled {
                    Ok(()) => self.resume(),
                    Err(error) => self.suspend(error)?,
                }
            }
        } else if self.suspended.why.is_some() && self.may_retry() && self.may_work()? {
            match self.check_margin() {
                Ok(()) => self.resume(),
                Err(error) => self.suspend(error)?,
            }
        }
        self.has_garbage = false;
        if self.table_space() >= TableSpace::Little {
            let copying = match self.suspended.why.is_none() && self.check_margin().is_ok() {
                true if self.spare_space() < EAGER_BYTES => Copying::Eager,
                true => Copying::Usual,
                false => Copying::No,
            };
            match self.shared.engine.collect_garbage(copying) {
                Ok(more) => {
                    self.has_garbage = more;
                    // What was put into the tables counts before the next step.
                    self.suspended.looked = self.suspended.looked.filter(|_| !more);
                }
                Err(error) => self.suspend(error)?,
            }
        }
        if self.suspended.why.is_none()
            && self.table_space() == TableSpace::Enough
            && let Err(error) = self.expire()
        {
            self.suspend(error)?;
        }
        Ok(())
    }

    /// Writes the commit that met a full disk, if there is one and it is due. True while there is one.
    fn retry_stuck(&mut self) -> Result<bool, EngineError> {
        if self.suspended.stuck.is_none() || !self.may_retry() {
            return Ok(self.suspended.stuck.is_some());
        }
        let Some(mut commit) = self.suspended.stuck.take() else { return Ok(false) };
        match self.write(&mut commit) {
            Ok(()) => self.finish(commit).map(|()| false),
            Err(error) => self.keep_stuck(commit, error).map(|()| true),
        }
    }

    /// Keeps a commit that met a full disk. Nothing of it is in the journal.
    ///
    /// # Errors
    /// With the same, if it cannot be repeated. Then those who waited are refused.
    pub(super) fn keep_stuck(&mut self, mut commit: Commit, error: EngineError) -> Result<(), EngineError> {
        let refusal = if error.is_transient() {
            let what = format!("{error}; whether this was done is not known, it is done when there is space");
            StoreError::Unreachable(what.into())
        } else {
            StoreError::Failed(error.what.clone())
        };
        commit.reject(&refusal);
        if error.is_transient() {
            self.suspended.stuck = Some(commit);
        }
        self.suspend(error)
    }

    /// Whether ops may be committed; what was left adds itself to what was taken. Otherwise all of it is refused or waits.
    pub(super) fn may_commit(&mut self, taken: &mut Batch) -> Result<bool, EngineError> {
        if self.retry_stuck()? {
            let full = StoreError::Full(self.why_suspended().unwrap_or_default().into());
            taken.ops.drain(..).for_each(|op| op.reject(&full));
            self.suspended.dirty.append(&mut taken.dirty);
            return Ok(false);
        }
        if !self.suspended.dirty.is_empty() && self.may_retry() {
            taken.dirty.append(&mut self.suspended.dirty);
        }
        Ok(!taken.ops.is_empty() || !taken.dirty.is_empty())
    }

    /// Whether one more user's receipts may be written into the commit.
    pub(super) fn may_note(&mut self, commit: &Commit) -> Result<bool, EngineError> {
        if self.table_space() < TableSpace::Little {
            self.suspend(EngineError::no_space("the disk is full: it has no space for the tables"))?;
            return Ok(false);
        }
        match self.shared.engine.reserve(self.next_record, commit.all_bytes() + NOTE_BYTES_MAX) {
            Ok(()) => Ok(true),
            Err(error) => self.suspend(error).map(|()| false),
        }
    }

    /// Keeps these users' acknowledgements in memory.
    pub(super) fn postpone_notes(&mut self, users: impl Iterator<Item = UserId>) {
        self.suspended.dirty.extend(users);
    }

    /// Trims the inboxes of these users, and of those that were left.
    pub(super) fn trim_all(&mut self, mut users: Vec<UserId>) -> Result<(), EngineError> {
        if self.may_retry() {
            users.append(&mut self.suspended.trim);
        }
        if users.is_empty() {
            return Ok(());
        }
        // What lets entries go is not to be forgotten when they are gone.
        let is_noted = self.suspended.dirty.is_empty() && self.suspended.stuck.is_none();
        if !is_noted || self.table_space() < TableSpace::Little {
            self.suspended.trim.append(&mut users);
            return Ok(());
        }
        self.sync_if_unsynced()?;
        for user in users {
            if let Err(error) = self.trim(&user) {
                self.with_log(&user, |log| log.trimming = true)?;
                self.suspended.trim.push(user);
                self.suspend(error)?;
            }
        }
        Ok(())
    }

    /// Takes out of these users' inboxes what a commit has replaced. Where that cannot be done now, a later commit or sweep does.
    pub(super) fn purge_all(&mut self, mut users: Vec<UserId>) -> Result<(), EngineError> {
        users.sort_unstable();
        users.dedup();
        if users.is_empty() || self.table_space() < TableSpace::Enough {
            return Ok(());
        }
        // What takes the place of entries is not to be forgotten when they are gone.
        self.sync_if_unsynced()?;
        for user in users {
            if let Err(error) = self.purge(&user) {
                self.suspend(error)?;
            }
        }
        Ok(())
    }

    /// Commits are all made: settles what is cheap to settle, and leaves word that nothing is amiss.
    pub(in crate::embedded) fn close(&mut self) -> Result<(), EngineError> {
        self.give_up()?;
        if self.table_space() < TableSpace::Little {
            tracing::warn!("the disk is full: the store is left as after a crash");
            return self.sync_if_unsynced();
        }
        self.write_outbox()?;
        self.discard_waiting_events()?;
        let engine = &self.shared.engine;
        engine.checkpoint()?;
        engine.put(Table::Meta, CLOCK_KEY, &self.shared.clock.now_ms().to_be_bytes())?;
        engine.put(Table::Meta, OPEN_KEY, CLOSED)?;
        engine.checkpoint()
    }

    /// Last attempt at close: what cannot be written is lost.
    fn give_up(&mut self) -> Result<(), EngineError> {
        self.suspended.retry = None;
        let mut taken = Batch::default();
        if self.may_commit(&mut taken)? {
            self.commit(taken)?;
        }
        let Suspended { stuck, dirty, .. } = std::mem::take(&mut self.suspended);
        if stuck.is_some() || !dirty.is_empty() {
            tracing::warn!(
                users = dirty.len(),
                commit = stuck.is_some(),
                "the disk is full: acknowledgements of these users were not written; their messages will be sent again"
            );
        }
        Ok(())
    }
}
