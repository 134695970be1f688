//! Tests the checker on handmade histories of devices and of clients that resume.

use crate::{
    checker::Kind,
    checker_tests::{History, accepted, backlog, connected, dispatched, dispatching, heartbeat, killed},
    history::{Event, Event::*},
};

/// Returns a connection of alice's device that resumes after a sequence, or does not resume.
fn connected_on(server: u64, c: u64, device: &str, after: Option<u64>) -> [Event; 2] {
    [Connecting { server, c, user: "alice".into(), after, device: Some(device.into()) }, Connected { c }]
}

/// Returns an op 13 without a gap.
fn resumed(c: u64, first: u64, last: u64) -> Event {
    Resumed { c, first, last, missed: None }
}

/// Returns an op 13 with a gap of acknowledged messages.
fn gap(c: u64, from: u64, to: u64, last: u64) -> Event {
    Resumed { c, first: to + 1, last, missed: Some((from, to, "received".into())) }
}

fn acknowledged(c: u64, s: u64) -> [Event; 2] {
    [Acknowledging { c, s }, Acknowledged { c, s }]
}

/// Returns a history with messages 0 and 1, and `events` on connection 1, which resumes after sequence 10.
fn resumed_after_10(events: impl IntoIterator<Item = Event>) -> History {
    let history = History::new().with(dispatched(0)).with(dispatched(1)).with(connected_on(1, 1, "phone", Some(10)));
    history.with(events).drained(&[("alice", 12)])
}

#[test]
fn resumed_connection_with_a_missing_or_wrong_sequence_is_a_violation() {
    resumed_after_10([resumed(1, 11, 12), backlog(1, 0, 11), backlog(1, 1, 12)]).assert_clean();
    resumed_after_10([backlog(1, 0, 11), backlog(1, 1, 12)]).assert_violation(Kind::Gap);
    resumed_after_10([resumed(1, 11, 12), backlog(1, 0, 10), backlog(1, 1, 11)]).assert_violation(Kind::Position);
    resumed_after_10([resumed(1, 11, 12), backlog(1, 0, 11), backlog(1, 1, 13)]).assert_violation(Kind::Gap);
    resumed_after_10([resumed(1, 12, 12), backlog(1, 0, 11), backlog(1, 1, 12)]).assert_violation(Kind::Gap);
    resumed_after_10([resumed(1, 11, 9), backlog(1, 0, 11), backlog(1, 1, 12)]).assert_violation(Kind::Sequence);
    let without_sequence = Received { c: 1, b: 0, n: 1, x: 7, s: None };
    resumed_after_10([resumed(1, 11, 12), backlog(1, 0, 11), without_sequence]).assert_violation(Kind::Position);
}

#[test]
fn sequence_with_another_message_on_the_next_resume_is_a_violation() {
    let history = resumed_after_10([resumed(1, 11, 12), backlog(1, 0, 11), backlog(1, 1, 12)]);
    let again = |messages: [u64; 2]| {
        let history = history.clone().with(connected_on(1, 2, "phone", Some(10)));
        history.with([resumed(2, 11, 12), backlog(2, messages[0], 11), backlog(2, messages[1], 12)])
    };
    again([0, 1]).assert_clean();
    again([1, 0]).assert_violation(Kind::Sequence);
}

/// Returns a history in which the phone acknowledges both messages, and resumes after 9 with `frames`.
fn resumed_after_9(frames: impl IntoIterator<Item = Event>) -> History {
    let history = resumed_after_10(both_messages(1).into_iter().chain(acknowledged(1, 12)));
    history.with(connected_on(1, 2, "phone", Some(9))).with(frames)
}

fn both_messages(c: u64) -> [Event; 3] {
    [resumed(c, 11, 12), backlog(c, 0, 11), backlog(c, 1, 12)]
}

#[test]
fn gap_that_is_unreported_or_reported_wrongly_is_a_violation() {
    resumed_after_9([gap(2, 10, 12, 12)]).assert_clean();
    resumed_after_9([gap(2, 10, 11, 12), backlog(2, 1, 12)]).assert_clean();
    resumed_after_9([gap(2, 11, 12, 12)]).assert_violation(Kind::Gap);
    resumed_after_9([resumed(2, 12, 12), backlog(2, 1, 12)]).assert_violation(Kind::Gap);
    resumed_after_9([gap(2, 10, 9, 12)]).assert_violation(Kind::Gap);
    let expired = Resumed { c: 2, first: 13, last: 12, missed: Some((10, 12, "expired".into())) };
    resumed_after_9([expired]).assert_violation(Kind::Gap);
}

/// Returns a history in which the phone acknowledges both messages, and then the tablet resumes with `frames`.
fn tablet_after_phone(frames: impl IntoIterator<Item = Event>) -> History {
    let history = History::new();
    let history = history.with(connected_on(1, 1, "phone", Some(10))).with(connected_on(1, 2, "tablet", Some(10)));
    let history = history.with([Closed { c: 2 }]).with(dispatched(0)).with(dispatched(1));
    let history = history.with(both_messages(1)).with(acknowledged(1, 12));
    history.with(connected_on(1, 3, "tablet", Some(10))).with(frames).drained(&[("alice", 12)])
}

#[test]
fn message_acknowledged_by_another_device_must_still_arrive() {
    tablet_after_phone(both_messages(3)).assert_clean();
    tablet_after_phone([resumed(3, 11, 12), backlog(3, 0, 11)]).assert_violation(Kind::Lost);
    tablet_after_phone([gap(3, 11, 12, 12)]).assert_violation(Kind::Gap);
    tablet_after_phone([gap(3, 11, 11, 12), backlog(3, 1, 12)]).assert_violation(Kind::Gap);
}

#[test]
fn device_may_be_lost_with_a_server_killed_before_a_commit() {
    let history = |commit: bool| {
        let history = History::new();
        let history = history.with(connected_on(1, 1, "phone", Some(10))).with(connected_on(1, 2, "tablet", Some(10)));
        let history = if commit { history.with(dispatched(0)) } else { history };
        let history = history.with(killed(1)).with(connected_on(2, 3, "phone", Some(10)));
        let history = if commit { history } else { history.with([dispatching(2, 0, &["alice"]), accepted(0, 1)]) };
        let history = history.with([resumed(3, 11, 11), backlog(3, 0, 11)]).with(acknowledged(3, 11));
        history.with(connected_on(2, 4, "tablet", Some(10))).with([gap(4, 11, 11, 11)]).drained(&[("alice", 11)])
    };
    history(false).assert_clean();
    history(true).assert_violation(Kind::Gap);
}

#[test]
fn client_without_device_has_its_own_cursor() {
    let history = |events: Vec<Event>| {
        let history = History::new().with(connected(1, 1, "alice")).with(connected_on(1, 2, "phone", Some(10)));
        let history = history.with(dispatched(0)).with([resumed(2, 11, 11), backlog(2, 0, 11)]);
        history.with(acknowledged(2, 11)).with(events).drained(&[("alice", 11)])
    };
    history(vec![Received { c: 1, b: 0, n: 0, x: 7, s: None }]).assert_clean();
    history(vec![]).assert_violation(Kind::Lost);
}

/// Returns a history in which the phone receives message 0, then `between` happens, and it receives the message again.
///
/// The second connection does not resume.
fn redelivered_after(between: impl IntoIterator<Item = Event>, server: u64) -> History {
    let history = History::new().with(connected_on(1, 1, "phone", Some(10))).with(dispatched(0));
    let history = history.with([resumed(1, 11, 11), backlog(1, 0, 11)]).with(between);
    let history = history.with(connected_on(server, 2, "phone", None)).with([backlog(2, 0, 1)]);
    history.drained(&[("alice", 11), ("bob", 1)])
}

#[test]
fn message_acknowledged_by_a_device_and_sent_to_it_again_is_a_violation() {
    redelivered_after([], 1).assert_clean();
    // The server may not have received this acknowledgement.
    redelivered_after([Acknowledging { c: 1, s: 11 }], 1).assert_clean();
    redelivered_after(acknowledged(1, 10), 1).assert_clean();
    redelivered_after(acknowledged(1, 11), 1).assert_violation(Kind::Repeated);
    redelivered_after([Acknowledging { c: 1, s: 11 }, Closed { c: 1 }], 1).assert_violation(Kind::Repeated);
    // `after` acknowledges too.
    redelivered_after(connected_on(1, 3, "phone", Some(11)), 1).assert_violation(Kind::Repeated);
    // A kill may lose acknowledgements after the last commit.
    redelivered_after(acknowledged(1, 11).into_iter().chain(killed(1)), 2).assert_clean();
    let commit = [dispatching(1, 50, &["bob"]), accepted(50, 1)].into_iter().chain(connected(1, 50, "bob"));
    let commit: Vec<Event> = commit.chain([backlog(50, 50, 1)]).collect();
    let commit_after_ack = acknowledged(1, 11).into_iter().chain(commit.clone()).chain(killed(1));
    redelivered_after(commit_after_ack, 2).assert_violation(Kind::Repeated);
    redelivered_after(commit.into_iter().chain(acknowledged(1, 11)).chain(killed(1)), 2).assert_clean();
}

#[test]
fn heartbeat_acknowledgement_counts_only_for_its_own_device() {
    let history = |device: &str| {
        let history = History::new().with(connected_on(1, 1, "phone", None)).with(dispatched(0));
        let history = history.with([backlog(1, 0, 1)]).with(heartbeat(1)).with([HeartbeatReceived { c: 1 }]);
        history.with(connected_on(1, 2, device, None)).with([backlog(2, 0, 1)]).drained(&[("alice", 11)])
    };
    history("phone").assert_violation(Kind::Repeated);
    history("tablet").assert_clean();
}
