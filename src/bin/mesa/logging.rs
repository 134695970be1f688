//! Where log lines go: to standard error, for people or for machines.

use std::io::{self, IsTerminal};

use mesa::config::{Log, LogFormat};
use tracing_subscriber::EnvFilter;

use crate::{environment::variable, failure::Failure};

/// Sets the log up for the rest of the program. Once.
pub fn start(log: &Log) -> Result<(), Failure> {
    let filter = EnvFilter::try_new(&log.level)
        .map_err(|error| Failure::because(format!("log.level \"{}\" cannot be used: {error}", log.level)))?;
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    let started = match log.format {
        LogFormat::Text => {
            let coloured = io::stderr().is_terminal() && variable("NO_COLOR").is_none();
            lines.with_ansi(coloured).try_init()
        }
        LogFormat::Json => lines.json().flatten_event(true).try_init(),
    };
    started.map_err(|error| Failure::because(format!("the log cannot be set up: {error}")))
}
