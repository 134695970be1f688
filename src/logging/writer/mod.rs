//! Non-blocking writer of log lines: a bounded buffer, and a thread that writes it.
//!
//! Queuing a line never blocks, fails or panics, even if the file or pipe has failed. A line that does not fit into the
//! buffer, or that the system rejects, is dropped and counted (`mesa_log_lines_dropped_total`). When lines can be
//! written again, a WARN line states the number of dropped lines.

use std::{
    io::{self, ErrorKind, Write},
    sync::{Arc, LazyLock},
    thread,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};
use prometheus_client::metrics::counter::Counter;

/// Largest buffer, in bytes. A line that does not fit is dropped. The thread may hold as many bytes again.
const BUFFER_BYTES_MAX: usize = 1 << 20;

/// Longest line, in bytes. A longer one is truncated.
const LINE_BYTES_MAX: usize = 16 << 10;

/// Shortest time between two WARN lines about dropped lines.
const REPORT_INTERVAL: Duration = Duration::from_secs(10);

/// Delay before a retry after `EAGAIN`.
const RETRY_INTERVAL: Duration = Duration::from_millis(10);

/// Counts dropped lines. The process has one log, and one counter.
static DROPPED: LazyLock<Counter> = LazyLock::new(Counter::default);

/// Returns the counter of dropped lines.
pub fn dropped_lines() -> Counter {
    DROPPED.clone()
}

/// Writes log lines without waiting for their reader. Cheap to clone.
#[derive(Clone)]
pub struct LogWriter(Arc<Buffer>);

#[derive(Default)]
struct Buffer {
    state: Mutex<State>,
    /// Notified when the buffer gets its first line, and when the thread is idle.
    changed: Condvar,
}

#[derive(Default)]
struct State {
    lines: Vec<u8>,
    /// Lines dropped since the last report.
    dropped: u64,
    /// Whether the thread holds lines that it has not written yet.
    writing: bool,
}

impl LogWriter {
    /// Starts the thread that writes to `out`.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub fn start(out: impl Write + Send + 'static) -> io::Result<Self> {
        let writer = Self(Arc::default());
        let shared = writer.0.clone();
        thread::Builder::new().name("mesa-log".into()).spawn(move || shared.run(out))?;
        Ok(writer)
    }

    /// Queues a line. Appends a line end if it is missing.
    pub fn line(&self, text: &[u8]) {
        self.put(text, BUFFER_BYTES_MAX);
    }

    /// Queues the last line of a process. It fits even if other lines fill the buffer.
    pub fn last_line(&self, text: &[u8]) {
        self.put(text, BUFFER_BYTES_MAX + LINE_BYTES_MAX + 1);
    }

    /// Waits until all lines are written, for at most `timeout`.
    pub fn flush(&self, timeout: Duration) {
        let end = Instant::now() + timeout;
        let mut state = self.0.state.lock();
        while state.writing || !state.lines.is_empty() {
            if self.0.changed.wait_until(&mut state, end).timed_out() {
                return;
            }
        }
    }

    fn put(&self, text: &[u8], max: usize) {
        let text = &text[..character_boundary(text, LINE_BYTES_MAX)];
        let mut state = self.0.state.lock();
        if state.lines.len() + text.len() + 1 > max {
            state.dropped += 1;
            drop(state);
            DROPPED.inc();
            return;
        }
        let idle = state.lines.is_empty();
        state.lines.extend_from_slice(text);
        if !text.ends_with(b"\n") {
            state.lines.push(b'\n');
        }
        drop(state);
        if idle {
            self.0.changed.notify_all();
        }
    }
}

/// Accepts one line per call, as `tracing_subscriber` writes them.
impl Write for LogWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.line(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Buffer {
    /// Writes lines until the process ends.
    fn run(&self, mut out: impl Write) {
        let (mut lines, mut reported, mut torn) = (Vec::new(), None::<Instant>, false);
        loop {
            let dropped = {
                let mut state = self.state.lock();
                state.writing = false;
                if state.lines.is_empty() {
                    self.changed.notify_all();
                }
                while state.lines.is_empty() {
                    self.changed.wait(&mut state);
                }
                state.writing = true;
                lines.clear();
                std::mem::swap(&mut state.lines, &mut lines);
                state.dropped
            };
            let lost = write(&mut out, &lines, &mut torn);
            if lost > 0 {
                DROPPED.inc_by(lost);
                self.state.lock().dropped += lost;
            } else if dropped > 0 && reported.is_none_or(|reported| reported.elapsed() >= REPORT_INTERVAL) {
                reported = Some(Instant::now());
                let lines = std::mem::take(&mut self.state.lock().dropped);
                tracing::warn!(
                    lines,
                    "log lines were dropped: they came faster than they were read, or could not be written"
                );
            }
        }
    }
}

/// Writes lines, and returns the number of lines that were not written. `torn`: the last write ended within a line.
fn write(out: &mut impl Write, lines: &[u8], torn: &mut bool) -> u64 {
    let mut left = lines;
    if *torn {
        // The rest of that line is lost. The next line must begin on a new line.
        match out.write(b"\n") {
            Ok(1..) => *torn = false,
            _ => return count_lines(left),
        }
    }
    while !left.is_empty() {
        match out.write(left) {
            Ok(0) => break,
            Ok(written) => {
                *torn = left[written - 1] != b'\n';
                left = &left[written..];
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(RETRY_INTERVAL),
            // For example, the pipe has no reader or the disk no space. Later lines are tried again.
            Err(_) => break,
        }
    }
    count_lines(left)
}

/// Returns the offset of the last character boundary up to `max`.
fn character_boundary(text: &[u8], max: usize) -> usize {
    if text.len() <= max {
        return text.len();
    }
    (0..=max).rev().find(|at| text[*at] & 0xC0 != 0x80).unwrap_or(0)
}

fn count_lines(lines: &[u8]) -> u64 {
    lines.split_inclusive(|byte| *byte == b'\n').count() as u64
}

#[cfg(test)]
mod tests;
