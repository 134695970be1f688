//! Gets the state of a server, and disconnects a user with a reason. Fields that a newer server adds are ignored.

use reqwest::Method;
use serde::{Deserialize, Serialize};

use super::{Disconnected, DispatchError, Dispatcher};
use crate::message::UserId;

impl Dispatcher {
    /// As [`Dispatcher::disconnect`], with a text of at most 123 bytes for the clients.
    ///
    /// # Errors
    /// Fails if the server cannot be reached, or rejects the request: the text is too long.
    pub async fn disconnect_with(&self, id: &UserId, reason: &str) -> Result<Disconnected, DispatchError> {
        let mut url = self.user_url(id, Some("disconnect"))?;
        url.query_pairs_mut().append_pair("reason", reason);
        self.call(self.request(Method::POST, url)).await
    }

    /// Gets the state of the server: counters, rates, latencies and sizes.
    ///
    /// # Errors
    /// Fails if the server cannot be reached, or rejects the request.
    pub async fn status(&self) -> Result<Status, DispatchError> {
        self.call(self.request(Method::GET, self.url(&["status"])?)).await
    }
}

/// Describes a server: counters since its start, and current sizes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[non_exhaustive]
pub struct Status {
    /// Version of the server.
    pub version: String,
    /// Time of the start, in RFC 3339.
    pub started_at: String,
    /// Seconds since the start.
    pub uptime_seconds: f64,
    /// Whether the server is ready, as in `/readyz`.
    pub ready: bool,
    /// Why it is not ready.
    pub not_ready_reason: Option<String>,
    /// Connections of clients.
    pub connections: ConnectionCounts,
    /// Users.
    pub users: UserCounts,
    /// Messages since the start.
    pub messages: MessageCounts,
    /// Messages that some device has not acknowledged.
    pub pending: PendingCounts,
    /// The store.
    pub store: StoreUsage,
    /// The server's process; `None` where the system does not report it.
    pub process: Option<ProcessUsage>,
    /// The webhook outbox; `None` without webhooks.
    pub webhooks: Option<WebhookCounts>,
}

/// Counts connections of clients.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[non_exhaustive]
pub struct ConnectionCounts {
    /// Open now.
    pub open: u64,
    /// Open and authenticated now.
    pub authenticated: u64,
    /// Accepted since the start.
    pub accepted: u64,
    /// Rejected since the start.
    pub rejected: u64,
}

/// Counts users.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[non_exhaustive]
pub struct UserCounts {
    /// Online now.
    pub online: u64,
}

/// Counts messages since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[non_exhaustive]
pub struct MessageCounts {
    /// Dispatches.
    pub dispatches: u64,
    /// Entries appended to logs.
    pub appended: u64,
    /// Messages written to clients.
    pub delivered: u64,
    /// Messages written again.
    pub redelivered: u64,
    /// Messages acknowledged by clients.
    pub acknowledged: u64,
    /// Recipients rejected.
    pub rejected: u64,
    /// Messages dropped.
    pub dropped: u64,
}

/// Counts pending messages; `None` where the server does not know the count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[non_exhaustive]
pub struct PendingCounts {
    /// Messages.
    pub messages: Option<u64>,
    /// Bytes of payload.
    pub bytes: Option<u64>,
}

/// Describes the store. A store in Redis has only some of the fields.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[non_exhaustive]
pub struct StoreUsage {
    /// `embedded` or `redis`.
    pub kind: String,
    /// Bytes in the write-ahead log.
    pub wal_bytes: Option<u64>,
    /// Bytes of memory.
    pub memory_bytes: Option<u64>,
    /// Bytes on disk.
    pub disk_bytes: Option<u64>,
    /// Free bytes of that disk.
    pub disk_free_bytes: Option<u64>,
    /// Age of the oldest record that is not flushed, in seconds.
    pub flush_lag_seconds: Option<f64>,
    /// Commits since the start.
    pub commits: Option<u64>,
    /// Latency of commits in the last minute.
    pub commit_latency_micros: Option<CommitLatency>,
}

/// Latency of commits in the last minute, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[non_exhaustive]
pub struct CommitLatency {
    /// Median.
    pub p50: Option<f64>,
    /// 99th percentile.
    pub p99: Option<f64>,
    /// Maximum.
    pub max: Option<f64>,
}

/// Describes the server's process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[non_exhaustive]
pub struct ProcessUsage {
    /// CPU time since the start, in seconds.
    pub cpu_seconds: Option<f64>,
    /// Resident memory in bytes.
    pub resident_bytes: Option<u64>,
    /// Open file descriptors.
    pub open_files: Option<u64>,
}

/// Counts events in the webhook outbox.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[non_exhaustive]
pub struct WebhookCounts {
    /// Events that no backend has taken.
    pub outbox_events: u64,
    /// Their bytes.
    pub outbox_bytes: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_of_any_store_and_version_is_deserialized() {
        let redis = r#"{"version":"9.9","ready":false,"notReadyReason":"x","uptimeSeconds":1,"new":{"field":[]},
            "pending":{"messages":null,"bytes":null},"webhooks":null,
            "store":{"kind":"redis","walBytes":null,"commitLatencyMicros":null,"flushLagSeconds":null}}"#;
        let status: Status = serde_json::from_str(redis).unwrap();
        assert_eq!((&*status.version, status.ready, status.pending.messages), ("9.9", false, None));
        assert_eq!((&*status.store.kind, status.store.commit_latency_micros, status.webhooks), ("redis", None, None));
        let embedded = r#"{"store":{"kind":"embedded","commitLatencyMicros":{"p50":12,"p99":3.5,"max":null}}}"#;
        let latency = serde_json::from_str::<Status>(embedded).unwrap().store.commit_latency_micros.unwrap();
        assert_eq!((latency.p50, latency.p99, latency.max), (Some(12.0), Some(3.5), None));
    }
}
