//! Reports that are not written to Redis yet: acknowledgements, holds and devices of each user on this server.
//!
//! Reports are idempotent. Holds and devices are versioned snapshots, so that an older report that arrives later changes
//! nothing. Acknowledgements only grow.
//!
//! A Redis that took over may have lost reports. So acknowledgements of attached sessions are remembered, and reported again
//! when a log turns out to be in another epoch.

use std::{
    collections::{HashMap, HashSet},
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, SystemTime},
};

use parking_lot::Mutex;

use crate::{
    message::{DeviceId, Seq, UserId},
    store::{AckSet, Attached, SessionReport, clock::millis},
};

/// Acknowledged ranges of one user that may wait. With one more the oldest is dropped, which repeats those messages.
const RANGES_MAX: usize = 256;

/// Devices of one user that left and wait to be reported. With one more the first counts as last seen at its last report.
const LEFT_MAX: usize = 64;

/// Users that may wait while Redis is unreachable. Beyond that, users who disconnect without acknowledgements are dropped;
/// their device then counts as attached for the lifetime of this server.
const DIRTY_USERS_MAX: usize = 100_000;

/// Name of a log in its epoch. Another name means that reports may have been lost.
pub(super) type LogName = Box<str>;

/// How sessions of this server know a log.
#[derive(Clone, Debug, Default)]
pub(super) struct Known {
    /// Its name; empty without sessions.
    pub log_name: LogName,
    /// Highest sequence that they have seen.
    pub top: Seq,
    /// Last change that Redis has confirmed.
    pub flushed: u64,
}

/// Device of a cursor; empty for the one that clients without a device share.
type Name = String;

#[derive(Debug, Default)]
struct UserReport {
    /// Number of the last change.
    changes: u64,
    /// Last change that Redis has confirmed.
    flushed: u64,
    hold: Option<Seq>,
    attached: HashMap<Name, u32>,
    /// Acknowledgements of those cursors.
    acknowledged: HashMap<Name, AckSet>,
    /// Name of the log that sessions know.
    log_name: LogName,
    /// Highest sequence that they have seen.
    top: Seq,
    seen_ms: u64,
    /// Devices that left: number of the change, device, and uptime at that time.
    left: Vec<(u64, Name, Duration)>,
    /// Acknowledged ranges, each with the number of its change.
    acknowledged_ranges: Vec<(u64, Name, Seq, Seq)>,
}

/// A report of one user.
#[derive(Clone, Debug)]
pub(super) struct Report {
    pub changes: u64,
    /// Last change that Redis has confirmed.
    pub flushed: u64,
    pub log_name: LogName,
    pub top: Seq,
    pub hold: Option<Seq>,
    pub attached: Vec<Name>,
    pub seen_ms: u64,
    /// Devices that left, each with how long ago.
    pub left: Vec<(Name, Duration)>,
    pub acknowledged: Vec<(Name, Seq, Seq)>,
}

/// Users with unwritten changes or with sessions.
#[derive(Debug, Default)]
pub(super) struct UnflushedReports {
    state: Mutex<ReportTable>,
    /// Counts changes of all users: a user who leaves memory and comes back does not start again.
    changes: AtomicU64,
}

#[derive(Debug, Default)]
struct ReportTable {
    users: HashMap<UserId, UserReport, foldhash::fast::RandomState>,
    /// Users with unwritten changes.
    dirty: HashSet<UserId, foldhash::fast::RandomState>,
}

impl ReportTable {
    /// Returns a user's entry to change, and marks it as dirty.
    fn changing(&mut self, user: &UserId) -> &mut UserReport {
        if !self.dirty.contains(user) {
            self.dirty.insert(user.clone());
        }
        self.users.entry(user.clone()).or_default()
    }

    /// Removes what is no longer needed about a user.
    fn remove_if_idle(&mut self, user: &UserId) {
        let Some(local) = self.users.get(user) else { return };
        if local.flushed >= local.changes {
            self.dirty.remove(user);
        }
        if local.is_idle() {
            self.users.remove(user);
        }
    }
}

fn name(device: Option<&DeviceId>) -> Name {
    device.map(|device| device.as_str().to_owned()).unwrap_or_default()
}

impl UnflushedReports {
    fn next(&self) -> u64 {
        self.changes.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Records a report of a session. Returns true if there is something to write.
    pub(super) fn record(&self, user: &UserId, report: SessionReport) -> bool {
        let mut all = self.state.lock();
        let local = all.changing(user);
        let before = local.changes;
        if let Some((from, to)) = report.acknowledged.filter(|(from, to)| from <= to) {
            local.changes = self.next();
            let name = name(report.device.as_ref());
            if let Some(acknowledged) = local.acknowledged.get_mut(&name) {
                acknowledged.insert(from, to);
            }
            local.acknowledge(name, from, to);
        }
        if let Some(seen) = report.seen {
            local.changes = self.next();
            local.seen_ms = millis(seen);
        }
        if local.hold != report.hold {
            local.changes = self.next();
            local.hold = report.hold;
        }
        let changed = local.changes > before;
        all.remove_if_idle(user);
        changed
    }

    /// Records an attached session. Returns the report that goes with it.
    pub(super) fn attach(&self, user: &UserId, device: Option<&DeviceId>, now: Duration) -> Report {
        let mut all = self.state.lock();
        let local = all.changing(user);
        local.changes = self.next();
        *local.attached.entry(name(device)).or_default() += 1;
        local.report(now)
    }

    pub(super) fn detach(&self, user: &UserId, device: Option<&DeviceId>, now: Duration) {
        let mut all = self.state.lock();
        let is_full = all.dirty.len() > DIRTY_USERS_MAX;
        let (local, name) = (all.changing(user), name(device));
        local.changes = self.next();
        if let Some(count) = local.attached.get_mut(&name) {
            *count -= 1;
            if *count == 0 {
                local.attached.remove(&name);
                local.acknowledged.remove(&name);
            }
        }
        let changes = local.changes;
        local.left.retain(|(_, left, _)| *left != name);
        if local.left.len() >= LEFT_MAX {
            local.left.remove(0);
        }
        local.left.push((changes, name, now));
        if is_full && local.attached.is_empty() && local.acknowledged_ranges.is_empty() {
            all.users.remove(user);
            all.dirty.remove(user);
        }
    }

    /// Marks all users with sessions to be reported again, because Redis may have lost their reports.
    pub(super) fn mark_all_dirty(&self) {
        let ReportTable { users, dirty } = &mut *self.state.lock();
        for (user, local) in users.iter_mut().filter(|(_, local)| local.hold.is_some() || !local.attached.is_empty()) {
            local.changes = self.next();
            dirty.insert(user.clone());
        }
    }

    /// Records what the cursor of an attached session has acknowledged.
    pub(super) fn set_acknowledged(
        &self,
        user: &UserId,
        device: Option<&DeviceId>,
        attached: &Attached,
        log_name: LogName,
    ) {
        self.set_log(user, log_name, attached.head);
        let mut all = self.state.lock();
        let Some(local) = all.users.get_mut(user) else { return };
        let name = name(device);
        if local.attached.contains_key(&name) {
            let acknowledged = local.acknowledged.entry(name).or_default();
            ranges(&attached.acknowledged).for_each(|(from, to)| _ = acknowledged.insert(from, to));
        }
    }

    /// Records the name of a user's log, and that it was read up to `top`. Returns true if the name has changed: then
    /// acknowledgements are reported again. A log that does not exist has no name and is no change.
    pub(super) fn set_log(&self, user: &UserId, log_name: LogName, top: Seq) -> bool {
        let ReportTable { users, dirty } = &mut *self.state.lock();
        let Some(local) = users.get_mut(user) else { return false };
        local.top = local.top.max(top);
        if log_name.is_empty()
            || local.log_name == log_name
            || std::mem::replace(&mut local.log_name, log_name).is_empty()
        {
            return false;
        }
        local.changes = self.next();
        dirty.insert(user.clone());
        for (name, acknowledged) in std::mem::take(&mut local.acknowledged) {
            ranges(&acknowledged).for_each(|(from, to)| local.acknowledge(name.clone(), from, to));
            local.acknowledged.insert(name, acknowledged);
        }
        true
    }

    /// Returns how sessions of this server know the log of a user.
    pub(super) fn known(&self, user: &UserId) -> Known {
        let all = self.state.lock();
        let known = all.users.get(user).map(|local| Known {
            log_name: local.log_name.clone(),
            top: local.top,
            flushed: local.flushed,
        });
        known.unwrap_or_default()
    }

    /// Returns a complete report of a user with sessions here, including what was reported before.
    pub(super) fn complete_report(&self, user: &UserId, now: Duration) -> Option<Report> {
        self.state.lock().users.get(user).map(|local| local.report(now))
    }

    /// Returns the report of a user, if there is anything to report.
    pub(super) fn report(&self, user: &UserId, now: Duration) -> Option<Report> {
        let all = self.state.lock();
        all.users.get(user).filter(|local| local.flushed < local.changes).map(|local| local.report(now))
    }

    /// Returns the reports of all users.
    pub(super) fn reports(&self, now: Duration) -> Vec<(UserId, Report)> {
        let all = self.state.lock();
        let dirty = all.dirty.iter().filter_map(|user| Some((user, all.users.get(user)?)));
        dirty.map(|(user, local)| (user.clone(), local.report(now))).collect()
    }

    /// Records that Redis has stored `report`.
    pub(super) fn mark_flushed(&self, user: &UserId, report: &Report) {
        let mut all = self.state.lock();
        let Some(local) = all.users.get_mut(user) else { return };
        local.flushed = local.flushed.max(report.changes);
        local.left.retain(|(change, ..)| *change > report.changes);
        local.acknowledged_ranges.retain(|(change, ..)| *change > report.changes);
        all.remove_if_idle(user);
    }
}

impl UserReport {
    fn acknowledge(&mut self, name: Name, from: Seq, to: Seq) {
        let changes = self.changes;
        if let Some((change, _, low, high)) =
            self.acknowledged_ranges.iter_mut().rev().find(|(_, whose, ..)| *whose == name)
            && from <= high.saturating_add(1)
            && *low <= to.saturating_add(1)
        {
            // A range that grows counts as a new change: less of it was reported before.
            (*change, *low, *high) = (changes, from.min(*low), to.max(*high));
            return;
        }
        if self.acknowledged_ranges.len() >= RANGES_MAX {
            self.acknowledged_ranges.remove(0);
        }
        self.acknowledged_ranges.push((changes, name, from, to));
    }

    fn is_idle(&self) -> bool {
        self.flushed >= self.changes && self.hold.is_none() && self.attached.is_empty()
    }

    fn report(&self, now: Duration) -> Report {
        Report {
            changes: self.changes,
            flushed: self.flushed,
            log_name: self.log_name.clone(),
            top: self.top,
            hold: self.hold,
            attached: self.attached.keys().cloned().collect(),
            seen_ms: self.seen_ms,
            left: self.left.iter().map(|(_, name, at)| (name.clone(), now.saturating_sub(*at))).collect(),
            acknowledged: self
                .acknowledged_ranges
                .iter()
                .map(|(_, name, from, to)| (name.clone(), *from, *to))
                .collect(),
        }
    }
}

fn ranges(acknowledged: &AckSet) -> impl Iterator<Item = (Seq, Seq)> {
    std::iter::once((1, acknowledged.through())).filter(|(_, to)| *to > 0).chain(acknowledged.ranges().iter().copied())
}

/// Converts milliseconds since the Unix epoch; 0 is `None`.
pub(super) fn time(ms: u64) -> Option<SystemTime> {
    (ms > 0).then(|| SystemTime::UNIX_EPOCH + Duration::from_millis(ms))
}
