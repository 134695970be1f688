//! Tests the commands of the built binary, with a running server where a command needs one.

mod dispatch;
mod serve;
mod store;
#[path = "../support/mod.rs"]
#[allow(dead_code, reason = "each suite uses a part of it")]
mod support;

mod environment;
#[cfg(feature = "failpoints")]
mod failpoints;
mod guess_limit;
mod log_limits;
mod log_output;
mod output;
#[cfg(feature = "failpoints")]
mod task_panics;
mod token;
mod unstored;
mod users;

use std::process::{Command, Output};

use support::server::KEY;

/// Runs `mesa ARGS…` to its end. It gets the API key of the test servers, and no other `MESA_*` variable.
fn mesa(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mesa"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("MESA_")) {
        command.env_remove(name);
    }
    command.args(args).env("MESA_API_KEY", KEY).output().expect("the binary runs")
}

/// Returns what a command wrote: standard output, then standard error.
fn output_text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}
