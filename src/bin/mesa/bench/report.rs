//! Shows the result of a measurement.

use std::fmt::Write as _;

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::output::grouped;

/// Result of a measurement. Absent fields do not apply, or the server's system does not report them.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    pub work: String,
    pub users: u64,
    /// Deliveries, dispatches or connections.
    pub operations: u64,
    /// Bytes of data in a message.
    pub bytes: u64,
    pub seconds: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per_second: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[serde(rename = "latencyUs")]
    pub latency: Option<Latency>,
    /// CPU time of the server for one operation, in microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_cpu_us: Option<f64>,
    /// Percent of one core.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_cpu_percent: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_resident_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_per_connection: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub received: Option<u64>,
    pub repeated: u64,
    pub reordered: u64,
    pub rejected: u64,
    /// Connections that the server closed.
    pub closed: u64,
}

/// Latencies in microseconds: of a message from its dispatch until its client has it, or of a connection.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Latency {
    pub p50: u64,
    pub p90: u64,
    pub p99: u64,
    pub p999: u64,
    pub max: u64,
}

impl Latency {
    /// Returns the percentiles; `None` without any latency.
    pub fn of(latencies: &Histogram<u64>) -> Option<Self> {
        let at = |quantile| latencies.value_at_quantile(quantile);
        (!latencies.is_empty()).then(|| Self {
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: latencies.max(),
        })
    }
}

impl Report {
    /// Returns what the server did wrong, or `None`.
    pub fn violation(&self) -> Option<String> {
        let lost = self.received.map_or(0, |received| self.operations.saturating_sub(received));
        let wrong = [
            (lost, "lost"),
            (self.repeated, "repeated"),
            (self.reordered, "out of order"),
            (self.rejected, "rejected"),
        ];
        let mut wrong: Vec<String> =
            wrong.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")).collect();
        if self.closed > 0 {
            wrong.push(format!("{} connections closed by the server", self.closed));
        }
        (!wrong.is_empty()).then(|| format!("not every message arrived once and in order: {}", wrong.join(", ")))
    }

    /// Returns the result as lines for a terminal.
    pub fn table(&self) -> String {
        let (noun, each) = match &*self.work {
            "connect" | "idle" => ("connections", "connection"),
            "enqueue" => ("dispatches", "dispatch"),
            _ => ("deliveries", "delivery"),
        };
        let mut table = match &*self.work {
            "idle" => format!("idle: {} connections", grouped(self.users)),
            "connect" => format!("connect: {} clients", grouped(self.users)),
            work => format!(
                "{work}: {} {noun} of {} bytes, {} users",
                grouped(self.operations),
                self.bytes,
                grouped(self.users)
            ),
        };
        // Writing to a String cannot fail.
        let mut row = |name: &str, value: String| _ = write!(table, "\n  {name:<16}{value}");
        row("time", format!("{:.2} s", self.seconds));
        if let Some(rate) = self.per_second {
            row("rate", format!("{} {noun}/s", grouped((rate.round() as i64).unsigned_abs())));
        }
        if let Some(latency) = &self.latency {
            let ms = |us: u64| format!("{:.2} ms", us as f64 / 1000.0);
            let Latency { p50, p90, p99, p999, max } = *latency;
            row(
                "latency",
                format!("p50 {}, p90 {}, p99 {}, p99.9 {}, max {}", ms(p50), ms(p90), ms(p99), ms(p999), ms(max)),
            );
        }
        if let Some(cpu) = self.server_cpu_us {
            row("server CPU", format!("{cpu:.2} µs per {each}"));
        }
        if let Some(percent) = self.server_cpu_percent {
            row("server CPU", format!("{percent:.1} % of a core"));
        }
        if let Some(bytes) = self.bytes_per_connection {
            row("server memory", format!("{:.1} kB per connection", bytes / 1000.0));
        }
        if let Some(bytes) = self.server_resident_bytes {
            row("server memory", format!("{} MB in all", bytes / 1_000_000));
        }
        if let Some(received) = self.received {
            let state = if self.violation().is_none() { ", each once and in order" } else { "" };
            row("received", format!("{} of {}{state}", grouped(received), grouped(self.operations)));
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn report_with_a_lost_or_reordered_message_is_a_violation() {
        let good = Report { operations: 10, received: Some(10), ..Report::default() };
        assert_eq!(good.violation(), None);
        let lost = Report { received: Some(9), ..good };
        assert!(lost.violation().unwrap().contains("1 lost"));
        let reordered = Report { reordered: 2, closed: 1, received: Some(10), operations: 10, ..Report::default() };
        let violation = reordered.violation().unwrap();
        assert!(violation.contains("2 out of order, 1 connections closed"), "{violation}");
    }
}
