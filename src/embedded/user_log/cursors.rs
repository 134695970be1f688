//! Manages the cursors of one user's log: one shared by clients without a device, and one for each device.

use crate::{
    embedded::tables::schema::{StoredCursor, StoredLog},
    message::{DeviceId, Seq},
    store::{AckSet, StoreError},
};

/// Holds what one device, or all clients without one, have acknowledged.
#[derive(Clone, Debug, Default)]
pub struct Cursor {
    pub acknowledged: AckSet,
    /// Time of the last attach or detach, by the store's clock, in milliseconds; 0 = never.
    pub seen_ms: u64,
    /// Number of attached sessions.
    pub attached: u32,
    /// The WAL lacks its current state.
    pub dirty: bool,
    /// The WAL has its removal, but the last cursor is never removed. The next state in the WAL replaces it.
    pub stale: bool,
}

/// Holds all cursors of one user, always at least one.
///
/// An entry is pending until every cursor has acknowledged it. So without cursors no entry would be pending.
#[derive(Clone, Debug)]
pub struct Cursors {
    shared: Option<Cursor>,
    devices: Vec<(DeviceId, Cursor)>,
    /// Removed cursors whose removal is not in the WAL yet.
    removed: Vec<Option<DeviceId>>,
}

impl Default for Cursors {
    fn default() -> Self {
        Self { shared: Some(Cursor::default()), devices: Vec::new(), removed: Vec::new() }
    }
}

/// Holds the changes of a user's cursors for the WAL.
#[derive(Debug)]
pub struct Changes {
    /// Changed cursors, written first.
    pub cursors: Vec<(Option<DeviceId>, StoredCursor)>,
    pub removed: Vec<Option<DeviceId>>,
    /// Cursors that were removed and created again. They are written after the removals.
    pub recreated: Vec<(Option<DeviceId>, StoredCursor)>,
}

impl Cursors {
    /// Returns all cursors with their devices; `None` for clients without one.
    pub fn iter(&self) -> impl Iterator<Item = (Option<&DeviceId>, &Cursor)> {
        let shared = self.shared.iter().map(|cursor| (None, cursor));
        shared.chain(self.devices.iter().map(|(device, cursor)| (Some(device), cursor)))
    }

    fn all(&self) -> impl Iterator<Item = &Cursor> {
        self.iter().map(|(_, cursor)| cursor)
    }

    fn all_mut(&mut self) -> impl Iterator<Item = &mut Cursor> {
        self.shared.iter_mut().chain(self.devices.iter_mut().map(|(_, cursor)| cursor))
    }

    /// Returns the sequence up to which every cursor has acknowledged everything.
    pub fn through(&self) -> Seq {
        self.all().map(|cursor| cursor.acknowledged.through()).min().unwrap_or(Seq::MAX)
    }

    /// Returns whether every cursor has acknowledged `seq`.
    pub fn is_acknowledged(&self, seq: Seq) -> bool {
        self.all().all(|cursor| cursor.acknowledged.contains(seq))
    }

    /// Returns whether every cursor has acknowledged a sequence of `from..=to`.
    pub fn any_acknowledged(&self, from: Seq, to: Seq) -> bool {
        let acknowledged = self.acknowledged();
        acknowledged.through() >= from
            || acknowledged.ranges().iter().any(|(first, last)| *first <= to && *last >= from)
    }

    /// Returns the sequences that every cursor has acknowledged.
    pub fn acknowledged(&self) -> AckSet {
        let mut all = self.all();
        let first = all.next().map(|cursor| cursor.acknowledged.clone()).unwrap_or_default();
        all.fold(first, |common, cursor| common.intersection(&cursor.acknowledged))
    }

    /// Returns the cursors that have not acknowledged `seq`: devices, and `None` for clients without one.
    pub fn unreceived_by(&self, seq: Seq) -> Vec<Option<DeviceId>> {
        let lack = self.iter().filter(|(_, cursor)| !cursor.acknowledged.contains(seq));
        lack.map(|(device, _)| device.cloned()).collect()
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

    /// Acknowledges `from..=to` for one cursor. Returns true if anything was new.
    pub fn acknowledge(&mut self, device: Option<&DeviceId>, from: Seq, to: Seq) -> bool {
        let Some(cursor) = self.get_mut(device) else { return false };
        let new = cursor.acknowledged.insert(from, to);
        cursor.dirty |= new;
        new
    }

    /// Acknowledges `from..=to` for every cursor.
    pub fn acknowledge_all(&mut self, from: Seq, to: Seq) {
        for cursor in self.all_mut() {
            cursor.dirty |= cursor.acknowledged.insert(from, to);
        }
    }

    /// Attaches a session, and returns what its cursor has acknowledged.
    ///
    /// A new cursor begins with the entries that some cursor has not acknowledged.
    ///
    /// # Errors
    /// Fails if the limit of devices is reached, and all of them have sessions.
    pub fn attach(&mut self, device: Option<&DeviceId>, devices_max: usize, now_ms: u64) -> Result<AckSet, StoreError> {
        if self.get(device).is_none() {
            let new = Cursor { acknowledged: AckSet::from_parts(self.through(), &[]), ..Cursor::default() };
            match device {
                None => self.shared = Some(new),
                Some(device) => {
                    let cursor = self.take_shared().unwrap_or(new);
                    self.evict_devices(devices_max)?;
                    self.devices.push((device.clone(), cursor));
                }
            }
        }
        // The cursor exists, or was just created.
        let cursor = self.get_mut(device).ok_or(StoreError::Devices(devices_max))?;
        cursor.attached += 1;
        cursor.seen_ms = now_ms;
        cursor.dirty = true;
        Ok(cursor.acknowledged.clone())
    }

    /// Takes the shared cursor for the first device, if no client without a device was ever connected.
    ///
    /// So the device receives the entries that were pending before it connected.
    fn take_shared(&mut self) -> Option<Cursor> {
        let unused = self.devices.is_empty() && self.shared.as_ref().is_some_and(|shared| shared.seen_ms == 0);
        let taken = if unused { self.shared.take() } else { None };
        if taken.is_some() {
            self.removed.push(None);
        }
        taken
    }

    /// Removes devices until one more fits: those that were offline longest, and none with a session.
    fn evict_devices(&mut self, devices_max: usize) -> Result<(), StoreError> {
        while self.devices.len() >= devices_max.max(1) {
            let offline = self.devices.iter().enumerate().filter(|(_, (_, cursor))| cursor.attached == 0);
            let oldest = offline.min_by_key(|(_, (_, cursor))| cursor.seen_ms).map(|(at, _)| at);
            let (device, _) = self.devices.remove(oldest.ok_or(StoreError::Devices(devices_max))?);
            self.removed.push(Some(device));
        }
        Ok(())
    }

    /// Returns whether any session is attached.
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

    /// Sets the time of attached cursors that was stored before `before_ms` to `now_ms`. Returns true if any has
    /// changed.
    pub fn refresh_attached(&mut self, before_ms: u64, now_ms: u64) -> bool {
        let mut changed = false;
        for cursor in self.all_mut().filter(|cursor| cursor.attached > 0 && cursor.seen_ms < before_ms) {
            (cursor.seen_ms, cursor.dirty, changed) = (now_ms, true, true);
        }
        changed
    }

    /// Removes cursors that no session has used since `before_ms`. Returns true if any was removed.
    ///
    /// One cursor always stays: if all are that old, the one that was used last.
    pub fn remove_inactive(&mut self, before_ms: u64) -> bool {
        let is_inactive = |cursor: &Cursor| cursor.is_inactive(before_ms);
        let latest = if self.all().all(is_inactive) { self.all().map(|cursor| cursor.seen_ms).max() } else { None };
        let (mut spared, before) = (false, self.removed.len());
        // From the newest device on: of two devices with the same time, the newer one stays.
        for at in (0..self.devices.len()).rev() {
            let cursor = &self.devices[at].1;
            if !spared && latest == Some(cursor.seen_ms) {
                spared = true;
            } else if is_inactive(cursor) {
                let (device, _) = self.devices.remove(at);
                self.removed.push(Some(device));
            }
        }
        if !self.devices.is_empty() && self.shared.as_ref().is_some_and(is_inactive) {
            self.shared = None;
            self.removed.push(None);
        }
        self.removed.len() > before
    }

    /// Returns whether [`Cursors::remove_inactive`] would remove a cursor.
    pub fn any_inactive(&self, before_ms: u64) -> bool {
        self.all().nth(1).is_some() && self.all().any(|cursor| cursor.is_inactive(before_ms))
    }

    /// Returns the changes since the last call.
    pub fn take_changes(&mut self) -> Changes {
        let removed = std::mem::take(&mut self.removed);
        let (mut cursors, mut recreated) = (Vec::new(), Vec::new());
        let shared = self.shared.iter_mut().map(|cursor| (None, cursor));
        let devices = self.devices.iter_mut().map(|(device, cursor)| (Some(&*device), cursor));
        for (device, cursor) in shared.chain(devices).filter(|(_, cursor)| cursor.dirty) {
            cursor.dirty = false;
            let changed = (device.cloned(), cursor.stored());
            if removed.contains(&changed.0) { recreated.push(changed) } else { cursors.push(changed) }
        }
        Changes { cursors, removed, recreated }
    }

    /// Replays the state of a cursor from the WAL. The row may include later acknowledgements.
    pub fn replay(&mut self, device: Option<DeviceId>, stored: &StoredCursor) {
        match self.get_mut(device.as_ref()) {
            Some(cursor) if !cursor.stale => {
                for (from, to) in AckSet::from_parts(stored.through, &stored.ranges).all_ranges() {
                    cursor.dirty |= cursor.acknowledged.insert(from, to);
                }
                cursor.seen_ms = cursor.seen_ms.max(stored.seen_ms);
            }
            _ => self.restore(device, stored),
        }
    }

    /// Sets a cursor to its stored state.
    fn restore(&mut self, device: Option<DeviceId>, stored: &StoredCursor) {
        let cursor = Cursor::from(stored);
        match device {
            None => self.shared = Some(cursor),
            Some(device) => match self.get_mut(Some(&device)) {
                Some(known) => *known = cursor,
                None => self.devices.push((device, cursor)),
            },
        }
    }

    /// Replays the removal of a cursor from the WAL.
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

    /// Restores the cursors of a row. Skips invalid device names, which this server never writes.
    pub fn from_stored(stored: &StoredLog) -> Self {
        let device = |(name, cursor): &(String, StoredCursor)| Some((DeviceId::new(name).ok()?, Cursor::from(cursor)));
        let mut cursors = Self {
            shared: stored.shared.as_ref().map(Cursor::from),
            devices: stored.devices.iter().filter_map(device).collect(),
            removed: Vec::new(),
        };
        if cursors.shared.is_none() && cursors.devices.is_empty() {
            cursors.shared = Some(Cursor::default());
        }
        cursors
    }

    /// Writes the cursors into a row.
    pub fn store_in(&self, stored: &mut StoredLog) {
        stored.shared = self.shared.as_ref().map(Cursor::stored);
        stored.devices =
            self.devices.iter().map(|(name, cursor)| (name.as_str().to_owned(), cursor.stored())).collect();
    }
}

impl Cursor {
    /// Returns whether no session has used the cursor since `before_ms`.
    fn is_inactive(&self, before_ms: u64) -> bool {
        self.attached == 0 && self.seen_ms < before_ms
    }

    fn stored(&self) -> StoredCursor {
        StoredCursor {
            through: self.acknowledged.through(),
            ranges: self.acknowledged.ranges().to_vec(),
            seen_ms: self.seen_ms,
        }
    }
}

impl From<&StoredCursor> for Cursor {
    fn from(stored: &StoredCursor) -> Self {
        let acknowledged = AckSet::from_parts(stored.through, &stored.ranges);
        Self { acknowledged, seen_ms: stored.seen_ms, ..Self::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(name: &str) -> DeviceId {
        DeviceId::new(name).unwrap()
    }

    #[test]
    fn first_device_takes_over_unused_shared_cursor() {
        let mut cursors = Cursors::default();
        cursors.acknowledge(None, 1, 3);
        let acknowledged = cursors.attach(Some(&device("phone")), 16, 5).unwrap();
        assert_eq!(acknowledged.through(), 3);
        assert!(cursors.get(None).is_none());
        assert_eq!(cursors.take_changes().removed, [None]);
    }

    #[test]
    fn shared_cursor_is_independent_of_device_cursor() {
        let mut cursors = Cursors::default();
        cursors.attach(None, 16, 5).unwrap();
        cursors.attach(Some(&device("phone")), 16, 6).unwrap();
        cursors.acknowledge(None, 1, 9);
        assert_eq!(cursors.through(), 0, "the phone has acknowledged nothing");
        cursors.acknowledge(Some(&device("phone")), 1, 4);
        assert_eq!(cursors.through(), 4);
    }

    #[test]
    fn device_over_limit_evicts_longest_offline_and_no_attached_device() {
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
    fn replayed_cursor_adds_acknowledgements_and_is_replaced_after_its_removal() {
        let stored =
            |through, ranges: &[(Seq, Seq)], seen_ms| StoredCursor { through, ranges: ranges.to_vec(), seen_ms };
        let mut cursors = Cursors::default();
        cursors.remove(None);
        cursors.replay(Some(device("phone")), &stored(5, &[(8, 9)], 20));
        cursors.replay(Some(device("phone")), &stored(3, &[(6, 6)], 10));
        let phone = |cursors: &Cursors| cursors.get(Some(&device("phone"))).unwrap().stored();
        assert_eq!(phone(&cursors), stored(6, &[(8, 9)], 20));
        cursors.remove(None);
        cursors.remove(Some(&device("phone")));
        assert_eq!(phone(&cursors), stored(6, &[(8, 9)], 20), "the last cursor stays");
        cursors.replay(Some(device("phone")), &stored(2, &[], 5));
        assert_eq!(phone(&cursors), stored(2, &[], 5));
        assert_eq!(cursors.iter().count(), 1);
    }

    #[test]
    fn last_cursor_is_never_removed() {
        let mut cursors = Cursors::default();
        cursors.attach(Some(&device("phone")), 16, 5).unwrap();
        cursors.acknowledge(Some(&device("phone")), 1, 7);
        assert!(!cursors.any_inactive(100), "the phone is attached");
        cursors.detach(Some(&device("phone")), 6);
        assert!(!cursors.any_inactive(100) && !cursors.remove_inactive(100), "the phone is the only cursor");
        assert_eq!(cursors.get(Some(&device("phone"))).unwrap().acknowledged.through(), 7);
        assert!(cursors.get(None).is_none());
    }

    #[test]
    fn inactive_cursors_are_removed_except_last_used() {
        for last in ["phone", "laptop", ""] {
            let mut cursors = Cursors::default();
            let name = |name: &str| (!name.is_empty()).then(|| device(name));
            // Clients without a device need a cursor as well.
            cursors.attach(None, 16, 1).unwrap();
            for (at, other) in ["phone", "laptop", ""].into_iter().enumerate() {
                cursors.attach(name(other).as_ref(), 16, 2).unwrap();
                cursors.detach(name(other).as_ref(), if other == last { 50 } else { 10 + at as u64 });
            }
            cursors.detach(None, if last.is_empty() { 50 } else { 12 });
            cursors.take_changes();
            assert!(cursors.any_inactive(100) && cursors.remove_inactive(100));
            assert!(cursors.get(name(last).as_ref()).is_some(), "{last:?} was used last");
            assert_eq!(cursors.all().count(), 1);
            assert_eq!(cursors.take_changes().removed.len(), 2);
            assert!(!cursors.any_inactive(1000));
        }
    }
}
