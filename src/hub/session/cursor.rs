//! The cursor of a session on its log: which entries are sent and acknowledged.

use crate::message::Seq;

/// Position up to which a session has sent entries. An acknowledgement of it covers all entries before it.
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
    /// Sent, or skipped, up to here.
    pub(super) sent: SentPosition,
    /// Acknowledged up to here.
    acknowledged: SentPosition,
    /// Number of backlog entries sent: the `s` of the last one.
    redelivered: u64,
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
        Self { backlog_end, sent: start, acknowledged: start, redelivered: 0, paced }
    }

    pub(super) fn has_backlog(&self) -> bool {
        self.sent.backlog < self.backlog_end
    }

    /// Returns the position after which to read in a range.
    pub(super) fn after(&self, range: Range) -> Seq {
        match range {
            Range::Backlog => self.sent.backlog,
            Range::Live => self.sent.live,
        }
    }

    /// Moves past an entry; returns its redelivery number, counted from 1, if it is a backlog entry.
    pub(super) fn advance(&mut self, seq: Seq) -> Option<u64> {
        if seq <= self.backlog_end {
            debug_assert!(seq > self.sent.backlog, "a backlog cursor only moves forward");
            self.sent.backlog = seq;
            self.redelivered += 1;
            Some(self.redelivered)
        } else {
            debug_assert!(seq > self.sent.live, "a cursor only moves forward");
            // Without pacing a live entry is sent only after the whole backlog.
            if !self.paced {
                self.sent.backlog = self.backlog_end;
            }
            self.sent.live = seq;
            None
        }
    }

    /// Skips backlog entries that were acknowledged before the session began.
    pub(super) fn skip_acknowledged(&mut self, seq: Seq) {
        debug_assert!(seq <= self.backlog_end, "only backlog entries can be acknowledged before attach");
        self.sent.backlog = self.sent.backlog.max(seq);
    }

    /// Ends the backlog: all further entries of it were acknowledged before attach, or cleared.
    pub(super) fn end_backlog(&mut self) {
        self.sent.backlog = self.backlog_end;
    }

    /// Returns the sequence up to which the session needs no entry any more.
    pub(super) fn needed_after(&self) -> Seq {
        if self.has_backlog() { self.sent.backlog } else { self.sent.live }
    }

    /// Returns the position up to which entries are sent; `None` if all of them are acknowledged.
    pub(super) fn unacknowledged(&self) -> Option<SentPosition> {
        (self.sent != self.acknowledged).then_some(self.sent)
    }

    /// Records an acknowledgement; returns the newly acknowledged backlog and live ranges, both ends included.
    pub(super) fn acknowledge(&mut self, upto: SentPosition) -> [Option<(Seq, Seq)>; 2] {
        let upto = SentPosition { backlog: upto.backlog.min(self.sent.backlog), live: upto.live.min(self.sent.live) };
        let backlog = (upto.backlog > self.acknowledged.backlog).then(|| (self.acknowledged.backlog + 1, upto.backlog));
        let live = (upto.live > self.acknowledged.live).then(|| (self.acknowledged.live + 1, upto.live));
        self.acknowledged.backlog = self.acknowledged.backlog.max(upto.backlog);
        self.acknowledged.live = self.acknowledged.live.max(upto.live);
        [backlog, live]
    }
}
