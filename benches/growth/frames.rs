//! Reads and writes WebSocket frames of the light clients: only those that the server sends to them.

use std::io;

/// Upgrade request. The key is the one of RFC 6455.
pub const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";

/// End of a response's head.
const HEAD_END: &[u8] = b"\r\n\r\n";

/// First byte of a text frame that is not a fragment.
const TEXT: u8 = 0x81;

/// Payload lengths that state that 2 or 8 bytes with the length follow.
const TWO_BYTES: u8 = 126;
const EIGHT_BYTES: u8 = 127;

/// Payload from which on a frame has another form of length. The clients send no longer one.
const SHORT_PAYLOAD: usize = 126;
const LONG_PAYLOAD: usize = 1 << 16;

/// An event of a client.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// The server expects the authentication (op 10).
    Hello,
    /// Op 22.
    Authenticated,
    /// The server expects an answer (op 1).
    Heartbeat,
    /// A broadcast (op 0) with its number, and the time of its dispatch in microseconds.
    Broadcast { n: u64, at: u64 },
}

/// Parses what the server sends, from its response to the upgrade request on.
#[derive(Default)]
pub struct Frames {
    is_upgraded: bool,
    /// Start of a frame that is not complete.
    rest: Vec<u8>,
}

impl Frames {
    /// Parses further bytes, and returns the events in them.
    ///
    /// # Errors
    /// When the server rejects the upgrade or sends a frame that it does not send to these clients.
    pub fn read(&mut self, bytes: &[u8]) -> io::Result<Vec<Event>> {
        let mut all = std::mem::take(&mut self.rest);
        let mut unread = if all.is_empty() {
            bytes
        } else {
            all.extend_from_slice(bytes);
            &all
        };
        if !self.is_upgraded {
            let Some(end) = unread.windows(HEAD_END.len()).position(|window| window == HEAD_END) else {
                self.rest = unread.to_vec();
                return Ok(Vec::new());
            };
            if !unread.starts_with(b"HTTP/1.1 101 ") {
                return Err(io::Error::other(String::from_utf8_lossy(unread).into_owned()));
            }
            self.is_upgraded = true;
            unread = &unread[end + HEAD_END.len()..];
        }
        let mut events = Vec::new();
        while let Some((payload, after)) = split_frame(unread)? {
            events.push(event(payload)?);
            unread = after;
        }
        self.rest = unread.to_vec();
        Ok(events)
    }
}

/// Returns the payload of the first frame and what follows; `None` if the frame is not complete.
fn split_frame(bytes: &[u8]) -> io::Result<Option<(&[u8], &[u8])>> {
    let [first, length, after @ ..] = bytes else { return Ok(None) };
    if *first != TEXT {
        return Err(unexpected(bytes));
    }
    let (length, after) = match (*length, after) {
        (TWO_BYTES, [high, low, after @ ..]) => (usize::from(u16::from_be_bytes([*high, *low])), after),
        (TWO_BYTES, _) => return Ok(None),
        (EIGHT_BYTES.., _) => return Err(unexpected(bytes)),
        (length, after) => (usize::from(length), after),
    };
    Ok(after.split_at_checked(length))
}

fn event(payload: &[u8]) -> io::Result<Event> {
    match number(payload, b"\"op\":") {
        Some(0) => number(payload, b"\"n\":")
            .zip(number(payload, b"\"at\":"))
            .map(|(n, at)| Event::Broadcast { n, at })
            .ok_or_else(|| unexpected(payload)),
        Some(1) => Ok(Event::Heartbeat),
        Some(10) => Ok(Event::Hello),
        Some(22) => Ok(Event::Authenticated),
        _ => Err(unexpected(payload)),
    }
}

/// Returns the number after the first occurrence of a key.
fn number(payload: &[u8], key: &[u8]) -> Option<u64> {
    let at = payload.windows(key.len()).position(|window| window == key)?;
    let digits = payload[at + key.len()..].iter().take_while(|byte| byte.is_ascii_digit());
    digits.map(|digit| u64::from(digit - b'0')).try_fold(None, |number: Option<u64>, digit| {
        Some(Some(number.unwrap_or(0).checked_mul(10)?.checked_add(digit)?))
    })?
}

fn unexpected(bytes: &[u8]) -> io::Error {
    io::Error::other(format!("unexpected: {}", String::from_utf8_lossy(&bytes[..bytes.len().min(200)])))
}

/// Encodes a text as the frame of a client, with the mask 0.
pub fn masked(text: &str) -> Vec<u8> {
    assert!(text.len() < LONG_PAYLOAD, "the clients send short frames only");
    let mut frame = vec![TEXT];
    if text.len() < SHORT_PAYLOAD {
        frame.push(0x80 | text.len() as u8);
    } else {
        frame.push(0x80 | TWO_BYTES);
        frame.extend_from_slice(&(text.len() as u16).to_be_bytes());
    }
    frame.extend_from_slice(&[0; 4]);
    frame.extend_from_slice(text.as_bytes());
    frame
}

/// Checks the parser with a stream that arrives byte by byte.
pub fn check() {
    let texts = [r#"{"op":10,"d":{}}"#, r#"{"op":22,"d":{}}"#, r#"{"op":1}"#, r#"{"op":0,"d":{"at":12,"n":3}}"#];
    let mut stream = b"HTTP/1.1 101 Switching Protocols\r\n\r\n".to_vec();
    for text in texts {
        stream.extend_from_slice(&[TEXT, text.len() as u8]);
        stream.extend_from_slice(text.as_bytes());
    }
    let long = format!(r#"{{"op":0,"d":{{"at":45,"n":6,"x":"{}"}}}}"#, "x".repeat(200));
    stream.extend_from_slice(&[TEXT, TWO_BYTES]);
    stream.extend_from_slice(&(long.len() as u16).to_be_bytes());
    stream.extend_from_slice(long.as_bytes());
    let expected = [
        Event::Hello,
        Event::Authenticated,
        Event::Heartbeat,
        Event::Broadcast { n: 3, at: 12 },
        Event::Broadcast { n: 6, at: 45 },
    ];
    assert_eq!(Frames::default().read(&stream).expect("valid frames"), expected, "in one read");
    let mut frames = Frames::default();
    let bytes = stream.iter().flat_map(|byte| frames.read(&[*byte]).expect("valid frames"));
    assert!(bytes.eq(expected), "byte by byte");
}
