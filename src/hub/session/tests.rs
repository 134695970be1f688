//! Tests the cursor of a session.

use super::*;

fn positions(cursor: &mut Cursor, seqs: impl IntoIterator<Item = Seq>) -> Vec<Option<u64>> {
    seqs.into_iter().map(|seq| cursor.advance(seq)).collect()
}

#[test]
fn backlog_entries_are_numbered_from_one_and_live_entries_are_not() {
    let mut cursor = Cursor::new(4, 7, false);
    assert_eq!(positions(&mut cursor, 5..=9), [Some(1), Some(2), Some(3), None, None]);
    assert_eq!(cursor.needed_after(), 9);
}

#[test]
fn acknowledgement_covers_only_written_entries() {
    let mut cursor = Cursor::new(0, 3, false);
    positions(&mut cursor, 1..=2);
    let position = cursor.unacknowledged().unwrap();
    positions(&mut cursor, 3..=5);
    assert_eq!(cursor.acknowledge(position), [Some((1, 2)), None]);
    assert_eq!(cursor.acknowledge(position), [None, None]);
    let beyond = SentPosition { backlog: 99, live: 99 };
    assert_eq!(cursor.acknowledge(beyond), [Some((3, 3)), Some((4, 5))]);
    assert_eq!(cursor.unacknowledged(), None);
}

#[test]
fn live_entries_that_overtake_a_paced_backlog_are_acknowledged_separately() {
    let mut cursor = Cursor::new(0, 3, true);
    assert_eq!(cursor.advance(1), Some(1));
    assert_eq!(positions(&mut cursor, 4..=5), [None, None]);
    assert_eq!(cursor.needed_after(), 1);
    assert_eq!(cursor.acknowledge(cursor.unacknowledged().unwrap()), [Some((1, 1)), Some((4, 5))]);
    assert_eq!(positions(&mut cursor, 2..=3), [Some(2), Some(3)]);
    assert!(!cursor.has_backlog());
    assert_eq!(cursor.needed_after(), 5);
}

#[test]
fn fully_acknowledged_log_has_no_backlog() {
    let mut cursor = Cursor::new(7, 7, false);
    assert!(!cursor.has_backlog());
    assert_eq!(cursor.advance(8), None);
    assert_eq!(cursor.acknowledge(cursor.unacknowledged().unwrap()), [None, Some((8, 8))]);
}
