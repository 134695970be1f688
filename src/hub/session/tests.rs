//! The rules of a cursor, as tables.

use super::*;

fn positions(cursor: &mut Cursor, seqs: impl IntoIterator<Item = Seq>) -> Vec<Option<u64>> {
    seqs.into_iter().map(|seq| cursor.advance(seq)).collect()
}

#[test]
fn what_was_owed_is_numbered_from_one_and_what_is_live_is_not() {
    let mut cursor = Cursor::new(4, 7, false);
    assert_eq!(positions(&mut cursor, 5..=9), [Some(1), Some(2), Some(3), None, None]);
    assert_eq!(cursor.needed_after(), 9);
}

#[test]
fn a_receipt_confirms_only_what_was_written() {
    let mut cursor = Cursor::new(0, 3, false);
    positions(&mut cursor, 1..=2);
    let mark = cursor.unconfirmed().unwrap();
    positions(&mut cursor, 3..=5);
    assert_eq!(cursor.confirm(mark), [Some((1, 2)), None]);
    assert_eq!(cursor.confirm(mark), [None, None]);
    let far = Mark { owed: 99, live: 99 };
    assert_eq!(cursor.confirm(far), [Some((3, 3)), Some((4, 5))]);
    assert_eq!(cursor.unconfirmed(), None);
}

#[test]
fn live_entries_that_pass_a_paced_redelivery_leave_a_hole_that_is_remembered() {
    let mut cursor = Cursor::new(0, 3, true);
    assert_eq!(cursor.advance(1), Some(1));
    assert_eq!(positions(&mut cursor, 4..=5), [None, None]);
    assert_eq!(cursor.needed_after(), 1);
    assert_eq!(cursor.confirm(cursor.unconfirmed().unwrap()), [Some((1, 1)), Some((4, 5))]);
    assert_eq!(positions(&mut cursor, 2..=3), [Some(2), Some(3)]);
    assert!(!cursor.owes());
    assert_eq!(cursor.needed_after(), 5);
}

#[test]
fn nothing_is_owed_where_all_was_received() {
    let mut cursor = Cursor::new(7, 7, false);
    assert!(!cursor.owes());
    assert_eq!(cursor.advance(8), None);
    assert_eq!(cursor.confirm(cursor.unconfirmed().unwrap()), [None, Some((8, 8))]);
}
