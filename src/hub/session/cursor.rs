//! The cursor of a session on its log: which entries are read and acknowledged.

use crate::message::Seq;

/// Position up to which a session has written to its socket. An acknowledgement of it covers everything before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SentPosition {
    pub(super) backlog: Seq,
    pub(super) live: Seq,
}

#[cfg(test)]
impl SentPosition {
    pub(crate) const NONE: Self = Self { backlog: 0, live: 0 };

    pub(crate) fn for_test(seq: Seq) -> Self {
        Self { backlog: seq, live: seq }
    }
}

/// The cursor without log and clock, so that its rules can be tested as tables.
#[derive(Clone, Debug)]
pub(super) struct Cursor {
    /// Head of the log at attach: the last sequence of the backlog.
    pub(super) backlog_end: Seq,
    /// Read up to here.
    pub(super) read: SentPosition,
    /// Acknowledged up to here.
    acknowledged: SentPosition,
    /// Backlog entries delivered so far: the `s` of the last one.
    position: u64,
    pub(super) paced: bool,
}

/// The range to read next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Range {
    Backlog,
    Live,
}

impl Cursor {
    pub(super) fn new(base: Seq, backlog_end: Seq, paced: bool) -> Self {
        let start = SentPosition { backlog: base, live: backlog_end };
        Self { backlog_end, read: start, acknowledged: start, position: 0, paced }
    }

    pub(super) fn has_backlog(&self) -> bool {
        self.read.backlog < self.backlog_end
    }

    /// Returns the position after which to read in a range.
    pub(super) fn after(&self, range: Range) -> Seq {
        match range {
            Range::Backlog => self.read.backlog,
            Range::Live => self.read.live,
        }
    }

    /// Moves past an entry; returns its redelivery number, counted from 1, if it is a backlog entry.
    pub(super) fn advance(&mut self, seq: Seq) -> Option<u64> {
        if seq <= self.backlog_end {
            debug_assert!(seq > self.read.backlog, "a backlog cursor only moves forward");
            self.read.backlog = seq;
            self.position += 1;
            Some(self.position)
        } else {
            debug_assert!(seq > self.read.live, "a cursor only moves forward");
            // Reading past the end of the backlog means that nothing of it is left.
            if !self.paced {
                self.read.backlog = self.backlog_end;
            }
            self.read.live = seq;
            None
        }
    }

    /// Skips backlog entries that were acknowledged before the session began.
    pub(super) fn skip_acknowledged(&mut self, seq: Seq) {
        debug_assert!(seq <= self.backlog_end, "only backlog entries can be acknowledged before attach");
        self.read.backlog = self.read.backlog.max(seq);
    }

    /// Ends the backlog: the rest of it was acknowledged before, or cleared.
    pub(super) fn end_backlog(&mut self) {
        self.read.backlog = self.backlog_end;
    }

    /// Returns the sequence up to which the session needs nothing any more.
    pub(super) fn needed_after(&self) -> Seq {
        if self.has_backlog() { self.read.backlog } else { self.read.live }
    }

    pub(super) fn unacknowledged(&self) -> Option<SentPosition> {
        (self.read != self.acknowledged).then_some(self.read)
    }

    /// Records an acknowledgement; returns the ranges it newly covers, both ends included, at most one per range kind.
    pub(super) fn acknowledge(&mut self, upto: SentPosition) -> [Option<(Seq, Seq)>; 2] {
        let upto = SentPosition { backlog: upto.backlog.min(self.read.backlog), live: upto.live.min(self.read.live) };
        let backlog = (upto.backlog > self.acknowledged.backlog).then(|| (self.acknowledged.backlog + 1, upto.backlog));
        let live = (upto.live > self.acknowledged.live).then(|| (self.acknowledged.live + 1, upto.live));
        self.acknowledged.backlog = self.acknowledged.backlog.max(upto.backlog);
        self.acknowledged.live = self.acknowledged.live.max(upto.live);
        [backlog, live]
    }
}
