//! Defines the gaps of a log: missing ranges, each with a reason.

use crate::message::Seq;

/// Limit of the gaps of one log. One more removes the lowest, whose reason is then unknown.
pub const GAPS_MAX: usize = 64;

/// Number of gaps above which the lower half should be forgotten. The rest of the list is left for gaps that arise
/// until then.
const GAPS_NEARLY_MAX: usize = GAPS_MAX - 8;

/// States why sequences are missing from a log. Numbers are part of the on-disk format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum GapReason {
    /// The entry expired.
    Expired = 0,
    /// The entry was evicted for newer ones.
    Quota = 1,
    /// The backend cleared the log, or the client declined pending messages.
    Cleared = 2,
    /// A newer entry with the same collapse key replaced it.
    Collapsed = 3,
    /// Not a loss: the user has acknowledged the entry.
    Acknowledged = 4,
    /// The log is in Redis, which may have lost the entry in a failover or a restart. The sequence is not reused.
    Lost = 5,
    /// Skipped after a restore, or a restart that may have lost entries. The sequence is not reused.
    Restart = 6,
}

impl GapReason {
    /// Returns the name of the reason, for programs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::Quota => "quota",
            Self::Cleared => "cleared",
            Self::Collapsed => "collapsed",
            Self::Acknowledged => "received",
            Self::Lost => "lost",
            Self::Restart => "restart",
        }
    }

    pub(crate) fn from_stored(number: u8) -> Option<Self> {
        let all =
            [Self::Expired, Self::Quota, Self::Cleared, Self::Collapsed, Self::Acknowledged, Self::Lost, Self::Restart];
        all.into_iter().find(|reason| *reason as u8 == number)
    }
}

/// Describes a gap: a missing range of a log, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// First sequence.
    pub from: Seq,
    /// Last sequence.
    pub to: Seq,
    /// Reason of the gap.
    pub reason: GapReason,
}

impl Gap {
    /// Returns whether it hides entries in the value log: see [`GapList::hides`].
    pub(crate) fn hides(&self) -> bool {
        matches!(self.reason, GapReason::Quota | GapReason::Collapsed)
    }
}

/// Holds the last [`GAPS_MAX`] gaps, sorted. Adjacent gaps have different reasons.
#[derive(Clone, Debug, Default)]
pub struct GapList(Vec<Gap>);

impl GapList {
    /// Returns whether one more gap may remove the lowest.
    pub fn is_full(&self) -> bool {
        self.0.len() >= GAPS_MAX
    }

    /// Returns whether gaps should be forgotten soon, before the list is full.
    pub fn is_nearly_full(&self) -> bool {
        self.0.len() >= GAPS_NEARLY_MAX
    }

    /// Returns the lower half of a full list.
    pub fn lowest(&self) -> Vec<Gap> {
        self.0[..self.0.len().min(GAPS_MAX / 2)].to_vec()
    }

    /// Forgets these gaps, except those that have grown meanwhile.
    ///
    /// Call this only while no entry that one of them must hide is in the value log, or in the part of a backup that is
    /// already written.
    pub fn forget(&mut self, gaps: &[Gap]) {
        self.0.retain(|gap| !gaps.contains(gap));
    }

    /// Returns whether an entry in the value log is hidden: it was evicted or collapsed.
    ///
    /// Cleared entries count as acknowledged, and sessions that hold them can read them. Expired entries are recognized
    /// by their expiry.
    pub fn hides(&self, seq: Seq) -> bool {
        let at = self.0.partition_point(|gap| gap.to < seq);
        let gap = self.0.get(at).filter(|gap| gap.from <= seq);
        gap.is_some_and(Gap::hides)
    }

    /// Returns whether an entry in the value log with a sequence of `from..=to` would be hidden.
    pub fn hides_any(&self, from: Seq, to: Seq) -> bool {
        let at = self.0.partition_point(|gap| gap.to < from);
        self.0[at..].iter().take_while(|gap| gap.from <= to).any(Gap::hides)
    }

    /// Returns whether one gap hides all entries in the value log with a sequence of `from..=to`.
    pub fn hides_all(&self, from: Seq, to: Seq) -> bool {
        let at = self.0.partition_point(|gap| gap.to < from);
        self.0.get(at).is_some_and(|gap| gap.hides() && gap.from <= from && to <= gap.to)
    }

    /// Adds a gap. Sequences that are in a gap already keep their reason.
    pub fn insert(&mut self, from: Seq, to: Seq, reason: GapReason) {
        let mut from = from;
        while from <= to {
            let at = self.0.partition_point(|gap| gap.to < from);
            let (until, next) = match self.0.get(at) {
                Some(gap) if gap.from <= from => {
                    from = gap.to.saturating_add(1);
                    continue;
                }
                Some(gap) if gap.from <= to => (gap.from - 1, gap.to.saturating_add(1)),
                _ => (to, to.saturating_add(1)),
            };
            self.insert_at(at, Gap { from, to: until, reason });
            from = next;
        }
        let over = self.0.len().saturating_sub(GAPS_MAX);
        self.0.drain(..over);
    }

    /// Inserts a gap at an index, and merges adjacent gaps with the same reason.
    fn insert_at(&mut self, at: usize, gap: Gap) {
        let joins = |left: &Gap, right: &Gap| left.reason == right.reason && left.to + 1 == right.from;
        let right = self.0.get(at).is_some_and(|next| joins(&gap, next));
        let left = at.checked_sub(1).is_some_and(|before| joins(&self.0[before], &gap));
        match (left, right) {
            (true, true) => {
                self.0[at - 1].to = self.0[at].to;
                self.0.remove(at);
            }
            (true, false) => self.0[at - 1].to = gap.to,
            (false, true) => self.0[at].from = gap.from,
            (false, false) => self.0.insert(at, gap),
        }
    }

    /// Splits `from..=to` by reason. `None`: the reason is unknown.
    pub fn explain(&self, from: Seq, to: Seq) -> Vec<(Seq, Seq, Option<GapReason>)> {
        let (mut parts, first) = (Vec::new(), from);
        let mut from = first;
        for gap in self.0.iter().filter(|gap| gap.to >= first && gap.from <= to) {
            if gap.from > from {
                parts.push((from, gap.from - 1, None));
            }
            parts.push((gap.from.max(from), gap.to.min(to), Some(gap.reason)));
            from = gap.to.saturating_add(1);
        }
        if from <= to {
            parts.push((from, to, None));
        }
        parts
    }

    /// Returns the gaps in `from..=to`, of which the client has received no entry.
    ///
    /// Without a known reason, sequences up to `acknowledged` were acknowledged, and later ones have expired.
    pub fn explain_missing(&self, from: Seq, to: Seq, acknowledged: Seq) -> Vec<Gap> {
        let mut gaps = Vec::new();
        for (from, to, reason) in self.explain(from, to) {
            let acknowledged_to = if reason.is_some() { 0 } else { acknowledged.min(to) };
            gaps.extend((from <= acknowledged_to).then_some(Gap {
                from,
                to: acknowledged_to,
                reason: GapReason::Acknowledged,
            }));
            let (from, reason) = (from.max(acknowledged_to + 1), reason.unwrap_or(GapReason::Expired));
            gaps.extend((from <= to).then_some(Gap { from, to, reason }));
        }
        gaps
    }

    /// Returns all gaps, in order.
    pub fn as_slice(&self) -> &[Gap] {
        &self.0
    }

    /// Converts the gaps to their stored form.
    pub fn stored(&self) -> Vec<(Seq, Seq, u8)> {
        self.0.iter().map(|gap| (gap.from, gap.to, gap.reason as u8)).collect()
    }

    /// Restores the gaps from their stored form.
    pub fn from_stored(stored: &[(Seq, Seq, u8)]) -> Self {
        let mut gaps = Self::default();
        for &(from, to, reason) in stored {
            gaps.insert(from, to, GapReason::from_stored(reason).unwrap_or(GapReason::Expired));
        }
        gaps
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn adjacent_gaps_merge_only_with_same_reason() {
        let mut gaps = GapList::default();
        gaps.insert(1, 3, GapReason::Quota);
        gaps.insert(5, 5, GapReason::Quota);
        gaps.insert(2, 8, GapReason::Cleared);
        let parts: Vec<_> = gaps.0.iter().map(|gap| (gap.from, gap.to, gap.reason)).collect();
        let quota = GapReason::Quota;
        assert_eq!(parts, [(1, 3, quota), (4, 4, GapReason::Cleared), (5, 5, quota), (6, 8, GapReason::Cleared)]);
        assert!(gaps.hides(3) && !gaps.hides(4) && !gaps.hides(9));
        assert!(gaps.hides_all(1, 3) && !gaps.hides_all(1, 4) && !gaps.hides_all(6, 7));
        assert!(gaps.hides_any(3, 4) && gaps.hides_any(4, 9) && !gaps.hides_any(4, 4) && !gaps.hides_any(6, 9));
        assert_eq!(gaps.explain(8, 9), [(8, 8, Some(GapReason::Cleared)), (9, 9, None)]);
    }

    #[test]
    fn missing_sequences_without_reason_were_acknowledged_or_have_expired() {
        let mut gaps = GapList::default();
        gaps.insert(3, 5, GapReason::Quota);
        let explained = |acknowledged| -> Vec<_> {
            let gaps = gaps.explain_missing(2, 9, acknowledged).into_iter();
            gaps.map(|Gap { from, to, reason }| (from, to, reason.as_str())).collect()
        };
        assert_eq!(explained(0), [(2, 2, "expired"), (3, 5, "quota"), (6, 9, "expired")]);
        assert_eq!(explained(7), [(2, 2, "received"), (3, 5, "quota"), (6, 7, "received"), (8, 9, "expired")]);
        assert_eq!(explained(20), [(2, 2, "received"), (3, 5, "quota"), (6, 9, "received")]);
    }

    proptest! {
        #[test]
        fn gap_list_behaves_like_map_with_first_reasons(
            ranges in prop::collection::vec((1_u64..60, 0_u64..9, 0_u8..4), 0..30),
        ) {
            let (mut gaps, mut model) = (GapList::default(), BTreeMap::new());
            for (from, length, reason) in ranges {
                let reason = GapReason::from_stored(reason).unwrap();
                gaps.insert(from, from + length, reason);
                (from..=from + length).for_each(|seq| _ = model.entry(seq).or_insert(reason));
                for seq in 1..80 {
                    let parts: Vec<_> = gaps.explain(seq, seq);
                    prop_assert_eq!(parts, vec![(seq, seq, model.get(&seq).copied())]);
                }
                prop_assert_eq!(GapList::from_stored(&gaps.stored()).0, gaps.0.clone());
            }
        }
    }
}
