//! Tests HTTP as bytes on sockets, against the built binary.
//!
//! - `admin`: the admin page
//! - `client_script`: the JavaScript client
//! - `connection_limits`: more connections than the process may open files
//! - `cors`: pages that may call the API
//! - `timeouts`: silent, idle and slow connections
//! - `request_heads`: ambiguous and malformed heads
//! - `parameters`: query parameters and content codings
//! - `early_responses`: responses sent before the request was read
//! - `origins`: pages that may use a server that accepts any token

#[path = "../support/mod.rs"]
#[allow(dead_code, reason = "each suite uses a part of it")]
mod support;

mod admin;
mod client_script;
mod connection_limits;
mod cors;
mod early_responses;
mod origins;
mod parameters;
mod request_heads;
mod timeouts;

use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

/// Longest time that a test waits for one step, sufficient on a loaded machine.
const WAIT_TIMEOUT: Duration = Duration::from_secs(60);

/// Opens a connection with timeouts.
fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("a connection");
    stream.set_read_timeout(Some(WAIT_TIMEOUT)).expect("a timeout");
    stream.set_write_timeout(Some(WAIT_TIMEOUT)).expect("a timeout");
    stream
}

/// Sends all of `request` on a new connection, then reads the head of the response.
fn exchange(address: SocketAddr, request: &[u8]) -> io::Result<String> {
    let mut stream = connect(address);
    stream.write_all(request)?;
    head(&mut stream)
}

/// Reads the head of a response.
fn head(stream: &mut TcpStream) -> io::Result<String> {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    Ok(String::from_utf8(head).expect("a head is text"))
}

/// Reads a response and returns its head.
fn response(stream: &mut TcpStream) -> String {
    head_and_body(stream).0
}

/// Reads a response and returns its head and body.
fn head_and_body(stream: &mut TcpStream) -> (String, Vec<u8>) {
    let head = head(stream).expect("a response");
    let length = head.split("content-length: ").nth(1).and_then(|rest| rest.split("\r\n").next());
    let mut body = vec![0; length.expect("a length").parse().expect("a number")];
    stream.read_exact(&mut body).expect("a body");
    (head, body)
}

/// Returns the status in a head.
fn status(head: &str) -> u16 {
    head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("no status: {head}"))
}

/// Waits until the server has closed the connection.
fn wait_until_closed(stream: &mut TcpStream) {
    let (began, mut rest) = (Instant::now(), [0; 1024]);
    loop {
        match stream.read(&mut rest) {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return,
            Err(error) => panic!("the connection is still open after {:?}: {error}", began.elapsed()),
        }
    }
}
