//! HTTP as bytes on sockets, against the built binary: deadlines, refusals that must arrive, heads that are ambiguous, and
//! more connections than the server has files for.

#[path = "../support/mod.rs"]
#[allow(dead_code, reason = "each suite uses a part of it")]
mod support;

mod crowd;
mod deadlines;
mod heads;
mod local;
mod parameters;
mod refusals;

use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

/// Longer than anything here takes, on a loaded machine too.
const PATIENCE: Duration = Duration::from_secs(60);

/// Connects.
fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("a connection");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream.set_write_timeout(Some(PATIENCE)).expect("a timeout");
    stream
}

/// Sends all of `request` on a connection of its own, and then reads: the head of the response.
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

/// Reads a response, whose head it returns.
fn response(stream: &mut TcpStream) -> String {
    whole(stream).0
}

/// Reads a response: its head and its body.
fn whole(stream: &mut TcpStream) -> (String, Vec<u8>) {
    let head = head(stream).expect("a response");
    let length = head.split("content-length: ").nth(1).and_then(|rest| rest.split("\r\n").next());
    let mut body = vec![0; length.expect("a length").parse().expect("a number")];
    stream.read_exact(&mut body).expect("a body");
    (head, body)
}

/// The status of a head.
fn status(head: &str) -> u16 {
    head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("no status: {head}"))
}

/// Waits until the server has closed the connection; how long that took.
fn wait_until_closed(stream: &mut TcpStream) -> Duration {
    let (began, mut rest) = (Instant::now(), [0; 1024]);
    loop {
        match stream.read(&mut rest) {
            Ok(0) => return began.elapsed(),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return began.elapsed(),
            Err(error) => panic!("the connection is still open after {:?}: {error}", began.elapsed()),
        }
    }
}
