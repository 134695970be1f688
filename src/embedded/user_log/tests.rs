use super::*;

fn log(count: Seq) -> UserLog {
    let mut log = UserLog::default();
    for seq in 1..=count {
        log.push(
            WalSlot { seq, record: 1, message_at: 0, recipient_at: 0, bytes: 10, reserved: 10, expires_s: 0 },
            None,
        );
        log.publish(seq, 1);
    }
    log
}

fn visible(log: &UserLog, after: Seq) -> Vec<Seq> {
    log.slots_after(after).map(|slot| slot.seq).filter(|seq| log.is_visible(*seq)).collect()
}

#[test]
fn acknowledged_entries_are_released_unless_held() {
    let mut log = log(5);
    log.hold = Some(2);
    log.cursors.acknowledge(None, 1, 4);
    log.release();
    assert_eq!(visible(&log, 0), [3, 4, 5]);
    log.hold = None;
    log.release();
    assert_eq!(visible(&log, 0), [5]);
    assert_eq!(log.usage(), Usage { entries: 1, bytes: 10 });
}

#[test]
fn out_of_order_acknowledgement_hides_entries_except_above_the_hold() {
    let mut log = log(5);
    log.cursors.acknowledge(None, 3, 4);
    log.release();
    assert_eq!(visible(&log, 0), [1, 2, 5]);
    log.hold = Some(3);
    assert_eq!(visible(&log, 0), [1, 2, 4, 5]);
}

#[test]
fn uncommitted_entry_is_counted_and_not_visible() {
    let mut log = log(2);
    log.push(
        WalSlot { seq: 3, record: 2, message_at: 0, recipient_at: 0, bytes: 10, reserved: 10, expires_s: 0 },
        None,
    );
    assert_eq!(visible(&log, 0), [1, 2]);
    assert_eq!(log.usage().entries, 3);
}

#[test]
fn dropped_front_counts_as_acknowledged_and_dropped_middle_leaves_gap() {
    let mut log = log(5);
    log.drop_range(3, 3, GapReason::Collapsed);
    assert_eq!((visible(&log, 0), log.cursors.through()), (vec![1, 2, 4, 5], 0));
    log.drop_range(1, 2, GapReason::Quota);
    log.release();
    assert_eq!((visible(&log, 0), log.released()), (vec![4, 5], 2));
    assert_eq!(log.usage(), Usage { entries: 2, bytes: 20 });
}

#[test]
fn blocks_are_trimmed_up_to_the_acknowledgements_that_the_row_or_the_wal_has() {
    let mut before = log(5);
    before.cursors.acknowledge(None, 1, 3);
    let mut loaded = UserLog::as_stored(Some(before.row(0)));
    loaded.dirty = true;
    assert_eq!(loaded.trimmable(), 3);
    loaded.cursors.acknowledge(None, 4, 5);
    loaded.release();
    assert_eq!((loaded.released(), loaded.trimmable()), (5, 3), "the new acknowledgements are not written yet");
    loaded.dirty = false;
    assert_eq!(loaded.trimmable(), 5);
}
