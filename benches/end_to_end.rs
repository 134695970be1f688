//! From a backend's request to the application behind a socket, over a real server and real connections in this
//! process: a dispatch, a fan-out, a drain, and a stream of dispatches.
#![allow(missing_docs)]

mod support;

use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput};
use futures_util::future::join_all;
use mesa::message::Recipients;
use support::{Served, message, next, user};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// What the binary has.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const CLIENTS: usize = 200;
const BACKLOG: usize = 1_000;
/// Requests under way while the backlog is made.
const AT_ONCE: usize = 50;
const STREAMED: usize = 20_000;
const USERS: usize = 1_000;
/// What a backend hands to its socket at once.
const CHUNK_BYTES: usize = 64 << 10;

/// One message: HTTP, log, disk, socket, and the answer.
fn dispatching(c: &mut Criterion) {
    let runtime = support::runtime();
    let served = runtime.block_on(Served::start());
    let mut client = runtime.block_on(served.client(&user(1)));
    let (dispatcher, message, recipients) = (served.dispatcher(), message(), Recipients::Users(vec![user(1)]));
    let mut group = c.benchmark_group("end_to_end");
    group.throughput(Throughput::Elements(1));
    group.bench_function("dispatch_over_http_to_a_socket", |b| {
        b.iter_custom(|rounds| {
            runtime.block_on(async {
                let start = Instant::now();
                for _ in 0..rounds {
                    dispatcher.dispatch(&message, &recipients, &[]).await.expect("it is taken");
                    next(&mut client).await;
                }
                start.elapsed()
            })
        });
    });
    group.finish();
    runtime.block_on(served.stop());
}

/// One message for everyone, until the last has it.
fn fanning_out(c: &mut Criterion) {
    let runtime = support::runtime();
    let (served, mut clients) = runtime.block_on(async {
        let served = Served::start().await;
        let mut clients = Vec::new();
        for n in 0..CLIENTS {
            clients.push(served.client(&user(n)).await);
        }
        (served, clients)
    });
    let (dispatcher, message) = (served.dispatcher(), message());
    let mut group = c.benchmark_group("end_to_end");
    group.throughput(Throughput::Elements(CLIENTS as u64));
    group.bench_function("fan_out_to_200_sockets", |b| {
        b.iter_custom(|rounds| {
            runtime.block_on(async {
                let start = Instant::now();
                for _ in 0..rounds {
                    dispatcher.dispatch(&message, &Recipients::Everyone, &[]).await.expect("it is taken");
                    join_all(clients.iter_mut().map(next)).await;
                }
                start.elapsed()
            })
        });
    });
    group.finish();
    runtime.block_on(served.stop());
}

/// A user comes back to a thousand messages: from the connection to the last of them.
fn draining(c: &mut Criterion) {
    let runtime = support::runtime();
    let served = runtime.block_on(Served::start());
    let (dispatcher, message) = (served.dispatcher(), message());
    let mut group = c.benchmark_group("end_to_end");
    group.throughput(Throughput::Elements(BACKLOG as u64));
    group.sample_size(10);
    let mut n = 1_000;
    group.bench_function("drain_1000_messages_of_one_user", |b| {
        b.iter_custom(|rounds| {
            runtime.block_on(async {
                let mut took = Duration::ZERO;
                for _ in 0..rounds {
                    n += 1;
                    let id = user(n);
                    let recipients = Recipients::Users(vec![id.clone()]);
                    for _ in 0..BACKLOG / AT_ONCE {
                        let send = |_| dispatcher.dispatch(&message, &recipients, &[]);
                        for sent in join_all((0..AT_ONCE).map(send)).await {
                            sent.expect("it is taken");
                        }
                    }
                    let start = Instant::now();
                    let mut client = served.client(&id).await;
                    for _ in 0..BACKLOG {
                        next(&mut client).await;
                    }
                    took += start.elapsed();
                }
                took
            })
        });
    });
    group.finish();
    runtime.block_on(served.stop());
}

/// Dispatches of one stream, to a thousand users in turn: from the first byte sent to the last result read.
fn streaming(c: &mut Criterion) {
    let runtime = support::runtime();
    let served = runtime.block_on(Served::start());
    let message = serde_json::to_string(&message()).expect("JSON");
    let line = |n| format!("{{\"message\":{message},\"recipients\":[\"{}\"]}}\n", user(n % USERS)).into_bytes();
    let lines: Vec<u8> = (0..STREAMED).flat_map(line).collect();
    let chunks: Vec<u8> = lines.chunks(CHUNK_BYTES).flat_map(chunk).collect();
    let mut socket = runtime.block_on(TcpStream::connect(served.address)).expect("a connection");
    socket.set_nodelay(true).expect("a socket");
    let head = format!(
        "POST /v1/dispatch HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\n\
         Content-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n",
        support::KEY
    );
    runtime.block_on(socket.write_all(head.as_bytes())).expect("it is taken");
    let (mut answers, mut body) = socket.into_split();
    let mut group = c.benchmark_group("end_to_end");
    group.throughput(Throughput::Elements(STREAMED as u64));
    group.sample_size(10);
    group.bench_function("ndjson_stream_of_20000_dispatches", |b| {
        b.iter_custom(|rounds| {
            let start = Instant::now();
            runtime.block_on(async {
                let send = async {
                    for _ in 0..rounds {
                        body.write_all(&chunks).await.expect("it is taken");
                    }
                };
                let read = async {
                    let (mut buffer, mut left) = (vec![0; 64 << 10], STREAMED * rounds as usize);
                    while left > 0 {
                        let read = answers.read(&mut buffer).await.expect("answers");
                        assert!(read > 0, "the stream ended before {left} answers");
                        // One in each answer, and none between them.
                        left -= buffer[..read].split(|byte| *byte == b'}').count() - 1;
                    }
                };
                tokio::join!(send, read);
            });
            start.elapsed()
        });
    });
    group.finish();
    drop((answers, body));
    runtime.block_on(served.stop());
}

/// As HTTP sends a part of a body whose length nobody knows.
fn chunk(part: &[u8]) -> Vec<u8> {
    [format!("{:x}\r\n", part.len()).as_bytes(), part, b"\r\n"].concat()
}

fn main() {
    let mut criterion = support::criterion();
    dispatching(&mut criterion);
    fanning_out(&mut criterion);
    draining(&mut criterion);
    streaming(&mut criterion);
    criterion.final_summary();
    support::table(&["end_to_end"]);
}
