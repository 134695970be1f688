//! Client of an NDJSON dispatch stream: one dispatch per line, one result per line.

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use super::{http::chunk, server::KEY};

/// Longest time without progress. Then the call fails.
const IO_TIMEOUT: Duration = Duration::from_secs(120);

/// A streamed request and its response.
#[derive(Debug)]
pub struct NdjsonStream {
    stream: BufReader<TcpStream>,
    /// The head of the response was read.
    head_read: bool,
    /// Bytes of the response that were received and not yet returned.
    body: Vec<u8>,
}

impl NdjsonStream {
    /// Opens a stream.
    pub fn open(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, IO_TIMEOUT)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(IO_TIMEOUT))?;
        stream.set_write_timeout(Some(IO_TIMEOUT))?;
        let mut opened = Self { stream: BufReader::new(stream), head_read: false, body: Vec::new() };
        let head = format!(
            "POST /v1/dispatch HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {KEY}\r\ncontent-type: \
             application/x-ndjson\r\ntransfer-encoding: chunked\r\n\r\n"
        );
        opened.stream.get_mut().write_all(head.as_bytes())?;
        Ok(opened)
    }

    /// Sends lines, each with its newline, as one HTTP chunk.
    pub fn send(&mut self, lines: &str) -> io::Result<()> {
        self.stream.get_mut().write_all(chunk(lines).as_bytes())
    }

    /// Ends the request body.
    pub fn end(&mut self) -> io::Result<()> {
        self.stream.get_mut().write_all(b"0\r\n\r\n")
    }

    /// Reads the next line of the response; `None` after its regular end.
    pub fn result(&mut self) -> io::Result<Option<String>> {
        if !self.head_read {
            self.head()?;
            self.head_read = true;
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
                let complete = self.body.is_empty();
                return if complete { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
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
