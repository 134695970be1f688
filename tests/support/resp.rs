//! Blocking client of the Redis protocol (RESP).

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

/// Longest time until a reply arrives.
const REPLY_TIMEOUT: Duration = Duration::from_secs(120);

/// Encodes a command.
pub fn encode_command(words: &[&str]) -> Vec<u8> {
    let words = words.iter().map(|word| format!("${}\r\n{word}\r\n", word.len()));
    format!("*{}\r\n{}", words.len(), words.collect::<String>()).into_bytes()
}

/// A connection to the port of the Redis protocol.
pub struct RespClient(BufReader<TcpStream>);

impl RespClient {
    pub fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).expect("a connection");
        stream.set_read_timeout(Some(REPLY_TIMEOUT)).expect("a read timeout");
        Self(BufReader::new(stream))
    }

    /// Sends a command, and returns the first line of the reply.
    pub fn call(&mut self, words: &[&str]) -> String {
        self.0.get_mut().write_all(&encode_command(words)).expect("the command is sent");
        let mut line = String::new();
        self.0.read_line(&mut line).expect("a reply");
        line.trim_end().to_owned()
    }
}
