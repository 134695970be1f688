//! Clients of all protocols: each is a task that connects, receives, acknowledges and counts.

pub mod mqtt;
mod nats;
mod websocket;

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use parking_lot::Mutex;
use tokio::{net::TcpStream, runtime::Handle, sync::Semaphore, task::JoinSet};

use crate::contestant::To;

/// Clients that connect at the same time.
const CONNECTING_MAX: usize = 64;

/// Time without progress after which the work has failed.
const STALL_TIMEOUT: Duration = Duration::from_secs(10);

/// Delay between two looks at a counter.
const POLL_INTERVAL: Duration = Duration::from_micros(200);

/// Longest recorded latency in microseconds. A longer one counts as that.
const LATENCY_US_MAX: u64 = 60_000_000;

/// Name of the time in the data of a message.
const AT: &str = "\"at\":";

/// Protocol of clients.
#[derive(Clone, Copy)]
pub enum Protocol {
    /// The protocol of the original, which is also ours.
    WebSocket,
    Mqtt,
    Nats,
}

/// Connected clients. They disconnect when this is dropped.
pub struct Clients {
    pub state: Arc<State>,
    _tasks: JoinSet<()>,
}

/// What all clients count.
pub struct State {
    start: Instant,
    connecting: Semaphore,
    pub ready: AtomicU64,
    pub received: AtomicU64,
    failed: AtomicBool,
    records_latency: AtomicBool,
    latencies: Mutex<Histogram<u64>>,
}

impl Clients {
    /// Connects clients as these users.
    pub fn connect(runtime: &Handle, protocol: Protocol, server: SocketAddr, users: impl Iterator<Item = To>) -> Self {
        let state = Arc::new(State {
            start: Instant::now(),
            connecting: Semaphore::new(CONNECTING_MAX),
            ready: AtomicU64::new(0),
            received: AtomicU64::new(0),
            failed: AtomicBool::new(false),
            records_latency: AtomicBool::new(false),
            latencies: Mutex::new(Histogram::new_with_max(LATENCY_US_MAX, 3).expect("three digits are allowed")),
        });
        let mut tasks = JoinSet::new();
        for user in users {
            tasks.spawn_on(serve(protocol, server, user, state.clone()), runtime);
        }
        Self { state, _tasks: tasks }
    }
}

async fn serve(protocol: Protocol, server: SocketAddr, user: To, state: Arc<State>) {
    let result = match protocol {
        Protocol::WebSocket => websocket::serve(server, user, &state).await,
        Protocol::Mqtt => mqtt::serve(server, user, &state).await,
        Protocol::Nats => nats::serve(server, user, &state).await,
    };
    if let Err(error) = result
        && !state.failed.swap(true, Relaxed)
    {
        eprintln!("client {}: {error}", user.name());
    }
}

async fn open(server: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(server).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

impl State {
    /// Returns microseconds since the clients started, which a message states as `at`.
    pub fn now_us(&self) -> u64 {
        self.start.elapsed().as_micros() as u64
    }

    /// Counts a message, and records its latency.
    fn receive(&self, message: &[u8]) {
        if self.records_latency.load(Relaxed) {
            let latency = self.now_us().saturating_sub(sent_at(message).expect("a time in each message"));
            self.latencies.lock().saturating_record(latency.max(1));
        }
        self.received.fetch_add(1, Relaxed);
    }

    /// Starts to record latencies.
    pub fn record_latencies(&self) {
        self.records_latency.store(true, Relaxed);
    }

    /// Returns a quantile of the latencies in microseconds.
    pub fn latency_us(&self, quantile: f64) -> f64 {
        self.latencies.lock().value_at_quantile(quantile) as f64
    }

    /// Waits until `count` is `expected`. Fails after some time without progress, or if a connection ends.
    pub fn wait(&self, what: &str, expected: u64, count: impl Fn() -> u64) -> io::Result<()> {
        let (mut last, mut since) = (count(), Instant::now());
        while last < expected {
            if since.elapsed() > STALL_TIMEOUT || self.failed.load(Relaxed) {
                return Err(io::Error::other(format!("{} of {expected} {what} missing", expected - last)));
            }
            thread::sleep(POLL_INTERVAL);
            let now = count();
            if now > last {
                (last, since) = (now, Instant::now());
            }
        }
        Ok(())
    }

    pub fn wait_until_received(&self, expected: u64) -> io::Result<()> {
        self.wait("messages", expected, || self.received.load(Relaxed))
    }

    pub fn wait_until_ready(&self, expected: u64) -> io::Result<()> {
        self.wait("clients", expected, || self.ready.load(Relaxed))
    }
}

fn sent_at(message: &[u8]) -> Option<u64> {
    let start = message.windows(AT.len()).position(|window| window == AT.as_bytes())? + AT.len();
    let digits = message[start..].iter().take_while(|byte| byte.is_ascii_digit());
    Some(digits.fold(0, |number, digit| number * 10 + u64::from(digit - b'0')))
}

/// Checks the parsers.
pub fn check() {
    assert_eq!(sent_at(br#"{"op":0,"d":{"at":1205,"p":"x"}}"#), Some(1205));
    assert_eq!(sent_at(b"{}"), None);
    websocket::check();
    mqtt::check();
    nats::check();
}
