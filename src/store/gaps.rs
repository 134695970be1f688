//! Ranges of one log that are gone although nobody received them, and why.

use crate::message::Seq;

/// Gaps in one log of which it is known why they are there.
pub const REASONS_MAX: usize = 64;

/// Why entries of a log are not there any more although nobody received them. Numbers are part of the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Loss {
    /// Too old.
    Expired = 0,
    /// Made room for newer ones.
    Quota = 1,
    /// The backend removed them, or the client said that it did not want them.
    Cleared = 2,
    /// A newer entry took its place.
    Collapsed = 3,
    /// Nothing was lost: this user has received them before.
    Received = 4,
    /// Where logs are in a Redis: it may have forgotten them, with a failover or a restart. Whatever was given out there is
    /// not given out again.
    Lost = 5,
    /// Passed over after a restart that may have lost entries, or a restore: those sequences are not given out again.
    Restart = 6,
}

impl Loss {
    /// One word for programs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::Quota => "quota",
            Self::Cleared => "cleared",
            Self::Collapsed => "collapsed",
            Self::Received => "received",
            Self::Lost => "lost",
            Self::Restart => "restart",
        }
    }

    pub(crate) fn from_stored(number: u8) -> Option<Self> {
        let all =
            [Self::Expired, Self::Quota, Self::Cleared, Self::Collapsed, Self::Received, Self::Lost, Self::Restart];
        all.into_iter().find(|loss| *loss as u8 == number)
    }
}

/// A range of a log that is not there any more, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Missed {
    /// The first.
    pub from: Seq,
    /// The last.
    pub to: Seq,
    /// Why.
    pub reason: Loss,
}

/// The last [`REASONS_MAX`] ranges: rising, apart from each other or of different reasons.
#[derive(Clone, Debug, Default)]
pub struct Gone(Vec<Missed>);

impl Gone {
    /// Whether one more range may push the lowest out of what is remembered.
    pub fn is_full(&self) -> bool {
        self.0.len() >= REASONS_MAX
    }

    /// Makes room for more by forgetting the lower half, if there is none. To be called when nothing is left in an
    /// inbox that would have to be hidden.
    pub fn make_room(&mut self) {
        if self.is_full() {
            self.0.drain(..REASONS_MAX / 2);
        }
    }

    /// Whether an entry that may still be in an inbox is not to be shown to anybody. What was cleared counts as received
    /// and is shown to whom it is held for; what has expired is known by its own date.
    pub fn hides(&self, seq: Seq) -> bool {
        let at = self.0.partition_point(|range| range.to < seq);
        let range = self.0.get(at).filter(|range| range.from <= seq);
        range.is_some_and(|range| matches!(range.reason, Loss::Quota | Loss::Collapsed))
    }

    /// Adds a range. What was gone before stays gone for the reason it had.
    pub fn insert(&mut self, from: Seq, to: Seq, reason: Loss) {
        let mut from = from;
        while from <= to {
            let at = self.0.partition_point(|range| range.to < from);
            let (until, next) = match self.0.get(at) {
                Some(range) if range.from <= from => {
                    from = range.to.saturating_add(1);
                    continue;
                }
                Some(range) if range.from <= to => (range.from - 1, range.to.saturating_add(1)),
                _ => (to, to.saturating_add(1)),
            };
            self.put(at, Missed { from, to: until, reason });
            from = next;
        }
        let over = self.0.len().saturating_sub(REASONS_MAX);
        self.0.drain(..over);
    }

    /// Puts a range between its neighbours, joining those of the same reason that it touches.
    fn put(&mut self, at: usize, range: Missed) {
        let joins = |left: &Missed, right: &Missed| left.reason == right.reason && left.to + 1 == right.from;
        let right = self.0.get(at).is_some_and(|next| joins(&range, next));
        let left = at.checked_sub(1).is_some_and(|before| joins(&self.0[before], &range));
        match (left, right) {
            (true, true) => {
                self.0[at - 1].to = self.0[at].to;
                self.0.remove(at);
            }
            (true, false) => self.0[at - 1].to = range.to,
            (false, true) => self.0[at].from = range.from,
            (false, false) => self.0.insert(at, range),
        }
    }

    /// The parts of `from..=to`, each with its reason where one is known.
    pub fn explain(&self, from: Seq, to: Seq) -> Vec<(Seq, Seq, Option<Loss>)> {
        let (mut parts, first) = (Vec::new(), from);
        let mut from = first;
        for range in self.0.iter().filter(|range| range.to >= first && range.from <= to) {
            if range.from > from {
                parts.push((from, range.from - 1, None));
            }
            parts.push((range.from.max(from), range.to.min(to), Some(range.reason)));
            from = range.to.saturating_add(1);
        }
        if from <= to {
            parts.push((from, to, None));
        }
        parts
    }

    pub fn stored(&self) -> Vec<(Seq, Seq, u8)> {
        self.0.iter().map(|range| (range.from, range.to, range.reason as u8)).collect()
    }

    pub fn from_stored(stored: &[(Seq, Seq, u8)]) -> Self {
        let mut gone = Self::default();
        for &(from, to, loss) in stored {
            gone.insert(from, to, Loss::from_stored(loss).unwrap_or(Loss::Expired));
        }
        gone
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ranges_of_one_reason_join_and_those_of_two_stand_beside_each_other() {
        let mut gone = Gone::default();
        gone.insert(1, 3, Loss::Quota);
        gone.insert(5, 5, Loss::Quota);
        gone.insert(2, 8, Loss::Cleared);
        let parts: Vec<_> = gone.0.iter().map(|range| (range.from, range.to, range.reason)).collect();
        let quota = Loss::Quota;
        assert_eq!(parts, [(1, 3, quota), (4, 4, Loss::Cleared), (5, 5, quota), (6, 8, Loss::Cleared)]);
        assert!(gone.hides(3) && !gone.hides(4) && !gone.hides(9));
        assert_eq!(gone.explain(8, 9), [(8, 8, Some(Loss::Cleared)), (9, 9, None)]);
    }

    proptest! {
        #[test]
        fn behaves_as_a_map_in_which_the_first_reason_stands(
            ranges in prop::collection::vec((1_u64..60, 0_u64..9, 0_u8..4), 0..30),
        ) {
            let (mut gone, mut model) = (Gone::default(), BTreeMap::new());
            for (from, length, loss) in ranges {
                let loss = Loss::from_stored(loss).unwrap();
                gone.insert(from, from + length, loss);
                (from..=from + length).for_each(|seq| _ = model.entry(seq).or_insert(loss));
                for seq in 1..80 {
                    let told: Vec<_> = gone.explain(seq, seq);
                    prop_assert_eq!(told, vec![(seq, seq, model.get(&seq).copied())]);
                }
                prop_assert_eq!(Gone::from_stored(&gone.stored()).0, gone.0.clone());
            }
        }
    }
}
