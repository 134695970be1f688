//! Defines the set of acknowledged sequences: a prefix, and at most 16 ranges above it.

use crate::message::Seq;

/// Limit of ranges above [`AckSet::through`]. One more removes the lowest, which repeats its messages and loses none.
///
/// Ranges arise only when live entries overtake a paced backlog.
pub const ACK_RANGES_MAX: usize = 16;

/// Holds acknowledged sequences: all up to `through`, and at most [`ACK_RANGES_MAX`] ranges above it.
///
/// Sequences are only added, except that an excess range is removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AckSet {
    through: Seq,
    /// Sorted, both ends included. At least one missing sequence separates a range from the next and from `through`.
    ranges: Vec<(Seq, Seq)>,
}

impl AckSet {
    /// Restores a set from [`AckSet::through`] and [`AckSet::ranges`].
    #[must_use]
    pub fn from_parts(through: Seq, ranges: &[(Seq, Seq)]) -> Self {
        let mut acknowledged = Self { through, ranges: Vec::new() };
        for &(from, to) in ranges {
            acknowledged.insert(from, to);
        }
        acknowledged
    }

    /// Returns the end of the prefix: all sequences up to and including it are acknowledged.
    #[must_use]
    pub fn through(&self) -> Seq {
        self.through
    }

    /// Returns the acknowledged ranges above [`AckSet::through`]: sorted, both ends included.
    #[must_use]
    pub fn ranges(&self) -> &[(Seq, Seq)] {
        &self.ranges
    }

    /// Returns whether `seq` is acknowledged.
    #[must_use]
    pub fn contains(&self, seq: Seq) -> bool {
        seq <= self.through || self.ranges.iter().any(|&(from, to)| (from..=to).contains(&seq))
    }

    /// Counts the sequences of `1..=head` that are not acknowledged.
    #[must_use]
    pub fn missing(&self, head: Seq) -> u64 {
        let ranges: u64 =
            self.ranges.iter().filter(|(from, _)| *from <= head).map(|&(from, to)| to.min(head) - from + 1).sum();
        head.saturating_sub(self.through).saturating_sub(ranges)
    }

    /// Returns the sequences in both sets. Above [`ACK_RANGES_MAX`] ranges, the lowest are omitted.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        let mut common = Self::default();
        for (from, to) in common_ranges(&self.all_ranges(), &other.all_ranges()) {
            common.insert(from, to);
        }
        common
    }

    /// Returns all acknowledged ranges, including the prefix: sorted, both ends included.
    pub(crate) fn all_ranges(&self) -> Vec<(Seq, Seq)> {
        let prefix = (self.through > 0).then_some((1, self.through));
        prefix.into_iter().chain(self.ranges.iter().copied()).collect()
    }

    /// Adds `from..=to`; an empty range adds nothing. Returns true if anything was added.
    ///
    /// At the limit of ranges, one below all others is not added.
    pub fn insert(&mut self, from: Seq, to: Seq) -> bool {
        let from = from.max(1);
        if from > to || to <= self.through {
            return false;
        }
        if self.ranges.iter().any(|&(low, high)| low <= from && to <= high) {
            return false;
        }
        let (mut from, mut to) = (from, to);
        // Merge all ranges that touch the new one, then test whether it touches the prefix.
        self.ranges.retain(|&(low, high)| {
            let touches = low <= to.saturating_add(1) && from <= high.saturating_add(1);
            if touches {
                from = from.min(low);
                to = to.max(high);
            }
            !touches
        });
        if from <= self.through.saturating_add(1) {
            self.through = to;
        } else {
            let at = self.ranges.partition_point(|&(low, _)| low < from);
            if at == 0 && self.ranges.len() >= ACK_RANGES_MAX {
                return false;
            }
            self.ranges.insert(at, (from, to));
            if self.ranges.len() > ACK_RANGES_MAX {
                self.ranges.remove(0);
            }
        }
        true
    }
}

/// Returns the parts of ranges in both lists: sorted if both lists are.
pub(crate) fn common_ranges(one: &[(Seq, Seq)], other: &[(Seq, Seq)]) -> Vec<(Seq, Seq)> {
    let pairs = one.iter().flat_map(|one| other.iter().map(move |other| (one, other)));
    let common = pairs.map(|(one, other)| (one.0.max(other.0), one.1.min(other.1)));
    common.filter(|(from, to)| from <= to).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ranges_inserted_in_any_order_merge() {
        let mut acknowledged = AckSet::default();
        assert!(acknowledged.insert(5, 7));
        assert!(acknowledged.insert(9, 9));
        assert_eq!((acknowledged.through(), acknowledged.ranges()), (0, &[(5, 7), (9, 9)][..]));
        assert!(acknowledged.insert(8, 8));
        assert_eq!(acknowledged.ranges(), &[(5, 9)]);
        assert!(!acknowledged.insert(6, 8));
        assert!(acknowledged.insert(1, 4));
        assert_eq!((acknowledged.through(), acknowledged.ranges()), (9, &[][..]));
        assert!(!acknowledged.insert(3, 2));
        assert!(!acknowledged.insert(0, 0));
    }

    #[test]
    fn range_above_limit_removes_lowest_range() {
        let mut acknowledged = AckSet::default();
        for at in 1..=(ACK_RANGES_MAX as u64 + 1) {
            acknowledged.insert(at * 10, at * 10);
        }
        assert_eq!(acknowledged.ranges().len(), ACK_RANGES_MAX);
        assert!(!acknowledged.contains(10) && acknowledged.contains(20));
    }

    proptest! {
        #[test]
        fn intersection_contains_sequences_in_both_sets(
            one in prop::collection::vec((1_u64..40, 0_u64..6), 0..6),
            other in prop::collection::vec((1_u64..40, 0_u64..6), 0..6),
        ) {
            let set = |ranges: &[(Seq, u64)]| {
                let mut acknowledged = AckSet::default();
                ranges.iter().for_each(|(from, length)| _ = acknowledged.insert(*from, from + length));
                acknowledged
            };
            let (one, other) = (set(&one), set(&other));
            let both = one.intersection(&other);
            for seq in 1..50 {
                prop_assert_eq!(both.contains(seq), one.contains(seq) && other.contains(seq), "{}", seq);
            }
            prop_assert_eq!(common_ranges(&one.all_ranges(), &other.all_ranges()), both.all_ranges());
        }

        /// With many ranges, so that the limit removes some.
        #[test]
        fn insert_returns_true_only_if_the_range_was_recorded(
            ranges in prop::collection::vec((1_u64..400, 0_u64..3), 0..80)
        ) {
            let mut acknowledged = AckSet::default();
            for (from, length) in ranges {
                let before = acknowledged.clone();
                let is_new = (from..=from + length).any(|seq| !before.contains(seq));
                let added = acknowledged.insert(from, from + length);
                prop_assert_eq!(added, acknowledged != before);
                if added {
                    prop_assert!(is_new && (from..=from + length).all(|seq| acknowledged.contains(seq)));
                }
                prop_assert!(acknowledged.ranges().len() <= ACK_RANGES_MAX);
            }
        }

        #[test]
        fn ack_set_behaves_like_a_set(ranges in prop::collection::vec((1_u64..40, 0_u64..6), 0..24)) {
            let (mut acknowledged, mut model) = (AckSet::default(), BTreeSet::new());
            for (from, length) in ranges {
                let new = (from..=from + length).any(|seq| !model.contains(&seq));
                prop_assert_eq!(acknowledged.insert(from, from + length), new);
                model.extend(from..=from + length);
                for seq in 1..50 {
                    prop_assert_eq!(acknowledged.contains(seq), model.contains(&seq), "{}", seq);
                }
                for head in 0..50 {
                    let missing = (1..=head).filter(|seq| !model.contains(seq)).count() as u64;
                    prop_assert_eq!(acknowledged.missing(head), missing);
                }
                prop_assert_eq!(&AckSet::from_parts(acknowledged.through(), acknowledged.ranges()), &acknowledged);
            }
        }
    }
}
