//! Client of the HTTP API over one persistent connection.

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};

use super::server::KEY;

/// Longest time without progress. Then the call fails.
const IO_TIMEOUT: Duration = Duration::from_secs(120);

/// Encodes a request with the API key and a JSON body.
pub fn request(method: &str, path: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "{method} {path} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {KEY}\r\ncontent-type: \
         application/json\r\ncontent-length: {length}\r\n\r\n{body}"
    )
}

/// Encodes a part of a body as an HTTP chunk.
pub fn chunk(part: &str) -> String {
    format!("{:x}\r\n{part}\r\n", part.len())
}

#[derive(Deserialize)]
struct Page {
    messages: Vec<StoredEntry>,
}

#[derive(Deserialize)]
struct StoredEntry {
    s: u64,
    d: Value,
}

/// A connection to a server.
#[derive(Debug)]
pub struct Http(BufReader<TcpStream>);

impl Http {
    /// Connects to a server.
    pub fn connect(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, IO_TIMEOUT)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(IO_TIMEOUT))?;
        stream.set_write_timeout(Some(IO_TIMEOUT))?;
        Ok(Self(BufReader::new(stream)))
    }

    /// Dispatches `data` to `recipients`. After an error it is unknown whether the dispatch was accepted.
    pub fn dispatch(&mut self, data: &Value, recipients: &[String]) -> io::Result<()> {
        let body = json!({ "message": { "op": 0, "d": data, "t": "TEST" }, "recipients": recipients });
        let (status, response) = self.call("POST", "/v1/dispatch", &body.to_string())?;
        if status == 503 {
            return Err(io::Error::other("the server is shutting down"));
        }
        assert_eq!(status, 200, "{}", String::from_utf8_lossy(&response));
        let result: Value = serde_json::from_slice(&response)?;
        assert_eq!(result["rejected"], json!([]), "{result}");
        Ok(())
    }

    /// Dispatches `data` to `recipients` and returns the status of the response. Fails if there is no response.
    pub fn try_dispatch(&mut self, data: &Value, recipients: &[String]) -> io::Result<u16> {
        let body = json!({ "message": { "op": 0, "d": data, "t": "TEST" }, "recipients": recipients });
        let (status, response) = self.call("POST", "/v1/dispatch", &body.to_string())?;
        if status == 200 {
            let result: Value = serde_json::from_slice(&response)?;
            assert_eq!(result["rejected"], json!([]), "{result}");
        }
        Ok(status)
    }

    /// Requests a path and returns the status.
    pub fn status(&mut self, path: &str) -> io::Result<u16> {
        self.call("GET", path, "").map(|(status, _)| status)
    }

    /// Requests a path and decodes the JSON of a response with status 200.
    pub fn get<T: DeserializeOwned>(&mut self, path: &str) -> io::Result<T> {
        let (status, body) = self.call("GET", path, "")?;
        assert_eq!(status, 200, "GET {path}: {}", String::from_utf8_lossy(&body));
        serde_json::from_slice(&body).map_err(io::Error::from)
    }

    /// Reads a metric of the server, for example `mesa_sessions`.
    pub fn metric(&mut self, name: &str) -> u64 {
        let (_, text) = self.call("GET", "/metrics", "").expect("a response");
        let text = String::from_utf8(text).expect("UTF-8");
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
        value.unwrap_or_else(|| panic!("expected {name} in /metrics:\n{text}"))
    }

    /// Reads the pending entries of a user: sequence and data.
    pub fn pending_entries(&mut self, user: &str) -> Vec<(u64, Value)> {
        let (mut entries, mut after) = (Vec::new(), 0);
        loop {
            let path = format!("/v1/users/{user}/messages?after={after}&limit=1000");
            let page: Page = self.get(&path).expect("a page of entries");
            let Some(last) = page.messages.last() else { return entries };
            after = last.s;
            entries.extend(page.messages.into_iter().map(|entry| (entry.s, entry.d)));
        }
    }

    /// Sends a request and waits for the response: status and body.
    pub fn call(&mut self, method: &str, path: &str, body: &str) -> io::Result<(u16, Vec<u8>)> {
        self.send(&request(method, path, body))?;
        self.response()
    }

    /// Sends one or more pipelined requests. Each response is then read with [`Http::response`].
    pub fn send(&mut self, requests: &str) -> io::Result<()> {
        self.0.get_mut().write_all(requests.as_bytes())
    }

    /// Reads the next response: status and body.
    pub fn response(&mut self) -> io::Result<(u16, Vec<u8>)> {
        let status = self.line()?;
        let status = status.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or(io::ErrorKind::InvalidData)?;
        let (mut length, mut chunked) = (0, false);
        loop {
            let line = self.line()?.to_ascii_lowercase();
            match line.split_once(':') {
                None => break,
                Some(("content-length", value)) => {
                    length = value.trim().parse().map_err(|_| io::ErrorKind::InvalidData)?;
                }
                Some(("transfer-encoding", value)) => chunked = value.trim() == "chunked",
                Some(_) => {}
            }
        }
        if !chunked {
            return Ok((status, self.bytes(length)?));
        }
        let mut body = Vec::new();
        loop {
            let length = usize::from_str_radix(&self.line()?, 16).map_err(|_| io::ErrorKind::InvalidData)?;
            body.extend(self.bytes(length)?);
            self.line()?;
            if length == 0 {
                return Ok((status, body));
            }
        }
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        if self.0.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        line.truncate(line.trim_end().len());
        Ok(line)
    }

    fn bytes(&mut self, length: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        self.0.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}
