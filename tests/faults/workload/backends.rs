//! Backends: they dispatch as fast as they are answered, remember what they were told, and go on with the next server.

use std::{fmt::Write as _, io};

use serde_json::{Value, json};

use super::{Here, World};
use crate::{
    history::Event,
    support::{
        http::{Http, request},
        random::Random,
    },
};

/// Times a dispatch with an id is sent before its backend gives up.
const ATTEMPTS_MAX: u64 = 20;

/// One dispatch.
#[derive(Clone, Debug)]
struct Dispatch {
    n: u64,
    attempt: u64,
    to: Vec<String>,
    padding: u64,
}

struct Backend<'a> {
    world: &'a World,
    number: u64,
    next: u64,
    random: Random,
    /// Sent and not answered, and to be sent again: only with ids.
    again: Vec<Dispatch>,
}

/// Sends until it is over; returns the number to go on with.
pub fn run(world: &World, number: u64, next: u64, random: Random) -> u64 {
    let mut backend = Backend { world, number, next, random, again: Vec::new() };
    let mut lost = None;
    while let Some(here) = world.runtime.block_on(world.stage.server(lost)) {
        // Whatever ends the connection, this server is gone or going: the same address is not tried again at once.
        lost = Http::connect(here.address).and_then(|http| backend.serve(here, http)).err().map(|_| here.life);
        if world.stage.is_over() {
            break;
        }
    }
    backend.next
}

impl Backend<'_> {
    /// Sends over one connection until it breaks or all is over.
    fn serve(&mut self, here: Here, mut http: Http) -> io::Result<()> {
        while !self.world.stage.is_over() {
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
                    Some(error) => Err(io::Error::other(error.to_string())),
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
        Dispatch { n, attempt: 0, to, padding }
    }

    /// Writes down that it begins; returns the body.
    fn begin(&self, here: Here, dispatch: &Dispatch) -> String {
        let Dispatch { n, attempt, to, padding } = dispatch;
        let id = self.world.plan.ids.then(|| format!("{}-{n}", self.number));
        let data = json!({ "b": self.number, "n": n, "x": "x".repeat(*padding as usize) });
        let mut body = json!({ "message": { "op": 0, "d": data, "t": "TEST" }, "recipients": to });
        if let Some(id) = &id {
            body["id"] = json!(id);
        }
        self.world.history.record(&Event::Begun {
            life: here.life,
            b: self.number,
            n: *n,
            attempt: *attempt,
            to: to.clone(),
            x: *padding,
            id,
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
        if known.is_err() && self.world.plan.ids && attempt + 1 < ATTEMPTS_MAX {
            self.again.push(Dispatch { attempt: attempt + 1, ..dispatch });
        }
        known
    }
}
