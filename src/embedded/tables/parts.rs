//! Stores large rows of users in several values of sled.
//!
//! sled writes a page larger than a share of its segment into a file of its own, which it never syncs. A row of a user
//! with many devices has up to [`ROW_BYTES_MAX`](super::schema::ROW_BYTES_MAX) bytes, and a page holds up to twenty
//! rows. So a large row is cut into parts, and the value at the user's key is a *head* that describes them.
//!
//! The key of a part begins with the user id and a zero byte. No user id has one, so parts differ from rows, and
//! follow the row of their user.
//!
//! sled keeps a prefix of the writes. The parts of the new row are written first, under the keys of the other
//! *generation*. Then its head replaces the old row, and then the parts of the old row are removed. So a crash leaves
//! the old row or the new one, and at most parts without a head. The next large row of this user overwrites those, and
//! the removal of the row removes them.

use std::io;

use bytes::Bytes;

use super::{
    contract::{EngineError, Table},
    schema::{VALUE_BYTES_MAX, is_part, part_key},
    sled::Disk,
    sled_error::read_error,
};

/// First byte of a head. The first byte of a row is its version, which is small.
const HEAD: u8 = 0xff;

/// Bytes of a head: first byte, generation, length and checksum of the row.
const HEAD_BYTES: usize = 10;

/// Attempts to read a row that the commit thread replaces meanwhile. Then the row counts as damaged.
const READ_ATTEMPTS_MAX: usize = 8;

/// Describes a row in parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::embedded) struct RowHead {
    /// 0 or 1.
    generation: u8,
    length: u32,
    crc: u32,
}

impl RowHead {
    fn of(row: &[u8], generation: u8) -> Self {
        let length = u32::try_from(row.len()).expect("a row has at most ROW_BYTES_MAX bytes");
        Self { generation, length, crc: crc32fast::hash(row) }
    }

    /// Decodes a value. Returns `None` if it is a row in one value.
    pub fn decode(value: &[u8]) -> Option<Self> {
        let (&[HEAD, generation], numbers) = value.split_first_chunk::<2>()? else { return None };
        let (length, crc) = numbers.split_first_chunk::<4>()?;
        let crc = u32::from_be_bytes(crc.try_into().ok()?);
        Some(Self { generation, length: u32::from_be_bytes(*length), crc })
    }

    fn encode(self) -> [u8; HEAD_BYTES] {
        let mut head = [HEAD; HEAD_BYTES];
        head[1] = self.generation;
        head[2..6].copy_from_slice(&self.length.to_be_bytes());
        head[6..].copy_from_slice(&self.crc.to_be_bytes());
        head
    }

    fn part_keys(self, key: &[u8]) -> impl Iterator<Item = Vec<u8>> + use<'_> {
        let count = (self.length as usize).div_ceil(VALUE_BYTES_MAX);
        // A damaged length ends at the first missing part.
        (0..=u8::MAX).take(count).map(move |part| part_key(key, self.generation, part))
    }

    /// Joins the parts of the row at `key`. Returns `None` if a part is missing, or belongs to another row.
    pub fn join<E>(
        self,
        key: &[u8],
        mut part: impl FnMut(&[u8]) -> Result<Option<Bytes>, E>,
    ) -> Result<Option<Bytes>, E> {
        let mut row = Vec::new();
        for key in self.part_keys(key) {
            let Some(part) = part(&key)? else { return Ok(None) };
            row.extend_from_slice(&part);
        }
        Ok((row.len() == self.length as usize && crc32fast::hash(&row) == self.crc).then(|| row.into()))
    }
}

/// Returns the row of a stored value. The value of a row whose parts are lost is returned as it is, and is unreadable.
pub(in crate::embedded) fn read_row(
    key: &[u8],
    value: Bytes,
    part: impl FnMut(&[u8]) -> io::Result<Option<Bytes>>,
) -> io::Result<Bytes> {
    let Some(head) = RowHead::decode(&value) else { return Ok(value) };
    Ok(head.join(key, part)?.unwrap_or(value))
}

impl Disk {
    /// Returns the value that the contract states for a value of sled. Returns `None` if the key has none any more.
    pub(super) fn value(&self, table: Table, key: &[u8], value: sled::IVec) -> Result<Option<Bytes>, EngineError> {
        match table {
            Table::Log | Table::Bodies => self.block(key, &value),
            Table::Users if is_part(key) => Ok(None),
            Table::Users => self.row(key, value),
            _ => Ok(Some(Bytes::from_owner(value))),
        }
    }

    /// Sets the row of a user.
    pub(super) fn put_row(&self, key: &[u8], row: &[u8]) -> Result<(), EngineError> {
        let users = &self.trees.users;
        if row.len() <= VALUE_BYTES_MAX {
            let before = self.insert(users, key, row)?;
            return self.remove_parts(key, before.as_deref().and_then(RowHead::decode));
        }
        let before = users.get(key).map_err(read_error)?.as_deref().and_then(RowHead::decode);
        let head = RowHead::of(row, before.map_or(0, |before| before.generation ^ 1));
        for (key, part) in head.part_keys(key).zip(row.chunks(VALUE_BYTES_MAX)) {
            self.insert(users, &key, part)?;
        }
        self.insert(users, key, &head.encode())?;
        self.remove_parts(key, before)
    }

    /// Removes the row of a user, and all its parts.
    ///
    /// The row first: a crash must not leave a head without its parts.
    pub(super) fn remove_row(&self, key: &[u8]) -> Result<(), EngineError> {
        let users = &self.trees.users;
        self.take(users, key)?;
        let parts: Result<Vec<_>, _> = users.scan_prefix([key, &[0]].concat()).keys().collect();
        parts.map_err(read_error)?.iter().try_for_each(|key| self.take(users, key).map(drop))
    }

    fn remove_parts(&self, key: &[u8], head: Option<RowHead>) -> Result<(), EngineError> {
        let Some(head) = head else { return Ok(()) };
        head.part_keys(key).try_for_each(|key| self.take(&self.trees.users, &key).map(drop))
    }

    /// Returns the row of a value that was read at `key`. Returns `None` if the row was removed.
    pub(super) fn row(&self, key: &[u8], value: sled::IVec) -> Result<Option<Bytes>, EngineError> {
        let users = &self.trees.users;
        let mut value = value;
        for _ in 0..READ_ATTEMPTS_MAX {
            let Some(head) = RowHead::decode(&value) else { break };
            let part = |key: &[u8]| Ok::<_, EngineError>(users.get(key).map_err(read_error)?.map(Bytes::from_owner));
            if let Some(row) = head.join(key, part)? {
                return Ok(Some(row));
            }
            // The row was replaced since its head was read, or a part is lost.
            let Some(now) = users.get(key).map_err(read_error)? else { return Ok(None) };
            value = now;
        }
        Ok(Some(Bytes::from_owner(value)))
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, fs, path::Path};

    use super::*;
    use crate::embedded::{
        engine::Engine,
        offline::sled_file::RawTables,
        tables::{
            contract::Tables,
            files::{SEGMENT_BYTES, SLED_DIR},
            open::create,
            schema::ROW_BYTES_MAX,
            unfinished::Operation,
        },
    };

    fn rows(disk: &Disk) -> BTreeMap<Vec<u8>, Vec<u8>> {
        let mut rows = BTreeMap::new();
        disk.scan(Table::Users, &[], &mut |key, row| rows.insert(key.to_vec(), row.to_vec()).is_none()).unwrap();
        rows
    }

    fn values(disk: &Disk) -> Vec<(Vec<u8>, Vec<u8>)> {
        disk.trees.users.iter().map(|pair| pair.map(|(key, value)| (key.to_vec(), value.to_vec())).unwrap()).collect()
    }

    fn sizes() -> [usize; 5] {
        [1, VALUE_BYTES_MAX, VALUE_BYTES_MAX + 1, ROW_BYTES_MAX / 2, ROW_BYTES_MAX]
    }

    #[test]
    fn row_of_any_size_replaces_row_of_any_size_and_leaves_no_parts() {
        let home = tempfile::tempdir().unwrap();
        let disk = create(&home.path().join("store"), Operation::Restore).unwrap();
        for (round, (before, after)) in sizes().iter().flat_map(|a| sizes().map(|b| (*a, b))).enumerate() {
            let row = |bytes: usize, n: u8| vec![n; bytes];
            for user in ["a", "ab", "b"] {
                disk.put(Table::Users, user.as_bytes(), &row(before, 1)).unwrap();
            }
            disk.put(Table::Users, b"ab", &row(after, 2)).unwrap();
            let expected = [("a", before, 1), ("ab", after, 2), ("b", before, 1)];
            let expected: BTreeMap<_, _> =
                expected.iter().map(|(user, bytes, n)| (user.as_bytes().to_vec(), row(*bytes, *n))).collect();
            assert_eq!(rows(&disk), expected, "round {round}");
            let mut keys = Vec::new();
            disk.keys(Table::Users, &[], &mut |key| {
                keys.push(key.to_vec());
                true
            })
            .unwrap();
            assert_eq!(keys, expected.keys().cloned().collect::<Vec<_>>());
            for (user, row) in &expected {
                assert_eq!(disk.get(Table::Users, user).unwrap().as_deref(), Some(&row[..]));
                let last = disk.last_at_or_before(Table::Users, user).unwrap().unwrap();
                assert_eq!((&last.0[..], &last.1[..]), (&user[..], &row[..]));
                assert_eq!(disk.last_key_at_or_before(Table::Users, user).unwrap().as_deref(), Some(&user[..]));
            }
            for user in ["a", "ab", "b"] {
                disk.remove(Table::Users, user.as_bytes()).unwrap();
            }
            assert_eq!(values(&disk), [], "{before} bytes, then {after}");
        }
    }

    /// Applies each prefix of the writes that replace a row.
    #[test]
    fn crash_between_any_two_writes_leaves_old_or_new_row() {
        let home = tempfile::tempdir().unwrap();
        let disk = create(&home.path().join("store"), Operation::Restore).unwrap();
        let users = &disk.trees.users;
        let sizes = [1, VALUE_BYTES_MAX + 1, 3 * VALUE_BYTES_MAX];
        for (before, after) in sizes.iter().flat_map(|a| sizes.map(|b| (*a, b))) {
            let (old, new) = (vec![1; before], vec![2; after]);
            disk.put(Table::Users, b"a", &old).unwrap();
            let start = values(&disk);
            let mut changes = users.watch_prefix(b"");
            disk.put(Table::Users, b"a", &new).unwrap();
            let mut writes = Vec::new();
            while let Ok(event) = changes.next_timeout(std::time::Duration::ZERO) {
                writes.push(event);
            }
            assert!(!writes.is_empty());
            for kept in 0..=writes.len() {
                users.clear().unwrap();
                start.iter().for_each(|(key, value)| drop(users.insert(&key[..], &value[..]).unwrap()));
                for write in &writes[..kept] {
                    match write {
                        sled::Event::Insert { key, value } => drop(users.insert(key, value).unwrap()),
                        sled::Event::Remove { key } => drop(users.remove(key).unwrap()),
                    }
                }
                let row = disk.get(Table::Users, b"a").unwrap().unwrap();
                assert!(row == old || row == new, "{before} bytes, then {after}: after {kept} writes");
                // The store goes on from there.
                disk.put(Table::Users, b"a", &old).unwrap();
                assert_eq!(disk.get(Table::Users, b"a").unwrap().unwrap(), old);
                disk.remove(Table::Users, b"a").unwrap();
                assert_eq!(values(&disk), []);
            }
        }
    }

    fn blobs(store: &Path) -> usize {
        fs::read_dir(store.join(SLED_DIR).join("blobs")).unwrap().count()
    }

    /// Fills pages with the largest keys and values, and lets sled split and merge them.
    #[test]
    fn pages_of_largest_values_are_never_files_of_their_own() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("store");
        let disk = create(&path, Operation::Restore).unwrap();
        let key =
            |n: usize| format!("{:0>width$}{n:05}", "", width = crate::message::USER_ID_BYTES_MAX - 5).into_bytes();
        let unlike = |n: usize| {
            // Without a common prefix, which a page would not repeat.
            let mut key = key(n);
            key[..4].copy_from_slice(format!("{:04}", n * 7919 % 10_000).as_bytes());
            key
        };
        let put = |n: usize| disk.put(Table::Users, &unlike(n), &vec![n as u8; ROW_BYTES_MAX]).unwrap();
        (0..40).for_each(put);
        for n in 0..3000 {
            disk.put(Table::Outbox, &unlike(n), &[n as u8; VALUE_BYTES_MAX]).unwrap();
        }
        // Leaves that become small merge with their neighbours.
        for n in (0..3000).filter(|n| n % 5 > 0) {
            disk.remove(Table::Outbox, &unlike(n)).unwrap();
        }
        (0..40).for_each(put);
        disk.checkpoint().unwrap();
        assert_eq!(blobs(&path), 0);
        for n in 0..40 {
            assert_eq!(disk.get(Table::Users, &unlike(n)).unwrap().unwrap(), vec![n as u8; ROW_BYTES_MAX]);
        }
        // Shows that the files are found here: sled would create one for a page above its limit.
        disk.trees.meta.insert("large", vec![1; SEGMENT_BYTES / 4]).unwrap();
        disk.db.flush().unwrap();
        assert_eq!(blobs(&path), 1);
        disk.trees.meta.remove("large").unwrap();
        drop(disk);
        let tables = RawTables::open(&path.join(SLED_DIR), false).unwrap();
        assert!(tables.pairs(Table::Users, &[]).count() > 40 * ROW_BYTES_MAX / VALUE_BYTES_MAX);
    }
}
