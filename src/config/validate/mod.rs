//! What must hold of a whole configuration, whoever wrote it: a file, or a program that built it field by field.

mod endpoints;

use std::{net::IpAddr, time::Duration};

use super::{
    Authentication, Config, ConfigError, Durability, Jwt,
    error::{Problem, shown},
    schema::{self, DAY_MS, Kind},
};

/// Paths below which HTTP answers, and no WebSocket may be. `/openapi.json` and `/admin` are kept for later.
const PATHS_RESERVED: &[&str] = &["/v1", "/healthz", "/readyz", "/metrics", "/openapi.json", "/admin"];

/// Longest `path`, in bytes.
const PATH_BYTES_MAX: usize = 256;
/// Longest `namespace`, in characters; it is part of every stored key.
const NAMESPACE_CHARACTERS_MAX: usize = 64;
/// Shortest and longest key of the API, in characters.
const API_KEY_CHARACTERS: std::ops::RangeInclusive<usize> = 16..=512;
/// Shortest `redisProtocol.password` where others can reach the port, in characters: below, it can be guessed.
const PASSWORD_CHARACTERS_MIN: usize = 16;
/// Keys of the API: each costs time at every request.
const API_KEYS_MAX: usize = 1000;
/// Shortest secret that is accepted, in bytes: below, tokens can be forged by trying.
pub(crate) const SECRET_BYTES_MIN: usize = 16;
/// Shortest secret without a warning, in bytes: what HS256 asks for.
const SECRET_BYTES_ADVISED: usize = 32;

impl Config {
    /// Checks that the whole makes sense, and returns what is allowed and yet worth a line in the log.
    ///
    /// # Errors
    /// Everything that does not hold, each with key, value and bound.
    pub fn validate(&self) -> Result<Vec<String>, ConfigError> {
        let (problems, warnings) = check(self);
        ConfigError::from_problems(problems).map(|()| warnings)
    }
}

/// Problems and warnings.
pub(super) fn check(config: &Config) -> (Vec<Problem>, Vec<String>) {
    let mut checks = Checks::default();
    checks.bounds(config);
    checks.listening(config);
    checks.names(config);
    checks.intervals(config);
    checks.authentication(config);
    checks.outgoing(config);
    checks.sync(config);
    checks.api(config);
    checks.redis(config);
    checks.redis_protocol(config);
    checks.origins(config.origins.as_deref().unwrap_or_default());
    checks.log(&config.log.level);
    (checks.problems, checks.warnings)
}

#[derive(Default)]
struct Checks {
    problems: Vec<Problem>,
    warnings: Vec<String>,
}

impl Checks {
    fn refuse(&mut self, about: &[&'static str], text: impl Into<String>) {
        self.problems.push(Problem::about(about, text));
    }

    fn warn(&mut self, text: impl Into<String>) {
        self.warnings.push(text.into());
    }

    /// The bounds of the table of keys.
    fn bounds(&mut self, config: &Config) {
        let limits = &config.limits;
        let whole = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
        let portal = config.portal.webhook.clone().unwrap_or_default();
        let asked = config.authentication.webhook.clone().unwrap_or_default();
        let jwks = config.authentication.jwt.as_ref().and_then(|jwt| jwt.jwks.clone()).unwrap_or_default();
        let numbers = [
            ("sync.maxMessages", config.sync.max_messages),
            ("sync.maxBytes", config.sync.max_bytes),
            ("sync.maxDevices", whole(config.sync.max_devices)),
            ("heartbeat.maxAttempts", u64::from(config.heartbeat.max_attempts)),
            ("store.cacheBytes", config.store.cache_bytes),
            ("store.maxBytes", config.store.max_bytes),
            ("store.minFree", config.store.min_free),
            ("api.ids", whole(config.api.ids)),
            ("limits.connections", whole(limits.connections)),
            ("limits.connectionsPerAddress", whole(limits.connections_per_address)),
            ("limits.frameBytes", whole(limits.frame_bytes)),
            ("limits.framesPerSecond", u64::from(limits.frames_per_second)),
            ("limits.requestBytes", whole(limits.request_bytes)),
            ("limits.recipients", whole(limits.recipients)),
            ("limits.queue", whole(limits.queue)),
            ("limits.unsyncedMessages", whole(limits.unsynced_messages)),
            ("limits.unsyncedBytes", whole(limits.unsynced_bytes)),
            ("limits.unsentBytes", whole(limits.unsent_bytes)),
            ("portal.webhook.maxEvents", whole(portal.max_events)),
            ("portal.webhook.maxBytes", portal.max_bytes),
            ("portal.webhook.outboxEvents", portal.outbox_events),
            ("portal.webhook.outboxBytes", portal.outbox_bytes),
            ("authentication.webhook.concurrency", whole(asked.concurrency)),
            ("redisProtocol.connections", whole(config.redis_protocol.connections)),
            ("redisProtocol.commandBytes", whole(config.redis_protocol.command_bytes)),
            ("redisProtocol.backlogBytes", whole(config.redis_protocol.backlog_bytes)),
        ];
        let leeway = config.authentication.jwt.as_ref().map_or(Duration::ZERO, |jwt| jwt.leeway);
        let durations = [
            ("sync.redeliveryInterval", config.sync.redelivery_interval),
            ("sync.maxAge", config.sync.max_age),
            ("sync.deviceMaxAge", config.sync.device_max_age),
            ("api.idWindow", config.api.id_window),
            ("heartbeat.interval", config.heartbeat.interval),
            ("reconnect.interval", config.reconnect.interval),
            ("authentication.timeout", config.authentication.timeout),
            ("authentication.jwt.leeway", leeway),
            ("limits.headerTimeout", limits.header_timeout),
            ("limits.idleTimeout", limits.idle_timeout),
            ("limits.writeTimeout", limits.write_timeout),
            ("portal.webhook.undeliveredAfter", portal.undelivered_after),
            ("portal.webhook.timeout", portal.timeout),
            ("portal.webhook.retryMin", portal.retry_min),
            ("portal.webhook.retryMax", portal.retry_max),
            ("authentication.webhook.timeout", asked.timeout),
            ("authentication.jwt.jwks.refreshInterval", jwks.refresh_interval),
            ("authentication.jwt.jwks.retryInterval", jwks.retry_interval),
            ("authentication.jwt.jwks.maxStale", jwks.max_stale),
            ("authentication.jwt.jwks.timeout", jwks.timeout),
        ];
        let durations = durations.map(|(name, duration)| (name, millis(duration)));
        for (name, number) in numbers.into_iter().chain(durations) {
            let key = schema::known(name);
            if let Kind::Integer { min, max } | Kind::Millis { min, max } = key.kind
                && !(min..=max).contains(&number)
            {
                self.refuse(&[name], schema::misfit(key, &number.into()));
            }
        }
        if let Durability::Interval(interval) = config.store.durability
            && !(1..=DAY_MS).contains(&millis(interval))
        {
            let text = format!("store.durability has an interval of {} ms; it must be 1 to {DAY_MS}", millis(interval));
            self.refuse(&["store.durability"], text);
        }
    }

    fn listening(&mut self, config: &Config) {
        self.host("host", &config.host);
        let path = config.path.as_str();
        let wrong = if !path.starts_with('/') {
            Some("must start with '/'".to_owned())
        } else if path.len() > PATH_BYTES_MAX {
            Some(format!("may have at most {PATH_BYTES_MAX} bytes"))
        } else if path.contains(['?', '#']) || !path.bytes().all(|byte| byte.is_ascii_graphic()) {
            Some("must be visible ASCII without spaces, '?' and '#'".to_owned())
        } else {
            reserved(path).map(|reserved| format!("must not be at or under {reserved}, where HTTP answers"))
        };
        if let Some(wrong) = wrong {
            self.refuse(&["path"], format!("path {wrong}, but is \"{}\"", shown(path)));
        }
    }

    fn host(&mut self, name: &'static str, host: &str) {
        if host != "localhost" && host.parse::<IpAddr>().is_err() {
            let host = shown(host);
            self.refuse(
                &[name],
                format!(
                    "{name} must be an IP address or localhost, but is \"{host}\"; use 0.0.0.0 to listen on every \
                     address"
                ),
            );
        }
    }

    fn redis_protocol(&mut self, config: &Config) {
        let section = &config.redis_protocol;
        self.host("redisProtocol.host", &section.host);
        if section.password.as_deref() == Some("") {
            self.refuse(
                &["redisProtocol.password"],
                "redisProtocol.password must not be empty; remove it, or say null, to do without",
            );
        }
        let Some(port) = section.port else { return };
        if section.backlog_bytes / 2 < config.limits.frame_bytes {
            let (backlog, frame) = (section.backlog_bytes, config.limits.frame_bytes);
            self.refuse(&["redisProtocol.backlogBytes", "limits.frameBytes"], format!(
                "redisProtocol.backlogBytes is {backlog} and must be twice limits.frameBytes ({frame}) at least: one large message of \
                 a client would cut every portal"
            ));
        }
        if port != 0 && port == config.port {
            self.refuse(
                &["redisProtocol.port", "port"],
                format!("redisProtocol.port and port are both {port}; give each its own"),
            );
        }
        if !is_loopback(&section.host) && section.password.is_none() {
            let host = shown(&section.host);
            self.refuse(&["redisProtocol.password", "redisProtocol.host"], format!(
                "redisProtocol.host {host} can be reached by others, who could send messages to everybody; set redisProtocol.password, or \
                 redisProtocol.host to 127.0.0.1"
            ));
        }
        let characters = section.password.as_ref().map_or(0, |password| password.chars().count());
        if !is_loopback(&section.host) && (1..PASSWORD_CHARACTERS_MIN).contains(&characters) {
            let host = shown(&section.host);
            self.refuse(&["redisProtocol.password", "redisProtocol.host"], format!(
                "redisProtocol.password has {characters} characters, and redisProtocol.host {host} can be reached by others, who could guess \
                 it; it must have at least {PASSWORD_CHARACTERS_MIN} (`openssl rand -hex 16` makes one), or set redisProtocol.host to \
                 127.0.0.1"
            ));
        }
    }

    fn names(&mut self, config: &Config) {
        if let Some(namespace) = &config.namespace {
            let fits = |c: char| c.is_ascii_alphanumeric() || "_.:-".contains(c);
            if !(1..=NAMESPACE_CHARACTERS_MAX).contains(&namespace.chars().count()) || !namespace.chars().all(fits) {
                self.refuse(&["namespace"], format!(
                    "namespace must have 1 to {NAMESPACE_CHARACTERS_MAX} characters, letters, digits and any of _ . : -, \
                     but is \"{}\"",
                    shown(namespace)
                ));
            }
        }
        let version = config.client.version.as_str();
        if !(1..=64).contains(&version.len()) || !version.bytes().all(|byte| byte.is_ascii_graphic()) {
            let version = shown(version);
            self.refuse(
                &["client.version"],
                format!("client.version must be 1 to 64 visible ASCII characters, as in 1.5.3, but is \"{version}\""),
            );
        }
        let path = config.store.path.to_string_lossy();
        if path.is_empty() || path.contains('\0') {
            self.refuse(&["store.path"], "store.path must name a directory, as in data/store");
        }
    }

    fn intervals(&mut self, config: &Config) {
        let intervals = [
            (["heartbeat.interval", "heartbeat.enabled"], config.heartbeat.enabled, config.heartbeat.interval),
            (["reconnect.interval", "reconnect.enabled"], config.reconnect.enabled, config.reconnect.interval),
        ];
        for (keys, enabled, interval) in intervals {
            if enabled && millis(interval) == 0 {
                let [name, switch] = keys;
                let text = format!("{name} is 0 ms while {switch} is on; it must be 1 to {DAY_MS} ms");
                self.refuse(&[name, switch], text);
            }
        }
    }

    fn sync(&mut self, config: &Config) {
        if !config.sync.enabled {
            return;
        }
        let authentication = &config.authentication;
        if !authentication.store_connected_users {
            self.refuse(
                &["authentication.storeConnectedUsers", "sync.enabled"],
                "sync.enabled needs authentication.storeConnectedUsers, which is false: without it nobody knows who is \
                 away; set it to true, or sync.enabled to false",
            );
        }
        if (1..config.sync.max_bytes).contains(&config.store.max_bytes) {
            self.warn(format!(
                "store.maxBytes is {} and sync.maxBytes {}: one user who stays away can fill the store for all",
                config.store.max_bytes, config.sync.max_bytes
            ));
        }
        if authentication.jwt.is_none() && authentication.webhook.is_none() && !authentication.insecure {
            // A warning and no more: the documented object names no way either, because stock has it in code.
            self.warn(
                "sync.enabled needs a way to tell who a client is; set authentication.jwt (secret, which may be WS_KEY in \
                 the environment, keyFile or jwks) or authentication.webhook, or, to try things out, start with --dev",
            );
        }
    }

    fn authentication(&mut self, config: &Config) {
        let authentication = &config.authentication;
        if let Some(jwt) = &authentication.jwt {
            self.jwt(jwt);
        }
        if authentication.insecure {
            self.insecure(config, authentication);
        }
        if authentication.jwt.is_none() && authentication.webhook.is_none() && !authentication.insecure {
            self.warn("no authentication is configured: clients can connect, but none can say who it is");
        }
    }

    fn insecure(&mut self, config: &Config, authentication: &Authentication) {
        if authentication.jwt.is_some() || authentication.webhook.is_some() {
            let beside = if authentication.jwt.is_some() { "jwt" } else { "webhook" };
            self.warn(format!("authentication.insecure has no effect beside authentication.{beside}; remove it"));
        } else if is_loopback(&config.host) {
            self.warn("authentication.insecure is on: every token is believed; for development only");
        } else if authentication.insecure_public {
            let host = shown(&config.host);
            self.warn(format!(
                "authentication.insecure and insecurePublic are on: whoever reaches {host} can read anybody's messages"
            ));
        } else {
            let host = shown(&config.host);
            self.refuse(&["authentication.insecure", "host", "authentication.insecurePublic"], format!(
                "authentication.insecure believes every token, and host {host} can be reached by others; set host to \
                 127.0.0.1, or configure authentication.jwt, or say authentication.insecurePublic: true as well"
            ));
        }
    }

    fn jwt(&mut self, jwt: &Jwt) {
        const SECRET: &str = "authentication.jwt.secret";
        const KEY_FILE: &str = "authentication.jwt.keyFile";
        const JWKS: &str = "authentication.jwt.jwks.url";
        match (&jwt.secret, &jwt.key_file, &jwt.jwks) {
            (Some(_), Some(_), None) => self.refuse(
                &[KEY_FILE, SECRET],
                "authentication.jwt has both a secret (or WS_KEY in the environment) and a keyFile; keep one of them",
            ),
            (Some(_), _, Some(_)) => self.refuse(
                &[JWKS, SECRET],
                "authentication.jwt has both a secret (or WS_KEY in the environment) and jwks; keep one of them",
            ),
            (None, Some(_), Some(_)) => {
                self.refuse(&[JWKS, KEY_FILE], "authentication.jwt has both a keyFile and jwks; keep one of them");
            }
            (None, None, None) => self.refuse(
                &[SECRET, KEY_FILE],
                "authentication.jwt needs a secret (or WS_KEY in the environment), a keyFile or jwks to check tokens with",
            ),
            (Some(secret), None, None) => self.secret(secret),
            (None, Some(path), None) if path.as_os_str().is_empty() => {
                self.refuse(&[KEY_FILE], "authentication.jwt.keyFile must name a PEM file with a public key");
            }
            (None, Some(_), None) | (None, None, Some(_)) => {}
        }
        // With several or none it is unknown which algorithms would fit.
        let ways = [jwt.secret.is_some(), jwt.key_file.is_some(), jwt.jwks.is_some()];
        if ways.into_iter().filter(|there| *there).count() == 1 {
            self.algorithms(jwt);
        }
        let texts = [
            ("authentication.jwt.idClaim", &jwt.id_claim),
            ("authentication.jwt.userClaim", &jwt.user_claim),
            ("authentication.jwt.issuer", &jwt.issuer),
            ("authentication.jwt.audience", &jwt.audience),
        ];
        for (name, text) in texts {
            if text.as_deref() == Some("") {
                self.refuse(&[name], format!("{name} must not be empty; remove it, or say null, to do without"));
            }
        }
    }

    fn secret(&mut self, secret: &str) {
        let bytes = secret.len();
        if bytes < SECRET_BYTES_MIN {
            self.refuse(
                &["authentication.jwt.secret"],
                format!(
                    "authentication.jwt.secret has {bytes} bytes and must have at least {SECRET_BYTES_MIN}, better \
                 {SECRET_BYTES_ADVISED}; `openssl rand -hex 32` makes one"
                ),
            );
        } else if bytes < SECRET_BYTES_ADVISED {
            self.warn(format!(
                "authentication.jwt.secret has {bytes} bytes; {SECRET_BYTES_ADVISED} or more are advised"
            ));
        }
    }

    fn algorithms(&mut self, jwt: &Jwt) {
        const NAME: &str = "authentication.jwt.algorithms";
        const WITH_SECRET: &[&str] = &["HS256", "HS384", "HS512"];
        const WITH_KEY: &[&str] = &["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA"];
        let (fitting, kind) = match (&jwt.secret, &jwt.jwks) {
            (Some(_), _) => (WITH_SECRET, "secret"),
            (None, Some(_)) => (WITH_KEY, "JWKS"),
            (None, None) => (WITH_KEY, "keyFile"),
        };
        let fitting_names = fitting.join(", ");
        if jwt.algorithms.is_empty() {
            self.refuse(&[NAME], format!("{NAME} must name what is accepted with a {kind}: some of {fitting_names}"));
        }
        for algorithm in &jwt.algorithms {
            if !fitting.contains(&algorithm.as_str()) {
                let algorithm = shown(algorithm);
                self.refuse(
                    &[NAME],
                    format!("{NAME} has \"{algorithm}\", which does not go with a {kind}; it may have {fitting_names}"),
                );
            }
        }
    }

    /// What the embedded store alone has.
    fn redis(&mut self, config: &Config) {
        if config.redis.is_some() && config.portal.webhook.is_some() {
            self.refuse(
                &["portal.webhook", "redis"],
                "portal.webhook needs the embedded store, which keeps what is to be told; remove it, or redis",
            );
        }
    }

    fn api(&mut self, config: &Config) {
        let keys = &config.api.keys;
        if keys.is_empty() {
            self.warn("api.keys is empty: the HTTP API refuses everyone, and no backend can dispatch");
        }
        if keys.len() > API_KEYS_MAX {
            self.refuse(&["api.keys"], format!("api.keys has {} keys; it may have {API_KEYS_MAX}", keys.len()));
        }
        for (index, key) in keys.iter().enumerate() {
            let characters = key.chars().count();
            let (least, most) = API_KEY_CHARACTERS.into_inner();
            if !API_KEY_CHARACTERS.contains(&characters) {
                self.refuse(&["api.keys"], format!(
                    "api.keys[{index}] has {characters} characters and must have {least} to {most}; `openssl rand -hex 16` \
                     makes one"
                ));
            } else if !key.bytes().all(|byte| byte.is_ascii_graphic()) {
                // It travels in an HTTP header, where nothing else arrives unharmed.
                self.refuse(
                    &["api.keys"],
                    format!("api.keys[{index}] must be visible ASCII without spaces; `openssl rand -hex 16` makes one"),
                );
            }
        }
    }

    fn origins(&mut self, origins: &[String]) {
        for (index, origin) in origins.iter().enumerate() {
            let fits = origin == "null"
                || origin.split_once("://").is_some_and(|(scheme, authority)| {
                    !scheme.is_empty()
                        && !authority.is_empty()
                        && !authority.contains(['/', '?', '#', '@', '*'])
                        && origin.bytes().all(|byte| byte.is_ascii_graphic() && !byte.is_ascii_uppercase())
                });
            if !fits {
                let origin = shown(origin);
                self.refuse(&["origins"], format!(
                    "origins[{index}] must be an origin as browsers send it, like https://example.org or \
                     http://localhost:8080, in lower case and without a path, but is \"{origin}\"; leave origins out to \
                     allow any"
                ));
            }
        }
    }

    /// A misspelt level would otherwise be taken for the name of a module, and log everything or nothing.
    fn log(&mut self, filter: &str) {
        const LEVELS: &[&str] = &["off", "error", "warn", "info", "debug", "trace"];
        let is_level = |text: &str| LEVELS.iter().any(|level| text.eq_ignore_ascii_case(level));
        let fits = |directive: &str| {
            let (target, level) = directive.rsplit_once('=').map_or((None, directive), |(t, l)| (Some(t), l));
            target != Some("") && is_level(level)
        };
        if filter.len() > 1024 || !filter.split(',').all(|directive| fits(directive.trim())) {
            self.refuse(&["log.level"], format!(
                "log.level must be off, error, warn, info, debug or trace, or a list like info,mesa=debug, but is \"{}\"",
                shown(filter)
            ));
        }
    }
}

/// The reserved path at or under which `path` is.
fn reserved(path: &str) -> Option<&'static str> {
    PATHS_RESERVED
        .iter()
        .copied()
        .find(|reserved| path.strip_prefix(reserved).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')))
}

/// Whether only this machine can reach `host`.
fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback())
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
