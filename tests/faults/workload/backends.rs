//! Backends: they dispatch as fast as they are answered, remember what they were told, and go on with the next server.
//!
//! Some of what they send has an id. Of that, what was not answered is sent again under the same id until it is, to
//! whichever server there is then, and now and then something that was answered is sent again too.

use std::{collections::VecDeque, fmt::Write as _, io};

use serde_json::{Value, json};

use super::{Here, World};
use crate::{
    history::Event,
    support::{
        http::{Http, request},
        ndjson::Lines,
        seeded_rng::Random,
    },
};

/// Times a dispatch with an id is sent before its backend gives up.
const ATTEMPTS_MAX: u64 = 20;

/// Of so many answers to dispatches with an id, one is asked for again.
const REPEAT_ONCE_IN: u64 = 15;

/// Lines of a stream that are under way at once, at most.
const LINES_MAX: usize = 64;

/// One dispatch.
#[derive(Clone, Debug)]
struct Dispatch {
    n: u64,
    attempt: u64,
    to: Vec<String>,
    padding: u64,
    id: Option<String>,
}

struct Backend<'a> {
    world: &'a World,
    number: u64,
    next: u64,
    random: Random,
    /// To be sent again, under the same ids.
    again: Vec<Dispatch>,
}

/// Sends until it is over; returns the number to go on with.
pub fn run(world: &World, number: u64, next: u64, random: Random) -> u64 {
    let mut backend = Backend { world, number, next, random, again: Vec::new() };
    let mut lost = None;
    while let Some(here) = world.runtime.block_on(world.stage.server(lost)) {
        // Whatever ends the connection, this server is gone or going: the same address is not tried again at once.
        let streams = world.plan.streams && backend.random.once_in(3);
        let served = if streams {
            Lines::open(here.address).and_then(|lines| backend.stream(here, lines))
        } else {
            Http::connect(here.address).and_then(|http| backend.serve(here, http))
        };
        lost = served.err().map(|_| here.life);
        if world.stage.is_over() {
            break;
        }
    }
    backend.next
}

impl Backend<'_> {
    /// Sends over one connection for a while, or until it breaks or all is over.
    fn serve(&mut self, here: Here, mut http: Http) -> io::Result<()> {
        for _ in 0..self.random.within(1..=200) {
            if self.world.stage.is_over() {
                break;
            }
            let mut burst = std::mem::take(&mut self.again);
            let depth = if self.random.once_in(2) { 1 } else { self.random.within(1..=self.world.plan.depth) };
            while (burst.len() as u64) < depth {
                burst.push(self.dispatch());
            }
            let mut requests = String::new();
            for dispatch in &burst {
                let body = self.begin(here, dispatch);
                _ = write!(requests, "{}", request("POST", "/v1/dispatch", &body));
            }
            let mut broken = http.send(&requests).err();
            for dispatch in burst {
                let answer = match &broken {
                    None => http.answer(),
                    Some(error) => again(error),
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

    /// The same over one stream: some lines are always under way, so that one that is cut leaves some unanswered.
    fn stream(&mut self, here: Here, mut lines: Lines) -> io::Result<()> {
        let mut under_way = VecDeque::new();
        let mut bursts = self.random.within(1..=60);
        let mut broken = None;
        while broken.is_none() {
            if self.world.stage.is_over() {
                bursts = 0;
            }
            let answered_first = if bursts == 0 { under_way.len() } else { under_way.len().min(LINES_MAX / 2) };
            for _ in 0..answered_first {
                let dispatch: Dispatch = under_way.pop_front().expect("it was counted");
                let answer = match &broken {
                    None => lines.answer().and_then(answer_of),
                    Some(error) => again(error),
                };
                broken = self.finish(dispatch, answer).err().or(broken);
            }
            if bursts == 0 || broken.is_some() {
                break;
            }
            bursts -= 1;
            let mut burst = std::mem::take(&mut self.again);
            for _ in 0..self.random.within(1..=LINES_MAX as u64 / 2) {
                burst.push(self.dispatch());
            }
            let mut text = String::new();
            for dispatch in &burst {
                text.push_str(&self.begin(here, dispatch));
                text.push('\n');
            }
            under_way.extend(burst);
            broken = lines.send(&text).err();
        }
        if let Some(error) = broken {
            for dispatch in under_way {
                _ = self.finish(dispatch, again(&error));
            }
            return Err(error);
        }
        lines.end()?;
        // More answers than lines: to what was never asked.
        while let Some(answer) = lines.answer()? {
            let answer = serde_json::from_str(&answer).unwrap_or(Value::Null);
            self.world.history.record(&Event::Answered {
                b: self.number,
                n: u64::MAX,
                attempt: 0,
                status: 200,
                answer,
            });
        }
        Ok(())
    }

    fn dispatch(&mut self) -> Dispatch {
        let n = self.next;
        self.next += 1;
        let users = self.world.plan.users;
        let count = match self.random.within(1..=20) {
            1..=12 => 1,
            13..=17 => 2,
            18..=19 => self.random.within(3..=6),
            _ => users,
        };
        // Neighbours, so that nobody is named twice.
        let first = self.random.within(0..=users - 1);
        let all: Vec<String> = self.world.plan.users().collect();
        let to = (0..count.min(users)).map(|at| all[((first + at) % users) as usize].clone()).collect();
        // Now and then one that does not fit beside many others.
        let padding =
            if self.random.once_in(200) { self.random.within(1_000..=40_000) } else { self.random.within(0..=200) };
        let id = (self.world.plan.ids && !self.random.once_in(3)).then(|| format!("{}-{n}", self.number));
        Dispatch { n, attempt: 0, to, padding, id }
    }

    /// Writes down that it begins; returns the body.
    fn begin(&self, here: Here, dispatch: &Dispatch) -> String {
        let Dispatch { n, attempt, to, padding, id } = dispatch;
        let data = json!({ "b": self.number, "n": n, "x": "x".repeat(*padding as usize) });
        let mut body = json!({ "message": { "op": 0, "d": data, "t": "TEST" }, "recipients": to });
        if let Some(id) = id {
            body["id"] = json!(id);
        }
        self.world.history.record(&Event::Begun {
            life: here.life,
            b: self.number,
            n: *n,
            attempt: *attempt,
            to: to.clone(),
            x: *padding,
            id: id.clone(),
        });
        body.to_string()
    }

    fn finish(&mut self, dispatch: Dispatch, answer: io::Result<(u16, Vec<u8>)>) -> io::Result<()> {
        let (b, n, attempt) = (self.number, dispatch.n, dispatch.attempt);
        let known = match answer {
            Ok((status, body)) => {
                let answer: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
                self.world.history.record(&Event::Answered { b, n, attempt, status, answer });
                // 503: the server is going, and the message may be kept or not.
                if status == 503 { Err(io::Error::other("the server is going")) } else { Ok(()) }
            }
            Err(error) => {
                self.world.history.record(&Event::Unknown { b, n, attempt, why: error.to_string() });
                Err(error)
            }
        };
        let again = known.is_err() || self.random.once_in(REPEAT_ONCE_IN);
        if again && dispatch.id.is_some() && attempt + 1 < ATTEMPTS_MAX {
            self.again.push(Dispatch { attempt: attempt + 1, ..dispatch });
        }
        known
    }
}

/// What broke one broke all that was under way with it.
fn again(error: &io::Error) -> io::Result<(u16, Vec<u8>)> {
    Err(io::Error::other(error.to_string()))
}

/// The line of a stream as an answer of its own: the status it would have had.
fn answer_of(line: Option<String>) -> io::Result<(u16, Vec<u8>)> {
    let line = line.ok_or(io::ErrorKind::UnexpectedEof)?;
    let answer: Value = serde_json::from_str(&line)?;
    let status = match answer["error"]["code"].as_str() {
        None => 200,
        Some("full") => 507,
        Some("shutting_down" | "store_failed") => 503,
        Some("internal") => 500,
        Some(_) => 422,
    };
    Ok((status, line.into_bytes()))
}
