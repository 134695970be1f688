//! Publishes messages on one connection, while a thread reads and counts the answers.

use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use crate::contestant::{Answers, Contestant, Queue, Running, To};

/// Messages in one write.
const BATCH: u64 = 32;

/// Messages for offline users that are not answered yet.
pub const IN_FLIGHT_MAX: u64 = 1_000;

/// Bytes of padding, with which a message has about 256 bytes of data.
const PADDING_BYTES: usize = 230;

/// Bytes that are read at once.
const READ_BYTES: usize = 64 << 10;

/// Time without an answer after which messages for offline users have failed.
const STALL_TIMEOUT: Duration = Duration::from_secs(30);

/// Delay between two looks at the answers.
const POLL_INTERVAL: Duration = Duration::from_micros(100);

/// A connection that publishes.
pub struct Publisher<'a, C: Contestant + ?Sized> {
    contestant: &'a C,
    stream: TcpStream,
    buffer: Vec<u8>,
    sent: u64,
    answers: Arc<Received>,
}

#[derive(Default)]
struct Received {
    count: AtomicU64,
    has_failed: AtomicBool,
}

impl<'a, C: Contestant + ?Sized> Publisher<'a, C> {
    pub fn connect(contestant: &'a C, server: SocketAddr) -> io::Result<Self> {
        let mut stream = TcpStream::connect(server)?;
        stream.set_nodelay(true)?;
        contestant.open(&mut stream)?;
        let (reader, answers, format) = (stream.try_clone()?, Arc::new(Received::default()), contestant.answers());
        let received = answers.clone();
        // The thread ends when the connection does.
        thread::spawn(move || read(reader, format, &received));
        Ok(Self { contestant, stream, buffer: Vec::new(), sent: 0, answers })
    }

    /// Adds a message to the next write, which happens when it has enough messages.
    pub fn push(&mut self, to: To, message: &str) -> io::Result<()> {
        self.contestant.encode(&mut self.buffer, to, message, self.sent);
        self.sent += 1;
        if self.sent.is_multiple_of(BATCH) { self.flush() } else { Ok(()) }
    }

    /// Writes the messages at hand.
    pub fn flush(&mut self) -> io::Result<()> {
        if self.answers.has_failed.load(Relaxed) {
            return Err(io::Error::other("the server rejected a message; its answer is above"));
        }
        self.stream.write_all(&self.buffer)?;
        self.buffer.clear();
        Ok(())
    }

    /// Waits until at most `in_flight` messages are not answered.
    fn wait(&mut self, in_flight: u64) -> io::Result<()> {
        let (mut last, mut since) = (0, Instant::now());
        loop {
            let answered = self.answers.count.load(Relaxed);
            if self.sent - answered.min(self.sent) <= in_flight {
                return Ok(());
            }
            self.flush()?;
            if answered > last {
                (last, since) = (answered, Instant::now());
            }
            if since.elapsed() > STALL_TIMEOUT {
                return Err(io::Error::other(format!("{} messages are not answered", self.sent - answered)));
            }
            thread::sleep(POLL_INTERVAL);
        }
    }
}

impl<C: Contestant + ?Sized> Drop for Publisher<'_, C> {
    fn drop(&mut self) {
        // The reader's half would hold the connection open.
        _ = self.stream.shutdown(std::net::Shutdown::Both);
    }
}

fn read(mut stream: TcpStream, format: Answers, answers: &Received) {
    let (mut buffer, mut total) = (vec![0; READ_BYTES], 0);
    while let Ok(bytes @ 1..) = stream.read(&mut buffer) {
        let part = &buffer[..bytes];
        if let Some(error) = error(part) {
            eprintln!("publisher: {error}");
            answers.has_failed.store(true, Relaxed);
        }
        match format {
            Answers::Byte(byte) => {
                answers.count.fetch_add((part.split(|each| *each == byte).count() - 1) as u64, Relaxed);
            }
            Answers::Length(length) => {
                total += bytes;
                answers.count.store((total / length) as u64, Relaxed);
            }
        }
    }
}

/// Returns the text if it reports an error.
fn error(part: &[u8]) -> Option<&str> {
    let text = str::from_utf8(part).ok()?;
    let is_error = text.contains("\"error\"") || text.starts_with("-ERR") || text.starts_with("HTTP/1.1 4");
    is_error.then_some(text)
}

/// Returns a message with the time of its dispatch.
pub fn message(at: u64) -> String {
    format!(r#"{{"op":0,"d":{{"at":{at},"p":"{}"}},"t":"BENCH"}}"#, "x".repeat(PADDING_BYTES))
}

/// Publishes messages for offline users in turn, and waits for all answers.
pub fn enqueue<C: Contestant + ?Sized>(contestant: &C, running: &Running, queue: Queue) -> io::Result<()> {
    let mut publisher = Publisher::connect(contestant, running.publishers)?;
    let message = message(0);
    for number in 0..queue.users * queue.messages {
        publisher.push(To::Offline(number % queue.users), &message)?;
        publisher.wait(IN_FLIGHT_MAX)?;
    }
    publisher.flush()?;
    publisher.wait(0)
}

/// Checks what is recognised as an error.
pub fn check() {
    assert!(error(b"{\"error\":{}}").is_some());
    assert!(error(b"HTTP/1.1 401 Unauthorized").is_some());
    assert!(error(b"{\"recipients\":1}").is_none());
    serde_json::from_str::<serde_json::Value>(&message(7)).expect("valid JSON");
}
