//! Loads a [`Config`]: layers all sources, decodes the result, and validates it.

use std::{fmt, io, path::PathBuf};

use serde_json::Value;

use super::{
    Config, ConfigError, decode, dev_key, env,
    error::Problem,
    file,
    schema::{self, KEYS, Kind},
    settings::Settings,
    validate,
};

/// Sources of a configuration, in order of precedence: `flags`, `env`, `file`, `dev`, and the defaults.
#[derive(Clone, Default)]
pub struct Sources {
    /// A JSON5 file of at most 1 MiB.
    pub file: Option<PathBuf>,
    /// Environment variables, as name and value. Unknown variables are ignored, with a warning if they begin with
    /// `MESA_`.
    pub env: Vec<(String, String)>,
    /// Names of environment variables whose value is not valid UTF-8. A setting among them is an error, an unknown
    /// variable a warning as in `env`.
    pub env_not_utf8: Vec<String>,
    /// Options of the command line: dotted key, value, and option as typed (`--port`). A text is parsed as from the
    /// environment if the key has another type.
    pub flags: Vec<(String, Value, String)>,
    /// `--store embedded`: ignores a configured `redis`.
    pub embedded: bool,
    /// `--dev`: development settings.
    ///
    /// The server listens on 127.0.0.1. Sync, reconnects and portals are on. Tokens are user ids, unless JWTs or a
    /// webhook are configured. An API key is generated, unless one is configured, or kept by [`keep_dev_key`]. Only web
    /// pages of this machine may connect, unless `origins` is configured.
    pub dev: bool,
}

/// A validated configuration.
#[derive(Clone)]
#[non_exhaustive]
pub struct Loaded {
    /// The effective settings.
    pub config: Config,
    /// Warnings for the log, one sentence each.
    pub warnings: Vec<String>,
    /// API key that was generated because `dev` is on and none is configured, by this start or by an earlier one on the
    /// same store. `config.api.keys` has it too.
    pub generated_api_key: Option<String>,
    /// Names of the environment variables that set a key, in alphabetical order.
    pub variables: Vec<String>,
}

/// Omits the generated key.
impl fmt::Debug for Loaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loaded").field("config", &self.config).field("warnings", &self.warnings).finish_non_exhaustive()
    }
}

/// Loads a configuration from all sources, and validates it.
///
/// # Errors
/// All mistakes together: an unreadable file, unknown keys, values of a wrong type or out of bounds, and those that
/// [`Config::validate`] finds.
pub fn load(sources: &Sources) -> Result<Loaded, ConfigError> {
    let mut problems = Vec::new();
    let mut warnings = Vec::new();

    let settings = settings(sources, &mut problems, &mut warnings);
    check_unsupported(&settings, sources.embedded, &mut problems, &mut warnings);
    let mut config = Config { dev: sources.dev, ..Config::default() };
    decode::read(&settings, &mut config, &mut problems);
    if sources.embedded {
        // `redis` is ignored, also with an invalid value.
        config.redis = None;
        problems.retain(|problem| problem.about[..] != ["redis"]);
    }

    let generated_api_key = if sources.dev && config.api.keys.is_empty() {
        dev_key::read(&config, &mut warnings).or_else(|| generate_api_key(&mut problems))
    } else {
        None
    };
    config.api.keys.extend(generated_api_key.clone());

    let (found, further_warnings) = validate::check(&config);
    // A key with an invalid value has its default here. Problems with that default would be misleading.
    let undecoded: Vec<&str> = problems.iter().flat_map(|problem| problem.about.iter().copied()).collect();
    for mut problem in found {
        if !problem.about.iter().any(|key| undecoded.contains(key)) {
            problem.origin = problem.about.iter().find_map(|key| settings.origin(key)).map(str::to_owned);
            problems.push(problem);
        }
    }
    ConfigError::from_problems(problems)?;
    warnings.extend(further_warnings);
    let variables = settings.origins().filter_map(|origin| origin.strip_prefix(env::ORIGIN).map(str::to_owned));
    let variables: std::collections::BTreeSet<String> = variables.collect();
    Ok(Loaded { config, warnings, generated_api_key, variables: variables.into_iter().collect() })
}

/// Layers all sources.
fn settings(sources: &Sources, problems: &mut Vec<Problem>, warnings: &mut Vec<String>) -> Settings {
    let mut explicit = Settings::default();
    if let Some(path) = &sources.file {
        match file::read(path, problems) {
            Ok(map) => explicit.flatten(map, &path.display().to_string(), problems),
            Err(problem) => problems.push(problem),
        }
    }
    explicit.overlay(env::read(&sources.env, &sources.env_not_utf8, problems, warnings));
    explicit.overlay(flag_settings(&sources.flags, problems));

    let mut settings = if sources.dev { dev_defaults(&explicit) } else { Settings::default() };
    settings.overlay(explicit);
    settings
}

fn flag_settings(flags: &[(String, Value, String)], problems: &mut Vec<Problem>) -> Settings {
    let mut settings = Settings::default();
    for (name, value, flag) in flags {
        let Some(key) = schema::find(name) else {
            problems.push(Problem::new(schema::unknown_key(name)).with_origin(flag));
            continue;
        };
        let value = match value {
            // A text that cannot be parsed stays a text. `decode` reports it.
            Value::String(text) => env::parse(key, text).unwrap_or_else(|| value.clone()),
            other => other.clone(),
        };
        settings.set(key, value, flag);
    }
    settings
}

/// Returns the defaults that `--dev` changes. Every other source overrides them.
fn dev_defaults(explicit: &Settings) -> Settings {
    let mut settings = Settings::default();
    let mut set = |name, value: Value| settings.set(schema::expect_key(name), value, "--dev");
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

/// Reports documented keys that this program does not support.
fn check_unsupported(settings: &Settings, embedded: bool, problems: &mut Vec<Problem>, warnings: &mut Vec<String>) {
    for key in KEYS.iter().filter(|key| settings.has(key.name)) {
        let origin = settings.origin(key.name).unwrap_or_default();
        match key.kind {
            Kind::Redis if embedded => {
                warnings.push(format!("redis ({origin}) is ignored, because the embedded store was chosen"));
            }
            Kind::Redis if cfg!(feature = "redis") => {}
            Kind::Redis => problems.push(
                Problem::about(
                    &[key.name],
                    "redis is set, but this build has no support for Redis; build with `--features redis`, remove the key, \
                     or start with `--store embedded`, which ignores it",
                )
                .with_origin(origin),
            ),
            Kind::Library => problems.push(
                Problem::about(
                    &[key.name],
                    format!(
                        "{} is only for use as a library, and has no effect in this program; remove it",
                        key.name
                    ),
                )
                .with_origin(origin),
            ),
            _ => {}
        }
    }
}

/// Generates an API key: 128 random bits in hexadecimal.
fn generate_api_key(problems: &mut Vec<Problem>) -> Option<String> {
    let mut bytes = [0_u8; 16];
    match getrandom::fill(&mut bytes) {
        Ok(()) => Some(format!("{:032x}", u128::from_be_bytes(bytes))),
        Err(error) => {
            let text = format!("no API key could be generated ({error}); set api.keys");
            problems.push(Problem::about(&["api.keys"], text));
            None
        }
    }
}

/// Keeps the generated API key for later starts on the same store, readable by its owner only. Returns the file's path.
///
/// Call it after the store was opened, which creates the directory. Returns `None` if no key was generated, or the store
/// has no directory.
///
/// # Errors
/// When the file cannot be written.
pub fn keep_dev_key(loaded: &Loaded) -> io::Result<Option<PathBuf>> {
    loaded.generated_api_key.as_deref().map_or(Ok(None), |key| dev_key::keep(&loaded.config, key))
}
