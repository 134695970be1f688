//! Indexes the events of a history by subject. Times are line numbers, counted from 1.

use std::collections::{BTreeMap, HashMap};

use serde_json::Value;

use super::{Counts, Kind, Violation};
use crate::history::{Event, Key};

/// A message that a backend dispatched, possibly several times with one idempotency id.
#[derive(Clone, Debug, Default)]
pub struct Dispatch {
    pub to: Vec<String>,
    pub padding: u64,
    pub attempts: Vec<Attempt>,
}

/// One attempt of a dispatch.
#[derive(Clone, Debug, Default)]
pub struct Attempt {
    pub number: u64,
    pub server: u64,
    pub started: usize,
    /// Line, status and body of the response.
    pub response: Option<(usize, u16, Value)>,
}

impl Dispatch {
    /// Returns the line where the first attempt started.
    pub fn started(&self) -> usize {
        self.attempts.iter().map(|attempt| attempt.started).min().unwrap_or(0)
    }

    /// Returns the line of the first response with status 200.
    pub fn accepted(&self) -> Option<usize> {
        self.acceptances().map(|(line, _)| line).min()
    }

    /// Returns line and body of each response with status 200.
    pub fn acceptances(&self) -> impl Iterator<Item = (usize, &Value)> {
        let responses = self.attempts.iter().filter_map(|attempt| attempt.response.as_ref());
        responses.filter(|(_, status, _)| *status == 200).map(|(line, _, body)| (*line, body))
    }

    /// Reports whether every attempt was rejected. The server answers 4xx and 507 before it writes anything.
    pub fn rejected(&self) -> bool {
        let rejected = |attempt: &Attempt| {
            attempt.response.as_ref().is_some_and(|(_, status, _)| (400..500).contains(status) || *status == 507)
        };
        !self.attempts.is_empty() && self.attempts.iter().all(rejected)
    }

    /// Reports whether the dispatch was accepted, but rejected for this recipient.
    pub fn rejected_for(&self, user: &str) -> bool {
        let names_user = |body: &Value| {
            let rejected = body["rejected"].as_array();
            rejected.is_some_and(|all| all.iter().any(|one| one["user"] == user))
        };
        self.acceptances().any(|(_, body)| names_user(body))
    }
}

/// An op 13 that a client received.
#[derive(Clone, Debug)]
pub struct Resumed {
    pub line: usize,
    pub first: u64,
    pub last: u64,
    /// A gap: first sequence, last sequence, reason.
    pub missed: Option<(u64, u64, String)>,
}

/// One connection of a client.
#[derive(Clone, Debug, Default)]
pub struct Connection {
    pub user: String,
    pub server: u64,
    pub connecting: usize,
    /// The line of its authentication.
    pub connected: Option<usize>,
    /// The sequence after which it resumes.
    pub after: Option<u64>,
    /// The device whose cursor it uses.
    pub device: Option<String>,
    pub resumed: Vec<Resumed>,
    /// Line of each op 3 before it was sent, and the sequence up to which it acknowledges.
    pub acknowledging: Vec<(usize, u64)>,
    /// Line from which the server has certainly received an acknowledgement, and its sequence.
    pub acknowledged: Vec<(usize, u64)>,
    /// Line, message, padding, `s`.
    pub received: Vec<(usize, Key, u64, Option<u64>)>,
    /// Number of messages that an op 11 acknowledged, and the line from which the server has certainly received that op
    /// 11.
    pub heartbeat_acks: Vec<(usize, usize)>,
    /// Number of messages received before the last heartbeat.
    at_heartbeat: usize,
    /// Number of messages received before the last answered heartbeat.
    answered: usize,
}

/// One server process.
#[derive(Clone, Debug, Default)]
pub struct Server {
    pub starting: usize,
    pub fault: Option<usize>,
    /// The line of its exit. `None` if it was alive at the end of the history.
    pub exited: Option<usize>,
    /// It exited in order, so it has written its whole state.
    pub stopped: bool,
    /// Line and reason of a failure that no fault explains.
    pub failure: Option<(usize, String)>,
}

/// A user's log as read over HTTP.
#[derive(Clone, Debug)]
pub struct LogRead {
    pub line: usize,
    pub head: u64,
    pub entries: Vec<(u64, Key)>,
}

/// A history, indexed.
#[derive(Clone, Debug, Default)]
pub struct IndexedHistory {
    /// The run's durability is `always`.
    pub always: bool,
    pub heads: BTreeMap<String, u64>,
    pub dispatches: HashMap<Key, Dispatch>,
    pub connections: BTreeMap<u64, Connection>,
    pub servers: BTreeMap<u64, Server>,
    pub log_reads: BTreeMap<String, Vec<LogRead>>,
    /// By user: line, head, pending.
    pub drained: BTreeMap<String, (usize, u64, u64)>,
    unanswered: u64,
}

impl IndexedHistory {
    pub fn from_events(events: &[Event], violations: &mut Vec<Violation>) -> Self {
        let mut history = Self::default();
        for (at, event) in events.iter().enumerate() {
            history.add(at + 1, event, violations);
        }
        if !matches!(events.first(), Some(Event::Run { .. })) {
            Self::report_incomplete(violations, 1, "the first line is not a run");
        }
        history
    }

    fn report_incomplete(violations: &mut Vec<Violation>, line: usize, description: &str) {
        violations.push(Violation { kind: Kind::History, description: description.to_owned(), lines: vec![line] });
    }

    fn add(&mut self, line: usize, event: &Event, violations: &mut Vec<Violation>) {
        match event {
            Event::Run { durability, heads, .. } => {
                self.always = durability == "always";
                self.heads.clone_from(heads);
            }
            Event::Starting { server } => self.server(*server).starting = line,
            Event::Ready { .. } | Event::Broken { .. } | Event::PowerCut { .. } => {}
            Event::Failed { server, reason } => self.server(*server).failure = Some((line, reason.clone())),
            Event::Fault { server, .. } => self.server(*server).fault = Some(line),
            Event::Died { server, how } => {
                let server = self.server(*server);
                server.exited = Some(line);
                if server.fault.is_none() {
                    server.failure = Some((line, format!("it exited by itself: {how}")));
                }
            }
            Event::Stopped { server } => {
                let server = self.server(*server);
                (server.exited, server.stopped) = (Some(line), true);
            }
            Event::Dispatching { server, b, n, attempt, to, x, .. } => {
                let dispatch = self.dispatches.entry((*b, *n)).or_default();
                (dispatch.to, dispatch.padding) = (to.clone(), *x);
                dispatch.attempts.push(Attempt { number: *attempt, server: *server, started: line, response: None });
            }
            Event::Answered { b, n, attempt, status, body } => {
                let dispatch = self.dispatches.entry((*b, *n)).or_default();
                match dispatch.attempts.iter_mut().find(|one| one.number == *attempt && one.response.is_none()) {
                    Some(attempt) => attempt.response = Some((line, *status, body.clone())),
                    None => Self::report_incomplete(violations, line, "a response to a dispatch that never started"),
                }
            }
            Event::Unanswered { .. } => self.unanswered += 1,
            Event::Connecting { server, c, user, after, device } => {
                let connection = Connection {
                    user: user.clone(),
                    server: *server,
                    connecting: line,
                    after: *after,
                    device: device.clone(),
                    ..Connection::default()
                };
                if self.connections.insert(*c, connection).is_some() {
                    Self::report_incomplete(violations, line, "a connection number is used twice");
                }
            }
            // The server applies the acknowledgement in `after` before it sends op 22.
            Event::Connected { c } => self.update(*c, line, violations, |connection| {
                connection.connected = Some(line);
                connection.acknowledged.extend(connection.after.map(|after| (line, after)));
            }),
            Event::Resumed { c, first, last, missed } => {
                let resumed = Resumed { line, first: *first, last: *last, missed: missed.clone() };
                self.update(*c, line, violations, |connection| connection.resumed.push(resumed));
            }
            Event::Acknowledging { c, s } => {
                self.update(*c, line, violations, |connection| connection.acknowledging.push((line, *s)));
            }
            Event::Acknowledged { c, s } => {
                self.update(*c, line, violations, |connection| connection.acknowledged.push((line, *s)));
            }
            Event::Received { c, b, n, x, s } => {
                self.update(*c, line, violations, |connection| connection.received.push((line, (*b, *n), *x, *s)));
            }
            // A server has at most one unanswered heartbeat per connection. So the next one proves that it has received
            // the acknowledgement of the last.
            Event::HeartbeatReceived { c } => self.update(*c, line, violations, |connection| {
                connection.prove_received(line);
                connection.at_heartbeat = connection.received.len();
            }),
            Event::HeartbeatAnswered { c } => {
                self.update(*c, line, violations, |connection| connection.answered = connection.at_heartbeat);
            }
            // The server answers a close after it has read all earlier frames.
            Event::Closed { c } => self.update(*c, line, violations, |connection| connection.prove_received(line)),
            Event::LogRead { user, head, entries } => {
                let entries = entries.iter().map(|(s, b, n)| (*s, (*b, *n))).collect();
                let read = LogRead { line, head: *head, entries };
                self.log_reads.entry(user.clone()).or_default().push(read);
            }
            Event::Drained { user, head, pending } => {
                self.drained.insert(user.clone(), (line, *head, *pending));
            }
        }
    }

    fn server(&mut self, number: u64) -> &mut Server {
        self.servers.entry(number).or_default()
    }

    fn update(&mut self, c: u64, line: usize, violations: &mut Vec<Violation>, update: impl FnOnce(&mut Connection)) {
        match self.connections.get_mut(&c) {
            Some(connection) => update(connection),
            None => Self::report_incomplete(violations, line, "an event on a connection that was never opened"),
        }
    }

    /// Reports servers that failed without a fault.
    pub fn check_servers(&self, violations: &mut Vec<Violation>) {
        for (number, server) in &self.servers {
            if let Some((line, reason)) = &server.failure {
                let description = format!("server {number}: {reason}");
                let lines = vec![server.starting.max(1), *line];
                violations.push(Violation { kind: Kind::Server, description, lines });
            }
        }
    }

    /// Reports whether a server failed. Then it is unknown which messages it would have delivered.
    pub fn has_failed_server(&self) -> bool {
        self.servers.values().any(|server| server.failure.is_some())
    }

    /// Returns the connections of each user, in the order in which they were opened.
    pub fn connections_by_user(&self) -> BTreeMap<&str, Vec<&Connection>> {
        let mut users: BTreeMap<&str, Vec<&Connection>> = BTreeMap::new();
        for connection in self.connections.values() {
            users.entry(&connection.user).or_default().push(connection);
        }
        users.values_mut().for_each(|connections| connections.sort_by_key(|connection| connection.connecting));
        users
    }

    /// Returns the connections that share one cursor, in the order in which they were opened.
    pub fn connections_by_cursor(&self) -> BTreeMap<(&str, Option<&str>), Vec<&Connection>> {
        let mut cursors: BTreeMap<_, Vec<&Connection>> = BTreeMap::new();
        for connection in self.connections_by_user().into_values().flatten() {
            cursors.entry((connection.user.as_str(), connection.device.as_deref())).or_default().push(connection);
        }
        cursors
    }

    /// Returns, by server, the line where the last dispatch started that it answered and stored.
    ///
    /// The commit of that dispatch also wrote all acknowledgements that the server had received before.
    pub fn last_commits(&self) -> HashMap<u64, usize> {
        let mut last: HashMap<u64, usize> = HashMap::new();
        for dispatch in self.dispatches.values() {
            for attempt in &dispatch.attempts {
                let Some((_, 200, body)) = &attempt.response else { continue };
                let rejected = body["rejected"].as_array().map_or(0, Vec::len);
                if body["duplicate"] != true && rejected < dispatch.to.len() {
                    let started = last.entry(attempt.server).or_default();
                    *started = (*started).max(attempt.started);
                }
            }
        }
        last
    }

    /// Reports whether what a server received before a line survives its death.
    pub fn survives(&self, commits: &HashMap<u64, usize>, number: u64, line: usize) -> bool {
        let stopped = |server: &Server| server.stopped && server.exited.is_some_and(|exited| exited > line);
        commits.get(&number).is_some_and(|commit| *commit > line) || self.servers.get(&number).is_some_and(stopped)
    }

    pub fn counts(&self) -> Counts {
        let mut counts = Counts { unanswered: self.unanswered, ..Counts::default() };
        for dispatch in self.dispatches.values() {
            counts.dispatches += 1;
            counts.accepted += u64::from(dispatch.accepted().is_some());
            counts.rejected += u64::from(dispatch.rejected());
            counts.duplicates += dispatch.acceptances().filter(|(_, body)| body["duplicate"] == true).count() as u64;
            if dispatch.accepted().is_some() {
                counts.entries += dispatch.to.iter().filter(|user| !dispatch.rejected_for(user)).count() as u64;
            }
        }
        for connection in self.connections.values() {
            counts.connections += 1;
            counts.received += connection.received.len() as u64;
            counts.heartbeat_acks += connection.heartbeat_acks.len() as u64;
            counts.resumed += u64::from(connection.after.is_some() && connection.connected.is_some());
            counts.gaps += connection.resumed.iter().filter(|resumed| resumed.missed.is_some()).count() as u64;
            counts.acks += connection.acknowledged.len() as u64;
        }
        counts
    }
}

impl Connection {
    /// Records that the server has certainly received every acknowledgement sent so far.
    fn prove_received(&mut self, line: usize) {
        if let Some((_, s)) = self.acknowledging.last() {
            self.acknowledged.push((line, *s));
        }
        if self.answered > self.heartbeat_acks.last().map_or(0, |(count, _)| *count) {
            self.heartbeat_acks.push((self.answered, line));
        }
    }
}
