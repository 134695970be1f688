//! Decodes settings into a [`Config`]. `render` is the inverse, and `validate` bounds the fields.

use std::{path::PathBuf, time::Duration};

use serde_json::Value;

use super::{
    AuthWebhook, Authentication, Certificate, ClientCertificates, Config, Confirmation, Durability, Jwks, Jwt, Limits,
    LogFormat, Overflow, Redis, RedisProtocol, RedisProtocolTls, Sync, Tls, Webhook,
    error::Problem,
    schema::{self, DAY_MS, Kind},
    settings::Settings,
};

/// Writes `settings` into `config`. An invalid value adds a problem, and leaves its field unchanged.
pub(super) fn read(settings: &Settings, config: &mut Config, problems: &mut Vec<Problem>) {
    let reader = &mut Reader { settings, problems };
    reader.field("host", &mut config.host, text);
    reader.field("port", &mut config.port, integer);
    reader.field("path", &mut config.path, text);
    reader.optional("namespace", &mut config.namespace, text);
    reader.redis(&mut config.redis);
    reader.field("client.enforceEqualVersions", &mut config.client.enforce_equal_versions, boolean);
    reader.field("client.version", &mut config.client.version, text);
    reader.field("options.storeMessages", &mut config.store_messages, boolean);
    reader.sync(&mut config.sync);
    reader.field("portal.enabled", &mut config.portal.enabled, boolean);
    reader.field("portal.distributeLoad", &mut config.portal.distribute_load, boolean);
    reader.webhook(&mut config.portal.webhook);
    reader.field("heartbeat.enabled", &mut config.heartbeat.enabled, boolean);
    reader.field("heartbeat.interval", &mut config.heartbeat.interval, millis);
    reader.field("heartbeat.maxAttempts", &mut config.heartbeat.max_attempts, integer);
    reader.field("reconnect.enabled", &mut config.reconnect.enabled, boolean);
    reader.field("reconnect.interval", &mut config.reconnect.interval, millis);
    reader.authentication(&mut config.authentication);
    reader.field("gracefullyExit", &mut config.gracefully_exit, boolean);
    reader.field("store.path", &mut config.store.path, text);
    reader.field("store.durability", &mut config.store.durability, durability);
    reader.field("store.cacheBytes", &mut config.store.cache_bytes, integer);
    reader.field("store.maxBytes", &mut config.store.max_bytes, integer);
    reader.field("store.minFree", &mut config.store.min_free, integer);
    reader.field("store.walBytes", &mut config.store.wal_bytes, integer);
    reader.field("store.memoryBytes", &mut config.store.memory_bytes, integer);
    reader.field("api.keys", &mut config.api.keys, texts);
    reader.field("api.idWindow", &mut config.api.id_window, millis);
    reader.field("api.ids", &mut config.api.ids, integer);
    reader.field("api.corsOrigins", &mut config.api.cors_origins, texts);
    reader.optional("origins", &mut config.origins, texts);
    reader.field("trustedProxies", &mut config.trusted_proxies, texts);
    reader.field("proxyProtocol", &mut config.proxy_protocol, boolean);
    reader.tls(&mut config.tls);
    reader.limits(&mut config.limits);
    reader.redis_protocol(&mut config.redis_protocol);
    reader.optional("admin.password", &mut config.admin.password, text);
    reader.field("log.level", &mut config.log.level, text);
    reader.field("log.format", &mut config.log.format, log_format);
}

struct Reader<'a> {
    settings: &'a Settings,
    problems: &'a mut Vec<Problem>,
}

/// Converts a value; `None` if its type is wrong or it is out of the bounds of `Kind`.
type Convert<T> = fn(&Value, Kind) -> Option<T>;

impl Reader<'_> {
    /// Reads a key that always has a value; `null` is an error.
    fn field<T>(&mut self, name: &'static str, field: &mut T, convert: Convert<T>) {
        if let Some(value) = self.value(name, convert) {
            *field = value;
        }
    }

    /// Reads a key that may be unset; `null` unsets it.
    fn optional<T>(&mut self, name: &'static str, field: &mut Option<T>, convert: Convert<T>) {
        if self.settings.has(name) {
            *field = self.value(name, convert);
        }
    }

    fn value<T>(&mut self, name: &'static str, convert: Convert<T>) -> Option<T> {
        let entry = self.settings.get(name)?;
        let key = schema::expect_key(name);
        let value = convert(&entry.value, key.kind);
        if value.is_none() {
            let texts = schema::invalid_values(key, &entry.value).into_iter();
            self.problems.extend(texts.map(|text| Problem::about(&[name], text).with_origin(&entry.origin)));
        }
        value
    }

    /// Reads `redis`. In a build without the feature, `load` rejects the key.
    fn redis(&mut self, redis: &mut Option<Redis>) {
        let Some(entry) = self.settings.get("redis").filter(|_| cfg!(feature = "redis")) else { return };
        let read = match &entry.value {
            Value::Null => {
                *redis = None;
                return;
            }
            Value::String(text) if entry.origin.ends_with("REDIS_SENTINELS") => super::redis::parse_sentinels(text),
            value => super::redis::parse(value),
        };
        match read {
            Ok(read) => *redis = Some(read),
            Err(mistakes) => {
                let problem = |why| Problem::about(&["redis"], why).with_origin(&entry.origin);
                self.problems.extend(mistakes.into_iter().map(problem));
            }
        }
    }

    fn sync(&mut self, sync: &mut Sync) {
        self.field("sync.enabled", &mut sync.enabled, boolean);
        self.field("sync.redeliveryInterval", &mut sync.redelivery_interval, millis);
        self.field("sync.confirmation", &mut sync.confirmation, confirmation);
        self.field("sync.maxAge", &mut sync.max_age, millis);
        self.field("sync.maxMessages", &mut sync.max_messages, integer);
        self.field("sync.maxBytes", &mut sync.max_bytes, integer);
        self.field("sync.overflow", &mut sync.overflow, overflow);
        self.field("sync.deviceMaxAge", &mut sync.device_max_age, millis);
        self.field("sync.maxDevices", &mut sync.max_devices, integer);
    }

    fn authentication(&mut self, authentication: &mut Authentication) {
        self.field("authentication.timeout", &mut authentication.timeout, millis);
        self.field("authentication.required", &mut authentication.required, boolean);
        self.field("authentication.sendUserObject", &mut authentication.send_user_object, boolean);
        self.field("authentication.disconnectOnFail", &mut authentication.disconnect_on_fail, boolean);
        self.field("authentication.storeConnectedUsers", &mut authentication.store_connected_users, boolean);
        self.field("authentication.insecure", &mut authentication.insecure, boolean);
        self.field("authentication.insecurePublic", &mut authentication.insecure_public, boolean);
        if has_jwt(self.settings) {
            authentication.jwt = Some(self.jwt());
        }
        self.auth_webhook(&mut authentication.webhook);
    }

    fn webhook(&mut self, webhook: &mut Option<Webhook>) {
        let mut read = Webhook::default();
        self.text_or_empty("portal.webhook.url", &mut read.url);
        self.text_or_empty("portal.webhook.secret", &mut read.secret);
        let mut events = None;
        self.optional("portal.webhook.events", &mut events, texts);
        read.events = events.unwrap_or(read.events);
        self.field("portal.webhook.undeliveredAfter", &mut read.undelivered_after, millis);
        self.field("portal.webhook.timeout", &mut read.timeout, millis);
        self.field("portal.webhook.retryMin", &mut read.retry_min, millis);
        self.field("portal.webhook.retryMax", &mut read.retry_max, millis);
        self.field("portal.webhook.maxEvents", &mut read.max_events, integer);
        self.field("portal.webhook.maxBytes", &mut read.max_bytes, integer);
        self.field("portal.webhook.outboxEvents", &mut read.outbox_events, integer);
        self.field("portal.webhook.outboxBytes", &mut read.outbox_bytes, integer);
        self.field("portal.webhook.allowPrivate", &mut read.allow_private, boolean);
        // With a secret alone, `validate` reports the missing URL.
        if self.settings.has("portal.webhook.url") || self.settings.has("portal.webhook.secret") {
            *webhook = Some(read);
        }
    }

    fn auth_webhook(&mut self, webhook: &mut Option<AuthWebhook>) {
        let mut read = AuthWebhook::default();
        self.text_or_empty("authentication.webhook.url", &mut read.url);
        self.optional("authentication.webhook.secret", &mut read.secret, text);
        self.field("authentication.webhook.timeout", &mut read.timeout, millis);
        self.field("authentication.webhook.concurrency", &mut read.concurrency, integer);
        self.field("authentication.webhook.allowPrivate", &mut read.allow_private, boolean);
        if has_auth_webhook(self.settings) {
            *webhook = Some(read);
        }
    }

    fn jwks(&mut self) -> Option<Jwks> {
        let is_set =
            |key: &&schema::Key| key.name.starts_with("authentication.jwt.jwks.") && self.settings.has(key.name);
        schema::KEYS.iter().find(is_set)?;
        let mut read = Jwks::default();
        self.text_or_empty("authentication.jwt.jwks.url", &mut read.url);
        self.unless_null("authentication.jwt.jwks.refreshInterval", &mut read.refresh_interval, millis);
        self.unless_null("authentication.jwt.jwks.retryInterval", &mut read.retry_interval, millis);
        self.unless_null("authentication.jwt.jwks.maxStale", &mut read.max_stale, millis);
        self.unless_null("authentication.jwt.jwks.timeout", &mut read.timeout, millis);
        self.unless_null("authentication.jwt.jwks.allowPrivate", &mut read.allow_private, boolean);
        Some(read)
    }

    /// Reads a text that is empty if it is unset.
    fn text_or_empty(&mut self, name: &'static str, field: &mut String) {
        self.unless_null(name, field, text);
    }

    /// Reads a key that has its default if it is unset; `null` unsets it.
    fn unless_null<T>(&mut self, name: &'static str, field: &mut T, convert: Convert<T>) {
        if self.settings.has(name) {
            self.field(name, field, convert);
        }
    }

    fn jwt(&mut self) -> Jwt {
        let mut jwt = Jwt {
            secret: None,
            key_file: None,
            jwks: None,
            algorithms: Vec::new(),
            id_claim: None,
            user_claim: None,
            issuer: None,
            audience: None,
            leeway: Duration::ZERO,
        };
        let (mut algorithms, mut leeway) = (None, None);
        self.optional("authentication.jwt.secret", &mut jwt.secret, text);
        self.optional("authentication.jwt.keyFile", &mut jwt.key_file, text);
        jwt.jwks = self.jwks();
        self.optional("authentication.jwt.algorithms", &mut algorithms, texts);
        self.optional("authentication.jwt.idClaim", &mut jwt.id_claim, text);
        self.optional("authentication.jwt.userClaim", &mut jwt.user_claim, text);
        self.optional("authentication.jwt.issuer", &mut jwt.issuer, text);
        self.optional("authentication.jwt.audience", &mut jwt.audience, text);
        self.optional("authentication.jwt.leeway", &mut leeway, millis);
        jwt.leeway = leeway.unwrap_or_default();
        // A secret works only with HMAC. For public keys there is no safe default.
        let default = if jwt.secret.is_some() { vec!["HS256".to_owned()] } else { Vec::new() };
        jwt.algorithms = algorithms.unwrap_or(default);
        jwt
    }

    fn tls(&mut self, tls: &mut Option<Tls>) {
        let is_set = |key: &&schema::Key| key.name.starts_with("tls.") && self.settings.has(key.name);
        if !schema::KEYS.iter().any(|key| is_set(&key)) {
            return;
        }
        let (mut cert, mut key, mut certificates) = (PathBuf::new(), PathBuf::new(), None);
        self.unless_null("tls.cert", &mut cert, text);
        self.unless_null("tls.key", &mut key, text);
        self.optional("tls.certificates", &mut certificates, certificate_list);
        let has_one = self.settings.has("tls.cert") || self.settings.has("tls.key");
        if has_one && certificates.is_some() {
            self.problems.push(Problem::about(
                &["tls.certificates", "tls.cert", "tls.key"],
                "tls has both certificates and cert or key; move the one certificate into the list, or remove the list",
            ));
        }
        let mut read = Tls { certificates: certificates.unwrap_or_default(), ..Tls::default() };
        if has_one {
            read.certificates = vec![Certificate::files(cert, key)];
        }
        self.optional("tls.clientCa", &mut read.client_ca, text);
        self.unless_null("tls.clientCertificates", &mut read.client_certificates, client_certificates);
        // With a client authority alone, `validate` reports the missing certificate.
        if has_one || self.settings.has("tls.certificates") || self.settings.has("tls.clientCa") {
            *tls = Some(read);
        }
    }

    fn redis_protocol(&mut self, section: &mut RedisProtocol) {
        self.optional("redisProtocol.port", &mut section.port, integer);
        self.field("redisProtocol.host", &mut section.host, text);
        self.optional("redisProtocol.password", &mut section.password, text);
        self.field("redisProtocol.tls", &mut section.tls, redis_protocol_tls);
        self.field("redisProtocol.connections", &mut section.connections, integer);
        self.field("redisProtocol.commandBytes", &mut section.command_bytes, integer);
        self.field("redisProtocol.backlogBytes", &mut section.backlog_bytes, integer);
    }

    fn limits(&mut self, limits: &mut Limits) {
        self.field("limits.connections", &mut limits.connections, integer);
        self.field("limits.connectionsPerAddress", &mut limits.connections_per_address, integer);
        self.field("limits.headerTimeout", &mut limits.header_timeout, millis);
        self.field("limits.idleTimeout", &mut limits.idle_timeout, millis);
        self.field("limits.frameBytes", &mut limits.frame_bytes, integer);
        self.field("limits.framesPerSecond", &mut limits.frames_per_second, integer);
        self.field("limits.requestBytes", &mut limits.request_bytes, integer);
        self.field("limits.recipients", &mut limits.recipients, integer);
        self.field("limits.queue", &mut limits.queue, integer);
        self.field("limits.unsyncedMessages", &mut limits.unsynced_messages, integer);
        self.field("limits.unsyncedBytes", &mut limits.unsynced_bytes, integer);
        self.field("limits.unsentBytes", &mut limits.unsent_bytes, integer);
        self.field("limits.writeTimeout", &mut limits.write_timeout, millis);
    }
}

/// Returns whether a key under `authentication.jwt` is set.
pub(super) fn has_jwt(settings: &Settings) -> bool {
    schema::KEYS.iter().any(|key| key.name.starts_with("authentication.jwt.") && settings.has(key.name))
}

/// Returns whether a webhook authenticates clients.
pub(super) fn has_auth_webhook(settings: &Settings) -> bool {
    settings.has("authentication.webhook.url") || settings.has("authentication.webhook.secret")
}

fn boolean(value: &Value, _: Kind) -> Option<bool> {
    value.as_bool()
}

/// Converts a whole number within the bounds of its key. `1e3` counts as whole.
fn whole(value: &Value, kind: Kind) -> Option<u64> {
    let (Kind::Integer { min, max } | Kind::Millis { min, max }) = kind else { return None };
    let number = value.as_u64().or_else(|| {
        // Up to 2^53 every whole number has an exact f64.
        let number = value.as_f64().filter(|number| number.fract() == 0.0 && (0.0..9e15).contains(number))?;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "whole and in range, see above")]
        Some(number as u64)
    })?;
    (min..=max).contains(&number).then_some(number)
}

fn integer<T: TryFrom<u64>>(value: &Value, kind: Kind) -> Option<T> {
    whole(value, kind)?.try_into().ok()
}

fn millis(value: &Value, kind: Kind) -> Option<Duration> {
    whole(value, kind).map(Duration::from_millis)
}

fn text<T: From<String>>(value: &Value, _: Kind) -> Option<T> {
    value.as_str().map(|text| text.to_owned().into())
}

fn texts(value: &Value, _: Kind) -> Option<Vec<String>> {
    value.as_array()?.iter().map(|item| item.as_str().map(str::to_owned)).collect()
}

fn confirmation(value: &Value, _: Kind) -> Option<Confirmation> {
    match value.as_str()? {
        "receipt" => Some(Confirmation::Receipt),
        "write" => Some(Confirmation::Write),
        _ => None,
    }
}

fn overflow(value: &Value, _: Kind) -> Option<Overflow> {
    match value.as_str()? {
        "reject" => Some(Overflow::Reject),
        "dropOldest" => Some(Overflow::DropOldest),
        _ => None,
    }
}

fn log_format(value: &Value, _: Kind) -> Option<LogFormat> {
    match value.as_str()? {
        "text" => Some(LogFormat::Text),
        "json" => Some(LogFormat::Json),
        _ => None,
    }
}

fn client_certificates(value: &Value, _: Kind) -> Option<ClientCertificates> {
    match value.as_str()? {
        "required" => Some(ClientCertificates::Required),
        "optional" => Some(ClientCertificates::Optional),
        _ => None,
    }
}

/// Converts `{ cert, key }`.
fn certificate_files(value: &Value) -> Option<Certificate> {
    let map = value.as_object().filter(|_| schema::is_certificate(value))?;
    Some(Certificate::files(map.get("cert")?.as_str()?, map.get("key")?.as_str()?))
}

fn certificate_list(value: &Value, _: Kind) -> Option<Vec<Certificate>> {
    value.as_array()?.iter().map(certificate_files).collect()
}

fn redis_protocol_tls(value: &Value, _: Kind) -> Option<RedisProtocolTls> {
    match value {
        Value::Bool(false) => Some(RedisProtocolTls::Off),
        Value::Bool(true) => Some(RedisProtocolTls::Shared),
        value => certificate_files(value).map(RedisProtocolTls::Own),
    }
}

fn durability(value: &Value, _: Kind) -> Option<Durability> {
    match value {
        Value::String(name) if name == "always" => Some(Durability::Always),
        Value::String(name) if name == "never" => Some(Durability::Never),
        Value::Object(map) if map.len() == 1 => {
            millis(map.get("interval")?, Kind::Millis { min: 1, max: DAY_MS }).map(Durability::Interval)
        }
        _ => None,
    }
}
