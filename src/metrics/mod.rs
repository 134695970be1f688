//! Metrics of the server. No label contains user input, so the number of time series is constant.
//!
//! - `latency`: histograms, and quantiles of the last minute
//! - `store`: figures of a store · `process`: figures of this process
//! - `exposition`: the text formats of a scrape

mod exposition;
mod latency;
mod process;
mod store;

use std::time::{Instant, SystemTime};

use prometheus_client::{
    encoding::text::encode_registry,
    metrics::{counter::Counter, gauge::Gauge, info::Info},
    registry::Registry,
};

pub use self::{
    exposition::Format,
    latency::{Latency, Quantiles},
    process::Process,
    store::StoreFigures,
};
use process::ProcessCollector;

/// Version of the server.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Optional parts with which the server was built.
const FEATURES: &str = match (cfg!(feature = "redis"), cfg!(feature = "opentelemetry")) {
    (false, false) => "",
    (true, false) => "redis",
    (false, true) => "opentelemetry",
    (true, true) => "redis,opentelemetry",
};

macro_rules! metrics {
    ($($(#[doc = $help:literal])+ $field:ident: $kind:ident = $name:literal,)+) => {
        /// All metrics of one server. Counting is one atomic addition.
        #[derive(Debug)]
        pub struct Metrics {
            registry: Registry,
            /// When the server was started, by two clocks.
            started: (SystemTime, Instant),
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
                    started: (SystemTime::now(), Instant::now()),
                    $($field: Default::default(),)+
                };
                metrics.task_restarts = task_restarts;
                metrics.log_lines_dropped = crate::logging::dropped_lines();
                let build = vec![("version", VERSION), ("features", FEATURES)];
                metrics.registry.register("build", "Version of the server, and its optional parts", Info::new(build));
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
    /// Users with an authenticated connection to this server.
    users_online: Gauge = "users_online",
    /// Whether the server is ready, as `/readyz` answers: 1 or 0.
    ready: Gauge = "ready",
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
    /// Durations of accepted dispatches, until every entry is as durable as configured.
    dispatch_latency: Latency = "dispatch_duration_seconds",
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
    /// Encodes all metrics for a scrape.
    ///
    /// Reads figures of the process from the disk, so it must not run on the event loop.
    #[must_use]
    pub fn encode(&self, format: Format, store: Option<&StoreFigures>) -> String {
        let mut samples = Registry::with_prefix("mesa");
        if let Some(store) = store {
            store.register(&mut samples);
        }
        let mut process = Registry::default();
        process.register_collector(Box::new(ProcessCollector));
        let mut text = String::new();
        for registry in [&self.registry, &samples, &process] {
            encode_registry(&mut text, registry).expect("writing to a String cannot fail");
        }
        format.convert(text + "# EOF\n")
    }

    /// Returns when the server was started, by the system clock and as a point in time.
    #[must_use]
    pub fn started(&self) -> (SystemTime, Instant) {
        self.started
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path, time::Duration};

    use super::*;

    fn figures() -> StoreFigures {
        StoreFigures {
            pending_messages: 3,
            pending_bytes: 40,
            wal_bytes: 500,
            memory_bytes: 6000,
            disk: Some((70_000, 800_000)),
            flush_lag: Duration::from_millis(1500),
            commit_latency: Latency::default(),
        }
    }

    fn encoded(format: Format) -> String {
        Metrics::new().encode(format, Some(&figures()))
    }

    /// Returns the metrics that a text names and [`Metrics::encode`] lacks. A name that ends in `_` is a prefix.
    fn misnamed(text: &str, encoded: &str) -> Vec<String> {
        let words = text.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
        // A script of the guide has a variable, and the admin page a cookie.
        let is_other = |word: &str| word == "mesa_version" || word.starts_with("mesa_admin");
        let is_metric = |word: &&str| word.starts_with("mesa_") && !is_other(word);
        let named = words.filter(is_metric);
        let is_encoded = |word: &str| {
            let end = if word.ends_with('_') { "" } else { " " };
            // A sample without labels, one with labels, or a family.
            let known = [format!("{word}{end}"), format!("{word}{{"), format!("# TYPE {word} ")];
            encoded.lines().any(|line| known.iter().any(|known| line.starts_with(known)))
        };
        named.filter(|word| !is_encoded(word)).map(str::to_owned).collect()
    }

    fn check_names(path: &Path, encoded: &str, wrong: &mut Vec<String>) {
        if path.is_dir() {
            let files = fs::read_dir(path).expect("a directory");
            files.for_each(|file| check_names(&file.expect("a file").path(), encoded, wrong));
        } else if path.extension().is_some_and(|end| end == "rs" || end == "md")
            && !path.starts_with(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/metrics"))
        {
            let text = fs::read_to_string(path).expect("text");
            wrong.extend(misnamed(&text, encoded).iter().map(|name| format!("{}: {name}", path.display())));
        }
    }

    #[test]
    fn metric_named_in_a_text_is_encoded_under_that_name() {
        let encoded = encoded(Format::Classic);
        let mut wrong = Vec::new();
        for path in ["src", "data/deploy", "README.md"] {
            check_names(&Path::new(env!("CARGO_MANIFEST_DIR")).join(path), &encoded, &mut wrong);
        }
        assert!(wrong.is_empty(), "{wrong:?}");
    }

    #[test]
    fn encoded_metrics_have_names_values_and_help() {
        let metrics = Metrics::new();
        metrics.dispatches.inc();
        metrics.connections.set(3);
        metrics.dispatch_latency.record(Duration::from_micros(700));
        let build = format!("mesa_build_info{{version=\"{VERSION}\",features=\"{FEATURES}\"}} 1\n");
        for (format, counter) in [(Format::OpenMetrics, "mesa_dispatches"), (Format::Classic, "mesa_dispatches_total")]
        {
            let text = metrics.encode(format, Some(&figures()));
            for line in [
                &format!("# HELP {counter} Accepted dispatches.\n# TYPE {counter} counter\nmesa_dispatches_total 1\n"),
                "\nmesa_connections 3\n",
                "# HELP mesa_foreign_entries",
                "\nmesa_dispatch_duration_seconds_bucket{le=\"0.0005\"} 0\n",
                "\nmesa_dispatch_duration_seconds_bucket{le=\"0.001\"} 1\n",
                "\nmesa_dispatch_duration_seconds_bucket{le=\"+Inf\"} 1\n",
                "\nmesa_dispatch_duration_seconds_count 1\n",
                "\nmesa_pending_messages 3\n",
                "\nmesa_store_disk_free_bytes 800000\n",
                "\nmesa_store_flush_lag_seconds 1.5\n",
                "\nmesa_commit_duration_seconds_count 0\n",
                &build,
            ] {
                assert!(text.contains(line), "{format:?}: expected {line:?} in\n{text}");
            }
            assert_eq!(text.ends_with("\n# EOF\n"), format == Format::OpenMetrics);
            assert_eq!(text.contains("# TYPE mesa_build info"), format == Format::OpenMetrics);
            assert_eq!(text.contains("\nprocess_open_fds "), cfg!(target_os = "linux"));
        }
        assert!(!metrics.encode(Format::Classic, None).contains("mesa_pending"), "a store in Redis has no such figure");
    }

    #[test]
    fn family_has_help_and_type_and_occurs_once() {
        let text = encoded(Format::Classic);
        let mut families = std::collections::BTreeSet::new();
        let mut lines = text.lines().peekable();
        while let Some(line) = lines.next() {
            let Some(help) = line.strip_prefix("# HELP ") else {
                let name = line.split([' ', '{']).next().unwrap_or_default();
                let is_known = |suffix| families.contains(name.trim_end_matches(suffix));
                assert!(["", "_bucket", "_sum", "_count"].iter().any(|suffix| is_known(*suffix)), "{line}");
                continue;
            };
            let (name, help) = help.split_once(' ').expect(line);
            assert!(help.len() > 8 && help.ends_with('.') && !help.ends_with("..") && !help.contains("  "), "{line}");
            assert!(lines.next().is_some_and(|kind| kind.starts_with(&format!("# TYPE {name} "))), "{line}");
            assert!(families.insert(name.to_owned()), "{line}");
        }
        assert!(families.len() > 50, "{families:?}");
    }
}
