//! Caches the newest WAL records in memory.
//!
//! Online sessions read committed entries from here, and sessions of returning users read unflushed ones.

use std::collections::VecDeque;

use bytes::Bytes;
use parking_lot::RwLock;

/// Memory overhead of a cached record, in bytes.
const RECORD_OVERHEAD_BYTES: usize = 64;

/// Caches consecutive records up to the newest.
#[derive(Debug)]
pub struct RecordCache {
    /// Limit of memory for records, in bytes. Above it, the oldest are evicted, and read from disk.
    bytes_max: usize,
    state: RwLock<CachedRecords>,
}

#[derive(Debug, Default)]
struct CachedRecords {
    first: u64,
    records: VecDeque<Bytes>,
    /// Memory of the records, in bytes.
    bytes: usize,
}

impl CachedRecords {
    fn pop(&mut self) -> bool {
        let Some(oldest) = self.records.pop_front() else { return false };
        self.bytes -= memory_bytes(&oldest);
        self.first += 1;
        true
    }
}

fn memory_bytes(record: &Bytes) -> usize {
    record.len() + RECORD_OVERHEAD_BYTES
}

impl RecordCache {
    /// Creates an empty cache of at most `bytes_max` bytes.
    pub fn new(bytes_max: usize) -> Self {
        Self { bytes_max, state: RwLock::default() }
    }

    /// Adds the next record. Its spare capacity is not counted, so it must have none.
    pub fn push(&self, number: u64, record: Bytes) {
        let mut state = self.state.write();
        if state.records.is_empty() {
            state.first = number;
        }
        assert_eq!(number, state.first + state.records.len() as u64, "records are numbered without a gap");
        state.bytes += memory_bytes(&record);
        state.records.push_back(record);
        while state.bytes > self.bytes_max && state.pop() {}
    }

    /// Removes all records before `number`, which have been flushed.
    pub fn remove_before(&self, number: u64) {
        let mut state = self.state.write();
        while state.first < number && state.pop() {}
    }

    /// Returns a record, if it is cached.
    pub fn get(&self, number: u64) -> Option<Bytes> {
        self.newest_of(&[number]).pop()
    }

    /// Returns the cached ones of these records, which are always the last. `numbers` must ascend.
    pub fn newest_of(&self, numbers: &[u64]) -> Vec<Bytes> {
        let state = self.state.read();
        let end = state.first + state.records.len() as u64;
        let from = numbers.partition_point(|number| *number < state.first);
        let cached = &numbers[from..];
        if cached.last().is_none_or(|last| *last >= end) {
            return Vec::new();
        }
        // The index is within the cached records, which fit in memory.
        cached.iter().map(|number| state.records[(number - state.first) as usize].clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cache_above_limit_evicts_oldest_records() {
        let cache = RecordCache::new(4 * (1000 + RECORD_OVERHEAD_BYTES));
        let record = |number: u64| Bytes::from(vec![number as u8; 1000]);
        (10..16).for_each(|number| cache.push(number, record(number)));
        assert!(cache.get(11).is_none() && cache.get(12).is_some() && cache.get(15).is_some());
        assert!(cache.get(16).is_none());
        assert_eq!(cache.newest_of(&[3, 11, 12, 15]), [record(12), record(15)]);
        assert!(cache.newest_of(&[3, 11]).is_empty() && cache.newest_of(&[15, 16]).is_empty());
        cache.remove_before(15);
        assert!(cache.get(14).is_none() && cache.get(15).is_some());
    }
}
