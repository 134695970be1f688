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
