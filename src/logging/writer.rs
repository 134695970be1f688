//! Writer of log lines: a bounded buffer, and a thread of its own that writes it out.
//!
//! Writing a line never blocks, never fails and never panics, whatever has become of the file or pipe behind it. A line
//! that does not fit into the buffer, or that the system does not take, is dropped and counted
//! (`mesa_log_lines_dropped_total`). Once lines can be written again, a WARN line names how many are missing.

use std::{
    io::{self, ErrorKind, Write},
    sync::{Arc, LazyLock},
    thread,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};
use prometheus_client::metrics::counter::Counter;

/// Bytes of lines that wait for the thread. A line beyond that is dropped. As much again may be on its way to the system.
const WAITING_BYTES_MAX: usize = 1 << 20;

/// Longest line, in bytes. The rest of a longer one is cut off.
const LINE_BYTES_MAX: usize = 16 << 10;

/// Shortest time between two lines that name dropped ones.
const REPORT_INTERVAL: Duration = Duration::from_secs(10);

/// Pause before another attempt where the system takes nothing at the moment (`EAGAIN`).
const RETRY_INTERVAL: Duration = Duration::from_millis(10);

/// Counts dropped lines. One for the process, as the log is.
static DROPPED: LazyLock<Counter> = LazyLock::new(Counter::default);

/// Returns the counter of dropped lines.
pub fn dropped_lines() -> Counter {
    DROPPED.clone()
}

/// Writes log lines without waiting for whoever reads them. Cheap to clone.
#[derive(Clone)]
pub struct LogWriter(Arc<Shared>);

#[derive(Default)]
struct Shared {
    inside: Mutex<Inside>,
    /// Lines wait, or the thread is idle again.
    changed: Condvar,
}

#[derive(Default)]
struct Inside {
    waiting: Vec<u8>,
    /// Lines dropped since the last line that named them.
    dropped: u64,
    /// The thread has taken lines that it has not written yet.
    writing: bool,
}

impl LogWriter {
    /// Starts the thread that writes to `out`.
    ///
    /// # Errors
    /// When the system grants no thread.
    pub fn start(out: impl Write + Send + 'static) -> io::Result<Self> {
        let writer = Self(Arc::default());
        let shared = writer.0.clone();
        thread::Builder::new().name("mesa-log".into()).spawn(move || shared.run(out))?;
        Ok(writer)
    }

    /// Adds a line. The line end is added where it is missing.
    pub fn line(&self, text: &[u8]) {
        self.put(text, WAITING_BYTES_MAX);
    }

    /// Adds the last line of a process, which is not dropped where others fill the buffer.
    pub fn last_line(&self, text: &[u8]) {
        self.put(text, WAITING_BYTES_MAX + LINE_BYTES_MAX + 1);
    }

    /// Waits until all lines are written, at most `timeout`.
    pub fn flush(&self, timeout: Duration) {
        let end = Instant::now() + timeout;
        let mut inside = self.0.inside.lock();
        while inside.writing || !inside.waiting.is_empty() {
            if self.0.changed.wait_until(&mut inside, end).timed_out() {
                return;
            }
        }
    }

    fn put(&self, text: &[u8], max: usize) {
        let text = &text[..floor(text, LINE_BYTES_MAX)];
        let mut inside = self.0.inside.lock();
        if inside.waiting.len() + text.len() + 1 > max {
            inside.dropped += 1;
            drop(inside);
            DROPPED.inc();
            return;
        }
        let idle = inside.waiting.is_empty();
        inside.waiting.extend_from_slice(text);
        if !text.ends_with(b"\n") {
            inside.waiting.push(b'\n');
        }
        drop(inside);
        if idle {
            self.0.changed.notify_all();
        }
    }
}

/// A line in one call, as `tracing_subscriber` writes it.
impl Write for LogWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.line(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Shared {
    /// Writes lines for as long as the process runs.
    fn run(&self, mut out: impl Write) {
        let (mut lines, mut reported, mut torn) = (Vec::new(), None::<Instant>, false);
        loop {
            let dropped = {
                let mut inside = self.inside.lock();
                inside.writing = false;
                if inside.waiting.is_empty() {
                    self.changed.notify_all();
                }
                while inside.waiting.is_empty() {
                    self.changed.wait(&mut inside);
                }
                inside.writing = true;
                lines.clear();
                std::mem::swap(&mut inside.waiting, &mut lines);
                inside.dropped
            };
            let lost = write(&mut out, &lines, &mut torn);
            if lost > 0 {
                DROPPED.inc_by(lost);
                self.inside.lock().dropped += lost;
            } else if dropped > 0 && reported.is_none_or(|reported| reported.elapsed() >= REPORT_INTERVAL) {
                reported = Some(Instant::now());
                let lines = std::mem::take(&mut self.inside.lock().dropped);
                tracing::warn!(
                    lines,
                    "log lines were dropped: they came faster than they were read, or could not be written"
                );
            }
        }
    }
}

/// Writes lines; returns how many were not written. `torn`: what was written last is not the end of a line.
fn write(out: &mut impl Write, lines: &[u8], torn: &mut bool) -> u64 {
    let mut left = lines;
    if *torn {
        // The rest of that line is gone: the next begins on a line of its own.
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
            // No reader, no disk space, no terminal any more: later lines may find one.
            Err(_) => break,
        }
    }
    count(left)
}

/// The last place up to `max` at which UTF-8 can be cut.
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

    /// Longer than anything here may take.
    const PATIENCE: Duration = Duration::from_secs(30);

    /// Gives each write its result from a list, and then takes everything.
    struct Faulty {
        results: std::vec::IntoIter<io::Result<usize>>,
        taken: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Faulty {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let written = self.results.next().unwrap_or(Ok(bytes.len()))?.min(bytes.len());
            self.taken.lock().extend_from_slice(&bytes[..written]);
            Ok(written)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn faulty(results: Vec<io::Result<usize>>) -> (LogWriter, Arc<Mutex<Vec<u8>>>) {
        let taken = Arc::new(Mutex::default());
        let writer = LogWriter::start(Faulty { results: results.into_iter(), taken: taken.clone() }).unwrap();
        (writer, taken)
    }

    fn failing(kind: ErrorKind) -> io::Result<usize> {
        Err(kind.into())
    }

    #[test]
    fn lines_that_the_system_refuses_are_dropped_and_later_ones_written() {
        for kind in [ErrorKind::BrokenPipe, ErrorKind::StorageFull] {
            let (writer, taken) = faulty(vec![failing(kind)]);
            for text in ["one", "two\n"] {
                writer.line(text.as_bytes());
                writer.flush(PATIENCE);
            }
            assert_eq!(taken.lock()[..], *b"two\n", "{kind}");
            assert_eq!(writer.0.inside.lock().dropped, 0, "a line names what was dropped");
        }
    }

    #[test]
    fn line_after_a_torn_one_begins_on_its_own() {
        let (writer, taken) = faulty(vec![Ok(2), failing(ErrorKind::StorageFull)]);
        for text in ["one", "two"] {
            writer.line(text.as_bytes());
            writer.flush(PATIENCE);
        }
        assert_eq!(taken.lock()[..], *b"on\ntwo\n");
    }

    #[test]
    fn interrupted_and_postponed_writes_are_repeated() {
        let (writer, taken) = faulty(vec![failing(ErrorKind::Interrupted), failing(ErrorKind::WouldBlock), Ok(1)]);
        writer.line(b"one");
        writer.flush(PATIENCE);
        assert_eq!(taken.lock()[..], *b"one\n");
    }

    #[test]
    fn long_line_is_cut_between_characters() {
        let (writer, taken) = faulty(vec![]);
        writer.line("ß".repeat(LINE_BYTES_MAX).as_bytes());
        writer.line(("x".to_owned() + &"ß".repeat(LINE_BYTES_MAX)).as_bytes());
        writer.flush(PATIENCE);
        let text = String::from_utf8(taken.lock().clone()).unwrap();
        let lengths: Vec<_> = text.lines().map(str::len).collect();
        assert_eq!(lengths, [LINE_BYTES_MAX, LINE_BYTES_MAX - 1]);
    }

    /// Takes bytes once it is let.
    struct Stalled(mpsc::Receiver<()>, Arc<Mutex<Vec<u8>>>);

    impl Write for Stalled {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            // An error means that the test lets everything through.
            _ = self.0.recv();
            self.1.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_beyond_the_buffer_of_a_stalled_writer_are_dropped_and_the_last_line_is_not() {
        let taken = Arc::new(Mutex::default());
        let (go_on, stalled) = mpsc::channel();
        let writer = LogWriter::start(Stalled(stalled, taken.clone())).unwrap();
        let line = [b'x'; 1023];
        let before = DROPPED.get();
        for _ in 0..3 * WAITING_BYTES_MAX / 1024 {
            writer.line(&line);
        }
        let dropped = writer.0.inside.lock().dropped;
        assert!(dropped >= (WAITING_BYTES_MAX / 1024) as u64 - 1, "{dropped}");
        assert!(DROPPED.get() >= before + dropped);
        writer.last_line(b"the last");
        writer.flush(Duration::from_millis(10));
        drop(go_on);
        writer.flush(PATIENCE);
        assert!(taken.lock().ends_with(b"\nthe last\n"));
    }
}
