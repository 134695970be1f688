//! Reads a user's entries from the value log. Checks the owner and namespace of each block.

use std::cell::RefCell;

use bytes::Bytes;

use super::bodies::{BodyId, SharedBody};
use crate::{
    embedded::{
        store_state::StoreState,
        tables::{
            contract::{EngineError, Table},
            schema::{is_log_key_of, log_key},
        },
        unreadable::Unreadable,
        value_log::block::{Block, Body},
    },
    message::{Payload, Seq, UserId},
    store::{Entry, StoreError},
};

/// An entry in a block.
pub(in crate::embedded) struct StoredEntry<'a> {
    pub seq: Seq,
    /// Expiry in seconds of the Unix epoch; 0 = never.
    pub expires_s: u32,
    /// Bytes of payload.
    pub bytes: usize,
    namespace: u32,
    owner: &'a str,
    body: Body<'a>,
    block: &'a Bytes,
    store: &'a StoreState,
    /// Why the payload could not be read. [`StoreState::read_value_log`] handles it.
    failure: &'a RefCell<Option<BodyFailure>>,
}

/// States why a shared body could not be read.
enum BodyFailure {
    Missing(BodyId),
    Unreadable(Unreadable),
    Engine(EngineError),
}

/// The end of a scan of blocks.
enum ScanEnd {
    /// The scan is complete, or the visitor ended it (false).
    Done(bool),
    Damaged(String),
    /// The block of this key lists a body that does not exist. Its entry has this sequence.
    Missing(Vec<u8>, BodyId, Seq),
    Failed(EngineError),
}

impl StoredEntry<'_> {
    /// Returns the payload. It references the block or the shared body, which stays in memory.
    ///
    /// Returns `None` if a shared body cannot be read. Then the visitor ignores the entry, and returns true.
    pub fn payload(&self) -> Option<Bytes> {
        let (id, length) = match self.body {
            Body::Inline(payload) => return Some(self.block.slice_ref(payload)),
            Body::Shared(id, length) => (id, length),
        };
        let read = self.store.shared_body(id, length);
        read.map_err(|failure| *self.failure.borrow_mut() = Some(failure)).ok()
    }

    /// As [`payload`](Self::payload), with the owner.
    pub fn entry(&self) -> Option<Entry> {
        let payload = Payload::from_stored(self.payload()?);
        let owner = self.block.slice_ref(self.owner.as_bytes());
        Some(Entry { namespace: self.namespace, owner, seq: self.seq, payload })
    }
}

fn damaged(user: &UserId, last: Seq, why: &str) -> String {
    format!(
        "messages of user {user:?} after sequence {last} cannot be read ({why}). Save what is left with \
         `mesa inspect --salvage`, restore a backup, or clear this user's messages"
    )
}

impl StoreState {
    /// Reads a shared body, from the cache if possible.
    fn shared_body(&self, id: BodyId, length: u32) -> Result<Bytes, BodyFailure> {
        if let Some(payload) = self.bodies.get(id).filter(|payload| payload.len() == length as usize) {
            return Ok(payload);
        }
        let value = self.engine.get(Table::Bodies, &id.key()).map_err(BodyFailure::Engine)?;
        let value = value.ok_or(BodyFailure::Missing(id))?;
        let payload = SharedBody::payload(&value, self.namespace, length).map_err(BodyFailure::Unreadable)?;
        self.bodies.insert(id, payload.clone());
        Ok(payload)
    }

    /// Visits a user's entries in the value log, ascending, until `visit` returns false.
    ///
    /// Visits sequences above `after` up to `to`. Returns false if `visit` did.
    pub(in crate::embedded) fn read_value_log(
        &self,
        user: &UserId,
        after: Seq,
        to: Seq,
        visit: &mut dyn FnMut(StoredEntry<'_>) -> bool,
    ) -> Result<bool, StoreError> {
        let mut from = after;
        let damage = loop {
            let (key, id, seq) = match self.scan_blocks(user, from, to, visit)? {
                ScanEnd::Done(is_complete) => return Ok(is_complete),
                ScanEnd::Failed(error) => return Err(error.into()),
                ScanEnd::Damaged(damage) => break damage,
                ScanEnd::Missing(key, id, seq) => (key, id, seq),
            };
            // A body is removed after the blocks that listed it. If the block no longer does, the entry was removed
            // since the block was read. Each round skips one such entry.
            let block = self.engine.get(Table::Log, &key)?;
            let entries = match block.as_deref().map(Block::decode) {
                Some(Ok(Block::V1 { entries, .. })) => entries,
                _ => Vec::new(),
            };
            if entries.iter().any(|(.., body)| matches!(body, Body::Shared(listed, _) if *listed == id)) {
                break damaged(user, seq - 1, "the shared body of a message is missing");
            }
            from = seq;
        };
        // From now on lists of users show the user as damaged, until the damaged blocks are removed.
        self.logs.with_loaded(user, |log| log.damaged = true);
        Err(StoreError::Damaged(damage.into()))
    }

    /// Visits a user's entries until a shared body is missing.
    fn scan_blocks(
        &self,
        user: &UserId,
        after: Seq,
        to: Seq,
        visit: &mut dyn FnMut(StoredEntry<'_>) -> bool,
    ) -> Result<ScanEnd, EngineError> {
        let id = user.as_str();
        // The block that begins at or before the first wanted entry may contain it.
        let wanted = log_key(id, after + 1);
        let floor = self.engine.last_key_at_or_before(Table::Log, &wanted)?;
        let from = floor.filter(|key| is_log_key_of(key, id)).map_or(wanted, |key| key.to_vec());
        let (mut last, mut end) = (after, ScanEnd::Done(true));
        self.engine.scan(Table::Log, &from, &mut |key, value| {
            if !is_log_key_of(key, id) {
                return false;
            }
            let Block::V1 { namespace, user: owner, entries } = match Block::decode(&value) {
                Ok(block) => block,
                Err(error) => {
                    end = ScanEnd::Damaged(damaged(user, last, &error.to_string()));
                    return false;
                }
            };
            if owner != id || namespace != self.namespace {
                end = ScanEnd::Damaged(damaged(user, last, "a block belongs to another user or namespace"));
                return false;
            }
            let failure = RefCell::new(None);
            for (seq, expires_s, body) in entries {
                // Blocks may overlap after a crash during a flush, so visited entries are skipped.
                if seq <= last || seq > to {
                    continue;
                }
                let (bytes, block, store, failure) = (body.len(), &value, self, &failure);
                let found = StoredEntry { seq, expires_s, bytes, namespace, owner, body, block, store, failure };
                let goes_on = visit(found);
                match failure.take() {
                    None if goes_on => last = seq,
                    None => end = ScanEnd::Done(false),
                    Some(BodyFailure::Missing(id)) => end = ScanEnd::Missing(key.to_vec(), id, seq),
                    Some(BodyFailure::Unreadable(why)) => end = ScanEnd::Damaged(damaged(user, last, &why.to_string())),
                    Some(BodyFailure::Engine(error)) => end = ScanEnd::Failed(error),
                }
                if last != seq {
                    return false;
                }
            }
            last < to
        })?;
        Ok(end)
    }
}
