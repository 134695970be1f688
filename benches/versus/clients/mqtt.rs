//! Packets and clients of MQTT 3.1.1, as far as the benchmark needs them. All messages have quality of service 1.

use std::{io, net::SocketAddr, sync::atomic::Ordering::Relaxed};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::State;
use crate::contestant::To;

/// Types of packets, with their flags.
const CONNECT: u8 = 0x10;
const CONNACK: u8 = 0x20;
const PUBLISH: u8 = 0x32;
const PUBACK: u8 = 0x40;
const SUBSCRIBE: u8 = 0x82;
const SUBACK: u8 = 0x90;

/// Bits of a packet's type, without its flags.
const TYPE_MASK: u8 = 0xf0;

/// Bit of a byte of a length that another byte follows.
const CONTINUED: u8 = 0x80;

/// Bytes that a client reads at once.
const READ_BYTES: usize = 4096;

/// Receives messages, and acknowledges each.
pub async fn serve(server: SocketAddr, user: To, state: &State) -> io::Result<()> {
    let mut permit = state.connecting.acquire().await.ok();
    let mut stream = super::open(server).await?;
    let name = user.name();
    let has_session = matches!(user, To::Offline(_));
    stream.write_all(&connect(&name, !has_session)).await?;
    let (mut buffer, mut acks) = (Vec::with_capacity(READ_BYTES), Vec::new());
    loop {
        if stream.read_buf(&mut buffer).await? == 0 {
            return Err(io::Error::other("the server closed the connection"));
        }
        let mut unread = &buffer[..];
        while let Some((kind, body, rest)) = packet(unread) {
            match kind & TYPE_MASK {
                // The session of an offline user has its subscriptions.
                CONNACK if !has_session => acks.extend(subscribe(&[&name, "all"])),
                CONNACK | SUBACK => {
                    state.ready.fetch_add(1, Relaxed);
                    permit.take();
                }
                kind if kind == PUBLISH & TYPE_MASK => {
                    let (identifier, message) = published(body).ok_or_else(|| io::Error::other("not a message"))?;
                    acks.extend([PUBACK, 2, identifier[0], identifier[1]]);
                    state.receive(message);
                }
                _ => {}
            }
            unread = rest;
        }
        let used = buffer.len() - unread.len();
        buffer.drain(..used);
        stream.write_all(&acks).await?;
        acks.clear();
    }
}

/// Splits bytes into a packet, as its type and its body, and the rest.
fn packet(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (kind, mut rest) = bytes.split_first()?;
    let (mut length, mut shift) = (0, 0);
    loop {
        let (byte, more) = rest.split_first()?;
        rest = more;
        length |= usize::from(byte & !CONTINUED) << shift;
        shift += 7;
        if byte & CONTINUED == 0 {
            break;
        }
    }
    let (body, rest) = rest.split_at_checked(length)?;
    Some((*kind, body, rest))
}

/// Returns identifier and message of a PUBLISH.
fn published(body: &[u8]) -> Option<([u8; 2], &[u8])> {
    let (length, rest) = body.split_first_chunk::<2>()?;
    let (_topic, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))?;
    let (identifier, message) = rest.split_first_chunk::<2>()?;
    Some((*identifier, message))
}

/// Returns the packet that connects a client. A session that is not clean persists.
pub fn connect(client: &str, is_clean: bool) -> Vec<u8> {
    let mut body = string("MQTT");
    // Level of the protocol, flags, and no keep-alive.
    body.extend([4, u8::from(is_clean) << 1, 0, 0]);
    body.extend(string(client));
    framed(CONNECT, &body)
}

/// Returns the packet that subscribes to topics.
pub fn subscribe(topics: &[&str]) -> Vec<u8> {
    let mut body = vec![0, 1];
    for topic in topics {
        body.extend(string(topic));
        body.push(1);
    }
    framed(SUBSCRIBE, &body)
}

/// Appends a packet that publishes a message.
pub fn publish(buffer: &mut Vec<u8>, topic: &str, message: &[u8], identifier: u16) {
    let body = [&string(topic), &identifier.to_be_bytes()[..], message].concat();
    buffer.extend(framed(PUBLISH, &body));
}

fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u16).to_be_bytes()[..], text.as_bytes()].concat()
}

fn framed(kind: u8, body: &[u8]) -> Vec<u8> {
    let (mut packet, mut length) = (vec![kind], body.len());
    while length >= usize::from(CONTINUED) {
        packet.push(length as u8 | CONTINUED);
        length >>= 7;
    }
    packet.push(length as u8);
    packet.extend(body);
    packet
}

/// Checks packets against each other, and one against the standard.
pub fn check() {
    assert_eq!(connect("a", true), b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x00\x00\x01a");
    let (mut buffer, message) = (Vec::new(), [b'x'; 300]);
    publish(&mut buffer, "to", &message, 258);
    assert_eq!(packet(&buffer[..buffer.len() - 1]), None);
    buffer.push(9);
    let (kind, body, rest) = packet(&buffer).expect("a packet");
    assert_eq!((kind, rest), (PUBLISH, &[9][..]));
    assert_eq!(published(body), Some(([1, 2], &message[..])));
}
