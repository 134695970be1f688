//! Compares a history with the guarantees. The checker knows only the history.
//!
//! - `indexed_history`: events indexed by dispatch, connection and server
//! - `responses`: responses to backends
//! - `delivery`: every recipient receives a message, and no other user
//! - `order`: order of messages, and repeats on one connection
//! - `acknowledgements`: acknowledged messages are not sent again
//! - `sequences`: sequences are never reused and never skipped
//! - `resumes`: what a connection that resumes receives
//! - `devices`: each device has its own cursor

mod acknowledgements;
mod delivery;
mod devices;
mod indexed_history;
mod order;
mod responses;
mod resumes;
mod sequences;

use std::{fmt, path::Path, process::ExitCode};

use serde::{Deserialize, Serialize};

use crate::history::{self, Event, Key};
use indexed_history::IndexedHistory;

/// Violations that are printed one by one. Of the others only the count is printed.
const PRINTED_MAX: usize = 20;

/// Kinds of violations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A dispatch was answered, and a recipient has not received it.
    Lost,
    /// A user received a message that was for other users, was never sent, or has other contents.
    Foreign,
    /// A message came before another whose dispatch was answered before its own dispatch started.
    Reordered,
    /// A message was repeated without need.
    Repeated,
    /// The `s` of a message is wrong or absent.
    Position,
    /// A gap was not reported, or was reported wrongly.
    Gap,
    /// A sequence went back, was reused, or was skipped.
    Sequence,
    /// The responses to one dispatch differ, or a response is malformed.
    Response,
    /// The server exited by itself, or did not start.
    Server,
    /// Messages stayed pending after the drain.
    Pending,
    /// The history itself is incomplete.
    History,
}

/// A violation of a guarantee.
#[derive(Clone, Debug)]
pub struct Violation {
    pub kind: Kind,
    pub description: String,
    /// The lines of the history that show it, counted from 1.
    pub lines: Vec<usize>,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.kind, self.description)
    }
}

/// Returns the name of a message in violations.
fn message_name((b, n): Key) -> String {
    format!("message {n} of backend {b}")
}

/// Counts of what a history contains.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Counts {
    pub dispatches: u64,
    /// Dispatches that the server accepted.
    pub accepted: u64,
    /// Dispatches that the server rejected for all recipients.
    pub rejected: u64,
    /// Attempts without a response.
    pub unanswered: u64,
    /// Responses with `duplicate: true`.
    pub duplicates: u64,
    /// Entries of accepted dispatches: one for each recipient that was not rejected.
    pub entries: u64,
    /// Messages received, with repeats.
    pub received: u64,
    /// Received messages that the same user had received before. These are permitted.
    pub repeats: u64,
    pub connections: u64,
    /// Heartbeat acknowledgements (op 11) that the server has certainly received.
    pub heartbeat_acks: u64,
    /// Connections that resumed.
    pub resumed: u64,
    /// Gaps that the server reported (op 13).
    pub gaps: u64,
    /// Acknowledgements of clients that resume (op 3 or `after`) that the server has certainly received.
    pub acks: u64,
    pub violations: u64,
}

/// Checks a history.
pub fn check(events: &[Event]) -> (Vec<Violation>, Counts) {
    let mut violations = Vec::new();
    let history = IndexedHistory::from_events(events, &mut violations);
    history.check_servers(&mut violations);
    responses::check(&history, &mut violations);
    let repeats = order::check(&history, &mut violations);
    resumes::check(&history, &mut violations);
    delivery::check(&history, &mut violations);
    let sequences = sequences::check(&history, &mut violations);
    acknowledgements::check(&history, &sequences, &mut violations);
    devices::check(&history, &sequences, &mut violations);
    let counts = Counts { repeats, violations: violations.len() as u64, ..history.counts() };
    violations.sort_by_key(|violation| violation.lines.first().copied().unwrap_or(0));
    (violations, counts)
}

/// Checks a history file. Prints each violation with its lines, and the counts as the last line.
pub fn run(path: &Path) -> ExitCode {
    let events = match history::read(path) {
        Ok(events) => events,
        Err(error) => {
            eprintln!("{}: {error}", path.display());
            return ExitCode::from(2);
        }
    };
    let (violations, counts) = check(&events);
    for violation in violations.iter().take(PRINTED_MAX) {
        eprintln!("{violation}");
        for line in &violation.lines {
            let event = events.get(line - 1).and_then(|event| serde_json::to_string(event).ok());
            eprintln!("    {line}: {}", event.unwrap_or_default());
        }
    }
    if violations.len() > PRINTED_MAX {
        eprintln!("and {} more", violations.len() - PRINTED_MAX);
    }
    println!("{}", serde_json::to_string(&counts).expect("counts can be encoded as JSON"));
    ExitCode::from(u8::from(!violations.is_empty()))
}
