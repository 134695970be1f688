//! Time, on a clock of the tests' own.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex},
    task::JoinHandle,
    time::Instant,
};

use super::Wire;
use crate::{
    config::Config,
    hub::{self, Hub},
    metrics::Metrics,
};

/// A connection, which the system holds at most `bytes` of in each direction.
fn connect(bytes: usize) -> (DuplexStream, JoinHandle<()>, Arc<Hub>) {
    let metrics = Arc::new(Metrics::new());
    let hub = hub::for_test(metrics.clone());
    let wire = Wire::new(&Config::default(), hub.clone(), metrics, Arc::default(), Vec::new());
    let (peer, ours) = duplex(bytes);
    let served = tokio::spawn(wire.serve(ours, IpAddr::V4(Ipv4Addr::LOCALHOST)));
    (peer, served, hub)
}

#[tokio::test(start_paused = true)]
async fn half_a_command_is_waited_for_so_long_and_no_longer() {
    let (mut peer, served, _hub) = connect(1 << 16);
    tokio::time::sleep(Duration::from_secs(3600)).await;
    let began = Instant::now();
    peer.write_all(b"*1\r\n$4\r\nPING\r\n*1\r\n$4\r\nPI").await.unwrap();
    // Now and then a byte more does not make it longer.
    tokio::time::sleep(Duration::from_secs(20)).await;
    peer.write_all(b"N").await.unwrap();
    let mut answers = String::new();
    peer.read_to_string(&mut answers).await.unwrap();
    assert_eq!(answers, "+PONG\r\n-ERR Protocol error: the rest of a command took too long\r\n");
    assert_eq!(began.elapsed().as_secs(), 30, "an hour between commands is no matter");
    served.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn who_takes_no_answers_is_waited_for_so_long_and_no_longer() {
    let (mut peer, served, _hub) = connect(64);
    let began = Instant::now();
    peer.write_all(b"*2\r\n$4\r\nECHO\r\n$40\r\n").await.unwrap();
    peer.write_all(&[b'x'; 40]).await.unwrap();
    peer.write_all(b"\r\n*2\r\n$4\r\nECHO\r\n$40\r\n").await.unwrap();
    peer.write_all(&[b'x'; 40]).await.unwrap();
    peer.write_all(b"\r\n").await.unwrap();
    served.await.unwrap();
    assert_eq!(began.elapsed(), Config::default().limits.write_timeout);
}

#[tokio::test(start_paused = true)]
async fn a_connection_ends_when_the_server_stops_and_what_was_said_is_answered() {
    let (mut peer, served, hub) = connect(1 << 16);
    peer.write_all(b"*1\r\n$4\r\nPING\r\n").await.unwrap();
    let mut answer = [0; 7];
    peer.read_exact(&mut answer).await.unwrap();
    hub.mark_drained();
    served.await.unwrap();
    assert_eq!((&answer, peer.read(&mut [0; 1]).await.unwrap()), (b"+PONG\r\n", 0));
}
