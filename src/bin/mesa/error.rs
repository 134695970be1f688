//! Defines the failures of commands, and their exit codes.

use std::{fmt::Display, io};

use mesa::{client::ClientError, dispatcher::DispatchError, store::StoreError};

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

/// Start of the server's text about a key that is none of its `api.keys`. Its advice is for programs.
const WRONG_KEY: &str = "the API key is not one of this server's `api.keys`";

impl From<DispatchError> for Failure {
    /// Converts the error of an API call. The same mistake has the same exit code in every command.
    fn from(error: DispatchError) -> Self {
        match &error {
            DispatchError::Address(_) | DispatchError::Key | DispatchError::Unaddressable(_) => Self::usage(error),
            DispatchError::Rejected { status: 401, message, .. } if message.starts_with(WRONG_KEY) => {
                Self::because(format!(
                    "{WRONG_KEY}. Set MESA_API_KEY (or give --key) to one of them; `mesa serve --dev` prints its key"
                ))
            }
            _ => Self::because(error),
        }
    }
}

impl From<ClientError> for Failure {
    /// Converts the error of a connection of `mesa connect`.
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Address(_) => Self::usage(error),
            _ => Self::because(error),
        }
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
