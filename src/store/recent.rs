//! The last journal records, kept in memory: who is there reads what was just committed from here.

use std::collections::VecDeque;

use bytes::Bytes;
use parking_lot::RwLock;

/// Bytes of records kept. Older ones are read from their table.
const KEPT_BYTES_MAX: usize = 16 << 20;

/// Consecutive records, ending with the newest.
#[derive(Debug, Default)]
pub struct Recent(RwLock<Inside>);

#[derive(Debug, Default)]
struct Inside {
    first: u64,
    records: VecDeque<Bytes>,
    bytes: usize,
}

impl Recent {
    /// Adds the next record.
    pub fn push(&self, number: u64, record: Bytes) {
        let mut inside = self.0.write();
        if inside.records.is_empty() {
            inside.first = number;
        }
        assert_eq!(number, inside.first + inside.records.len() as u64, "records are numbered without a gap");
        inside.bytes += record.len();
        inside.records.push_back(record);
        while inside.bytes > KEPT_BYTES_MAX {
            let Some(oldest) = inside.records.pop_front() else { break };
            inside.bytes -= oldest.len();
            inside.first += 1;
        }
    }

    /// Lets go of everything before `number`, which has been settled.
    pub fn forget_before(&self, number: u64) {
        let mut inside = self.0.write();
        while inside.first < number {
            let Some(oldest) = inside.records.pop_front() else { break };
            inside.bytes -= oldest.len();
            inside.first += 1;
        }
    }

    /// A record, if it is kept.
    pub fn get(&self, number: u64) -> Option<Bytes> {
        let inside = self.0.read();
        inside.records.get(usize::try_from(number.checked_sub(inside.first)?).ok()?).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_records_go_first() {
        let recent = Recent::default();
        let record = Bytes::from(vec![0; KEPT_BYTES_MAX / 4]);
        (10..16).for_each(|number| recent.push(number, record.clone()));
        assert!(recent.get(11).is_none() && recent.get(12).is_some() && recent.get(15).is_some());
        assert!(recent.get(16).is_none());
        recent.forget_before(15);
        assert!(recent.get(14).is_none() && recent.get(15).is_some());
    }
}
