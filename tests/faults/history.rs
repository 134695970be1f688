//! What happened, as those saw it who took part: one JSON object a line, in the order in which it was written down.
//!
//! An actor writes *begun* before it sends and *answered* after it has read, so that one line above another means
//! earlier wherever it matters: what was answered above the line where something else began came before it.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufRead as _, BufReader, BufWriter, Write as _},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A message: the backend that sent it, and that backend's own count, which goes up and never repeats.
pub type Key = (u64, u64);

/// One line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "e", rename_all = "lowercase")]
pub enum Event {
    /// The first line: what is to be expected of the others.
    Run {
        seed: u64,
        /// `always`, or `interval`: then a killed server leaves a gap in the sequences.
        durability: String,
        /// The last sequence of each user, where it is known. Nobody has anything pending at the beginning.
        heads: BTreeMap<String, u64>,
    },
    /// A server was started: its number, from one up.
    Starting { life: u64 },
    /// It listens, after this many milliseconds.
    Ready { life: u64, ms: f64 },
    /// It ended by itself before it listened, or it does not listen.
    Failed { life: u64, why: String },
    /// Something is done to it now.
    Fault { life: u64, kind: String },
    /// It has ended, otherwise than in order; `how` is the proof that the fault fired.
    Died { life: u64, how: String },
    /// It was asked to end, and has, with exit code 0.
    Stopped { life: u64 },
    /// A power cut took back this much of what was not synced.
    Cut { life: u64, kind: String, writes: u64, bytes: u64, names: u64 },
    /// A backend sends a message, or (`attempt` > 0) sends it again under the same id.
    Begun {
        life: u64,
        b: u64,
        n: u64,
        attempt: u64,
        to: Vec<String>,
        /// Length of its padding.
        x: u64,
        #[serde(skip_serializing_if = "Option::is_none", default)]
        id: Option<String>,
    },
    /// The server said this.
    Answered { b: u64, n: u64, attempt: u64, status: u16, answer: Value },
    /// The connection broke before the server said anything.
    Unknown { b: u64, n: u64, attempt: u64, why: String },
    /// A client connects: its number, never used twice. `after` and `device` where it asks to resume.
    Opening {
        life: u64,
        c: u64,
        user: String,
        #[serde(skip_serializing_if = "Option::is_none", default)]
        after: Option<u64>,
        #[serde(skip_serializing_if = "Option::is_none", default)]
        device: Option<String>,
    },
    /// It was let in.
    Opened { c: u64 },
    /// It has this message. `s` as it came with it.
    Received {
        c: u64,
        b: u64,
        n: u64,
        x: u64,
        #[serde(skip_serializing_if = "Option::is_none", default)]
        s: Option<u64>,
    },
    /// It resumes, and was told (op 13) what there is, and what is not there any more: first, last, why.
    Told { c: u64, first: u64, last: u64, missed: Option<(u64, u64, String)> },
    /// It says (op 3) that it has processed everything up to this.
    Confirming { c: u64, s: u64 },
    /// The server has answered something it was asked behind that.
    Confirmed { c: u64, s: u64 },
    /// It was asked (op 1) whether it has everything so far.
    Asked { c: u64 },
    /// It said yes (op 11) to the last question.
    Receipted { c: u64 },
    /// It closed, and the server closed too.
    Closed { c: u64 },
    /// It went away without a word, or the connection broke.
    Broken { c: u64, how: String },
    /// What is pending for a user, as (sequence, backend, number), and his last sequence.
    Log { user: String, head: u64, entries: Vec<(u64, u64, u64)> },
    /// All of a user was received in the end; what is still pending.
    Drained { user: String, head: u64, pending: u64 },
}

/// Where all actors write.
#[derive(Debug)]
pub struct Recorder {
    path: PathBuf,
    file: Mutex<BufWriter<File>>,
}

impl Recorder {
    /// A new history in a file.
    pub fn new(path: &Path) -> Self {
        let file = File::create(path).expect("a history can be written");
        Self { path: path.to_owned(), file: Mutex::new(BufWriter::with_capacity(1 << 20, file)) }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes a line. When this returns, whatever is written later stands below it.
    pub fn record(&self, event: &Event) {
        let mut line = serde_json::to_string(event).expect("an event is JSON");
        line.push('\n');
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.write_all(line.as_bytes()).expect("the history is written");
    }

    /// Hands everything to the system, so that somebody else can read it.
    pub fn flush(&self) {
        self.file.lock().unwrap_or_else(PoisonError::into_inner).flush().expect("the history is written");
    }
}

/// Reads a history.
///
/// # Errors
/// With the line that is none.
pub fn read(path: &Path) -> Result<Vec<Event>, String> {
    let file = File::open(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let mut events = Vec::new();
    for (at, line) in BufReader::new(file).lines().enumerate() {
        let line = line.map_err(|error| error.to_string())?;
        events.push(serde_json::from_str(&line).map_err(|error| format!("line {}: {error}: {line}", at + 1))?);
    }
    Ok(events)
}
