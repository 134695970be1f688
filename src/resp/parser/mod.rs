//! Parses RESP2 commands: arrays of bulk strings only.
//!
//! Inline commands are rejected. A web page can make a browser send lines to a port of this machine, and must not be
//! able to execute a command that way.

use bytes::{Buf as _, Bytes, BytesMut};

/// Arguments of one command, with its name. One more closes the connection.
const ARGUMENTS_MAX: u64 = 1024;

/// Length limit of a line that holds a number, in bytes.
const LINE_BYTES_MAX: usize = 32;

/// A violation of the protocol or of a limit. The connection closes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Violation {
    #[error("Protocol error: expected '*', got '{0}'")]
    NoArray(char),
    #[error("Protocol error: expected '$', got '{0}'")]
    NoBulk(char),
    #[error("Protocol error: invalid number")]
    NoNumber,
    #[error("Protocol error: an argument is not followed by a line end")]
    NoEnd,
    #[error("Protocol error: a command may have at most {ARGUMENTS_MAX} arguments")]
    TooManyArguments,
    #[error("Protocol error: a command may have at most {0} bytes (redisProtocol.commandBytes)")]
    TooLong(usize),
}

/// A command: its name and its arguments. Never empty.
pub(super) type Arguments = Vec<Bytes>;

/// Splits input into commands. Scans each byte once, however the input is split.
#[derive(Debug)]
pub(super) struct Parser {
    bytes_max: usize,
    state: State,
    arguments: Arguments,
    /// Arguments that are missing.
    missing: u64,
    /// Bytes of the announced arguments so far.
    bytes: usize,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// At the start of a command.
    Begin,
    /// At the length of an argument.
    Length,
    /// Within an argument of this many bytes.
    Argument(usize),
}

impl Parser {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self { bytes_max, state: State::Begin, arguments: Vec::new(), missing: 0, bytes: 0 }
    }

    /// Sets the size limit of commands, in bytes.
    pub(super) fn set_bytes_max(&mut self, bytes_max: usize) {
        self.bytes_max = bytes_max;
    }

    /// Tells whether a command has begun and is not complete. `buffer` holds the unparsed input.
    pub(super) fn is_in_command(&self, buffer: &BytesMut) -> bool {
        !matches!(self.state, State::Begin) || !buffer.is_empty()
    }

    /// Returns the next command. `None` when more input is needed.
    pub(super) fn next(&mut self, buffer: &mut BytesMut) -> Result<Option<Arguments>, Violation> {
        loop {
            match self.state {
                State::Begin => {
                    let Some(number) = line(buffer, b'*', Violation::NoArray)? else { return Ok(None) };
                    // An empty and a null array are both no command.
                    let Some(count) = number.filter(|count| *count > 0) else { continue };
                    if count > ARGUMENTS_MAX {
                        return Err(Violation::TooManyArguments);
                    }
                    (self.missing, self.bytes, self.state) = (count, 0, State::Length);
                }
                State::Length => {
                    let Some(number) = line(buffer, b'$', Violation::NoBulk)? else { return Ok(None) };
                    let length = number.ok_or(Violation::NoNumber)?;
                    let length = usize::try_from(length).map_err(|_| Violation::TooLong(self.bytes_max))?;
                    if length > self.bytes_max.saturating_sub(self.bytes) {
                        return Err(Violation::TooLong(self.bytes_max));
                    }
                    self.bytes += length;
                    self.state = State::Argument(length);
                }
                State::Argument(length) => {
                    if buffer.len() < length + 2 {
                        return Ok(None);
                    }
                    let argument = buffer.split_to(length).freeze();
                    if &buffer[..2] != b"\r\n" {
                        return Err(Violation::NoEnd);
                    }
                    buffer.advance(2);
                    self.arguments.push(argument);
                    self.missing -= 1;
                    self.state = if self.missing == 0 { State::Begin } else { State::Length };
                    if self.missing == 0 {
                        return Ok(Some(std::mem::take(&mut self.arguments)));
                    }
                }
            }
        }
    }

    /// Returns how many bytes must arrive before parsing can go on, approximately.
    pub(super) fn bytes_needed(&self, buffer: &BytesMut) -> usize {
        match self.state {
            State::Argument(length) => (length + 2).saturating_sub(buffer.len()),
            State::Begin | State::Length => 0,
        }
    }
}

/// Parses a line that holds a number: `Some(None)` for -1, and `None` when the line is incomplete.
fn line(buffer: &mut BytesMut, sign: u8, wrong: fn(char) -> Violation) -> Result<Option<Option<u64>>, Violation> {
    let Some(first) = buffer.first() else { return Ok(None) };
    if *first != sign {
        let shown = if first.is_ascii_graphic() { char::from(*first) } else { '?' };
        return Err(wrong(shown));
    }
    let end = buffer.iter().take(LINE_BYTES_MAX).position(|byte| *byte == b'\n');
    let Some(end) = end else {
        return if buffer.len() >= LINE_BYTES_MAX { Err(Violation::NoNumber) } else { Ok(None) };
    };
    let text = buffer.split_to(end + 1);
    let digits = text[1..].strip_suffix(b"\r\n").ok_or(Violation::NoNumber)?;
    if digits == b"-1" {
        return Ok(Some(None));
    }
    // `parse` would accept a leading sign.
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return Err(Violation::NoNumber);
    }
    let number = std::str::from_utf8(digits).ok().and_then(|digits| digits.parse().ok());
    number.map(|number| Some(Some(number))).ok_or(Violation::NoNumber)
}

#[cfg(test)]
mod tests;
