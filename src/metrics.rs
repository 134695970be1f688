//! The counters, each named once. None has a label with anything a user chose: their number does not grow.

use prometheus_client::{
    encoding::text::encode,
    metrics::{counter::Counter, gauge::Gauge},
    registry::Registry,
};

macro_rules! metrics {
    ($($(#[doc = $help:literal])+ $field:ident: $kind:ident = $name:literal,)+) => {
        /// What the server counts. Shared by all of it; counting is one atomic addition.
        #[derive(Debug, Default)]
        pub struct Metrics {
            registry: Registry,
            $($(#[doc = $help])+ pub $field: $kind,)+
        }

        impl Metrics {
            /// All at zero.
            #[cfg(test)]
            #[must_use]
            pub fn new() -> Self {
                Self::with(Counter::default())
            }

            /// All at zero but what others count: restarted tasks, in [`Health`](crate::health::Health), and dropped log lines.
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
    /// WebSocket connections that are open.
    connections: Gauge = "connections",
    /// WebSocket connections ever taken.
    connections_total: Counter = "connections_taken",
    /// Connections that are authenticated.
    sessions: Gauge = "sessions",
    /// Connections refused or cut for a limit, a bad request or a broken rule.
    refused_connections: Counter = "connections_refused",
    /// HTTP connections without a request that were closed because another connection needed their place.
    evicted_connections: Counter = "connections_evicted",
    /// Authentications that failed or timed out.
    authentication_failures: Counter = "authentication_failures",
    /// API keys, and passwords of the Redis protocol, that were wrong.
    wrong_secrets: Counter = "wrong_secrets",
    /// Frames from clients that could not be taken.
    malformed_frames: Counter = "malformed_frames",
    /// Messages from clients.
    messages_received: Counter = "messages_received",
    /// Messages from clients that a middleware refused.
    messages_refused: Counter = "messages_refused",
    /// Dispatches taken in.
    dispatches: Counter = "dispatches",
    /// Entries appended to logs, one per recipient.
    messages_appended: Counter = "messages_appended",
    /// Entries that were not appended because the user had as much pending as is allowed.
    messages_rejected: Counter = "messages_rejected",
    /// Entries dropped for newer ones because the user had as much pending as is allowed.
    messages_dropped: Counter = "messages_dropped",
    /// Messages for offline users that were dropped because sync is off, one per user.
    sync_off_dropped: Counter = "messages_dropped_sync_off",
    /// Messages written to clients.
    deliveries: Counter = "deliveries",
    /// Those of them that were owed when the client connected.
    redeliveries: Counter = "redeliveries",
    /// Receipts from clients that confirmed something.
    receipts: Counter = "receipts",
    /// Unsynced messages dropped because a connection was too slow for them.
    unsynced_dropped: Counter = "unsynced_dropped",
    /// Entries stopped before a socket because their stamp named somebody else. Anything but zero is a bug.
    foreign_entries: Counter = "foreign_entries",
    /// Portals that are there.
    portals: Gauge = "portals",
    /// Things that happened to clients while somebody wanted to be told.
    portal_events: Counter = "portal_events",
    /// Events that a portal had not taken when it went, and that went on to another.
    portal_events_passed_on: Counter = "portal_events_passed_on",
    /// Events dropped because portals were too slow or did not come back.
    portal_events_dropped: Counter = "portal_events_dropped",
    /// Events that the receiver of the webhook has taken.
    webhook_sent: Counter = "webhook_events_sent",
    /// Requests to the receiver of the webhook that it did not take, or that did not reach it.
    webhook_failures: Counter = "webhook_requests_failed",
    /// Events lost because the outbox of the webhook was full.
    webhook_lost: Counter = "webhook_events_lost",
    /// Events in the outbox of the webhook.
    webhook_outbox_events: Gauge = "webhook_outbox_events",
    /// Bytes of them.
    webhook_outbox_bytes: Gauge = "webhook_outbox_bytes",
    /// Connections that speak the Redis protocol.
    redis_protocol_connections: Gauge = "redis_protocol_connections",
    /// Commands of the Redis protocol.
    redis_protocol_commands: Counter = "redis_protocol_commands",
    /// Those of them that were answered with an error, and what was no command at all.
    redis_protocol_commands_refused: Counter = "redis_protocol_commands_refused",
    /// Subscribers that were cut because they let too much pile up.
    redis_protocol_subscribers_cut: Counter = "redis_protocol_subscribers_cut",
    /// HTTP requests answered with success.
    http_succeeded: Counter = "http_requests_succeeded",
    /// HTTP requests answered with an error of the caller's.
    http_refused: Counter = "http_requests_refused",
    /// HTTP requests answered with an error of ours.
    http_failed: Counter = "http_requests_failed",
    /// Tasks of the server that ended unexpectedly and were started again.
    task_restarts: Counter = "task_restarts",
    /// Log lines that were dropped: they came faster than they were read, or could not be written.
    log_lines_dropped: Counter = "log_lines_dropped",
}

impl Metrics {
    /// All of them in the text form of Prometheus.
    #[must_use]
    pub fn encode(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        encode(&mut text, &self.registry).expect("a String takes everything");
        text
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    /// Metrics that a text names, and which [`Metrics::encode`] has no line for. `mesa_x_…` stands for several.
    fn misnamed(text: &str, encoded: &str) -> Vec<String> {
        let words = text.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
        let named = words.filter(|word| word.starts_with("mesa_") && *word != "mesa_version");
        let is_there = |word: &str| {
            let end = if word.ends_with('_') { "" } else { " " };
            encoded.lines().any(|line| line.starts_with(&format!("{word}{end}")))
        };
        named.filter(|word| !is_there(word)).map(str::to_owned).collect()
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
    fn metric_named_in_a_text_is_in_the_answer_under_that_name() {
        let encoded = Metrics::new().encode();
        let mut wrong = Vec::new();
        for path in ["src", "README.md"] {
            check_names(&Path::new(env!("CARGO_MANIFEST_DIR")).join(path), &encoded, &mut wrong);
        }
        assert!(wrong.is_empty(), "{wrong:?}");
    }

    #[test]
    fn every_counter_is_in_the_text_under_its_name() {
        let metrics = Metrics::new();
        metrics.dispatches.inc();
        metrics.connections.set(3);
        let text = metrics.encode();
        assert!(text.contains("mesa_dispatches_total 1") && text.contains("mesa_connections 3"), "{text}");
        assert!(text.contains("# HELP mesa_foreign_entries Entries stopped"), "{text}");
    }
}
