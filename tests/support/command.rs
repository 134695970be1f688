//! Runs `mesa` commands to their end.

use std::{
    path::Path,
    process::{Command, Output},
};

use super::server::KEY;

/// Removes the `MESA_*` variables of the test's own environment, which must not configure the program.
pub fn remove_mesa_variables(command: &mut Command) {
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("MESA_")) {
        command.env_remove(name);
    }
}

/// Creates a command of the built binary without `MESA_*` variables.
pub fn mesa_command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mesa"));
    remove_mesa_variables(&mut command);
    command
}

/// Runs `mesa ARGS…` to its end, with the API key of the test servers.
pub fn run_mesa(args: &[&str]) -> Output {
    mesa_command().args(args).env("MESA_API_KEY", KEY).output().expect("the binary runs")
}

/// Returns what a command wrote: standard output, then standard error.
pub fn output_text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Returns a path as text.
pub fn utf8(path: &Path) -> &str {
    path.to_str().expect("a UTF-8 path")
}
