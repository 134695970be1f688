//! From bytes to commands: RESP2, as clients write it, arrays of bulk strings and nothing else.
//!
//! Commands in one line, as one would type them into a bare socket, are not taken. A web page can make a browser send
//! lines to a port of this machine, and must not be able to say anything by that.

use bytes::{Buf as _, Bytes, BytesMut};

/// Arguments of one command. A larger one closes its connection.
const ARGUMENTS_MAX: u64 = 1024;

/// Longest line that announces a number. Numbers themselves are bounded far below.
const LINE_BYTES_MAX: usize = 32;

/// What a peer has said that is no RESP, or more than it may say. Its connection is closed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Violation {
    #[error("Protocol error: expected '*', got '{0}'")]
    NoArray(char),
    #[error("Protocol error: expected '$', got '{0}'")]
    NoBulk(char),
    #[error("Protocol error: this is no number")]
    NoNumber,
    #[error("Protocol error: an argument does not end where it should")]
    NoEnd,
    #[error("Protocol error: a command may have at most {ARGUMENTS_MAX} arguments")]
    Arguments,
    #[error("Protocol error: a command may have at most {0} bytes (redisProtocol.commandBytes)")]
    TooLong(usize),
}

/// A command: its name and its arguments. Never empty.
pub(super) type Words = Vec<Bytes>;

/// Cuts what comes into commands. Looks at no byte twice, however it comes.
#[derive(Debug)]
pub(super) struct Parser {
    bytes_max: usize,
    at: At,
    words: Words,
    /// Words that are still to come.
    left: u64,
    /// Bytes of the words so far.
    bytes: usize,
}

#[derive(Clone, Copy, Debug)]
enum At {
    /// A command begins.
    Begin,
    /// The length of a word.
    Length,
    /// A word of so many bytes.
    Word(usize),
}

impl Parser {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self { bytes_max, at: At::Begin, words: Vec::new(), left: 0, bytes: 0 }
    }

    /// From now on commands may have so many bytes.
    pub(super) fn set_bytes_max(&mut self, bytes_max: usize) {
        self.bytes_max = bytes_max;
    }

    /// A command has begun to come, and is not whole; `buffer` is what is left to look at.
    pub(super) fn in_the_middle(&self, buffer: &BytesMut) -> bool {
        !matches!(self.at, At::Begin) || !buffer.is_empty()
    }

    /// The next command of what has come; `None` when more has to come first.
    pub(super) fn next(&mut self, buffer: &mut BytesMut) -> Result<Option<Words>, Violation> {
        loop {
            match self.at {
                At::Begin => {
                    let Some(number) = line(buffer, b'*', Violation::NoArray)? else { return Ok(None) };
                    // Nothing, in two spellings.
                    let Some(count) = number.filter(|count| *count > 0) else { continue };
                    if count > ARGUMENTS_MAX {
                        return Err(Violation::Arguments);
                    }
                    (self.left, self.bytes, self.at) = (count, 0, At::Length);
                }
                At::Length => {
                    let Some(number) = line(buffer, b'$', Violation::NoBulk)? else { return Ok(None) };
                    let length = number.ok_or(Violation::NoNumber)?;
                    let length = usize::try_from(length).map_err(|_| Violation::TooLong(self.bytes_max))?;
                    if length > self.bytes_max.saturating_sub(self.bytes) {
                        return Err(Violation::TooLong(self.bytes_max));
                    }
                    self.bytes += length;
                    self.at = At::Word(length);
                }
                At::Word(length) => {
                    if buffer.len() < length + 2 {
                        return Ok(None);
                    }
                    let word = buffer.split_to(length).freeze();
                    if &buffer[..2] != b"\r\n" {
                        return Err(Violation::NoEnd);
                    }
                    buffer.advance(2);
                    self.words.push(word);
                    self.left -= 1;
                    self.at = if self.left == 0 { At::Begin } else { At::Length };
                    if self.left == 0 {
                        return Ok(Some(std::mem::take(&mut self.words)));
                    }
                }
            }
        }
    }

    /// Bytes that have to come before it is worth looking again, about.
    pub(super) fn wants(&self, buffer: &BytesMut) -> usize {
        match self.at {
            At::Word(length) => (length + 2).saturating_sub(buffer.len()),
            At::Begin | At::Length => 0,
        }
    }
}

/// A line that announces a number: `Some(None)` for -1, and `None` when it is not whole.
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
    // Without this, a sign would be taken for part of a number.
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return Err(Violation::NoNumber);
    }
    let number = std::str::from_utf8(digits).ok().and_then(|digits| digits.parse().ok());
    number.map(|number| Some(Some(number))).ok_or(Violation::NoNumber)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What comes out when `pieces` come in.
    fn cut<'a>(
        bytes_max: usize,
        pieces: impl IntoIterator<Item = &'a [u8]>,
    ) -> (Vec<Vec<String>>, Option<Violation>, bool) {
        let (mut parser, mut buffer, mut found) = (Parser::new(bytes_max), BytesMut::new(), Vec::new());
        for piece in pieces {
            buffer.extend_from_slice(piece);
            loop {
                match parser.next(&mut buffer) {
                    Ok(Some(words)) => {
                        found.push(words.iter().map(|word| String::from_utf8_lossy(word).into_owned()).collect());
                    }
                    Ok(None) => break,
                    Err(violation) => return (found, Some(violation), true),
                }
            }
        }
        let middle = parser.in_the_middle(&buffer);
        (found, None, middle)
    }

    fn words(commands: &[&[&str]]) -> Vec<Vec<String>> {
        commands.iter().map(|words| words.iter().map(|word| (*word).to_owned()).collect()).collect()
    }

    fn encode(commands: &[Vec<String>]) -> Vec<u8> {
        let mut out = Vec::new();
        for words in commands {
            out.extend(format!("*{}\r\n", words.len()).bytes());
            words.iter().for_each(|word| out.extend(format!("${}\r\n{word}\r\n", word.len()).bytes()));
        }
        out
    }

    #[test]
    fn commands_are_arrays_of_strings_one_behind_the_other() {
        let text =
            b"*1\r\n$4\r\nPING\r\n*2\r\n$4\r\nECHO\r\n$0\r\n\r\n*0\r\n*-1\r\n*2\r\n$1\r\na\r\n$4\r\n\r\n\r\n\r\n";
        assert_eq!(cut(100, [&text[..]]), (words(&[&["PING"], &["ECHO", ""], &["a", "\r\n\r\n"]]), None, false));
        assert_eq!(cut(100, [&text[..10]]), (vec![], None, true));
        assert_eq!(cut(100, [&b"*"[..]]), (vec![], None, true));
        assert_eq!(cut(100, [&b""[..]]), (vec![], None, false));
    }

    #[test]
    fn what_is_no_command_is_refused_at_its_first_wrong_byte() {
        use Violation::*;
        for (text, violation) in [
            ("GET / HTTP/1.1\r\n", NoArray('G')),
            ("PING\r\n", NoArray('P')),
            ("\r\n", NoArray('?')),
            ("$4\r\nPING\r\n", NoArray('$')),
            ("*a\r\n", NoNumber),
            ("*\r\n", NoNumber),
            ("*+1\r\n", NoNumber),
            ("*1\n", NoNumber),
            ("*-2\r\n", NoNumber),
            ("*99999999999999999999999999\r\n", NoNumber),
            (&format!("*{}", "1".repeat(40)), NoNumber),
            ("*1025\r\n", Arguments),
            ("*18446744073709551615\r\n", Arguments),
            ("*1\r\n:4\r\n", NoBulk(':')),
            ("*1\r\n\u{1b}", NoBulk('?')),
            ("*1\r\n$-1\r\n", NoNumber),
            ("*1\r\n$18446744073709551615\r\n", TooLong(100)),
            ("*1\r\n$101\r\n", TooLong(100)),
            ("*2\r\n$60\r\n", NoEnd),
            ("*1\r\n$1\r\nab\r\n", NoEnd),
            ("*1\r\n$1\r\na\n\n", NoEnd),
        ] {
            let text =
                if text.starts_with("*2\r\n$60") { format!("{text}{}xx", "x".repeat(60)) } else { text.to_owned() };
            assert_eq!(cut(100, [text.as_bytes()]), (vec![], Some(violation), true), "{text:?}");
        }
        let both = format!("*2\r\n$60\r\n{}\r\n$41\r\n", "x".repeat(60));
        assert_eq!(cut(100, [both.as_bytes()]).1, Some(TooLong(100)), "its words together");
    }

    #[test]
    fn what_is_announced_takes_no_memory_before_it_comes() {
        let mut parser = Parser::new(usize::MAX / 2);
        let mut buffer = BytesMut::from(&b"*1024\r\n$4000000000000000000\r\nab"[..]);
        assert_eq!(parser.next(&mut buffer), Ok(None));
        assert!(buffer.capacity() < 1024 && parser.words.capacity() < 8);
    }

    proptest! {
        /// However commands are cut on their way, they are the same.
        #[test]
        fn where_commands_are_cut_makes_no_difference(
            commands in prop::collection::vec(prop::collection::vec("[a-c\\r\\n*$0-9]{0,12}", 1..5), 0..6),
            cuts in prop::collection::vec(0_usize..9, 0..60),
        ) {
            let text = encode(&commands);
            let (mut pieces, mut rest) = (Vec::new(), &text[..]);
            for cut in cuts {
                let (piece, after) = rest.split_at(cut.min(rest.len()));
                pieces.push(piece);
                rest = after;
            }
            pieces.push(rest);
            prop_assert_eq!(cut(100, pieces), (commands, None, false));
        }

        /// Whatever comes, there is an end to it and no panic.
        #[test]
        fn noise_is_taken_or_refused(noise in prop::collection::vec(prop::sample::select(&b"*$-1029\r\nab\xff"[..]), 0..200)) {
            let (found, violation, _) = cut(50, [&noise[..]]);
            prop_assert!(found.len() < 50);
            prop_assert!(violation.is_none_or(|violation| violation.to_string().starts_with("Protocol error: ")));
        }
    }
}
