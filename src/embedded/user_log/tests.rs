use super::*;

fn log(count: Seq) -> UserLog {
    let mut log = UserLog::default();
    for seq in 1..=count {
        log.push(WalSlot { seq, record: 1, message_at: 0, stamp_at: 0, bytes: 10, expires_s: 0 }, None);
        log.publish(seq, 1);
    }
    log
}

fn shown(log: &UserLog, after: Seq) -> Vec<Seq> {
    log.slots_after(after).map(|slot| slot.seq).filter(|seq| log.is_visible(*seq)).collect()
}

#[test]
fn what_was_received_goes_unless_it_is_held() {
    let mut log = log(5);
    log.hold = Some(2);
    log.cursors.receive(None, 1, 4);
    log.release();
    assert_eq!(shown(&log, 0), [3, 4, 5]);
    log.hold = None;
    log.release();
    assert_eq!(shown(&log, 0), [5]);
    assert_eq!(log.usage(), Usage { entries: 1, bytes: 10 });
}

#[test]
fn islands_are_shown_only_to_those_who_may_not_have_them() {
    let mut log = log(5);
    log.cursors.receive(None, 3, 4);
    log.release();
    assert_eq!(shown(&log, 0), [1, 2, 5]);
    log.hold = Some(3);
    assert_eq!(shown(&log, 0), [1, 2, 4, 5]);
}

#[test]
fn what_is_not_committed_yet_is_counted_and_not_shown() {
    let mut log = log(2);
    log.push(WalSlot { seq: 3, record: 2, message_at: 0, stamp_at: 0, bytes: 10, expires_s: 0 }, None);
    assert_eq!(shown(&log, 0), [1, 2]);
    assert_eq!(log.usage().entries, 3);
}

#[test]
fn what_is_lost_at_the_front_counts_as_received_and_in_the_middle_it_leaves_a_gap() {
    let mut log = log(5);
    log.drop_range(3, 3, GapReason::Collapsed);
    assert_eq!((shown(&log, 0), log.cursors.through()), (vec![1, 2, 4, 5], 0));
    log.drop_range(1, 2, GapReason::Quota);
    log.release();
    assert_eq!((shown(&log, 0), log.released()), (vec![4, 5], 2));
    assert_eq!(log.usage(), Usage { entries: 2, bytes: 20 });
}
