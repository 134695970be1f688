//! Splits a body into lines. A line above the limit is reported once, and its rest discarded without being buffered.

use std::io::BufRead as _;

use axum::body::Bytes;

/// Buffer capacity in bytes that is kept for the next partial line; a larger buffer is freed.
const BUFFER_KEPT_MAX: usize = 64 << 10;

/// Reports the next line.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line<'a> {
    /// A line, without its end; never blank.
    Whole(&'a [u8]),
    /// A line of more bytes than the limit.
    TooLong,
}

/// Splits chunks of a body into lines.
#[derive(Debug)]
pub(super) struct LineSplitter {
    bytes_max: usize,
    /// The last chunk.
    chunk: Bytes,
    /// Offset in `chunk` up to which lines were returned.
    at: usize,
    /// Start of a line that began in an earlier chunk.
    partial: Vec<u8>,
    /// `partial` was returned as a line, and is cleared on the next call.
    returned: bool,
    /// The current line was reported as too long, and its rest is discarded.
    skipping: bool,
}

impl LineSplitter {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self { bytes_max, chunk: Bytes::new(), at: 0, partial: Vec::new(), returned: false, skipping: false }
    }

    /// Adds the next chunk. All lines of the previous one must have been returned.
    pub(super) fn push(&mut self, chunk: Bytes) {
        debug_assert!(self.needs_chunk(), "the previous chunk has lines left");
        self.chunk = chunk;
        self.at = 0;
    }

    /// Ends the body: a partial line counts as its last line.
    pub(super) fn end(&mut self) {
        if self.is_in_line() {
            self.push(Bytes::from_static(b"\n"));
        }
    }

    /// Tests that all lines so far were returned.
    pub(super) fn needs_chunk(&self) -> bool {
        self.at == self.chunk.len()
    }

    /// Tests that a line has begun and not ended.
    pub(super) fn is_in_line(&self) -> bool {
        self.needs_chunk() && (self.skipping || (!self.partial.is_empty() && !self.returned))
    }

    /// Returns the next line; `None` when another chunk is needed.
    pub(super) fn next(&mut self) -> Option<Line<'_>> {
        if std::mem::take(&mut self.returned) {
            if self.partial.capacity() > BUFFER_KEPT_MAX {
                self.partial = Vec::new();
            }
            self.partial.clear();
        }
        while !self.needs_chunk() {
            let from = self.at;
            // Reading a slice cannot fail.
            let length = (&self.chunk[from..]).skip_until(b'\n').unwrap_or(self.chunk.len() - from);
            self.at += length;
            let whole = self.chunk[self.at - 1] == b'\n';
            let part = from..self.at - usize::from(whole);
            if self.skipping {
                self.skipping = !whole;
                continue;
            }
            if self.partial.len() + part.len() > self.bytes_max {
                self.partial = Vec::new();
                self.skipping = !whole;
                return Some(Line::TooLong);
            }
            if whole && self.partial.is_empty() {
                if self.chunk[part.clone()].trim_ascii().is_empty() {
                    continue;
                }
                return Some(Line::Whole(&self.chunk[part]));
            }
            self.partial.extend_from_slice(&self.chunk[part]);
            if whole {
                if !self.partial.trim_ascii().is_empty() {
                    self.returned = true;
                    return Some(Line::Whole(&self.partial));
                }
                self.partial.clear();
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Returns the lines of a body that arrives in `chunks`, with `!` for a line that is too long.
    fn split<'a>(bytes_max: usize, chunks: impl IntoIterator<Item = &'a [u8]>) -> Vec<String> {
        let (mut lines, mut lines_found) = (LineSplitter::new(bytes_max), Vec::new());
        let mut drain = |lines: &mut LineSplitter| {
            while let Some(line) = lines.next() {
                lines_found.push(match line {
                    Line::Whole(line) => String::from_utf8(line.to_vec()).unwrap(),
                    Line::TooLong => "!".to_owned(),
                });
            }
            assert!(lines.partial.len() <= bytes_max, "the buffer is above the limit of a line");
        };
        for chunk in chunks {
            lines.push(Bytes::copy_from_slice(chunk));
            drain(&mut lines);
        }
        lines.end();
        drain(&mut lines);
        lines_found
    }

    #[test]
    fn last_line_without_end_is_returned_and_blank_lines_are_not() {
        assert_eq!(split(9, [&b"a\n\nb\r\n \t\n\r\nc"[..]]), ["a", "b\r", "c"]);
        assert_eq!(split(9, [&b""[..]]), [""; 0]);
        assert_eq!(split(9, [&b" "[..], b"\n", b" "]), [""; 0]);
    }

    #[test]
    fn line_above_limit_is_reported_once_and_next_is_returned() {
        assert_eq!(split(3, [&b"abcd\nabc\n"[..]]), ["!", "abc"]);
        assert_eq!(split(3, [&b"ab"[..], b"cd", b"efgh", b"ij\nabc", b"\nabcd"]), ["!", "abc", "!"]);
    }

    #[test]
    fn is_in_line_holds_from_first_byte_to_line_end() {
        let mut lines = LineSplitter::new(3);
        for (chunk, middle) in
            [("a\n", false), ("a\nb", true), ("\n", false), ("abcd", true), ("e", true), ("\n", false)]
        {
            lines.push(Bytes::from_static(chunk.as_bytes()));
            while lines.next().is_some() {}
            assert_eq!(lines.is_in_line(), middle, "{chunk:?}");
        }
    }

    proptest! {
        /// Checks that the lines do not depend on how the body is split into chunks.
        #[test]
        fn chunk_boundaries_do_not_change_lines(text in "[ab\\r\\n ]{0,60}", cuts in prop::collection::vec(0_usize..8, 0..20)) {
            let whole = split(5, [text.as_bytes()]);
            let expected: Vec<String> = text
                .split('\n')
                .filter(|line| line.len() > 5 || !line.trim().is_empty())
                .map(|line| if line.len() > 5 { "!".to_owned() } else { line.to_owned() })
                .collect();
            prop_assert_eq!(&whole, &expected);
            let (mut chunks, mut rest) = (Vec::new(), text.as_bytes());
            for at in cuts {
                let (chunk, tail) = rest.split_at(at.min(rest.len()));
                chunks.push(chunk);
                rest = tail;
            }
            chunks.push(rest);
            prop_assert_eq!(split(5, chunks), expected);
        }
    }
}
