//! Measures the path from a backend's request to the application behind a WebSocket.
//!
//! Server and clients run in this process over TCP: a dispatch, a fan-out, a backlog, and a stream of dispatches.
#![allow(missing_docs)]

mod support;

use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput};
use futures_util::future::join_all;
use mesa::message::Recipients;
use support::{TestServer, message, next, user};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// Allocator of the binary.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const CLIENTS: usize = 200;
const BACKLOG: usize = 1_000;
/// Requests in flight while the backlog is created.
const IN_FLIGHT: usize = 50;
const STREAMED: usize = 20_000;
const USERS: usize = 1_000;
/// Bytes per HTTP chunk of the stream.
const CHUNK_BYTES: usize = 64 << 10;

/// Measures one message: HTTP request, commit, delivery to a client, and response.
fn bench_dispatch(c: &mut Criterion) {
    let runtime = support::runtime();
    let server = runtime.block_on(TestServer::start());
    let mut client = runtime.block_on(server.client(&user(1)));
    let (dispatcher, message, recipients) = (server.dispatcher(), message(), Recipients::Users(vec![user(1)]));
    let mut group = c.benchmark_group("end_to_end");
    group.throughput(Throughput::Elements(1));
    group.bench_function("dispatch_over_http_to_a_socket", |b| {
        b.iter_custom(|rounds| {
            runtime.block_on(async {
                let start = Instant::now();
                for _ in 0..rounds {
                    dispatcher.dispatch(&message, &recipients, &[]).await.expect("an accepted dispatch");
                    next(&mut client).await;
                }
                start.elapsed()
            })
        });
    });
    group.finish();
    runtime.block_on(server.stop());
}

/// Measures a broadcast until the last client has it.
fn bench_fan_out(c: &mut Criterion) {
    let runtime = support::runtime();
    let (server, mut clients) = runtime.block_on(async {
        let server = TestServer::start().await;
        let mut clients = Vec::new();
        for n in 0..CLIENTS {
            clients.push(server.client(&user(n)).await);
        }
        (server, clients)
    });
    let (dispatcher, message) = (server.dispatcher(), message());
    let mut group = c.benchmark_group("end_to_end");
    group.throughput(Throughput::Elements(CLIENTS as u64));
    group.bench_function("fan_out_to_200_sockets", |b| {
        b.iter_custom(|rounds| {
            runtime.block_on(async {
                let start = Instant::now();
                for _ in 0..rounds {
                    dispatcher.dispatch(&message, &Recipients::Everyone, &[]).await.expect("an accepted dispatch");
                    join_all(clients.iter_mut().map(next)).await;
                }
                start.elapsed()
            })
        });
    });
    group.finish();
    runtime.block_on(server.stop());
}

/// Measures a client that reconnects to a backlog of 1,000 messages, from connecting to the last message.
fn bench_backlog(c: &mut Criterion) {
    let runtime = support::runtime();
    let server = runtime.block_on(TestServer::start());
    let (dispatcher, message) = (server.dispatcher(), message());
    let mut group = c.benchmark_group("end_to_end");
    group.throughput(Throughput::Elements(BACKLOG as u64));
    group.sample_size(10);
    let mut n = 1_000;
    group.bench_function("drain_1000_messages_of_one_user", |b| {
        b.iter_custom(|rounds| {
            runtime.block_on(async {
                let mut elapsed = Duration::ZERO;
                for _ in 0..rounds {
                    n += 1;
                    let id = user(n);
                    let recipients = Recipients::Users(vec![id.clone()]);
                    for _ in 0..BACKLOG / IN_FLIGHT {
                        let send = |_| dispatcher.dispatch(&message, &recipients, &[]);
                        for sent in join_all((0..IN_FLIGHT).map(send)).await {
                            sent.expect("an accepted dispatch");
                        }
                    }
                    let start = Instant::now();
                    let mut client = server.client(&id).await;
                    for _ in 0..BACKLOG {
                        next(&mut client).await;
                    }
                    elapsed += start.elapsed();
                }
                elapsed
            })
        });
    });
    group.finish();
    runtime.block_on(server.stop());
}

/// Measures one NDJSON stream of dispatches to 1,000 users in turn, from the first byte sent to the last result read.
fn bench_ndjson_stream(c: &mut Criterion) {
    let runtime = support::runtime();
    let server = runtime.block_on(TestServer::start());
    let message = serde_json::to_string(&message()).expect("JSON");
    let line = |n| format!("{{\"message\":{message},\"recipients\":[\"{}\"]}}\n", user(n % USERS)).into_bytes();
    let lines: Vec<u8> = (0..STREAMED).flat_map(line).collect();
    let chunks: Vec<u8> = lines.chunks(CHUNK_BYTES).flat_map(chunk).collect();
    let mut socket = runtime.block_on(TcpStream::connect(server.address)).expect("a connection");
    socket.set_nodelay(true).expect("a socket");
    let head = format!(
        "POST /v1/dispatch HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\n\
         Content-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n",
        support::KEY
    );
    runtime.block_on(socket.write_all(head.as_bytes())).expect("a successful write");
    let (mut results, mut body) = socket.into_split();
    let mut group = c.benchmark_group("end_to_end");
    group.throughput(Throughput::Elements(STREAMED as u64));
    group.sample_size(10);
    group.bench_function("ndjson_stream_of_20000_dispatches", |b| {
        b.iter_custom(|rounds| {
            let start = Instant::now();
            runtime.block_on(async {
                let send = async {
                    for _ in 0..rounds {
                        body.write_all(&chunks).await.expect("a successful write");
                    }
                };
                let read = async {
                    let (mut buffer, mut left) = (vec![0; 64 << 10], STREAMED * rounds as usize);
                    while left > 0 {
                        let read = results.read(&mut buffer).await.expect("bytes");
                        assert!(read > 0, "the stream ended {left} results early");
                        // Each result contains one closing brace.
                        left -= buffer[..read].split(|byte| *byte == b'}').count() - 1;
                    }
                };
                tokio::join!(send, read);
            });
            start.elapsed()
        });
    });
    group.finish();
    drop((results, body));
    runtime.block_on(server.stop());
}

/// Encodes a part of a body as an HTTP chunk.
fn chunk(part: &[u8]) -> Vec<u8> {
    [format!("{:x}\r\n", part.len()).as_bytes(), part, b"\r\n"].concat()
}

fn main() {
    let mut criterion = support::criterion();
    bench_dispatch(&mut criterion);
    bench_fan_out(&mut criterion);
    bench_backlog(&mut criterion);
    bench_ndjson_stream(&mut criterion);
    criterion.final_summary();
    support::table(&["end_to_end"]);
}
