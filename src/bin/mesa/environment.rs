//! The environment, read in one place.

use std::{env, path::PathBuf};

use mesa::config::Sources;

/// Variables of the commands that are no settings of a server.
const OF_COMMANDS: &[&str] = &["MESA_CONFIG", "MESA_URL", "MESA_API_KEY", "MESA_TOKEN"];

/// A variable; `None` when it is not set, empty, or no text.
pub fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

/// The configuration file that was named, by flag or by variable.
pub fn config_file(flag: Option<&PathBuf>) -> Option<PathBuf> {
    flag.cloned().or_else(|| env::var_os("MESA_CONFIG").filter(|value| !value.is_empty()).map(PathBuf::from))
}

/// Where settings come from, before flags: a file, and the environment.
pub fn sources(file: Option<PathBuf>) -> Sources {
    // A variable that is no text is none of ours; its neighbours must not suffer for it.
    let texts = env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let env = texts.filter(|(name, _)| !OF_COMMANDS.contains(&name.as_str())).collect();
    Sources { file, env, ..Sources::default() }
}
