//! States what the commit thread is doing, and for how long. `/readyz` reports a step that does not end, and the log one
//! that took long.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use crate::health::{LogLimit, warn_seldom};

/// Names a step of the commit thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Assigns sequences and writes records.
    Commit,
    /// Syncs the write-ahead log.
    Sync,
    /// Writes webhook events.
    Outbox,
    /// Writes rows of connected users.
    Connected,
    /// Removes blocks of acknowledged entries.
    Trim,
    /// Moves entries to the value log.
    Flush,
    /// Reclaims space, and removes expired entries.
    Maintenance,
    /// Closes the store.
    Close,
}

impl Step {
    const ALL: [Self; 8] = [
        Self::Commit,
        Self::Sync,
        Self::Outbox,
        Self::Connected,
        Self::Trim,
        Self::Flush,
        Self::Maintenance,
        Self::Close,
    ];

    /// Returns what the step does, for "the commit thread has been … for 10 s".
    fn describe(self) -> &'static str {
        match self {
            Self::Commit => "writing a commit",
            Self::Sync => "syncing a commit to the disk",
            Self::Outbox => "writing webhook events",
            Self::Connected => "recording connected users",
            Self::Trim => "removing acknowledged messages",
            Self::Flush => "moving messages from the write-ahead log to the value log",
            Self::Maintenance => "reclaiming disk space",
            Self::Close => "closing the store",
        }
    }
}

/// Duration beyond which a step is logged when it ends. Every commit waits for the step.
const SLOW_STEP: Duration = Duration::from_secs(1);

/// More than the number of steps.
const STEPS: u64 = 16;

/// Limits the log lines about slow steps: a slow disk makes all of them slow.
static SLOW: LogLimit = LogLimit::new();

/// Records the current step. The commit thread writes it, and any thread reads it.
#[derive(Debug)]
pub struct Progress {
    opened: Instant,
    /// Begin of the step in milliseconds since `opened`, times [`STEPS`], plus the number of the step from 1 on; 0 = no
    /// step.
    current: AtomicU64,
}

impl Progress {
    pub fn new() -> Self {
        Self { opened: Instant::now(), current: AtomicU64::new(0) }
    }

    /// Records that a step begins, and the one before it ends.
    pub fn begin(&self, step: Step) {
        let number = Step::ALL.iter().position(|one| *one == step).map_or(0, |at| at as u64 + 1);
        let began = u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX / STEPS);
        let previous = self.current.swap(began * STEPS + number, Ordering::Relaxed);
        self.log_if_slow(previous);
    }

    /// Records that the thread waits for work.
    pub fn wait(&self) {
        let previous = self.current.swap(0, Ordering::Relaxed);
        self.log_if_slow(previous);
    }

    /// Logs a step that took longer than [`SLOW_STEP`], with what it was.
    fn log_if_slow(&self, ended: u64) {
        let Some((what, took)) = self.step_of(ended).filter(|(_, took)| *took >= SLOW_STEP) else { return };
        warn_seldom!(
            SLOW,
            seconds = took.as_secs_f64(),
            "the commit thread was slow: {what} took long, and dispatches waited; check the disk and the CPU"
        );
    }

    /// Returns what the thread is doing, and for how long; `None` while it waits for work.
    pub fn current(&self) -> Option<(&'static str, Duration)> {
        self.step_of(self.current.load(Ordering::Relaxed))
    }

    /// Decodes a value of `current`.
    fn step_of(&self, current: u64) -> Option<(&'static str, Duration)> {
        let step = Step::ALL.get(usize::try_from(current % STEPS).ok()?.checked_sub(1)?)?;
        let age = self.opened.elapsed().saturating_sub(Duration::from_millis(current / STEPS));
        Some((step.describe(), age))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn current_step_is_stated_until_the_next() {
        let progress = Progress::new();
        assert_eq!(progress.current(), None);
        for step in Step::ALL {
            progress.begin(step);
            assert_eq!(progress.current().unwrap().0, step.describe());
        }
        progress.wait();
        assert_eq!(progress.current(), None);
    }
}
