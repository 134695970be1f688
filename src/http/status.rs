//! Serves `GET /v1/status`: figures of the server, for people and for programs without a metrics system.

use std::{sync::Arc, time::Duration};

use axum::{extract::State as FromState, http::StatusCode, response::Response};
use serde::Serialize;
use utoipa::ToSchema;

use super::{Api, State};
use crate::{
    metrics::{Process, Quantiles, StoreFigures, VERSION},
    util::rfc3339,
};

/// State of the server. Counters begin at its start.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct Status {
    /// Version of the server.
    version: &'static str,
    /// When the server was started.
    started_at: String,
    /// Seconds since then.
    uptime_seconds: u64,
    /// Whether the server is ready, as `/readyz` answers.
    ready: bool,
    /// Why it is not ready: a sentence for each part.
    not_ready_reason: Option<String>,
    connections: ConnectionStatus,
    users: UserStatus,
    messages: MessageStatus,
    pending: PendingStatus,
    store: StoreStatus,
    /// `null`: this system does not tell them.
    process: Option<ProcessStatus>,
    /// `null`: no webhook is configured.
    webhooks: Option<WebhookStatus>,
}

/// WebSocket connections of this server.
#[derive(Debug, Serialize, ToSchema)]
struct ConnectionStatus {
    /// Open connections.
    open: i64,
    /// Open connections that are authenticated.
    authenticated: i64,
    /// Connections accepted since the start.
    accepted: u64,
    /// Connections rejected or closed because of a limit, an invalid request or a protocol violation.
    rejected: u64,
}

/// Users of this server.
#[derive(Debug, Serialize, ToSchema)]
struct UserStatus {
    /// Users with an authenticated connection.
    online: usize,
}

/// Messages since the start.
#[derive(Debug, Serialize, ToSchema)]
struct MessageStatus {
    /// Accepted dispatches.
    dispatches: u64,
    /// Entries appended to logs, one per recipient.
    appended: u64,
    /// Messages written to clients.
    delivered: u64,
    /// Messages written to clients that were pending when the client connected.
    redelivered: u64,
    /// Acknowledgements from clients that moved a cursor.
    acknowledged: u64,
    /// Entries rejected because of a user quota.
    rejected: u64,
    /// Pending entries evicted for newer ones because of a user quota.
    dropped: u64,
}

/// Stored messages; `null` if the logs are in Redis.
#[derive(Debug, Serialize, ToSchema)]
struct PendingStatus {
    /// Messages stored for users and not removed yet. An acknowledged one may count until its block is removed.
    messages: Option<u64>,
    /// Bytes of payload of these messages.
    bytes: Option<u64>,
}

/// State of the store. Figures that do not apply are `null`.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct StoreStatus {
    /// `embedded`, or `redis`.
    kind: &'static str,
    /// Bytes in the write-ahead log that are not flushed yet.
    wal_bytes: Option<u64>,
    /// Memory of the messages in the write-ahead log.
    memory_bytes: Option<u64>,
    /// Bytes of the files of the store.
    disk_bytes: Option<u64>,
    /// Free bytes on the disk of the store.
    disk_free_bytes: Option<u64>,
    /// Age of the oldest record in the write-ahead log.
    flush_lag_seconds: Option<f64>,
    /// Commits since the start.
    commits: Option<u64>,
    /// Durations of the commits of the last minute, in microseconds.
    commit_latency_micros: Option<LatencyStatus>,
}

/// Durations, in microseconds.
#[derive(Debug, Serialize, ToSchema)]
struct LatencyStatus {
    /// Median.
    p50: u64,
    /// 99 % are at most this long.
    p99: u64,
    /// The longest one.
    max: u64,
}

/// State of the process.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct ProcessStatus {
    /// Processor time in user and system mode.
    cpu_seconds: f64,
    /// Memory in RAM.
    resident_bytes: u64,
    /// Open file descriptors.
    open_files: u64,
}

/// Webhook events that wait for the backend.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct WebhookStatus {
    /// Number of events in the outbox.
    outbox_events: u64,
    /// Bytes of these events.
    outbox_bytes: u64,
}

impl StoreStatus {
    fn new(is_remote: bool, figures: Option<&StoreFigures>) -> Self {
        let disk = figures.and_then(|figures| figures.disk);
        Self {
            kind: if is_remote { "redis" } else { "embedded" },
            wal_bytes: figures.map(|figures| figures.wal_bytes),
            memory_bytes: figures.map(|figures| figures.memory_bytes),
            disk_bytes: disk.map(|(used, _)| used),
            disk_free_bytes: disk.map(|(_, free)| free),
            flush_lag_seconds: figures.map(|figures| seconds(figures.flush_lag)),
            commits: figures.map(|figures| figures.commit_latency.count()),
            commit_latency_micros: figures.map(|figures| figures.commit_latency.recent().into()),
        }
    }
}

impl From<Quantiles> for LatencyStatus {
    fn from(Quantiles { p50, p99, max }: Quantiles) -> Self {
        Self { p50, p99, max }
    }
}

/// Rounds to milliseconds.
fn seconds(duration: Duration) -> f64 {
    duration.as_millis() as f64 / 1000.0
}

impl Status {
    /// Collects the figures. Reads `/proc`, so it must not run on the event loop.
    fn of(api: &Api) -> Self {
        let (hub, metrics) = (&api.hub, &api.metrics);
        let (started, since) = metrics.started();
        let not_ready = hub.ready().err().map(|parts| {
            let parts: Vec<_> = parts.iter().map(ToString::to_string).collect();
            parts.join("; ")
        });
        let figures = hub.store_figures();
        let process = Process::read();
        Self {
            version: VERSION,
            started_at: rfc3339::rfc3339(started),
            uptime_seconds: since.elapsed().as_secs(),
            ready: not_ready.is_none(),
            not_ready_reason: not_ready,
            connections: ConnectionStatus {
                open: metrics.connections.get(),
                authenticated: metrics.sessions.get(),
                accepted: metrics.connections_accepted.get(),
                rejected: metrics.rejected_connections.get(),
            },
            users: UserStatus { online: hub.online_count() },
            messages: MessageStatus {
                dispatches: metrics.dispatches.get(),
                appended: metrics.messages_appended.get(),
                delivered: metrics.deliveries.get(),
                redelivered: metrics.redeliveries.get(),
                acknowledged: metrics.acknowledgements.get(),
                rejected: metrics.messages_rejected.get(),
                dropped: metrics.messages_dropped.get(),
            },
            pending: PendingStatus {
                messages: figures.as_ref().map(|figures| figures.pending_messages),
                bytes: figures.as_ref().map(|figures| figures.pending_bytes),
            },
            store: StoreStatus::new(hub.is_store_remote(), figures.as_ref()),
            process: process.map(|process| ProcessStatus {
                cpu_seconds: process.cpu_seconds,
                resident_bytes: process.resident_bytes,
                open_files: process.open_files,
            }),
            webhooks: hub
                .outbox_status()
                .map(|outbox| WebhookStatus { outbox_events: outbox.events, outbox_bytes: outbox.bytes }),
        }
    }
}

/// Serves `GET /v1/status`.
pub(super) async fn status(FromState(api): State) -> Response {
    let status = blocking(&api, Status::of).await;
    // Maps with string keys always have a JSON form.
    super::json(StatusCode::OK, serde_json::to_vec(&status).expect("a status is JSON"))
}

/// Runs `work`, which reads `/proc`, away from the event loop.
pub(super) async fn blocking<T, W>(api: &Arc<Api>, work: W) -> T
where
    T: Send + 'static,
    W: FnOnce(&Api) -> T + Send + 'static,
{
    let api = api.clone();
    match tokio::task::spawn_blocking(move || work(&api)).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // Cancelled only when the runtime stops, which drops this future too.
            Err(_) => std::future::pending().await,
        },
    }
}
