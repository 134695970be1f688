//! What this server has still to say of each user: what was received, what its sessions hold, which devices are here.
//!
//! All of it may be said twice. What is held and who is here is said whole each time, with a count that rises, so that
//! what was said before and arrives later changes nothing; and what was received only grows.
//!
//! A Redis that has taken over from another may have forgotten what it was told. So what the sessions that are here have
//! received is remembered for as long as they are, and said once more when a log turns out to be in another era.

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

/// Ranges of one user that wait to be written down. One more and the oldest is forgotten, which repeats those messages.
const RANGES_MAX: usize = 256;

/// Devices of one user that have left without that being written down. For one more the first of them counts as having left
/// when it was last seen.
const LEFT_MAX: usize = 64;

/// Users of whom something waits to be written down, because Redis is away. Beyond that it is forgotten of those who go and have
/// received nothing; then their device is taken to be here for as long as this server is.
const UNSAID_MAX: usize = 100_000;

/// Of which time a log is: another one means that what was said of it may be forgotten.
pub(super) type Era = Box<str>;

/// How sessions of this server know a log.
#[derive(Clone, Debug, Default)]
pub(super) struct Known {
    /// Its name; '' where there are no sessions.
    pub era: Era,
    /// The highest sequence that they have seen.
    pub top: Seq,
    /// The last change that Redis has answered that it knows.
    pub said: u64,
}

/// Whose cursor: "" is the one that clients without a device share.
type Name = String;

#[derive(Debug, Default)]
struct Local {
    /// The last change.
    changes: u64,
    /// Up to this Redis knows.
    said: u64,
    hold: Option<Seq>,
    here: HashMap<Name, u32>,
    /// What the cursors of those have received.
    had: HashMap<Name, Received>,
    /// The epoch in which sessions here know the log.
    era: Era,
    /// The highest sequence that they have seen.
    top: Seq,
    seen_ms: u64,
    /// With the change, and when that was, since this server came.
    left: Vec<(u64, Name, Duration)>,
    /// With the change that brought it.
    received: Vec<(u64, Name, Seq, Seq)>,
}

/// What is to be written down of one user, as it stands.
#[derive(Clone, Debug)]
pub(super) struct Report {
    pub changes: u64,
    /// Up to here Redis has answered that it knows them.
    pub said: u64,
    pub era: Era,
    pub top: Seq,
    pub hold: Option<Seq>,
    pub here: Vec<Name>,
    pub seen_ms: u64,
    /// With how long ago that was.
    pub left: Vec<(Name, Duration)>,
    pub received: Vec<(Name, Seq, Seq)>,
}

/// All users of whom there is something to say, or who are here.
#[derive(Debug, Default)]
pub(super) struct UnflushedReports {
    all: Mutex<All>,
    /// Counts all changes of all users: a user who leaves memory and comes back is not counted from the beginning.
    changes: AtomicU64,
}

#[derive(Debug, Default)]
struct All {
    users: HashMap<UserId, Local, foldhash::fast::RandomState>,
    /// Of whom there is something to say.
    dirty: HashSet<UserId, foldhash::fast::RandomState>,
}

impl All {
    /// The one of this user, about to change.
    fn changing(&mut self, user: &UserId) -> &mut Local {
        if !self.dirty.contains(user) {
            self.dirty.insert(user.clone());
        }
        self.users.entry(user.clone()).or_default()
    }

    /// Forgets a user of whom nothing has to be known any more.
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

    /// Takes note; true if there is something to be written down.
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

    /// A session comes; what is to be said with that.
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

    /// Redis has forgotten who is here, or may have: of everybody who is it is to be said again.
    pub(super) fn say_again(&self) {
        let All { users, dirty } = &mut *self.all.lock();
        for (user, local) in users.iter_mut().filter(|(_, local)| local.hold.is_some() || !local.here.is_empty()) {
            local.changes = self.next();
            dirty.insert(user.clone());
        }
    }

    /// A session has come, and what its cursor has received is known.
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

    /// Notes the epoch of a user's log, and that it was read up to `top`. True if it was another before: then receipts are
    /// reported again. A log that is not there has no epoch, and is no other than before.
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

    /// How sessions here know the log of a user.
    pub(super) fn known(&self, user: &UserId) -> Known {
        let all = self.all.lock();
        let known = all.users.get(user).map(|local| Known { era: local.era.clone(), top: local.top, said: local.said });
        known.unwrap_or_default()
    }

    /// Reports all that is known of a user with sessions here, also what was reported before.
    pub(super) fn whole(&self, user: &UserId, now: Duration) -> Option<Report> {
        self.all.lock().users.get(user).map(|local| local.report(now))
    }

    /// What is to be said of one user, if there is anything.
    pub(super) fn report(&self, user: &UserId, now: Duration) -> Option<Report> {
        let all = self.all.lock();
        all.users.get(user).filter(|local| local.said < local.changes).map(|local| local.report(now))
    }

    /// What is to be said of everybody.
    pub(super) fn reports(&self, now: Duration) -> Vec<(UserId, Report)> {
        let all = self.all.lock();
        let dirty = all.dirty.iter().filter_map(|user| Some((user, all.users.get(user)?)));
        dirty.map(|(user, local)| (user.clone(), local.report(now))).collect()
    }

    /// Redis knows what `report` says.
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
            // A range that grows counts as new: what was said of it before was less.
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

/// Milliseconds of the Unix epoch as a time; 0 is none.
pub(super) fn time(ms: u64) -> Option<SystemTime> {
    (ms > 0).then(|| SystemTime::UNIX_EPOCH + Duration::from_millis(ms))
}
