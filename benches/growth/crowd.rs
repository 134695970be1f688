//! Connects light clients: each is a socket and a task of a few hundred bytes, so that one process has 100,000.
//!
//! They authenticate, answer heartbeats and time broadcasts. They check nothing else: `mesa bench` does.

use std::{
    cell::RefCell,
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use parking_lot::Mutex;
use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpSocket, TcpStream},
    sync::{Notify, Semaphore},
    task::JoinSet,
};

use crate::frames::{Event, Frames, REQUEST, masked};

/// Clients that connect at the same time.
const CONNECTING_MAX: usize = 64;

/// Clients for each source address. A system has about 28,000 ports for one.
const CLIENTS_PER_ADDRESS: usize = 20_000;

/// Bytes of the read buffer that the clients of a thread share.
const READ_BYTES: usize = 64 << 10;

/// One client in this number reconnects once.
pub const RECONNECTING: usize = 10;

/// Longest time until all clients are authenticated, or have a broadcast.
const WAIT_TIMEOUT: Duration = Duration::from_secs(300);

/// Longest time of a broadcast that is recorded, in microseconds. A longer one counts as that.
const LATENCY_US_MAX: u64 = 300_000_000;

/// Interval at which waiters look at the counters.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; READ_BYTES]);
}

/// Connected clients. They disconnect when this is dropped.
pub struct Crowd {
    state: Arc<State>,
    _tasks: JoinSet<()>,
}

struct State {
    server: SocketAddr,
    start: Instant,
    tokens: Vec<String>,
    connecting: Semaphore,
    /// Broadcasts after which every reconnecting client has reconnected; 0: none reconnects.
    rounds: AtomicUsize,
    authenticated: AtomicUsize,
    reconnected: AtomicUsize,
    failed: AtomicUsize,
    received: AtomicU64,
    changed: Notify,
    latencies: Mutex<Histogram<u64>>,
}

impl Crowd {
    /// Connects a client for each token.
    pub fn connect(server: &str, tokens: Vec<String>) -> Self {
        let state = Arc::new(State {
            server: server.parse().expect("an address"),
            start: Instant::now(),
            tokens,
            connecting: Semaphore::new(CONNECTING_MAX),
            rounds: AtomicUsize::new(0),
            authenticated: AtomicUsize::new(0),
            reconnected: AtomicUsize::new(0),
            failed: AtomicUsize::new(0),
            received: AtomicU64::new(0),
            changed: Notify::new(),
            latencies: Mutex::new(Histogram::new_with_max(LATENCY_US_MAX, 3).expect("three digits are allowed")),
        });
        let mut tasks = JoinSet::new();
        for number in 0..state.tokens.len() {
            tasks.spawn(serve(state.clone(), number));
        }
        Self { state, _tasks: tasks }
    }

    /// Waits until all clients are authenticated.
    pub async fn wait_until_authenticated(&self) {
        let clients = self.state.tokens.len();
        self.wait_until("authenticated", clients, || self.state.authenticated.load(Relaxed)).await;
    }

    /// Lets one client in [`RECONNECTING`] reconnect once within the next `rounds` broadcasts, evenly distributed.
    pub fn reconnect_within(&self, rounds: usize) {
        self.state.rounds.store(rounds, Relaxed);
    }

    /// Waits until the clients have received this many broadcasts in all.
    pub async fn wait_until_received(&self, broadcasts: u64) {
        self.wait_until("received", broadcasts as usize, || self.state.received.load(Relaxed) as usize).await;
    }

    async fn wait_until(&self, what: &str, expected: usize, count: impl Fn() -> usize) {
        let end = Instant::now() + WAIT_TIMEOUT;
        while count() < expected {
            let failed = self.state.failed.load(Relaxed);
            assert_eq!(failed, 0, "{failed} clients lost their connection: see the lines above");
            assert!(Instant::now() < end, "{} of {expected} {what} after {WAIT_TIMEOUT:?}", count());
            _ = tokio::time::timeout(POLL_INTERVAL, self.state.changed.notified()).await;
        }
    }

    /// Returns microseconds since the first connection, which a broadcast states as `at`.
    pub fn now_us(&self) -> u64 {
        self.state.start.elapsed().as_micros() as u64
    }

    pub fn received(&self) -> u64 {
        self.state.received.load(Relaxed)
    }

    pub fn reconnected(&self) -> usize {
        self.state.reconnected.load(Relaxed)
    }

    /// Returns the times from dispatch to receipt, in microseconds.
    pub fn latencies(&self) -> Histogram<u64> {
        self.state.latencies.lock().clone()
    }
}

/// Serves one client until it fails.
async fn serve(state: Arc<State>, number: usize) {
    loop {
        match serve_connection(&state, number).await {
            Ok(()) => _ = state.reconnected.fetch_add(1, Relaxed),
            Err(error) => {
                // A server that ends closes all of them.
                if state.failed.fetch_add(1, Relaxed) == 0 {
                    eprintln!("client {number}: {error}");
                }
                return state.changed.notify_waiters();
            }
        }
    }
}

/// Connects and receives until it is this client's turn to reconnect.
async fn serve_connection(state: &State, number: usize) -> io::Result<()> {
    let mut permit = Some(state.connecting.acquire().await.expect("the semaphore is never closed"));
    let mut stream = connect(state.server, number).await?;
    stream.write_all(REQUEST).await?;
    let mut frames = Frames::default();
    loop {
        stream.readable().await?;
        let reconnects = BUFFER.with_borrow_mut(|buffer| {
            let bytes = match stream.try_read(buffer) {
                Ok(0) => return Err(io::Error::other("the server closed the connection")),
                Ok(bytes) => bytes,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            };
            let mut reconnects = false;
            for event in frames.read(&buffer[..bytes])? {
                match event {
                    Event::Hello => {
                        send(&stream, &format!(r#"{{"op":2,"d":{{"token":"{}"}}}}"#, state.tokens[number]))?;
                    }
                    Event::Authenticated => {
                        state.authenticated.fetch_add(1, Relaxed);
                        permit = None;
                    }
                    Event::Heartbeat => send(&stream, r#"{"op":11}"#)?,
                    Event::Broadcast { n, at } => {
                        state.receive(at);
                        reconnects |= state.is_turn(number, n);
                    }
                }
            }
            Ok(reconnects)
        })?;
        if reconnects {
            return Ok(());
        }
    }
}

impl State {
    fn receive(&self, at: u64) {
        let latency = (self.start.elapsed().as_micros() as u64).saturating_sub(at);
        self.latencies.lock().saturating_record(latency.max(1));
        self.received.fetch_add(1, Relaxed);
    }

    /// Reports whether a client reconnects after broadcast `n`.
    fn is_turn(&self, number: usize, n: u64) -> bool {
        let rounds = self.rounds.load(Relaxed);
        rounds > 0 && number.is_multiple_of(RECONNECTING) && number / RECONNECTING % rounds == n as usize % rounds
    }
}

/// Connects from one of several loopback addresses, since each has a limited number of ports.
async fn connect(server: SocketAddr, number: usize) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    let host = 1 + (number / CLIENTS_PER_ADDRESS) as u8;
    socket.bind((Ipv4Addr::new(127, 0, 0, host), 0).into())?;
    socket.connect(server).await
}

/// Writes a frame. The send buffer of a client that writes so little is never full.
fn send(stream: &TcpStream, text: &str) -> io::Result<()> {
    let frame = masked(text);
    match stream.try_write(&frame)? {
        bytes if bytes == frame.len() => Ok(()),
        _ => Err(io::Error::other("the send buffer is full")),
    }
}
