//! Measures one contestant: all work in turn on the same processes.

use std::{
    io,
    sync::atomic::Ordering::Relaxed,
    thread,
    time::{Duration, Instant},
};

use tokio::runtime::Handle;

use crate::{
    clients::Clients,
    contestant::{Contestant, Queue, Running, To},
    process::Processes,
    publisher::{IN_FLIGHT_MAX, Publisher, message},
};

/// Time after some work, in which acknowledgements and background work end. Their CPU time counts.
const AFTER_TIME: Duration = Duration::from_millis(300);

/// Time after the last connection, in which buffers are freed.
const IDLE_TIME: Duration = Duration::from_secs(1);

/// Messages to all users that not all users have received.
const FAN_OUT_IN_FLIGHT_MAX: u64 = 8;

/// Messages per second of the work that measures latency.
pub const RATE: u64 = 2_000;

/// A number that has no common divisor with the number of users, so that consecutive messages have distant users.
const STRIDE: u64 = 7_919;

/// Amount of work.
#[derive(Clone, Copy)]
pub struct Size {
    pub users: usize,
    /// Messages to all users.
    pub fan_out: u64,
    pub unicast: u64,
    pub latency: u64,
    pub queue: Queue,
}

impl Size {
    pub const DEFAULT: Self = Self {
        users: 1_000,
        fan_out: 100,
        unicast: 20_000,
        latency: 2_000,
        queue: Queue { users: 200, messages: 100 },
    };
    pub const QUICK: Self =
        Self { users: 50, fan_out: 20, unicast: 1_000, latency: 200, queue: Queue { users: 20, messages: 10 } };
}

/// Kinds of work. The order is that of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    FanOut,
    Unicast,
    Latency,
    Enqueue,
    Drain,
    Idle,
    Connect,
}

impl Work {
    pub const ALL: [Self; 7] =
        [Self::FanOut, Self::Unicast, Self::Latency, Self::Enqueue, Self::Drain, Self::Idle, Self::Connect];
}

/// Figures of some work.
#[derive(Clone, Copy, Debug, Default)]
pub struct Figures {
    /// CPU of the server's processes in microseconds for each message, delivery or connection; or bytes of a connection.
    pub cost: f64,
    /// Messages, deliveries or connections per second.
    pub rate: f64,
    /// Median and p99 from dispatch to receipt, in microseconds.
    pub latency_us: Option<(f64, f64)>,
}

/// What has been measured, or why not.
pub type Outcome = Result<Figures, String>;

/// Measures all work on new processes of a contestant.
pub fn measure(contestant: &dyn Contestant, runtime: &Handle, size: Size) -> Vec<(Work, Outcome)> {
    let running = contestant.start();
    let bench = Bench { contestant, runtime, running, size };
    let mut outcomes = Vec::new();
    let (connect, idle, clients) = bench.connect();
    outcomes.push((Work::Connect, connect));
    outcomes.push((Work::Idle, idle));
    outcomes.push((Work::FanOut, bench.online(&clients, size.fan_out, size.users as u64, |_| To::Everyone)));
    let users = size.users as u64;
    let to = move |number: u64| To::User((number * STRIDE % users) as usize);
    outcomes.push((Work::Unicast, bench.online(&clients, size.unicast, 1, to)));
    outcomes.push((Work::Latency, text(bench.latency(&clients, to))));
    if contestant.has_queue() {
        let created = contestant.create_queues(&bench.running, size.queue.users);
        outcomes.push((Work::Enqueue, text(created.and_then(|()| bench.enqueue()))));
        outcomes.push((Work::Drain, text(bench.drain())));
    }
    outcomes
}

fn text<T>(result: io::Result<T>) -> Result<T, String> {
    result.map_err(|error| error.to_string())
}

/// One contestant that is measured.
struct Bench<'a> {
    contestant: &'a dyn Contestant,
    runtime: &'a Handle,
    running: Running,
    size: Size,
}

impl Bench<'_> {
    fn processes(&self) -> &Processes {
        &self.running.processes
    }

    fn clients(&self, users: impl Iterator<Item = To>) -> Clients {
        Clients::connect(self.runtime, self.contestant.protocol(), self.running.clients, users)
    }

    /// Runs some work for `count` units, and returns CPU and rate of each.
    fn figures(&self, count: u64, work: impl FnOnce() -> io::Result<()>) -> io::Result<Figures> {
        let (before, start) = (self.processes().cpu_seconds(), Instant::now());
        work()?;
        let seconds = start.elapsed().as_secs_f64();
        thread::sleep(AFTER_TIME);
        let cost = (self.processes().cpu_seconds() - before) * 1e6 / count as f64;
        Ok(Figures { cost, rate: count as f64 / seconds, latency_us: None })
    }

    /// Connects all users, and measures their memory.
    fn connect(&self) -> (Outcome, Outcome, Clients) {
        let users = self.size.users;
        let before = self.processes().resident_bytes();
        let mut clients = None;
        let connect = self.figures(users as u64, || {
            let connected = clients.insert(self.clients((0..users).map(To::User)));
            connected.state.wait_until_ready(users as u64)
        });
        thread::sleep(IDLE_TIME);
        let bytes = (self.processes().resident_bytes() - before) / users as f64;
        let idle = connect.as_ref().map(|_| Figures { cost: bytes, ..Figures::default() });
        let idle = idle.map_err(ToString::to_string);
        (text(connect), idle, clients.expect("the clients from above"))
    }

    /// Sends messages to connected users at full speed. Each arrives `copies` times.
    fn online(&self, clients: &Clients, count: u64, copies: u64, to: impl Fn(u64) -> To) -> Outcome {
        let in_flight = if copies > 1 { FAN_OUT_IN_FLIGHT_MAX } else { IN_FLIGHT_MAX };
        let state = &clients.state;
        let first = state.received.load(Relaxed);
        text(self.figures(count * copies, || {
            let mut publisher = Publisher::connect(self.contestant, self.running.publishers)?;
            for number in 0..count {
                if let Some(due) = (number + 1).checked_sub(in_flight)
                    && state.received.load(Relaxed) < first + due * copies
                {
                    publisher.flush()?;
                    state.wait_until_received(first + due * copies)?;
                }
                publisher.push(to(number), &message(state.now_us()))?;
            }
            publisher.flush()?;
            state.wait_until_received(first + count * copies)
        }))
    }

    /// Sends messages to connected users at [`RATE`].
    fn latency(&self, clients: &Clients, to: impl Fn(u64) -> To) -> io::Result<Figures> {
        let (state, count) = (&clients.state, self.size.latency);
        let first = state.received.load(Relaxed);
        state.record_latencies();
        let mut figures = self.figures(count, || {
            let mut publisher = Publisher::connect(self.contestant, self.running.publishers)?;
            let start = Instant::now();
            for number in 0..count {
                let due = Duration::from_micros(number * 1_000_000 / RATE);
                thread::sleep(due.saturating_sub(start.elapsed()));
                publisher.push(to(number), &message(state.now_us()))?;
                publisher.flush()?;
            }
            state.wait_until_received(first + count)
        })?;
        figures.latency_us = Some((state.latency_us(0.5), state.latency_us(0.99)));
        Ok(figures)
    }

    /// Stores messages for users who are offline.
    fn enqueue(&self) -> io::Result<Figures> {
        let queue = self.size.queue;
        let count = (queue.users * queue.messages) as u64;
        self.figures(count, || self.contestant.enqueue(&self.running, queue))
    }

    /// Connects the users, who receive what was stored. Their connections count.
    fn drain(&self) -> io::Result<Figures> {
        let queue = self.size.queue;
        let count = (queue.users * queue.messages) as u64;
        let mut clients = None;
        self.figures(count, || {
            let connected = clients.insert(self.clients((0..queue.users).map(To::Offline)));
            connected.state.wait_until_received(count)
        })
    }
}
