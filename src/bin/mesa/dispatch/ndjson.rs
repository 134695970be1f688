//! `mesa dispatch --ndjson`: dispatches that stand in a file or come from a program, a line each.

use std::{
    cell::Cell,
    fs::File,
    io::{self, Read},
    path::Path,
};

use mesa::dispatcher::{Answers, DispatchResult, Dispatcher, Lines, Refusal};
use serde_json::json;
use tokio::sync::mpsc;

use crate::{
    error::Failure,
    output::{self, printable},
};

/// Bytes read at once.
const PIECE_BYTES: usize = 32 << 10;

/// Pieces that were read and wait to be sent.
const PIECES_MAX: usize = 2;

/// How many of the dispatches it went well for, and how many not.
#[derive(Debug, Default)]
struct Tally {
    answered: u64,
    duplicates: u64,
    /// Not taken for some recipient.
    partly: u64,
    refused: u64,
    /// For offline users, and stored for none of them.
    unstored: u64,
}

/// Sends all of them.
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
    let telling = tell(answers, json);
    tokio::pin!(sending, telling);
    // Results tell how it ends; what cannot be read or sent matters only where they do not.
    let (tally, sent) = tokio::select! {
        biased;
        sent = &mut sending => (telling.await?, Some(sent)),
        tally = &mut telling => (tally?, None),
    };
    output::remark(&tally.to_string());
    match sent {
        Some(Err(error)) => return Err(Failure::because(format!("cannot read {}: {error}", file.display()))),
        Some(Ok(())) if tally.answered == counter.lines() => {}
        _ => {
            return Err(Failure::because(
                "the server ended the stream before it had answered every line; what stands behind the last result may \
                 or may not have been taken",
            ));
        }
    }
    if tally.partly + tally.refused == 0 { Ok(()) } else { Err(Failure::Told) }
}

/// Reads on a thread of its own: a read from a pipe cannot be called off.
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

async fn send(mut pieces: mpsc::Receiver<io::Result<Vec<u8>>>, mut lines: Lines, counter: &Counter) -> io::Result<()> {
    while let Some(piece) = pieces.recv().await {
        let piece = piece?;
        counter.count(&piece);
        if lines.send_text(piece).await.is_err() {
            // Why, the results tell.
            break;
        }
    }
    Ok(())
}

async fn tell(mut answers: Answers, json: bool) -> Result<Tally, Failure> {
    let mut tally = Tally::default();
    while let Some(result) = answers.next().await.map_err(Failure::because)? {
        tally.add(&result);
        match &result {
            Ok(result) if json => output::json(result)?,
            Err(refusal) if json => output::json(&json!({ "error": refusal }))?,
            result => troubles(tally.answered, result).iter().try_for_each(|line| output::line(line))?,
        }
    }
    Ok(tally)
}

impl Tally {
    fn add(&mut self, result: &Result<DispatchResult, Refusal>) {
        self.answered += 1;
        match result {
            Ok(result) => {
                self.duplicates += u64::from(result.duplicate);
                self.partly += u64::from(!result.rejected.is_empty());
                self.unstored += u64::from(result.offline > 0 && result.stored == 0);
            }
            Err(_) => self.refused += 1,
        }
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {} taken", count_of_dispatches(self.answered), self.answered - self.refused)?;
        for (number, what) in [
            (self.duplicates, "sent before and not again"),
            (self.partly, "not for every recipient"),
            (self.refused, "refused"),
            (self.unstored, "not stored for who is offline (sync: false, or sync is off)"),
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

/// What did not go well with the dispatch of that number, for people.
fn troubles(number: u64, result: &Result<DispatchResult, Refusal>) -> Vec<String> {
    match result {
        Ok(result) => result
            .rejected
            .iter()
            .map(|no| format!("dispatch {number}: {}: not taken ({})", printable(&no.user), printable(&no.reason)))
            .collect(),
        Err(refusal) => vec![format!("dispatch {number}: {}", printable(&refusal.to_string()))],
    }
}

/// Counts the lines that get an answer, which are those with something in them, however they are cut.
#[derive(Debug, Default)]
struct Counter {
    lines: Cell<u64>,
    /// There is something in the line that was begun.
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
    fn lines_that_get_an_answer_are_counted_however_they_are_cut() {
        let counter = Counter::default();
        for piece in ["{}\n\n", " ", "\r\n{", "}", "\n{}"] {
            counter.count(piece.as_bytes());
        }
        assert_eq!(counter.lines(), 3);
    }

    #[test]
    fn what_did_not_go_well_is_told_by_its_number() {
        let mut tally = Tally::default();
        let rejected =
            r#"{"recipients":2,"online":0,"offline":1,"stored":1,"rejected":[{"user":"c","reason":"quota"}]}"#;
        let results = [
            Ok(serde_json::from_str(r#"{"recipients":1,"online":0,"offline":1,"duplicate":true}"#).unwrap()),
            Ok(serde_json::from_str(r#"{"recipients":1,"online":0,"offline":1,"stored":1}"#).unwrap()),
            Ok(serde_json::from_str(rejected).unwrap()),
            Err(serde_json::from_str(r#"{"code":"bad_json","message":"this is not JSON"}"#).unwrap()),
        ];
        let mut told = Vec::new();
        for result in &results {
            tally.add(result);
            told.extend(troubles(tally.answered, result));
        }
        assert_eq!(told, ["dispatch 3: c: not taken (quota)", "dispatch 4: refused (bad_json): this is not JSON"]);
        let expected = "4 dispatches: 3 taken, 1 sent before and not again, 1 not for every recipient, 1 refused, \
                        1 not stored for who is offline (sync: false, or sync is off)";
        assert_eq!(tally.to_string(), expected);
    }
}
