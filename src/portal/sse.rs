//! Server-sent events, out of the pieces of an answer.

use std::mem;

/// Bytes of one event, or of one line; a server of ours sends a tenth of it at most.
const EVENT_BYTES_MAX: usize = 1 << 20;

/// One event, as it stood.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Sent {
    /// The id that holds from here on, if one was named.
    pub id: Option<String>,
    /// Its name; empty for none.
    pub name: String,
    /// Its data; `None` where there was no such line, and then it is no event but an id alone.
    pub data: Option<String>,
    /// How long to wait before coming back, in milliseconds, if that was said.
    pub retry: Option<u64>,
}

/// It is no stream of events: it is longer than an event may be, or no text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Broken;

/// Takes pieces, and gives events.
#[derive(Debug, Default)]
pub(super) struct Parser {
    line: Vec<u8>,
    /// The last byte was the first of two that may end a line.
    after_cr: bool,
    event: Sent,
}

impl Parser {
    /// Takes a piece; adds the events that end in it.
    pub(super) fn take(&mut self, piece: &[u8], events: &mut Vec<Sent>) -> Result<(), Broken> {
        for &byte in piece {
            let second_of_two = mem::take(&mut self.after_cr) && byte == b'\n';
            match byte {
                _ if second_of_two => {}
                b'\r' | b'\n' => {
                    self.after_cr = byte == b'\r';
                    let line = String::from_utf8(mem::take(&mut self.line)).map_err(|_| Broken)?;
                    self.end_line(&line, events)?;
                }
                _ if self.line.len() == EVENT_BYTES_MAX => return Err(Broken),
                _ => self.line.push(byte),
            }
        }
        Ok(())
    }

    fn end_line(&mut self, line: &str, events: &mut Vec<Sent>) -> Result<(), Broken> {
        if line.is_empty() {
            let event = mem::take(&mut self.event);
            if event != Sent::default() {
                events.push(event);
            }
            return Ok(());
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "data" => match &mut self.event.data {
                None => self.event.data = Some(value.to_owned()),
                Some(data) if data.len() + value.len() > EVENT_BYTES_MAX => return Err(Broken),
                Some(data) => {
                    data.push('\n');
                    data.push_str(value);
                }
            },
            "event" => value.clone_into(&mut self.event.name),
            "id" => self.event.id = Some(value.to_owned()),
            "retry" => self.event.retry = value.parse().ok(),
            // A comment, or something newer.
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &[u8], piece: usize) -> Vec<Sent> {
        let (mut parser, mut events) = (Parser::default(), Vec::new());
        text.chunks(piece).for_each(|piece| parser.take(piece, &mut events).unwrap());
        events
    }

    #[test]
    fn events_are_read_however_they_are_cut() {
        let text = "retry: 1000\nid: ab-0\n\n:\n\nid: ab-1\r\ndata: {\"a\":\"é\"}\r\n\r\nevent: missed\rdata:1\rdata: 2\r\r\
                    data\n\nid: ab-2\ndata: not whole";
        let sent = |id: Option<&str>, name: &str, data: Option<&str>, retry| Sent {
            id: id.map(Into::into),
            name: name.into(),
            data: data.map(Into::into),
            retry,
        };
        let expected = [
            sent(Some("ab-0"), "", None, Some(1000)),
            sent(Some("ab-1"), "", Some("{\"a\":\"é\"}"), None),
            sent(None, "missed", Some("1\n2"), None),
            sent(None, "", Some(""), None),
        ];
        for piece in 1..text.len() {
            assert_eq!(parsed(text.as_bytes(), piece), expected, "in pieces of {piece}");
        }
    }

    #[test]
    fn what_has_no_end_is_not_kept() {
        let (mut parser, mut events) = (Parser::default(), Vec::new());
        let line = vec![b'x'; EVENT_BYTES_MAX + 1];
        assert_eq!(parser.take(&line, &mut events), Err(Broken));
        let (mut parser, line) = (Parser::default(), format!("data: {}\n", "x".repeat(100_000)));
        assert!((0..20).any(|_| parser.take(line.as_bytes(), &mut events).is_err()));
        assert_eq!(Parser::default().take(b"data: \xff\n", &mut events), Err(Broken));
    }
}
