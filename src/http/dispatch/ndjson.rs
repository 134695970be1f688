//! A body in pieces, as lines. A line that is too long is told once and passed over without being kept.

use std::io::BufRead as _;

use axum::body::Bytes;

/// Memory kept for the next line that comes in parts; what a longer one needed is given back.
const BEGUN_KEPT_MAX: usize = 64 << 10;

/// What was found.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line<'a> {
    /// A line, without its end; never blank.
    Whole(&'a [u8]),
    /// One with more bytes than a line may have.
    TooLong,
}

/// Cuts what comes into lines.
#[derive(Debug)]
pub(super) struct Lines {
    bytes_max: usize,
    /// What has come last.
    piece: Bytes,
    /// How far it was looked at.
    at: usize,
    /// What there is of a line that began in an earlier piece.
    begun: Vec<u8>,
    /// `begun` was handed out as a line and is over.
    taken: bool,
    /// The line is too long, which was said; its rest is passed over.
    skipping: bool,
}

impl Lines {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self { bytes_max, piece: Bytes::new(), at: 0, begun: Vec::new(), taken: false, skipping: false }
    }

    /// Takes in what comes next, once all of what came before was looked at.
    pub(super) fn push(&mut self, piece: Bytes) {
        debug_assert!(self.is_hungry(), "what came before was not looked at");
        self.piece = piece;
        self.at = 0;
    }

    /// Nothing comes any more: what was begun is the last line.
    pub(super) fn end(&mut self) {
        if self.in_the_middle() {
            self.push(Bytes::from_static(b"\n"));
        }
    }

    /// All of what has come was looked at.
    pub(super) fn is_hungry(&self) -> bool {
        self.at == self.piece.len()
    }

    /// A line was begun and its end has not come.
    pub(super) fn in_the_middle(&self) -> bool {
        self.is_hungry() && (self.skipping || (!self.begun.is_empty() && !self.taken))
    }

    /// The next line of what has come; `None` when more has to come first.
    pub(super) fn next(&mut self) -> Option<Line<'_>> {
        if std::mem::take(&mut self.taken) {
            if self.begun.capacity() > BEGUN_KEPT_MAX {
                self.begun = Vec::new();
            }
            self.begun.clear();
        }
        while !self.is_hungry() {
            let from = self.at;
            // Does not fail on a slice.
            let length = (&self.piece[from..]).skip_until(b'\n').unwrap_or(self.piece.len() - from);
            self.at += length;
            let whole = self.piece[self.at - 1] == b'\n';
            let part = from..self.at - usize::from(whole);
            if self.skipping {
                self.skipping = !whole;
                continue;
            }
            if self.begun.len() + part.len() > self.bytes_max {
                self.begun = Vec::new();
                self.skipping = !whole;
                return Some(Line::TooLong);
            }
            if whole && self.begun.is_empty() {
                if self.piece[part.clone()].trim_ascii().is_empty() {
                    continue;
                }
                return Some(Line::Whole(&self.piece[part]));
            }
            self.begun.extend_from_slice(&self.piece[part]);
            if whole {
                if !self.begun.trim_ascii().is_empty() {
                    self.taken = true;
                    return Some(Line::Whole(&self.begun));
                }
                self.begun.clear();
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What comes out when `pieces` come in, `!` for a line that was too long.
    fn cut<'a>(bytes_max: usize, pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<String> {
        let (mut lines, mut found) = (Lines::new(bytes_max), Vec::new());
        let mut drain = |lines: &mut Lines| {
            while let Some(line) = lines.next() {
                found.push(match line {
                    Line::Whole(line) => String::from_utf8(line.to_vec()).unwrap(),
                    Line::TooLong => "!".to_owned(),
                });
            }
            assert!(lines.begun.len() <= bytes_max, "more is kept than a line may have");
        };
        for piece in pieces {
            lines.push(Bytes::copy_from_slice(piece));
            drain(&mut lines);
        }
        lines.end();
        drain(&mut lines);
        found
    }

    #[test]
    fn the_last_line_counts_without_its_end_and_blank_ones_do_not() {
        assert_eq!(cut(9, [&b"a\n\nb\r\n \t\n\r\nc"[..]]), ["a", "b\r", "c"]);
        assert_eq!(cut(9, [&b""[..]]), [""; 0]);
        assert_eq!(cut(9, [&b" "[..], b"\n", b" "]), [""; 0]);
    }

    #[test]
    fn a_line_that_is_too_long_is_told_once_and_the_next_is_heard() {
        assert_eq!(cut(3, [&b"abcd\nabc\n"[..]]), ["!", "abc"]);
        assert_eq!(cut(3, [&b"ab"[..], b"cd", b"efgh", b"ij\nabc", b"\nabcd"]), ["!", "abc", "!"]);
    }

    #[test]
    fn a_line_is_told_to_be_begun_until_its_end_has_come() {
        let mut lines = Lines::new(3);
        for (piece, middle) in
            [("a\n", false), ("a\nb", true), ("\n", false), ("abcd", true), ("e", true), ("\n", false)]
        {
            lines.push(Bytes::from_static(piece.as_bytes()));
            while lines.next().is_some() {}
            assert_eq!(lines.in_the_middle(), middle, "{piece:?}");
        }
    }

    proptest! {
        /// However a body is cut on its way, its lines are the same.
        #[test]
        fn where_a_body_is_cut_makes_no_difference(text in "[ab\\r\\n ]{0,60}", cuts in prop::collection::vec(0_usize..8, 0..20)) {
            let whole = cut(5, [text.as_bytes()]);
            let expected: Vec<String> = text
                .split('\n')
                .filter(|line| line.len() > 5 || !line.trim().is_empty())
                .map(|line| if line.len() > 5 { "!".to_owned() } else { line.to_owned() })
                .collect();
            prop_assert_eq!(&whole, &expected);
            let (mut pieces, mut rest) = (Vec::new(), text.as_bytes());
            for at in cuts {
                let (piece, behind) = rest.split_at(at.min(rest.len()));
                pieces.push(piece);
                rest = behind;
            }
            pieces.push(rest);
            prop_assert_eq!(cut(5, pieces), expected);
        }
    }
}
