//! Reads the environment, for all commands.

use std::{env, path::PathBuf};

use mesa::config::Sources;

use crate::error::Failure;

/// Returns the value of a variable; `None` if it is unset or empty.
///
/// # Errors
/// If the value is not valid UTF-8. Ignoring it would use a value that the user did not set.
pub fn variable(name: &str) -> Result<Option<String>, Failure> {
    match env::var(name) {
        Ok(value) => Ok(Some(value).filter(|value| !value.is_empty())),
        Err(env::VarError::NotPresent) => Ok(None),
        Err(env::VarError::NotUnicode(_)) => Err(Failure::usage(format!(
            "environment variable {name}: the value is not valid UTF-8. Set it to text, or unset it"
        ))),
    }
}

/// Returns whether a variable is set and not empty.
pub fn is_set(name: &str) -> bool {
    env::var_os(name).is_some_and(|value| !value.is_empty())
}

/// Returns whether the terminal understands no colours (`TERM=dumb`).
pub fn is_dumb_terminal() -> bool {
    env::var_os("TERM").is_some_and(|terminal| terminal == "dumb")
}

/// Returns the configuration file, from an option or from `MESA_CONFIG`.
pub fn config_file(flag: Option<&PathBuf>) -> Option<PathBuf> {
    flag.cloned().or_else(|| env::var_os("MESA_CONFIG").filter(|value| !value.is_empty()).map(PathBuf::from))
}

/// Returns the sources of a configuration: a file and the environment.
pub fn sources(file: Option<PathBuf>) -> Sources {
    let mut sources = Sources { file, ..Sources::default() };
    for (name, value) in env::vars_os() {
        // No setting has a name that is not UTF-8, so the replacement does no harm.
        let name = name.to_string_lossy().into_owned();
        match value.into_string() {
            Ok(value) => sources.env.push((name, value)),
            Err(_) => sources.env_not_utf8.push(name),
        }
    }
    sources
}
