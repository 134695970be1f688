//! Defines the failures of commands, and their exit codes.

use std::{fmt::Display, io};

use mesa::store::StoreError;

use crate::output::printable;

/// Reason why a command failed. It decides the exit code.
#[derive(Debug)]
pub enum Failure {
    /// The command failed: exit code 1.
    Failed(String),
    /// The arguments are wrong: exit code 2.
    Usage(String),
    /// The command failed, and has printed the reason already: exit code 1.
    Reported,
    /// The reader of standard output has closed the pipe, as in `… | head`: exit code 0.
    PipeClosed,
}

impl Failure {
    /// Creates a failure with a reason on one line. Control characters are escaped, because a server may have sent
    /// them.
    pub fn because(reason: impl Display) -> Self {
        Self::Failed(printable(&reason.to_string()))
    }

    /// Creates a failure with several of our own reasons, one per line.
    pub fn listed(reasons: impl Display) -> Self {
        Self::Failed(reasons.to_string())
    }

    /// Creates the failure of a command that could not open a store.
    ///
    /// `instead` is an alternative that follows "Stop it first".
    pub fn unopened(error: StoreError, instead: &str) -> Self {
        match error {
            StoreError::InUse { path, holder } => {
                Self::because(format!("{} is in use by a server{holder}. Stop it first{instead}", path.display()))
            }
            other => Self::because(other),
        }
    }

    /// Creates a failure because of wrong arguments.
    pub fn usage(reason: impl Display) -> Self {
        Self::Usage(printable(&reason.to_string()))
    }
}

impl From<io::Error> for Failure {
    /// Converts an error of writing to standard output. Other errors need a text with their subject.
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::PipeClosed,
            _ => Self::Failed(format!("cannot write to standard output: {error}")),
        }
    }
}
