//! Runs backends, which dispatch messages as fast as the server answers.
//!
//! They record the answers. After a broken connection they continue on the next server. Some dispatches have an
//! idempotency id. Without an answer they are retried with that id until there is one, on whichever server is current.
//! A few are retried although they were answered.

use std::{collections::VecDeque, fmt::Write as _, io};

use serde_json::{Value, json};

use super::{Context, RunningServer};
use crate::{
    history::Event,
    support::{
        http::{Http, request},
        ndjson::NdjsonStream,
        seeded_rng::Random,
    },
};

/// Most attempts of a dispatch with an id.
const ATTEMPTS_MAX: u64 = 20;

/// One in this many answered dispatches with an id is retried.
const RETRY_ONE_IN: u64 = 15;

/// Most unanswered lines of a stream.
const LINES_MAX: usize = 64;

/// One attempt to dispatch a message.
#[derive(Clone, Debug)]
struct Dispatch {
    n: u64,
    attempt: u64,
    to: Vec<String>,
    padding: u64,
    id: Option<String>,
}

struct Backend<'a> {
    context: &'a Context,
    number: u64,
    next: u64,
    random: Random,
    /// Dispatches to send again with the same ids.
    retries: Vec<Dispatch>,
}

/// Dispatches until the workload ends. Returns the number of the next message.
pub fn run(context: &Context, number: u64, next: u64, random: Random) -> u64 {
    let mut backend = Backend { context, number, next, random, retries: Vec::new() };
    let mut failed = None;
    while let Some(server) = context.runtime.block_on(context.current.wait(failed)) {
        let streams = context.params.streams && backend.random.one_in(3);
        let result = if streams {
            NdjsonStream::open(server.address).and_then(|lines| backend.dispatch_stream(server, lines))
        } else {
            Http::connect(server.address).and_then(|http| backend.dispatch_requests(server, http))
        };
        // An error means that the server has exited or shuts down. So the backend waits for the next one.
        failed = result.err().map(|_| server.number);
        if context.current.is_finished() {
            break;
        }
    }
    backend.next
}

impl Backend<'_> {
    /// Sends up to 200 bursts of pipelined requests over one connection.
    fn dispatch_requests(&mut self, server: RunningServer, mut http: Http) -> io::Result<()> {
        for _ in 0..self.random.within(1..=200) {
            if self.context.current.is_finished() {
                break;
            }
            let mut burst = std::mem::take(&mut self.retries);
            let size = if self.random.one_in(2) { 1 } else { self.random.within(1..=self.context.params.burst_max) };
            while (burst.len() as u64) < size {
                burst.push(self.new_dispatch());
            }
            let mut requests = String::new();
            for dispatch in &burst {
                let body = self.start(server, dispatch);
                _ = write!(requests, "{}", request("POST", "/v1/dispatch", &body));
            }
            let mut broken = http.send(&requests).err();
            for dispatch in burst {
                let answer = match &broken {
                    None => http.response(),
                    Some(error) => repeat_error(error),
                };
                if let Err(error) = self.finish(dispatch, answer) {
                    broken = Some(error);
                }
            }
            if let Some(error) = broken {
                return Err(error);
            }
        }
        Ok(())
    }

    /// Sends up to 60 bursts over one NDJSON stream. Some lines are always unanswered, so that a cut stream leaves
    /// some.
    fn dispatch_stream(&mut self, server: RunningServer, mut lines: NdjsonStream) -> io::Result<()> {
        let mut unanswered = VecDeque::new();
        let mut bursts = self.random.within(1..=60);
        let mut broken = None;
        while broken.is_none() {
            if self.context.current.is_finished() {
                bursts = 0;
            }
            let answers = if bursts == 0 { unanswered.len() } else { unanswered.len().min(LINES_MAX / 2) };
            for _ in 0..answers {
                let dispatch: Dispatch = unanswered.pop_front().expect("at least as many lines as answers");
                let answer = match &broken {
                    None => lines.result().and_then(answer_of_line),
                    Some(error) => repeat_error(error),
                };
                broken = self.finish(dispatch, answer).err().or(broken);
            }
            if bursts == 0 || broken.is_some() {
                break;
            }
            bursts -= 1;
            let mut burst = std::mem::take(&mut self.retries);
            for _ in 0..self.random.within(1..=LINES_MAX as u64 / 2) {
                burst.push(self.new_dispatch());
            }
            let mut text = String::new();
            for dispatch in &burst {
                text.push_str(&self.start(server, dispatch));
                text.push('\n');
            }
            unanswered.extend(burst);
            broken = lines.send(&text).err();
        }
        if let Some(error) = broken {
            for dispatch in unanswered {
                _ = self.finish(dispatch, repeat_error(&error));
            }
            return Err(error);
        }
        lines.end()?;
        // The checker reports an answer to a line that was never sent.
        while let Some(body) = lines.result()? {
            let body = serde_json::from_str(&body).unwrap_or(Value::Null);
            self.context.history.record(&Event::Answered {
                b: self.number,
                n: u64::MAX,
                attempt: 0,
                status: 200,
                body,
            });
        }
        Ok(())
    }

    /// Creates a dispatch with random recipients, padding and id.
    fn new_dispatch(&mut self) -> Dispatch {
        let n = self.next;
        self.next += 1;
        let users = self.context.params.users;
        let count = match self.random.within(1..=20) {
            1..=12 => 1,
            13..=17 => 2,
            18..=19 => self.random.within(3..=6),
            _ => users,
        };
        // Adjacent users, so that no recipient is named twice.
        let first = self.random.within(0..=users - 1);
        let all: Vec<String> = self.context.params.users().collect();
        let to = (0..count.min(users)).map(|at| all[((first + at) % users) as usize].clone()).collect();
        // A few messages are too large to share a block with many others.
        let padding =
            if self.random.one_in(200) { self.random.within(1_000..=40_000) } else { self.random.within(0..=200) };
        let id = (self.context.params.ids && !self.random.one_in(3)).then(|| format!("{}-{n}", self.number));
        Dispatch { n, attempt: 0, to, padding, id }
    }

    /// Records the start of an attempt. Returns its request body.
    fn start(&self, server: RunningServer, dispatch: &Dispatch) -> String {
        let Dispatch { n, attempt, to, padding, id } = dispatch;
        let data = json!({ "b": self.number, "n": n, "x": "x".repeat(*padding as usize) });
        let mut body = json!({ "message": { "op": 0, "d": data, "t": "TEST" }, "recipients": to });
        if let Some(id) = id {
            body["id"] = json!(id);
        }
        self.context.history.record(&Event::Dispatching {
            server: server.number,
            b: self.number,
            n: *n,
            attempt: *attempt,
            to: to.clone(),
            x: *padding,
            id: id.clone(),
        });
        body.to_string()
    }

    /// Records the answer to an attempt, and schedules a retry.
    fn finish(&mut self, dispatch: Dispatch, answer: io::Result<(u16, Vec<u8>)>) -> io::Result<()> {
        let (b, n, attempt) = (self.number, dispatch.n, dispatch.attempt);
        let result = match answer {
            Ok((status, body)) => {
                let body: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
                self.context.history.record(&Event::Answered { b, n, attempt, status, body });
                // After 503 the message may be stored or not.
                if status == 503 { Err(io::Error::other("the server answers 503")) } else { Ok(()) }
            }
            Err(error) => {
                self.context.history.record(&Event::Unanswered { b, n, attempt, error: error.to_string() });
                Err(error)
            }
        };
        let retry = result.is_err() || self.random.one_in(RETRY_ONE_IN);
        if retry && dispatch.id.is_some() && attempt + 1 < ATTEMPTS_MAX {
            self.retries.push(Dispatch { attempt: attempt + 1, ..dispatch });
        }
        result
    }
}

/// Returns the error of a broken connection once more, for another dispatch on it.
fn repeat_error(error: &io::Error) -> io::Result<(u16, Vec<u8>)> {
    Err(io::Error::other(error.to_string()))
}

/// Converts a line of a stream to the answer that a single request would have had.
fn answer_of_line(line: Option<String>) -> io::Result<(u16, Vec<u8>)> {
    let line = line.ok_or(io::ErrorKind::UnexpectedEof)?;
    let body: Value = serde_json::from_str(&line)?;
    let status = match body["error"]["code"].as_str() {
        None => 200,
        Some("full") => 507,
        Some("shutting_down" | "store_failed") => 503,
        Some("internal") => 500,
        Some(_) => 422,
    };
    Ok((status, line.into_bytes()))
}
