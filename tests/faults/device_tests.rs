//! The checker, held against what clients that resume may and may not be sent.

use crate::{
    checker::Kind,
    checker_tests::{Story, answered, begun_in, killed, opened_in, owed, receipt, sent},
    history::{Event, Event::*},
};

/// Alice comes on a device, behind a sequence or by its cursor.
fn comes(life: u64, c: u64, device: &str, after: Option<u64>) -> [Event; 2] {
    [Opening { life, c, user: "alice".into(), after, device: Some(device.into()) }, Opened { c }]
}

/// What she is told at first, nothing being gone.
fn told(c: u64, first: u64, last: u64) -> Event {
    Told { c, first, last, missed: None }
}

fn gone(c: u64, from: u64, to: u64, last: u64) -> Event {
    Told { c, first: to + 1, last, missed: Some((from, to, "received".into())) }
}

fn confirmed(c: u64, s: u64) -> [Event; 2] {
    [Confirming { c, s }, Confirmed { c, s }]
}

/// Messages 0 and 1 are sent, and then comes what comes on a connection that resumes behind 10.
fn resumes(events: impl IntoIterator<Item = Event>) -> Story {
    let story = Story::new().with(sent(0)).with(sent(1)).with(comes(1, 1, "phone", Some(10)));
    story.with(events).drained(&[("alice", 12)])
}

#[test]
fn one_that_resumes_gets_each_sequence_in_turn() {
    resumes([told(1, 11, 12), owed(1, 0, 11), owed(1, 1, 12)]).is_clean();
    resumes([owed(1, 0, 11), owed(1, 1, 12)]).shows(Kind::Hole);
    resumes([told(1, 11, 12), owed(1, 0, 10), owed(1, 1, 11)]).shows(Kind::Numbered);
    resumes([told(1, 11, 12), owed(1, 0, 11), owed(1, 1, 13)]).shows(Kind::Hole);
    resumes([told(1, 12, 12), owed(1, 0, 11), owed(1, 1, 12)]).shows(Kind::Hole);
    resumes([told(1, 11, 9), owed(1, 0, 11), owed(1, 1, 12)]).shows(Kind::Sequence);
    let live = Received { c: 1, b: 0, n: 1, x: 7, s: None };
    resumes([told(1, 11, 12), owed(1, 0, 11), live]).shows(Kind::Numbered);
}

#[test]
fn a_sequence_is_one_messages_for_those_that_resume_too() {
    let story = resumes([told(1, 11, 12), owed(1, 0, 11), owed(1, 1, 12)]);
    let again = |messages: [u64; 2]| {
        let story = story.clone().with(comes(1, 2, "phone", Some(10)));
        story.with([told(2, 11, 12), owed(2, messages[0], 11), owed(2, messages[1], 12)])
    };
    again([0, 1]).is_clean();
    again([1, 0]).shows(Kind::Sequence);
}

/// The phone has both and confirms them; then it comes again behind 9, and is told what it is told.
fn comes_again(told: impl IntoIterator<Item = Event>) -> Story {
    let story = resumes([told_of_both(1)].into_iter().flatten().chain(confirmed(1, 12)));
    story.with(comes(1, 2, "phone", Some(9))).with(told)
}

fn told_of_both(c: u64) -> [Event; 3] {
    [told(c, 11, 12), owed(c, 0, 11), owed(c, 1, 12)]
}

#[test]
fn a_hole_is_told_and_exactly() {
    comes_again([gone(2, 10, 12, 12)]).is_clean();
    comes_again([gone(2, 10, 11, 12), owed(2, 1, 12)]).is_clean();
    comes_again([gone(2, 11, 12, 12)]).shows(Kind::Hole);
    comes_again([told(2, 12, 12), owed(2, 1, 12)]).shows(Kind::Hole);
    comes_again([gone(2, 10, 9, 12)]).shows(Kind::Hole);
    let expired = Told { c: 2, first: 13, last: 12, missed: Some((10, 12, "expired".into())) };
    comes_again([expired]).shows(Kind::Hole);
}

/// Two devices are known, two messages come to the phone, which confirms them; then the tablet comes.
fn tablet(events: impl IntoIterator<Item = Event>) -> Story {
    let story = Story::new().with(comes(1, 1, "phone", Some(10))).with(comes(1, 2, "tablet", Some(10)));
    let story = story.with([Closed { c: 2 }]).with(sent(0)).with(sent(1)).with(told_of_both(1)).with(confirmed(1, 12));
    story.with(comes(1, 3, "tablet", Some(10))).with(events).drained(&[("alice", 12)])
}

#[test]
fn what_one_device_has_confirmed_the_other_still_gets() {
    tablet(told_of_both(3)).is_clean();
    tablet([told(3, 11, 12), owed(3, 0, 11)]).shows(Kind::Lost);
    tablet([gone(3, 11, 12, 12)]).shows(Kind::Hole);
    tablet([gone(3, 11, 11, 12), owed(3, 1, 12)]).shows(Kind::Hole);
}

#[test]
fn a_device_may_be_forgotten_with_a_server_that_was_killed_before_it_wrote() {
    let story = |commit: bool| {
        let story = Story::new().with(comes(1, 1, "phone", Some(10))).with(comes(1, 2, "tablet", Some(10)));
        let story = if commit { story.with(sent(0)) } else { story.with(sent(0).into_iter().take(0)) };
        let story = story.with(killed(1)).with(comes(2, 3, "phone", Some(10)));
        let story = if commit { story } else { story.with([begun_in(2, 0, &["alice"]), answered(0, 1)]) };
        let story = story.with([told(3, 11, 11), owed(3, 0, 11)]).with(confirmed(3, 11));
        story.with(comes(2, 4, "tablet", Some(10))).with([gone(4, 11, 11, 11)]).drained(&[("alice", 11)])
    };
    story(false).is_clean();
    story(true).shows(Kind::Hole);
}

#[test]
fn clients_without_a_device_have_a_cursor_beside_it() {
    let story = |events: Vec<Event>| {
        let story = Story::new().with(opened_in(1, 1, "alice")).with(comes(1, 2, "phone", Some(10)));
        let story = story.with(sent(0)).with([told(2, 11, 11), owed(2, 0, 11)]).with(confirmed(2, 11));
        story.with(events).drained(&[("alice", 11)])
    };
    story(vec![Received { c: 1, b: 0, n: 0, x: 7, s: None }]).is_clean();
    story(vec![]).shows(Kind::Lost);
}

/// The phone has message 0 and says so; then it comes by its cursor, and is sent that again.
fn by_cursor(said: impl IntoIterator<Item = Event>, life: u64) -> Story {
    let story = Story::new().with(comes(1, 1, "phone", Some(10))).with(sent(0));
    let story = story.with([told(1, 11, 11), owed(1, 0, 11)]).with(said);
    story.with(comes(life, 2, "phone", None)).with([owed(2, 0, 1)]).drained(&[("alice", 11), ("bob", 1)])
}

#[test]
fn what_a_device_has_confirmed_does_not_come_to_it_again_unless_it_asks() {
    by_cursor([], 1).is_clean();
    // Said, and not known to be heard.
    by_cursor([Confirming { c: 1, s: 11 }], 1).is_clean();
    by_cursor(confirmed(1, 10), 1).is_clean();
    by_cursor(confirmed(1, 11), 1).shows(Kind::Repeated);
    by_cursor([Confirming { c: 1, s: 11 }, Closed { c: 1 }], 1).shows(Kind::Repeated);
    // What it names when it comes is said too.
    by_cursor(comes(1, 3, "phone", Some(11)).into_iter().chain([gone(3, 11, 11, 11)]).take(2), 1).shows(Kind::Repeated);
    // A kill takes back what no commit followed.
    by_cursor(confirmed(1, 11).into_iter().chain(killed(1)), 2).is_clean();
    let commit = [begun_in(1, 50, &["bob"]), answered(50, 1)].into_iter().chain(opened_in(1, 50, "bob"));
    let commit: Vec<Event> = commit.chain([owed(50, 50, 1)]).collect();
    let late = confirmed(1, 11).into_iter().chain(commit.clone()).chain(killed(1));
    by_cursor(late, 2).shows(Kind::Repeated);
    by_cursor(commit.into_iter().chain(confirmed(1, 11)).chain(killed(1)), 2).is_clean();
}

#[test]
fn receipts_of_a_device_count_for_it_alone() {
    let story = |device: &str| {
        let story = Story::new().with(comes(1, 1, "phone", None)).with(sent(0)).with([owed(1, 0, 1)]);
        let story = story.with(receipt(1)).with([Asked { c: 1 }]);
        story.with(comes(1, 2, device, None)).with([owed(2, 0, 1)]).drained(&[("alice", 11)])
    };
    story("phone").shows(Kind::Repeated);
    story("tablet").is_clean();
}
