//! The checker: holds a history against what is promised. It knows nothing but the history.
//!
//! - `indexed_history`: the events, gathered by dispatch, by connection, by life of the server
//! - `responses`: what backends were told
//! - `delivery`: what every user had to get, and nobody else
//! - `order`: in which order, and how often
//! - `receipts`: which messages a user may be sent once more
//! - `sequences`: sequences
//! - `resumes`: what a connection that resumes gets
//! - `devices`: each cursor for itself

mod delivery;
mod devices;
mod indexed_history;
mod order;
mod receipts;
mod responses;
mod resumes;
mod sequences;

use std::{fmt, path::Path, process::ExitCode};

use serde::{Deserialize, Serialize};

use crate::history::{self, Event};
use indexed_history::Facts;

/// Violations told one by one; more are counted.
const TOLD_MAX: usize = 20;

/// What can be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A dispatch was answered, and somebody it was for does not have it.
    Lost,
    /// Somebody has a message that was for others, or that nobody has sent, or with other contents.
    Foreign,
    /// One came before another that had been answered before it began.
    Reordered,
    /// A message came again, and did not have to.
    Repeated,
    /// The numbers that come with messages are not what they have to be.
    Numbered,
    /// Something between two messages is missing, and was not told or wrongly.
    Hole,
    /// A sequence went back, was used twice, or was left out.
    Sequence,
    /// The answers to one dispatch differ, or one is not what it has to be.
    Answer,
    /// The server ended by itself, or did not open.
    Server,
    /// What was pending did not come to an end.
    Pending,
    /// The history itself is not whole.
    History,
}

/// Something that is not as promised, and the lines that show it, counted from one.
#[derive(Clone, Debug)]
pub struct Violation {
    pub kind: Kind,
    pub what: String,
    pub lines: Vec<usize>,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.kind, self.what)
    }
}

/// What a history holds, in numbers.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Figures {
    pub dispatches: u64,
    pub answered: u64,
    pub refused: u64,
    pub unknown: u64,
    /// Dispatches answered with `duplicate: true`.
    pub duplicates: u64,
    /// Copies that were answered for.
    pub copies: u64,
    /// Messages received, repeats among them.
    pub received: u64,
    /// Received by the same user before, as it is allowed.
    pub repeats: u64,
    pub connections: u64,
    /// Receipts that were proven to be taken in.
    pub receipts: u64,
    /// Connections that resumed.
    pub resumed: u64,
    /// Ranges of which those were told that they are not there any more.
    pub told: u64,
    /// What those have confirmed and was proven to be taken in.
    pub confirmed: u64,
    pub violations: u64,
}

/// Checks events.
pub fn check(events: &[Event]) -> (Vec<Violation>, Figures) {
    let mut violations = Vec::new();
    let facts = Facts::gather(events, &mut violations);
    facts.check_server(&mut violations);
    responses::check(&facts, &mut violations);
    let repeats = order::check(&facts, &mut violations);
    resumes::check(&facts, &mut violations);
    delivery::check(&facts, &mut violations);
    let places = sequences::check(&facts, &mut violations);
    receipts::check(&facts, &places, &mut violations);
    devices::check(&facts, &places, &mut violations);
    let figures = Figures { repeats, violations: violations.len() as u64, ..facts.figures() };
    violations.sort_by_key(|violation| violation.lines.first().copied().unwrap_or(0));
    (violations, figures)
}

/// The program: reads a history, tells the violations with their lines, and the figures as the last line.
pub fn run(path: &Path) -> ExitCode {
    let events = match history::read(path) {
        Ok(events) => events,
        Err(why) => {
            eprintln!("{}: {why}", path.display());
            return ExitCode::from(2);
        }
    };
    let (violations, figures) = check(&events);
    for violation in violations.iter().take(TOLD_MAX) {
        eprintln!("{violation}");
        for line in &violation.lines {
            let event = events.get(line - 1).and_then(|event| serde_json::to_string(event).ok());
            eprintln!("    {line}: {}", event.unwrap_or_default());
        }
    }
    if violations.len() > TOLD_MAX {
        eprintln!("and {} more", violations.len() - TOLD_MAX);
    }
    println!("{}", serde_json::to_string(&figures).expect("figures are JSON"));
    ExitCode::from(u8::from(!violations.is_empty()))
}
