//! Clients of NATS: core for online users, a durable consumer of the stream for each offline user.

use std::{io, net::SocketAddr, sync::atomic::Ordering::Relaxed};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::State;
use crate::{
    contestant::To,
    nats::{CONNECT, STREAM},
};

/// Bytes that a client reads at once.
const READ_BYTES: usize = 4096;

/// Subscription for the answer of the server when a consumer is created. Messages have other subscriptions.
const RESULT: &str = "9";

/// Something that the server sends.
#[derive(Debug, PartialEq, Eq)]
enum Event<'a> {
    Message { subscription: &'a str, reply: Option<&'a str>, body: &'a [u8] },
    Ping,
    Pong,
    Other,
}

/// Receives messages, and acknowledges each that has an address for it.
pub async fn serve(server: SocketAddr, user: To, state: &State) -> io::Result<()> {
    let mut permit = state.connecting.acquire().await.ok();
    let mut stream = super::open(server).await?;
    let begin = format!("{CONNECT}{}PING\r\n", subscriptions(user));
    stream.write_all(begin.as_bytes()).await?;
    let (mut buffer, mut answers) = (Vec::with_capacity(READ_BYTES), Vec::new());
    loop {
        if stream.read_buf(&mut buffer).await? == 0 {
            return Err(io::Error::other("the server closed the connection"));
        }
        let mut unread = &buffer[..];
        while let Some((event, rest)) = event(unread)? {
            match event {
                Event::Message { subscription: RESULT, body, .. } => {
                    if body.windows(7).any(|window| window == b"\"error\"") {
                        return Err(io::Error::other(String::from_utf8_lossy(body)));
                    }
                }
                Event::Message { reply, body, .. } => {
                    if let Some(reply) = reply {
                        answers.extend(format!("PUB {reply} 4\r\n+ACK\r\n").bytes());
                    }
                    state.receive(body);
                }
                Event::Ping => answers.extend(b"PONG\r\n"),
                Event::Pong => {
                    state.ready.fetch_add(1, Relaxed);
                    permit.take();
                }
                Event::Other => {}
            }
            unread = rest;
        }
        let used = buffer.len() - unread.len();
        buffer.drain(..used);
        stream.write_all(&answers).await?;
        answers.clear();
    }
}

/// Returns the commands that subscribe a client, and create the consumer of an offline user.
fn subscriptions(user: To) -> String {
    let name = user.name();
    if !matches!(user, To::Offline(_)) {
        return format!("SUB {name} 1\r\nSUB all 2\r\n");
    }
    let config = format!(
        r#"{{"stream_name":"{STREAM}","config":{{"durable_name":"{name}","deliver_subject":"deliver.{name}","filter_subject":"{STREAM}.{name}","ack_policy":"explicit"}}}}"#
    );
    format!(
        "SUB deliver.{name} 1\r\nSUB result.{name} {RESULT}\r\n\
         PUB $JS.API.CONSUMER.DURABLE.CREATE.{STREAM}.{name} result.{name} {}\r\n{config}\r\n",
        config.len()
    )
}

/// Parses one event, and returns it with the rest; `None` if it is not complete.
fn event(bytes: &[u8]) -> io::Result<Option<(Event<'_>, &[u8])>> {
    let Some(end) = bytes.windows(2).position(|window| window == b"\r\n") else { return Ok(None) };
    let (line, rest) = (&bytes[..end], &bytes[end + 2..]);
    let line = str::from_utf8(line).map_err(io::Error::other)?;
    let event = match line.split(' ').collect::<Vec<_>>()[..] {
        ["MSG", _, subscription, ref reply @ .., length] => {
            let length: usize = length.parse().map_err(io::Error::other)?;
            let Some((body, rest)) = rest.split_at_checked(length + 2) else { return Ok(None) };
            let reply = reply.first().copied();
            return Ok(Some((Event::Message { subscription, reply, body: &body[..length] }, rest)));
        }
        ["PING"] => Event::Ping,
        ["PONG"] => Event::Pong,
        ["-ERR", ..] => return Err(io::Error::other(line)),
        _ => Event::Other,
    };
    Ok(Some((event, rest)))
}

/// Checks the parser.
pub fn check() {
    let bytes = b"INFO {}\r\nMSG a 1 3\r\nx\r\n\r\nMSG a 9 to 1\r\ny\r\nPING\r\nMSG a 1 3\r\nx";
    let mut rest = &bytes[..];
    let mut next = || {
        let (event, more) = event(rest).expect("no error")?;
        rest = more;
        Some(event)
    };
    assert_eq!(next(), Some(Event::Other));
    assert_eq!(next(), Some(Event::Message { subscription: "1", reply: None, body: b"x\r\n" }));
    assert_eq!(next(), Some(Event::Message { subscription: "9", reply: Some("to"), body: b"y" }));
    assert_eq!(next(), Some(Event::Ping));
    assert_eq!(next(), None);
    assert!(event(b"-ERR 'no'\r\n").is_err());
}
