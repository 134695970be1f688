//! States what the commit thread is doing, and for how long. `/readyz` reports a step that does not end.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

/// Names a step of the commit thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Writes and syncs records.
    Commit,
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
    const ALL: [Self; 7] =
        [Self::Commit, Self::Outbox, Self::Connected, Self::Trim, Self::Flush, Self::Maintenance, Self::Close];

    /// Returns what the step does, for "the commit thread has been … for 10 s".
    fn describe(self) -> &'static str {
        match self {
            Self::Commit => "writing a commit",
            Self::Outbox => "writing webhook events",
            Self::Connected => "recording connected users",
            Self::Trim => "removing acknowledged messages",
            Self::Flush => "moving messages from the write-ahead log to the value log",
            Self::Maintenance => "reclaiming disk space",
            Self::Close => "closing the store",
        }
    }
}

/// Records the current step. The commit thread writes it, and any thread reads it.
#[derive(Debug)]
pub struct Progress {
    opened: Instant,
    /// Begin of the step in milliseconds since `opened`, times 8, plus the number of the step from 1 on; 0 = no step.
    current: AtomicU64,
}

impl Progress {
    pub fn new() -> Self {
        Self { opened: Instant::now(), current: AtomicU64::new(0) }
    }

    /// Records that a step begins, and the one before it ends.
    pub fn begin(&self, step: Step) {
        let number = Step::ALL.iter().position(|one| *one == step).map_or(0, |at| at as u64 + 1);
        let began = u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX / 8);
        self.current.store(began * 8 + number, Ordering::Relaxed);
    }

    /// Records that the thread waits for work.
    pub fn wait(&self) {
        self.current.store(0, Ordering::Relaxed);
    }

    /// Returns what the thread is doing, and for how long; `None` while it waits for work.
    pub fn current(&self) -> Option<(&'static str, Duration)> {
        let current = self.current.load(Ordering::Relaxed);
        let step = Step::ALL.get(usize::try_from(current % 8).ok()?.checked_sub(1)?)?;
        let age = self.opened.elapsed().saturating_sub(Duration::from_millis(current / 8));
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
