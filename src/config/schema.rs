//! Lists all keys with environment variables, type and bounds.

use std::fmt;

use serde_json::Value;

use super::error::excerpt;

/// One day, in milliseconds: the longest interval.
pub(super) const DAY_MS: u64 = 24 * 60 * 60 * 1000;

/// Longest age, in milliseconds: ten years.
const AGE_MS_MAX: u64 = 3652 * DAY_MS;

/// Largest size on disk, in bytes: 1 PiB.
const DISK_BYTES_MAX: u64 = 1 << 50;

/// One key of the configuration.
pub(super) struct Key {
    /// Dotted name, as documented.
    pub name: &'static str,
    /// Environment variables that set it.
    pub env: &'static [&'static str],
    /// Type and bounds of its value.
    pub kind: Kind,
    /// Whether its value is never shown.
    pub secret: bool,
}

/// Type of a value, with its bounds.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    Bool,
    Integer {
        min: u64,
        max: u64,
    },
    Millis {
        min: u64,
        max: u64,
    },
    Text,
    Texts,
    Choice(&'static [&'static str]),
    Durability,
    /// `redis`: `config::redis` checks its structure.
    Redis,
    /// `tls.certificates`
    Certificates,
    /// `redisProtocol.tls`
    RedisTls,
    /// Has an effect only where the server is a library of an application.
    Library,
}

impl fmt::Display for Kind {
    /// Writes the expected values, to follow "must be".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bool => f.write_str("true or false"),
            Self::Integer { min, max } => write!(f, "a whole number from {min} to {max}"),
            Self::Millis { min, max } => write!(f, "a whole number of milliseconds from {min} to {max}"),
            Self::Text => f.write_str("a string"),
            Self::Texts => f.write_str("a list of strings"),
            Self::Choice(names) => write!(f, "'{}'", names.join("' or '")),
            Self::Durability => {
                write!(f, "'always', 'never' or {{ interval: N }} with N milliseconds from 1 to {DAY_MS}")
            }
            Self::Redis => f.write_str("a string, an object or a list"),
            Self::Certificates => f.write_str("a list of { cert: 'FILE', key: 'FILE' }"),
            Self::RedisTls => f.write_str("true, false or { cert: 'FILE', key: 'FILE' }"),
            Self::Library => f.write_str("left out"),
        }
    }
}

const fn key(name: &'static str, env: &'static [&'static str], kind: Kind) -> Key {
    Key { name, env, kind, secret: false }
}

const fn integer(min: u64, max: u64) -> Kind {
    Kind::Integer { min, max }
}

const fn millis(min: u64, max: u64) -> Kind {
    Kind::Millis { min, max }
}

/// Names of [`super::Confirmation`].
pub(super) const CONFIRMATIONS: &[&str] = &["receipt", "write"];
/// Names of [`super::Overflow`].
pub(super) const OVERFLOWS: &[&str] = &["reject", "dropOldest"];
/// Names of [`super::LogFormat`].
pub(super) const LOG_FORMATS: &[&str] = &["text", "json"];
/// Names of [`super::ClientCertificates`].
pub(super) const CLIENT_CERTIFICATES: &[&str] = &["required", "optional"];

/// Events that `portal.webhook.events` may name.
pub(super) const WEBHOOK_EVENTS: &[&str] =
    &["connection", "authentication", "message", "disconnection", "undelivered", "delivered", "expired", "dropped"];

/// All keys. Environment names without `MESA_` are those of the original's gateway.
pub(super) const KEYS: &[Key] = &[
    key("host", &["MESA_HOST"], Kind::Text),
    key("port", &["MESA_PORT"], integer(0, 65_535)),
    key("path", &["MESA_PATH"], Kind::Text),
    key("namespace", &["MESA_NAMESPACE"], Kind::Text),
    Key { secret: true, ..key("redis", &["REDIS_URI", "REDIS_SENTINELS"], Kind::Redis) },
    key("client.enforceEqualVersions", &["ENFORCE_EQUAL_VERSIONS"], Kind::Bool),
    key("client.version", &["MESA_CLIENT_VERSION"], Kind::Text),
    key("options.storeMessages", &["STORE_MESSAGES"], Kind::Bool),
    key("sync.enabled", &["SYNC_ENABLED"], Kind::Bool),
    key("sync.redeliveryInterval", &["SYNC_REDELIVERY_INTERVAL"], millis(0, DAY_MS)),
    key("sync.confirmation", &["MESA_SYNC_CONFIRMATION"], Kind::Choice(CONFIRMATIONS)),
    key("sync.maxAge", &["MESA_SYNC_MAX_AGE"], millis(0, AGE_MS_MAX)),
    key("sync.maxMessages", &["MESA_SYNC_MAX_MESSAGES"], integer(1, 1_000_000_000)),
    // A quota below the size of one message would reject every large message.
    key("sync.maxBytes", &["MESA_SYNC_MAX_BYTES"], integer(64 << 10, DISK_BYTES_MAX)),
    key("sync.overflow", &["MESA_SYNC_OVERFLOW"], Kind::Choice(OVERFLOWS)),
    key("sync.deviceMaxAge", &["MESA_SYNC_DEVICE_MAX_AGE"], millis(0, AGE_MS_MAX)),
    key("sync.maxDevices", &["MESA_SYNC_MAX_DEVICES"], integer(1, 128)),
    key("portal.enabled", &["PORTALS_ENABLED"], Kind::Bool),
    key("portal.distributeLoad", &["PORTAL_DISTRIBUTE_LOAD"], Kind::Bool),
    Key { secret: true, ..key("portal.webhook.url", &["MESA_WEBHOOK_URL"], Kind::Text) },
    Key { secret: true, ..key("portal.webhook.secret", &["MESA_WEBHOOK_SECRET"], Kind::Text) },
    key("portal.webhook.events", &["MESA_WEBHOOK_EVENTS"], Kind::Texts),
    key("portal.webhook.undeliveredAfter", &["MESA_WEBHOOK_UNDELIVERED_AFTER"], millis(100, 7 * DAY_MS)),
    key("portal.webhook.timeout", &["MESA_WEBHOOK_TIMEOUT"], millis(100, 5 * 60 * 1000)),
    key("portal.webhook.retryMin", &["MESA_WEBHOOK_RETRY_MIN"], millis(10, 60 * 60 * 1000)),
    key("portal.webhook.retryMax", &["MESA_WEBHOOK_RETRY_MAX"], millis(10, 60 * 60 * 1000)),
    key("portal.webhook.maxEvents", &["MESA_WEBHOOK_MAX_EVENTS"], integer(1, 10_000)),
    key("portal.webhook.maxBytes", &["MESA_WEBHOOK_MAX_BYTES"], integer(1 << 10, 64 << 20)),
    // Each stored event uses memory.
    key("portal.webhook.outboxEvents", &["MESA_WEBHOOK_OUTBOX_EVENTS"], integer(1, 100_000_000)),
    key("portal.webhook.outboxBytes", &["MESA_WEBHOOK_OUTBOX_BYTES"], integer(1 << 10, DISK_BYTES_MAX)),
    key("portal.webhook.allowPrivate", &["MESA_WEBHOOK_ALLOW_PRIVATE"], Kind::Bool),
    key("heartbeat.enabled", &["HEARTBEATS_ENABLED"], Kind::Bool),
    key("heartbeat.interval", &["HEARTBEAT_INTERVAL"], millis(0, DAY_MS)),
    key("heartbeat.maxAttempts", &["HEARTBEAT_MAX_ATTEMPTS"], integer(1, 100)),
    key("reconnect.enabled", &["RECONNECTS_ENABLED"], Kind::Bool),
    key("reconnect.interval", &["RECONNECT_INTERVAL"], millis(0, DAY_MS)),
    key("authentication.timeout", &["AUTH_TIMEOUT"], millis(1, DAY_MS)),
    key("authentication.required", &["AUTH_REQUIRED"], Kind::Bool),
    key("authentication.sendUserObject", &["AUTH_SEND_USER_OBJECT"], Kind::Bool),
    key("authentication.disconnectOnFail", &["AUTH_DISCONNECT_ON_FAIL"], Kind::Bool),
    key("authentication.storeConnectedUsers", &["AUTH_STORE_CONNECTED_USERS"], Kind::Bool),
    key("authentication.insecure", &["MESA_INSECURE_AUTH"], Kind::Bool),
    key("authentication.insecurePublic", &["MESA_INSECURE_PUBLIC"], Kind::Bool),
    Key { secret: true, ..key("authentication.jwt.secret", &["WS_KEY"], Kind::Text) },
    key("authentication.jwt.keyFile", &["MESA_JWT_KEY_FILE"], Kind::Text),
    key("authentication.jwt.jwks.url", &["MESA_JWT_JWKS_URL"], Kind::Text),
    key("authentication.jwt.jwks.refreshInterval", &["MESA_JWT_JWKS_REFRESH_INTERVAL"], millis(1000, 7 * DAY_MS)),
    key("authentication.jwt.jwks.retryInterval", &["MESA_JWT_JWKS_RETRY_INTERVAL"], millis(100, DAY_MS)),
    key("authentication.jwt.jwks.maxStale", &["MESA_JWT_JWKS_MAX_STALE"], millis(1000, 30 * DAY_MS)),
    key("authentication.jwt.jwks.timeout", &["MESA_JWT_JWKS_TIMEOUT"], millis(100, 60 * 1000)),
    key("authentication.jwt.jwks.allowPrivate", &["MESA_JWT_JWKS_ALLOW_PRIVATE"], Kind::Bool),
    key("authentication.jwt.algorithms", &["MESA_JWT_ALGORITHMS"], Kind::Texts),
    key("authentication.jwt.idClaim", &["MESA_JWT_ID_CLAIM"], Kind::Text),
    key("authentication.jwt.userClaim", &["MESA_JWT_USER_CLAIM"], Kind::Text),
    key("authentication.jwt.issuer", &["MESA_JWT_ISSUER"], Kind::Text),
    key("authentication.jwt.audience", &["MESA_JWT_AUDIENCE"], Kind::Text),
    key("authentication.jwt.leeway", &["MESA_JWT_LEEWAY"], millis(0, 60 * 60 * 1000)),
    Key { secret: true, ..key("authentication.webhook.url", &["MESA_AUTH_WEBHOOK_URL"], Kind::Text) },
    Key { secret: true, ..key("authentication.webhook.secret", &["MESA_AUTH_WEBHOOK_SECRET"], Kind::Text) },
    key("authentication.webhook.timeout", &["MESA_AUTH_WEBHOOK_TIMEOUT"], millis(100, 5 * 60 * 1000)),
    key("authentication.webhook.concurrency", &["MESA_AUTH_WEBHOOK_CONCURRENCY"], integer(1, 10_000)),
    key("authentication.webhook.allowPrivate", &["MESA_AUTH_WEBHOOK_ALLOW_PRIVATE"], Kind::Bool),
    key("gracefullyExit", &["MESA_GRACEFULLY_EXIT"], Kind::Bool),
    key("store.path", &["MESA_STORE_PATH"], Kind::Text),
    key("store.durability", &["MESA_STORE_DURABILITY"], Kind::Durability),
    key("store.cacheBytes", &["MESA_STORE_CACHE_BYTES"], integer(1 << 20, 1 << 40)),
    key("store.maxBytes", &["MESA_STORE_MAX_BYTES"], integer(0, DISK_BYTES_MAX)),
    key("store.minFree", &["MESA_STORE_MIN_FREE"], integer(0, DISK_BYTES_MAX)),
    key("store.walBytes", &["MESA_STORE_WAL_BYTES"], integer(16 << 20, 1 << 40)),
    key("store.memoryBytes", &["MESA_STORE_MEMORY_BYTES"], integer(1 << 20, 1 << 40)),
    Key { secret: true, ..key("api.keys", &["MESA_API_KEYS"], Kind::Texts) },
    key("api.idWindow", &["MESA_API_ID_WINDOW"], millis(1000, 7 * DAY_MS)),
    // Each stored id uses memory.
    key("api.ids", &["MESA_API_IDS"], integer(1, 100_000_000)),
    key("api.corsOrigins", &["MESA_API_CORS_ORIGINS"], Kind::Texts),
    key("origins", &["MESA_ORIGINS"], Kind::Texts),
    key("trustedProxies", &["MESA_TRUSTED_PROXIES"], Kind::Texts),
    key("proxyProtocol", &["MESA_PROXY_PROTOCOL"], Kind::Bool),
    key("tls.cert", &["MESA_TLS_CERT"], Kind::Text),
    key("tls.key", &["MESA_TLS_KEY"], Kind::Text),
    key("tls.certificates", &[], Kind::Certificates),
    key("tls.clientCa", &["MESA_TLS_CLIENT_CA"], Kind::Text),
    key("tls.clientCertificates", &["MESA_TLS_CLIENT_CERTIFICATES"], Kind::Choice(CLIENT_CERTIFICATES)),
    key("limits.connections", &["MESA_LIMITS_CONNECTIONS"], integer(1, 10_000_000)),
    key("limits.connectionsPerAddress", &["MESA_LIMITS_CONNECTIONS_PER_ADDRESS"], integer(0, 10_000_000)),
    key("limits.headerTimeout", &["MESA_LIMITS_HEADER_TIMEOUT"], millis(100, 10 * 60 * 1000)),
    key("limits.idleTimeout", &["MESA_LIMITS_IDLE_TIMEOUT"], millis(100, 60 * 60 * 1000)),
    key("limits.frameBytes", &["MESA_LIMITS_FRAME_BYTES"], integer(1 << 10, 16 << 20)),
    key("limits.framesPerSecond", &["MESA_LIMITS_FRAMES_PER_SECOND"], integer(1, 1_000_000)),
    key("limits.requestBytes", &["MESA_LIMITS_REQUEST_BYTES"], integer(1 << 10, 1 << 30)),
    key("limits.recipients", &["MESA_LIMITS_RECIPIENTS"], integer(1, 1_000_000)),
    key("limits.queue", &["MESA_LIMITS_QUEUE"], integer(1, 1_000_000)),
    key("limits.unsyncedMessages", &["MESA_LIMITS_UNSYNCED_MESSAGES"], integer(1, 1_000_000)),
    // A limit below the size of one message would drop every large message.
    key("limits.unsyncedBytes", &["MESA_LIMITS_UNSYNCED_BYTES"], integer(64 << 10, 1 << 30)),
    key("limits.unsentBytes", &["MESA_LIMITS_UNSENT_BYTES"], integer(4 << 10, 1 << 30)),
    key("limits.writeTimeout", &["MESA_LIMITS_WRITE_TIMEOUT"], millis(1000, 60 * 60 * 1000)),
    key("redisProtocol.port", &["MESA_REDIS_PROTOCOL_PORT"], integer(0, 65_535)),
    key("redisProtocol.host", &["MESA_REDIS_PROTOCOL_HOST"], Kind::Text),
    Key { secret: true, ..key("redisProtocol.password", &["MESA_REDIS_PROTOCOL_PASSWORD"], Kind::Text) },
    key("redisProtocol.tls", &["MESA_REDIS_PROTOCOL_TLS"], Kind::RedisTls),
    key("redisProtocol.connections", &["MESA_REDIS_PROTOCOL_CONNECTIONS"], integer(1, 1_000_000)),
    // A Dispatcher of the original reads a user's array of pending messages, and writes it back with one more message.
    // A lower limit would disconnect it.
    key("redisProtocol.commandBytes", &["MESA_REDIS_PROTOCOL_COMMAND_BYTES"], integer(512 << 10, 1 << 30)),
    // A limit below the size of one event would disconnect every subscriber.
    key("redisProtocol.backlogBytes", &["MESA_REDIS_PROTOCOL_BACKLOG_BYTES"], integer(128 << 10, 1 << 30)),
    Key { secret: true, ..key("admin.password", &["MESA_ADMIN_PASSWORD"], Kind::Text) },
    key("log.level", &["MESA_LOG_LEVEL"], Kind::Text),
    key("log.format", &["MESA_LOG_FORMAT"], Kind::Choice(LOG_FORMATS)),
    key("server", &[], Kind::Library),
    key("beforeExit", &[], Kind::Library),
];

/// Returns the key with a name.
pub(super) fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}

/// Returns the key with a name that must be in the table.
pub(super) fn expect_key(name: &str) -> &'static Key {
    // All names are literals in `config`. A test reads each of them.
    find(name).expect("a key of the table")
}

/// Returns whether `name` is a group of keys.
pub(super) fn is_section(name: &str) -> bool {
    sections().any(|section| section == name)
}

/// Lists all groups, some of them more than once.
fn sections() -> impl Iterator<Item = &'static str> {
    KEYS.iter().flat_map(|key| key.name.match_indices('.').map(|(dot, _)| &key.name[..dot]))
}

/// Returns the error for an unknown key.
pub(super) fn unknown_key(name: &str) -> String {
    match nearest(name) {
        Some(known) => format!("unknown key `{}`; the nearest known one is `{known}`", excerpt(name)),
        None => format!("unknown key `{}`; remove it", excerpt(name)),
    }
}

/// Longest name that is compared with known ones, in bytes. A comparison costs the product of the lengths. No key is
/// nearly this long.
const MISSPELT_BYTES_MAX: usize = 100;

/// Returns the known key or group nearest to a misspelt name.
fn nearest(name: &str) -> Option<&'static str> {
    if name.len() > MISSPELT_BYTES_MAX {
        return None;
    }
    let name = name.to_lowercase();
    KEYS.iter()
        .map(|key| key.name)
        .chain(sections())
        .filter_map(|candidate| Some((distance(&name, &candidate.to_lowercase())?, candidate)))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Returns the edit distance of two dotted names; `None` if it is too large for a misspelling.
fn distance(name: &str, candidate: &str) -> Option<usize> {
    let (group, leaf) = name.rsplit_once('.').unwrap_or(("", name));
    let (candidate_group, candidate_leaf) = candidate.rsplit_once('.').unwrap_or(("", candidate));
    // Within a group only the last words are compared, because the common group would make any two keys similar. The
    // right word in a wrong group counts as two edits.
    let (edits, length) = if group == candidate_group {
        (strsim::osa_distance(leaf, candidate_leaf), leaf.len().max(candidate_leaf.len()))
    } else if leaf == candidate_leaf && leaf != "enabled" {
        return Some(2);
    } else {
        (strsim::osa_distance(name, candidate), name.len().max(candidate.len()))
    };
    (edits * 3 <= length).then_some(edits)
}

/// Returns the environment variable nearest to a misspelt name.
pub(super) fn nearest_env(name: &str) -> Option<&'static str> {
    if name.len() > MISSPELT_BYTES_MAX {
        return None;
    }
    KEYS.iter()
        .flat_map(|key| key.env)
        .map(|known| (strsim::osa_distance(name, known), *known))
        .filter(|(edits, known)| edits * 4 <= known.len())
        .min()
        .map(|(_, known)| known)
}

/// Returns the webhook event nearest to a misspelt name.
pub(super) fn nearest_event(name: &str) -> Option<&'static str> {
    if name.len() > MISSPELT_BYTES_MAX {
        return None;
    }
    let name = name.to_lowercase();
    let distances = WEBHOOK_EVENTS.iter().map(|known| (strsim::osa_distance(&name, known), *known));
    distances.filter(|(edits, known)| edits * 3 <= known.len()).min().map(|(_, known)| known)
}

/// Describes an unexpected value, to follow "but is".
pub(super) fn describe(value: &Value, secret: bool) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Bool(_) | Value::Number(_) => value.to_string(),
        Value::String(text) if secret => format!("a string of {} characters", text.chars().count()),
        Value::String(text) => format!("\"{}\"", excerpt(text)),
        Value::Array(items) if items.iter().all(Value::is_string) => "a list of strings".into(),
        Value::Array(_) => "a list with values that are not strings".into(),
        Value::Object(_) => "an object".into(),
    }
}

/// Most wrong items of one list that are reported one by one.
const ITEMS_MAX: usize = 20;

/// Returns the errors for a value of a wrong type or out of bounds: one for each wrong item of a list.
pub(super) fn invalid_values(key: &Key, value: &Value) -> Vec<String> {
    let (expected, fits): (_, fn(&Value) -> bool) = match key.kind {
        Kind::Texts => ("a string", Value::is_string),
        Kind::Certificates => ("{ cert: 'FILE', key: 'FILE' }", is_certificate),
        _ => return vec![invalid_value(key, value)],
    };
    let Some(items) = value.as_array() else { return vec![invalid_value(key, value)] };
    let wrong = items.iter().enumerate().filter(|(_, item)| !fits(item));
    let describe_item = |(index, item): (usize, &Value)| {
        format!("{}[{index}] must be {expected}, but is {}", key.name, describe(item, key.secret))
    };
    let mut errors: Vec<_> = wrong.clone().take(ITEMS_MAX).map(describe_item).collect();
    let more = wrong.count().saturating_sub(ITEMS_MAX);
    if more > 0 {
        errors.push(format!("{} has {more} more items that are wrong", key.name));
    }
    errors
}

/// Reports whether a value is `{ cert, key }` with two strings.
pub(super) fn is_certificate(value: &Value) -> bool {
    let is_text = |map: &serde_json::Map<_, _>, name: &str| map.get(name).is_some_and(Value::is_string);
    value.as_object().is_some_and(|map| map.len() == 2 && is_text(map, "cert") && is_text(map, "key"))
}

/// Returns the error for a value of a wrong type or out of bounds.
pub(super) fn invalid_value(key: &Key, value: &Value) -> String {
    let found = match value {
        Value::Object(map) if matches!(key.kind, Kind::Durability) => match map.get("interval") {
            Some(interval) if map.len() == 1 => format!("{{ interval: {} }}", describe(interval, key.secret)),
            _ => "an object with other keys".into(),
        },
        value => describe(value, key.secret),
    };
    format!("{} must be {}, but is {found}", key.name, key.kind)
}
