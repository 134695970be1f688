//! `mesa dispatch --ndjson`: sends dispatches of a file or of standard input, one per line, over one stream.

use std::{
    cell::Cell,
    fs::{File, Metadata},
    io::{self, Read},
    path::Path,
};

use mesa::dispatcher::{DispatchResult, DispatchWriter, Dispatcher, Rejection, ResultReader};
use serde_json::json;
use tokio::sync::mpsc;

use crate::{
    error::Failure,
    output::{self, printable},
    progress::{Progress, Unit},
};

/// Bytes per read.
const CHUNK_BYTES: usize = 32 << 10;

/// Maximum number of chunks that are read ahead.
const CHUNKS_MAX: usize = 2;

/// Counts of results.
#[derive(Debug, Default)]
struct ResultCounts {
    answered: u64,
    duplicates: u64,
    /// Accepted, with some rejected recipients.
    partial: u64,
    /// Rejected as a whole.
    rejected: u64,
    /// With offline recipients, and stored for none of them.
    unstored: u64,
}

/// Sends all lines, and prints the results.
pub async fn run(dispatcher: &Dispatcher, file: &Path, json: bool) -> Result<(), Failure> {
    let (source, total): (Box<dyn Read + Send>, _) = if file == Path::new("-") {
        (Box::new(io::stdin()), None)
    } else {
        let opened = File::open(file);
        let opened = opened.map_err(|error| Failure::because(format!("cannot read {}: {error}", file.display())))?;
        let size = opened.metadata().ok().filter(Metadata::is_file).map(|file| file.len());
        (Box::new(opened), size)
    };
    let (writer, reader) = dispatcher.stream().await?;
    let counter = LineCounter::default();
    let progress = Progress::start("sending", Unit::Bytes, total);
    let sending = send(read(source), writer, &counter, &progress);
    let printing = print(reader, json, &progress);
    tokio::pin!(sending, printing);
    // The results report how the stream ended. An error of reading or sending matters only without one.
    let (counts, sent) = tokio::select! {
        biased;
        sent = &mut sending => (printing.await?, Some(sent)),
        counts = &mut printing => (counts?, None),
    };
    progress.pause(|| output::remark(&counts.to_string()));
    match sent {
        Some(Err(error)) => return Err(Failure::because(format!("cannot read {}: {error}", file.display()))),
        Some(Ok(())) if counts.answered == counter.lines() => {}
        _ => {
            return Err(Failure::because(
                "the server ended the stream before it had answered every line; lines after the last result may have been \
                 accepted. Send them again: lines with an id are not duplicated",
            ));
        }
    }
    if counts.partial + counts.rejected == 0 { Ok(()) } else { Err(Failure::Reported) }
}

/// Reads on a separate thread, because a read from a pipe cannot be cancelled.
fn read(mut source: Box<dyn Read + Send>) -> mpsc::Receiver<io::Result<Vec<u8>>> {
    let (sender, chunks) = mpsc::channel(CHUNKS_MAX);
    std::thread::spawn(move || {
        loop {
            let mut chunk = vec![0; CHUNK_BYTES];
            let read = source.read(&mut chunk).map(|length| {
                chunk.truncate(length);
                chunk
            });
            let last = !matches!(&read, Ok(chunk) if !chunk.is_empty());
            if matches!(&read, Err(error) if error.kind() == io::ErrorKind::Interrupted) {
                continue;
            }
            if sender.blocking_send(read).is_err() || last {
                return;
            }
        }
    });
    chunks
}

async fn send(
    mut chunks: mpsc::Receiver<io::Result<Vec<u8>>>,
    mut writer: DispatchWriter,
    counter: &LineCounter,
    progress: &Progress,
) -> io::Result<()> {
    while let Some(chunk) = chunks.recv().await {
        let chunk = chunk?;
        counter.count(&chunk);
        let bytes = chunk.len() as u64;
        if writer.send_json(chunk).await.is_err() {
            // The reason is in the results.
            break;
        }
        progress.add(bytes);
    }
    Ok(())
}

async fn print(mut reader: ResultReader, json: bool, progress: &Progress) -> Result<ResultCounts, Failure> {
    let mut counts = ResultCounts::default();
    while let Some(result) = reader.next().await? {
        counts.add(&result);
        let print = || match &result {
            Ok(result) if json => output::json(result),
            Err(error) if json => output::json(&json!({ "error": error })),
            result => problems(counts.answered, result).iter().try_for_each(|line| output::line(line)),
        };
        let is_silent = !json && result.as_ref().is_ok_and(|result| result.rejected.is_empty());
        if !is_silent {
            progress.pause(print)?;
        }
    }
    Ok(counts)
}

impl ResultCounts {
    fn add(&mut self, result: &Result<DispatchResult, Rejection>) {
        self.answered += 1;
        match result {
            Ok(result) => {
                self.duplicates += u64::from(result.duplicate);
                self.partial += u64::from(!result.rejected.is_empty());
                self.unstored += u64::from(result.offline > 0 && result.stored == 0);
            }
            Err(_) => self.rejected += 1,
        }
    }
}

impl std::fmt::Display for ResultCounts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {} accepted", count_of_dispatches(self.answered), self.answered - self.rejected)?;
        for (number, what) in [
            (self.duplicates, "duplicate"),
            (self.partial, "rejected for some recipient"),
            (self.rejected, "rejected"),
            (self.unstored, "not stored for offline users (sync: false, or sync is off)"),
        ] {
            if number > 0 {
                write!(f, ", {number} {what}")?;
            }
        }
        Ok(())
    }
}

fn count_of_dispatches(number: u64) -> String {
    if number == 1 { "1 dispatch".into() } else { format!("{number} dispatches") }
}

/// Describes the problems of the dispatch with that number.
fn problems(number: u64, result: &Result<DispatchResult, Rejection>) -> Vec<String> {
    match result {
        Ok(result) => result
            .rejected
            .iter()
            .map(|each| format!("dispatch {number}: {}: rejected ({})", printable(&each.user), printable(&each.reason)))
            .collect(),
        Err(error) => vec![format!("dispatch {number}: {}", printable(&error.to_string()))],
    }
}

/// Counts the lines that the server answers: those that are not blank. A chunk may end within a line.
#[derive(Debug, Default)]
struct LineCounter {
    lines: Cell<u64>,
    /// Whether the current line has a character other than white space.
    has_text: Cell<bool>,
}

impl LineCounter {
    fn count(&self, chunk: &[u8]) {
        for byte in chunk {
            if *byte == b'\n' {
                self.lines.set(self.lines());
                self.has_text.set(false);
            } else if !byte.is_ascii_whitespace() {
                self.has_text.set(true);
            }
        }
    }

    fn lines(&self) -> u64 {
        self.lines.get() + u64::from(self.has_text.get())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counter_counts_lines_across_chunks() {
        let counter = LineCounter::default();
        for chunk in ["{}\n\n", " ", "\r\n{", "}", "\n{}"] {
            counter.count(chunk.as_bytes());
        }
        assert_eq!(counter.lines(), 3);
    }

    #[test]
    fn problem_is_described_with_its_number() {
        let mut counts = ResultCounts::default();
        let rejected =
            r#"{"recipients":2,"online":0,"offline":1,"stored":1,"rejected":[{"user":"c","reason":"quota"}]}"#;
        let results = [
            Ok(serde_json::from_str(r#"{"recipients":1,"online":0,"offline":1,"duplicate":true}"#).unwrap()),
            Ok(serde_json::from_str(r#"{"recipients":1,"online":0,"offline":1,"stored":1}"#).unwrap()),
            Ok(serde_json::from_str(rejected).unwrap()),
            Err(serde_json::from_str(r#"{"code":"bad_json","message":"this is not JSON"}"#).unwrap()),
        ];
        let mut lines = Vec::new();
        for result in &results {
            counts.add(result);
            lines.extend(problems(counts.answered, result));
        }
        assert_eq!(lines, ["dispatch 3: c: rejected (quota)", "dispatch 4: rejected (bad_json): this is not JSON"]);
        let expected = "4 dispatches: 3 accepted, 1 duplicate, 1 rejected for some recipient, 1 rejected, \
                        1 not stored for offline users (sync: false, or sync is off)";
        assert_eq!(counts.to_string(), expected);
    }
}
