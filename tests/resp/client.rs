//! A connection that speaks the Redis protocol, byte by byte.

use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpSocket, TcpStream},
    time::timeout,
};

use crate::in_process::{TIMEOUT, TestServer};

pub struct Redis(pub BufReader<TcpStream>);

/// A command as it goes over the wire.
pub fn command(words: &[&str]) -> Vec<u8> {
    let words = words.iter().map(|word| format!("${}\r\n{word}\r\n", word.len()));
    format!("*{}\r\n{}", words.len(), words.collect::<String>()).into_bytes()
}

impl Redis {
    pub async fn connect(served: &TestServer) -> Self {
        let socket = TcpStream::connect(served.redis_protocol.unwrap()).await.unwrap();
        socket.set_nodelay(true).unwrap();
        Self(BufReader::new(socket))
    }

    /// A connection for which the system holds little that is not read.
    pub async fn narrow(served: &TestServer) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(64 << 10).unwrap();
        Self(BufReader::new(socket.connect(served.redis_protocol.unwrap()).await.unwrap()))
    }

    pub async fn send(&mut self, bytes: &[u8]) {
        timeout(TIMEOUT, self.0.get_mut().write_all(bytes)).await.expect("in time").unwrap();
    }

    /// Says a command, and gives its answer in one line of text.
    pub async fn ask(&mut self, words: &[&str]) -> String {
        self.send(&command(words)).await;
        self.answer().await.expect("an answer")
    }

    /// The next answer; `None` where the connection has ended. A list has its parts between brackets.
    pub async fn answer(&mut self) -> Option<String> {
        let line = self.line().await?;
        let (kind, rest) = line.split_at(1);
        match kind {
            "+" | "-" | ":" => Some(line),
            "$" if rest == "-1" => Some("nil".into()),
            "$" => {
                let mut text = vec![0; rest.parse::<usize>().unwrap() + 2];
                timeout(TIMEOUT, self.0.read_exact(&mut text)).await.expect("in time").ok()?;
                text.truncate(text.len() - 2);
                Some(String::from_utf8(text).unwrap())
            }
            "*" => {
                let mut parts = Vec::new();
                for _ in 0..rest.parse::<usize>().unwrap() {
                    parts.push(Box::pin(self.answer()).await?);
                }
                Some(format!("[{}]", parts.join(" ")))
            }
            _ => panic!("{line:?}"),
        }
    }

    async fn line(&mut self) -> Option<String> {
        let mut line = Vec::new();
        let read = timeout(TIMEOUT, self.0.read_until(b'\n', &mut line)).await.expect("in time");
        // A connection that is cut may be reset.
        if read.unwrap_or(0) == 0 {
            return None;
        }
        assert!(line.ends_with(b"\r\n"), "{line:?}");
        line.truncate(line.len() - 2);
        Some(String::from_utf8(line).unwrap())
    }
}
