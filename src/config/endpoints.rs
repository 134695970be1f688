//! Defines the settings of the endpoints that the server calls: the two webhooks and the JWKS.

use std::{fmt, time::Duration};

use super::schema::WEBHOOK_EVENTS;

/// `portal.webhook.*`
#[derive(Clone, PartialEq, Eq)]
pub struct Webhook {
    /// URL to which events are posted.
    pub url: String,
    /// Signing secret.
    pub secret: String,
    /// Event types that are posted. Default: all of `connection`, `authentication`, `message`, `disconnection`,
    /// `undelivered`, `delivered`, `expired` and `dropped`.
    pub events: Vec<String>,
    /// A message pending for this long is reported as `undelivered`. Default 30 s.
    pub undelivered_after: Duration,
    /// Time for one request. Default 10 s.
    pub timeout: Duration,
    /// Delay before the first retry; it doubles with each further one. Default 1 s.
    pub retry_min: Duration,
    /// Longest delay before a retry. Default 1 min.
    pub retry_max: Duration,
    /// Events in one request. Default 100.
    pub max_events: usize,
    /// Bytes of one request, approximately; a single event may be larger. Default 1 MiB.
    pub max_bytes: u64,
    /// Events stored in the outbox; further ones are dropped, counted and reported. Default 1 000 000.
    pub outbox_events: u64,
    /// Bytes of those events; beyond that, further events are dropped too. Default 256 MiB.
    pub outbox_bytes: u64,
    /// Allow private addresses and `http`. Default false.
    pub allow_private: bool,
}

impl Default for Webhook {
    /// Leaves the URL empty.
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

/// Omits the secret and the URL, which may contain one.
impl fmt::Debug for Webhook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Webhook").field("events", &self.events).finish_non_exhaustive()
    }
}

/// `authentication.webhook.*`
#[derive(Clone, PartialEq, Eq)]
pub struct AuthWebhook {
    /// Endpoint of the backend that authenticates clients.
    pub url: String,
    /// Signing secret. `None`: requests are not signed.
    pub secret: Option<String>,
    /// Time for one request, including the wait at the `concurrency` limit. Default 5 s.
    pub timeout: Duration,
    /// Requests at the same time; further ones wait. Default 64.
    pub concurrency: usize,
    /// Allow private addresses and `http`. Default false.
    pub allow_private: bool,
}

impl Default for AuthWebhook {
    /// Leaves the URL empty.
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

/// Omits the secret and the URL, which may contain one.
impl fmt::Debug for AuthWebhook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthWebhook").field("concurrency", &self.concurrency).finish_non_exhaustive()
    }
}

/// `authentication.jwt.jwks.*`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Jwks {
    /// URL of the key set.
    pub url: String,
    /// Keys older than this are fetched again in the background, and used meanwhile. Default 10 min.
    pub refresh_interval: Duration,
    /// Shortest time between two requests, also for an unknown key. Default 30 s.
    pub retry_interval: Duration,
    /// Keys older than this are not used. Default 24 h.
    pub max_stale: Duration,
    /// Time for one request. Default 5 s.
    pub timeout: Duration,
    /// Allow private addresses and `http`. Default false.
    pub allow_private: bool,
}

impl Default for Jwks {
    /// Leaves the URL empty.
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
