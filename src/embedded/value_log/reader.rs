//! Reads a user's entries from the value log. Checks the owner and namespace of each block.

use bytes::Bytes;

use crate::{
    embedded::{
        store_state::StoreState,
        tables::{
            contract::Table,
            schema::{is_log_key_of, log_key},
        },
        value_log::block::Block,
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
    payload: &'a [u8],
    block: &'a Bytes,
}

impl StoredEntry<'_> {
    /// Returns the payload. It references the block, which stays in memory.
    pub fn payload(&self) -> Bytes {
        self.block.slice_ref(self.payload)
    }

    pub fn entry(&self) -> Entry {
        Entry {
            namespace: self.namespace,
            owner: self.block.slice_ref(self.owner.as_bytes()),
            seq: self.seq,
            payload: Payload::from_stored(self.payload()),
        }
    }
}

fn damaged(user: &UserId, last: Seq, why: &str) -> String {
    format!(
        "messages of user {user:?} after sequence {last} cannot be read ({why}). Save what is left with \
         `mesa inspect --salvage`, restore a backup, or clear this user's messages"
    )
}

impl StoreState {
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
        let id = user.as_str();
        // The block that begins at or before the first wanted entry may contain it.
        let wanted = log_key(id, after + 1);
        let floor = self.engine.last_key_at_or_before(Table::Log, &wanted)?;
        let from = floor.filter(|key| is_log_key_of(key, id)).map_or(wanted, |key| key.to_vec());
        let (mut last, mut is_complete, mut damage) = (after, true, None);
        let scanned = self.engine.scan(Table::Log, &from, &mut |key, value| {
            if !is_log_key_of(key, id) {
                return false;
            }
            let Block::V1 { namespace, user: owner, entries } = match Block::decode(&value) {
                Ok(block) => block,
                Err(error) => {
                    damage = Some(damaged(user, last, &error.to_string()));
                    return false;
                }
            };
            if owner != id || namespace != self.namespace {
                damage = Some(damaged(user, last, "a block belongs to another user or namespace"));
                return false;
            }
            for (seq, expires_s, payload) in entries {
                // Blocks may overlap after a crash during a flush, so visited entries are skipped.
                if seq <= last || seq > to {
                    continue;
                }
                let found =
                    StoredEntry { seq, expires_s, bytes: payload.len(), namespace, owner, payload, block: &value };
                if !visit(found) {
                    is_complete = false;
                    return false;
                }
                last = seq;
            }
            last < to
        });
        scanned?;
        let Some(damage) = damage else { return Ok(is_complete) };
        // From now on lists of users show the user as damaged, until the damaged blocks are removed.
        self.logs.with_loaded(user, |log| log.damaged = true);
        Err(StoreError::Damaged(damage.into()))
    }
}
