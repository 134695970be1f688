//! Servers that are killed at random moments, at work and during start-up, again and again on the same store: what was
//! answered is there, in order, once, and its sequence never moves.
//!
//! This proves that a *process* may die at any time. A killed process leaves what it handed to the kernel; that answers
//! also survive a power cut is for `durability`. `MESA_KILLS` sets how many kills, `MESA_SEED` repeats a run's moments.

mod backends;
mod history;
#[path = "../support/mod.rs"]
#[allow(dead_code, reason = "each test uses its part")]
mod support;

use std::{
    collections::BTreeMap,
    io::Write as _,
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use backends::{BACKENDS, READER, kept_users};
use history::{Log, Mark, Sent, check_logs, check_messages, without_repetitions};
use serde::Deserialize;
use serde_json::Value;
use support::{http::Http, random::Random, server::Home, socket::Socket};

/// Kills where `MESA_KILLS` says nothing.
const KILLS: u64 = 60;

/// Entries asked for at once.
const PAGE: usize = 100;

#[test]
fn what_was_answered_survives_every_kill() {
    let kills: u64 = std::env::var("MESA_KILLS").map_or(KILLS, |kills| kills.parse().expect("MESA_KILLS is a number"));
    let began = Instant::now();
    let mut run = Run::new(Random::announced("crash"));
    while run.kills < kills {
        run.round();
    }
    run.read_everything();
    _ = writeln!(
        std::io::stderr(),
        "crash: {} kills, {} of them during start-up; {} dispatches, {} of them answered; {:.1} s",
        run.kills,
        run.kills_at_start,
        run.history.len(),
        run.history.iter().filter(|sent| sent.answered).count(),
        began.elapsed().as_secs_f64()
    );
}

/// One store, its servers, and what is known of it.
struct Run {
    home: Home,
    random: Random,
    tokio: tokio::runtime::Runtime,
    kills: u64,
    kills_at_start: u64,
    history: Vec<Sent>,
    /// What each backend counts on from.
    next: Vec<u64>,
    /// Logs as they were read so far: what was once there must not change.
    logs: BTreeMap<String, Log>,
    /// What the reader received, connection by connection.
    received: Vec<Vec<Mark>>,
}

impl Run {
    fn new(random: Random) -> Self {
        Self {
            home: Home::new(),
            random,
            tokio: tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime"),
            kills: 0,
            kills_at_start: 0,
            history: Vec::new(),
            next: vec![0; BACKENDS as usize],
            logs: kept_users().into_iter().map(|user| (user, Log::new())).collect(),
            received: Vec::new(),
        }
    }

    /// Perhaps some kills during start-up; then a server that works until it is killed.
    fn round(&mut self) {
        while self.random.once_in(3) {
            self.kill_during_start();
        }
        let server = self.home.start();
        self.read_what_is_new(server.address);
        let backends = backends::start(server.address, &self.next, &mut self.random);
        if self.random.once_in(3) {
            self.read_as_the_reader(server.address, false);
        }
        thread::sleep(Duration::from_millis(self.random.within(0..=120)));
        server.process.kill();
        self.kills += 1;
        self.remember(backends.join());
    }

    fn kill_during_start(&mut self) {
        let process = self.home.spawn(&[]);
        thread::sleep(Duration::from_millis(self.random.within(0..=60)));
        process.kill();
        self.kills += 1;
        self.kills_at_start += 1;
    }

    fn remember(&mut self, done: Vec<Sent>) {
        for sent in &done {
            let next = &mut self.next[sent.mark.backend as usize];
            *next = (*next).max(sent.mark.n + 1);
        }
        self.history.extend(done);
    }

    /// Reads each kept log from a little before where it ended last time, and holds all of it against the history.
    fn read_what_is_new(&mut self, address: SocketAddr) {
        let mut http = Http::connect(address).expect("a connection");
        for (user, log) in &mut self.logs {
            let overlap = log.len().min(5);
            let from = log.len() - overlap;
            let tail = read_log(&mut http, user, from as u64);
            assert!(
                tail.len() >= overlap && tail[..overlap] == log[from..],
                "{user}: the end of the log was {:?} and is {:?}; the seed is above",
                &log[from..],
                &tail[..tail.len().min(overlap)]
            );
            log.extend(&tail[overlap..]);
        }
        check_logs(&self.history, &self.logs).unwrap_or_else(|wrong| panic!("after {} kills: {wrong}", self.kills));
    }

    /// Comes as the reader. `until_done`: until nothing is left; otherwise reads a few messages and goes away.
    fn read_as_the_reader(&mut self, address: SocketAddr, until_done: bool) {
        let few = self.random.within(1..=200);
        let mut received = Vec::new();
        let mut http = Http::connect(address).expect("a connection");
        let result = self.tokio.block_on(async {
            let mut socket = Socket::connect(address, READER).await?;
            let mut left = if until_done { pending(&mut http, READER)? } else { few.min(pending(&mut http, READER)?) };
            while left > 0 {
                received.push(mark(&socket.next().await?.d));
                left -= 1;
            }
            if until_done {
                socket.confirm(|| pending(&mut http, READER)).await?;
            }
            Ok::<(), String>(())
        });
        result.unwrap_or_else(|wrong| panic!("the reader, after {} kills: {wrong}", self.kills));
        self.received.push(received);
    }

    /// In the end: every log whole, by HTTP and by being received.
    fn read_everything(&mut self) {
        let server = self.home.start();
        self.read_what_is_new(server.address);
        let mut http = Http::connect(server.address).expect("a connection");
        for (user, log) in &self.logs {
            assert_eq!(&read_log(&mut http, user, 0), log, "{user}: an old part of the log has changed");
            let drained = self.tokio.block_on(drain(server.address, &mut http, user, log.len()));
            let drained = drained.unwrap_or_else(|wrong| panic!("{user}: {wrong}"));
            assert!(drained.iter().eq(log.iter().map(|(_, mark)| mark)), "{user}: received something else than stored");
        }
        self.read_as_the_reader(server.address, true);
        let received = without_repetitions(&self.received).unwrap_or_else(|wrong| panic!("the reader: {wrong}"));
        check_messages(&self.history, READER, &received).unwrap_or_else(|wrong| panic!("received: {wrong}"));
        assert!(self.history.iter().filter(|sent| sent.answered).count() > 100, "hardly anything was dispatched");
    }
}

/// Receives all `count` messages of a user, numbered from one, and confirms them.
async fn drain(address: SocketAddr, http: &mut Http, user: &str, count: usize) -> Result<Vec<Mark>, String> {
    let mut socket = Socket::connect(address, user).await?;
    let mut marks = Vec::with_capacity(count);
    for place in 1..=count as u64 {
        let received = socket.next().await?;
        if received.s != Some(place) {
            return Err(format!("message {place} is numbered {:?}", received.s));
        }
        marks.push(mark(&received.d));
    }
    socket.confirm(|| pending(http, user)).await?;
    Ok(marks)
}

#[derive(Deserialize)]
struct Page {
    messages: Vec<Stored>,
}

#[derive(Deserialize)]
struct Stored {
    #[serde(alias = "seq", alias = "sequence")]
    s: u64,
    d: Value,
}

#[derive(Deserialize)]
struct User {
    pending: u64,
}

/// A user's log above `after`, page by page.
fn read_log(http: &mut Http, user: &str, after: u64) -> Log {
    let mut log = Log::new();
    loop {
        let from = log.last().map_or(after, |(seq, _)| *seq);
        let path = format!("/v1/users/{user}/messages?after={from}&limit={PAGE}");
        let page: Page = http.get(&path).expect("a page of the log");
        if page.messages.is_empty() {
            return log;
        }
        log.extend(page.messages.iter().map(|stored| (stored.s, mark(&stored.d))));
    }
}

fn pending(http: &mut Http, user: &str) -> Result<u64, String> {
    http.get::<User>(&format!("/v1/users/{user}")).map(|user| user.pending).map_err(|error| error.to_string())
}

fn mark(data: &Value) -> Mark {
    let number = |key: &str| data[key].as_u64().unwrap_or_else(|| panic!("no {key} in {data}"));
    Mark { backend: number("b"), n: number("n") }
}
