//! Shows the progress of a long command on standard error.

use std::{
    io::{self, IsTerminal as _},
    sync::mpsc::{self, RecvTimeoutError, Sender},
    thread::{self, JoinHandle},
    time::Duration,
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Time after which a command counts as long.
const SHOW_DELAY: Duration = Duration::from_secs(1);

/// Interval at which the time and the rate are redrawn.
const REDRAW_INTERVAL: Duration = Duration::from_millis(200);

/// What is counted.
#[derive(Clone, Copy, Debug)]
pub enum Unit {
    Bytes,
    Messages,
    Users,
    /// Nothing: only the time is shown.
    Time,
}

/// Progress of a command. Nothing is drawn in the first second, nor if standard error is no terminal.
///
/// Dropping it removes what was drawn.
pub struct Progress {
    bar: ProgressBar,
    /// Ends the thread when it is dropped.
    stop: Option<Sender<()>>,
    drawing: Option<JoinHandle<()>>,
}

impl Progress {
    /// Starts to count. `what` is the activity: `reading monday.mesa`. With a total, a bar is drawn.
    pub fn start(what: &str, unit: Unit, total: Option<u64>) -> Self {
        let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::hidden());
        bar.set_style(style(unit, total.is_some()));
        bar.set_message(super::output::printable(what));
        let mut progress = Self { bar, stop: None, drawing: None };
        if is_terminal() {
            let (stop, stopped) = mpsc::channel();
            let bar = progress.bar.clone();
            let drawing = thread::Builder::new().name("mesa-progress".into()).spawn(move || {
                if stopped.recv_timeout(SHOW_DELAY) == Err(RecvTimeoutError::Timeout) {
                    bar.set_draw_target(ProgressDrawTarget::stderr());
                    bar.enable_steady_tick(REDRAW_INTERVAL);
                }
            });
            // Without the thread nothing is drawn.
            (progress.stop, progress.drawing) = (Some(stop), drawing.ok());
        }
        progress
    }

    /// Adds to the count.
    pub fn add(&self, count: u64) {
        self.bar.inc(count);
    }

    /// Sets the count.
    pub fn set(&self, count: u64) {
        self.bar.set_position(count);
    }

    /// Changes the activity.
    pub fn describe(&self, what: &str) {
        self.bar.set_message(super::output::printable(what));
    }

    /// Runs `print` while nothing is drawn, because its output may go to the same terminal.
    pub fn pause<T>(&self, print: impl FnOnce() -> T) -> T {
        self.bar.suspend(print)
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(drawing) = self.drawing.take() {
            // It never panics, and ends at once.
            _ = drawing.join();
        }
        self.bar.finish_and_clear();
    }
}

/// Returns whether standard error is a terminal that can redraw a line.
fn is_terminal() -> bool {
    io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

fn style(unit: Unit, has_total: bool) -> ProgressStyle {
    let template = match (unit, has_total) {
        (Unit::Bytes, true) => {
            "{msg} [{bar:24}] {binary_bytes} of {binary_total_bytes}, {binary_bytes_per_sec}, {eta} left"
        }
        (Unit::Bytes, false) => "{spinner} {msg}: {binary_bytes}, {binary_bytes_per_sec}, {elapsed}",
        (Unit::Messages, true) => "{msg} [{bar:24}] {human_pos} of {human_len} messages, {per_sec}, {eta} left",
        (Unit::Messages, false) => "{spinner} {msg}: {human_pos} messages, {elapsed}",
        (Unit::Time, _) => "{spinner} {msg}, {elapsed}",
        (Unit::Users, true) => "{msg} [{bar:24}] {human_pos} of {human_len} users, {eta} left",
        (Unit::Users, false) => "{spinner} {msg}: {human_pos} users, {elapsed}",
    };
    // The templates are constants; a test parses each.
    ProgressStyle::with_template(template).expect("a valid template").progress_chars("=> ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_template_is_valid() {
        for unit in [Unit::Bytes, Unit::Messages, Unit::Users, Unit::Time] {
            for has_total in [true, false] {
                _ = style(unit, has_total);
            }
        }
    }
}
