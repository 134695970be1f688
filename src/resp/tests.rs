//! Tests timeouts of connections, in paused time.

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

use super::RespServer;
use crate::{
    config::Config,
    hub::{self, Hub},
    live::{Live, LiveSettings},
    metrics::Metrics,
};

/// Opens a connection that buffers at most `bytes` in each direction.
fn connect(bytes: usize) -> (DuplexStream, JoinHandle<()>, Arc<Hub>) {
    let metrics = Arc::new(Metrics::new());
    let hub = hub::for_test(metrics.clone());
    let config = Config::default();
    let live = Live::new(LiveSettings::new(&config, None));
    let server = RespServer::new(&config, live, hub.clone(), metrics, Arc::default(), Vec::new());
    let (peer, ours) = duplex(bytes);
    let served = tokio::spawn(server.serve(ours, IpAddr::V4(Ipv4Addr::LOCALHOST)));
    (peer, served, hub)
}

#[tokio::test(start_paused = true)]
async fn partial_command_times_out_after_30_s() {
    let (mut peer, served, _hub) = connect(1 << 16);
    tokio::time::sleep(Duration::from_secs(3600)).await;
    let began = Instant::now();
    peer.write_all(b"*1\r\n$4\r\nPING\r\n*1\r\n$4\r\nPI").await.unwrap();
    // Another byte does not extend the time.
    tokio::time::sleep(Duration::from_secs(20)).await;
    peer.write_all(b"N").await.unwrap();
    let mut replies = String::new();
    peer.read_to_string(&mut replies).await.unwrap();
    assert_eq!(replies, "+PONG\r\n-ERR Protocol error: the rest of a command took too long\r\n");
    assert_eq!(began.elapsed().as_secs(), 30, "idle time between commands does not count");
    served.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn write_without_progress_closes_connection_after_write_timeout() {
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
async fn connection_ends_at_shutdown_after_its_commands_are_answered() {
    let (mut peer, served, hub) = connect(1 << 16);
    peer.write_all(b"*1\r\n$4\r\nPING\r\n").await.unwrap();
    let mut reply = [0; 7];
    peer.read_exact(&mut reply).await.unwrap();
    hub.mark_drained();
    served.await.unwrap();
    assert_eq!((&reply, peer.read(&mut [0; 1]).await.unwrap()), (b"+PONG\r\n", 0));
}
