//! Server inside the test process, and NDJSON dispatch streams as bytes on a socket.

use std::{net::SocketAddr, time::Duration};

use mesa::{
    config::Config,
    dispatcher::Dispatcher,
    server::{Server, bind},
};
use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::oneshot,
    task::JoinHandle,
    time::timeout,
};

const KEY: &str = "0123456789abcdef";

/// Longest time that a test waits for one step, sufficient on a loaded machine.
pub const TIMEOUT: Duration = Duration::from_secs(120);

/// A server with a store in a temporary directory.
pub struct TestServer {
    pub address: SocketAddr,
    config: Config,
    stop: Option<oneshot::Sender<()>>,
    running: JoinHandle<()>,
    store: TempDir,
}

impl TestServer {
    pub async fn start(change: impl FnOnce(&mut Config)) -> Self {
        let store = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.host = "127.0.0.1".into();
        config.sync.enabled = true;
        config.authentication.insecure = true;
        config.api.keys.push(KEY.into());
        config.store.path = store.path().join("store");
        change(&mut config);
        Self::start_on(config, store).await
    }

    /// Starts another server on the same store, after this one has stopped.
    pub async fn restart(self) -> Self {
        Self::start_on(self.config, self.store).await
    }

    async fn start_on(config: Config, store: TempDir) -> Self {
        let listener = bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let server = Server::start(config.clone(), listener).await.unwrap();
        let address = server.local_addr();
        let (stop, stopped) = oneshot::channel();
        let running = tokio::spawn(async move {
            server.run(async { _ = stopped.await }).await.unwrap();
        });
        Self { address, config, stop: Some(stop), running, store }
    }

    pub fn dispatcher(&self) -> Dispatcher {
        Dispatcher::new(&format!("http://{}", self.address), KEY).unwrap()
    }

    /// Requests the server to stop.
    pub fn begin_stop(&mut self) {
        drop(self.stop.take());
    }

    /// Stops the server and waits until it has stopped.
    pub async fn stop(&mut self) {
        self.begin_stop();
        timeout(TIMEOUT, &mut self.running).await.expect("the server stops").unwrap();
    }

    /// Opens a stream, with additional `headers`.
    pub async fn open(&self, headers: &str) -> (RequestWriter, ResultReader) {
        let socket = TcpStream::connect(self.address).await.unwrap();
        socket.set_nodelay(true).unwrap();
        let (read, mut write) = socket.into_split();
        let head = format!(
            "POST /v1/dispatch HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\nContent-Type: \
             application/x-ndjson\r\nTransfer-Encoding: chunked\r\n{headers}\r\n"
        );
        write.write_all(head.as_bytes()).await.unwrap();
        (RequestWriter(write), ResultReader { read: BufReader::new(read), body: Vec::new(), ended: false })
    }
}

/// Writes the request body of a stream.
pub struct RequestWriter(pub OwnedWriteHalf);

impl RequestWriter {
    /// Sends a part of the body as one HTTP chunk.
    pub async fn send(&mut self, piece: &str) {
        self.0.write_all(&chunk(piece)).await.unwrap();
    }

    /// Ends the body.
    pub async fn end(&mut self) {
        self.0.write_all(b"0\r\n\r\n").await.unwrap();
    }
}

/// Encodes a part of a body as an HTTP chunk.
pub fn chunk(piece: &str) -> Vec<u8> {
    format!("{:x}\r\n{piece}\r\n", piece.len()).into_bytes()
}

/// Reads the response of a stream.
pub struct ResultReader {
    read: BufReader<OwnedReadHalf>,
    body: Vec<u8>,
    ended: bool,
}

impl ResultReader {
    /// Reads a response head and returns its first line.
    pub async fn head(&mut self) -> String {
        let mut first = None;
        loop {
            let line = self.line().await;
            if line.is_empty() {
                return first.expect("a head");
            }
            first.get_or_insert(line);
        }
    }

    /// Reads the next result; `None` after the regular end of the response.
    pub async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.body.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.body.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).unwrap());
            }
            if self.ended {
                assert!(self.body.is_empty(), "an incomplete result");
                return None;
            }
            let length = usize::from_str_radix(&self.line().await, 16).expect("a chunk");
            let mut piece = vec![0; length];
            timeout(TIMEOUT, self.read.read_exact(&mut piece)).await.expect("in time").unwrap();
            assert!(self.line().await.is_empty());
            self.body.extend(piece);
            self.ended = length == 0;
        }
    }

    /// Reads all remaining results.
    pub async fn rest(&mut self) -> Vec<Value> {
        let mut results = Vec::new();
        while let Some(result) = self.next().await {
            results.push(result);
        }
        results
    }

    async fn line(&mut self) -> String {
        let mut line = String::new();
        timeout(TIMEOUT, self.read.read_line(&mut line)).await.expect("in time").unwrap();
        assert!(line.ends_with('\n'), "the connection ended within a line: {line:?}");
        line.trim_end().to_owned()
    }
}
