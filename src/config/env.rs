//! The environment: texts, read by the form of the key that a variable sets.

use serde_json::{Value, json};

use super::{
    error::{Problem, shown},
    keys::{self, KEYS, Key, Kind},
    merge::Settings,
};

/// Variables under our prefix that are for the command line tools.
const TOOLS: &[&str] = &["MESA_CONFIG", "MESA_URL", "MESA_API_KEY", "MESA_TOKEN"];

/// Beginnings of variables that belong to the Mesa graphics library, which shares our prefix: a desktop that has some
/// set must still be able to start a server.
const GRAPHICS: &[&str] = &[
    "MESA_BACK_BUFFER",
    "MESA_DEBUG",
    "MESA_DISK_CACHE",
    "MESA_DRM",
    "MESA_EXTENSION",
    "MESA_GL",
    "MESA_INFO",
    "MESA_LOADER",
    "MESA_NO_",
    "MESA_SHADER",
    "MESA_SPIRV",
    "MESA_TEX",
    "MESA_VK",
];

/// More of them, which begin as ours do.
const GRAPHICS_EXACT: &[&str] = &["MESA_LOG", "MESA_LOG_FILE", "MESA_LOG_PREFIX", "MESA_PROCESS_NAME"];

/// What the environment says. A variable that is set to nothing counts as not set, as scripts and compose files
/// commonly do it.
pub(super) fn read(environment: &[(String, String)], problems: &mut Vec<Problem>) -> Settings {
    let mut settings = Settings::default();
    for (name, text) in environment {
        if text.is_empty() {
            continue;
        }
        let origin = format!("environment variable {}", shown(name));
        if let Some(key) = KEYS.iter().find(|key| key.env.contains(&name.as_str())) {
            match parse(key, text) {
                Some(value) => settings.set(key, value, &origin),
                None => problems
                    .push(Problem::about(&[key.name], keys::misfit(key, &Value::String(text.clone()))).from(&origin)),
            }
        } else if name.starts_with("MESA_") && !is_foreign(name) {
            problems.push(
                Problem::new(match keys::nearest_env(name) {
                    Some(nearest) => format!("there is no such setting; the nearest known one is {nearest}"),
                    None => "there is no such setting; unset it".into(),
                })
                .from(&origin),
            );
        }
    }
    settings
}

fn is_foreign(name: &str) -> bool {
    TOOLS.contains(&name)
        || GRAPHICS_EXACT.contains(&name)
        || GRAPHICS.iter().any(|beginning| name.starts_with(beginning))
}

/// `text` as a value that `key` may hold; `None` when it is of another form. Bounds are checked later, for all sources
/// alike.
pub(super) fn parse(key: &Key, text: &str) -> Option<Value> {
    let text = text.trim();
    match key.kind {
        Kind::Bool => match text.to_ascii_lowercase().as_str() {
            "true" | "1" | "yes" | "on" => Some(true.into()),
            "false" | "0" | "no" | "off" => Some(false.into()),
            _ => None,
        },
        Kind::Integer { .. } | Kind::Millis { .. } => text.parse::<u64>().ok().map(Value::from),
        Kind::Text | Kind::Choice(_) | Kind::Redis | Kind::Library => Some(text.into()),
        Kind::Texts => Some(text.split(',').map(str::trim).filter(|item| !item.is_empty()).collect()),
        Kind::Durability => match text.parse::<u64>() {
            Ok(interval) => Some(json!({ "interval": interval })),
            Err(_) => Some(text.into()),
        },
    }
}
