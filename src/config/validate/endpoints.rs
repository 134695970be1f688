//! Validates the settings of webhooks and JWKS.

use super::{Checks, SECRET_BYTES_MIN};
use crate::{
    config::{
        AuthWebhook, Config, Jwks, Webhook,
        error::excerpt,
        schema::{WEBHOOK_EVENTS, nearest_event},
    },
    http_client::check_url,
    util::millis::millis,
};

impl Checks {
    pub(super) fn endpoints(&mut self, config: &Config) {
        if let Some(webhook) = &config.portal.webhook {
            self.webhook(config, webhook);
        }
        if let Some(webhook) = &config.authentication.webhook {
            self.auth_webhook(config, webhook);
        }
        if let Some(jwks) = config.authentication.jwt.as_ref().and_then(|jwt| jwt.jwks.as_ref()) {
            self.jwks(jwks);
        }
    }

    fn webhook(&mut self, config: &Config, webhook: &Webhook) {
        self.url(["portal.webhook.url", "portal.webhook.allowPrivate"], &webhook.url, webhook.allow_private);
        self.signing_secret("portal.webhook.secret", &webhook.secret);
        if webhook.events.is_empty() {
            self.reject(
                &["portal.webhook.events"],
                format!(
                    "portal.webhook.events is empty; name some of {}, or remove portal.webhook.url",
                    WEBHOOK_EVENTS.join(", ")
                ),
            );
        }
        for event in webhook.events.iter().filter(|event| !WEBHOOK_EVENTS.contains(&event.as_str())) {
            let hint = match nearest_event(event) {
                Some(nearest) => format!("the nearest known one is '{nearest}'"),
                None => format!("it may have {}", WEBHOOK_EVENTS.join(", ")),
            };
            self.reject(
                &["portal.webhook.events"],
                format!("portal.webhook.events has \"{}\", which is not an event; {hint}", excerpt(event)),
            );
        }
        if webhook.retry_min > webhook.retry_max {
            let (min, max) = (millis(webhook.retry_min), millis(webhook.retry_max));
            self.reject(
                &["portal.webhook.retryMin", "portal.webhook.retryMax"],
                format!("portal.webhook.retryMin is {min} ms and must not be more than retryMax, which is {max} ms"),
            );
        }
        let needs_sync = ["undelivered", "delivered", "expired", "dropped"];
        if !config.sync.enabled && webhook.events.iter().all(|event| needs_sync.contains(&event.as_str())) {
            self.warn(
                "portal.webhook.events has only events of stored messages, and sync.enabled is false: there will be none; set \
                 sync.enabled, or name other events",
            );
        }
    }

    fn auth_webhook(&mut self, config: &Config, webhook: &AuthWebhook) {
        let keys = ["authentication.webhook.url", "authentication.webhook.allowPrivate"];
        self.url(keys, &webhook.url, webhook.allow_private);
        if let Some(secret) = &webhook.secret {
            self.signing_secret("authentication.webhook.secret", secret);
        }
        if config.authentication.jwt.is_some() {
            self.reject(
                &["authentication.webhook.url", "authentication.jwt.secret", "authentication.jwt.keyFile"],
                "authentication has both jwt (or WS_KEY in the environment) and webhook; remove one of them",
            );
        }
        if webhook.timeout > config.authentication.timeout {
            let (webhook, all) = (millis(webhook.timeout), millis(config.authentication.timeout));
            self.warn(format!(
                "authentication.webhook.timeout is {webhook} ms, but connections close after authentication.timeout, \
                 {all} ms; lower the former"
            ));
        }
    }

    fn jwks(&mut self, jwks: &Jwks) {
        let keys = ["authentication.jwt.jwks.url", "authentication.jwt.jwks.allowPrivate"];
        self.url(keys, &jwks.url, jwks.allow_private);
        if jwks.max_stale < jwks.refresh_interval {
            let (stale, refresh) = (millis(jwks.max_stale), millis(jwks.refresh_interval));
            self.reject(
                &["authentication.jwt.jwks.maxStale", "authentication.jwt.jwks.refreshInterval"],
                format!(
                    "authentication.jwt.jwks.maxStale is {stale} ms and must not be less than refreshInterval, which is \
                     {refresh} ms: the keys would be unusable before they are fetched again"
                ),
            );
        }
    }

    fn url(&mut self, keys: [&'static str; 2], url: &str, allow_private: bool) {
        if let Err(why) = check_url(url, allow_private) {
            // The URL is not shown: its path or query may be secret.
            self.reject(&keys, format!("{} {why}", keys[0]));
        }
    }

    fn signing_secret(&mut self, key: &'static str, secret: &str) {
        let bytes = secret.len();
        if bytes < SECRET_BYTES_MIN {
            let what = if bytes == 0 { "is missing".to_owned() } else { format!("has {bytes} bytes") };
            let text = format!(
                "{key} {what} and must have at least {SECRET_BYTES_MIN} bytes; `openssl rand -hex 32` generates one"
            );
            self.reject(&[key], text);
        }
        self.public_secret(key, secret);
    }
}
