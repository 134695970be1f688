//! Dispatches over one stream, a line each, and their answers, a line each.

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use super::server::KEY;

/// Longer than any answer may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// A request whose body goes on for as long as one likes, and its answer.
#[derive(Debug)]
pub struct Lines {
    stream: BufReader<TcpStream>,
    /// The head of the answer was read.
    begun: bool,
    /// What has come of the answer and was not handed out.
    body: Vec<u8>,
}

impl Lines {
    /// Begins a stream.
    pub fn open(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut lines = Self { stream: BufReader::new(stream), begun: false, body: Vec::new() };
        let head = format!(
            "POST /v1/dispatch HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {KEY}\r\ncontent-type: \
             application/x-ndjson\r\ntransfer-encoding: chunked\r\n\r\n"
        );
        lines.stream.get_mut().write_all(head.as_bytes())?;
        Ok(lines)
    }

    /// Sends lines, each with its end, in one piece.
    pub fn send(&mut self, lines: &str) -> io::Result<()> {
        self.stream.get_mut().write_all(format!("{:x}\r\n{lines}\r\n", lines.len()).as_bytes())
    }

    /// Sends nothing more.
    pub fn end(&mut self) -> io::Result<()> {
        self.stream.get_mut().write_all(b"0\r\n\r\n")
    }

    /// The next line of the answer; `None` where it has come to its end in order.
    pub fn answer(&mut self) -> io::Result<Option<String>> {
        if !self.begun {
            self.head()?;
            self.begun = true;
        }
        loop {
            if let Some(end) = self.body.iter().position(|byte| *byte == b'\n') {
                let line = self.body.drain(..=end).collect();
                return String::from_utf8(line).map(Some).map_err(|_| io::ErrorKind::InvalidData.into());
            }
            let length = usize::from_str_radix(&self.line()?, 16).map_err(|_| io::ErrorKind::InvalidData)?;
            let from = self.body.len();
            self.body.resize(from + length, 0);
            self.stream.read_exact(&mut self.body[from..])?;
            self.line()?;
            if length == 0 {
                let whole = self.body.is_empty();
                return if whole { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
            }
        }
    }

    fn head(&mut self) -> io::Result<()> {
        let status = self.line()?;
        if status.split(' ').nth(1) != Some("200") {
            return Err(io::Error::other(status));
        }
        while !self.line()?.is_empty() {}
        Ok(())
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        line.truncate(line.trim_end().len());
        Ok(line)
    }
}
