//! Non-blocking writer of log lines: a bounded buffer, and a thread that writes it.
//!
//! Writing a line never blocks, fails or panics, also if the file or pipe has failed. A line
//! that does not fit into the buffer, or that the system rejects, is dropped and counted
//! (`mesa_log_lines_dropped_total`). When lines can be written again, a WARN line has the number of dropped ones.

use std::{
    io::{self, ErrorKind, Write},
    sync::{Arc, LazyLock},
    thread,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};
use prometheus_client::metrics::counter::Counter;

/// Bytes in the buffer. A line beyond that is dropped. The thread may hold as many bytes again.
const BUFFER_BYTES_MAX: usize = 1 << 20;

/// Longest line, in bytes. A longer one is truncated.
const LINE_BYTES_MAX: usize = 16 << 10;

/// Shortest time between two lines about dropped ones.
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

    /// Queues the last line of a process. It has room even if other lines fill the buffer.
    pub fn last_line(&self, text: &[u8]) {
        self.put(text, BUFFER_BYTES_MAX + LINE_BYTES_MAX + 1);
    }

    /// Waits until all lines are written, at most `timeout`.
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
        let text = &text[..floor(text, LINE_BYTES_MAX)];
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

/// Writes lines, and returns how many were not written. `torn`: the last write ended within a line.
fn write(out: &mut impl Write, lines: &[u8], torn: &mut bool) -> u64 {
    let mut left = lines;
    if *torn {
        // The rest of that line is lost. The next line must begin on its own.
        match out.write(b"\n") {
            Ok(1..) => *torn = false,
            _ => return count(left),
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
            // For example no reader or no disk space. Later lines are tried again.
            Err(_) => break,
        }
    }
    count(left)
}

/// Returns the last character boundary up to `max`.
fn floor(text: &[u8], max: usize) -> usize {
    if text.len() <= max {
        return text.len();
    }
    (0..=max).rev().find(|at| text[*at] & 0xC0 != 0x80).unwrap_or(0)
}

fn count(lines: &[u8]) -> u64 {
    lines.split_inclusive(|byte| *byte == b'\n').count() as u64
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// Longer than any step of these tests.
    const TEST_TIMEOUT: Duration = Duration::from_secs(30);

    /// Output with a list of results for its writes. Further writes succeed.
    struct Faulty {
        results: std::vec::IntoIter<io::Result<usize>>,
        written: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Faulty {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let written = self.results.next().unwrap_or(Ok(bytes.len()))?.min(bytes.len());
            self.written.lock().extend_from_slice(&bytes[..written]);
            Ok(written)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn faulty(results: Vec<io::Result<usize>>) -> (LogWriter, Arc<Mutex<Vec<u8>>>) {
        let written = Arc::new(Mutex::default());
        let writer = LogWriter::start(Faulty { results: results.into_iter(), written: written.clone() }).unwrap();
        (writer, written)
    }

    fn failing(kind: ErrorKind) -> io::Result<usize> {
        Err(kind.into())
    }

    #[test]
    fn rejected_lines_are_dropped_and_later_ones_written() {
        for kind in [ErrorKind::BrokenPipe, ErrorKind::StorageFull] {
            let (writer, written) = faulty(vec![failing(kind)]);
            for text in ["one", "two\n"] {
                writer.line(text.as_bytes());
                writer.flush(TEST_TIMEOUT);
            }
            assert_eq!(written.lock()[..], *b"two\n", "{kind}");
            assert_eq!(writer.0.state.lock().dropped, 0, "a line reports the dropped ones");
        }
    }

    #[test]
    fn line_after_a_torn_line_begins_on_its_own() {
        let (writer, written) = faulty(vec![Ok(2), failing(ErrorKind::StorageFull)]);
        for text in ["one", "two"] {
            writer.line(text.as_bytes());
            writer.flush(TEST_TIMEOUT);
        }
        assert_eq!(written.lock()[..], *b"on\ntwo\n");
    }

    #[test]
    fn interrupted_and_blocked_writes_are_retried() {
        let (writer, written) = faulty(vec![failing(ErrorKind::Interrupted), failing(ErrorKind::WouldBlock), Ok(1)]);
        writer.line(b"one");
        writer.flush(TEST_TIMEOUT);
        assert_eq!(written.lock()[..], *b"one\n");
    }

    #[test]
    fn long_line_is_truncated_between_characters() {
        let (writer, written) = faulty(vec![]);
        writer.line("ß".repeat(LINE_BYTES_MAX).as_bytes());
        writer.line(("x".to_owned() + &"ß".repeat(LINE_BYTES_MAX)).as_bytes());
        writer.flush(TEST_TIMEOUT);
        let text = String::from_utf8(written.lock().clone()).unwrap();
        let lengths: Vec<_> = text.lines().map(str::len).collect();
        assert_eq!(lengths, [LINE_BYTES_MAX, LINE_BYTES_MAX - 1]);
    }

    /// Output that blocks each write until the test allows it.
    struct Stalled(mpsc::Receiver<()>, Arc<Mutex<Vec<u8>>>);

    impl Write for Stalled {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            // An error means that the test allows all writes.
            _ = self.0.recv();
            self.1.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn full_buffer_drops_lines_but_not_the_last_line() {
        let written = Arc::new(Mutex::default());
        let (go_on, stalled) = mpsc::channel();
        let writer = LogWriter::start(Stalled(stalled, written.clone())).unwrap();
        let line = [b'x'; 1023];
        let before = DROPPED.get();
        for _ in 0..3 * BUFFER_BYTES_MAX / 1024 {
            writer.line(&line);
        }
        let dropped = writer.0.state.lock().dropped;
        assert!(dropped >= (BUFFER_BYTES_MAX / 1024) as u64 - 1, "{dropped}");
        assert!(DROPPED.get() >= before + dropped);
        writer.last_line(b"the last");
        writer.flush(Duration::from_millis(10));
        drop(go_on);
        writer.flush(TEST_TIMEOUT);
        assert!(written.lock().ends_with(b"\nthe last\n"));
    }
}
