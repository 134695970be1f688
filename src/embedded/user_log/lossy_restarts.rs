//! Counts lossy restarts, and computes the sequences that a log skips because of them.
//!
//! With a durability other than `always`, a crash may lose the last answered entries, and clients may have seen their
//! sequences. At most [`SEQUENCE_RESERVE`] messages are not durable at any time. So a log that skips that many
//! sequences reuses none.
//!
//! A log skips once, even after several lossy restarts in a row. The first entry of a log, and the first one after a
//! lossy restart, are synced before they are visible, even if a report has written the row earlier. So the log's row, or
//! the write-ahead log, shows that sequences were assigned since. If neither does, none were assigned, and the log does
//! not skip again. Lossy restarts before a restore are different: the log skips once for each
//! ([`LossyRestarts::at_restore`]).

use crate::message::Seq;

/// Number of sequences that a log skips after a lossy restart. The store syncs before more messages than this are not
/// durable.
pub const SEQUENCE_RESERVE: u64 = 65_536;

/// Counts the lossy restarts of a store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LossyRestarts {
    /// Number of all lossy restarts.
    pub count: u32,
    /// Number of lossy restarts when the store was restored from a backup or salvaged; 0 for another store.
    pub at_restore: u32,
}

/// Returns whether a log skipped the sequences between `head` and `seq`, the next entry in the WAL.
///
/// Sequences are contiguous, except after a lossy restart, which the row may not include.
pub fn has_skipped(head: Seq, seq: Seq) -> bool {
    let skipped = seq.saturating_sub(head + 1);
    skipped > 0 && skipped.is_multiple_of(SEQUENCE_RESERVE)
}

impl LossyRestarts {
    /// Returns the number of lossy restarts that a log includes, if it is known.
    ///
    /// The row states it (`in_row`), or it follows from the first entry in the WAL.
    pub fn known(self, in_row: Option<u32>, first: Option<Seq>) -> Option<u32> {
        // A log that was appended to after the restore has skipped these restarts, even if its row is lost.
        let skipped_all = first.is_some_and(|first| first > SEQUENCE_RESERVE * u64::from(self.at_restore));
        in_row.or(skipped_all.then_some(self.at_restore))
    }

    /// Returns how many times a log must skip [`SEQUENCE_RESERVE`] sequences. `known` is the number that its row
    /// includes.
    pub fn due(self, known: Option<u32>, head: Seq) -> u32 {
        match known {
            None => self.at_restore,
            Some(known) if known < self.at_restore => self.at_restore - known,
            // Nothing was ever appended to this log.
            Some(_) if head == 0 => 0,
            Some(known) => u32::from(known < self.count),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        embedded::{
            tables::schema::StoredLog,
            user_log::{UserLog, WalSlot},
        },
        store::GapReason,
    };

    const RESTARTS: fn(u32, u32) -> LossyRestarts = |count, at_restore| LossyRestarts { count, at_restore };

    fn append(log: &mut UserLog, lossy_restarts: LossyRestarts) {
        log.before_skip = None;
        log.row_lossy_restarts = Some(lossy_restarts.count);
        log.assigned += 1;
        let seq = log.assigned;
        log.push(WalSlot { seq, record: 1, message_at: 0, recipient_at: 0, bytes: 1, reserved: 1, expires_s: 0 }, None);
        log.publish(seq, 1);
    }

    // covers: G5
    #[test]
    fn log_after_several_lossy_restarts_in_a_row_skips_once() {
        let mut log = UserLog::from_row(None, RESTARTS(0, 0), 0);
        append(&mut log, RESTARTS(0, 0));
        let mut row = log.row(0);
        for count in 1..=5 {
            let log = UserLog::from_row(Some(row.clone()), RESTARTS(count, 0), 0);
            assert_eq!(
                (log.head, log.assigned),
                (1 + SEQUENCE_RESERVE, 1 + SEQUENCE_RESERVE),
                "after {count} restarts"
            );
            assert_eq!(
                log.gaps.explain(1, 1 + SEQUENCE_RESERVE),
                [(1, 1, None), (2, 1 + SEQUENCE_RESERVE, Some(GapReason::Restart))]
            );
            assert_eq!(log.cursors.acknowledged().missing(log.head), 1, "only the entry is pending");
            // The row as a report writes it: nothing was appended.
            row = log.row(count);
        }
        let mut log = UserLog::from_row(Some(row), RESTARTS(6, 0), 0);
        append(&mut log, RESTARTS(6, 0));
        assert_eq!(UserLog::from_row(Some(log.row(6)), RESTARTS(6, 0), 0).head, 2 + SEQUENCE_RESERVE);
        assert_eq!(UserLog::from_row(Some(log.row(6)), RESTARTS(9, 0), 0).head, 2 + 2 * SEQUENCE_RESERVE);
    }

    #[test]
    fn log_of_restored_store_skips_once_for_each_restart() {
        assert_eq!(
            UserLog::from_row(None, RESTARTS(16, 16), 0).head,
            16 * SEQUENCE_RESERVE,
            "a user without a row in the backup"
        );
        let row = StoredLog { head: 9, flushed: 9, lossy_restarts: 1, ..StoredLog::default() };
        assert_eq!(UserLog::from_row(Some(row.clone()), RESTARTS(3, 3), 0).head, 9 + 2 * SEQUENCE_RESERVE);
        assert_eq!(
            UserLog::from_row(Some(row), RESTARTS(20, 17), 0).head,
            9 + 16 * SEQUENCE_RESERVE,
            "later restarts count once"
        );
    }

    #[test]
    fn restarts_of_log_without_row_follow_from_its_first_entry() {
        let restarts = RESTARTS(5, 2);
        assert_eq!(restarts.known(Some(4), Some(1)), Some(4));
        assert_eq!(restarts.known(None, Some(2 * SEQUENCE_RESERVE + 1)), Some(2));
        assert_eq!((restarts.known(None, Some(2 * SEQUENCE_RESERVE)), restarts.known(None, None)), (None, None));
        let skipped =
            [1, 2, SEQUENCE_RESERVE, SEQUENCE_RESERVE + 1, 3 * SEQUENCE_RESERVE + 1].map(|seq| has_skipped(0, seq));
        assert_eq!(skipped, [false, false, false, true, true]);
    }

    #[test]
    fn empty_log_starts_at_one_after_lossy_restarts() {
        let log = UserLog::from_row(None, RESTARTS(7, 0), 0);
        assert_eq!(log.head, 0);
        assert_eq!(UserLog::from_row(Some(log.row(7)), RESTARTS(9, 0), 0).head, 0);
    }
}
