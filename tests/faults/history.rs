//! Records the history of a run: one JSON object per line, in the order of the events.
//!
//! An actor records `dispatching` before it sends a request, and `answered` after it has read the answer. So if a line
//! with an answer is above the line where another dispatch starts, that answer came first.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufRead as _, BufReader, BufWriter, Write as _},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Identifies a message: the number of its backend, and that backend's count of messages, which only rises.
pub type Key = (u64, u64);

/// One line of a history.
///
/// Frequent fields have short names: `b` and `n` are the [`Key`] of a message, `x` is the length of its padding in
/// bytes, `c` is the number of a connection, and `s` is the `s` of a frame.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "e", rename_all = "snake_case")]
pub enum Event {
    /// Run: the first line, with what the checker needs to know.
    Run {
        seed: u64,
        /// `always`, or `interval`: then a killed server skips sequences.
        durability: String,
        /// The last sequence of each user, as far as it is known. No user has anything pending at this point.
        heads: BTreeMap<String, u64>,
    },
    /// Runner: starts a server. Servers are numbered from 1.
    Starting { server: u64 },
    /// Runner: the server listens, after this many milliseconds.
    Ready { server: u64, ms: f64 },
    /// Runner: the server exited before it listened, does not listen, or does not work as it should.
    Failed { server: u64, reason: String },
    /// Runner: is about to inject a fault.
    Fault { server: u64, kind: String },
    /// Runner: the server has exited, not in order. The exit status in `how` proves that the fault happened.
    Died { server: u64, how: String },
    /// Runner: the server has exited with code 0 after a SIGTERM.
    Stopped { server: u64 },
    /// Runner: the number of unsynced writes, bytes and names that a power cut removed.
    PowerCut { server: u64, kind: String, writes: u64, bytes: u64, names: u64 },
    /// Backend: is about to send a dispatch. If `attempt` is above 0, it retries with the same idempotency id.
    Dispatching {
        server: u64,
        b: u64,
        n: u64,
        attempt: u64,
        to: Vec<String>,
        x: u64,
        #[serde(skip_serializing_if = "Option::is_none", default)]
        id: Option<String>,
    },
    /// Backend: has received the server's answer.
    Answered { b: u64, n: u64, attempt: u64, status: u16, body: Value },
    /// Backend: the connection broke before an answer.
    Unanswered { b: u64, n: u64, attempt: u64, error: String },
    /// Client: is about to connect. A connection number is never reused. A client that resumes sends `after`.
    Connecting {
        server: u64,
        c: u64,
        user: String,
        #[serde(skip_serializing_if = "Option::is_none", default)]
        after: Option<u64>,
        #[serde(skip_serializing_if = "Option::is_none", default)]
        device: Option<String>,
    },
    /// Client: is authenticated (op 22).
    Connected { c: u64 },
    /// Client: has received this message.
    Received {
        c: u64,
        b: u64,
        n: u64,
        x: u64,
        #[serde(skip_serializing_if = "Option::is_none", default)]
        s: Option<u64>,
    },
    /// Client that resumes: has received op 13. `missed` is a gap: first sequence, last sequence, reason.
    Resumed { c: u64, first: u64, last: u64, missed: Option<(u64, u64, String)> },
    /// Client that resumes: is about to acknowledge everything up to this sequence (op 3).
    Acknowledging { c: u64, s: u64 },
    /// Client that resumes: has received the server's answer (op 11) to an op 1 that it sent after that op 3.
    Acknowledged { c: u64, s: u64 },
    /// Client: has received a heartbeat (op 1), which requests an acknowledgement of everything so far.
    HeartbeatReceived { c: u64 },
    /// Client: has answered the last heartbeat (op 11).
    HeartbeatAnswered { c: u64 },
    /// Client: has closed the connection, and the server has closed it too.
    Closed { c: u64 },
    /// Client: has dropped the connection without closing it, or the connection broke.
    Broken { c: u64, how: String },
    /// Runner: has read the pending messages of a user, as (sequence, backend, number), and the user's last sequence.
    LogRead { user: String, head: u64, entries: Vec<(u64, u64, u64)> },
    /// Runner: has received all messages of a user at the end. `pending` is what the server still has.
    Drained { user: String, head: u64, pending: u64 },
}

/// Appends events of all actors to one file.
#[derive(Debug)]
pub struct Recorder {
    path: PathBuf,
    file: Mutex<BufWriter<File>>,
}

impl Recorder {
    /// Creates a history file.
    pub fn new(path: &Path) -> Self {
        let file = File::create(path).expect("the history file can be created");
        Self { path: path.to_owned(), file: Mutex::new(BufWriter::with_capacity(1 << 20, file)) }
    }

    /// Returns the path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Appends an event. Events that are recorded after the return are below it in the file.
    pub fn record(&self, event: &Event) {
        let mut line = serde_json::to_string(event).expect("an event can be encoded as JSON");
        line.push('\n');
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.write_all(line.as_bytes()).expect("the history can be written");
    }

    /// Writes all buffered events, so that another process can read them.
    pub fn flush(&self) {
        self.file.lock().unwrap_or_else(PoisonError::into_inner).flush().expect("the history can be written");
    }
}

/// Reads a history.
///
/// # Errors
/// With the first line that is not an event.
pub fn read(path: &Path) -> Result<Vec<Event>, String> {
    let file = File::open(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let mut events = Vec::new();
    for (at, line) in BufReader::new(file).lines().enumerate() {
        let line = line.map_err(|error| error.to_string())?;
        events.push(serde_json::from_str(&line).map_err(|error| format!("line {}: {error}: {line}", at + 1))?);
    }
    Ok(events)
}
