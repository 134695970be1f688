//! Validates a complete [`Config`], loaded from sources or built by a program.

mod endpoints;
mod jwt;
mod proxies;
mod tls;

use std::net::IpAddr;

use serde_json::Value;

use super::{
    Authentication, Config, ConfigError, Durability,
    error::{Problem, excerpt},
    schema::{self, DAY_MS, Kind},
};
use crate::util::millis::millis;

/// Paths of the HTTP API and of the admin page. The WebSocket cannot be at or below them.
const PATHS_RESERVED: &[&str] =
    &["/v1", "/healthz", "/readyz", "/metrics", "/client.js", "/client.d.ts", "/openapi.json", "/docs", "/admin"];

/// Longest `path`, in bytes.
const PATH_BYTES_MAX: usize = 256;
/// Longest `namespace`, in characters. In Redis it is part of every key.
const NAMESPACE_CHARACTERS_MAX: usize = 64;
/// Shortest and longest API key, in characters.
const API_KEY_CHARACTERS: std::ops::RangeInclusive<usize> = 16..=512;
/// Shortest `redisProtocol.password` or `admin.password` on an address that is not loopback, in characters. A shorter one
/// can be guessed.
const PASSWORD_CHARACTERS_MIN: usize = 16;
/// Longest `admin.password`, in characters. A longer one would not fit into the request of the login.
const PASSWORD_CHARACTERS_MAX: usize = 512;
/// Most API keys. Each costs time with every request.
const API_KEYS_MAX: usize = 1000;
/// Shortest secret that is accepted, in bytes. With a shorter one, tokens can be forged by brute force.
pub(crate) const SECRET_BYTES_MIN: usize = 16;

impl Config {
    /// Validates the configuration, and returns warnings for the log.
    ///
    /// # Errors
    /// All mistakes, each with key, value and bound.
    pub fn validate(&self) -> Result<Vec<String>, ConfigError> {
        let (problems, warnings) = check(self);
        ConfigError::from_problems(problems).map(|()| warnings)
    }
}

/// Checks the configuration, and returns problems and warnings.
pub(super) fn check(config: &Config) -> (Vec<Problem>, Vec<String>) {
    let mut checks = Checks::default();
    checks.bounds(config);
    checks.address(config);
    checks.names(config);
    checks.intervals(config);
    checks.authentication(config);
    checks.endpoints(config);
    checks.tls(config);
    checks.proxies(config);
    checks.sync(config);
    checks.api(config);
    checks.redis(config);
    checks.redis_protocol(config);
    checks.admin(config);
    checks.cors_origins(&config.api.cors_origins);
    checks.origins(config.origins.as_deref().unwrap_or_default());
    checks.log(&config.log.level);
    (checks.problems, checks.warnings)
}

#[derive(Default)]
pub(super) struct Checks {
    pub(super) problems: Vec<Problem>,
    warnings: Vec<String>,
}

impl Checks {
    fn reject(&mut self, about: &[&'static str], text: impl Into<String>) {
        self.problems.push(Problem::about(about, text));
    }

    /// Warns of a secret that was copied from the documentation.
    fn public_secret(&mut self, name: &str, secret: &str) {
        if secret.contains("openssl rand") {
            self.warn(format!(
                "{name} is the sample of the documentation, which is public; replace it by the output of `openssl rand -hex 32`"
            ));
        }
    }

    fn warn(&mut self, text: impl Into<String>) {
        self.warnings.push(text.into());
    }

    /// Checks the bounds in the table of keys.
    fn bounds(&mut self, config: &Config) {
        self.numbers(&config.effective());
        if let Durability::Interval(interval) = config.store.durability
            && !(1..=DAY_MS).contains(&millis(interval))
        {
            let text = format!("store.durability has an interval of {} ms; it must be 1 to {DAY_MS}", millis(interval));
            self.reject(&["store.durability"], text);
        }
    }

    /// Checks every number of a rendered configuration, so that none can be forgotten here.
    ///
    /// A test checks that the rendering has every key.
    pub(super) fn numbers(&mut self, effective: &Value) {
        for key in schema::KEYS {
            let number = effective.pointer(&format!("/{}", key.name.replace('.', "/"))).and_then(Value::as_u64);
            if let (Kind::Integer { min, max } | Kind::Millis { min, max }, Some(number)) = (key.kind, number)
                && !(min..=max).contains(&number)
            {
                self.reject(&[key.name], schema::invalid_value(key, &number.into()));
            }
        }
    }

    fn address(&mut self, config: &Config) {
        self.host("host", &config.host);
        let path = config.path.as_str();
        let wrong = if !path.starts_with('/') {
            Some("must start with '/'".to_owned())
        } else if path.len() > PATH_BYTES_MAX {
            Some(format!("may have at most {PATH_BYTES_MAX} bytes"))
        } else if path.contains(['?', '#']) || !path.bytes().all(|byte| byte.is_ascii_graphic()) {
            Some("must be visible ASCII without spaces, '?' and '#'".to_owned())
        } else {
            reserved(path).map(|reserved| {
                format!("must not be at or under {reserved}, which the HTTP API uses; choose another path")
            })
        };
        if let Some(wrong) = wrong {
            self.reject(&["path"], format!("path {wrong}, but is \"{}\"", excerpt(path)));
        }
    }

    fn host(&mut self, name: &'static str, host: &str) {
        if host != "localhost" && host.parse::<IpAddr>().is_err() {
            let host = excerpt(host);
            self.reject(
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
            self.reject(
                &["redisProtocol.password"],
                "redisProtocol.password must not be empty; remove it, or set it to null, for no password",
            );
        }
        let Some(port) = section.port else { return };
        if section.backlog_bytes / 2 < config.limits.frame_bytes {
            let (backlog, frame) = (section.backlog_bytes, config.limits.frame_bytes);
            self.reject(&["redisProtocol.backlogBytes", "limits.frameBytes"], format!(
                "redisProtocol.backlogBytes is {backlog} and must be at least twice limits.frameBytes ({frame}): one large \
                 message of a client would disconnect every portal"
            ));
        }
        if port != 0 && port == config.port {
            self.reject(
                &["redisProtocol.port", "port"],
                format!("redisProtocol.port and port are both {port}; choose two ports"),
            );
        }
        if !is_loopback(&section.host) && section.password.is_none() {
            let host = excerpt(&section.host);
            self.reject(&["redisProtocol.password", "redisProtocol.host"], format!(
                "redisProtocol.host {host} is reachable from other machines, which could send messages to every user; set \
                 redisProtocol.password, or redisProtocol.host to 127.0.0.1"
            ));
        }
        let characters = section.password.as_ref().map_or(0, |password| password.chars().count());
        if !is_loopback(&section.host) && (1..PASSWORD_CHARACTERS_MIN).contains(&characters) {
            let host = excerpt(&section.host);
            self.reject(&["redisProtocol.password", "redisProtocol.host"], format!(
                "redisProtocol.password has {characters} characters, and redisProtocol.host {host} is reachable from other \
                 machines, which could guess it; set one of at least {PASSWORD_CHARACTERS_MIN} (`openssl rand -hex 16` \
                 generates one), or set redisProtocol.host to 127.0.0.1"
            ));
        }
    }

    fn admin(&mut self, config: &Config) {
        let Some(password) = &config.admin.password else { return };
        let characters = password.chars().count();
        if characters == 0 {
            self.reject(
                &["admin.password"],
                "admin.password must not be empty; remove it, or set it to null, for no admin page",
            );
        } else if !is_loopback(&config.host) && characters < PASSWORD_CHARACTERS_MIN {
            let host = excerpt(&config.host);
            self.reject(&["admin.password", "host"], format!(
                "admin.password has {characters} characters, and host {host} is reachable from other machines, which could \
                 guess it; set one of at least {PASSWORD_CHARACTERS_MIN} (`openssl rand -hex 16` generates one), or set host \
                 to 127.0.0.1"
            ));
        } else if characters > PASSWORD_CHARACTERS_MAX {
            self.reject(
                &["admin.password"],
                format!("admin.password has {characters} characters; it may have at most {PASSWORD_CHARACTERS_MAX}"),
            );
        }
        self.public_secret("admin.password", password);
    }

    fn names(&mut self, config: &Config) {
        if let Some(namespace) = &config.namespace {
            let fits = |c: char| c.is_ascii_alphanumeric() || "_.:-".contains(c);
            if !(1..=NAMESPACE_CHARACTERS_MAX).contains(&namespace.chars().count()) || !namespace.chars().all(fits) {
                self.reject(&["namespace"], format!(
                    "namespace must have 1 to {NAMESPACE_CHARACTERS_MAX} characters, letters, digits and any of _ . : -, \
                     but is \"{}\"",
                    excerpt(namespace)
                ));
            }
        }
        let version = config.client.version.as_str();
        if !(1..=64).contains(&version.len()) || !version.bytes().all(|byte| byte.is_ascii_graphic()) {
            let version = excerpt(version);
            self.reject(
                &["client.version"],
                format!("client.version must be 1 to 64 visible ASCII characters, as in 1.5.3, but is \"{version}\""),
            );
        }
        let path = config.store.path.to_string_lossy();
        if path.is_empty() || path.contains('\0') {
            self.reject(&["store.path"], "store.path must name a directory, as in data/store");
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
                self.reject(&[name, switch], text);
            }
        }
    }

    fn sync(&mut self, config: &Config) {
        if !config.sync.enabled {
            return;
        }
        let authentication = &config.authentication;
        if !authentication.store_connected_users {
            self.reject(
                &["authentication.storeConnectedUsers", "sync.enabled"],
                "sync.enabled needs authentication.storeConnectedUsers, which is false: without it the server does not know \
                 which users are offline; set it to true, or sync.enabled to false",
            );
        }
        if (1..config.sync.max_bytes).contains(&config.store.max_bytes) {
            self.warn(format!(
                "store.maxBytes is {} and sync.maxBytes {}: one offline user can fill the store; raise the former, \
                 or lower the latter",
                config.store.max_bytes, config.sync.max_bytes
            ));
        }
        if authentication.jwt.is_none() && authentication.webhook.is_none() && !authentication.insecure {
            // Only a warning, because the object in the documentation of the original has no authentication either:
            // there it is code.
            self.warn(
                "sync.enabled needs authentication; set authentication.jwt (secret, which may be WS_KEY in the environment, \
                 keyFile or jwks) or authentication.webhook, or start with --dev for development",
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
            self.warn(
                "no authentication is configured: clients can connect, but not authenticate; set authentication.jwt or \
                 authentication.webhook",
            );
        }
    }

    fn insecure(&mut self, config: &Config, authentication: &Authentication) {
        if authentication.jwt.is_some() || authentication.webhook.is_some() {
            let other = if authentication.jwt.is_some() { "jwt" } else { "webhook" };
            self.warn(format!("authentication.insecure has no effect next to authentication.{other}; remove it"));
        } else if is_loopback(&config.host) {
            self.warn("authentication.insecure is on: every token is accepted; for development only");
        } else if authentication.insecure_public {
            let host = excerpt(&config.host);
            self.warn(format!(
                "authentication.insecure and insecurePublic are on: every machine that reaches {host} can read every user's \
                 messages"
            ));
        } else {
            let host = excerpt(&config.host);
            self.reject(&["authentication.insecure", "host", "authentication.insecurePublic"], format!(
                "authentication.insecure accepts every token, and host {host} is reachable from other machines; set host to \
                 127.0.0.1, configure authentication.jwt, or set authentication.insecurePublic: true as well"
            ));
        }
    }

    /// Rejects settings that need the embedded store next to `redis`.
    fn redis(&mut self, config: &Config) {
        if config.redis.is_some() && config.portal.webhook.is_some() {
            self.reject(
                &["portal.webhook", "redis"],
                "portal.webhook needs the embedded store, which has its outbox; remove portal.webhook, or redis",
            );
        }
    }

    fn api(&mut self, config: &Config) {
        let keys = &config.api.keys;
        if keys.is_empty() {
            self.warn(
                "api.keys is empty: the HTTP API rejects every request, and no backend can dispatch; set api.keys",
            );
        }
        if keys.len() > API_KEYS_MAX {
            self.reject(&["api.keys"], format!("api.keys has {} keys; it may have at most {API_KEYS_MAX}", keys.len()));
        }
        for (index, key) in keys.iter().enumerate() {
            let characters = key.chars().count();
            let (min, max) = API_KEY_CHARACTERS.into_inner();
            if !API_KEY_CHARACTERS.contains(&characters) {
                self.reject(&["api.keys"], format!(
                    "api.keys[{index}] has {characters} characters and must have {min} to {max}; `openssl rand -hex 16` \
                     generates one"
                ));
            } else if !key.bytes().all(|byte| byte.is_ascii_graphic()) {
                // Keys are sent in an HTTP header, which transports no other characters safely.
                self.reject(
                    &["api.keys"],
                    format!(
                        "api.keys[{index}] must be visible ASCII without spaces; `openssl rand -hex 16` generates one"
                    ),
                );
            }
        }
    }

    fn cors_origins(&mut self, origins: &[String]) {
        if origins == ["*"] {
            return;
        }
        for (index, origin) in origins.iter().enumerate() {
            // Any site can make a page with the origin `null`, by a sandbox.
            if !is_origin(origin) {
                let origin = excerpt(origin);
                self.reject(&["api.corsOrigins"], format!(
                    "api.corsOrigins[{index}] must be an origin as browsers send it, like https://example.org or \
                     http://localhost:8080, in lower case and without a path, but is \"{origin}\"; to allow every page, \
                     set it to ['*'] alone"
                ));
            }
        }
    }

    fn origins(&mut self, origins: &[String]) {
        for (index, origin) in origins.iter().enumerate() {
            if origin != "null" && !is_origin(origin) {
                let origin = excerpt(origin);
                self.reject(&["origins"], format!(
                    "origins[{index}] must be an origin as browsers send it, like https://example.org or \
                     http://localhost:8080, in lower case and without a path, but is \"{origin}\"; leave origins out to \
                     allow any"
                ));
            }
        }
    }

    /// Checks the filter of the log.
    ///
    /// The logging crate interprets a misspelt level as a module, and logs everything or nothing.
    fn log(&mut self, filter: &str) {
        const LEVELS: &[&str] = &["off", "error", "warn", "info", "debug", "trace"];
        let is_level = |text: &str| LEVELS.iter().any(|level| text.eq_ignore_ascii_case(level));
        let fits = |directive: &str| {
            let (target, level) = directive.rsplit_once('=').map_or((None, directive), |(t, l)| (Some(t), l));
            target != Some("") && is_level(level)
        };
        if filter.len() > 1024 || !filter.split(',').all(|directive| fits(directive.trim())) {
            self.reject(&["log.level"], format!(
                "log.level must be off, error, warn, info, debug or trace, or a list like info,mesa=debug, but is \"{}\"",
                excerpt(filter)
            ));
        }
    }
}

/// Returns the reserved path at or below which `path` is.
fn reserved(path: &str) -> Option<&'static str> {
    PATHS_RESERVED
        .iter()
        .copied()
        .find(|reserved| path.strip_prefix(reserved).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')))
}

/// Returns whether only this machine can reach `host`.
fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback())
}

/// Reports whether a text is an origin as browsers send it, and not `null`.
fn is_origin(text: &str) -> bool {
    text.split_once("://").is_some_and(|(scheme, authority)| {
        !scheme.is_empty()
            && !authority.is_empty()
            && !authority.contains(['/', '?', '#', '@', '*'])
            && text.bytes().all(|byte| byte.is_ascii_graphic() && !byte.is_ascii_uppercase())
    })
}
