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
        assert!(lines.partial.len() <= bytes_max, "the buffer holds at most {bytes_max} bytes");
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
    for (chunk, is_in_line) in
        [("a\n", false), ("a\nb", true), ("\n", false), ("abcd", true), ("e", true), ("\n", false)]
    {
        lines.push(Bytes::from_static(chunk.as_bytes()));
        while lines.next().is_some() {}
        assert_eq!(lines.is_in_line(), is_in_line, "{chunk:?}");
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
