//! The commands as they are typed, and what they say: the built binary, and a server of it where one is needed.

mod dispatch;
mod serve;
mod store;
#[path = "../support/mod.rs"]
#[allow(dead_code, reason = "each suite uses a part of it")]
mod support;

mod environment;
mod guessed;
mod logged;
#[cfg(feature = "failpoints")]
mod supervised;
mod token;
mod unread;
mod unstored;
mod users;
mod words;

use std::process::{Command, Output};

use support::server::KEY;

/// Runs `mesa WORDS…` to its end, with the key of the servers here and nothing else of the environment's settings.
fn mesa(words: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mesa"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("MESA_")) {
        command.env_remove(name);
    }
    command.args(words).env("MESA_API_KEY", KEY).output().expect("it runs")
}

/// All it said, to whoever.
fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}
