//! Measures how much replays delay live messages.
//!
//! 20 clients read a backlog of 100,000 messages each as fast as possible, repeatedly. Meanwhile 100 other users
//! receive live messages.
#![allow(missing_docs)]

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::{SinkExt as _, StreamExt as _};
use mesa::{
    embedded::{
        Tuning,
        tables::{DiskOptions, open},
    },
    message::{Recipients, UserId},
    store::{Append, Limits, ReadLimit},
};
use support::{TestServer, message, next, payload, user};
use tempfile::TempDir;
use tokio::{io::AsyncReadExt as _, net::TcpStream, sync::mpsc};
use tokio_tungstenite::tungstenite::Message;

/// Allocator of the binary.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Clients that read their backlog.
const READERS: usize = 20;
/// Pending messages of each reader.
const BACKLOG: usize = 100_000;
/// Clients that receive live messages.
const LIVE_CLIENTS: usize = 100;
/// Time between two live messages.
const LIVE_INTERVAL: Duration = Duration::from_millis(5);
/// Time for which live messages are sent and measured.
const MEASURING_TIME: Duration = Duration::from_secs(15);

fn reader(n: usize) -> UserId {
    UserId::new(&format!("reader-{n:02}")).expect("an id")
}

/// Creates a store with all backlogs in the value log.
fn prepare_store() -> TempDir {
    let directory = tempfile::tempdir().expect("a directory");
    let runtime = support::runtime();
    let tuning = Tuning { flush_delay: Duration::ZERO, ..Tuning::default() };
    let limits = Limits { messages: 2 * BACKLOG as u64, ..Limits::default() };
    let options = DiskOptions { tuning, limits, ..DiskOptions::new(directory.path()) };
    let store = runtime.block_on(async { open(options) }).expect("a store");
    let readers: Vec<_> = (0..READERS).map(reader).collect();
    for _ in 0..BACKLOG / 500 {
        let appends = (0..500).map(|_| Append::new(payload(), readers.clone())).collect();
        runtime.block_on(store.append_all(appends)).expect("committed");
    }
    // Until the flush, reads come from memory.
    let limit = ReadLimit { entries: 1, bytes: usize::MAX };
    while readers.iter().any(|user| store.read_cached(user, BACKLOG as u64 - 1, limit).is_some()) {
        std::thread::sleep(Duration::from_millis(10));
    }
    runtime.block_on(store.close()).expect("a close without error");
    directory
}

/// Connects, reads the whole backlog, and repeats. Nothing is acknowledged. Counts bytes as they arrive.
async fn replay(server: Arc<TestServer>, user: UserId, stop: Arc<AtomicBool>, bytes: Arc<AtomicU64>) {
    let mut buffer = vec![0; 256 << 10];
    // Data only. The frames around it make a replay slightly larger.
    let backlog_bytes = BACKLOG as u64 * support::DATA_BYTES as u64;
    while !stop.load(Ordering::Relaxed) {
        let stream = TcpStream::connect(server.address).await.expect("a connection");
        let url = format!("ws://{}/", server.address);
        let (mut socket, _) = tokio_tungstenite::client_async(url, stream).await.expect("a WebSocket");
        let authenticate = format!("{{\"op\":2,\"d\":{{\"token\":\"{user}\",\"shouldSync\":true}}}}");
        socket.send(Message::text(authenticate)).await.expect("an open connection");
        for expected in ["op 10", "op 22", "op 1"] {
            socket.next().await.expect(expected).expect("a frame");
        }
        socket.send(Message::text(r#"{"op":11,"d":{}}"#)).await.expect("an open connection");
        // Bytes are only counted, not decoded: a client on another machine would use no CPU of this machine either.
        let mut stream = socket.into_inner();
        let mut received = 0;
        while received < backlog_bytes && !stop.load(Ordering::Relaxed) {
            let read = stream.read(&mut buffer).await.expect("bytes") as u64;
            assert!(read > 0, "closed after {received} bytes");
            received += read;
            bytes.fetch_add(read, Ordering::Relaxed);
        }
    }
}

/// Sends live messages, and returns the time of each from its dispatch until the client has it, sorted.
async fn measure_live(server: &TestServer) -> Vec<Duration> {
    let (arrived, mut arrivals) = mpsc::unbounded_channel();
    let mut clients = Vec::new();
    for n in 0..LIVE_CLIENTS {
        let (mut client, arrived) = (server.client(&user(n)).await, arrived.clone());
        clients.push(tokio::spawn(async move {
            loop {
                next(&mut client).await;
                _ = arrived.send((n, Instant::now()));
            }
        }));
    }
    let dispatcher = Arc::new(server.dispatcher());
    let (message, mut latencies) = (Arc::new(message()), Vec::new());
    let end = Instant::now() + MEASURING_TIME;
    let mut interval = tokio::time::interval(LIVE_INTERVAL);
    for n in (0..LIVE_CLIENTS).cycle() {
        if Instant::now() > end {
            break;
        }
        interval.tick().await;
        let sent = Instant::now();
        let (dispatcher, message) = (dispatcher.clone(), message.clone());
        let dispatch = tokio::spawn(async move {
            let recipients = Recipients::Users(vec![user(n)]);
            dispatcher.dispatch(&message, &recipients, &[]).await.expect("an accepted dispatch");
        });
        let (receiver, at) = arrivals.recv().await.expect("a client");
        assert_eq!(receiver, n, "one message in flight");
        latencies.push(at - sent);
        dispatch.await.expect("a response");
    }
    clients.iter().for_each(tokio::task::JoinHandle::abort);
    latencies.sort_unstable();
    latencies
}

fn print_row(name: &str, latencies: &[Duration]) {
    let at = |percent: usize| latencies[(latencies.len() - 1) * percent / 100].as_secs_f64() * 1e3;
    println!("{name:<42}{:>8}{:>11.2} ms{:>11.2} ms{:>11.2} ms", latencies.len(), at(50), at(99), at(100));
}

fn main() {
    let store = prepare_store();
    // Clients have their own threads, as they would on another machine.
    let (servers, clients) = (support::runtime(), support::runtime());
    let server = Arc::new(servers.block_on(TestServer::start_on(store)));
    println!("{:<42}{:>8}{:>14}{:>14}{:>14}", "live messages", "count", "p50", "p99", "max");
    print_row("without replays", &clients.block_on(measure_live(&server)));
    let (stop, bytes) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let replays: Vec<_> =
        (0..READERS).map(|n| clients.spawn(replay(server.clone(), reader(n), stop.clone(), bytes.clone()))).collect();
    clients.block_on(async { tokio::time::sleep(Duration::from_secs(1)).await });
    let (before, began) = (bytes.load(Ordering::Relaxed), Instant::now());
    let latencies = clients.block_on(measure_live(&server));
    let rate = (bytes.load(Ordering::Relaxed) - before) as f64 / began.elapsed().as_secs_f64();
    stop.store(true, Ordering::Relaxed);
    print_row("during replays of 100,000 to 20 clients", &latencies);
    println!("replays received {:.0} MB per second", rate / 1e6);
    clients.block_on(async {
        for replay in replays {
            replay.await.expect("a reader");
        }
    });
    let server = Arc::into_inner(server).expect("the last reference");
    servers.block_on(server.stop());
}
