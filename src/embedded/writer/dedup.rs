//! Deduplicates dispatches: keeps the result of each idempotency id for the window in which a retry may come.
//!
//! Ids are written in their commit, moved to their own table by the flush, and read from both when the store opens.
//! Only the commit thread checks them, so of two dispatches with the same id one is first.

use std::{
    collections::{HashMap, VecDeque},
    hash::{BuildHasher, RandomState},
};

use crate::{
    embedded::tables::schema::{Ids as IdBlock, StoredId},
    embedded::wal::record::Item,
    failpoints::{self, Failpoint},
    message::DispatchId,
    store::{DispatchSummary, Limits, Reason, Rejected},
};

/// Bytes of rejected users in the table. Beyond it the oldest ids are dropped early.
const REJECTED_BYTES_MAX: usize = 32 << 20;

/// Bytes of ids and of what was rejected under them in one stored chunk.
const CHUNK_BYTES: usize = 32 << 10;

/// Result stored for an id.
#[derive(Debug)]
struct Known {
    at_ms: u64,
    summary: DispatchSummary,
}

/// Table of idempotency ids and their results.
#[derive(Debug)]
pub struct DedupTable {
    window_ms: u64,
    max: usize,
    /// Two hashes with keys nobody else has make a name of 128 bits: no two ids share one, whoever chooses them.
    hashers: [RandomState; 2],
    known: HashMap<u128, Known, foldhash::fast::RandomState>,
    order: VecDeque<u128>,
    rejected_bytes: usize,
    /// What was rejected under ids of which not all parts have been read.
    parts: HashMap<String, Vec<Rejected>>,
}

impl DedupTable {
    pub fn new(limits: &Limits) -> Self {
        Self {
            window_ms: u64::try_from(limits.ids_window.as_millis()).unwrap_or(u64::MAX),
            max: limits.ids,
            hashers: [RandomState::new(), RandomState::new()],
            known: HashMap::default(),
            order: VecDeque::new(),
            rejected_bytes: 0,
            parts: HashMap::new(),
        }
    }

    fn name(&self, id: &str) -> u128 {
        let [high, low] = self.hashers.each_ref().map(|hasher| u128::from(hasher.hash_one(id)));
        high << 64 | low
    }

    /// Returns the result of this id, if it is within the window.
    pub fn get(&self, id: &DispatchId, now_ms: u64) -> Option<&DispatchSummary> {
        let known = self.known.get(&self.name(id.as_str()))?;
        self.is_young(known.at_ms, now_ms).then_some(&known.summary)
    }

    /// Whether it is among those that are remembered.
    pub fn knows(&self, id: &str) -> bool {
        self.known.contains_key(&self.name(id))
    }

    /// Whether an id of that time is still to be remembered.
    pub fn is_young(&self, at_ms: u64, now_ms: u64) -> bool {
        now_ms.saturating_sub(at_ms) < self.window_ms
    }

    /// Remembers what is being answered, and lets go of what is too old or too much.
    pub fn insert(&mut self, id: &str, at_ms: u64, summary: DispatchSummary, now_ms: u64) {
        // First, so that an id that comes again after its time is new.
        self.forget(now_ms);
        let name = self.name(id);
        self.rejected_bytes += rejected_bytes(&summary);
        match self.known.insert(name, Known { at_ms, summary }) {
            Some(before) => self.rejected_bytes -= rejected_bytes(&before.summary),
            None => self.order.push_back(name),
        }
        self.forget(now_ms);
    }

    /// Takes back a stored chunk. Of an id that was stored in parts the last part comes last.
    pub fn load(&mut self, ids: &[StoredId], now_ms: u64) {
        for stored in ids.iter().filter(|_| !failpoints::enabled(Failpoint::LostIds)) {
            if !self.is_young(stored.at_ms, now_ms) {
                continue;
            }
            let mut whole = summary(stored);
            if let Some(part) = self.parts.remove(&stored.id) {
                whole.rejected.splice(0..0, part);
            }
            if stored.more {
                self.parts.insert(stored.id.clone(), whole.rejected);
            } else {
                self.insert(&stored.id, stored.at_ms, whole, now_ms);
            }
        }
    }

    /// Lets go of what is too old or too much.
    pub fn forget(&mut self, now_ms: u64) {
        while let Some(oldest) = self.order.front() {
            let at_ms = self.known.get(oldest).map_or(0, |known| known.at_ms);
            let over = self.order.len() > self.max || self.rejected_bytes > REJECTED_BYTES_MAX;
            if self.is_young(at_ms, now_ms) && !over {
                break;
            }
            if let Some(known) = self.order.pop_front().and_then(|oldest| self.known.remove(&oldest)) {
                self.rejected_bytes -= rejected_bytes(&known.summary);
            }
        }
        if self.order.len() * 4 < self.order.capacity() {
            self.order.shrink_to_fit();
            self.known.shrink_to_fit();
        }
    }
}

fn rejected_bytes(summary: &DispatchSummary) -> usize {
    summary.rejected.iter().map(|one| one.user.len() + size_of::<Rejected>()).sum()
}

/// Set in a stored `offline`: the append had no recipients in the log, so nothing was stored for those counted.
///
/// The bit is free, because no dispatch has 2^31 recipients. Without it every recipient counted was stored.
const NOTHING_STORED: u32 = 1 << 31;

/// Packs the number of offline users and whether anything was stored into the field that records have for the first.
pub fn offline_to_store(summary: &DispatchSummary) -> u32 {
    let nothing = summary.stored == 0 && summary.online + summary.offline > 0;
    summary.offline | if nothing { NOTHING_STORED } else { 0 }
}

/// What is to be stored of an id. `offline` is as [`offline_to_store`] packs it.
pub fn stored(id: &str, at_ms: u64, recipients: u32, online: u32, offline: u32, rejected: &[Rejected]) -> StoredId {
    let rejected = rejected.iter().map(|one| (one.user.to_string(), one.reason as u8)).collect();
    StoredId { id: id.to_owned(), at_ms, recipients, online, offline, rejected, more: false }
}

/// What was stored of an id.
pub fn summary(stored: &StoredId) -> DispatchSummary {
    let rejected = stored.rejected.iter().map(|(user, reason)| Rejected {
        user: user.as_str().into(),
        reason: Reason::from_stored(*reason).unwrap_or(Reason::Invalid),
    });
    let offline = stored.offline & !NOTHING_STORED;
    DispatchSummary {
        recipients: stored.recipients,
        online: stored.online,
        offline,
        stored: if offline == stored.offline { stored.online.saturating_add(offline) } else { 0 },
        rejected: rejected.collect(),
    }
}

/// Makes chunks of ids, none too large for a table: one with very many rejected users is stored in parts.
pub fn chunks(namespace: u32, ids: Vec<StoredId>) -> Vec<IdBlock> {
    let (mut chunks, mut open, mut bytes) = (Vec::new(), Vec::new(), 0);
    let mut put = |part: StoredId| {
        bytes += part.id.len() + 32 + part.rejected.iter().map(|(user, _)| user.len() + 8).sum::<usize>();
        open.push(part);
        if bytes > CHUNK_BYTES {
            bytes = 0;
            chunks.push(IdBlock::V1 { namespace, ids: std::mem::take(&mut open) });
        }
    };
    for mut id in ids {
        // Twenty names of rejected users are less than a chunk.
        while id.rejected.len() > 20 {
            let rest = id.rejected.split_off(20);
            put(StoredId { rejected: std::mem::replace(&mut id.rejected, rest), more: true, ..id.clone_head() });
        }
        put(id);
    }
    if !open.is_empty() {
        chunks.push(IdBlock::V1 { namespace, ids: open });
    }
    chunks
}

impl StoredId {
    /// Without what was rejected.
    fn clone_head(&self) -> Self {
        Self { id: self.id.clone(), rejected: Vec::new(), ..*self }
    }
}

/// What is to be stored of an id that was found in the journal.
pub(in crate::embedded) fn stored_from_wal(item: &Item<'_>, at_ms: u64, rejected: &[Rejected]) -> Option<StoredId> {
    let Item::Summary { id, recipients, online, offline } = *item else { return None };
    Some(stored(id, at_ms, recipients, online, offline, rejected))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn ids(max: usize) -> DedupTable {
        DedupTable::new(&Limits { ids: max, ids_window: Duration::from_millis(100), ..Limits::default() })
    }

    fn id(name: &str) -> DispatchId {
        DispatchId::new(name).unwrap()
    }

    #[test]
    fn an_id_is_known_for_its_window_and_the_oldest_goes_first() {
        let mut ids = ids(2);
        for (at, name) in ["a", "b", "c"].into_iter().enumerate() {
            ids.insert(
                name,
                at as u64,
                DispatchSummary { recipients: at as u32, ..DispatchSummary::default() },
                at as u64,
            );
        }
        assert_eq!(ids.get(&id("a"), 3), None);
        assert_eq!(ids.get(&id("c"), 3).unwrap().recipients, 2);
        assert_eq!(ids.get(&id("c"), 102), None);
    }

    #[test]
    fn stored_count_survives_packing() {
        for (online, offline, stored) in [(2, 3, 5), (2, 3, 0), (0, 0, 0), (0, 1, 1), (1, 0, 0)] {
            let answer = DispatchSummary { recipients: 9, online, offline, stored, ..DispatchSummary::default() };
            let packed = super::stored("a", 1, 9, online, offline_to_store(&answer), &[]);
            assert_eq!(summary(&packed), answer);
        }
    }

    #[test]
    fn an_id_with_very_many_rejected_users_is_stored_in_parts_and_read_as_one() {
        let rejected: Vec<_> =
            (0..5000).map(|n| Rejected { user: format!("user-{n}").into(), reason: Reason::Quota }).collect();
        let chunks = chunks(7, vec![stored("a", 1, 5000, 0, 0, &rejected), stored("b", 1, 1, 1, 0, &[])]);
        assert!(chunks.len() > 1 && chunks.iter().all(|chunk| chunk.encode().len() < 64 << 10));
        let mut ids = ids(10);
        for chunk in chunks {
            let IdBlock::V1 { ids: parts, .. } = chunk;
            ids.load(&parts, 1);
        }
        assert_eq!(ids.get(&id("a"), 1).unwrap().rejected, rejected);
        assert_eq!(ids.get(&id("b"), 1).unwrap().online, 1);
    }
}
