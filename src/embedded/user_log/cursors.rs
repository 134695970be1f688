//! Cursors of one user's log: one shared by clients without a device, and one for each device.

use crate::{
    embedded::tables::schema::{StoredCursor, StoredLog},
    message::{DeviceId, Seq},
    store::{AckSet, StoreError},
};

/// What one device, or all clients without one, have received.
#[derive(Clone, Debug, Default)]
pub struct Cursor {
    pub received: AckSet,
    /// Last attach or detach, by the store's clock, in milliseconds; 0 = never.
    pub seen_ms: u64,
    /// Sessions attached to it.
    pub attached: u32,
    /// Its current state is not in the WAL.
    pub dirty: bool,
    /// It was said to be forgotten, and is here only because there is no other: what is said of it next replaces it.
    pub stale: bool,
}

/// All cursors of one user. An entry is needed until each of them is past it, so there is always at least one: a log
/// without any would have nobody to keep anything for.
#[derive(Clone, Debug)]
pub struct Cursors {
    shared: Option<Cursor>,
    devices: Vec<(DeviceId, Cursor)>,
    /// Removed cursors that the WAL still has.
    forgotten: Vec<Option<DeviceId>>,
}

impl Default for Cursors {
    fn default() -> Self {
        Self { shared: Some(Cursor::default()), devices: Vec::new(), forgotten: Vec::new() }
    }
}

/// Changes of a user's cursors for the WAL.
#[derive(Debug)]
pub struct Changes {
    /// Written first.
    pub cursors: Vec<(Option<DeviceId>, StoredCursor)>,
    pub forgotten: Vec<Option<DeviceId>>,
    /// Written behind those that are forgotten: each was forgotten and has begun anew, and does not know what it had.
    pub renewed: Vec<(Option<DeviceId>, StoredCursor)>,
}

impl Cursors {
    fn all(&self) -> impl Iterator<Item = &Cursor> {
        self.shared.iter().chain(self.devices.iter().map(|(_, cursor)| cursor))
    }

    fn all_mut(&mut self) -> impl Iterator<Item = &mut Cursor> {
        self.shared.iter_mut().chain(self.devices.iter_mut().map(|(_, cursor)| cursor))
    }

    /// Every cursor has acknowledged everything up to this.
    pub fn through(&self) -> Seq {
        self.all().map(|cursor| cursor.received.through()).min().unwrap_or(Seq::MAX)
    }

    /// Returns whether every cursor has acknowledged `seq`.
    pub fn contain(&self, seq: Seq) -> bool {
        self.all().all(|cursor| cursor.received.contains(seq))
    }

    /// Returns the sequences that every cursor has acknowledged.
    pub fn received(&self) -> AckSet {
        let mut all = self.all();
        let first = all.next().map(|cursor| cursor.received.clone()).unwrap_or_default();
        all.fold(first, |common, cursor| common.intersection(&cursor.received))
    }

    /// Returns the devices that have not acknowledged `seq`.
    pub fn unreceived_by(&self, seq: Seq) -> Vec<Option<DeviceId>> {
        let shared = self.shared.iter().map(|cursor| (None, cursor));
        let devices = self.devices.iter().map(|(device, cursor)| (Some(device.clone()), cursor));
        let lack = shared.chain(devices).filter(|(_, cursor)| !cursor.received.contains(seq));
        lack.map(|(device, _)| device).collect()
    }

    pub fn devices(&self) -> &[(DeviceId, Cursor)] {
        &self.devices
    }

    pub fn get(&self, device: Option<&DeviceId>) -> Option<&Cursor> {
        match device {
            None => self.shared.as_ref(),
            Some(device) => self.devices.iter().find(|(name, _)| name == device).map(|(_, cursor)| cursor),
        }
    }

    fn get_mut(&mut self, device: Option<&DeviceId>) -> Option<&mut Cursor> {
        match device {
            None => self.shared.as_mut(),
            Some(device) => self.devices.iter_mut().find(|(name, _)| name == device).map(|(_, cursor)| cursor),
        }
    }

    /// Adds `from..=to` to what one of them has received. True if anything was new.
    pub fn receive(&mut self, device: Option<&DeviceId>, from: Seq, to: Seq) -> bool {
        let Some(cursor) = self.get_mut(device) else { return false };
        let new = cursor.received.insert(from, to);
        cursor.dirty |= new;
        new
    }

    /// Adds `from..=to` to what each of them has received.
    pub fn all_receive(&mut self, from: Seq, to: Seq) {
        for cursor in self.all_mut() {
            cursor.dirty |= cursor.received.insert(from, to);
        }
    }

    /// A session comes: its cursor, which is made if there is none. What everybody has is not owed to a new one.
    ///
    /// # Errors
    /// When there are as many devices as are remembered, and all of them are here.
    pub fn attach(&mut self, device: Option<&DeviceId>, devices_max: usize, now_ms: u64) -> Result<AckSet, StoreError> {
        if self.get(device).is_none() {
            let fresh = Cursor { received: AckSet::from_parts(self.through(), &[]), ..Cursor::default() };
            match device {
                None => self.shared = Some(fresh),
                Some(device) => {
                    let cursor = self.take_over().unwrap_or(fresh);
                    self.make_room(devices_max)?;
                    self.devices.push((device.clone(), cursor));
                }
            }
        }
        // It is there, or has just been put there.
        let cursor = self.get_mut(device).ok_or(StoreError::Devices(devices_max))?;
        cursor.attached += 1;
        cursor.seen_ms = now_ms;
        cursor.dirty = true;
        Ok(cursor.received.clone())
    }

    /// The cursor that clients without a device share, if there never were any: what waited for nobody in particular
    /// waits for the first device that comes.
    fn take_over(&mut self) -> Option<Cursor> {
        let unused = self.devices.is_empty() && self.shared.as_ref().is_some_and(|shared| shared.seen_ms == 0);
        let taken = if unused { self.shared.take() } else { None };
        if taken.is_some() {
            self.forgotten.push(None);
        }
        taken
    }

    /// Forgets devices until one more fits: those that were away longest, and none that is here.
    fn make_room(&mut self, devices_max: usize) -> Result<(), StoreError> {
        while self.devices.len() >= devices_max.max(1) {
            let away = self.devices.iter().enumerate().filter(|(_, (_, cursor))| cursor.attached == 0);
            let oldest = away.min_by_key(|(_, (_, cursor))| cursor.seen_ms).map(|(at, _)| at);
            let (device, _) = self.devices.remove(oldest.ok_or(StoreError::Devices(devices_max))?);
            self.forgotten.push(Some(device));
        }
        Ok(())
    }

    /// Whether a session goes by any of them.
    pub fn any_attached(&self) -> bool {
        self.all().any(|cursor| cursor.attached > 0)
    }

    /// Detaches a session.
    pub fn detach(&mut self, device: Option<&DeviceId>, now_ms: u64) {
        if let Some(cursor) = self.get_mut(device) {
            cursor.attached = cursor.attached.saturating_sub(1);
            cursor.seen_ms = now_ms;
            cursor.dirty = true;
        }
    }

    /// Those that are here, and were written down as seen before `before_ms`, are seen now. True if there are any.
    pub fn see_attached(&mut self, before_ms: u64, now_ms: u64) -> bool {
        let mut changed = false;
        for cursor in self.all_mut().filter(|cursor| cursor.attached > 0 && cursor.seen_ms < before_ms) {
            (cursor.seen_ms, cursor.dirty, changed) = (now_ms, true, true);
        }
        changed
    }

    /// Forgets cursors that no session has used since `before_ms`. The last one stays, as the device it is: of several
    /// that are all that old, the one that was used last. True if anything has changed.
    pub fn forget_away(&mut self, before_ms: u64) -> bool {
        let away = |cursor: &Cursor| cursor.attached == 0 && cursor.seen_ms < before_ms;
        let latest = if self.all().all(away) { self.all().map(|cursor| cursor.seen_ms).max() } else { None };
        let (mut spared, before) = (false, self.forgotten.len());
        // From the last that came on, so that of two that were used at once the newer one stays.
        for at in (0..self.devices.len()).rev() {
            let cursor = &self.devices[at].1;
            if !spared && latest == Some(cursor.seen_ms) {
                spared = true;
            } else if away(cursor) {
                let (device, _) = self.devices.remove(at);
                self.forgotten.push(Some(device));
            }
        }
        if !self.devices.is_empty() && self.shared.as_ref().is_some_and(away) {
            self.shared = None;
            self.forgotten.push(None);
        }
        self.forgotten.len() > before
    }

    /// Whether [`Cursors::forget_away`] would forget one.
    pub fn any_away(&self, before_ms: u64) -> bool {
        let away = |cursor: &Cursor| cursor.attached == 0 && cursor.seen_ms < before_ms;
        self.all().nth(1).is_some() && self.all().any(away)
    }

    /// Returns the changes since the last call.
    pub fn take_changes(&mut self) -> Changes {
        let forgotten = std::mem::take(&mut self.forgotten);
        let (mut cursors, mut renewed) = (Vec::new(), Vec::new());
        let shared = self.shared.iter_mut().map(|cursor| (None, cursor));
        let devices = self.devices.iter_mut().map(|(device, cursor)| (Some(&*device), cursor));
        for (device, cursor) in shared.chain(devices).filter(|(_, cursor)| cursor.dirty) {
            cursor.dirty = false;
            let changed = (device.cloned(), cursor.stored());
            if forgotten.contains(&changed.0) { renewed.push(changed) } else { cursors.push(changed) }
        }
        Changes { cursors, forgotten, renewed }
    }

    /// One of them was seen at that time, or later.
    pub fn saw(&mut self, device: Option<&DeviceId>, seen_ms: u64) {
        if let Some(cursor) = self.get_mut(device) {
            cursor.seen_ms = cursor.seen_ms.max(seen_ms);
        }
    }

    /// Sets a cursor to what was stored.
    pub fn restore(&mut self, device: Option<DeviceId>, stored: &StoredCursor) {
        let cursor = Cursor::from(stored);
        match device {
            None => self.shared = Some(cursor),
            Some(device) => match self.get_mut(Some(&device)) {
                Some(known) => *known = cursor,
                None => self.devices.push((device, cursor)),
            },
        }
    }

    /// Takes out a cursor that was stored as forgotten.
    pub fn remove(&mut self, device: Option<&DeviceId>) {
        match device {
            None if !self.devices.is_empty() => self.shared = None,
            Some(device) if self.shared.is_some() || self.devices.len() > 1 => {
                self.devices.retain(|(name, _)| name != device);
            }
            // The last cursor is never removed.
            last => self.get_mut(last).into_iter().for_each(|cursor| cursor.stale = true),
        }
    }

    /// Takes back what a row says. A name that is none was never one of ours: it is left out.
    pub fn from_stored(stored: &StoredLog) -> Self {
        let device = |(name, cursor): &(String, StoredCursor)| Some((DeviceId::new(name).ok()?, Cursor::from(cursor)));
        let mut cursors = Self {
            shared: stored.shared.as_ref().map(Cursor::from),
            devices: stored.devices.iter().filter_map(device).collect(),
            forgotten: Vec::new(),
        };
        if cursors.shared.is_none() && cursors.devices.is_empty() {
            cursors.shared = Some(Cursor::default());
        }
        cursors
    }

    /// What a row is to say.
    pub fn store_in(&self, stored: &mut StoredLog) {
        stored.shared = self.shared.as_ref().map(Cursor::stored);
        stored.devices =
            self.devices.iter().map(|(name, cursor)| (name.as_str().to_owned(), cursor.stored())).collect();
    }
}

impl Cursor {
    fn stored(&self) -> StoredCursor {
        StoredCursor {
            through: self.received.through(),
            ranges: self.received.ranges().to_vec(),
            seen_ms: self.seen_ms,
        }
    }
}

impl From<&StoredCursor> for Cursor {
    fn from(stored: &StoredCursor) -> Self {
        let received = AckSet::from_parts(stored.through, &stored.ranges);
        Self { received, seen_ms: stored.seen_ms, ..Self::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(name: &str) -> DeviceId {
        DeviceId::new(name).unwrap()
    }

    #[test]
    fn the_first_device_takes_over_what_waited_for_nobody_in_particular() {
        let mut cursors = Cursors::default();
        cursors.receive(None, 1, 3);
        let received = cursors.attach(Some(&device("phone")), 16, 5).unwrap();
        assert_eq!(received.through(), 3);
        assert!(cursors.get(None).is_none());
        assert_eq!(cursors.take_changes().forgotten, [None]);
    }

    #[test]
    fn clients_without_a_device_keep_theirs_beside_a_device() {
        let mut cursors = Cursors::default();
        cursors.attach(None, 16, 5).unwrap();
        cursors.attach(Some(&device("phone")), 16, 6).unwrap();
        cursors.receive(None, 1, 9);
        assert_eq!(cursors.through(), 0, "the phone has nothing of it");
        cursors.receive(Some(&device("phone")), 1, 4);
        assert_eq!(cursors.through(), 4);
    }

    #[test]
    fn the_device_that_was_away_longest_makes_room_and_one_that_is_here_never_does() {
        let mut cursors = Cursors::default();
        for (at, name) in ["a", "b"].into_iter().enumerate() {
            cursors.attach(Some(&device(name)), 2, at as u64 + 1).unwrap();
        }
        assert!(cursors.attach(Some(&device("c")), 2, 9).is_err());
        cursors.detach(Some(&device("a")), 20);
        cursors.detach(Some(&device("b")), 10);
        cursors.attach(Some(&device("c")), 2, 30).unwrap();
        assert!(cursors.get(Some(&device("b"))).is_none() && cursors.get(Some(&device("a"))).is_some());
    }

    #[test]
    fn the_last_cursor_is_never_forgotten() {
        let mut cursors = Cursors::default();
        cursors.attach(Some(&device("phone")), 16, 5).unwrap();
        cursors.receive(Some(&device("phone")), 1, 7);
        assert!(!cursors.any_away(100), "it is here");
        cursors.detach(Some(&device("phone")), 6);
        assert!(!cursors.any_away(100) && !cursors.forget_away(100), "it is all there is");
        assert_eq!(cursors.get(Some(&device("phone"))).unwrap().received.through(), 7);
        assert!(cursors.get(None).is_none());
    }

    #[test]
    fn cursors_all_away_leave_the_one_used_last() {
        for last in ["phone", "laptop", ""] {
            let mut cursors = Cursors::default();
            let name = |name: &str| (!name.is_empty()).then(|| device(name));
            // So that clients without a device have a cursor as well.
            cursors.attach(None, 16, 1).unwrap();
            for (at, other) in ["phone", "laptop", ""].into_iter().enumerate() {
                cursors.attach(name(other).as_ref(), 16, 2).unwrap();
                cursors.detach(name(other).as_ref(), if other == last { 50 } else { 10 + at as u64 });
            }
            cursors.detach(None, if last.is_empty() { 50 } else { 12 });
            cursors.take_changes();
            assert!(cursors.any_away(100) && cursors.forget_away(100));
            assert!(cursors.get(name(last).as_ref()).is_some(), "{last:?} was used last");
            assert_eq!(cursors.all().count(), 1);
            assert_eq!(cursors.take_changes().forgotten.len(), 2);
            assert!(!cursors.any_away(1000));
        }
    }
}
