//! Tests the checker on handmade histories: it reports each kind of violation, and nothing that is permitted.

use serde_json::{Value, json};

use crate::{
    checker::{self, Kind, check},
    history::{self, Event, Event::*},
};

/// A handmade history. It starts with a run and server 1; alice's last sequence is 10.
#[derive(Clone)]
pub struct History(Vec<Event>);

impl History {
    pub fn new() -> Self {
        Self(vec![
            Run { seed: 1, durability: "always".into(), heads: [("alice".to_owned(), 10)].into() },
            Starting { server: 1 },
            Ready { server: 1, ms: 1.0 },
        ])
    }

    pub fn with(mut self, events: impl IntoIterator<Item = Event>) -> Self {
        self.0.extend(events);
        self
    }

    /// Appends a drain: each user has this last sequence, and nothing pending.
    pub fn drained(self, heads: &[(&str, u64)]) -> Self {
        let drained = |(user, head): &(&str, u64)| Drained { user: (*user).to_owned(), head: *head, pending: 0 };
        self.with(heads.iter().map(drained).collect::<Vec<_>>())
    }

    #[track_caller]
    pub fn assert_clean(&self) {
        let (violations, _) = check(&self.0);
        assert!(violations.is_empty(), "expected no violation, got: {}", list(&violations));
    }

    #[track_caller]
    pub fn assert_violation(&self, kind: Kind) {
        let (violations, counts) = check(&self.0);
        assert!(violations.iter().any(|one| one.kind == kind), "expected {kind:?}, got: {}", list(&violations));
        assert_eq!(counts.violations, violations.len() as u64);
        let lines = violations.iter().flat_map(|one| &one.lines);
        assert!(
            lines.into_iter().all(|line| (1..=self.0.len()).contains(line)),
            "expected only lines of the history, 1 to {}",
            self.0.len()
        );
    }

    #[track_caller]
    fn assert_only_history_violations(&self) {
        let (violations, _) = check(&self.0);
        assert!(
            violations.iter().all(|one| one.kind == Kind::History) && !violations.is_empty(),
            "expected only {:?}, got: {}",
            Kind::History,
            list(&violations)
        );
    }
}

fn list(violations: &[checker::Violation]) -> String {
    violations.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

fn result(recipients: usize) -> Value {
    json!({ "recipients": recipients, "online": 0, "offline": recipients, "rejected": [], "duplicate": false })
}

pub fn dispatching(server: u64, n: u64, to: &[&str]) -> Event {
    Dispatching { server, b: 0, n, attempt: 0, to: to.iter().map(|user| (*user).to_owned()).collect(), x: 7, id: None }
}

pub fn accepted(n: u64, recipients: usize) -> Event {
    Answered { b: 0, n, attempt: 0, status: 200, body: result(recipients) }
}

/// Returns a dispatch to alice on server 1, which is accepted.
pub fn dispatched(n: u64) -> [Event; 2] {
    [dispatching(1, n, &["alice"]), accepted(n, 1)]
}

pub fn connected(server: u64, c: u64, user: &str) -> [Event; 2] {
    [Connecting { server, c, user: user.into(), after: None, device: None }, Connected { c }]
}

fn live(c: u64, n: u64) -> Event {
    Received { c, b: 0, n, x: 7, s: None }
}

pub fn backlog(c: u64, n: u64, s: u64) -> Event {
    Received { c, b: 0, n, x: 7, s: Some(s) }
}

pub fn heartbeat(c: u64) -> [Event; 2] {
    [HeartbeatReceived { c }, HeartbeatAnswered { c }]
}

/// Returns the kill of a server, and the start of the next.
pub fn killed(server: u64) -> [Event; 4] {
    [
        Fault { server, kind: "kill".into() },
        Died { server, how: "signal: 9".into() },
        Starting { server: server + 1 },
        Ready { server: server + 1, ms: 1.0 },
    ]
}

/// Returns a history without violations: one message is received live, and one from the backlog after a kill.
fn kill_and_redelivery() -> History {
    History::new()
        .with(connected(1, 1, "alice"))
        .with(dispatched(0))
        .with([live(1, 0)])
        .with(heartbeat(1))
        .with(dispatched(1))
        .with(killed(1))
        .with([Broken { c: 1, how: "reset".into() }])
        .with(connected(2, 2, "alice"))
        .with([backlog(2, 1, 1)])
        .with(heartbeat(2))
        .with([Closed { c: 2 }])
}

#[test]
fn history_without_violation_is_clean() {
    kill_and_redelivery().drained(&[("alice", 12)]).assert_clean();
}

#[test]
fn accepted_message_that_never_arrives_is_lost() {
    let history = kill_and_redelivery().with(dispatched(2)).drained(&[("alice", 13)]);
    history.assert_violation(Kind::Lost);
    let second_recipient = History::new().with([dispatching(1, 0, &["alice", "bob"]), accepted(0, 2)]);
    let second_recipient = second_recipient.with(connected(1, 1, "alice")).with([backlog(1, 0, 1)]);
    second_recipient.drained(&[("alice", 11), ("bob", 1)]).assert_violation(Kind::Lost);
}

#[test]
fn unanswered_message_may_arrive_once_or_never() {
    let unanswered = [dispatching(1, 2, &["alice"]), Unanswered { b: 0, n: 2, attempt: 0, error: "reset".into() }];
    kill_and_redelivery().with(unanswered.clone()).drained(&[("alice", 12)]).assert_clean();
    let arrived = kill_and_redelivery().with(unanswered).with(connected(2, 3, "alice")).with([backlog(3, 2, 1)]);
    arrived.clone().drained(&[("alice", 13)]).assert_clean();
    arrived.with([backlog(3, 2, 2)]).drained(&[("alice", 13)]).assert_violation(Kind::Repeated);
}

#[test]
fn rejected_message_that_arrives_is_foreign() {
    let body =
        json!({ "recipients": 2, "online": 0, "offline": 1, "rejected": [{ "user": "bob", "reason": "quota" }] });
    let rejected = [
        dispatching(1, 0, &["alice", "bob"]),
        Answered { b: 0, n: 0, attempt: 0, status: 200, body },
        dispatching(1, 1, &["bob"]),
        Answered { b: 0, n: 1, attempt: 0, status: 400, body: json!({}) },
    ];
    let history = History::new().with(rejected).with(connected(1, 1, "alice")).with([backlog(1, 0, 1)]);
    let history = history.drained(&[("alice", 11), ("bob", 0)]);
    history.assert_clean();
    let rejected_recipient = history.clone().with(connected(1, 2, "bob")).with([backlog(2, 0, 1)]);
    rejected_recipient.assert_violation(Kind::Foreign);
    let rejected_dispatch = history.with(connected(1, 2, "bob")).with([backlog(2, 1, 1)]);
    rejected_dispatch.assert_violation(Kind::Foreign);
}

#[test]
fn message_for_another_user_or_never_sent_or_altered_is_foreign() {
    let history = || History::new().with(dispatched(0)).with(connected(1, 1, "alice")).with([backlog(1, 0, 1)]);
    let another_user = history().with(connected(1, 2, "bob")).with([backlog(2, 0, 1)]);
    another_user.drained(&[("alice", 11)]).assert_violation(Kind::Foreign);
    history().with([live(1, 99)]).drained(&[("alice", 11)]).assert_violation(Kind::Foreign);
    let altered = Received { c: 1, b: 0, n: 0, x: 8, s: Some(1) };
    let altered = History::new().with(dispatched(0)).with(connected(1, 1, "alice")).with([altered]);
    altered.drained(&[("alice", 11)]).assert_violation(Kind::Foreign);
}

#[test]
fn message_before_an_older_one_is_reordered() {
    let history = || History::new().with(dispatched(0)).with(dispatched(1)).with(connected(1, 1, "alice"));
    history().with([backlog(1, 0, 1), backlog(1, 1, 2)]).drained(&[("alice", 12)]).assert_clean();
    let reversed = history().with([backlog(1, 1, 1), backlog(1, 0, 2)]);
    reversed.drained(&[("alice", 12)]).assert_violation(Kind::Reordered);
    // The older message arrives only on the next connection.
    let skipped = history().with([backlog(1, 1, 1)]).with(connected(1, 2, "alice")).with([backlog(2, 0, 1)]);
    skipped.drained(&[("alice", 12)]).assert_violation(Kind::Reordered);
}

#[test]
fn concurrent_messages_in_two_orders_are_reordered() {
    let both = [dispatching(1, 0, &["alice"]), dispatching(1, 1, &["alice"]), accepted(0, 1), accepted(1, 1)];
    let history = || {
        let history = History::new().with(both.clone()).with(connected(1, 1, "alice"));
        history.with([backlog(1, 1, 1), backlog(1, 0, 2)])
    };
    history().drained(&[("alice", 12)]).assert_clean();
    let reconnected = history().with(connected(1, 2, "alice"));
    let same_order = reconnected.clone().with([backlog(2, 1, 1), backlog(2, 0, 2)]);
    same_order.drained(&[("alice", 12)]).assert_clean();
    let other_order = reconnected.with([backlog(2, 0, 1), backlog(2, 1, 2)]);
    other_order.drained(&[("alice", 12)]).assert_violation(Kind::Reordered);
}

#[test]
fn repeat_on_one_connection_is_a_violation() {
    let history = History::new().with(dispatched(0)).with(connected(1, 1, "alice"));
    let history = history.with([backlog(1, 0, 1), live(1, 0)]);
    history.drained(&[("alice", 11)]).assert_violation(Kind::Repeated);
}

/// Returns a history in which alice receives one message on connections 1 and 2, with `between` between them.
fn repeated_after(between: impl IntoIterator<Item = Event>, server: u64) -> History {
    let history = History::new().with(dispatched(0)).with(connected(1, 1, "alice")).with([backlog(1, 0, 1)]);
    let history = history.with(between).with(connected(server, 2, "alice")).with([backlog(2, 0, 1)]);
    history.drained(&[("alice", 11), ("bob", 1)])
}

/// Returns an accepted dispatch of server 1 to bob. Its commit writes all earlier acknowledgements.
fn commit() -> Vec<Event> {
    let mut events = vec![dispatching(1, 50, &["bob"]), accepted(50, 1)];
    events.extend(connected(1, 50, "bob"));
    events.push(backlog(50, 50, 1));
    events
}

#[test]
fn unacknowledged_message_may_be_repeated() {
    repeated_after([], 1).assert_clean();
    // The server may not have received the acknowledgement yet.
    repeated_after(heartbeat(1), 1).assert_clean();
    repeated_after(heartbeat(1).into_iter().chain(commit()), 1).assert_clean();
    repeated_after(killed(1), 2).assert_clean();
}

#[test]
fn acknowledged_message_repeated_by_the_same_server_is_a_violation() {
    let acknowledged = || heartbeat(1).into_iter().chain([HeartbeatReceived { c: 1 }]);
    repeated_after(acknowledged(), 1).assert_violation(Kind::Repeated);
    repeated_after(heartbeat(1).into_iter().chain([Closed { c: 1 }]), 1).assert_violation(Kind::Repeated);
    // A connection that began before the server received the acknowledgement may still deliver the message.
    let earlier_connection = History::new()
        .with(connected(1, 1, "alice"))
        .with(connected(1, 2, "alice"))
        .with(dispatched(0))
        .with([live(1, 0)])
        .with(acknowledged())
        .with([live(2, 0)]);
    earlier_connection.drained(&[("alice", 11)]).assert_clean();
}

#[test]
fn killed_server_may_lose_only_acknowledgements_after_its_last_commit() {
    let acknowledged = || heartbeat(1).into_iter().chain([HeartbeatReceived { c: 1 }]);
    repeated_after(acknowledged().chain(killed(1)), 2).assert_clean();
    repeated_after(commit().into_iter().chain(acknowledged()).chain(killed(1)), 2).assert_clean();
    repeated_after(acknowledged().chain(commit()).chain(killed(1)), 2).assert_violation(Kind::Repeated);
    let stopped = [
        Fault { server: 1, kind: "terminate".into() },
        Stopped { server: 1 },
        Starting { server: 2 },
        Ready { server: 2, ms: 1.0 },
    ];
    repeated_after(acknowledged().chain(stopped), 2).assert_violation(Kind::Repeated);
    // The answer to a heartbeat does not acknowledge a message that was received after the heartbeat.
    let after_heartbeat = History::new()
        .with(dispatched(0))
        .with(connected(1, 1, "alice"))
        .with([HeartbeatReceived { c: 1 }, backlog(1, 0, 1), HeartbeatAnswered { c: 1 }, HeartbeatReceived { c: 1 }])
        .with(connected(1, 2, "alice"))
        .with([backlog(2, 0, 1)]);
    after_heartbeat.drained(&[("alice", 11)]).assert_clean();
}

#[test]
fn positions_that_do_not_count_from_one_are_a_violation() {
    let history = |messages: [Event; 2]| {
        let history = History::new().with(dispatched(0)).with(dispatched(1)).with(connected(1, 1, "alice"));
        history.with(messages).drained(&[("alice", 12)])
    };
    history([backlog(1, 0, 1), live(1, 1)]).assert_clean();
    history([backlog(1, 0, 1), backlog(1, 1, 3)]).assert_violation(Kind::Position);
    history([backlog(1, 0, 0), backlog(1, 1, 1)]).assert_violation(Kind::Position);
    history([live(1, 0), backlog(1, 1, 1)]).assert_violation(Kind::Position);
}

fn log(head: u64, entries: &[(u64, u64)]) -> Event {
    LogRead { user: "alice".into(), head, entries: entries.iter().map(|(s, n)| (*s, 0, *n)).collect() }
}

#[test]
fn log_read_with_reused_or_decreasing_sequences_is_a_violation() {
    let history = |logs: &[Event]| {
        let history = History::new().with(dispatched(0)).with(dispatched(1)).with(logs.to_vec());
        let history = history.with(connected(1, 1, "alice")).with([backlog(1, 0, 1), backlog(1, 1, 2)]);
        history.drained(&[("alice", 12)])
    };
    history(&[log(12, &[(11, 0), (12, 1)]), log(12, &[(12, 1)])]).assert_clean();
    history(&[log(12, &[(11, 0)]), log(12, &[(11, 1)])]).assert_violation(Kind::Sequence);
    history(&[log(12, &[(11, 0), (12, 0)])]).assert_violation(Kind::Sequence);
    history(&[log(12, &[]), log(11, &[])]).assert_violation(Kind::Sequence);
    history(&[log(9, &[])]).assert_violation(Kind::Sequence);
    history(&[log(12, &[(10, 0)])]).assert_violation(Kind::Sequence);
    history(&[log(12, &[(11, 99)])]).assert_violation(Kind::Foreign);
    history(&[log(12, &[(11, 1), (12, 0)])]).assert_violation(Kind::Reordered);
}

#[test]
fn last_sequence_other_than_the_message_count_is_a_violation() {
    kill_and_redelivery().drained(&[("alice", 13)]).assert_violation(Kind::Sequence);
    kill_and_redelivery().drained(&[("alice", 11)]).assert_violation(Kind::Sequence);
    // A lossy restart skips sequences.
    let mut interval = kill_and_redelivery().drained(&[("alice", 70_000)]);
    let Run { durability, .. } = &mut interval.0[0] else { panic!("expected a run as the first event") };
    *durability = "interval".into();
    interval.assert_clean();
}

#[test]
fn answers_to_one_id_that_differ_are_a_violation() {
    let attempt = |server, attempt| Dispatching {
        server,
        b: 0,
        n: 0,
        attempt,
        to: vec!["alice".into()],
        x: 7,
        id: Some("0-0".into()),
    };
    let answer = |attempt, online: u64, duplicate: bool| {
        let body =
            json!({ "recipients": 1, "online": online, "offline": 1 - online, "rejected": [], "duplicate": duplicate });
        Answered { b: 0, n: 0, attempt, status: 200, body }
    };
    let history = |second| {
        let history = History::new().with([attempt(1, 0), answer(0, 0, false), attempt(1, 1), second]);
        history.with(connected(1, 1, "alice")).with([backlog(1, 0, 1)]).drained(&[("alice", 11)])
    };
    history(answer(1, 0, true)).assert_clean();
    history(answer(1, 1, true)).assert_violation(Kind::Response);
    history(answer(1, 0, false)).assert_violation(Kind::Response);
    let first_is_duplicate = History::new().with([attempt(1, 0), answer(0, 0, true)]).with(connected(1, 1, "alice"));
    first_is_duplicate.with([backlog(1, 0, 1)]).drained(&[("alice", 11)]).assert_violation(Kind::Response);
    // After an attempt without an answer the retry may be a duplicate or not, also on the next server.
    let unanswered = Unanswered { b: 0, n: 0, attempt: 0, error: "reset".into() };
    for duplicate in [true, false] {
        let history = History::new().with([attempt(1, 0), unanswered.clone()]).with(killed(1));
        let history = history.with([attempt(2, 1), answer(1, 0, duplicate)]).with(connected(2, 1, "alice"));
        history.with([backlog(1, 0, 1)]).drained(&[("alice", 11)]).assert_clean();
    }
    let twice = history(answer(1, 0, true)).with([backlog(1, 0, 2)]);
    twice.assert_violation(Kind::Repeated);
}

#[test]
fn answer_with_wrong_counts_or_a_server_error_is_a_violation() {
    let history = |status, body: Value| {
        let answered = Answered { b: 0, n: 0, attempt: 0, status, body };
        let history = History::new().with([dispatching(1, 0, &["alice"]), answered]);
        history.with(connected(1, 1, "alice")).with([backlog(1, 0, 1)]).drained(&[("alice", 11)])
    };
    history(200, result(1)).assert_clean();
    history(503, json!({})).assert_clean();
    history(200, result(2)).assert_violation(Kind::Response);
    history(200, json!({})).assert_violation(Kind::Response);
    history(500, json!({})).assert_violation(Kind::Response);
}

#[test]
fn server_that_exits_by_itself_or_does_not_start_is_a_violation() {
    let exited = kill_and_redelivery().with([Died { server: 2, how: "exit status: 1".into() }]);
    exited.drained(&[("alice", 12)]).assert_violation(Kind::Server);
    let not_started = [Starting { server: 3 }, Failed { server: 3, reason: "damaged".into() }];
    let not_started = kill_and_redelivery().with(not_started);
    not_started.clone().drained(&[("alice", 12)]).assert_violation(Kind::Server);
    // Messages that such a server does not deliver are not reported as well.
    assert_eq!(check(&not_started.with(dispatched(2)).0).1.violations, 1);
}

#[test]
fn message_pending_after_the_drain_is_a_violation() {
    let history = kill_and_redelivery().with([Drained { user: "alice".into(), head: 12, pending: 1 }]);
    history.assert_violation(Kind::Pending);
}

#[test]
fn incomplete_history_is_a_violation() {
    kill_and_redelivery().assert_violation(Kind::History);
    History(vec![]).assert_only_history_violations();
    kill_and_redelivery().with([accepted(77, 1)]).drained(&[("alice", 12)]).assert_violation(Kind::History);
    kill_and_redelivery().with([live(77, 0)]).drained(&[("alice", 12)]).assert_violation(Kind::History);
    let number_reused = kill_and_redelivery().with(connected(2, 2, "alice"));
    number_reused.drained(&[("alice", 12)]).assert_violation(Kind::History);
}

#[test]
fn history_file_has_the_recorded_events() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("history");
    let history = kill_and_redelivery().drained(&[("alice", 12)]);
    let recorder = history::Recorder::new(&path);
    history.0.iter().for_each(|event| recorder.record(event));
    recorder.flush();
    assert_eq!(history::read(&path).unwrap(), history.0);
    std::fs::write(&path, "{\"e\":\"nothing\"}\n").unwrap();
    assert!(history::read(&path).is_err());
}
