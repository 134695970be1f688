//! Whether live messages wait for replays: twenty clients that are owed a hundred thousand messages each read them as
//! fast as they can, again and again, while a hundred other users are sent something now and then.
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
use support::{Served, message, next, payload, user};
use tempfile::TempDir;
use tokio::{io::AsyncReadExt as _, net::TcpStream, sync::mpsc};
use tokio_tungstenite::tungstenite::Message;

/// What the binary has.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const READERS: usize = 20;
const BACKLOG: usize = 100_000;
const LIVE: usize = 100;
/// Between two live messages.
const PAUSE: Duration = Duration::from_millis(5);
const MEASURED: Duration = Duration::from_secs(15);

fn reader(n: usize) -> UserId {
    UserId::new(&format!("reader-{n:02}")).expect("an id")
}

/// A store in which all of it waits, in the inboxes.
fn prepared() -> TempDir {
    let directory = tempfile::tempdir().expect("a directory");
    let runtime = support::runtime();
    let tuning = Tuning { flush_delay: Duration::ZERO, ..Tuning::default() };
    let limits = Limits { messages: 2 * BACKLOG as u64, ..Limits::default() };
    let options = DiskOptions { tuning, limits, ..DiskOptions::new(directory.path()) };
    let store = runtime.block_on(async { open(options) }).expect("a store");
    let readers: Vec<_> = (0..READERS).map(reader).collect();
    for _ in 0..BACKLOG / 500 {
        let appends = (0..500).map(|_| Append::new(payload(), readers.clone())).collect();
        runtime.block_on(store.append_all(appends)).expect("they are kept");
    }
    // Reads come from memory until it is settled.
    let limit = ReadLimit { entries: 1, bytes: usize::MAX };
    while readers.iter().any(|user| store.read_cached(user, BACKLOG as u64 - 1, limit).is_some()) {
        std::thread::sleep(Duration::from_millis(10));
    }
    runtime.block_on(store.close()).expect("it closes");
    directory
}

/// Connects and reads all there is, and begins anew: nothing is confirmed. Bytes are counted as they come.
async fn replay(served: Arc<Served>, user: UserId, stop: Arc<AtomicBool>, bytes: Arc<AtomicU64>) {
    let mut buffer = vec![0; 256 << 10];
    // Payload, and what stands around it, is a little more.
    let whole = BACKLOG as u64 * support::DATA_BYTES as u64;
    while !stop.load(Ordering::Relaxed) {
        let stream = TcpStream::connect(served.address).await.expect("a connection");
        let url = format!("ws://{}/", served.address);
        let (mut socket, _) = tokio_tungstenite::client_async(url, stream).await.expect("a WebSocket");
        let authenticate = format!("{{\"op\":2,\"d\":{{\"token\":\"{user}\",\"shouldSync\":true}}}}");
        socket.send(Message::text(authenticate)).await.expect("it is taken");
        for what in ["a greeting", "op 22", "op 1"] {
            socket.next().await.expect(what).expect("a frame");
        }
        socket.send(Message::text(r#"{"op":11,"d":{}}"#)).await.expect("it is taken");
        // From here on it is only counted: a client on another machine would cost the server nothing either.
        let mut stream = socket.into_inner();
        let mut had = 0;
        while had < whole && !stop.load(Ordering::Relaxed) {
            let read = stream.read(&mut buffer).await.expect("bytes") as u64;
            assert!(read > 0, "closed after {had} bytes");
            had += read;
            bytes.fetch_add(read, Ordering::Relaxed);
        }
    }
}

/// Sends live messages for a while; from the dispatch until the client has it, each.
async fn live(served: &Served) -> Vec<Duration> {
    let (told, mut came) = mpsc::unbounded_channel();
    let mut clients = Vec::new();
    for n in 0..LIVE {
        let (mut client, told) = (served.client(&user(n)).await, told.clone());
        clients.push(tokio::spawn(async move {
            loop {
                next(&mut client).await;
                _ = told.send((n, Instant::now()));
            }
        }));
    }
    let dispatcher = Arc::new(served.dispatcher());
    let (message, mut took) = (Arc::new(message()), Vec::new());
    let end = Instant::now() + MEASURED;
    let mut tick = tokio::time::interval(PAUSE);
    for n in (0..LIVE).cycle() {
        if Instant::now() > end {
            break;
        }
        tick.tick().await;
        let sent = Instant::now();
        let (dispatcher, message) = (dispatcher.clone(), message.clone());
        let dispatch = tokio::spawn(async move {
            let recipients = Recipients::Users(vec![user(n)]);
            dispatcher.dispatch(&message, &recipients, &[]).await.expect("it is taken");
        });
        let (whose, at) = came.recv().await.expect("a client");
        assert_eq!(whose, n, "one message is under way");
        took.push(at - sent);
        dispatch.await.expect("answered");
    }
    clients.iter().for_each(tokio::task::JoinHandle::abort);
    took.sort_unstable();
    took
}

fn show(what: &str, took: &[Duration]) {
    let at = |percent: usize| took[(took.len() - 1) * percent / 100].as_secs_f64() * 1e3;
    println!("{what:<42}{:>8}{:>11.2} ms{:>11.2} ms{:>11.2} ms", took.len(), at(50), at(99), at(100));
}

fn main() {
    let store = prepared();
    // Clients have threads of their own, as they would have elsewhere.
    let (servers, clients) = (support::runtime(), support::runtime());
    let served = Arc::new(servers.block_on(Served::start_on(store)));
    println!("{:<42}{:>8}{:>14}{:>14}{:>14}", "live messages", "count", "p50", "p99", "max");
    show("alone", &clients.block_on(live(&served)));
    let (stop, bytes) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let replays: Vec<_> =
        (0..READERS).map(|n| clients.spawn(replay(served.clone(), reader(n), stop.clone(), bytes.clone()))).collect();
    clients.block_on(async { tokio::time::sleep(Duration::from_secs(1)).await });
    let (before, began) = (bytes.load(Ordering::Relaxed), Instant::now());
    let took = clients.block_on(live(&served));
    let rate = (bytes.load(Ordering::Relaxed) - before) as f64 / began.elapsed().as_secs_f64();
    stop.store(true, Ordering::Relaxed);
    show("beside 20 clients that are owed 100 000", &took);
    println!("meanwhile these were sent {:.0} MB a second", rate / 1e6);
    clients.block_on(async {
        for replay in replays {
            replay.await.expect("a reader");
        }
    });
    let served = Arc::into_inner(served).expect("nobody else has it");
    servers.block_on(served.stop());
}
