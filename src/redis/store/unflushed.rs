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
    store::{Attached, Note, Received, clock::millis},
};

/// Acknowledged ranges of one user that may wait. With one more the oldest is dropped, which repeats those messages.
const RANGES_MAX: usize = 256;

/// Devices of one user that left and wait to be reported. With one more the first counts as last seen at its last report.
const LEFT_MAX: usize = 64;

/// Users that may wait while Redis is unreachable. Beyond that, users who disconnect without acknowledgements are dropped;
/// their device then counts as attached for the lifetime of this server.
const UNSAID_MAX: usize = 100_000;

/// Name of a log in its epoch. Another name means that reports may have been lost.
pub(super) type Era = Box<str>;

/// How sessions of this server know a log.
#[derive(Clone, Debug, Default)]
pub(super) struct Known {
    /// Its name; empty without sessions.
    pub era: Era,
    /// Highest sequence that they have seen.
    pub top: Seq,
    /// Last change that Redis has confirmed.
    pub said: u64,
}

/// Device of a cursor; empty for the one that clients without a device share.
type Name = String;

#[derive(Debug, Default)]
struct Local {
    /// Number of the last change.
    changes: u64,
    /// Last change that Redis has confirmed.
    said: u64,
    hold: Option<Seq>,
    here: HashMap<Name, u32>,
    /// Acknowledgements of those cursors.
    had: HashMap<Name, Received>,
    /// Name of the log that sessions know.
    era: Era,
    /// Highest sequence that they have seen.
    top: Seq,
    seen_ms: u64,
    /// Devices that left: number of the change, device, and uptime at that time.
    left: Vec<(u64, Name, Duration)>,
    /// Acknowledged ranges, each with the number of its change.
    received: Vec<(u64, Name, Seq, Seq)>,
}

/// A report of one user.
#[derive(Clone, Debug)]
pub(super) struct Report {
    pub changes: u64,
    /// Last change that Redis has confirmed.
    pub said: u64,
    pub era: Era,
    pub top: Seq,
    pub hold: Option<Seq>,
    pub here: Vec<Name>,
    pub seen_ms: u64,
    /// Devices that left, each with how long ago.
    pub left: Vec<(Name, Duration)>,
    pub received: Vec<(Name, Seq, Seq)>,
}

/// Users with unwritten changes or with sessions.
#[derive(Debug, Default)]
pub(super) struct UnflushedReports {
    all: Mutex<All>,
    /// Counts changes of all users: a user who leaves memory and comes back does not start again.
    changes: AtomicU64,
}

#[derive(Debug, Default)]
struct All {
    users: HashMap<UserId, Local, foldhash::fast::RandomState>,
    /// Users with unwritten changes.
    dirty: HashSet<UserId, foldhash::fast::RandomState>,
}

impl All {
    /// Returns a user's entry to change, and marks it as dirty.
    fn changing(&mut self, user: &UserId) -> &mut Local {
        if !self.dirty.contains(user) {
            self.dirty.insert(user.clone());
        }
        self.users.entry(user.clone()).or_default()
    }

    /// Removes what is no longer needed about a user.
    fn settle(&mut self, user: &UserId) {
        let Some(local) = self.users.get(user) else { return };
        if local.said >= local.changes {
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
    pub(super) fn note(&self, user: &UserId, note: Note) -> bool {
        let mut all = self.all.lock();
        let local = all.changing(user);
        let before = local.changes;
        if let Some((from, to)) = note.received.filter(|(from, to)| from <= to) {
            local.changes = self.next();
            let name = name(note.device.as_ref());
            if let Some(had) = local.had.get_mut(&name) {
                had.insert(from, to);
            }
            local.receive(name, from, to);
        }
        if let Some(seen) = note.seen {
            local.changes = self.next();
            local.seen_ms = millis(seen);
        }
        if local.hold != note.hold {
            local.changes = self.next();
            local.hold = note.hold;
        }
        let changed = local.changes > before;
        all.settle(user);
        changed
    }

    /// Records an attached session. Returns the report that goes with it.
    pub(super) fn attach(&self, user: &UserId, device: Option<&DeviceId>, now: Duration) -> Report {
        let mut all = self.all.lock();
        let local = all.changing(user);
        local.changes = self.next();
        *local.here.entry(name(device)).or_default() += 1;
        local.report(now)
    }

    pub(super) fn detach(&self, user: &UserId, device: Option<&DeviceId>, now: Duration) {
        let mut all = self.all.lock();
        let crowded = all.dirty.len() > UNSAID_MAX;
        let (local, name) = (all.changing(user), name(device));
        local.changes = self.next();
        if let Some(count) = local.here.get_mut(&name) {
            *count -= 1;
            if *count == 0 {
                local.here.remove(&name);
                local.had.remove(&name);
            }
        }
        let changes = local.changes;
        local.left.retain(|(_, left, _)| *left != name);
        if local.left.len() >= LEFT_MAX {
            local.left.remove(0);
        }
        local.left.push((changes, name, now));
        if crowded && local.here.is_empty() && local.received.is_empty() {
            all.users.remove(user);
            all.dirty.remove(user);
        }
    }

    /// Marks all users with sessions to be reported again, because Redis may have lost their reports.
    pub(super) fn say_again(&self) {
        let All { users, dirty } = &mut *self.all.lock();
        for (user, local) in users.iter_mut().filter(|(_, local)| local.hold.is_some() || !local.here.is_empty()) {
            local.changes = self.next();
            dirty.insert(user.clone());
        }
    }

    /// Records what the cursor of an attached session has acknowledged.
    pub(super) fn attached(&self, user: &UserId, device: Option<&DeviceId>, attached: &Attached, era: Era) {
        self.entered(user, era, attached.head);
        let mut all = self.all.lock();
        let Some(local) = all.users.get_mut(user) else { return };
        let name = name(device);
        if local.here.contains_key(&name) {
            let had = local.had.entry(name).or_default();
            ranges(&attached.received).for_each(|(from, to)| _ = had.insert(from, to));
        }
    }

    /// Records the name of a user's log, and that it was read up to `top`. Returns true if the name has changed: then
    /// acknowledgements are reported again. A log that does not exist has no name and is no change.
    pub(super) fn entered(&self, user: &UserId, era: Era, top: Seq) -> bool {
        let All { users, dirty } = &mut *self.all.lock();
        let Some(local) = users.get_mut(user) else { return false };
        local.top = local.top.max(top);
        if era.is_empty() || local.era == era || std::mem::replace(&mut local.era, era).is_empty() {
            return false;
        }
        local.changes = self.next();
        dirty.insert(user.clone());
        for (name, had) in std::mem::take(&mut local.had) {
            ranges(&had).for_each(|(from, to)| local.receive(name.clone(), from, to));
            local.had.insert(name, had);
        }
        true
    }

    /// Returns how sessions of this server know the log of a user.
    pub(super) fn known(&self, user: &UserId) -> Known {
        let all = self.all.lock();
        let known = all.users.get(user).map(|local| Known { era: local.era.clone(), top: local.top, said: local.said });
        known.unwrap_or_default()
    }

    /// Returns a complete report of a user with sessions here, including what was reported before.
    pub(super) fn whole(&self, user: &UserId, now: Duration) -> Option<Report> {
        self.all.lock().users.get(user).map(|local| local.report(now))
    }

    /// Returns the report of a user, if there is anything to report.
    pub(super) fn report(&self, user: &UserId, now: Duration) -> Option<Report> {
        let all = self.all.lock();
        all.users.get(user).filter(|local| local.said < local.changes).map(|local| local.report(now))
    }

    /// Returns the reports of all users.
    pub(super) fn reports(&self, now: Duration) -> Vec<(UserId, Report)> {
        let all = self.all.lock();
        let dirty = all.dirty.iter().filter_map(|user| Some((user, all.users.get(user)?)));
        dirty.map(|(user, local)| (user.clone(), local.report(now))).collect()
    }

    /// Records that Redis has stored `report`.
    pub(super) fn said(&self, user: &UserId, report: &Report) {
        let mut all = self.all.lock();
        let Some(local) = all.users.get_mut(user) else { return };
        local.said = local.said.max(report.changes);
        local.left.retain(|(change, ..)| *change > report.changes);
        local.received.retain(|(change, ..)| *change > report.changes);
        all.settle(user);
    }
}

impl Local {
    fn receive(&mut self, name: Name, from: Seq, to: Seq) {
        let changes = self.changes;
        if let Some((change, _, low, high)) = self.received.iter_mut().rev().find(|(_, whose, ..)| *whose == name)
            && from <= high.saturating_add(1)
            && *low <= to.saturating_add(1)
        {
            // A range that grows counts as a new change: less of it was reported before.
            (*change, *low, *high) = (changes, from.min(*low), to.max(*high));
            return;
        }
        if self.received.len() >= RANGES_MAX {
            self.received.remove(0);
        }
        self.received.push((changes, name, from, to));
    }

    fn is_idle(&self) -> bool {
        self.said >= self.changes && self.hold.is_none() && self.here.is_empty()
    }

    fn report(&self, now: Duration) -> Report {
        Report {
            changes: self.changes,
            said: self.said,
            era: self.era.clone(),
            top: self.top,
            hold: self.hold,
            here: self.here.keys().cloned().collect(),
            seen_ms: self.seen_ms,
            left: self.left.iter().map(|(_, name, at)| (name.clone(), now.saturating_sub(*at))).collect(),
            received: self.received.iter().map(|(_, name, from, to)| (name.clone(), *from, *to)).collect(),
        }
    }
}

fn ranges(received: &Received) -> impl Iterator<Item = (Seq, Seq)> {
    std::iter::once((1, received.through())).filter(|(_, to)| *to > 0).chain(received.islands().iter().copied())
}

/// Converts milliseconds since the Unix epoch; 0 is `None`.
pub(super) fn time(ms: u64) -> Option<SystemTime> {
    (ms > 0).then(|| SystemTime::UNIX_EPOCH + Duration::from_millis(ms))
}
