//! Parses the key `redis`: the address of a shared Redis, in each form that the original accepts.

use std::fmt::{self, Write as _};

use serde_json::{Map, Value};

/// Default port of a Redis.
const PORT: u16 = 6379;
/// Default port of a Sentinel.
const SENTINEL_PORT: u16 = 26379;

/// Address of a Redis.
///
/// TLS uses the crypto provider that the process has installed for rustls, or else the only compiled-in provider. An
/// application with several compiled-in providers must install one.
#[derive(Clone, PartialEq, Eq)]
pub enum Redis {
    /// One Redis, as a URL: `redis://user:password@host:port/database`, or `rediss://` with TLS.
    One(String),
    /// A Redis Cluster: URLs of some of its nodes.
    Cluster(Vec<String>),
    /// A Redis behind Sentinels, which report its address.
    Sentinel {
        /// Host and port of each Sentinel.
        sentinels: Vec<(String, u16)>,
        /// Name of the Redis at the Sentinels.
        name: String,
        /// User name at the Redis.
        username: Option<String>,
        /// Password of the Redis.
        password: Option<String>,
        /// Password of the Sentinels.
        sentinel_password: Option<String>,
        /// Number of the database.
        database: i64,
        /// Whether connections to the Redis use TLS.
        tls: bool,
        /// Whether connections to the Sentinels use TLS.
        sentinel_tls: bool,
    },
}

impl Redis {
    /// Returns hosts and ports for log lines, without secrets.
    #[must_use]
    pub fn addresses(&self) -> String {
        let of = |url: &String| {
            let rest = url.split_once("://").map_or(url.as_str(), |(_, rest)| rest);
            let rest = rest.rsplit_once('@').map_or(rest, |(_, rest)| rest);
            rest.split_once('/').map_or(rest, |(host, _)| host).to_owned()
        };
        match self {
            Self::One(url) => of(url),
            Self::Cluster(urls) => urls.iter().map(of).collect::<Vec<_>>().join(", "),
            Self::Sentinel { sentinels, name, .. } => {
                let all: Vec<_> = sentinels.iter().map(|(host, port)| format!("{host}:{port}")).collect();
                format!("{name}, from Sentinels {}", all.join(", "))
            }
        }
    }
}

impl fmt::Debug for Redis {
    /// Omits everything but the kind: a URL may have a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::One(_) => "Redis::One",
            Self::Cluster(_) => "Redis::Cluster",
            Self::Sentinel { .. } => "Redis::Sentinel",
        })
    }
}

/// Parses the value of the key `redis`.
///
/// It is a URL or `host:port`, a list of a URL and options as in ioredis (`[url, { password, db, tls }]`), or an object in the form of ioredis: `host`, `port`, `username`, `password`, `db`, or
/// `sentinels` and `name`, with `tls: {}` for TLS. A list of either is a Redis Cluster.
///
/// # Errors
/// A sentence that names the mistake, without anything that may be a secret.
pub fn parse(value: &Value) -> Result<Redis, String> {
    match value {
        Value::String(text) if text.contains(',') => {
            text.split(',').map(|part| url(part.trim())).collect::<Result<_, _>>().map(Redis::Cluster)
        }
        Value::String(text) => url(text).map(Redis::One),
        Value::Object(object) if object.contains_key("sentinels") => sentinel(object),
        Value::Object(object) => address(object).map(Redis::One),
        Value::Array(nodes) if nodes.is_empty() => Err("redis is an empty list; name some nodes of the Cluster".into()),
        Value::Array(nodes) if arguments(nodes).is_some() => {
            let (text, options) = arguments(nodes).expect("checked above");
            with_options(text, options).map(Redis::One)
        }
        Value::Array(nodes) => nodes
            .iter()
            .map(|node| match node {
                Value::String(text) => url(text),
                Value::Object(object) => address(object),
                _ => Err("each node in the list redis must be a string or an object".to_owned()),
            })
            .collect::<Result<_, _>>()
            .map(Redis::Cluster),
        _ => Err("redis must be a string, an object or a list".into()),
    }
}

/// Parses `REDIS_SENTINELS` (`host:port,host:port`). The name of the Redis is `mymaster`, the default of Sentinels.
pub(super) fn parse_sentinels(text: &str) -> Result<Redis, String> {
    let sentinels: Vec<Value> = text.split(',').map(|address| Value::String(address.trim().to_owned())).collect();
    let object: Map<String, Value> = [("sentinels".to_owned(), Value::Array(sentinels))].into_iter().collect();
    sentinel(&object)
}

fn url(text: &str) -> Result<String, String> {
    if text.is_empty() {
        return Err("redis is empty; it must be a URL like redis://localhost:6379".into());
    }
    match text.split_once("://") {
        None => url(&format!("redis://{text}")),
        Some(("rediss", rest)) if rest.contains('#') => {
            Err("redis is a rediss:// URL with a #; remove it: certificates are always checked (SSL_CERT_FILE names \
                 those that are trusted)"
                .into())
        }
        Some(("redis" | "rediss", rest))
            if rest.split_once('/').is_some_and(|(_, database)| !is_database(database)) =>
        {
            Err("redis is a URL whose path is not a database number; it must be like \
                 redis://user:password@host:6379/0"
                .into())
        }
        Some(("redis" | "rediss" | "redis+unix" | "unix", rest)) if !rest.is_empty() => Ok(text.to_owned()),
        Some(_) => Err("redis must be a URL like redis://user:password@host:6379/0".into()),
    }
}

/// Returns whether the path of a URL, with or without a query, is a database number.
fn is_database(text: &str) -> bool {
    let number = text.split(['?', '#']).next().unwrap_or_default();
    number.is_empty() || number.parse::<u32>().is_ok()
}

fn text<'a>(object: &'a Map<String, Value>, name: &str) -> Result<Option<&'a str>, String> {
    match object.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(format!("redis.{name} must be a string")),
    }
}

fn number(object: &Map<String, Value>, name: &str, default: u16) -> Result<u16, String> {
    let number = match object.get(name) {
        None | Some(Value::Null) => return Ok(default),
        Some(Value::Number(number)) => number.as_u64(),
        Some(Value::String(text)) => text.parse().ok(),
        Some(_) => None,
    };
    number.and_then(|number| u16::try_from(number).ok()).ok_or(format!("redis.{name} must be a whole number to 65535"))
}

/// Parses a TLS option: `true`, or an empty object as in ioredis.
fn tls(object: &Map<String, Value>, name: &str) -> Result<bool, String> {
    match object.get(name) {
        None | Some(Value::Null | Value::Bool(false)) => Ok(false),
        Some(Value::Bool(true)) => Ok(true),
        Some(Value::Object(options)) if options.is_empty() => Ok(true),
        Some(_) => Err(format!(
            "redis.{name} must be true or {{}}; certificates are always checked (SSL_CERT_FILE names those that are trusted)"
        )),
    }
}

fn reject_unknown_keys(object: &Map<String, Value>, names: &[&str]) -> Result<(), String> {
    match object.keys().find(|key| !names.contains(&key.as_str())) {
        Some(unknown) => Err(format!("redis.{unknown} is not a known key; the known ones are {}", names.join(", "))),
        None => Ok(()),
    }
}

/// Returns a URL and its options, the arguments of ioredis (`new Redis(url, options)`), which the original passes on.
///
/// An object with an address is a node of a Cluster.
fn arguments(list: &[Value]) -> Option<(&str, &Map<String, Value>)> {
    let [Value::String(text), Value::Object(options)] = list else { return None };
    let has_address = ["host", "port", "url", "uri"].iter().any(|key| options.contains_key(*key));
    (!has_address).then_some((text, options))
}

/// Adds options to a URL. What the URL has itself wins, as in ioredis.
fn with_options(location: &str, options: &Map<String, Value>) -> Result<String, String> {
    reject_unknown_keys(options, &["username", "password", "db", "tls"])?;
    let (username, password) = (text(options, "username")?, text(options, "password")?);
    let (database, tls) = (number(options, "db", 0)?, tls(options, "tls")?);
    let base = url(location)?;
    let Some(("redis" | "rediss", rest)) = base.split_once("://") else { return Ok(base) };
    let scheme = if tls || base.starts_with("rediss") { "rediss" } else { "redis" };
    let credentials = match (rest.contains('@'), password) {
        (false, Some(password)) => format!("{}:{}@", escape(username.unwrap_or_default()), escape(password)),
        _ => String::new(),
    };
    let rest = rest.trim_end_matches('/');
    let path = if rest.contains('/') || rest.contains('?') { String::new() } else { format!("/{database}") };
    Ok(format!("{scheme}://{credentials}{rest}{path}"))
}

fn address(object: &Map<String, Value>) -> Result<String, String> {
    reject_unknown_keys(object, &["url", "uri", "host", "port", "username", "password", "db", "tls"])?;
    if let Some(text) = text(object, "url")?.or(text(object, "uri")?) {
        return url(text);
    }
    let host = text(object, "host")?.unwrap_or("localhost");
    let (port, database) = (number(object, "port", PORT)?, number(object, "db", 0)?);
    let user = escape(text(object, "username")?.unwrap_or_default());
    let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    let scheme = if tls(object, "tls")? { "rediss" } else { "redis" };
    Ok(match text(object, "password")? {
        Some(password) => format!("{scheme}://{user}:{}@{host}:{port}/{database}", escape(password)),
        None => format!("{scheme}://{host}:{port}/{database}"),
    })
}

/// Percent-encodes characters that could end a part of a URL.
fn escape(part: &str) -> String {
    let mut escaped = String::new();
    for byte in part.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            escaped.push(byte.into());
        } else {
            // Writing to a String cannot fail.
            _ = write!(escaped, "%{byte:02X}");
        }
    }
    escaped
}

fn sentinel(object: &Map<String, Value>) -> Result<Redis, String> {
    let names =
        ["sentinels", "name", "username", "password", "sentinelPassword", "db", "tls", "enableTLSForSentinelMode"];
    reject_unknown_keys(object, &names)?;
    let parse_sentinel = |value: &Value| match value {
        Value::Object(object) => {
            reject_unknown_keys(object, &["host", "port"])?;
            Ok((text(object, "host")?.unwrap_or("localhost").to_owned(), number(object, "port", SENTINEL_PORT)?))
        }
        Value::String(text) => match text.rsplit_once(':') {
            Some((host, port)) => {
                let port = port.parse().map_err(|_| "a Sentinel's port must be a whole number".to_owned())?;
                Ok((host.to_owned(), port))
            }
            None => Ok((text.clone(), SENTINEL_PORT)),
        },
        _ => Err("each of redis.sentinels must be a string or an object with host and port".to_owned()),
    };
    let Some(Value::Array(sentinels)) =
        object.get("sentinels").filter(|all| all.as_array().is_some_and(|all| !all.is_empty()))
    else {
        return Err("redis.sentinels must be a list with at least one Sentinel".into());
    };
    Ok(Redis::Sentinel {
        sentinels: sentinels.iter().map(parse_sentinel).collect::<Result<_, String>>()?,
        name: text(object, "name")?.unwrap_or("mymaster").to_owned(),
        username: text(object, "username")?.map(str::to_owned),
        password: text(object, "password")?.map(str::to_owned),
        sentinel_password: text(object, "sentinelPassword")?.map(str::to_owned),
        database: number(object, "db", 0)?.into(),
        tls: tls(object, "tls")?,
        sentinel_tls: tls(object, "enableTLSForSentinelMode")?,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn redis_in_each_form_of_the_original_is_parsed() {
        let one = |text: &str| Ok(Redis::One(text.into()));
        assert_eq!(parse(&json!("redis://localhost:6379")), one("redis://localhost:6379"));
        assert_eq!(parse(&json!("cache:6380")), one("redis://cache:6380"));
        assert_eq!(parse(&json!({ "host": "h", "port": 1, "password": "p@/" })), one("redis://:p%40%2F@h:1/0"));
        assert_eq!(parse(&json!({ "host": "h", "tls": {} })), one("rediss://h:6379/0"));
        assert_eq!(parse(&json!("rediss://h")), one("rediss://h"));
        assert_eq!(parse(&json!("h/3?protocol=resp3")), one("redis://h/3?protocol=resp3"));
        assert_eq!(parse(&json!("redis://u:s@ecret@h:1/2")).unwrap().addresses(), "h:1");
        let nodes = Redis::Cluster(vec!["redis://a:1/0".into(), "redis://b:6379/0".into()]);
        assert_eq!(parse(&json!([{ "host": "a", "port": 1 }, { "host": "b" }])), Ok(nodes));
        let with = |url: &str, options| parse(&json!([url, options]));
        assert_eq!(with("redis://h", json!({ "password": "p", "db": 2 })), one("redis://:p@h/2"));
        assert_eq!(
            with("redis://u:s@h:1/3", json!({ "password": "p", "db": 2, "tls": {} })),
            one("rediss://u:s@h:1/3")
        );
        assert_eq!(with("h", json!({})), one("redis://h/0"));
        assert!(with("redis://h", json!({ "keyPrefix": "x" })).is_err());
        let sentinels = parse(&json!({ "sentinels": [{ "host": "s" }], "name": "n", "password": "p" })).unwrap();
        assert!(
            matches!(&sentinels, Redis::Sentinel { sentinels, name, .. } if sentinels[0] == ("s".into(), 26379) && name == "n")
        );
        assert_eq!(parse_sentinels("s:26379"), parse(&json!({ "sentinels": ["s"] })));
        assert!(!format!("{sentinels:?}").contains('p'.to_string().repeat(2).as_str()));
    }

    #[test]
    fn redis_of_invalid_form_is_rejected_without_its_secret() {
        for wrong in [
            json!(""),
            json!(7),
            json!([]),
            json!("http://secret@h"),
            json!("rediss://:secret@h/#insecure"),
            json!("redis://:secret@h/database"),
            json!("h:6379/0/1"),
            json!({ "host": "h", "tls": { "rejectUnauthorized": false } }),
            json!({ "sentinels": [] }),
            json!({ "host": "h", "secret": "secret" }),
            json!({ "port": "secret" }),
        ] {
            let error = parse(&wrong).unwrap_err();
            assert!(error.starts_with("redis") && !error.contains("secret:") && !error.contains("secret@"), "{error}");
        }
    }
}
