//! Recognises payloads that several logs have, so that a new store has each of them once.

use std::{collections::HashMap, hash::BuildHasher};

use foldhash::fast::RandomState;

use crate::embedded::value_log::bodies::BodyId;

/// Limit of payloads in memory, each with less than 100 bytes.
///
/// If more different payloads lie between two entries with the same one, it is stored again.
const PAYLOADS_MAX: usize = 64 << 10;

/// Counts the occurrences of the latest payloads.
#[derive(Debug, Default)]
pub(super) struct Payloads {
    hasher: RandomState,
    /// By hash. Two payloads may have the same hash.
    current: HashMap<u64, Occurrences, RandomState>,
    /// Those of the previous half.
    previous: HashMap<u64, Occurrences, RandomState>,
}

/// Occurrences of a payload.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Occurrences {
    pub count: usize,
    /// The shared body with this payload, once it is stored. The caller compares the payload.
    pub body: Option<BodyId>,
}

impl Payloads {
    /// Counts an occurrence of a payload.
    pub fn count(&mut self, payload: &[u8]) -> &mut Occurrences {
        let hash = self.hasher.hash_one(payload);
        let before = self.previous.remove(&hash).unwrap_or_default();
        if self.current.len() >= PAYLOADS_MAX / 2 && !self.current.contains_key(&hash) {
            self.previous = std::mem::take(&mut self.current);
        }
        let occurrences = self.current.entry(hash).or_insert(before);
        occurrences.count += 1;
        occurrences
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_in_memory_are_bounded_and_recent_ones_are_counted() {
        let mut payloads = Payloads::default();
        for n in 1..=2 * PAYLOADS_MAX {
            payloads.count(&n.to_be_bytes());
            if n.is_multiple_of(PAYLOADS_MAX / 4) {
                assert_eq!(payloads.count(b"frequent").count, n / (PAYLOADS_MAX / 4));
            }
            assert!(payloads.current.len() + payloads.previous.len() <= PAYLOADS_MAX);
        }
        assert_eq!(payloads.count(&1_usize.to_be_bytes()).count, 1);
    }
}
