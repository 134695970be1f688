//! `mesa dispatch --ndjson`: sends dispatches of a file or of standard input, one per line, over one stream.

use std::{
    cell::Cell,
    fs::File,
    io::{self, Read},
    path::Path,
};

use mesa::dispatcher::{DispatchResult, DispatchWriter, Dispatcher, Refusal, ResultReader};
use serde_json::json;
use tokio::sync::mpsc;

use crate::{
    error::Failure,
    output::{self, printable},
};

/// Bytes per read.
const PIECE_BYTES: usize = 32 << 10;

/// Pieces that are read ahead.
const PIECES_MAX: usize = 2;

/// Counts of results.
#[derive(Debug, Default)]
struct ResultCounts {
    answered: u64,
    duplicates: u64,
    /// Accepted, but rejected for some recipient.
    partial: u64,
    /// Rejected as a whole.
    rejected: u64,
    /// For offline users, but stored for none of them.
    unstored: u64,
}

/// Sends all lines, and prints the results.
pub async fn run(dispatcher: &Dispatcher, file: &Path, json: bool) -> Result<(), Failure> {
    let source: Box<dyn Read + Send> = if file == Path::new("-") {
        Box::new(io::stdin())
    } else {
        let opened = File::open(file);
        Box::new(opened.map_err(|error| Failure::usage(format!("cannot read {}: {error}", file.display())))?)
    };
    let (lines, answers) = dispatcher.stream().await.map_err(Failure::because)?;
    let counter = Counter::default();
    let sending = send(read(source), lines, &counter);
    let printing = print(answers, json);
    tokio::pin!(sending, printing);
    // The results report how the stream ended. An error of reading or sending matters only without one.
    let (counts, sent) = tokio::select! {
        biased;
        sent = &mut sending => (printing.await?, Some(sent)),
        counts = &mut printing => (counts?, None),
    };
    output::remark(&counts.to_string());
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
    let (sender, pieces) = mpsc::channel(PIECES_MAX);
    std::thread::spawn(move || {
        loop {
            let mut piece = vec![0; PIECE_BYTES];
            let read = source.read(&mut piece).map(|length| {
                piece.truncate(length);
                piece
            });
            let last = !matches!(&read, Ok(piece) if !piece.is_empty());
            if matches!(&read, Err(error) if error.kind() == io::ErrorKind::Interrupted) {
                continue;
            }
            if sender.blocking_send(read).is_err() || last {
                return;
            }
        }
    });
    pieces
}

async fn send(
    mut pieces: mpsc::Receiver<io::Result<Vec<u8>>>,
    mut lines: DispatchWriter,
    counter: &Counter,
) -> io::Result<()> {
    while let Some(piece) = pieces.recv().await {
        let piece = piece?;
        counter.count(&piece);
        if lines.send_json(piece).await.is_err() {
            // The results have the reason.
            break;
        }
    }
    Ok(())
}

async fn print(mut answers: ResultReader, json: bool) -> Result<ResultCounts, Failure> {
    let mut counts = ResultCounts::default();
    while let Some(result) = answers.next().await.map_err(Failure::because)? {
        counts.add(&result);
        match &result {
            Ok(result) if json => output::json(result)?,
            Err(error) if json => output::json(&json!({ "error": error }))?,
            result => problems(counts.answered, result).iter().try_for_each(|line| output::line(line))?,
        }
    }
    Ok(counts)
}

impl ResultCounts {
    fn add(&mut self, result: &Result<DispatchResult, Refusal>) {
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
fn problems(number: u64, result: &Result<DispatchResult, Refusal>) -> Vec<String> {
    match result {
        Ok(result) => result
            .rejected
            .iter()
            .map(|each| format!("dispatch {number}: {}: rejected ({})", printable(&each.user), printable(&each.reason)))
            .collect(),
        Err(error) => vec![format!("dispatch {number}: {}", printable(&error.to_string()))],
    }
}

/// Counts the lines that get a result: those that are not blank. Pieces may split them.
#[derive(Debug, Default)]
struct Counter {
    lines: Cell<u64>,
    /// Whether the current line has a character other than white space.
    begun: Cell<bool>,
}

impl Counter {
    fn count(&self, piece: &[u8]) {
        for byte in piece {
            if *byte == b'\n' {
                self.lines.set(self.lines());
                self.begun.set(false);
            } else if !byte.is_ascii_whitespace() {
                self.begun.set(true);
            }
        }
    }

    fn lines(&self) -> u64 {
        self.lines.get() + u64::from(self.begun.get())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counter_counts_lines_across_pieces() {
        let counter = Counter::default();
        for piece in ["{}\n\n", " ", "\r\n{", "}", "\n{}"] {
            counter.count(piece.as_bytes());
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
        assert_eq!(lines, ["dispatch 3: c: rejected (quota)", "dispatch 4: refused (bad_json): this is not JSON"]);
        let expected = "4 dispatches: 3 accepted, 1 duplicate, 1 rejected for some recipient, 1 rejected, \
                        1 not stored for offline users (sync: false, or sync is off)";
        assert_eq!(counts.to_string(), expected);
    }
}
