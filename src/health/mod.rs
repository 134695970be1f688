//! Health of the server: named parts, each ready or not ready with a reason.
//!
//! The owner of a part reports its state here. `GET /readyz` answers 503 and names every part that is not ready. One
//! `Health` belongs to one server: the store creates it ([`Store::health`](crate::store::Store::health)), because the
//! store is opened first. [`LogLimit`] limits the rate of repeated log lines.

mod log_limit;
mod supervisor;

use std::{
    collections::BTreeMap,
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;

pub use log_limit::LogLimit;
pub(crate) use log_limit::{info_seldom, warn_seldom};
pub use supervisor::supervise;

/// Shortest time between two ERROR lines about one part. A part that flaps is logged once per interval.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// State of the parts of one server.
#[derive(Default)]
pub struct Health {
    /// Names are constants of the code, never text of a peer, so the map is bounded.
    parts: Mutex<BTreeMap<&'static str, Part>>,
    restarts: Counter,
}

/// State of one part.
struct Part {
    /// `None` while the part is ready.
    reason: Option<Arc<str>>,
    /// When the part became not ready.
    since: Instant,
    /// When the last ERROR line about the part was written.
    logged: Option<Instant>,
    /// Whether that line has no "ready again" line after it yet.
    announced: bool,
}

/// A part that is not ready.
#[derive(Clone, Debug)]
pub struct NotReady {
    /// Name of the part.
    pub part: &'static str,
    /// Cause and remedy, in a sentence.
    pub reason: Arc<str>,
    /// Time since it became not ready.
    pub since: Duration,
}

impl Health {
    /// Marks a part as not ready, with a sentence for operators.
    ///
    /// Writes an ERROR line when the part was ready before. A repeated call replaces the reason and keeps the time.
    pub fn not_ready(&self, part: &'static str, reason: impl Into<Arc<str>>) {
        let (reason, now) = (reason.into(), Instant::now());
        let due = {
            let mut parts = self.parts.lock();
            let known = parts.entry(part).or_insert_with(|| Part::new(now));
            if known.reason.replace(reason.clone()).is_none() {
                known.since = now;
            }
            let due = !known.announced && known.logged.is_none_or(|logged| now - logged >= LOG_INTERVAL);
            if due {
                (known.logged, known.announced) = (Some(now), true);
            }
            due
        };
        if due {
            tracing::error!(part, %reason, "not ready");
        }
    }

    /// Marks a part as not ready without an ERROR line, which the caller has written already.
    pub fn not_ready_logged(&self, part: &'static str, reason: Arc<str>) {
        let now = Instant::now();
        let mut parts = self.parts.lock();
        let known = parts.entry(part).or_insert_with(|| Part::new(now));
        if known.reason.replace(reason).is_none() {
            known.since = now;
        }
        (known.logged, known.announced) = (Some(now), true);
    }

    /// Marks a part as ready.
    ///
    /// Writes an INFO line if the log reports the part as not ready.
    pub fn ready(&self, part: &'static str) {
        let lasted = {
            let mut parts = self.parts.lock();
            let Some(known) = parts.get_mut(part) else { return };
            if known.reason.take().is_none() {
                return;
            }
            std::mem::take(&mut known.announced).then(|| known.since.elapsed())
        };
        if let Some(lasted) = lasted {
            tracing::info!(part, seconds = lasted.as_secs(), "ready again");
        }
    }

    /// Marks a part as ready (`None`) or not ready (a reason).
    pub fn set(&self, part: &'static str, reason: Option<Arc<str>>) {
        match reason {
            Some(reason) => self.not_ready(part, reason),
            None => self.ready(part),
        }
    }

    /// Reports whether a part is not ready.
    pub fn is_not_ready(&self, part: &'static str) -> bool {
        self.parts.lock().get(part).is_some_and(|known| known.reason.is_some())
    }

    /// Returns the parts that are not ready, in the order of their names.
    pub fn reports(&self) -> Vec<NotReady> {
        let parts = self.parts.lock();
        let report = |(part, known): (&&'static str, &Part)| {
            let reason = known.reason.clone()?;
            Some(NotReady { part, reason, since: known.since.elapsed() })
        };
        parts.iter().filter_map(report).collect()
    }

    /// Returns the counter of restarted tasks.
    pub fn restarted(&self) -> Counter {
        self.restarts.clone()
    }
}

impl Part {
    fn new(since: Instant) -> Self {
        Self { reason: None, since, logged: None, announced: false }
    }
}

impl fmt::Display for NotReady {
    /// Writes one line. Line ends in a reason, which may quote another program, become spaces.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} (for {} s)", self.part, self.reason.replace(['\r', '\n'], " "), self.since.as_secs())
    }
}

impl fmt::Debug for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Health").field("not_ready", &self.reports()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn health_with_a_failed_part_reports_its_last_reason() {
        let health = Health::default();
        assert!(health.reports().is_empty());
        health.not_ready("store", "first");
        health.not_ready("store", "second");
        health.not_ready("accept", "no descriptors");
        let text: Vec<_> = health.reports().iter().map(ToString::to_string).collect();
        assert_eq!(text, ["accept: no descriptors (for 0 s)", "store: second (for 0 s)"]);
        health.ready("store");
        health.set("accept", None);
        health.ready("unknown");
        assert!(health.reports().is_empty());
    }
}
