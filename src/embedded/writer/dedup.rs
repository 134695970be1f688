//! Deduplicates dispatches: stores the result of each idempotency id for the window in which a retry may arrive.
//!
//! A commit writes its ids to the WAL, and the flush moves them to the table of ids. Both are read when the store
//! opens. Only the commit thread checks ids, so of two dispatches with the same id one is first.

use std::{
    collections::{HashMap, VecDeque},
    hash::{BuildHasher, RandomState},
};

use crate::{
    embedded::tables::schema::{Ids as IdBlock, StoredId},
    failpoints::{self, Failpoint},
    message::DispatchId,
    store::{DispatchSummary, Limits, Rejected, RejectionReason},
    util::millis::millis,
};

/// Limit of memory for rejected recipients, in bytes. Above it, the oldest ids are removed early.
const REJECTED_BYTES_MAX: usize = 32 << 20;

/// Limit of ids that one call removes, which takes about a millisecond. A step between commits removes the others.
const STEP_EXPIRED_MAX: usize = 2048;

/// Limit of ids for which the memory of removed ones is released in one step.
const SHRINK_IDS_MAX: usize = 32_768;

/// Bytes of ids and their rejected recipients at which a stored block is closed.
///
/// The last id of a block adds up to 2 KiB, so that a block is at most [`VALUE_BYTES_MAX`] long.
///
/// [`VALUE_BYTES_MAX`]: crate::embedded::tables::schema::VALUE_BYTES_MAX
const BLOCK_BYTES: usize = 2 << 10;

/// Number of rejected recipients in one part of a stored id. A part is smaller than a block.
const PART_REJECTED_MAX: usize = 5;

/// Holds the result of an id, and the time of its commit.
#[derive(Debug)]
struct KnownId {
    at_ms: u64,
    summary: DispatchSummary,
}

/// Holds idempotency ids and their results.
#[derive(Debug)]
pub struct DedupTable {
    window_ms: u64,
    ids_max: usize,
    /// Two hashes with random keys, 128 bits in total. A backend cannot choose ids that collide.
    hashers: [RandomState; 2],
    known: HashMap<u128, KnownId, foldhash::fast::RandomState>,
    /// Hashes of the ids, oldest first.
    order: VecDeque<u128>,
    /// Places in `order` that count no more: their ids were used again after the window, before they were removed.
    replaced: HashMap<u128, u32, foldhash::fast::RandomState>,
    rejected_bytes: usize,
    /// Rejected recipients of ids that are stored in parts, until the last part is loaded.
    parts: HashMap<String, Vec<Rejected>>,
}

impl DedupTable {
    pub fn new(limits: &Limits) -> Self {
        Self {
            window_ms: millis(limits.ids_window),
            ids_max: limits.ids,
            hashers: [RandomState::new(), RandomState::new()],
            known: HashMap::default(),
            order: VecDeque::new(),
            replaced: HashMap::default(),
            rejected_bytes: 0,
            parts: HashMap::new(),
        }
    }

    fn hash(&self, id: &str) -> u128 {
        let [high, low] = self.hashers.each_ref().map(|hasher| u128::from(hasher.hash_one(id)));
        high << 64 | low
    }

    /// Returns the result of this id, if it is within the window.
    pub fn get(&self, id: &DispatchId, now_ms: u64) -> Option<&DispatchSummary> {
        let known = self.known.get(&self.hash(id.as_str()))?;
        self.is_within_window(known.at_ms, now_ms).then_some(&known.summary)
    }

    /// Returns whether the table has an id.
    pub fn contains(&self, id: &str) -> bool {
        self.known.contains_key(&self.hash(id))
    }

    /// Returns whether an id that was committed at `at_ms` is within the window.
    pub fn is_within_window(&self, at_ms: u64, now_ms: u64) -> bool {
        now_ms.saturating_sub(at_ms) < self.window_ms
    }

    /// Stores the result of an id, and removes some ids that are too old or exceed a limit.
    pub fn insert(&mut self, id: &str, at_ms: u64, summary: DispatchSummary, now_ms: u64) {
        let hash = self.hash(id);
        self.rejected_bytes += rejected_bytes(&summary);
        if let Some(before) = self.known.insert(hash, KnownId { at_ms, summary }) {
            // It is used again after its window, and now is the youngest.
            self.rejected_bytes -= rejected_bytes(&before.summary);
            *self.replaced.entry(hash).or_default() += 1;
        }
        self.order.push_back(hash);
        self.expire(now_ms);
    }

    /// Loads a stored block. An id that was stored in parts is complete with its last part.
    pub fn load(&mut self, ids: &[StoredId], now_ms: u64) {
        for stored in ids.iter().filter(|_| !failpoints::enabled(Failpoint::LostIds)) {
            if !self.is_within_window(stored.at_ms, now_ms) {
                continue;
            }
            let mut summary = decode_summary(stored);
            if let Some(part) = self.parts.remove(&stored.id) {
                summary.rejected.splice(0..0, part);
            }
            if stored.more {
                self.parts.insert(stored.id.clone(), summary.rejected);
            } else {
                self.insert(&stored.id, stored.at_ms, summary, now_ms);
            }
        }
    }

    /// Removes a user from all rejected recipients. Returns true if the user was among them.
    pub fn erase(&mut self, user: &str) -> bool {
        let mut removed = 0;
        for known in self.known.values_mut().filter(|known| !known.summary.rejected.is_empty()) {
            let before = rejected_bytes(&known.summary);
            known.summary.rejected.retain(|rejected| &*rejected.user != user);
            removed += before - rejected_bytes(&known.summary);
        }
        self.rejected_bytes -= removed;
        removed > 0
    }

    /// Returns the rejected recipients of an id, in their stored form.
    pub fn stored_rejected(&self, id: &str) -> Vec<(String, u8)> {
        let known = self.known.get(&self.hash(id)).map(|known| &known.summary.rejected);
        known.into_iter().flatten().map(|Rejected { user, reason }| (user.to_string(), *reason as u8)).collect()
    }

    /// Removes ids that are too old or exceed a limit, at most [`STEP_EXPIRED_MAX`]. Returns true if more are left.
    pub fn expire(&mut self, now_ms: u64) -> bool {
        let mut left = STEP_EXPIRED_MAX;
        while let Some(oldest) = self.order.front() {
            if left == 0 {
                return true;
            }
            left -= 1;
            if let Some(places) = self.replaced.get_mut(oldest) {
                *places -= 1;
                if *places == 0 {
                    self.replaced.remove(oldest);
                }
                self.order.pop_front();
                continue;
            }
            let at_ms = self.known.get(oldest).map_or(0, |known| known.at_ms);
            let over = self.order.len() > self.ids_max || self.rejected_bytes > REJECTED_BYTES_MAX;
            if self.is_within_window(at_ms, now_ms) && !over {
                break;
            }
            if let Some(known) = self.order.pop_front().and_then(|oldest| self.known.remove(&oldest)) {
                self.rejected_bytes -= rejected_bytes(&known.summary);
            }
        }
        if self.order.len() * 4 < self.order.capacity() && self.order.len() <= SHRINK_IDS_MAX {
            self.order.shrink_to_fit();
            self.known.shrink_to_fit();
        }
        false
    }
}

fn rejected_bytes(summary: &DispatchSummary) -> usize {
    summary.rejected.iter().map(|rejected| rejected.user.len() + size_of::<Rejected>()).sum()
}

/// Decodes the result of a stored id.
pub fn decode_summary(id: &StoredId) -> DispatchSummary {
    let rejected = id.rejected.iter().map(|(user, reason)| Rejected {
        user: user.as_str().into(),
        reason: RejectionReason::from_stored(*reason).unwrap_or(RejectionReason::Invalid),
    });
    DispatchSummary {
        recipients: id.recipients,
        online: id.online,
        offline: id.offline,
        stored: id.stored,
        rejected: rejected.collect(),
    }
}

/// Packs ids into blocks that fit into a table. Splits an id with many rejected recipients into parts.
pub fn pack_blocks(namespace: u32, ids: Vec<StoredId>) -> Vec<IdBlock> {
    let (mut blocks, mut open, mut bytes) = (Vec::new(), Vec::new(), 0);
    let mut put = |part: StoredId| {
        bytes += part.id.len() + 32 + part.rejected.iter().map(|(user, _)| user.len() + 8).sum::<usize>();
        open.push(part);
        if bytes > BLOCK_BYTES {
            bytes = 0;
            blocks.push(IdBlock::V1 { namespace, ids: std::mem::take(&mut open) });
        }
    };
    for mut id in ids {
        while id.rejected.len() > PART_REJECTED_MAX {
            let rest = id.rejected.split_off(PART_REJECTED_MAX);
            put(StoredId { rejected: std::mem::replace(&mut id.rejected, rest), more: true, ..id.without_rejected() });
        }
        put(id);
    }
    if !open.is_empty() {
        blocks.push(IdBlock::V1 { namespace, ids: open });
    }
    blocks
}

impl StoredId {
    /// Copies the id without its rejected recipients.
    fn without_rejected(&self) -> Self {
        Self { id: self.id.clone(), rejected: Vec::new(), ..*self }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::embedded::wal::{
        events::{Event, RecordDecoder},
        record::{Item, RecordWriter},
    };

    fn table(max: usize) -> DedupTable {
        DedupTable::new(&Limits { ids: max, ids_window: Duration::from_millis(100), ..Limits::default() })
    }

    fn id(name: &str) -> DispatchId {
        DispatchId::new(name).unwrap()
    }

    #[test]
    fn id_is_known_within_window_and_oldest_is_removed_above_limit() {
        let mut table = table(2);
        for (at, name) in ["a", "b", "c"].into_iter().enumerate() {
            table.insert(
                name,
                at as u64,
                DispatchSummary { recipients: at as u32, ..DispatchSummary::default() },
                at as u64,
            );
        }
        assert_eq!(table.get(&id("a"), 3), None);
        assert_eq!(table.get(&id("c"), 3).unwrap().recipients, 2);
        assert_eq!(table.get(&id("c"), 102), None);
    }

    #[test]
    fn many_ids_expire_in_steps_and_an_id_that_is_used_again_meanwhile_stays() {
        const IDS: usize = 50_000;
        let mut table = table(usize::MAX);
        let summary = |recipients| DispatchSummary { recipients, ..DispatchSummary::default() };
        (0..IDS).for_each(|n| table.insert(&n.to_string(), 1, summary(1), 1));
        let last = (IDS - 1).to_string();
        // Twice, each after its window, while the places of the first use are still in the table.
        for (at_ms, recipients) in [(200, 2), (400, 3)] {
            assert_eq!(table.get(&id(&last), at_ms), None, "after the window the id is new");
            let before = table.order.len();
            table.insert(&last, at_ms, summary(recipients), at_ms);
            assert!(before - table.order.len() < STEP_EXPIRED_MAX && table.order.len() > IDS / 2);
        }
        let mut steps = 1;
        loop {
            let before = table.order.len();
            let more = table.expire(400);
            assert!(before - table.order.len() <= STEP_EXPIRED_MAX);
            if !more {
                break;
            }
            steps += 1;
        }
        assert!(steps >= (IDS - 3 * STEP_EXPIRED_MAX) / STEP_EXPIRED_MAX, "{steps} steps");
        assert_eq!((table.order.len(), table.known.len(), table.replaced.len()), (1, 1, 0));
        assert_eq!(table.get(&id(&last), 400).unwrap().recipients, 3);
        assert!(!table.expire(600) && table.order.is_empty() && table.known.is_empty());
    }

    fn stored(id: &str, summary: &DispatchSummary) -> StoredId {
        let DispatchSummary { recipients, online, offline, stored, ref rejected } = *summary;
        let mut writer = RecordWriter::new(7, 1);
        for Rejected { user, reason } in rejected {
            writer.push(&Item::Rejected { user, reason: *reason as u8 });
        }
        writer.push(&Item::Summary { id, recipients, online, offline, stored });
        let record = writer.finish();
        let event = RecordDecoder::default().events(&record).unwrap().next();
        let Some(Ok(Event::Summary(stored))) = event else { panic!("expected a summary, not {event:?}") };
        stored
    }

    #[test]
    fn stored_id_returns_its_summary() {
        let rejected = vec![Rejected { user: "bob".into(), reason: RejectionReason::Quota }];
        for stored_count in [0, 5] {
            let result = DispatchSummary {
                recipients: 6,
                online: 2,
                offline: 3,
                stored: stored_count,
                rejected: rejected.clone(),
            };
            assert_eq!(decode_summary(&stored("a", &result)), result);
        }
    }

    #[test]
    fn id_with_many_rejected_users_is_stored_in_parts_and_loads_as_one() {
        let rejected: Vec<_> =
            (0..5000).map(|n| Rejected { user: format!("user-{n}").into(), reason: RejectionReason::Quota }).collect();
        let whole = DispatchSummary { recipients: 5000, rejected, ..DispatchSummary::default() };
        let next = DispatchSummary { recipients: 1, online: 1, stored: 1, ..DispatchSummary::default() };
        let blocks = pack_blocks(7, vec![stored("a", &whole), stored("b", &next)]);
        assert!(blocks.len() > 1 && blocks.iter().all(|block| block.encode().len() < 64 << 10));
        let mut table = table(10);
        for block in blocks {
            let IdBlock::V1 { ids: parts, .. } = block;
            table.load(&parts, 1);
        }
        assert_eq!(table.get(&id("a"), 1), Some(&whole));
        assert_eq!(table.get(&id("b"), 1), Some(&next));
    }
}
