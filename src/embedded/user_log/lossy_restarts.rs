//! Lossy restarts (*lapses*), and the sequences that a log passes over because of them.
//!
//! Where appends are answered before they are durable, a crash may take back the last of them, with sequences that a
//! client has seen. At most [`SEQUENCE_RESERVE`] messages are at risk at any time, so a log that goes on that much further
//! reuses none.
//!
//! A log does so once, however many lossy restarts follow each other. The first entry of a log after a lapse is synced
//! before it is shown, so its row or the write-ahead log tells that it was given sequences since. A log of which neither
//! does was given none, and stays where it is. The lapses of a restored store (up to [`LossyRestarts::full`]) count one
//! by one.

use crate::message::Seq;

/// Sequences set aside for what a crash may take back where appends are answered before they are durable. The store
/// syncs before more messages than this are unsynced.
pub const SEQUENCE_RESERVE: u64 = 65_536;

/// The lapses of a store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LossyRestarts {
    /// How many there were.
    pub count: u32,
    /// How many of them, from the first on, count one by one.
    pub full: u32,
}

impl LossyRestarts {
    /// Returns how many times [`SEQUENCE_RESERVE`] a log passes over. `known`: the lapses its row takes into account.
    pub fn due(self, known: Option<u32>, head: Seq) -> u32 {
        match known {
            None => self.full,
            Some(known) if known < self.full => self.full - known,
            // Nothing was ever appended to it.
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
            tables::schema::Row,
            user_log::{UserLog, WalSlot},
        },
        store::GapReason,
    };

    const OF: fn(u32, u32) -> LossyRestarts = |count, full| LossyRestarts { count, full };

    fn append(log: &mut UserLog, lapses: LossyRestarts) {
        log.passed = None;
        log.row_lapses = Some(lapses.count);
        log.assigned += 1;
        let seq = log.assigned;
        log.push(WalSlot { seq, record: 1, message_at: 0, stamp_at: 0, bytes: 1, expires_s: 0 }, None);
        log.publish(seq, 1);
    }

    #[test]
    fn log_after_several_lossy_restarts_in_a_row_has_passed_over_one_reserve() {
        let mut log = UserLog::from_row(None, OF(0, 0));
        append(&mut log, OF(0, 0));
        let mut row = log.row(0);
        for count in 1..=5 {
            let log = UserLog::from_row(Some(row.clone()), OF(count, 0));
            assert_eq!(
                (log.head, log.assigned),
                (1 + SEQUENCE_RESERVE, 1 + SEQUENCE_RESERVE),
                "after {count} restarts"
            );
            assert_eq!(
                log.gaps.explain(1, 1 + SEQUENCE_RESERVE),
                [(1, 1, None), (2, 1 + SEQUENCE_RESERVE, Some(GapReason::Restart))]
            );
            assert_eq!(log.cursors.received().missing(log.head), 1, "only the entry is pending");
            // As it is written for a receipt or a visit: nothing was appended.
            row = log.row(count);
        }
        let mut log = UserLog::from_row(Some(row), OF(6, 0));
        append(&mut log, OF(6, 0));
        assert_eq!(UserLog::from_row(Some(log.row(6)), OF(6, 0)).head, 2 + SEQUENCE_RESERVE);
        assert_eq!(UserLog::from_row(Some(log.row(6)), OF(9, 0)).head, 2 + 2 * SEQUENCE_RESERVE);
    }

    #[test]
    fn lossy_restarts_of_restored_store_count_one_by_one() {
        assert_eq!(
            UserLog::from_row(None, OF(16, 16)).head,
            16 * SEQUENCE_RESERVE,
            "a user whom the backup does not have"
        );
        let row = Row::V1 { head: 9, through: 0, ranges: vec![], settled: 9, seen_ms: 0, lapses: 1 };
        assert_eq!(UserLog::from_row(Some(row.clone()), OF(3, 3)).head, 9 + 2 * SEQUENCE_RESERVE);
        assert_eq!(
            UserLog::from_row(Some(row), OF(20, 17)).head,
            9 + 16 * SEQUENCE_RESERVE,
            "and those behind it not again"
        );
    }

    #[test]
    fn user_never_sent_anything_starts_at_one_after_lossy_restarts() {
        let log = UserLog::from_row(None, OF(7, 0));
        assert_eq!(log.head, 0);
        assert_eq!(UserLog::from_row(Some(log.row(7)), OF(9, 0)).head, 0);
    }
}
