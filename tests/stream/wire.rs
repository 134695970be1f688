//! A server in this process, and a stream of dispatches as bytes on a socket.

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

/// Longer than anything here takes, on a loaded machine too.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// A server with a store in a temporary directory.
pub struct Served {
    pub address: SocketAddr,
    config: Config,
    stop: Option<oneshot::Sender<()>>,
    running: JoinHandle<()>,
    store: TempDir,
}

impl Served {
    pub async fn start(change: impl FnOnce(&mut Config)) -> Self {
        let store = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.host = "127.0.0.1".into();
        config.sync.enabled = true;
        config.authentication.insecure = true;
        config.api.keys.push(KEY.into());
        config.store.path = store.path().join("store");
        change(&mut config);
        Self::over(config, store).await
    }

    /// Another one over the same store, once this one has stopped.
    pub async fn restart(self) -> Self {
        Self::over(self.config, self.store).await
    }

    async fn over(config: Config, store: TempDir) -> Self {
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

    /// Tells it to stop.
    pub fn begin_to_stop(&mut self) {
        drop(self.stop.take());
    }

    /// Waits until it has.
    pub async fn stopped(&mut self) {
        self.begin_to_stop();
        timeout(PATIENCE, &mut self.running).await.expect("the server stops").unwrap();
    }

    /// Opens a stream, with `headers` beside the usual.
    pub async fn open(&self, headers: &str) -> (Said, Answers) {
        let socket = TcpStream::connect(self.address).await.unwrap();
        socket.set_nodelay(true).unwrap();
        let (read, mut write) = socket.into_split();
        let head = format!(
            "POST /v1/dispatch HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\nContent-Type: \
             application/x-ndjson\r\nTransfer-Encoding: chunked\r\n{headers}\r\n"
        );
        write.write_all(head.as_bytes()).await.unwrap();
        (Said(write), Answers { read: BufReader::new(read), body: Vec::new(), ended: false })
    }
}

/// Where lines are said.
pub struct Said(pub OwnedWriteHalf);

impl Said {
    /// Says a piece of the body.
    pub async fn say(&mut self, piece: &str) {
        self.0.write_all(&chunk(piece)).await.unwrap();
    }

    /// Says that this was all.
    pub async fn end(&mut self) {
        self.0.write_all(b"0\r\n\r\n").await.unwrap();
    }
}

/// A piece of a body whose length nobody knows.
pub fn chunk(piece: &str) -> Vec<u8> {
    format!("{:x}\r\n{piece}\r\n", piece.len()).into_bytes()
}

/// Where answers come from.
pub struct Answers {
    read: BufReader<OwnedReadHalf>,
    body: Vec<u8>,
    ended: bool,
}

impl Answers {
    /// Reads a head; returns its first line.
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

    /// The next answer; `None` after the last of a stream that was ended properly.
    pub async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.body.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.body.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).unwrap());
            }
            if self.ended {
                assert!(self.body.is_empty(), "half an answer");
                return None;
            }
            let length = usize::from_str_radix(&self.line().await, 16).expect("a chunk");
            let mut piece = vec![0; length];
            timeout(PATIENCE, self.read.read_exact(&mut piece)).await.expect("in time").unwrap();
            assert!(self.line().await.is_empty());
            self.body.extend(piece);
            self.ended = length == 0;
        }
    }

    /// All answers to the end.
    pub async fn rest(&mut self) -> Vec<Value> {
        let mut answers = Vec::new();
        while let Some(answer) = self.next().await {
            answers.push(answer);
        }
        answers
    }

    async fn line(&mut self) -> String {
        let mut line = String::new();
        timeout(PATIENCE, self.read.read_line(&mut line)).await.expect("in time").unwrap();
        assert!(line.ends_with('\n'), "the connection ended in the middle: {line:?}");
        line.trim_end().to_owned()
    }
}
