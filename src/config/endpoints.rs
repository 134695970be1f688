//! Whom the server asks and tells of its own accord: webhooks, and the keys that tokens are checked with.

use std::{fmt, time::Duration};

use super::schema::WEBHOOK_EVENTS;

/// `portal.webhook.*`
#[derive(Clone, PartialEq, Eq)]
pub struct Webhook {
    /// Where events are posted.
    pub url: String,
    /// What they are signed with.
    pub secret: String,
    /// Which are told. Default: all of `connection`, `authentication`, `message`, `disconnection`, `undelivered`,
    /// `delivered`, `expired` and `dropped`.
    pub events: Vec<String>,
    /// A message that has waited for so long is told of as `undelivered`. Default 30 s.
    pub undelivered_after: Duration,
    /// How long one request may take. Default 10 s.
    pub timeout: Duration,
    /// Pause before the first repeat of a request; it doubles from one to the next. Default 1 s.
    pub retry_min: Duration,
    /// Longest pause. Default 1 min.
    pub retry_max: Duration,
    /// Events in one request at most. Default 100.
    pub max_events: usize,
    /// Bytes of those, about, where there is more than one. Default 1 MiB.
    pub max_bytes: u64,
    /// Events that wait at most; beyond that they are lost, counted and told of. Default 1 000 000.
    pub outbox_events: u64,
    /// Bytes of those; likewise. Default 256 MiB.
    pub outbox_bytes: u64,
    /// Post also to private addresses, and without TLS. Default false.
    pub allow_private: bool,
}

impl Default for Webhook {
    /// Without an address.
    fn default() -> Self {
        Self {
            url: String::new(),
            secret: String::new(),
            events: WEBHOOK_EVENTS.iter().map(|&name| name.to_owned()).collect(),
            undelivered_after: Duration::from_secs(30),
            timeout: Duration::from_secs(10),
            retry_min: Duration::from_secs(1),
            retry_max: Duration::from_secs(60),
            max_events: 100,
            max_bytes: 1 << 20,
            outbox_events: 1_000_000,
            outbox_bytes: 256 << 20,
            allow_private: false,
        }
    }
}

/// Without the secret, and without what may be secret in the address.
impl fmt::Debug for Webhook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Webhook").field("events", &self.events).finish_non_exhaustive()
    }
}

/// `authentication.webhook.*`
#[derive(Clone, PartialEq, Eq)]
pub struct AuthWebhook {
    /// Who is asked who a client is.
    pub url: String,
    /// What the question is signed with, if it is.
    pub secret: Option<String>,
    /// How long a question may take, with the wait for its turn. Default 5 s.
    pub timeout: Duration,
    /// Questions asked at the same time; more wait for their turn. Default 64.
    pub concurrency: usize,
    /// Ask also at private addresses, and without TLS. Default false.
    pub allow_private: bool,
}

impl Default for AuthWebhook {
    /// Without an address.
    fn default() -> Self {
        Self {
            url: String::new(),
            secret: None,
            timeout: Duration::from_secs(5),
            concurrency: 64,
            allow_private: false,
        }
    }
}

/// Without the secret, and without what may be secret in the address.
impl fmt::Debug for AuthWebhook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthWebhook").field("concurrency", &self.concurrency).finish_non_exhaustive()
    }
}

/// `authentication.jwt.jwks.*`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Jwks {
    /// Where the keys are.
    pub url: String,
    /// Keys older than this are fetched anew, while those that are there go on to be used. Default 10 min.
    pub refresh_interval: Duration,
    /// Least time between two requests, whatever asks for them: an unknown key, too. Default 30 s.
    pub retry_interval: Duration,
    /// Keys that could not be fetched anew for this long are not used any more. Default 24 h.
    pub max_stale: Duration,
    /// How long one request may take. Default 5 s.
    pub timeout: Duration,
    /// Fetch also from private addresses, and without TLS. Default false.
    pub allow_private: bool,
}

impl Default for Jwks {
    /// Without an address.
    fn default() -> Self {
        Self {
            url: String::new(),
            refresh_interval: Duration::from_secs(600),
            retry_interval: Duration::from_secs(30),
            max_stale: Duration::from_secs(24 * 60 * 60),
            timeout: Duration::from_secs(5),
            allow_private: false,
        }
    }
}
