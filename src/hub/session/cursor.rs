//! The cursor of a session on its log: which entries are read and acknowledged.

use crate::message::Seq;

/// How far a session has written to its socket: a receipt for this mark covers all of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    pub(super) owed: Seq,
    pub(super) live: Seq,
}

#[cfg(test)]
impl Mark {
    pub(crate) const NONE: Self = Self { owed: 0, live: 0 };

    pub(crate) fn for_test(seq: Seq) -> Self {
        Self { owed: seq, live: seq }
    }
}

/// The cursor alone, without log or clock, so that its rules can be tested as tables.
#[derive(Clone, Debug)]
pub(super) struct Cursor {
    /// The head of the log at that moment.
    pub(super) owed_end: Seq,
    /// Read up to here.
    pub(super) read: Mark,
    /// Confirmed up to here.
    confirmed: Mark,
    /// Owed entries delivered so far: the `s` of the last one.
    position: u64,
    pub(super) paced: bool,
}

/// Which range to read next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Range {
    Owed,
    Live,
}

impl Cursor {
    pub(super) fn new(base: Seq, owed_end: Seq, paced: bool) -> Self {
        let start = Mark { owed: base, live: owed_end };
        Self { owed_end, read: start, confirmed: start, position: 0, paced }
    }

    pub(super) fn owes(&self) -> bool {
        self.read.owed < self.owed_end
    }

    /// Where to read on in a range.
    pub(super) fn after(&self, range: Range) -> Seq {
        match range {
            Range::Owed => self.read.owed,
            Range::Live => self.read.live,
        }
    }

    /// Moves over an entry that was read from `range`; returns its position in the redelivery if it was owed.
    pub(super) fn advance(&mut self, seq: Seq) -> Option<u64> {
        if seq <= self.owed_end {
            debug_assert!(seq > self.read.owed, "a cursor only moves forward");
            self.read.owed = seq;
            self.position += 1;
            Some(self.position)
        } else {
            debug_assert!(seq > self.read.live, "a cursor only moves forward");
            // Reading on past the end of what was owed means that nothing of it is left.
            if !self.paced {
                self.read.owed = self.owed_end;
            }
            self.read.live = seq;
            None
        }
    }

    /// Moves over owed entries that were received before the session began.
    pub(super) fn pass(&mut self, seq: Seq) {
        debug_assert!(seq <= self.owed_end, "only of what was owed was anything received before");
        self.read.owed = self.read.owed.max(seq);
    }

    /// The log has nothing more in the owed range: what is left of it was received before, or cleared.
    pub(super) fn nothing_owed(&mut self) {
        self.read.owed = self.owed_end;
    }

    /// Nothing up to here is needed any more.
    pub(super) fn needed_after(&self) -> Seq {
        if self.owes() { self.read.owed } else { self.read.live }
    }

    pub(super) fn unconfirmed(&self) -> Option<Mark> {
        (self.read != self.confirmed).then_some(self.read)
    }

    /// Takes a receipt; returns what it newly confirms: ranges with both ends included, at most one of each kind.
    pub(super) fn confirm(&mut self, mark: Mark) -> [Option<(Seq, Seq)>; 2] {
        let mark = Mark { owed: mark.owed.min(self.read.owed), live: mark.live.min(self.read.live) };
        let owed = (mark.owed > self.confirmed.owed).then(|| (self.confirmed.owed + 1, mark.owed));
        let live = (mark.live > self.confirmed.live).then(|| (self.confirmed.live + 1, mark.live));
        self.confirmed.owed = self.confirmed.owed.max(mark.owed);
        self.confirmed.live = self.confirmed.live.max(mark.live);
        [owed, live]
    }
}
