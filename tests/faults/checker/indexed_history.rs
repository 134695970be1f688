//! The events of a history, gathered by what they are about. Times are lines, counted from one.

use std::collections::{BTreeMap, HashMap};

use serde_json::Value;

use super::{Figures, Kind, Violation};
use crate::history::{Event, Key};

/// One message that a backend sent, perhaps several times under one id.
#[derive(Clone, Debug, Default)]
pub struct Dispatch {
    pub to: Vec<String>,
    pub padding: u64,
    pub attempts: Vec<Attempt>,
}

/// One time it was sent.
#[derive(Clone, Debug, Default)]
pub struct Attempt {
    pub number: u64,
    pub life: u64,
    pub begun: usize,
    /// Line, status, and what was said.
    pub answer: Option<(usize, u16, Value)>,
}

impl Dispatch {
    /// The line at which the first of its attempts began.
    pub fn begun(&self) -> usize {
        self.attempts.iter().map(|attempt| attempt.begun).min().unwrap_or(0)
    }

    /// The line at which it was first said to be taken.
    pub fn acked(&self) -> Option<usize> {
        self.acks().map(|(line, _)| line).min()
    }

    /// Every time it was said to be taken.
    pub fn acks(&self) -> impl Iterator<Item = (usize, &Value)> {
        let answers = self.attempts.iter().filter_map(|attempt| attempt.answer.as_ref());
        answers.filter(|(_, status, _)| *status == 200).map(|(line, _, answer)| (*line, answer))
    }

    /// Whether every attempt was told that it was not taken: 4xx, and 507, are said before anything is written.
    pub fn refused(&self) -> bool {
        let refused = |attempt: &Attempt| {
            attempt.answer.as_ref().is_some_and(|(_, status, _)| (400..500).contains(status) || *status == 507)
        };
        !self.attempts.is_empty() && self.attempts.iter().all(refused)
    }

    /// For whom it was not taken although it was answered.
    pub fn rejected(&self, user: &str) -> bool {
        let named = |answer: &Value| {
            let rejected = answer["rejected"].as_array();
            rejected.is_some_and(|all| all.iter().any(|one| one["user"] == user))
        };
        self.acks().any(|(_, answer)| named(answer))
    }
}

/// Where a client was told how far its log goes, from where to where, and what is missing of it and why.
pub type Told = (usize, u64, u64, Option<(u64, u64, String)>);

/// One connection of a client.
#[derive(Clone, Debug, Default)]
pub struct Connection {
    pub user: String,
    pub life: u64,
    pub opening: usize,
    /// The line at which it was let in.
    pub opened: Option<usize>,
    /// It resumes, and has processed everything up to this.
    pub after: Option<u64>,
    /// Whose cursor it goes by.
    pub device: Option<String>,
    /// What it was told of the log: line, first, last, missed.
    pub told: Vec<Told>,
    /// Line, and up to which sequence it was about to confirm.
    pub confirming: Vec<(usize, u64)>,
    /// Line, and up to which sequence the server is known to have taken that in.
    pub confirmed: Vec<(usize, u64)>,
    /// Line, message, padding, number.
    pub received: Vec<(usize, Key, u64, Option<u64>)>,
    /// How many of those a receipt was for, and the line at which it was proven that the server had taken it in.
    pub receipts: Vec<(usize, usize)>,
    /// How many it had when it was last asked, and how many it has said yes for.
    asked: usize,
    said: usize,
}

/// One server process.
#[derive(Clone, Debug, Default)]
pub struct Life {
    pub starting: usize,
    pub fault: Option<usize>,
    /// Where it ended; the history's end for the last.
    pub ended: Option<usize>,
    /// It ended in order, having written down everything.
    pub stopped: bool,
    pub wrong: Option<(usize, String)>,
}

/// What was read of a user's log over HTTP.
#[derive(Clone, Debug)]
pub struct Reading {
    pub line: usize,
    pub head: u64,
    pub entries: Vec<(u64, Key)>,
}

/// Everything.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    pub always: bool,
    pub heads: BTreeMap<String, u64>,
    pub dispatches: HashMap<Key, Dispatch>,
    pub connections: BTreeMap<u64, Connection>,
    pub lives: BTreeMap<u64, Life>,
    pub readings: BTreeMap<String, Vec<Reading>>,
    /// By user: line, head, pending.
    pub drained: BTreeMap<String, (usize, u64, u64)>,
    unknown: u64,
}

impl Facts {
    pub fn gather(events: &[Event], violations: &mut Vec<Violation>) -> Self {
        let mut facts = Self::default();
        for (at, event) in events.iter().enumerate() {
            facts.take(at + 1, event, violations);
        }
        if !matches!(events.first(), Some(Event::Run { .. })) {
            Self::complain(violations, 1, "it does not begin with the line that says what it is");
        }
        facts
    }

    fn complain(violations: &mut Vec<Violation>, line: usize, what: &str) {
        violations.push(Violation { kind: Kind::History, what: what.to_owned(), lines: vec![line] });
    }

    fn take(&mut self, line: usize, event: &Event, violations: &mut Vec<Violation>) {
        match event {
            Event::Run { durability, heads, .. } => {
                self.always = durability == "always";
                self.heads.clone_from(heads);
            }
            Event::Starting { life } => self.life(*life).starting = line,
            Event::Ready { .. } | Event::Broken { .. } | Event::Cut { .. } => {}
            Event::Failed { life, why } => self.life(*life).wrong = Some((line, why.clone())),
            Event::Fault { life, .. } => self.life(*life).fault = Some(line),
            Event::Died { life, how } => {
                let life = self.life(*life);
                life.ended = Some(line);
                if life.fault.is_none() {
                    life.wrong = Some((line, format!("it ended by itself: {how}")));
                }
            }
            Event::Stopped { life } => {
                let life = self.life(*life);
                (life.ended, life.stopped) = (Some(line), true);
            }
            Event::Begun { life, b, n, attempt, to, x, .. } => {
                let dispatch = self.dispatches.entry((*b, *n)).or_default();
                (dispatch.to, dispatch.padding) = (to.clone(), *x);
                dispatch.attempts.push(Attempt { number: *attempt, life: *life, begun: line, answer: None });
            }
            Event::Answered { b, n, attempt, status, answer } => {
                let dispatch = self.dispatches.entry((*b, *n)).or_default();
                match dispatch.attempts.iter_mut().find(|one| one.number == *attempt && one.answer.is_none()) {
                    Some(attempt) => attempt.answer = Some((line, *status, answer.clone())),
                    None => Self::complain(violations, line, "an answer to what never began"),
                }
            }
            Event::Unknown { .. } => self.unknown += 1,
            Event::Opening { life, c, user, after, device } => {
                let connection = Connection {
                    user: user.clone(),
                    life: *life,
                    opening: line,
                    after: *after,
                    device: device.clone(),
                    ..Connection::default()
                };
                if self.connections.insert(*c, connection).is_some() {
                    Self::complain(violations, line, "a connection's number is used twice");
                }
            }
            // What it says it has processed was taken in before it was let in.
            Event::Opened { c } => self.on(*c, line, violations, |to| {
                to.opened = Some(line);
                to.confirmed.extend(to.after.map(|after| (line, after)));
            }),
            Event::Told { c, first, last, missed } => {
                self.on(*c, line, violations, |to| to.told.push((line, *first, *last, missed.clone())));
            }
            Event::Confirming { c, s } => self.on(*c, line, violations, |to| to.confirming.push((line, *s))),
            Event::Confirmed { c, s } => self.on(*c, line, violations, |to| to.confirmed.push((line, *s))),
            Event::Received { c, b, n, x, s } => {
                self.on(*c, line, violations, |to| to.received.push((line, (*b, *n), *x, *s)));
            }
            // A server has at most one question open: the next one proves that it has heard the answer to the last.
            Event::Asked { c } => self.on(*c, line, violations, |to| {
                to.prove(line);
                to.asked = to.received.len();
            }),
            Event::Receipted { c } => self.on(*c, line, violations, |to| to.said = to.asked),
            // It has heard everything that was said before the close, or it would not have answered that.
            Event::Closed { c } => self.on(*c, line, violations, |to| to.prove(line)),
            Event::Log { user, head, entries } => {
                let entries = entries.iter().map(|(s, b, n)| (*s, (*b, *n))).collect();
                let reading = Reading { line, head: *head, entries };
                self.readings.entry(user.clone()).or_default().push(reading);
            }
            Event::Drained { user, head, pending } => {
                self.drained.insert(user.clone(), (line, *head, *pending));
            }
        }
    }

    fn life(&mut self, life: u64) -> &mut Life {
        self.lives.entry(life).or_default()
    }

    fn on(&mut self, c: u64, line: usize, violations: &mut Vec<Violation>, what: impl FnOnce(&mut Connection)) {
        match self.connections.get_mut(&c) {
            Some(connection) => what(connection),
            None => Self::complain(violations, line, "something happened on a connection that was never opened"),
        }
    }

    pub fn check_server(&self, violations: &mut Vec<Violation>) {
        for (number, life) in &self.lives {
            if let Some((line, why)) = &life.wrong {
                let what = format!("server {number}: {why}");
                violations.push(Violation { kind: Kind::Server, what, lines: vec![life.starting.max(1), *line] });
            }
        }
    }

    /// Connections of a user, in the order in which they were opened.
    pub fn connections_of(&self) -> BTreeMap<&str, Vec<&Connection>> {
        let mut users: BTreeMap<&str, Vec<&Connection>> = BTreeMap::new();
        for connection in self.connections.values() {
            users.entry(&connection.user).or_default().push(connection);
        }
        users.values_mut().for_each(|connections| connections.sort_by_key(|connection| connection.opening));
        users
    }

    /// Those that go by one cursor, in the order in which they were opened.
    pub fn cursors(&self) -> BTreeMap<(&str, Option<&str>), Vec<&Connection>> {
        let mut cursors: BTreeMap<_, Vec<&Connection>> = BTreeMap::new();
        for connection in self.connections_of().into_values().flatten() {
            cursors.entry((connection.user.as_str(), connection.device.as_deref())).or_default().push(connection);
        }
        cursors
    }

    /// By life: where the last dispatch began that it has answered and written a copy of. What a client had told that
    /// server before is written down too.
    pub fn last_commits(&self) -> HashMap<u64, usize> {
        let mut last: HashMap<u64, usize> = HashMap::new();
        for dispatch in self.dispatches.values() {
            for attempt in &dispatch.attempts {
                let Some((_, 200, answer)) = &attempt.answer else { continue };
                let rejected = answer["rejected"].as_array().map_or(0, Vec::len);
                if answer["duplicate"] != true && rejected < dispatch.to.len() {
                    let begun = last.entry(attempt.life).or_default();
                    *begun = (*begun).max(attempt.begun);
                }
            }
        }
        last
    }

    /// Whether what a server has taken in at a line outlives it.
    pub fn outlives(&self, commits: &HashMap<u64, usize>, life: u64, at: usize) -> bool {
        let stopped = |life: &Life| life.stopped && life.ended.is_some_and(|ended| ended > at);
        commits.get(&life).is_some_and(|commit| *commit > at) || self.lives.get(&life).is_some_and(stopped)
    }

    pub fn figures(&self) -> Figures {
        let mut figures = Figures { unknown: self.unknown, ..Figures::default() };
        for dispatch in self.dispatches.values() {
            figures.dispatches += 1;
            figures.answered += u64::from(dispatch.acked().is_some());
            figures.refused += u64::from(dispatch.refused());
            figures.duplicates += dispatch.acks().filter(|(_, answer)| answer["duplicate"] == true).count() as u64;
            if dispatch.acked().is_some() {
                figures.copies += dispatch.to.iter().filter(|user| !dispatch.rejected(user)).count() as u64;
            }
        }
        for connection in self.connections.values() {
            figures.connections += 1;
            figures.received += connection.received.len() as u64;
            figures.receipts += connection.receipts.len() as u64;
            figures.resumed += u64::from(connection.after.is_some() && connection.opened.is_some());
            figures.told += connection.told.iter().filter(|(.., missed)| missed.is_some()).count() as u64;
            figures.confirmed += connection.confirmed.len() as u64;
        }
        figures
    }
}

impl Connection {
    /// The server is known to have heard everything this client has said.
    fn prove(&mut self, line: usize) {
        if let Some((_, s)) = self.confirming.last() {
            self.confirmed.push((line, *s));
        }
        if self.said > self.receipts.last().map_or(0, |(count, _)| *count) {
            self.receipts.push((self.said, line));
        }
    }
}
