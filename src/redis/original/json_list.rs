//! Splits a JSON array, given in pieces of its text, into the texts of its elements.
//!
//! Holds at most a piece and an element. Of an element longer than [`ELEMENT_BYTES_MAX`] only the position is returned.

use std::ops::Range;

/// Limit of an element's text in memory, in bytes. Messages that can be sent to clients are 16 times shorter. More than
/// that are spaces, or options of the original.
pub(super) const ELEMENT_BYTES_MAX: usize = 1 << 20;

/// Splits one array.
#[derive(Debug, Default)]
pub(in crate::redis) struct Elements {
    /// Text that was not returned yet.
    text: Vec<u8>,
    /// Bytes at its start that were returned. The next piece removes them.
    returned: usize,
    /// Bytes that were scanned. Those behind `returned` belong to an incomplete element.
    scanned: usize,
    /// Skipped bytes that belong to no returned element: the opening bracket, and spaces.
    skipped: u64,
    /// Bytes of the current element that are no longer held, because it is too long.
    dropped: u64,
    /// The opening bracket was read.
    inside: bool,
    /// The closing bracket was read.
    ended: bool,
    /// Number of open brackets and braces within the element.
    depth: usize,
    in_string: bool,
    escaped: bool,
}

/// The next part of the text.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::redis) enum Next {
    /// An element, as a range of [`Elements::text`].
    Element {
        text: Range<usize>,
        /// Bytes of the array that it takes, with its separator.
        bytes: u64,
    },
    /// An element that is too long to be held.
    Long {
        /// Bytes before it that belong to no element.
        before: u64,
        /// Length of the element in bytes.
        length: u64,
        /// Bytes of the array that it takes, with those before it and its separator.
        bytes: u64,
    },
    /// More text is needed.
    More,
    /// The array has ended, with at most spaces after it.
    End,
    /// The text behind this is not an array.
    Broken,
}

impl Elements {
    /// Creates a splitter. `inside`: it starts behind an element of the array.
    pub(in crate::redis) fn new(inside: bool) -> Self {
        Self { inside, ..Self::default() }
    }

    /// Adds a piece of the text. Ranges that were returned before are no longer valid.
    pub(in crate::redis) fn push(&mut self, piece: &[u8]) {
        self.text.drain(..self.returned);
        self.scanned -= self.returned;
        self.returned = 0;
        if self.scanned > ELEMENT_BYTES_MAX {
            let spaces = self.spaces(self.scanned);
            self.text.drain(..spaces);
            self.scanned -= spaces;
            self.skipped += spaces as u64;
        }
        if self.scanned > ELEMENT_BYTES_MAX {
            self.text.drain(..self.scanned);
            self.dropped += self.scanned as u64;
            self.scanned = 0;
        }
        self.text.extend_from_slice(piece);
    }

    /// Returns the text that ranges refer to.
    pub(in crate::redis) fn text(&self) -> &[u8] {
        &self.text
    }

    /// Returns the next part.
    pub(in crate::redis) fn next(&mut self) -> Next {
        if !self.inside && !self.ended {
            let spaces = self.text[self.returned..].iter().take_while(|byte| byte.is_ascii_whitespace()).count();
            self.skip(spaces);
            match self.text.get(self.returned) {
                None => return Next::More,
                Some(b'[') => self.skip(1),
                Some(_) => return Next::Broken,
            }
            self.inside = true;
        }
        while !self.ended
            && let Some(&byte) = self.text.get(self.scanned)
        {
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' if self.in_string => self.escaped = true,
                b'"' => self.in_string = !self.in_string,
                _ if self.in_string => {}
                b'[' | b'{' => self.depth += 1,
                b',' | b']' if self.depth == 0 => {
                    let element = self.returned..self.scanned;
                    self.ended = byte == b']';
                    self.scanned += 1;
                    let spaces = self.spaces(element.end);
                    if self.dropped > 0 || element.len() - spaces > ELEMENT_BYTES_MAX {
                        let before = self.skipped + spaces as u64;
                        let length = self.dropped + (element.len() - spaces) as u64;
                        (self.returned, self.skipped, self.dropped) = (self.scanned, 0, 0);
                        return Next::Long { before, length, bytes: before + length + 1 };
                    }
                    let is_empty = self.text[element.clone()].iter().all(u8::is_ascii_whitespace);
                    if is_empty && !self.ended {
                        // The comma is not scanned: the text to set aside begins with it.
                        self.scanned = element.start;
                        return Next::Broken;
                    }
                    let bytes = self.skipped + (self.scanned - self.returned) as u64;
                    (self.returned, self.skipped) = (self.scanned, 0);
                    if !is_empty {
                        return Next::Element { text: element, bytes };
                    }
                }
                b'}' if self.depth == 0 => {
                    self.scanned = self.returned;
                    return Next::Broken;
                }
                b']' | b'}' => self.depth -= 1,
                _ => {}
            }
            if !self.ended {
                self.scanned += 1;
            }
        }
        match self.text[self.returned..].iter().all(u8::is_ascii_whitespace) {
            _ if !self.ended => Next::More,
            true => Next::End,
            false => Next::Broken,
        }
    }

    /// Counts the leading spaces of the current element, up to `end`.
    fn spaces(&self, end: usize) -> usize {
        // Spaces before a dropped element were skipped before.
        let element = if self.dropped > 0 { &[] } else { &self.text[self.returned..end] };
        element.iter().take_while(|byte| byte.is_ascii_whitespace()).count()
    }

    /// Counts the bytes before the next part that belong to no element.
    pub(in crate::redis) fn before(&self) -> u64 {
        self.skipped + self.spaces(self.text.len()) as u64
    }

    fn skip(&mut self, bytes: usize) {
        self.returned += bytes;
        self.scanned = self.returned;
        self.skipped += bytes as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the elements of a text in pieces, the bytes that they take, and the last part.
    fn split(list: &str, piece: usize, inside: bool) -> (Vec<String>, u64, Next) {
        let (mut elements, mut found, mut bytes) = (Elements::new(inside), Vec::new(), 0);
        for piece in list.as_bytes().chunks(piece) {
            elements.push(piece);
            loop {
                match elements.next() {
                    Next::Element { text, bytes: more } => {
                        found.push(String::from_utf8(elements.text()[text].to_vec()).unwrap());
                        bytes += more;
                    }
                    Next::Broken => return (found, bytes, Next::Broken),
                    Next::Long { .. } => panic!("expected a short element"),
                    _ => break,
                }
            }
        }
        (found, bytes, elements.next())
    }

    #[test]
    fn array_in_pieces_of_any_size_returns_its_elements() {
        let list = r#" [{"a":"],\"}","b":[1,[2]]} , 3,"\\","é" ] "#;
        for piece in 1..list.len() {
            let (found, bytes, end) = split(list, piece, false);
            assert_eq!(found, [r#"{"a":"],\"}","b":[1,[2]]} "#, " 3", r#""\\""#, "\"é\" "], "in pieces of {piece}");
            assert_eq!((bytes, end), (list.len() as u64 - 1, Next::End));
        }
        assert_eq!(split("[ ]", 1, false).2, Next::End);
        assert_eq!(split("", 1, false).2, Next::More);
    }

    #[test]
    fn splitter_behind_any_element_returns_later_elements() {
        let list = r#"[{"a":1}, "b" ,[2]]"#;
        let all = split(list, 100, false).0;
        let mut elements = Elements::new(false);
        elements.push(list.as_bytes());
        let mut from = 0;
        for at in 1..=all.len() {
            let Next::Element { bytes, .. } = elements.next() else { panic!("an element") };
            from += bytes as usize;
            let (rest, _, end) = split(&list[from..], 3, true);
            if at < all.len() {
                assert_eq!((rest, end), (all[at..].to_vec(), Next::End));
            }
        }
    }

    #[test]
    fn too_long_element_returns_its_position_and_is_not_in_memory() {
        let long = format!(r#"{{"a":"],{}"}}"#, "x".repeat(3 * ELEMENT_BYTES_MAX));
        for spaces in [0, 5, 2 * ELEMENT_BYTES_MAX] {
            let list = format!("[1,{}{long} ,2,{long}]", " ".repeat(spaces));
            for piece in [ELEMENT_BYTES_MAX / 3, ELEMENT_BYTES_MAX, 2 * ELEMENT_BYTES_MAX] {
                let (mut elements, mut found, mut at) = (Elements::new(false), Vec::new(), 0);
                let mut end = Next::More;
                for piece in list.as_bytes().chunks(piece) {
                    elements.push(piece);
                    end = loop {
                        match elements.next() {
                            Next::Element { text, bytes } => {
                                found.push(String::from_utf8(elements.text()[text].to_vec()).unwrap());
                                at += bytes as usize;
                            }
                            Next::Long { before, length, bytes } => {
                                let from = at + before as usize;
                                found.push(list[from..from + length as usize].to_owned());
                                at += bytes as usize;
                            }
                            end => break end,
                        }
                    };
                    assert!(elements.text().len() <= 2 * ELEMENT_BYTES_MAX + piece.len(), "{}", elements.text().len());
                }
                let found: Vec<&str> = found.iter().map(|text| text.trim()).collect();
                assert!(found == ["1", &long, "2", &long], "in pieces of {piece} behind {spaces} spaces");
                assert_eq!((at, end), (list.len(), Next::End));
            }
        }
    }

    #[test]
    fn spaces_and_piece_boundaries_do_not_make_an_element_too_long() {
        for length in [100, ELEMENT_BYTES_MAX, ELEMENT_BYTES_MAX + 1, 3 * ELEMENT_BYTES_MAX / 2] {
            let element = format!("\"{}\"", "x".repeat(length - 2));
            for spaces in [0, ELEMENT_BYTES_MAX / 2, ELEMENT_BYTES_MAX + 7, 2 * ELEMENT_BYTES_MAX - 5] {
                let list = format!("[{}{element},1]", " ".repeat(spaces));
                for piece in [ELEMENT_BYTES_MAX / 3, ELEMENT_BYTES_MAX, 5 * ELEMENT_BYTES_MAX] {
                    let mut elements = Elements::new(false);
                    let mut pieces = list.as_bytes().chunks(piece);
                    let mut first = std::iter::from_fn(|| {
                        elements.push(pieces.next()?);
                        Some(elements.next())
                    });
                    let first = first.find(|next| *next != Next::More).unwrap();
                    let expected = length > ELEMENT_BYTES_MAX;
                    let case = format!("{length} bytes behind {spaces} spaces, in pieces of {piece}: {first:?}");
                    assert_eq!(matches!(first, Next::Long { .. }), expected, "{case}");
                }
            }
        }
    }

    #[test]
    fn truncated_or_invalid_array_returns_its_complete_elements() {
        for (list, whole, end) in [
            (r#"[1,{"a":"#, 1, Next::More),
            (r#"[1,"a"#, 1, Next::More),
            (r#"{"a":1}"#, 0, Next::Broken),
            ("[1,,2]", 1, Next::Broken),
            ("[1}", 0, Next::Broken),
            ("[1] 2", 1, Next::Broken),
            ("nonsense", 0, Next::Broken),
        ] {
            for piece in 1..=list.len() {
                let (found, _, ended) = split(list, piece, false);
                assert_eq!((found.len(), &ended), (whole, &end), "{list} in pieces of {piece}");
            }
        }
    }
}
