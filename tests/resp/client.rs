//! Asynchronous client of the Redis protocol (RESP) that sends any bytes and reads one reply at a time.

use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpSocket, TcpStream},
    time::timeout,
};

use crate::support::{in_process::TestServer, resp::encode_command, wait::WAIT_TIMEOUT};

/// A connection to a server's RESP port.
pub struct RespClient(pub BufReader<TcpStream>);

impl RespClient {
    pub async fn connect(server: &TestServer) -> Self {
        let socket = TcpStream::connect(server.redis_protocol.unwrap()).await.unwrap();
        socket.set_nodelay(true).unwrap();
        Self(BufReader::new(socket))
    }

    /// Connects with a receive buffer of 64 KiB, so that few unread bytes fit into the socket.
    pub async fn connect_with_small_buffer(server: &TestServer) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(64 << 10).unwrap();
        Self(BufReader::new(socket.connect(server.redis_protocol.unwrap()).await.unwrap()))
    }

    pub async fn send(&mut self, bytes: &[u8]) {
        timeout(WAIT_TIMEOUT, self.0.get_mut().write_all(bytes)).await.expect("the server reads in time").unwrap();
    }

    /// Sends a command, and returns its reply as one line of text.
    pub async fn call(&mut self, words: &[&str]) -> String {
        self.send(&encode_command(words)).await;
        self.reply().await.expect("a reply")
    }

    /// Returns the next reply as one line of text, with an array in brackets. `None`: the connection has ended.
    pub async fn reply(&mut self) -> Option<String> {
        let line = self.line().await?;
        let (kind, rest) = line.split_at(1);
        match kind {
            "+" | "-" | ":" => Some(line),
            "$" if rest == "-1" => Some("nil".into()),
            "$" => {
                let mut text = vec![0; rest.parse::<usize>().unwrap() + 2];
                timeout(WAIT_TIMEOUT, self.0.read_exact(&mut text)).await.expect("the reply arrives in time").ok()?;
                text.truncate(text.len() - 2);
                Some(String::from_utf8(text).unwrap())
            }
            "*" => {
                let mut parts = Vec::new();
                for _ in 0..rest.parse::<usize>().unwrap() {
                    parts.push(Box::pin(self.reply()).await?);
                }
                Some(format!("[{}]", parts.join(" ")))
            }
            _ => panic!("not a RESP2 reply: {line:?}"),
        }
    }

    async fn line(&mut self) -> Option<String> {
        let mut line = Vec::new();
        let read = timeout(WAIT_TIMEOUT, self.0.read_until(b'\n', &mut line)).await.expect("the reply arrives in time");
        // The server may reset a connection that it closes.
        if read.unwrap_or(0) == 0 {
            return None;
        }
        assert!(line.ends_with(b"\r\n"), "{line:?}");
        line.truncate(line.len() - 2);
        Some(String::from_utf8(line).unwrap())
    }
}
