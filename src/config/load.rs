//! From what was written to what holds: every source, in order, then one reading, then the check of the whole.

use std::{fmt, path::PathBuf};

use serde_json::Value;

use super::{
    Config, ConfigError, decode, env,
    error::Problem,
    file,
    schema::{self, KEYS, Kind},
    settings::Settings,
    validate,
};

/// Where a configuration comes from. Each source holds over those named after it: `flags`, `env`, `file`, `dev`, and the
/// defaults.
#[derive(Clone, Default)]
pub struct Sources {
    /// A JSON5 file of at most 1 MiB.
    pub file: Option<PathBuf>,
    /// The environment, name and value. Unknown variables are ignored, with a warning if they begin with `MESA_`.
    pub env: Vec<(String, String)>,
    /// Names of the environment variables whose value is not valid UTF-8. One that is a setting is an error; for others the
    /// same holds as for `env`.
    pub env_not_utf8: Vec<String>,
    /// From the command line: the dotted key, the value, and the flag as it was typed (`--port`). A text is read as one
    /// from the environment would be where the key holds something else.
    pub flags: Vec<(String, Value, String)>,
    /// `--store embedded`: sets a configured `redis` aside.
    pub embedded: bool,
    /// `--dev`: a server to try things with, by this machine alone. Sync, reconnects and portals on, tokens are user ids (unless
    /// JWTs are configured), a random API key where there is none, and no web pages but those of this machine (unless `origins`
    /// is configured).
    pub dev: bool,
}

/// A configuration that was checked.
#[derive(Clone)]
#[non_exhaustive]
pub struct Loaded {
    /// What holds.
    pub config: Config,
    /// What is allowed and yet worth a line in the log, a sentence each.
    pub warnings: Vec<String>,
    /// The API key that was made up because `dev` is on and none is configured; it is in `config.api.keys` as well.
    pub generated_api_key: Option<String>,
    /// The environment variables that set something, by name and in alphabetical order.
    pub variables: Vec<String>,
}

/// Without the key.
impl fmt::Debug for Loaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loaded").field("config", &self.config).field("warnings", &self.warnings).finish_non_exhaustive()
    }
}

/// Reads all sources and checks what comes out.
///
/// # Errors
/// All that is wrong, together: an unreadable file, unknown keys, values of a wrong form or out of bounds, and what
/// [`Config::validate`] finds.
pub fn load(sources: &Sources) -> Result<Loaded, ConfigError> {
    let mut problems = Vec::new();
    let mut warnings = Vec::new();

    let settings = settings(sources, &mut problems, &mut warnings);
    set_aside(&settings, sources.embedded, &mut problems, &mut warnings);
    let mut config = Config { dev: sources.dev, ..Config::default() };
    decode::read(&settings, &mut config, &mut problems);
    if sources.embedded {
        // Set aside, whatever it says.
        config.redis = None;
        problems.retain(|problem| problem.about[..] != ["redis"]);
    }

    let generated_api_key = if sources.dev && config.api.keys.is_empty() { random_key(&mut problems) } else { None };
    config.api.keys.extend(generated_api_key.clone());

    let (found, more) = validate::check(&config);
    // What is said of a key whose value could not be read would be said of its default.
    let unread: Vec<&str> = problems.iter().flat_map(|problem| problem.about.iter().copied()).collect();
    for mut problem in found {
        if !problem.about.iter().any(|key| unread.contains(key)) {
            problem.origin = problem.about.iter().find_map(|key| settings.origin(key)).map(str::to_owned);
            problems.push(problem);
        }
    }
    ConfigError::from_problems(problems)?;
    warnings.extend(more);
    let variables = settings.origins().filter_map(|origin| origin.strip_prefix(env::ORIGIN).map(str::to_owned));
    let variables: std::collections::BTreeSet<String> = variables.collect();
    Ok(Loaded { config, warnings, generated_api_key, variables: variables.into_iter().collect() })
}

/// All sources laid over each other.
fn settings(sources: &Sources, problems: &mut Vec<Problem>, warnings: &mut Vec<String>) -> Settings {
    let mut explicit = Settings::default();
    if let Some(path) = &sources.file {
        match file::read(path) {
            Ok(map) => explicit.flatten(map, &path.display().to_string(), problems),
            Err(problem) => problems.push(problem),
        }
    }
    explicit.overlay(env::read(&sources.env, &sources.env_not_utf8, problems, warnings));
    explicit.overlay(flags(&sources.flags, problems));

    let mut settings = if sources.dev { dev(&explicit) } else { Settings::default() };
    settings.overlay(explicit);
    settings
}

fn flags(flags: &[(String, Value, String)], problems: &mut Vec<Problem>) -> Settings {
    let mut settings = Settings::default();
    for (name, value, flag) in flags {
        let Some(key) = schema::find(name) else {
            problems.push(Problem::new(schema::unknown(name)).from(flag));
            continue;
        };
        let value = match value {
            // What cannot be read stays a text, and the reading says what is wrong with it.
            Value::String(text) => env::parse(key, text).unwrap_or_else(|| value.clone()),
            other => other.clone(),
        };
        settings.set(key, value, flag);
    }
    settings
}

/// The defaults that `--dev` changes; they stand below whatever was said.
fn dev(explicit: &Settings) -> Settings {
    let mut settings = Settings::default();
    let mut set = |name, value: Value| settings.set(schema::known(name), value, "--dev");
    set("host", "127.0.0.1".into());
    set("sync.enabled", true.into());
    set("reconnect.enabled", true.into());
    set("portal.enabled", true.into());
    set("store.path", "data/store".into());
    if !decode::has_jwt(explicit) && !decode::has_auth_webhook(explicit) {
        set("authentication.insecure", true.into());
    }
    settings
}

/// Keys that are documented, and not for this program.
fn set_aside(settings: &Settings, embedded: bool, problems: &mut Vec<Problem>, warnings: &mut Vec<String>) {
    for key in KEYS.iter().filter(|key| settings.has(key.name)) {
        let origin = settings.origin(key.name).unwrap_or_default();
        match key.kind {
            Kind::Redis if embedded => {
                warnings.push(format!("redis ({origin}) is set aside: the embedded store keeps everything"));
            }
            Kind::Redis if cfg!(feature = "redis") => {}
            Kind::Redis => problems.push(
                Problem::about(
                    &[key.name],
                    "redis is set, but this build works without Redis; remove it, or start with `--store embedded` to \
                     set it aside and keep everything in the embedded store",
                )
                .from(origin),
            ),
            Kind::Library => problems.push(
                Problem::about(
                    &[key.name],
                    format!(
                        "{} belongs to the use as a library and means nothing to this program; remove it",
                        key.name
                    ),
                )
                .from(origin),
            ),
            _ => {}
        }
    }
}

/// 128 random bits in hexadecimal.
fn random_key(problems: &mut Vec<Problem>) -> Option<String> {
    let mut bytes = [0_u8; 16];
    match getrandom::fill(&mut bytes) {
        Ok(()) => Some(format!("{:032x}", u128::from_be_bytes(bytes))),
        Err(error) => {
            let text = format!("no random API key could be made ({error}); set api.keys yourself");
            problems.push(Problem::about(&["api.keys"], text));
            None
        }
    }
}
