//! Reports that are not written to Redis yet: acknowledgements, holds and devices of each user on this server.
//!
//! Reports are idempotent. Holds and devices are versioned snapshots: an older report that arrives later changes
//! nothing. Acknowledgements only grow.
//!
//! A Redis that took over may have lost reports. So acknowledgements of attached sessions stay in memory, and are
//! reported again when a log has entered another epoch.

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

/// Unwritten acknowledged ranges of one user. One more drops the oldest, whose messages are then delivered again.
const RANGES_MAX: usize = 256;

/// Unwritten detached devices of one user. One more drops the first, which then counts as last seen at its last report.
const DETACHED_MAX: usize = 64;

/// Users with unwritten changes while Redis is unreachable. Beyond that, users who disconnect without acknowledgements
/// are dropped. Their device then counts as attached for the lifetime of this server.
const DIRTY_USERS_MAX: usize = 100_000;

/// Name of a log in its epoch (see `membership`). Another name means that reports may have been lost.
pub(super) type LogName = Box<str>;

/// A log as sessions of this server know it.
#[derive(Clone, Debug, Default)]
pub(super) struct KnownLog {
    /// Its name. Empty without sessions.
    pub log_name: LogName,
    /// Highest sequence that they have seen.
    pub top: Seq,
    /// Last change that Redis has confirmed.
    pub flushed: u64,
}

/// Device of a cursor. Empty for the cursor that clients without a device share.
type DeviceName = String;

/// Sessions of one user on this server, and changes that Redis has not confirmed.
#[derive(Debug, Default)]
struct UserSessions {
    /// Number of the last change.
    changes: u64,
    /// Last change that Redis has confirmed.
    flushed: u64,
    hold: Option<Seq>,
    /// Attached devices, each with its number of sessions.
    attached: HashMap<DeviceName, u32>,
    /// Acknowledgements of the attached devices' cursors.
    acknowledged: HashMap<DeviceName, AckSet>,
    /// Name of the log that sessions know.
    log_name: LogName,
    /// Highest sequence that they have seen.
    top: Seq,
    seen_ms: u64,
    /// Detached devices: number of the change, device, and uptime at that time.
    detached: Vec<(u64, DeviceName, Duration)>,
    /// Acknowledged ranges, each with the number of its change.
    acknowledged_ranges: Vec<(u64, DeviceName, Seq, Seq)>,
}

/// A report on one user, as a script applies it.
#[derive(Clone, Debug)]
pub(super) struct Report {
    pub changes: u64,
    /// Last change that Redis has confirmed.
    pub flushed: u64,
    pub log_name: LogName,
    pub top: Seq,
    pub hold: Option<Seq>,
    pub attached: Vec<DeviceName>,
    pub seen_ms: u64,
    /// Detached devices, each with the time since.
    pub detached: Vec<(DeviceName, Duration)>,
    pub acknowledged: Vec<(DeviceName, Seq, Seq)>,
}

/// Users with unwritten changes or with sessions.
#[derive(Debug, Default)]
pub(super) struct UnflushedReports {
    state: Mutex<ReportTable>,
    /// Counts changes of all users. So the numbers of a user who is removed and added again still rise.
    changes: AtomicU64,
}

#[derive(Debug, Default)]
struct ReportTable {
    users: HashMap<UserId, UserSessions, foldhash::fast::RandomState>,
    /// Users with unwritten changes.
    dirty: HashSet<UserId, foldhash::fast::RandomState>,
}

impl ReportTable {
    /// Returns a user's sessions to change, and marks them as dirty.
    fn change(&mut self, user: &UserId) -> &mut UserSessions {
        if !self.dirty.contains(user) {
            self.dirty.insert(user.clone());
        }
        self.users.entry(user.clone()).or_default()
    }

    /// Removes a user without sessions and unwritten changes.
    fn remove_if_idle(&mut self, user: &UserId) {
        let Some(sessions) = self.users.get(user) else { return };
        if sessions.flushed >= sessions.changes {
            self.dirty.remove(user);
        }
        if sessions.is_idle() {
            self.users.remove(user);
        }
    }
}

fn name(device: Option<&DeviceId>) -> DeviceName {
    device.map(|device| device.as_str().to_owned()).unwrap_or_default()
}

impl UnflushedReports {
    fn next(&self) -> u64 {
        self.changes.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Records a report of a session. Returns true if that is a change.
    pub(super) fn record(&self, user: &UserId, report: SessionReport) -> bool {
        let mut all = self.state.lock();
        let sessions = all.change(user);
        let before = sessions.changes;
        if let Some((from, to)) = report.acknowledged.filter(|(from, to)| from <= to) {
            sessions.changes = self.next();
            let name = name(report.device.as_ref());
            if let Some(acknowledged) = sessions.acknowledged.get_mut(&name) {
                acknowledged.insert(from, to);
            }
            sessions.acknowledge(name, from, to);
        }
        if let Some(seen) = report.seen {
            sessions.changes = self.next();
            sessions.seen_ms = millis(seen);
        }
        if sessions.hold != report.hold {
            sessions.changes = self.next();
            sessions.hold = report.hold;
        }
        let changed = sessions.changes > before;
        all.remove_if_idle(user);
        changed
    }

    /// Records an attached session. Returns the report that the step writes.
    pub(super) fn attach(&self, user: &UserId, device: Option<&DeviceId>, now: Duration) -> Report {
        let mut all = self.state.lock();
        let sessions = all.change(user);
        sessions.changes = self.next();
        *sessions.attached.entry(name(device)).or_default() += 1;
        sessions.report(now)
    }

    /// Records a detached session.
    pub(super) fn detach(&self, user: &UserId, device: Option<&DeviceId>, now: Duration) {
        let mut all = self.state.lock();
        let is_full = all.dirty.len() > DIRTY_USERS_MAX;
        let (sessions, name) = (all.change(user), name(device));
        sessions.changes = self.next();
        if let Some(count) = sessions.attached.get_mut(&name) {
            *count -= 1;
            if *count == 0 {
                sessions.attached.remove(&name);
                sessions.acknowledged.remove(&name);
            }
        }
        let changes = sessions.changes;
        sessions.detached.retain(|(_, device, _)| *device != name);
        if sessions.detached.len() >= DETACHED_MAX {
            sessions.detached.remove(0);
        }
        sessions.detached.push((changes, name, now));
        if is_full && sessions.attached.is_empty() && sessions.acknowledged_ranges.is_empty() {
            all.users.remove(user);
            all.dirty.remove(user);
        }
    }

    /// Marks all users with sessions to be reported again, because Redis may have lost their reports.
    pub(super) fn mark_all_dirty(&self) {
        let ReportTable { users, dirty } = &mut *self.state.lock();
        for (user, sessions) in
            users.iter_mut().filter(|(_, sessions)| sessions.hold.is_some() || !sessions.attached.is_empty())
        {
            sessions.changes = self.next();
            dirty.insert(user.clone());
        }
    }

    /// Records the log of an attached session, and what its cursor has acknowledged.
    pub(super) fn set_acknowledged(
        &self,
        user: &UserId,
        device: Option<&DeviceId>,
        attached: &Attached,
        log_name: LogName,
    ) {
        self.set_log(user, log_name, attached.head);
        let mut all = self.state.lock();
        let Some(sessions) = all.users.get_mut(user) else { return };
        let name = name(device);
        if sessions.attached.contains_key(&name) {
            let acknowledged = sessions.acknowledged.entry(name).or_default();
            ranges(&attached.acknowledged).for_each(|(from, to)| _ = acknowledged.insert(from, to));
        }
    }

    /// Records the name of a user's log, and that it was read up to `top`. Returns true if the name has changed. Then
    /// acknowledgements are reported again. An empty name, of a log that does not exist, is no change.
    pub(super) fn set_log(&self, user: &UserId, log_name: LogName, top: Seq) -> bool {
        let ReportTable { users, dirty } = &mut *self.state.lock();
        let Some(sessions) = users.get_mut(user) else { return false };
        sessions.top = sessions.top.max(top);
        if log_name.is_empty()
            || sessions.log_name == log_name
            || std::mem::replace(&mut sessions.log_name, log_name).is_empty()
        {
            return false;
        }
        sessions.changes = self.next();
        dirty.insert(user.clone());
        for (name, acknowledged) in std::mem::take(&mut sessions.acknowledged) {
            ranges(&acknowledged).for_each(|(from, to)| sessions.acknowledge(name.clone(), from, to));
            sessions.acknowledged.insert(name, acknowledged);
        }
        true
    }

    /// Returns the log of a user as sessions of this server know it.
    pub(super) fn known_log(&self, user: &UserId) -> KnownLog {
        let all = self.state.lock();
        let known = all.users.get(user).map(|sessions| KnownLog {
            log_name: sessions.log_name.clone(),
            top: sessions.top,
            flushed: sessions.flushed,
        });
        known.unwrap_or_default()
    }

    /// Returns the report on a user with sessions on this server, even if nothing has changed.
    pub(super) fn complete_report(&self, user: &UserId, now: Duration) -> Option<Report> {
        self.state.lock().users.get(user).map(|sessions| sessions.report(now))
    }

    /// Returns the report on a user with unwritten changes.
    pub(super) fn report(&self, user: &UserId, now: Duration) -> Option<Report> {
        let all = self.state.lock();
        all.users.get(user).filter(|sessions| sessions.flushed < sessions.changes).map(|sessions| sessions.report(now))
    }

    /// Returns the reports on all users with unwritten changes.
    pub(super) fn reports(&self, now: Duration) -> Vec<(UserId, Report)> {
        let all = self.state.lock();
        let dirty = all.dirty.iter().filter_map(|user| Some((user, all.users.get(user)?)));
        dirty.map(|(user, sessions)| (user.clone(), sessions.report(now))).collect()
    }

    /// Records that Redis has stored `report`.
    pub(super) fn mark_flushed(&self, user: &UserId, report: &Report) {
        let mut all = self.state.lock();
        let Some(sessions) = all.users.get_mut(user) else { return };
        sessions.flushed = sessions.flushed.max(report.changes);
        sessions.detached.retain(|(change, ..)| *change > report.changes);
        sessions.acknowledged_ranges.retain(|(change, ..)| *change > report.changes);
        all.remove_if_idle(user);
    }
}

impl UserSessions {
    fn acknowledge(&mut self, name: DeviceName, from: Seq, to: Seq) {
        let changes = self.changes;
        if let Some((change, _, low, high)) =
            self.acknowledged_ranges.iter_mut().rev().find(|(_, device, ..)| *device == name)
            && from <= high.saturating_add(1)
            && *low <= to.saturating_add(1)
        {
            // A range that grows is a new change: an earlier report had less of it.
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
            detached: self.detached.iter().map(|(_, name, at)| (name.clone(), now.saturating_sub(*at))).collect(),
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
