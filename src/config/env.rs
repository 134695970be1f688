//! Reads settings from environment variables. The type of the key decides how a text is parsed.

use serde_json::{Value, json};

use super::{
    error::{Problem, excerpt},
    schema::{self, KEYS, Key, Kind},
    service_links,
    settings::Settings,
};

/// Unknown variables that get a warning each. One further warning counts the others.
const UNKNOWN_NAMED_MAX: usize = 20;

/// Prefix of the origin of a value from the environment. The name of the variable follows.
pub(super) const ORIGIN: &str = "environment variable ";

/// Variables with the prefix `MESA_` that commands and fault tests read. They are no settings.
const COMMAND_VARIABLES: &[&str] = &[
    "MESA_CONFIG",
    "MESA_URL",
    "MESA_API_KEY",
    "MESA_TOKEN",
    "MESA_FAILPOINT",
    "MESA_FAILPOINT_PANIC",
    "MESA_FAILPOINT_PANIC_WHILE",
];

/// Prefixes of variables of the Mesa graphics library, which also begin with `MESA_`. They cause no warnings.
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

/// Further variables of that library, compared exactly: a prefix such as `MESA_LOG` would match our settings.
const GRAPHICS_EXACT: &[&str] = &["MESA_LOG", "MESA_LOG_FILE", "MESA_LOG_PREFIX", "MESA_PROCESS_NAME"];

/// Reads settings from the environment.
///
/// An empty variable counts as not set, as scripts and compose files commonly write it. An unknown variable with the
/// prefix `MESA_` is only a warning, because other programs use the prefix too. `not_utf8` names variables whose value
/// is not UTF-8. A setting among them is an error.
pub(super) fn read(
    environment: &[(String, String)],
    not_utf8: &[String],
    problems: &mut Vec<Problem>,
    warnings: &mut Vec<String>,
) -> Settings {
    let mut settings = Settings::default();
    let (mut links, mut ignored_settings, mut unknown) = (Vec::new(), Vec::new(), 0_usize);
    let texts = environment.iter().map(|(name, text)| (name, Some(text.as_str())));
    for (name, text) in texts.chain(not_utf8.iter().map(|name| (name, None))) {
        if text.is_some_and(str::is_empty) {
            continue;
        }
        let key = KEYS.iter().find(|key| key.env.contains(&name.as_str()));
        if (key.is_some() || name.starts_with("MESA_"))
            && service_links::is_service_link(name, text.unwrap_or_default())
        {
            ignored_settings.extend(key.map(|_| excerpt(name)));
            links.push(excerpt(name));
        } else if let Some(key) = key {
            let origin = format!("{ORIGIN}{}", excerpt(name));
            let Some(text) = text else {
                problems.push(
                    Problem::about(&[key.name], "the value is not valid UTF-8. Set the variable to text, or unset it")
                        .with_origin(&origin),
                );
                continue;
            };
            match parse(key, text) {
                Some(value) => settings.set(key, value, &origin),
                None => {
                    problems.push(
                        Problem::about(&[key.name], schema::invalid_value(key, &text.into())).with_origin(&origin),
                    );
                }
            }
        } else if name.starts_with("MESA_") && !is_of_other_program(name) {
            unknown += 1;
            if unknown <= UNKNOWN_NAMED_MAX {
                let nearest = schema::nearest_env(name);
                let nearest = nearest.map_or_else(String::new, |known| format!("; the nearest setting is {known}"));
                warnings
                    .push(format!("the environment variable {} is no setting and is ignored{nearest}", excerpt(name)));
            }
        }
    }
    if let Some(more) = unknown.checked_sub(UNKNOWN_NAMED_MAX).filter(|more| *more > 0) {
        warnings.push(if more == 1 {
            "1 more environment variable that begins with MESA_ is no setting and is ignored".to_owned()
        } else {
            format!("{more} more environment variables that begin with MESA_ are no settings and are ignored")
        });
    }
    warnings.extend(service_links::warning(&links, &ignored_settings));
    settings
}

fn is_of_other_program(name: &str) -> bool {
    COMMAND_VARIABLES.contains(&name)
        || GRAPHICS_EXACT.contains(&name)
        || GRAPHICS.iter().any(|prefix| name.starts_with(prefix))
}

/// Parses a text as the type of `key`; `None` if it has another type. `decode` checks bounds, for all sources.
pub(super) fn parse(key: &Key, text: &str) -> Option<Value> {
    let text = text.trim();
    match key.kind {
        Kind::Bool | Kind::RedisTls => match text.to_ascii_lowercase().as_str() {
            "true" | "1" | "yes" | "on" => Some(true.into()),
            "false" | "0" | "no" | "off" => Some(false.into()),
            _ => None,
        },
        Kind::Integer { .. } | Kind::Millis { .. } => text.parse::<u64>().ok().map(Value::from),
        Kind::Text | Kind::Choice(_) | Kind::Redis | Kind::Certificates | Kind::Library => Some(text.into()),
        Kind::Texts => Some(text.split(',').map(str::trim).filter(|item| !item.is_empty()).collect()),
        Kind::Durability => match text.parse::<u64>() {
            Ok(interval) => Some(json!({ "interval": interval })),
            Err(_) => Some(text.into()),
        },
    }
}
