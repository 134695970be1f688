//! One user's log as it is known in memory: where its entries are, and which of them are still needed. No payload.

use std::collections::VecDeque;

use super::{Received, record::Row};
use crate::message::Seq;

/// Sequences set aside for what a crash may take back where appends are answered before they are durable: at most this
/// many messages are ever unsynced, and after a lapse every log goes on this much further.
pub const RESERVE: u64 = 65_536;

/// Where an entry is while it is in the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    pub seq: Seq,
    pub record: u64,
    /// Offsets in the record: of the message, and of the stamp that says whose it is.
    pub message_at: u32,
    pub stamp_at: u32,
    /// Bytes of payload.
    pub bytes: u32,
}

/// A user's log.
#[derive(Debug, Default)]
pub struct Log {
    /// Last sequence given out by the commit thread, visible or not.
    pub assigned: Seq,
    /// Last visible sequence.
    pub head: Seq,
    pub received: Received,
    /// Nothing above this is trimmed, received or not.
    pub hold: Option<Seq>,
    /// Nothing up to this is needed any more. Never goes back: a hold that comes late brings nothing back.
    released: Seq,
    /// Entries up to this are in the inbox, those above it in the journal.
    pub settled: Seq,
    /// The inbox may have chunks of this user.
    pub chunks: bool,
    /// The commit thread was asked to trim those chunks.
    pub trimming: bool,
    /// Entries in the journal, rising.
    pub slots: VecDeque<Slot>,
    /// When the user was seen, in milliseconds of the Unix epoch; 0 = never.
    pub seen_ms: u64,
    /// Receipts or presence are not in the journal yet.
    pub dirty: bool,
    /// How many lapses the row in the table of users takes into account; `None`: there is no row.
    pub row_lapses: Option<u32>,
    /// The last journal record that says anything about this user.
    pub last_record: u64,
    /// When this was last of use, in seconds since the store was opened.
    pub touched: u32,
}

impl Log {
    /// What a row says, moved on over the lapses it does not know of.
    pub fn from_row(row: Option<Row>, lapses: u32) -> Self {
        let mut log = Self::default();
        let mut known = 0;
        if let Some(Row::V1 { head, through, islands, settled, seen_ms, lapses }) = row {
            log.head = head;
            log.received = Received::from_parts(through, &islands);
            log.settled = settled;
            log.chunks = settled > 0;
            log.seen_ms = seen_ms;
            log.row_lapses = Some(lapses);
            known = lapses;
        }
        log.pass_lapses(lapses.saturating_sub(known));
        log.released = log.received.through();
        log
    }

    /// Moves on past everything that `count` lapses may have taken back: those sequences were seen by somebody and are
    /// never given out again. Nothing is at them, so they count as received.
    pub fn pass_lapses(&mut self, count: u32) {
        if count > 0 {
            let gap = RESERVE * u64::from(count);
            self.received.insert(self.head + 1, self.head + gap);
            self.head += gap;
        }
        self.assigned = self.head;
    }

    pub fn row(&self, lapses: u32) -> Row {
        Row::V1 {
            head: self.head,
            through: self.received.through(),
            islands: self.received.islands().to_vec(),
            settled: self.settled,
            seen_ms: self.seen_ms,
            lapses,
        }
    }

    /// Nothing up to this is needed any more.
    pub fn released(&self) -> Seq {
        self.released
    }

    /// Whether a read shows this entry: it was not received, or another session may not have read it yet.
    pub fn shows(&self, seq: Seq) -> bool {
        self.hold.is_some_and(|hold| seq > hold) || !self.received.contains(seq)
    }

    /// Forgets where released entries were. True if there are chunks of them in the inbox to be trimmed.
    pub fn release(&mut self) -> bool {
        let through = self.received.through();
        let released = self.released.max(self.hold.map_or(through, |hold| hold.min(through)));
        self.released = released;
        while self.slots.front().is_some_and(|slot| slot.seq <= released) {
            self.slots.pop_front();
        }
        if self.slots.is_empty() {
            // An idle user keeps no memory for entries he does not have.
            self.slots.shrink_to_fit();
        }
        self.chunks && !self.trimming && released > 0
    }

    /// Takes in an entry that has been committed.
    pub fn publish(&mut self, slot: Slot) {
        assert!(slot.seq > self.head, "sequence {} behind head {}", slot.seq, self.head);
        self.head = slot.seq;
        self.last_record = slot.record;
        if slot.seq > self.released() {
            self.slots.push_back(slot);
        }
    }

    /// The slots above `after`.
    pub fn slots_after(&self, after: Seq) -> impl Iterator<Item = &Slot> {
        let start = self.slots.partition_point(|slot| slot.seq <= after);
        self.slots.range(start..)
    }

    /// Nothing in memory that is not in the tables: the log can be loaded again when it is needed.
    pub fn is_idle(&self, first_record: u64) -> bool {
        self.slots.is_empty()
            && !self.dirty
            && !self.trimming
            && self.hold.is_none()
            && self.assigned == self.head
            && self.last_record < first_record
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(seq: Seq) -> Slot {
        Slot { seq, record: 1, message_at: 0, stamp_at: 0, bytes: 1 }
    }

    fn shown(log: &Log, after: Seq) -> Vec<Seq> {
        log.slots_after(after).map(|slot| slot.seq).filter(|seq| log.shows(*seq)).collect()
    }

    #[test]
    fn what_was_received_goes_unless_it_is_held() {
        let mut log = Log::default();
        (1..=5).for_each(|seq| log.publish(slot(seq)));
        log.hold = Some(2);
        log.received.insert(1, 4);
        log.release();
        assert_eq!(shown(&log, 0), [3, 4, 5]);
        log.hold = None;
        log.release();
        assert_eq!(shown(&log, 0), [5]);
    }

    #[test]
    fn islands_are_shown_only_to_those_who_may_not_have_them() {
        let mut log = Log::default();
        (1..=5).for_each(|seq| log.publish(slot(seq)));
        log.received.insert(3, 4);
        log.release();
        assert_eq!(shown(&log, 0), [1, 2, 5]);
        log.hold = Some(3);
        assert_eq!(shown(&log, 0), [1, 2, 4, 5]);
    }

    #[test]
    fn a_lapse_moves_every_log_on_past_what_it_may_have_lost() {
        let mut log = Log::from_row(None, 2);
        assert_eq!((log.head, log.received.missing(log.head)), (2 * RESERVE, 0));
        log.publish(slot(2 * RESERVE + 1));
        let again = Log::from_row(Some(log.row(2)), 2);
        assert_eq!((again.head, again.received.missing(again.head)), (2 * RESERVE + 1, 1));
    }
}
