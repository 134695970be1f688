//! How a command ends when it does not end well.

use std::{fmt::Display, io};

use mesa::store::StoreError;

use crate::output::printable;

/// Why a command failed, and with which exit code.
#[derive(Debug)]
pub enum Failure {
    /// It was tried and did not work: 1.
    Failed(String),
    /// What was asked for makes no sense: 2.
    Usage(String),
    /// It did not work, and all there is to say has been said: 1.
    Told,
    /// Nobody reads what is printed any more, which is how `… | head` ends a command: 0.
    PipeClosed,
}

impl Failure {
    /// It did not work, for this reason: one line, whatever of it came from a server.
    pub fn because(reason: impl Display) -> Self {
        Self::Failed(printable(&reason.to_string()))
    }

    /// It did not work, for reasons of our own, a line each.
    pub fn listed(reasons: impl Display) -> Self {
        Self::Failed(reasons.to_string())
    }

    /// A store cannot be opened by a command that is no server: it can only wait for the one that has it. `instead` is what
    /// else may be done, behind "Stop it first".
    pub fn unopened(error: StoreError, instead: &str) -> Self {
        match error {
            StoreError::InUse { path, holder } => {
                Self::because(format!("{} is in use by a server{holder}. Stop it first{instead}", path.display()))
            }
            other => Self::because(other),
        }
    }

    /// What was typed makes no sense.
    pub fn usage(reason: impl Display) -> Self {
        Self::Usage(printable(&reason.to_string()))
    }
}

impl From<io::Error> for Failure {
    /// Of writing to standard output; whoever has another error says with what it happened.
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::PipeClosed,
            _ => Self::Failed(format!("cannot write to standard output: {error}")),
        }
    }
}
