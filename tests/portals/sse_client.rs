//! A client of `GET /v1/events` (server-sent events) that reads single bytes and events.

use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpSocket, TcpStream},
    time::timeout,
};

use crate::support::{
    in_process::{KEY, TestServer},
    wait::WAIT_TIMEOUT,
};

/// One server-sent event.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    pub id: Option<String>,
    pub name: Option<String>,
    pub data: Value,
}

/// A response to `GET /v1/events`.
pub struct EventStream {
    socket: BufReader<TcpStream>,
    pub status: u16,
    /// The header lines, in lower case.
    pub head: String,
    body: Vec<u8>,
    /// The last id received, with which a client would resume.
    pub last: String,
}

impl EventStream {
    /// Sends a request with a query string and a `Last-Event-ID`, and reads the head of the response.
    pub async fn open(server: &TestServer, query: &str, last: Option<&str>) -> Self {
        let socket = TcpStream::connect(server.address).await.unwrap();
        Self::open_on(socket, query, last).await
    }

    /// As [`EventStream::open_stream`], with a receive buffer of 4 KiB, so that few unread bytes fit into the socket.
    pub async fn open_stream_with_small_buffer(server: &TestServer, query: &str) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let socket = socket.connect(server.address).await.unwrap();
        Self::open_on(socket, query, None).await.check_beginning().await
    }

    async fn open_on(mut socket: TcpStream, query: &str, last: Option<&str>) -> Self {
        let last = last.map(|id| format!("Last-Event-ID: {id}\r\n")).unwrap_or_default();
        let request =
            format!("GET /v1/events{query} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\n{last}\r\n");
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut events = Self {
            socket: BufReader::new(socket),
            status: 0,
            head: String::new(),
            body: Vec::new(),
            last: String::new(),
        };
        events.status = events.line().await.unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        loop {
            let line = events.line().await.unwrap().to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            events.head += &(line + "\n");
        }
        events
    }

    /// Opens a stream, and reads its beginning. Panics if the response is an error.
    pub async fn open_stream(server: &TestServer, query: &str, last: Option<&str>) -> Self {
        Self::open(server, query, last).await.check_beginning().await
    }

    async fn check_beginning(mut self) -> Self {
        let events = &mut self;
        assert_eq!(events.status, 200, "{}", events.head);
        let begin = events.block().await.expect("a first block");
        assert!(begin.starts_with("retry: "), "{begin}");
        self
    }

    async fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        let read = timeout(WAIT_TIMEOUT, self.socket.read_line(&mut line)).await.expect("a line in time");
        // A server that stops may reset the connection.
        (read.unwrap_or(0) > 0).then(|| line.trim_end().to_owned())
    }

    /// Returns the lines up to an empty line. `None`: the stream has ended.
    async fn block(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.body.windows(2).position(|pair| pair == b"\n\n") {
                let block = String::from_utf8(self.body.drain(..end + 2).collect()).unwrap();
                if let Some(id) = block.lines().find_map(|line| line.strip_prefix("id: ")) {
                    id.clone_into(&mut self.last);
                }
                return Some(block);
            }
            let length = usize::from_str_radix(&self.line().await?, 16).unwrap();
            let from = self.body.len();
            self.body.resize(from + length + 2, 0);
            timeout(WAIT_TIMEOUT, self.socket.read_exact(&mut self.body[from..]))
                .await
                .expect("a chunk in time")
                .unwrap();
            self.body.truncate(from + length);
            if length == 0 {
                return None;
            }
        }
    }

    /// Returns the next event. `None`: the stream has ended.
    pub async fn next(&mut self) -> Option<Event> {
        loop {
            let block = self.block().await?;
            let field = |name: &str| block.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
            if let Some(data) = field("data: ") {
                let data = serde_json::from_str(&data).unwrap_or_else(|error| panic!("{block}: {error}"));
                return Some(Event { id: field("id: "), name: field("event: "), data });
            }
        }
    }

    /// Returns the data of the next event.
    pub async fn data(&mut self) -> Value {
        self.next().await.expect("an event").data
    }
}
