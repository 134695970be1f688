//! Halves of surrogate pairs in JSON texts: `"\ud83d"`, which JavaScript writes for the first half of an emoji.
//!
//! RFC 8259 allows them, and JavaScript reads them; a Rust text cannot hold them. Data that is only passed on is kept as raw
//! JSON, with its halves. Where text is needed, that one value is rejected, and [`reason`] names it. Where values are needed
//! and none of them decides anything, [`mend`] puts U+FFFD in place of each half, as UTF-8 encoders do.

use std::{borrow::Cow, collections::BTreeMap};

use serde_json::{Value, value::RawValue};

/// Bytes of an escape: `\ud83d`. Its replacement has as many, so that places in a mended text are those of the original.
pub(super) const ESCAPE_BYTES: usize = 6;

const REPLACEMENT: &str = "\\ufffd";

/// Fields in which a half does no harm: they are passed on as JSON, or each id in them is rejected by itself.
const PASSED_OVER: [&str; 4] = ["d", "t", "recipients", "excluding"];

/// Longest path that [`reason`] repeats: `message.o.collapse` has 18 bytes.
const PATH_BYTES_MAX: usize = 64;

/// Whether a JSON text has half of a surrogate pair.
pub fn has_half(text: &str) -> bool {
    halves(text).next().is_some()
}

/// The text with U+FFFD in place of each half; of the same length.
pub fn mend(text: &str) -> Cow<'_, str> {
    let mut mended = Cow::Borrowed(text);
    for at in halves(text) {
        mended.to_mut().replace_range(at..at + ESCAPE_BYTES, REPLACEMENT);
    }
    mended
}

/// Says which value of a text has half of a surrogate pair; `None` if none has, or if it is not JSON.
///
/// For texts that could not be read: it reads the whole text again. The values of some fields are not looked at, as they need no
/// text: see [`PASSED_OVER`].
pub fn reason(text: &str) -> Option<String> {
    // A reader that decodes no string.
    serde_json::from_str::<&RawValue>(text).ok()?;
    // Of each object or list that is open: the name of the field that is being read.
    let mut open: Vec<Option<&str>> = Vec::new();
    // How many were open when the value of such a field began.
    let mut passed_over: Option<usize> = None;
    let (mut last, mut rest) = ("", text);
    while let Some(at) = rest.find(['{', '[', '}', ']', ':', ',', '"']) {
        let token = rest.as_bytes()[at];
        rest = &rest[at + 1..];
        match token {
            b'{' | b'[' => open.push(None),
            b'}' | b']' => _ = open.pop(),
            b':' => {
                passed_over = passed_over.or(PASSED_OVER.contains(&last).then_some(open.len()));
                open.last_mut().into_iter().for_each(|field| *field = Some(last));
            }
            b',' => open.last_mut().into_iter().for_each(|field| *field = None),
            _ => {
                let end = end_of_string(rest)?;
                (last, rest) = (&rest[..end], &rest[end + 1..]);
                if passed_over.is_none() && has_half(last) {
                    let path = open.into_iter().flatten().collect::<Vec<_>>().join(".");
                    // The names of fields are the peer's. Those that are needed as text are short.
                    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"._".contains(&byte);
                    let is_plain = (1..=PATH_BYTES_MAX).contains(&path.len()) && path.bytes().all(is_name);
                    return Some(cut_in_two(if is_plain { &path } else { "a text" }));
                }
            }
        }
        if passed_over.is_some_and(|depth| open.len() < depth || (open.len() == depth && token == b',')) {
            passed_over = None;
        }
    }
    None
}

/// Says that this value has half of a surrogate pair.
pub fn cut_in_two(what: &str) -> String {
    format!("{what} has half of a surrogate pair (a character that was cut in two), so it is no text")
}

/// The entries of a JSON object: their names, mended, and their values as they stand; `None` if it is no object.
pub fn entries(text: &str) -> Option<BTreeMap<String, &str>> {
    let mended = mend(text);
    let entries: BTreeMap<String, &RawValue> = serde_json::from_str(&mended).ok()?;
    let start = mended.as_ptr() as usize;
    let original = entries.into_iter().map(|(name, value)| {
        let at = value.get().as_ptr() as usize - start;
        (name, &text[at..at + value.get().len()])
    });
    Some(original.collect())
}

/// A JSON object with these names, and JSON texts for values.
pub fn object<'a>(entries: impl IntoIterator<Item = (String, &'a str)>) -> String {
    let entries = entries.into_iter().map(|(name, value)| format!("{}:{value}", Value::from(name)));
    format!("{{{}}}", entries.collect::<Vec<_>>().join(","))
}

/// Where the halves stand. Backslashes stand only in strings, so nothing else of the text has to be understood.
fn halves(text: &str) -> impl Iterator<Item = usize> + '_ {
    let mut at = 0;
    std::iter::from_fn(move || {
        while let Some(found) = text.as_bytes().get(at..)?.iter().position(|byte| *byte == b'\\') {
            let escape = at + found;
            match (unit(text, escape), unit(text, escape + ESCAPE_BYTES)) {
                (Some(0xd800..0xdc00), Some(0xdc00..0xe000)) => at = escape + 2 * ESCAPE_BYTES,
                (Some(0xd800..0xe000), _) => {
                    at = escape + ESCAPE_BYTES;
                    return Some(escape);
                }
                _ => at = escape + 2,
            }
        }
        None
    })
}

/// The code unit of an escape like `\ud83d`, if one stands there.
fn unit(text: &str, at: usize) -> Option<u32> {
    let digits = text.get(at..at + ESCAPE_BYTES)?.strip_prefix("\\u")?;
    digits.bytes().all(|digit| digit.is_ascii_hexdigit()).then(|| u32::from_str_radix(digits, 16).ok())?
}

/// Where the quotation mark stands that ends a string.
fn end_of_string(text: &str) -> Option<usize> {
    let mut bytes = text.bytes().enumerate();
    while let Some((at, byte)) = bytes.next() {
        match byte {
            b'\\' => _ = bytes.next(),
            b'"' => return Some(at),
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn half_of_a_pair_is_found_and_a_whole_one_is_not() {
        for whole in [r#""\ud83d\ude00""#, r#""\uD83D\uDE00""#, r#""\\ud83d""#, r#""\u0041""#, r#""\\\\ud83d""#, "7"] {
            assert!(!has_half(whole), "{whole}");
            assert_eq!(mend(whole), whole);
        }
        for (half, mended) in [
            (r#""\ud83d""#, r#""\ufffd""#),
            (r#""a\uDE00b""#, r#""a\ufffdb""#),
            (r#""\ud83d\ud83d\ude00""#, r#""\ufffd\ud83d\ude00""#),
            (r#""\ude00\ud83d""#, r#""\ufffd\ufffd""#),
            (r#""\\\ud83d\n""#, r#""\\\ufffd\n""#),
            (r#""\ud83d\u0041""#, r#""\ufffd\u0041""#),
        ] {
            assert!(has_half(half), "{half}");
            assert_eq!(mend(half), mended);
        }
    }

    #[test]
    fn reason_names_the_value_and_passes_over_what_is_passed_on() {
        let path = |text: &str| reason(text).map(|reason| reason.split_once(" has half").unwrap().0.to_owned());
        let text = r#"{"message":{"op":0,"d":["\ud83d"],"t":"a\ud83d","o":{"collapse":"\ude00"}},"recipients":[]}"#;
        assert_eq!(path(text).unwrap(), "message.o.collapse");
        assert_eq!(path(r#"{"message":{},"recipients":["a","\ud83d"],"id":"\ud83d"}"#).unwrap(), "id");
        assert_eq!(path(r#"{"message":{"t":"\ud83d"},"recipients":["\ud83d"],"excluding":["\ud83d"]}"#), None);
        assert_eq!(path(r#"{"a":{"b":[{"c":1},{"d":1,"e":"\"{[\ud83d"}]}}"#).unwrap(), "a.b.e");
        assert_eq!(path(r#""\ud83d""#).unwrap(), "a text");
        assert_eq!(path(r#"{"op":0,"d":{"x":{"y":"\ud83d"}}}"#), None);
        assert_eq!(path(r#"{"op":0,"t":"T"}"#), None);
        for name in ["x".repeat(65), "\u{202e}".to_owned()] {
            assert_eq!(path(&format!(r#"{{"{name}":"\ud83d"}}"#)).unwrap(), "a text", "nothing of a peer is repeated");
        }
    }

    #[test]
    fn entries_are_those_of_the_original() {
        let text = r#" {"token":"t\ud83d","x\ud83d":[1, {"y":"\ude00"}],"n":1.0}"#;
        let expected = [("n", "1.0"), ("token", r#""t\ud83d""#), ("x\u{fffd}", r#"[1, {"y":"\ude00"}]"#)];
        assert!(entries(text).unwrap().iter().map(|(name, value)| (name.as_str(), *value)).eq(expected));
        assert_eq!(entries("[]"), None);
    }

    proptest! {
        #[test]
        fn mended_json_is_read_and_has_the_same_length(units in prop::collection::vec(prop::sample::select(vec![0x41_u16, 0xd83d, 0xde00, 0x5c, 0x22]), 0..12)) {
            let escapes = units.iter().map(|unit| format!("\\u{unit:04x}")).collect::<Vec<_>>().concat();
            let text = format!("\"{escapes}\"");
            let mended = mend(&text);
            prop_assert_eq!(mended.len(), text.len());
            prop_assert_eq!(serde_json::from_str::<String>(&mended).unwrap(), String::from_utf16_lossy(&units));
            prop_assert_eq!(has_half(&text), serde_json::from_str::<String>(&text).is_err());
        }

        #[test]
        fn no_text_makes_it_panic(text in r#"[\\u"d8{\[:,é\]}]*"#) {
            _ = (has_half(&text), mend(&text), reason(&text), entries(&text));
        }
    }
}
