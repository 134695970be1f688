//! Converts a [`Config`] to JSON in the structure of the file, mostly with secrets masked.

use serde_json::{Map, Value, json};

use super::{
    AuthWebhook, Certificate, ClientCertificates, Config, Confirmation, Durability, Jwks, Jwt, LogFormat, Overflow,
    RedisProtocolTls, Tls, Webhook,
};
use crate::util::millis::millis;

/// Replaces a secret. It is too short to be a valid secret when the output is loaded again.
const MASK: &str = "********";

impl Config {
    /// Returns every documented key with its effective value, in the structure of the file.
    ///
    /// Secrets are `********`: `api.keys`, `authentication.jwt.secret`, `redisProtocol.password`, `admin.password`, `redis`, the secrets
    /// of webhooks, and the queries of their URLs. With the secrets put back, the result loads to the same
    /// configuration.
    #[must_use]
    pub fn effective(&self) -> Value {
        self.render(Secrets::Masked)
    }

    /// Renders every key, to compare configurations. Never shown: it has the secrets.
    ///
    /// `redis` is masked here too; its type can be compared.
    pub(super) fn with_secrets(&self) -> Value {
        self.render(Secrets::Plain)
    }

    fn render(&self, secrets: Secrets) -> Value {
        json!({
            "host": self.host,
            "port": self.port,
            "path": self.path,
            "namespace": self.namespace,
            "redis": self.redis.as_ref().map(|_| MASK),
            "client": {
                "enforceEqualVersions": self.client.enforce_equal_versions,
                "version": self.client.version,
            },
            "options": { "storeMessages": self.store_messages },
            "sync": self.effective_sync(),
            "portal": {
                "enabled": self.portal.enabled,
                "distributeLoad": self.portal.distribute_load,
                "webhook": effective_webhook(self.portal.webhook.as_ref(), secrets),
            },
            "heartbeat": {
                "enabled": self.heartbeat.enabled,
                "interval": millis(self.heartbeat.interval),
                "maxAttempts": self.heartbeat.max_attempts,
            },
            "reconnect": { "enabled": self.reconnect.enabled, "interval": millis(self.reconnect.interval) },
            "authentication": self.effective_authentication(secrets),
            "gracefullyExit": self.gracefully_exit,
            "store": {
                "path": self.store.path.to_string_lossy(),
                "durability": match self.store.durability {
                    Durability::Always => json!("always"),
                    Durability::Never => json!("never"),
                    Durability::Interval(interval) => json!({ "interval": millis(interval) }),
                },
                "cacheBytes": self.store.cache_bytes,
                "maxBytes": self.store.max_bytes,
                "minFree": self.store.min_free,
                "walBytes": self.store.wal_bytes,
                "memoryBytes": self.store.memory_bytes,
            },
            "api": {
                "keys": self.api.keys.iter().map(|key| secrets.text(key)).collect::<Vec<_>>(),
                "idWindow": millis(self.api.id_window),
                "ids": self.api.ids,
                "corsOrigins": self.api.cors_origins,
            },
            "origins": self.origins,
            "trustedProxies": self.trusted_proxies,
            "proxyProtocol": self.proxy_protocol,
            "tls": effective_tls(self.tls.as_ref()),
            "limits": self.effective_limits(),
            "redisProtocol": {
                "port": self.redis_protocol.port,
                "host": self.redis_protocol.host,
                "password": self.redis_protocol.password.as_ref().map(|password| secrets.text(password)),
                "tls": match &self.redis_protocol.tls {
                    RedisProtocolTls::Off => json!(false),
                    RedisProtocolTls::Shared => json!(true),
                    RedisProtocolTls::Own(certificate) => effective_certificate(certificate),
                },
                "connections": self.redis_protocol.connections,
                "commandBytes": self.redis_protocol.command_bytes,
                "backlogBytes": self.redis_protocol.backlog_bytes,
            },
            "admin": { "password": self.admin.password.as_ref().map(|password| secrets.text(password)) },
            "log": {
                "level": self.log.level,
                "format": match self.log.format {
                    LogFormat::Text => "text",
                    LogFormat::Json => "json",
                },
            },
        })
    }

    fn effective_sync(&self) -> Value {
        let sync = &self.sync;
        json!({
            "enabled": sync.enabled,
            "redeliveryInterval": millis(sync.redelivery_interval),
            "confirmation": match sync.confirmation {
                Confirmation::Receipt => "receipt",
                Confirmation::Write => "write",
            },
            "maxAge": millis(sync.max_age),
            "maxMessages": sync.max_messages,
            "maxBytes": sync.max_bytes,
            "overflow": match sync.overflow {
                Overflow::Reject => "reject",
                Overflow::DropOldest => "dropOldest",
            },
            "deviceMaxAge": millis(sync.device_max_age),
            "maxDevices": sync.max_devices,
        })
    }

    fn effective_authentication(&self, secrets: Secrets) -> Value {
        let authentication = &self.authentication;
        json!({
            "timeout": millis(authentication.timeout),
            "required": authentication.required,
            "sendUserObject": authentication.send_user_object,
            "disconnectOnFail": authentication.disconnect_on_fail,
            "storeConnectedUsers": authentication.store_connected_users,
            "insecure": authentication.insecure,
            "insecurePublic": authentication.insecure_public,
            "jwt": effective_jwt(authentication.jwt.as_ref(), secrets),
            "webhook": effective_auth_webhook(authentication.webhook.as_ref(), secrets),
        })
    }

    fn effective_limits(&self) -> Value {
        let limits = &self.limits;
        json!({
            "connections": limits.connections,
            "connectionsPerAddress": limits.connections_per_address,
            "headerTimeout": millis(limits.header_timeout),
            "idleTimeout": millis(limits.idle_timeout),
            "frameBytes": limits.frame_bytes,
            "framesPerSecond": limits.frames_per_second,
            "requestBytes": limits.request_bytes,
            "recipients": limits.recipients,
            "queue": limits.queue,
            "unsyncedMessages": limits.unsynced_messages,
            "unsyncedBytes": limits.unsynced_bytes,
            "unsentBytes": limits.unsent_bytes,
            "writeTimeout": millis(limits.write_timeout),
        })
    }
}

/// Renders the JWT settings. Without JWTs every value is null, which means "not set" in a file.
fn effective_jwt(jwt: Option<&Jwt>, secrets: Secrets) -> Value {
    let names = ["secret", "keyFile", "algorithms", "idClaim", "userClaim", "issuer", "audience", "leeway"];
    let Some(jwt) = jwt else {
        let mut unset: Map<_, _> = names.into_iter().map(|name| (name.to_owned(), Value::Null)).collect();
        unset.insert("jwks".into(), effective_jwks(None));
        return unset.into();
    };
    json!({
        "secret": jwt.secret.as_ref().map(|secret| secrets.text(secret)),
        "keyFile": jwt.key_file.as_ref().map(|path| path.to_string_lossy()),
        "jwks": effective_jwks(jwt.jwks.as_ref()),
        "algorithms": jwt.algorithms,
        "idClaim": jwt.id_claim,
        "userClaim": jwt.user_claim,
        "issuer": jwt.issuer,
        "audience": jwt.audience,
        "leeway": millis(jwt.leeway),
    })
}

fn effective_jwks(jwks: Option<&Jwks>) -> Value {
    json!({
        "url": jwks.map(|jwks| &jwks.url),
        "refreshInterval": jwks.map(|jwks| millis(jwks.refresh_interval)),
        "retryInterval": jwks.map(|jwks| millis(jwks.retry_interval)),
        "maxStale": jwks.map(|jwks| millis(jwks.max_stale)),
        "timeout": jwks.map(|jwks| millis(jwks.timeout)),
        "allowPrivate": jwks.map(|jwks| jwks.allow_private),
    })
}

/// Renders the webhook settings. Without a webhook, URL and secret are null, and the other keys have their defaults.
fn effective_webhook(webhook: Option<&Webhook>, secrets: Secrets) -> Value {
    let unset = Webhook::default();
    let (is_set, webhook) = (webhook.is_some(), webhook.unwrap_or(&unset));
    json!({
        "url": is_set.then(|| secrets.url(&webhook.url)),
        "secret": is_set.then(|| secrets.text(&webhook.secret)),
        "events": webhook.events,
        "undeliveredAfter": millis(webhook.undelivered_after),
        "timeout": millis(webhook.timeout),
        "retryMin": millis(webhook.retry_min),
        "retryMax": millis(webhook.retry_max),
        "maxEvents": webhook.max_events,
        "maxBytes": webhook.max_bytes,
        "outboxEvents": webhook.outbox_events,
        "outboxBytes": webhook.outbox_bytes,
        "allowPrivate": webhook.allow_private,
    })
}

fn effective_auth_webhook(webhook: Option<&AuthWebhook>, secrets: Secrets) -> Value {
    let unset = AuthWebhook::default();
    let (is_set, webhook) = (webhook.is_some(), webhook.unwrap_or(&unset));
    json!({
        "url": is_set.then(|| secrets.url(&webhook.url)),
        "secret": webhook.secret.as_ref().map(|secret| secrets.text(secret)),
        "timeout": millis(webhook.timeout),
        "concurrency": webhook.concurrency,
        "allowPrivate": webhook.allow_private,
    })
}

/// Renders the TLS settings: one certificate as `cert` and `key`, several as a list.
fn effective_tls(tls: Option<&Tls>) -> Value {
    let unset = Tls::default();
    let tls = tls.unwrap_or(&unset);
    let (one, several) = match &tls.certificates[..] {
        [] => (Value::Null, Value::Null),
        [one] => (effective_certificate(one), Value::Null),
        several => (Value::Null, several.iter().map(effective_certificate).collect()),
    };
    json!({
        "cert": one["cert"],
        "key": one["key"],
        "certificates": several,
        "clientCa": tls.client_ca.as_ref().map(|path| path.to_string_lossy()),
        "clientCertificates": match tls.client_certificates {
            ClientCertificates::Required => "required",
            ClientCertificates::Optional => "optional",
        },
    })
}

/// Renders the files of a certificate. Texts of a program have no form in a file.
fn effective_certificate(certificate: &Certificate) -> Value {
    match certificate {
        Certificate::Files { cert, key } => json!({ "cert": cert.to_string_lossy(), "key": key.to_string_lossy() }),
        Certificate::Pem { .. } => Value::Null,
    }
}

/// Whether secrets are rendered as they are.
#[derive(Clone, Copy)]
enum Secrets {
    Masked,
    Plain,
}

impl Secrets {
    fn text(self, secret: &str) -> &str {
        match self {
            Self::Masked => MASK,
            Self::Plain => secret,
        }
    }

    /// Masks the query of a URL, which often has a token.
    fn url(self, url: &str) -> String {
        match (self, url.split_once('?')) {
            (Self::Masked, Some((address, _))) => format!("{address}?{MASK}"),
            _ => url.to_owned(),
        }
    }
}
