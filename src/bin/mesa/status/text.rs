//! Formats the state of a server as lines.

use std::time::Duration;

use mesa::dispatcher::{CommitLatency, Status};

use crate::output::{count, grouped, printable, size};

/// Changes per second between two states of a server.
pub struct Rates {
    /// In the order of [`MESSAGES`].
    messages: [f64; MESSAGES.len()],
    commits: Option<f64>,
    /// CPU time per time: 1 is one core.
    cores: Option<f64>,
}

/// Reads a count.
type Counter = fn(&Status) -> u64;

/// Rows of the table of messages, each with its count.
const MESSAGES: [(&str, Counter); 7] = [
    ("dispatches", |status| status.messages.dispatches),
    ("appended", |status| status.messages.appended),
    ("delivered", |status| status.messages.delivered),
    ("redelivered", |status| status.messages.redelivered),
    ("acknowledged", |status| status.messages.acknowledged),
    ("rejected", |status| status.messages.rejected),
    ("dropped", |status| status.messages.dropped),
];

impl Rates {
    /// Returns the rates between two states; `None` if the server was restarted meanwhile.
    pub fn between(before: &Status, now: &Status, elapsed: Duration) -> Option<Self> {
        if before.started_at != now.started_at || elapsed.is_zero() {
            return None;
        }
        let per_second = |before: f64, now: f64| (now - before).max(0.0) / elapsed.as_secs_f64();
        let commits = before.store.commits.zip(now.store.commits);
        let cpu_seconds = |status: &Status| status.process.and_then(|process| process.cpu_seconds);
        let cores = cpu_seconds(before).zip(cpu_seconds(now));
        Some(Self {
            messages: MESSAGES.map(|(_, of)| per_second(of(before) as f64, of(now) as f64)),
            commits: commits.map(|(before, now)| per_second(before as f64, now as f64)),
            cores: cores.map(|(before, now)| per_second(before, now)),
        })
    }
}

/// Formats a state. Without rates only totals are shown.
pub fn lines(address: &str, status: &Status, rates: Option<&Rates>) -> Vec<String> {
    let ready = match &status.not_ready_reason {
        _ if status.ready => "ready".into(),
        Some(reason) => format!("NOT READY: {}", printable(reason)),
        None => "NOT READY".into(),
    };
    let up = uptime(Duration::try_from_secs_f64(status.uptime_seconds).unwrap_or_default());
    let mut lines = vec![
        format!("mesa {} at {address}, up {up}", printable(&status.version)),
        ready,
        String::new(),
        row(
            "connections",
            [
                format!("{} open", grouped(status.connections.open)),
                format!("{} authenticated", grouped(status.connections.authenticated)),
                format!("{} accepted", grouped(status.connections.accepted)),
                format!("{} rejected", grouped(status.connections.rejected)),
            ],
        ),
        row("users", [format!("{} online", grouped(status.users.online))]),
    ];
    if let (Some(messages), Some(bytes)) = (status.pending.messages, status.pending.bytes) {
        lines.push(row("pending", [format!("{} messages", grouped(messages)), size(bytes)]));
    }
    lines.push(String::new());
    lines.push(format!("{:<14}{:>16}{}", "messages", "total", rates.map_or("", |_| "    per second")));
    for (at, (name, of)) in MESSAGES.iter().enumerate() {
        let rate = rates.map(|rates| format!("{:>14.1}", rates.messages[at]));
        lines.push(format!("  {name:<12}{:>16}{}", grouped(of(status)), rate.unwrap_or_default()));
    }
    lines.push(String::new());
    lines.extend(store(status, rates));
    if let Some(process) = &status.process {
        let cpu = rates.and_then(|rates| rates.cores).map(|cores| format!("{:.0} % CPU", 100.0 * cores));
        let memory = process.resident_bytes.map(|bytes| format!("{} of memory", size(bytes)));
        let files = process.open_files.map(|files| format!("{} open", count(files, "file")));
        lines.push(row("process", [cpu, memory, files].map(Option::unwrap_or_default)));
    }
    if let Some(webhooks) = &status.webhooks {
        let waiting = format!("{} in the outbox", count(webhooks.outbox_events, "event"));
        lines.push(row("webhooks", [waiting, size(webhooks.outbox_bytes)]));
    }
    lines
}

fn store(status: &Status, rates: Option<&Rates>) -> Vec<String> {
    let store = &status.store;
    let sized =
        |name: &str, bytes: Option<u64>| bytes.map(|bytes| format!("{name} {}", size(bytes))).unwrap_or_default();
    let latency = |of: fn(&CommitLatency) -> Option<f64>| {
        let micros = store.commit_latency_micros.as_ref().and_then(of);
        micros.map_or_else(|| "-".into(), |micros| format!("{:.1} ms", micros / 1000.0))
    };
    let mut lines = vec![row(
        "store",
        [
            printable(&store.kind),
            sized("disk", store.disk_bytes),
            sized("free", store.disk_free_bytes),
            sized("memory", store.memory_bytes),
        ],
    )];
    if store.wal_bytes.is_some() || store.flush_lag_seconds.is_some() {
        let lag = store.flush_lag_seconds.map(|seconds| format!("flush lag {seconds:.1} s"));
        lines.push(row("WAL", [sized("", store.wal_bytes).trim().to_owned(), lag.unwrap_or_default()]));
    }
    if store.commit_latency_micros.is_some() {
        let rate = rates.and_then(|rates| rates.commits).map(|rate| format!("{rate:.1} per second"));
        lines.push(row(
            "commits",
            [
                format!("p50 {}", latency(|latency| latency.p50)),
                format!("p99 {}", latency(|latency| latency.p99)),
                format!("max {}", latency(|latency| latency.max)),
                rate.unwrap_or_default(),
            ],
        ));
    }
    lines
}

/// Formats a name with values. Empty values are left out.
fn row<const N: usize>(name: &str, values: [String; N]) -> String {
    let values: Vec<_> = values.into_iter().filter(|value| !value.is_empty()).collect();
    format!("{name:<14}{}", values.join(", "))
}

/// Formats a time by its two largest units: `3 d 4 h`.
fn uptime(time: Duration) -> String {
    let seconds = time.as_secs();
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min {} s", seconds % 60),
        (0, ..) => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{from_value, json};

    use super::*;

    fn status(dispatches: u64, started: &str) -> Status {
        from_value(json!({
            "version": "0.1.0", "startedAt": started, "uptimeSeconds": 93_784, "ready": true,
            "connections": { "open": 1_234_567 }, "messages": { "dispatches": dispatches },
            "pending": { "messages": 12, "bytes": 2048 }, "process": { "cpuSeconds": dispatches as f64 / 1000.0 },
            "store": { "kind": "embedded", "commitLatencyMicros": { "p50": 400, "p99": 1900, "max": 12_000 } },
        }))
        .unwrap()
    }

    #[test]
    fn rates_are_per_second_and_absent_after_a_restart() {
        let elapsed = Duration::from_secs(2);
        let rates = Rates::between(&status(100, "a"), &status(600, "a"), elapsed).unwrap();
        let shown = lines("http://h", &status(600, "a"), Some(&rates)).join("\n");
        assert!(shown.contains("  dispatches               600         250.0\n"), "{shown}");
        assert!(shown.contains("25 % CPU"), "{shown}");
        assert!(Rates::between(&status(600, "a"), &status(1, "b"), elapsed).is_none());
    }

    #[test]
    fn state_fits_on_a_small_terminal_and_controls_none() {
        let mut state = status(7, "a");
        (state.ready, state.not_ready_reason) = (false, Some("disk\x1b[31m full".into()));
        let lines = lines("http://h", &state, None);
        let shown = lines.join("\n");
        assert!(lines.len() <= 24 && lines.iter().all(|line| line.chars().count() <= 80), "{shown}");
        assert!(shown.contains("mesa 0.1.0 at http://h, up 1 d 2 h\nNOT READY: disk\\u{1b}[31m full\n"), "{shown}");
        assert!(shown.contains("1,234,567 open") && shown.contains("12 messages, 2.0 KiB"), "{shown}");
        assert!(shown.contains("p50 0.4 ms, p99 1.9 ms, max 12.0 ms"), "{shown}");
    }

    #[test]
    fn uptime_has_two_units() {
        let shown = [5, 65, 3_660, 90_000].map(|seconds| uptime(Duration::from_secs(seconds)));
        assert_eq!(shown, ["5 s", "1 min 5 s", "1 h 1 min", "1 d 1 h"]);
    }
}
