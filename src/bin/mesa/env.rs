//! The environment, read in one place.

use std::{env, path::PathBuf};

use mesa::config::Sources;

use crate::error::Failure;

/// Variables of the commands that are no settings of a server.
const OF_COMMANDS: &[&str] = &["MESA_CONFIG", "MESA_URL", "MESA_API_KEY", "MESA_TOKEN"];

/// Returns the value of a variable; `None` when it is not set or empty.
///
/// # Errors
/// When the value is not valid UTF-8: ignoring it would use another value than the one that was set.
pub fn variable(name: &str) -> Result<Option<String>, Failure> {
    match env::var(name) {
        Ok(value) => Ok(Some(value).filter(|value| !value.is_empty())),
        Err(env::VarError::NotPresent) => Ok(None),
        Err(env::VarError::NotUnicode(_)) => {
            Err(Failure::usage(format!("environment variable {name}: the value is not valid UTF-8")))
        }
    }
}

/// Reports whether a variable is set and not empty.
pub fn is_set(name: &str) -> bool {
    env::var_os(name).is_some_and(|value| !value.is_empty())
}

/// The configuration file that was named, by flag or by variable.
pub fn config_file(flag: Option<&PathBuf>) -> Option<PathBuf> {
    flag.cloned().or_else(|| env::var_os("MESA_CONFIG").filter(|value| !value.is_empty()).map(PathBuf::from))
}

/// Where settings come from, before flags: a file, and the environment.
pub fn sources(file: Option<PathBuf>) -> Sources {
    let mut sources = Sources { file, ..Sources::default() };
    for (name, value) in env::vars_os() {
        // A name that is not UTF-8 is no setting's, with or without the replacement.
        let name = name.to_string_lossy().into_owned();
        if OF_COMMANDS.contains(&name.as_str()) {
            continue;
        }
        match value.into_string() {
            Ok(value) => sources.env.push((name, value)),
            Err(_) => sources.env_not_utf8.push(name),
        }
    }
    sources
}
