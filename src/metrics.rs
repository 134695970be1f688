//! Metrics of the server. No label contains user input, so the number of time series is constant.

use prometheus_client::{
    encoding::text::encode,
    metrics::{counter::Counter, gauge::Gauge},
    registry::Registry,
};

macro_rules! metrics {
    ($($(#[doc = $help:literal])+ $field:ident: $kind:ident = $name:literal,)+) => {
        /// All metrics of one server. Counting is one atomic addition.
        #[derive(Debug, Default)]
        pub struct Metrics {
            registry: Registry,
            $($(#[doc = $help])+ pub $field: $kind,)+
        }

        impl Metrics {
            /// Creates metrics at zero.
            #[cfg(test)]
            #[must_use]
            pub fn new() -> Self {
                Self::with(Counter::default())
            }

            /// Creates metrics at zero, with the counters of [`Health`](crate::health::Health) and of the log.
            #[must_use]
            pub fn with(task_restarts: Counter) -> Self {
                let mut metrics = Self {
                    registry: Registry::with_prefix("mesa"),
                    task_restarts,
                    log_lines_dropped: crate::logging::dropped_lines(),
                    ..Self::default()
                };
                $(metrics.registry.register($name, concat!($($help),+).trim().trim_end_matches('.'), metrics.$field.clone());)+
                metrics
            }
        }
    };
}

metrics! {
    /// Open WebSocket connections.
    connections: Gauge = "connections",
    /// WebSocket connections accepted since the start.
    connections_accepted: Counter = "connections_accepted",
    /// Authenticated connections.
    sessions: Gauge = "sessions",
    /// Connections rejected or closed because of a limit, an invalid request or a protocol violation.
    rejected_connections: Counter = "connections_rejected",
    /// Idle HTTP connections closed in favour of new connections.
    evicted_connections: Counter = "connections_evicted",
    /// Failed authentications, timeouts included.
    authentication_failures: Counter = "authentication_failures",
    /// Wrong API keys, and wrong passwords of the Redis protocol.
    wrong_secrets: Counter = "wrong_secrets",
    /// Frames from clients that break the protocol.
    malformed_frames: Counter = "malformed_frames",
    /// Messages from clients.
    messages_received: Counter = "messages_received",
    /// Messages from clients rejected by middleware.
    middleware_rejections: Counter = "middleware_rejections",
    /// Accepted dispatches.
    dispatches: Counter = "dispatches",
    /// Entries appended to logs, one per recipient.
    messages_appended: Counter = "messages_appended",
    /// Entries rejected because of a user quota.
    messages_rejected: Counter = "messages_rejected",
    /// Pending entries evicted for newer ones because of a user quota.
    messages_dropped: Counter = "messages_dropped",
    /// Messages for offline users dropped because sync is off, one per user.
    sync_off_dropped: Counter = "messages_dropped_sync_off",
    /// Messages written to clients.
    deliveries: Counter = "deliveries",
    /// Messages written to clients that were pending when the client connected.
    redeliveries: Counter = "redeliveries",
    /// Acknowledgements from clients that moved a cursor.
    acknowledgements: Counter = "acknowledgements",
    /// Unsynced messages dropped for slow connections.
    unsynced_dropped: Counter = "unsynced_dropped",
    /// Entries stopped before a socket because they have another owner. Anything but zero is a bug.
    foreign_entries: Counter = "foreign_entries",
    /// Connected portals.
    portals: Gauge = "portals",
    /// Client events for portals.
    portal_events: Counter = "portal_events",
    /// Client events passed to another portal because theirs had disconnected.
    portal_events_forwarded: Counter = "portal_events_forwarded",
    /// Client events dropped because portals were too slow or did not reconnect.
    portal_events_dropped: Counter = "portal_events_dropped",
    /// Webhook events accepted by the backend.
    webhook_sent: Counter = "webhook_events_sent",
    /// Webhook requests that failed or were rejected by the backend.
    webhook_failures: Counter = "webhook_requests_failed",
    /// Webhook events dropped because the outbox was full.
    webhook_lost: Counter = "webhook_events_lost",
    /// Events in the webhook outbox.
    webhook_outbox_events: Gauge = "webhook_outbox_events",
    /// Bytes in the webhook outbox.
    webhook_outbox_bytes: Gauge = "webhook_outbox_bytes",
    /// Open connections of the Redis protocol.
    redis_protocol_connections: Gauge = "redis_protocol_connections",
    /// Commands of the Redis protocol.
    redis_protocol_commands: Counter = "redis_protocol_commands",
    /// Commands of the Redis protocol answered with an error, and input that is not a command.
    redis_protocol_commands_rejected: Counter = "redis_protocol_commands_rejected",
    /// Slow subscribers of the Redis protocol that were disconnected.
    redis_protocol_subscribers_disconnected: Counter = "redis_protocol_subscribers_disconnected",
    /// HTTP requests answered with success.
    http_succeeded: Counter = "http_requests_succeeded",
    /// HTTP requests answered with a client error (4xx, except 408).
    http_rejected: Counter = "http_requests_rejected",
    /// HTTP requests answered with a server error (5xx, and 408).
    http_failed: Counter = "http_requests_failed",
    /// Tasks that ended unexpectedly and were restarted.
    task_restarts: Counter = "task_restarts",
    /// Log lines dropped because they could not be written in time.
    log_lines_dropped: Counter = "log_lines_dropped",
}

impl Metrics {
    /// Encodes all metrics as `OpenMetrics` text.
    #[must_use]
    pub fn encode(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("writing to a String cannot fail");
        text
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    /// Returns the metrics that a text names and [`Metrics::encode`] lacks. A name that ends in `_` is a prefix.
    fn misnamed(text: &str, encoded: &str) -> Vec<String> {
        let words = text.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
        let named = words.filter(|word| word.starts_with("mesa_") && *word != "mesa_version");
        let is_encoded = |word: &str| {
            let end = if word.ends_with('_') { "" } else { " " };
            encoded.lines().any(|line| line.starts_with(&format!("{word}{end}")))
        };
        named.filter(|word| !is_encoded(word)).map(str::to_owned).collect()
    }

    fn check_names(path: &Path, encoded: &str, wrong: &mut Vec<String>) {
        if path.is_dir() {
            let files = fs::read_dir(path).expect("a directory");
            files.for_each(|file| check_names(&file.expect("a file").path(), encoded, wrong));
        } else if path.extension().is_some_and(|end| end == "rs" || end == "md") && !path.ends_with("metrics.rs") {
            let text = fs::read_to_string(path).expect("text");
            wrong.extend(misnamed(&text, encoded).iter().map(|name| format!("{}: {name}", path.display())));
        }
    }

    #[test]
    fn metric_named_in_a_text_is_encoded_under_that_name() {
        let encoded = Metrics::new().encode();
        let mut wrong = Vec::new();
        for path in ["src", "README.md"] {
            check_names(&Path::new(env!("CARGO_MANIFEST_DIR")).join(path), &encoded, &mut wrong);
        }
        assert!(wrong.is_empty(), "{wrong:?}");
    }

    #[test]
    fn encoded_metrics_have_names_values_and_help() {
        let metrics = Metrics::new();
        metrics.dispatches.inc();
        metrics.connections.set(3);
        let text = metrics.encode();
        assert!(text.contains("mesa_dispatches_total 1") && text.contains("mesa_connections 3"), "{text}");
        assert!(text.contains("# HELP mesa_foreign_entries Entries stopped"), "{text}");
    }
}
