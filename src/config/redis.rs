//! Parses the key `redis`: the address of a shared Redis, in each form that the original accepts.

use std::fmt::{self, Write as _};

use serde_json::{Map, Value};

use super::error::excerpt;

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
/// It is a URL or `host:port`, a list of a URL and options as in ioredis (`[url, { password, db, tls }]`), or an object
/// in the form of ioredis: `host`, `port`, `username`, `password`, `db`, or `sentinels` and `name`, with `tls: {}` for
/// TLS. A list of either is a Redis Cluster.
///
/// # Errors
/// One sentence for each mistake, without anything that may be a secret.
pub fn parse(value: &Value) -> Result<Redis, Vec<String>> {
    let mut problems = Vec::new();
    let redis = read(value, &mut problems);
    // A mistake within the value leaves a substitute in its place.
    match redis {
        Some(redis) if problems.is_empty() => Ok(redis),
        _ => Err(problems),
    }
}

/// Parses `REDIS_SENTINELS` (`host:port,host:port`). The name of the Redis is `mymaster`, the default of Sentinels.
pub(super) fn parse_sentinels(text: &str) -> Result<Redis, Vec<String>> {
    let sentinels: Vec<Value> = text.split(',').map(|address| Value::String(address.trim().to_owned())).collect();
    let object: Map<String, Value> = [("sentinels".to_owned(), Value::Array(sentinels))].into_iter().collect();
    parse(&Value::Object(object))
}

/// Reads each form of the value. Adds every mistake to `problems`; `None` is always one.
fn read(value: &Value, problems: &mut Vec<String>) -> Option<Redis> {
    match value {
        Value::String(text) if text.contains(',') => {
            Some(Redis::Cluster(text.split(',').filter_map(|part| url(part.trim(), problems)).collect()))
        }
        Value::String(text) => url(text, problems).map(Redis::One),
        Value::Object(object) if object.contains_key("sentinels") => Some(sentinel(&mut Fields { object, problems })),
        Value::Object(object) => address(&mut Fields { object, problems }).map(Redis::One),
        Value::Array(nodes) if nodes.is_empty() => {
            wrong(problems, "redis is an empty list; name some nodes of the Cluster")
        }
        Value::Array(nodes) => match arguments(nodes) {
            Some((text, object)) => with_options(text, &mut Fields { object, problems }).map(Redis::One),
            None => Some(Redis::Cluster(nodes.iter().filter_map(|node| cluster_node(node, problems)).collect())),
        },
        _ => wrong(problems, "redis must be a string, an object or a list"),
    }
}

fn cluster_node(node: &Value, problems: &mut Vec<String>) -> Option<String> {
    match node {
        Value::String(text) => url(text, problems),
        Value::Object(object) => address(&mut Fields { object, problems }),
        _ => wrong(problems, "each node in the list redis must be a string or an object"),
    }
}

/// Adds a mistake.
fn wrong<T>(problems: &mut Vec<String>, text: impl Into<String>) -> Option<T> {
    problems.push(text.into());
    None
}

fn url(text: &str, problems: &mut Vec<String>) -> Option<String> {
    if text.is_empty() {
        return wrong(problems, "redis is empty; it must be a URL like redis://localhost:6379");
    }
    match text.split_once("://") {
        None => url(&format!("redis://{text}"), problems),
        Some(("rediss", rest)) if rest.contains('#') => wrong(
            problems,
            "redis is a rediss:// URL with a #; remove it: certificates are always checked (SSL_CERT_FILE names those \
             that are trusted)",
        ),
        Some(("redis" | "rediss", rest))
            if rest.split_once('/').is_some_and(|(_, database)| !is_database(database)) =>
        {
            wrong(
                problems,
                "redis is a URL whose path is not a database number; it must be like redis://user:password@host:6379/0",
            )
        }
        Some(("redis" | "rediss" | "redis+unix" | "unix", rest)) if !rest.is_empty() => Some(text.to_owned()),
        Some(_) => wrong(problems, "redis must be a URL like redis://user:password@host:6379/0"),
    }
}

/// Returns whether the path of a URL, with or without a query, is a database number.
fn is_database(text: &str) -> bool {
    let number = text.split(['?', '#']).next().unwrap_or_default();
    number.is_empty() || number.parse::<u32>().is_ok()
}

/// Reads the fields of an object, and collects their mistakes.
struct Fields<'a> {
    object: &'a Map<String, Value>,
    problems: &'a mut Vec<String>,
}

impl<'a> Fields<'a> {
    /// Returns a text; `None` if it is absent or a mistake.
    fn text(&mut self, name: &str) -> Option<&'a str> {
        match self.object.get(name) {
            None | Some(Value::Null) => None,
            Some(Value::String(text)) => Some(text),
            Some(_) => wrong(self.problems, format!("redis.{name} must be a string")),
        }
    }

    /// Returns a number; `default` if it is absent or a mistake.
    fn number(&mut self, name: &str, default: u16) -> u16 {
        let number = match self.object.get(name) {
            None | Some(Value::Null) => return default,
            Some(Value::Number(number)) => number.as_u64(),
            Some(Value::String(text)) => text.parse().ok(),
            Some(_) => None,
        };
        let number = number.and_then(|number| u16::try_from(number).ok());
        number
            .or_else(|| wrong(self.problems, format!("redis.{name} must be a whole number to 65535")))
            .unwrap_or(default)
    }

    /// Returns a TLS option: `true`, or an empty object as in ioredis.
    fn tls(&mut self, name: &str) -> bool {
        match self.object.get(name) {
            None | Some(Value::Null | Value::Bool(false)) => false,
            Some(Value::Bool(true)) => true,
            Some(Value::Object(options)) if options.is_empty() => true,
            Some(_) => {
                self.problems.push(format!(
                    "redis.{name} must be true or {{}}; certificates are always checked (SSL_CERT_FILE names those that \
                     are trusted)"
                ));
                true
            }
        }
    }

    fn reject_unknown(&mut self, names: &[&str]) {
        for unknown in self.object.keys().filter(|key| !names.contains(&key.as_str())) {
            self.problems.push(format!(
                "redis.{} is not a known key; the known ones are {}",
                excerpt(unknown),
                names.join(", ")
            ));
        }
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
fn with_options(location: &str, options: &mut Fields<'_>) -> Option<String> {
    options.reject_unknown(&["username", "password", "db", "tls"]);
    let (username, password) = (options.text("username"), options.text("password"));
    let (database, tls) = (options.number("db", 0), options.tls("tls"));
    let base = url(location, options.problems)?;
    let Some(("redis" | "rediss", rest)) = base.split_once("://") else { return Some(base) };
    let scheme = if tls || base.starts_with("rediss") { "rediss" } else { "redis" };
    let credentials = match (rest.contains('@'), password) {
        (false, Some(password)) => format!("{}:{}@", escape(username.unwrap_or_default()), escape(password)),
        _ => String::new(),
    };
    let rest = rest.trim_end_matches('/');
    let path = if rest.contains('/') || rest.contains('?') { String::new() } else { format!("/{database}") };
    Some(format!("{scheme}://{credentials}{rest}{path}"))
}

fn address(fields: &mut Fields<'_>) -> Option<String> {
    fields.reject_unknown(&["url", "uri", "host", "port", "username", "password", "db", "tls"]);
    let (first, second) = (fields.text("url"), fields.text("uri"));
    let host = fields.text("host").unwrap_or("localhost");
    let (port, database) = (fields.number("port", PORT), fields.number("db", 0));
    let user = escape(fields.text("username").unwrap_or_default());
    let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    let (tls, password) = (fields.tls("tls"), fields.text("password"));
    if let Some(text) = first.or(second) {
        return url(text, fields.problems);
    }
    let scheme = if tls { "rediss" } else { "redis" };
    Some(match password {
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

fn sentinel(fields: &mut Fields<'_>) -> Redis {
    fields.reject_unknown(&[
        "sentinels",
        "name",
        "username",
        "password",
        "sentinelPassword",
        "db",
        "tls",
        "enableTLSForSentinelMode",
    ]);
    let sentinels = match fields.object.get("sentinels") {
        Some(Value::Array(all)) if !all.is_empty() => {
            all.iter().filter_map(|one| sentinel_address(one, fields.problems)).collect()
        }
        _ => {
            fields.problems.push("redis.sentinels must be a list with at least one Sentinel".into());
            Vec::new()
        }
    };
    Redis::Sentinel {
        sentinels,
        name: fields.text("name").unwrap_or("mymaster").to_owned(),
        username: fields.text("username").map(str::to_owned),
        password: fields.text("password").map(str::to_owned),
        sentinel_password: fields.text("sentinelPassword").map(str::to_owned),
        database: fields.number("db", 0).into(),
        tls: fields.tls("tls"),
        sentinel_tls: fields.tls("enableTLSForSentinelMode"),
    }
}

fn sentinel_address(value: &Value, problems: &mut Vec<String>) -> Option<(String, u16)> {
    match value {
        Value::Object(object) => {
            let mut fields = Fields { object, problems };
            fields.reject_unknown(&["host", "port"]);
            Some((fields.text("host").unwrap_or("localhost").to_owned(), fields.number("port", SENTINEL_PORT)))
        }
        Value::String(text) => match text.rsplit_once(':') {
            Some((host, port)) => match port.parse() {
                Ok(port) => Some((host.to_owned(), port)),
                Err(_) => wrong(problems, "a Sentinel's port must be a whole number"),
            },
            None => Some((text.clone(), SENTINEL_PORT)),
        },
        _ => wrong(problems, "each of redis.sentinels must be a string or an object with host and port"),
    }
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
            let [error] = &parse(&wrong).unwrap_err()[..] else { panic!("{wrong}") };
            assert!(error.starts_with("redis") && !error.contains("secret:") && !error.contains("secret@"), "{error}");
        }
    }
    #[test]
    fn each_mistake_of_a_redis_is_reported() {
        for (wrong, mistakes) in [
            (json!({ "host": 1, "port": 70_000, "db": "x", "tls": 1, "hosts": [], "prefix": "" }), 6),
            (json!(["http://a", 1, { "port": -1 }, "b"]), 3),
            (json!("http://a,http://b,c"), 2),
            (json!({ "sentinels": ["a:x", { "port": -1, "ip": 0 }, 3], "name": 1, "tls": 1 }), 6),
            (json!(["http://a", { "db": -1, "prefix": "" }]), 3),
        ] {
            let problems = parse(&wrong).unwrap_err();
            assert_eq!(problems.len(), mistakes, "{wrong}: {problems:?}");
        }
    }
}
