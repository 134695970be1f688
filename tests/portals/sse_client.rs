//! `GET /v1/events` as bytes on a socket.

use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpSocket, TcpStream},
    time::timeout,
};

use crate::in_process::{KEY, TIMEOUT, TestServer};

/// An event.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    pub id: Option<String>,
    pub name: Option<String>,
    pub data: Value,
}

/// A stream of them.
pub struct Events {
    socket: BufReader<TcpStream>,
    pub status: u16,
    pub head: String,
    body: Vec<u8>,
    /// The id that a client would resume with.
    pub last: String,
}

impl Events {
    /// Asks for events; `query` is what stands behind the path.
    pub async fn open(served: &TestServer, query: &str, last: Option<&str>) -> Self {
        let socket = TcpStream::connect(served.address).await.unwrap();
        Self::open_on(socket, query, last).await
    }

    /// As [`Events::begun`], over a socket for which the system holds little that is not read.
    pub async fn begun_with_small_buffer(served: &TestServer) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let socket = socket.connect(served.address).await.unwrap();
        Self::open_on(socket, "", None).await.beginning().await
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

    /// One that was answered with a stream, which has begun.
    pub async fn begun(served: &TestServer, query: &str, last: Option<&str>) -> Self {
        Self::open(served, query, last).await.beginning().await
    }

    async fn beginning(mut self) -> Self {
        let events = &mut self;
        assert_eq!(events.status, 200, "{}", events.head);
        let begin = events.block().await.expect("a beginning");
        assert!(begin.starts_with("retry: "), "{begin}");
        self
    }

    async fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        let read = timeout(TIMEOUT, self.socket.read_line(&mut line)).await.expect("in time");
        // A server that goes may take the connection with it.
        (read.unwrap_or(0) > 0).then(|| line.trim_end().to_owned())
    }

    /// What comes up to an empty line; `None` where the stream has ended.
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
            timeout(TIMEOUT, self.socket.read_exact(&mut self.body[from..])).await.expect("in time").unwrap();
            self.body.truncate(from + length);
            if length == 0 {
                return None;
            }
        }
    }

    /// The next event; `None` where the stream has ended.
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

    /// The data of the next event.
    pub async fn data(&mut self) -> Value {
        self.next().await.expect("an event").data
    }
}
