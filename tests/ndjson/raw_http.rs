//! NDJSON dispatch streams as bytes on a socket.

use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    time::timeout,
};

use crate::support::{
    http::chunk,
    in_process::{KEY, TestServer},
    wait::WAIT_TIMEOUT,
};

/// Opens a stream, with additional `headers`.
pub async fn open_stream(server: &TestServer, headers: &str) -> (RequestWriter, ResultReader) {
    let socket = TcpStream::connect(server.address).await.unwrap();
    socket.set_nodelay(true).unwrap();
    let (read, mut write) = socket.into_split();
    let head = format!(
        "POST /v1/dispatch HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\nContent-Type: \
         application/x-ndjson\r\nTransfer-Encoding: chunked\r\n{headers}\r\n"
    );
    write.write_all(head.as_bytes()).await.unwrap();
    (RequestWriter(write), ResultReader { read: BufReader::new(read), body: Vec::new(), ended: false })
}

/// Writes the request body of a stream.
pub struct RequestWriter(pub OwnedWriteHalf);

impl RequestWriter {
    /// Sends a part of the body as one HTTP chunk.
    pub async fn send(&mut self, piece: &str) {
        self.0.write_all(chunk(piece).as_bytes()).await.unwrap();
    }

    /// Ends the body.
    pub async fn end(&mut self) {
        self.0.write_all(b"0\r\n\r\n").await.unwrap();
    }
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
            timeout(WAIT_TIMEOUT, self.read.read_exact(&mut piece)).await.expect("in time").unwrap();
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
        timeout(WAIT_TIMEOUT, self.read.read_line(&mut line)).await.expect("in time").unwrap();
        assert!(line.ends_with('\n'), "the connection ended within a line: {line:?}");
        line.trim_end().to_owned()
    }
}
