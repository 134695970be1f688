//! Parses server-sent events from the chunks of a response.

use std::mem;

/// Size limit of an event and of a line, in bytes. The server's events have at most a tenth of it.
const EVENT_BYTES_MAX: usize = 1 << 20;

/// Holds a parsed event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct SseEvent {
    /// New last event id, if there is one.
    pub id: Option<String>,
    /// Name; empty if absent.
    pub name: String,
    /// Data; `None` without a data line, when it is only an id.
    pub data: Option<String>,
    /// Delay before reconnecting in milliseconds, if there is one.
    pub retry: Option<u64>,
}

/// Error of an input that is not a stream of events: an event is too long, or not UTF-8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct InvalidStream;

/// Splits chunks into events.
#[derive(Debug, Default)]
pub(super) struct Parser {
    line: Vec<u8>,
    /// Whether the last byte was CR. Then a following LF belongs to the same line end.
    after_cr: bool,
    event: SseEvent,
}

impl Parser {
    /// Parses a chunk, and appends the events that end in it.
    pub(super) fn push(&mut self, chunk: &[u8], events: &mut Vec<SseEvent>) -> Result<(), InvalidStream> {
        for &byte in chunk {
            let is_lf_of_crlf = mem::take(&mut self.after_cr) && byte == b'\n';
            match byte {
                _ if is_lf_of_crlf => {}
                b'\r' | b'\n' => {
                    self.after_cr = byte == b'\r';
                    let line = String::from_utf8(mem::take(&mut self.line)).map_err(|_| InvalidStream)?;
                    self.end_line(&line, events)?;
                }
                _ if self.line.len() == EVENT_BYTES_MAX => return Err(InvalidStream),
                _ => self.line.push(byte),
            }
        }
        Ok(())
    }

    fn end_line(&mut self, line: &str, events: &mut Vec<SseEvent>) -> Result<(), InvalidStream> {
        if line.is_empty() {
            let event = mem::take(&mut self.event);
            if event != SseEvent::default() {
                events.push(event);
            }
            return Ok(());
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "data" => match &mut self.event.data {
                None => self.event.data = Some(value.to_owned()),
                Some(data) if data.len() + value.len() > EVENT_BYTES_MAX => return Err(InvalidStream),
                Some(data) => {
                    data.push('\n');
                    data.push_str(value);
                }
            },
            "event" => value.clone_into(&mut self.event.name),
            "id" => self.event.id = Some(value.to_owned()),
            "retry" => self.event.retry = value.parse().ok(),
            // A comment, or a field of a newer version.
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &[u8], chunk: usize) -> Vec<SseEvent> {
        let (mut parser, mut events) = (Parser::default(), Vec::new());
        text.chunks(chunk).for_each(|chunk| parser.push(chunk, &mut events).unwrap());
        events
    }

    #[test]
    fn chunk_boundaries_do_not_change_events() {
        let text = "retry: 1000\nid: ab-0\n\n:\n\nid: ab-1\r\ndata: {\"a\":\"é\"}\r\n\r\nevent: missed\rdata:1\rdata: 2\r\r\
                    data\n\nid: ab-2\ndata: not whole";
        let sent = |id: Option<&str>, name: &str, data: Option<&str>, retry| SseEvent {
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
        for chunk in 1..text.len() {
            assert_eq!(parsed(text.as_bytes(), chunk), expected, "in chunks of {chunk}");
        }
    }

    #[test]
    fn endless_line_or_event_is_rejected() {
        let (mut parser, mut events) = (Parser::default(), Vec::new());
        let line = vec![b'x'; EVENT_BYTES_MAX + 1];
        assert_eq!(parser.push(&line, &mut events), Err(InvalidStream));
        let (mut parser, line) = (Parser::default(), format!("data: {}\n", "x".repeat(100_000)));
        assert!((0..20).any(|_| parser.push(line.as_bytes(), &mut events).is_err()));
        assert_eq!(Parser::default().push(b"data: \xff\n", &mut events), Err(InvalidStream));
    }
}
