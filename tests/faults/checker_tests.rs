//! The checker, held against histories made by hand: each kind of violation is found, and what is
//! allowed is not taken for one.

use serde_json::{Value, json};

use crate::{
    checker::{self, Kind, check},
    history::{self, Event, Event::*},
};

/// A history: two servers, the first of which is killed in the middle, and a drain.
#[derive(Clone)]
pub struct Story(Vec<Event>);

impl Story {
    pub fn new() -> Self {
        Self(vec![
            Run { seed: 1, durability: "always".into(), heads: [("alice".to_owned(), 10)].into() },
            Starting { life: 1 },
            Ready { life: 1, ms: 1.0 },
        ])
    }

    pub fn with(mut self, events: impl IntoIterator<Item = Event>) -> Self {
        self.0.extend(events);
        self
    }

    /// Everybody has `heads` in the end, and nothing pending.
    pub fn drained(self, heads: &[(&str, u64)]) -> Self {
        let drained = |(user, head): &(&str, u64)| Drained { user: (*user).to_owned(), head: *head, pending: 0 };
        self.with(heads.iter().map(drained).collect::<Vec<_>>())
    }

    #[track_caller]
    pub fn is_clean(&self) {
        let (violations, _) = check(&self.0);
        assert!(violations.is_empty(), "{}", told(&violations));
    }

    #[track_caller]
    pub fn shows(&self, kind: Kind) {
        let (violations, figures) = check(&self.0);
        assert!(violations.iter().any(|one| one.kind == kind), "no {kind:?} among: {}", told(&violations));
        assert_eq!(figures.violations, violations.len() as u64);
        let lines = violations.iter().flat_map(|one| &one.lines);
        assert!(lines.into_iter().all(|line| (1..=self.0.len()).contains(line)), "a line that is not there");
    }
}

fn told(violations: &[checker::Violation]) -> String {
    violations.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

fn result(recipients: usize) -> Value {
    json!({ "recipients": recipients, "online": 0, "offline": recipients, "rejected": [], "duplicate": false })
}

pub fn begun_in(life: u64, n: u64, to: &[&str]) -> Event {
    Begun { life, b: 0, n, attempt: 0, to: to.iter().map(|user| (*user).to_owned()).collect(), x: 7, id: None }
}

pub fn answered(n: u64, recipients: usize) -> Event {
    Answered { b: 0, n, attempt: 0, status: 200, answer: result(recipients) }
}

/// To alice alone, and answered.
pub fn sent(n: u64) -> [Event; 2] {
    [begun_in(1, n, &["alice"]), answered(n, 1)]
}

pub fn opened_in(life: u64, c: u64, user: &str) -> [Event; 2] {
    [Opening { life, c, user: user.into(), after: None, device: None }, Opened { c }]
}

fn live(c: u64, n: u64) -> Event {
    Received { c, b: 0, n, x: 7, s: None }
}

pub fn owed(c: u64, n: u64, s: u64) -> Event {
    Received { c, b: 0, n, x: 7, s: Some(s) }
}

pub fn receipt(c: u64) -> [Event; 2] {
    [Asked { c }, Receipted { c }]
}

pub fn killed(life: u64) -> [Event; 4] {
    [
        Fault { life, kind: "kill".into() },
        Died { life, how: "signal: 9".into() },
        Starting { life: life + 1 },
        Ready { life: life + 1, ms: 1.0 },
    ]
}

/// One message received live, one owed after a kill.
fn usual() -> Story {
    Story::new()
        .with(opened_in(1, 1, "alice"))
        .with(sent(0))
        .with([live(1, 0)])
        .with(receipt(1))
        .with(sent(1))
        .with(killed(1))
        .with([Broken { c: 1, how: "reset".into() }])
        .with(opened_in(2, 2, "alice"))
        .with([owed(2, 1, 1)])
        .with(receipt(2))
        .with([Closed { c: 2 }])
}

#[test]
fn what_goes_well_is_clean() {
    usual().drained(&[("alice", 12)]).is_clean();
}

#[test]
fn what_was_answered_and_never_came_is_lost() {
    let story = usual().with(sent(2)).drained(&[("alice", 13)]);
    story.shows(Kind::Lost);
    let others = Story::new().with([begun_in(1, 0, &["alice", "bob"]), answered(0, 2)]);
    let others = others.with(opened_in(1, 1, "alice")).with([owed(1, 0, 1)]).drained(&[("alice", 11), ("bob", 1)]);
    others.shows(Kind::Lost);
}

#[test]
fn what_was_not_answered_may_come_once_or_not_at_all() {
    let unknown = [begun_in(1, 2, &["alice"]), Unknown { b: 0, n: 2, attempt: 0, why: "reset".into() }];
    usual().with(unknown.clone()).drained(&[("alice", 12)]).is_clean();
    let came = usual().with(unknown).with(opened_in(2, 3, "alice")).with([owed(3, 2, 1)]);
    came.clone().drained(&[("alice", 13)]).is_clean();
    came.with([owed(3, 2, 2)]).drained(&[("alice", 13)]).shows(Kind::Repeated);
}

#[test]
fn what_was_rejected_or_refused_need_not_come_and_must_not() {
    let answer =
        json!({ "recipients": 2, "online": 0, "offline": 1, "rejected": [{ "user": "bob", "reason": "quota" }] });
    let rejected = [
        begun_in(1, 0, &["alice", "bob"]),
        Answered { b: 0, n: 0, attempt: 0, status: 200, answer },
        begun_in(1, 1, &["bob"]),
        Answered { b: 0, n: 1, attempt: 0, status: 400, answer: json!({}) },
    ];
    let story = Story::new().with(rejected).with(opened_in(1, 1, "alice")).with([owed(1, 0, 1)]);
    let story = story.drained(&[("alice", 11), ("bob", 0)]);
    story.is_clean();
    story.clone().with(opened_in(1, 2, "bob")).with([owed(2, 0, 1)]).shows(Kind::Foreign);
    story.with(opened_in(1, 2, "bob")).with([owed(2, 1, 1)]).shows(Kind::Foreign);
}

#[test]
fn what_was_for_others_or_sent_by_nobody_is_foreign() {
    let bob = || Story::new().with(sent(0)).with(opened_in(1, 1, "alice")).with([owed(1, 0, 1)]);
    bob().with(opened_in(1, 2, "bob")).with([owed(2, 0, 1)]).drained(&[("alice", 11)]).shows(Kind::Foreign);
    bob().with([live(1, 99)]).drained(&[("alice", 11)]).shows(Kind::Foreign);
    let altered = Received { c: 1, b: 0, n: 0, x: 8, s: Some(1) };
    let altered = Story::new().with(sent(0)).with(opened_in(1, 1, "alice")).with([altered]);
    altered.drained(&[("alice", 11)]).shows(Kind::Foreign);
}

#[test]
fn one_that_comes_before_an_older_one_is_reordered() {
    let sent_both = || Story::new().with(sent(0)).with(sent(1)).with(opened_in(1, 1, "alice"));
    sent_both().with([owed(1, 0, 1), owed(1, 1, 2)]).drained(&[("alice", 12)]).is_clean();
    sent_both().with([owed(1, 1, 1), owed(1, 0, 2)]).drained(&[("alice", 12)]).shows(Kind::Reordered);
    // On two connections: the newer first, and the older only when he comes again.
    let holed = sent_both().with([owed(1, 1, 1)]).with(opened_in(1, 2, "alice")).with([owed(2, 0, 1)]);
    holed.drained(&[("alice", 12)]).shows(Kind::Reordered);
}

#[test]
fn of_two_under_way_at_once_either_may_be_first_but_not_once_so_and_once_so() {
    let both = [begun_in(1, 0, &["alice"]), begun_in(1, 1, &["alice"]), answered(0, 1), answered(1, 1)];
    let story = || Story::new().with(both.clone()).with(opened_in(1, 1, "alice")).with([owed(1, 1, 1), owed(1, 0, 2)]);
    story().drained(&[("alice", 12)]).is_clean();
    let again = story().with(opened_in(1, 2, "alice"));
    again.clone().with([owed(2, 1, 1), owed(2, 0, 2)]).drained(&[("alice", 12)]).is_clean();
    again.with([owed(2, 0, 1), owed(2, 1, 2)]).drained(&[("alice", 12)]).shows(Kind::Reordered);
}

#[test]
fn a_repeat_on_one_connection_is_never_allowed() {
    let story = Story::new().with(sent(0)).with(opened_in(1, 1, "alice")).with([owed(1, 0, 1), live(1, 0)]);
    story.drained(&[("alice", 11)]).shows(Kind::Repeated);
}

/// Alice gets one message on connection 1; `then`, and it comes again on connection 2 with server `life`.
fn again(then: impl IntoIterator<Item = Event>, life: u64) -> Story {
    let story = Story::new().with(sent(0)).with(opened_in(1, 1, "alice")).with([owed(1, 0, 1)]).with(then);
    let story = story.with(opened_in(life, 2, "alice")).with([owed(2, 0, 1)]);
    story.drained(&[("alice", 11), ("bob", 1)])
}

/// Somebody else's message, sent and answered by the first server: with it, all receipts so far are written down.
fn commit() -> Vec<Event> {
    let mut events = vec![begun_in(1, 50, &["bob"]), answered(50, 1)];
    events.extend(opened_in(1, 50, "bob"));
    events.push(owed(50, 50, 1));
    events
}

#[test]
fn what_was_not_confirmed_may_come_again() {
    again([], 1).is_clean();
    // A receipt that was sent is not yet one that was taken in.
    again(receipt(1), 1).is_clean();
    again(receipt(1).into_iter().chain(commit()), 1).is_clean();
    again(killed(1), 2).is_clean();
}

#[test]
fn what_was_confirmed_may_not_come_again_while_the_server_lives() {
    let proven = || receipt(1).into_iter().chain([Asked { c: 1 }]);
    again(proven(), 1).shows(Kind::Repeated);
    again(receipt(1).into_iter().chain([Closed { c: 1 }]), 1).shows(Kind::Repeated);
    // A connection that began before the receipt was taken in goes on with what it has to send.
    let beside = Story::new()
        .with(opened_in(1, 1, "alice"))
        .with(opened_in(1, 2, "alice"))
        .with(sent(0))
        .with([live(1, 0)])
        .with(proven())
        .with([live(2, 0)]);
    beside.drained(&[("alice", 11)]).is_clean();
}

#[test]
fn a_death_takes_back_only_receipts_that_no_commit_followed() {
    let proven = || receipt(1).into_iter().chain([Asked { c: 1 }]);
    again(proven().chain(killed(1)), 2).is_clean();
    again(commit().into_iter().chain(proven()).chain(killed(1)), 2).is_clean();
    again(proven().chain(commit()).chain(killed(1)), 2).shows(Kind::Repeated);
    let stopped = [
        Fault { life: 1, kind: "terminate".into() },
        Stopped { life: 1 },
        Starting { life: 2 },
        Ready { life: 2, ms: 1.0 },
    ];
    again(proven().chain(stopped), 2).shows(Kind::Repeated);
    // A message received behind the question is not covered by the answer to it.
    let behind = Story::new()
        .with(sent(0))
        .with(opened_in(1, 1, "alice"))
        .with([Asked { c: 1 }, owed(1, 0, 1), Receipted { c: 1 }, Asked { c: 1 }])
        .with(opened_in(1, 2, "alice"))
        .with([owed(2, 0, 1)]);
    behind.drained(&[("alice", 11)]).is_clean();
}

#[test]
fn numbers_begin_with_one_and_have_no_hole() {
    let story = || Story::new().with(sent(0)).with(sent(1)).with(opened_in(1, 1, "alice"));
    story().with([owed(1, 0, 1), live(1, 1)]).drained(&[("alice", 12)]).is_clean();
    story().with([owed(1, 0, 1), owed(1, 1, 3)]).drained(&[("alice", 12)]).shows(Kind::Numbered);
    story().with([owed(1, 0, 0), owed(1, 1, 1)]).drained(&[("alice", 12)]).shows(Kind::Numbered);
    story().with([live(1, 0), owed(1, 1, 1)]).drained(&[("alice", 12)]).shows(Kind::Numbered);
}

fn log(head: u64, entries: &[(u64, u64)]) -> Event {
    Log { user: "alice".into(), head, entries: entries.iter().map(|(s, n)| (*s, 0, *n)).collect() }
}

#[test]
fn a_sequence_is_one_messages_for_ever() {
    let story = |logs: &[Event]| {
        let story = Story::new().with(sent(0)).with(sent(1)).with(logs.to_vec()).with(opened_in(1, 1, "alice"));
        story.with([owed(1, 0, 1), owed(1, 1, 2)]).drained(&[("alice", 12)])
    };
    story(&[log(12, &[(11, 0), (12, 1)]), log(12, &[(12, 1)])]).is_clean();
    story(&[log(12, &[(11, 0)]), log(12, &[(11, 1)])]).shows(Kind::Sequence);
    story(&[log(12, &[(11, 0), (12, 0)])]).shows(Kind::Sequence);
    story(&[log(12, &[]), log(11, &[])]).shows(Kind::Sequence);
    story(&[log(9, &[])]).shows(Kind::Sequence);
    story(&[log(12, &[(10, 0)])]).shows(Kind::Sequence);
    story(&[log(12, &[(11, 99)])]).shows(Kind::Foreign);
    story(&[log(12, &[(11, 1), (12, 0)])]).shows(Kind::Reordered);
}

#[test]
fn there_are_as_many_sequences_as_messages() {
    usual().drained(&[("alice", 13)]).shows(Kind::Sequence);
    usual().drained(&[("alice", 11)]).shows(Kind::Sequence);
    let mut lapsed = usual().drained(&[("alice", 70_000)]);
    let Run { durability, .. } = &mut lapsed.0[0] else { panic!("it begins with a run") };
    *durability = "interval".into();
    lapsed.is_clean();
}

#[test]
fn one_id_is_answered_one_way() {
    let attempt =
        |life, attempt| Begun { life, b: 0, n: 0, attempt, to: vec!["alice".into()], x: 7, id: Some("0-0".into()) };
    let answer = |attempt, online: u64, duplicate: bool| {
        let answer =
            json!({ "recipients": 1, "online": online, "offline": 1 - online, "rejected": [], "duplicate": duplicate });
        Answered { b: 0, n: 0, attempt, status: 200, answer }
    };
    let story = |second| {
        let story = Story::new().with([attempt(1, 0), answer(0, 0, false), attempt(1, 1), second]);
        story.with(opened_in(1, 1, "alice")).with([owed(1, 0, 1)]).drained(&[("alice", 11)])
    };
    story(answer(1, 0, true)).is_clean();
    story(answer(1, 1, true)).shows(Kind::Answer);
    story(answer(1, 0, false)).shows(Kind::Answer);
    let repeat = Story::new().with([attempt(1, 0), answer(0, 0, true)]).with(opened_in(1, 1, "alice"));
    repeat.with([owed(1, 0, 1)]).drained(&[("alice", 11)]).shows(Kind::Answer);
    // Of what was not answered either may be said, and by the next server too.
    let unknown = Unknown { b: 0, n: 0, attempt: 0, why: "reset".into() };
    for repeat in [true, false] {
        let story = Story::new().with([attempt(1, 0), unknown.clone()]).with(killed(1));
        let story = story.with([attempt(2, 1), answer(1, 0, repeat)]).with(opened_in(2, 1, "alice"));
        story.with([owed(1, 0, 1)]).drained(&[("alice", 11)]).is_clean();
    }
    let twice = story(answer(1, 0, true)).with([owed(1, 0, 2)]);
    twice.shows(Kind::Repeated);
}

#[test]
fn an_answer_counts_its_recipients_and_is_no_failure() {
    let story = |status, answer: Value| {
        let story =
            Story::new().with([begun_in(1, 0, &["alice"]), Answered { b: 0, n: 0, attempt: 0, status, answer }]);
        story.with(opened_in(1, 1, "alice")).with([owed(1, 0, 1)]).drained(&[("alice", 11)])
    };
    story(200, result(1)).is_clean();
    story(503, json!({})).is_clean();
    story(200, result(2)).shows(Kind::Answer);
    story(200, json!({})).shows(Kind::Answer);
    story(500, json!({})).shows(Kind::Answer);
}

#[test]
fn a_server_that_ends_by_itself_or_does_not_open_is_told() {
    let ended = usual().with([Died { life: 2, how: "exit status: 1".into() }]).drained(&[("alice", 12)]);
    ended.shows(Kind::Server);
    let closed = usual().with([Starting { life: 3 }, Failed { life: 3, why: "damaged".into() }]);
    closed.clone().drained(&[("alice", 12)]).shows(Kind::Server);
    // One that did not open delivers nothing, and is told once.
    assert_eq!(check(&closed.with(sent(2)).0).1.violations, 1);
}

#[test]
fn what_stays_pending_is_told() {
    usual().with([Drained { user: "alice".into(), head: 12, pending: 1 }]).shows(Kind::Pending);
}

#[test]
fn a_history_that_is_not_whole_is_not_clean() {
    usual().shows(Kind::History);
    Story(vec![]).shows_nothing_but_history();
    usual().with([answered(77, 1)]).drained(&[("alice", 12)]).shows(Kind::History);
    usual().with([live(77, 0)]).drained(&[("alice", 12)]).shows(Kind::History);
    usual().with(opened_in(2, 2, "alice")).drained(&[("alice", 12)]).shows(Kind::History);
}

impl Story {
    #[track_caller]
    fn shows_nothing_but_history(&self) {
        let (violations, _) = check(&self.0);
        assert!(
            violations.iter().all(|one| one.kind == Kind::History) && !violations.is_empty(),
            "{}",
            told(&violations)
        );
    }
}

#[test]
fn a_history_is_read_as_it_was_written() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("history");
    let story = usual().drained(&[("alice", 12)]);
    let recorder = history::Recorder::new(&path);
    story.0.iter().for_each(|event| recorder.record(event));
    recorder.flush();
    assert_eq!(history::read(&path).unwrap(), story.0);
    std::fs::write(&path, "{\"e\":\"nothing\"}\n").unwrap();
    assert!(history::read(&path).is_err());
}
