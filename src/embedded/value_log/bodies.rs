//! Shared bodies: payloads that several logs reference, each stored once.
//!
//! A shared body is one message of one WAL record. Its id is the number of the record, and the offset of the message
//! in it. Record numbers rise forever. So a flush that is repeated after a crash writes the same body with the same id.
//! A restore and a salvage number the bodies of their new store. Its first record follows those numbers.
//!
//! # When a body is removed
//! No count is stored, because a crash could leave a wrong one. The row of a block lists the bodies that the block
//! references. [`References`] counts these rows in memory, together with the live bytes of files: those of earlier
//! processes in steps after opening ([`live_count`](super::live_count)), and until then no body is removed. A body without references is removed once its record has left the WAL: until then a flush
//! may be about to write the first reference.
//!
//! The order of writes keeps every reference valid over a crash, which keeps a prefix of the writes to the tables: the
//! row of a body precedes the rows of blocks that list it, and its removal follows theirs.

use std::collections::{BTreeMap, HashMap, VecDeque};

use bincode::{BorrowDecode, Decode, Encode};
use bytes::Bytes;
use foldhash::fast::RandomState;
use parking_lot::Mutex;

use crate::embedded::{encoding::bincode_config, unreadable::Unreadable};

/// Smallest payload that is shared, in bytes.
///
/// A read of a smaller one would cost more than the copy that it saves.
pub const SHARED_BYTES_MIN: usize = 1 << 10;

/// Bytes of copies that a shared body must save. Its own row and frame cost the CPU time of about this many.
pub const SAVED_BYTES_MIN: usize = 16 << 10;

/// Limit of payload in a [`BodyCache`], in bytes.
const CACHE_BYTES_MAX: usize = 8 << 20;

/// First byte of a body's key. A user id has no control characters, so no key of a block begins with it.
const KEY_PREFIX: u8 = 0;

/// Bytes of the key of a body.
const KEY_BYTES: usize = 13;

/// Bytes of an id in the key.
const ID_BYTES: usize = 12;

/// Identifies a shared body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct BodyId {
    /// Number of the WAL record.
    pub record: u64,
    /// Offset of the message in the record.
    pub at: u32,
}

impl BodyId {
    fn encode(self) -> [u8; ID_BYTES] {
        let mut bytes = [0; ID_BYTES];
        bytes[..8].copy_from_slice(&self.record.to_be_bytes());
        bytes[8..].copy_from_slice(&self.at.to_be_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (record, at) = bytes.split_first_chunk()?;
        Some(Self { record: u64::from_be_bytes(*record), at: u32::from_be_bytes(at.try_into().ok()?) })
    }

    /// Returns the key in the table of bodies, which is also that of the frame in the value log.
    pub fn key(self) -> [u8; KEY_BYTES] {
        let mut key = [KEY_PREFIX; KEY_BYTES];
        key[1..].copy_from_slice(&self.encode());
        key
    }

    /// Returns the id of a key, or `None` if it is not that of a body.
    pub fn of_key(key: &[u8]) -> Option<Self> {
        Self::decode(key.strip_prefix(&[KEY_PREFIX])?)
    }
}

/// Returns whether a key of the value log is that of a body, and not that of a block.
pub fn is_body_key(key: &[u8]) -> bool {
    key.len() == KEY_BYTES && key.first() == Some(&KEY_PREFIX)
}

/// Returns whether a payload of `bytes` with this many pending recipients is stored as a shared body.
pub fn is_shared(bytes: usize, recipients: usize) -> bool {
    bytes >= SHARED_BYTES_MIN && bytes.saturating_mul(recipients.saturating_sub(1)) >= SAVED_BYTES_MIN
}

/// Stores a shared body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, BorrowDecode)]
pub enum SharedBody<'a> {
    /// The only version so far.
    V1 {
        /// Fingerprint of the namespace.
        namespace: u32,
        payload: &'a [u8],
    },
}

impl<'a> SharedBody<'a> {
    pub fn encode(&self) -> Vec<u8> {
        bincode::encode_to_vec(self, bincode_config()).expect("writing to a Vec succeeds")
    }

    pub fn decode(bytes: &'a [u8]) -> Result<Self, Unreadable> {
        if let Some(unreadable) = Unreadable::from_value(bytes) {
            return Err(unreadable);
        }
        Ok(bincode::borrow_decode_from_slice(bytes, bincode_config())?.0)
    }

    /// Returns the payload of an encoded body, which must have the namespace and length that the entry states.
    pub fn payload(bytes: &Bytes, namespace: u32, length: u32) -> Result<Bytes, Unreadable> {
        let SharedBody::V1 { namespace: stored, payload } = SharedBody::decode(bytes)?;
        if stored != namespace || payload.len() != length as usize {
            return Err(Unreadable::new("its shared body is not that of this message"));
        }
        Ok(bytes.slice_ref(payload))
    }
}

/// Counts the rows of blocks that list each body.
#[derive(Debug, Default)]
pub struct References {
    counts: HashMap<BodyId, u32, RandomState>,
    /// Bodies that no row lists, and whether the last such row was that of an erased user.
    unreferenced: BTreeMap<BodyId, bool>,
}

impl References {
    /// Counts the references of a row.
    pub fn add(&mut self, ids: &[BodyId]) {
        for id in ids {
            *self.counts.entry(*id).or_default() += 1;
            self.unreferenced.remove(id);
        }
    }

    /// Subtracts the references of a row that was removed or replaced.
    pub fn subtract(&mut self, ids: &[BodyId], is_erased: bool) {
        for id in ids {
            let Some(count) = self.counts.get_mut(id) else { continue };
            *count -= 1;
            if *count == 0 {
                self.counts.remove(id);
                self.unreferenced.insert(*id, is_erased);
            }
        }
    }

    /// Adds a stored body. If `may_be_erased` and no row lists it, it counts as that of an erased user.
    pub fn add_body(&mut self, id: BodyId, may_be_erased: bool) {
        if !self.counts.contains_key(&id) {
            self.unreferenced.entry(id).or_insert(may_be_erased);
        }
    }

    /// Records that an erased user needs these bodies no longer, although no row of the user lists them yet.
    ///
    /// A flush that is under way puts them, perhaps later.
    pub fn forget(&mut self, ids: &[BodyId]) {
        for id in ids.iter().filter(|id| !self.counts.contains_key(id)) {
            self.unreferenced.insert(*id, true);
        }
    }

    /// Removes a body that is no longer stored. Returns whether its bytes are to leave the disk soon.
    pub fn remove_body(&mut self, id: BodyId) -> bool {
        self.unreferenced.remove(&id).unwrap_or(false)
    }

    /// Returns bodies without references, of records before `record`, at most `limit`.
    pub fn unreferenced(&self, record: u64, limit: usize) -> Vec<BodyId> {
        let end = BodyId { record, at: 0 };
        self.unreferenced.range(..end).take(limit).map(|(id, _)| *id).collect()
    }
}

/// Caches bodies for readers, so that the users of a fan-out who return together read each body once.
#[derive(Debug, Default)]
pub struct BodyCache {
    state: Mutex<CachedBodies>,
}

#[derive(Debug, Default)]
struct CachedBodies {
    payloads: HashMap<BodyId, Bytes, RandomState>,
    /// The ids of the payloads, oldest first.
    order: VecDeque<BodyId>,
    bytes: usize,
}

impl BodyCache {
    pub fn get(&self, id: BodyId) -> Option<Bytes> {
        self.state.lock().payloads.get(&id).cloned()
    }

    /// Adds a body. Removes the oldest ones above the limit.
    pub fn insert(&self, id: BodyId, payload: Bytes) {
        let mut state = self.state.lock();
        if state.payloads.contains_key(&id) {
            return;
        }
        state.bytes += payload.len();
        state.payloads.insert(id, payload);
        state.order.push_back(id);
        while state.bytes > CACHE_BYTES_MAX {
            let Some(oldest) = state.order.pop_front() else { break };
            let removed = state.payloads.remove(&oldest).map_or(0, |payload| payload.len());
            state.bytes -= removed;
        }
    }

    /// Removes bodies that are no longer stored.
    pub fn remove(&self, ids: &[BodyId]) {
        let mut state = self.state.lock();
        for id in ids {
            if let Some(payload) = state.payloads.remove(id) {
                state.bytes -= payload.len();
                state.order.retain(|known| known != id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(record: u64) -> BodyId {
        BodyId { record, at: 70 }
    }

    #[test]
    fn id_is_encoded_in_order_and_its_key_is_not_that_of_a_block() {
        assert!([id(1), id(256), BodyId { record: 256, at: 256 }].map(BodyId::key).is_sorted());
        assert_eq!(BodyId::of_key(&id(300).key()), Some(id(300)));
        assert_eq!(BodyId::of_key(b"a\0\0\0\0\0\0\0\0\x01"), None);
    }

    #[test]
    fn body_is_unreferenced_after_its_last_row_and_only_before_the_first_record() {
        let mut references = References::default();
        references.add(&[id(5), id(6)]);
        references.add_body(id(5), true);
        references.add_body(id(6), true);
        references.add(&[id(5)]);
        references.subtract(&[id(5), id(6)], false);
        assert_eq!(references.unreferenced(7, 9), [id(6)]);
        assert_eq!(references.unreferenced(6, 9), [], "its record is in the WAL");
        references.add(&[id(6)]);
        assert_eq!(references.unreferenced(7, 9), [], "a later row lists it");
        references.subtract(&[id(5), id(6)], true);
        assert_eq!((references.unreferenced(7, 1), references.unreferenced(7, 9)), (vec![id(5)], vec![id(5), id(6)]));
        assert!(references.remove_body(id(5)) && !references.remove_body(id(5)));
        assert_eq!(references.unreferenced(7, 9), [id(6)]);
        references.add_body(id(8), false);
        references.add_body(id(9), true);
        assert!(!references.remove_body(id(8)), "the flush has put it, and all users have acknowledged it");
        references.add(&[id(11)]);
        references.forget(&[id(10), id(11)]);
        [id(10), id(11)].into_iter().for_each(|id| references.add_body(id, false));
        assert!(references.remove_body(id(10)), "its last user was erased before the flush wrote a block");
        references.subtract(&[id(11)], false);
        assert!(!references.remove_body(id(11)), "its last user has acknowledged it");
        assert!(references.remove_body(id(9)), "the count has found it, perhaps after an interrupted erasure");
    }

    #[test]
    fn cache_keeps_the_newest_bodies_within_its_bound() {
        let cache = BodyCache::default();
        let payload = Bytes::from(vec![7; CACHE_BYTES_MAX / 4]);
        (1..=5).for_each(|record| cache.insert(id(record), payload.clone()));
        assert_eq!(
            (1..=5).map(|record| cache.get(id(record)).is_some()).collect::<Vec<_>>(),
            [false, true, true, true, true]
        );
        cache.remove(&[id(2)]);
        cache.insert(id(6), payload);
        assert!([3, 4, 5, 6].into_iter().all(|record| cache.get(id(record)).is_some()) && cache.get(id(2)).is_none());
    }

    #[test]
    fn payload_is_returned_only_for_its_namespace_and_length() {
        let body = Bytes::from(SharedBody::V1 { namespace: 7, payload: b"text" }.encode());
        assert_eq!(SharedBody::payload(&body, 7, 4).unwrap(), &b"text"[..]);
        assert!(SharedBody::payload(&body, 8, 4).is_err() && SharedBody::payload(&body, 7, 5).is_err());
        let why = Unreadable::new("its file is missing");
        assert_eq!(SharedBody::payload(&why.to_value(), 7, 4).unwrap_err(), why);
    }

    #[test]
    fn only_large_payloads_with_enough_recipients_are_shared() {
        let shared = |bytes, recipients| is_shared(bytes, recipients);
        assert!(shared(50_000, 2) && !shared(50_000, 1) && !shared(50_000, 0));
        assert!(shared(1024, 17) && !shared(1024, 16) && !shared(1023, 10_000));
    }
}
