//! Finds and replaces lone surrogates in JSON: halves of surrogate pairs, such as `"\ud83d"` for half of an emoji.
//!
//! RFC 8259 allows them, and JavaScript writes and reads them, but a Rust string cannot hold them. Three rules:
//!
//! - Data that is only forwarded stays raw JSON, with its lone surrogates.
//! - A value that is needed as text is rejected. [`describe_lone_surrogate`] names it.
//! - In values that are only shown or compared, [`replace_lone_surrogates`] replaces each by U+FFFD, as UTF-8 encoders do.

use std::{borrow::Cow, collections::BTreeMap};

use serde_json::{Value, value::RawValue};

/// Bytes of an escape such as `\ud83d`. The replacement has as many, so that offsets do not change.
pub(super) const ESCAPE_BYTES: usize = 6;

const REPLACEMENT: &str = "\\ufffd";

/// Fields that may have lone surrogates: they are forwarded as JSON, or each id in them is rejected by itself.
const IGNORED_FIELDS: [&str; 4] = ["d", "t", "recipients", "excluding"];

/// Longest path that [`describe_lone_surrogate`] quotes, in bytes. `message.o.collapse` has 18.
const PATH_BYTES_MAX: usize = 64;

/// Returns whether a JSON text has a lone surrogate.
pub fn has_lone_surrogate(text: &str) -> bool {
    lone_surrogates(text).next().is_some()
}

/// Replaces each lone surrogate by U+FFFD, without changing the length.
pub fn replace_lone_surrogates(text: &str) -> Cow<'_, str> {
    let mut replaced = Cow::Borrowed(text);
    for at in lone_surrogates(text) {
        replaced.to_mut().replace_range(at..at + ESCAPE_BYTES, REPLACEMENT);
    }
    replaced
}

/// Names the value that has a lone surrogate; `None` if none has, or if the text is not JSON.
///
/// For texts that could not be decoded, because it scans the text again. It skips the values of [`IGNORED_FIELDS`].
pub fn describe_lone_surrogate(text: &str) -> Option<String> {
    // `RawValue` validates without decoding strings.
    serde_json::from_str::<&RawValue>(text).ok()?;
    // For each open object or list: the name of the current field.
    let mut open: Vec<Option<&str>> = Vec::new();
    // Number of open objects and lists at the start of an ignored value.
    let mut ignored_at: Option<usize> = None;
    let (mut last, mut rest) = ("", text);
    while let Some(at) = rest.find(['{', '[', '}', ']', ':', ',', '"']) {
        let token = rest.as_bytes()[at];
        rest = &rest[at + 1..];
        match token {
            b'{' | b'[' => open.push(None),
            b'}' | b']' => _ = open.pop(),
            b':' => {
                ignored_at = ignored_at.or(IGNORED_FIELDS.contains(&last).then_some(open.len()));
                open.last_mut().into_iter().for_each(|field| *field = Some(last));
            }
            b',' => open.last_mut().into_iter().for_each(|field| *field = None),
            _ => {
                let end = end_of_string(rest)?;
                (last, rest) = (&rest[..end], &rest[end + 1..]);
                if ignored_at.is_none() && has_lone_surrogate(last) {
                    let path = open.into_iter().flatten().collect::<Vec<_>>().join(".");
                    // Field names come from the peer. The names of known fields are short and plain.
                    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"._".contains(&byte);
                    let is_plain = (1..=PATH_BYTES_MAX).contains(&path.len()) && path.bytes().all(is_name);
                    return Some(lone_surrogate_error(if is_plain { &path } else { "a text" }));
                }
            }
        }
        if ignored_at.is_some_and(|depth| open.len() < depth || (open.len() == depth && token == b',')) {
            ignored_at = None;
        }
    }
    None
}

/// Returns the error for a value with a lone surrogate.
pub fn lone_surrogate_error(what: &str) -> String {
    format!("{what} has a lone surrogate (half of a character), so it is not valid text")
}

/// Returns the entries of a JSON object: names with lone surrogates replaced, values unchanged. `None` if it is no
/// object.
pub fn entries(text: &str) -> Option<BTreeMap<String, &str>> {
    let replaced = replace_lone_surrogates(text);
    let entries: BTreeMap<String, &RawValue> = serde_json::from_str(&replaced).ok()?;
    let start = replaced.as_ptr() as usize;
    let original = entries.into_iter().map(|(name, value)| {
        let at = value.get().as_ptr() as usize - start;
        (name, &text[at..at + value.get().len()])
    });
    Some(original.collect())
}

/// Builds a JSON object of names and raw JSON values.
pub fn object<'a>(entries: impl IntoIterator<Item = (String, &'a str)>) -> String {
    let entries = entries.into_iter().map(|(name, value)| format!("{}:{value}", Value::from(name)));
    format!("{{{}}}", entries.collect::<Vec<_>>().join(","))
}

/// Returns the offsets of all lone surrogates. Backslashes occur only in strings, so no other syntax matters.
fn lone_surrogates(text: &str) -> impl Iterator<Item = usize> + '_ {
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

/// Returns the code unit of the escape at an offset, if there is one.
fn unit(text: &str, at: usize) -> Option<u32> {
    let digits = text.get(at..at + ESCAPE_BYTES)?.strip_prefix("\\u")?;
    digits.bytes().all(|digit| digit.is_ascii_hexdigit()).then(|| u32::from_str_radix(digits, 16).ok())?
}

/// Returns the offset of the closing quotation mark of a string.
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
    fn has_lone_surrogate_ignores_complete_pairs() {
        for paired in [r#""\ud83d\ude00""#, r#""\uD83D\uDE00""#, r#""\\ud83d""#, r#""\u0041""#, r#""\\\\ud83d""#, "7"] {
            assert!(!has_lone_surrogate(paired), "{paired}");
            assert_eq!(replace_lone_surrogates(paired), paired);
        }
        for (lone, replaced) in [
            (r#""\ud83d""#, r#""\ufffd""#),
            (r#""a\uDE00b""#, r#""a\ufffdb""#),
            (r#""\ud83d\ud83d\ude00""#, r#""\ufffd\ud83d\ude00""#),
            (r#""\ude00\ud83d""#, r#""\ufffd\ufffd""#),
            (r#""\\\ud83d\n""#, r#""\\\ufffd\n""#),
            (r#""\ud83d\u0041""#, r#""\ufffd\u0041""#),
        ] {
            assert!(has_lone_surrogate(lone), "{lone}");
            assert_eq!(replace_lone_surrogates(lone), replaced);
        }
    }

    #[test]
    fn description_names_the_value_and_skips_forwarded_fields() {
        let path = |text: &str| {
            describe_lone_surrogate(text).map(|reason| reason.split_once(" has a lone").unwrap().0.to_owned())
        };
        let text = r#"{"message":{"op":0,"d":["\ud83d"],"t":"a\ud83d","o":{"collapse":"\ude00"}},"recipients":[]}"#;
        assert_eq!(path(text).unwrap(), "message.o.collapse");
        assert_eq!(path(r#"{"message":{},"recipients":["a","\ud83d"],"id":"\ud83d"}"#).unwrap(), "id");
        assert_eq!(path(r#"{"message":{"t":"\ud83d"},"recipients":["\ud83d"],"excluding":["\ud83d"]}"#), None);
        assert_eq!(path(r#"{"a":{"b":[{"c":1},{"d":1,"e":"\"{[\ud83d"}]}}"#).unwrap(), "a.b.e");
        assert_eq!(path(r#""\ud83d""#).unwrap(), "a text");
        assert_eq!(path(r#"{"op":0,"d":{"x":{"y":"\ud83d"}}}"#), None);
        assert_eq!(path(r#"{"op":0,"t":"T"}"#), None);
        for name in ["x".repeat(65), "\u{202e}".to_owned()] {
            assert_eq!(
                path(&format!(r#"{{"{name}":"\ud83d"}}"#)).unwrap(),
                "a text",
                "unusual names of a peer are not quoted"
            );
        }
    }

    #[test]
    fn entries_have_unchanged_values() {
        let text = r#" {"token":"t\ud83d","x\ud83d":[1, {"y":"\ude00"}],"n":1.0}"#;
        let expected = [("n", "1.0"), ("token", r#""t\ud83d""#), ("x\u{fffd}", r#"[1, {"y":"\ude00"}]"#)];
        assert!(entries(text).unwrap().iter().map(|(name, value)| (name.as_str(), *value)).eq(expected));
        assert_eq!(entries("[]"), None);
    }

    proptest! {
        #[test]
        fn text_with_replaced_surrogates_decodes_with_equal_length(units in prop::collection::vec(prop::sample::select(vec![0x41_u16, 0xd83d, 0xde00, 0x5c, 0x22]), 0..12)) {
            let escapes = units.iter().map(|unit| format!("\\u{unit:04x}")).collect::<Vec<_>>().concat();
            let text = format!("\"{escapes}\"");
            let replaced = replace_lone_surrogates(&text);
            prop_assert_eq!(replaced.len(), text.len());
            prop_assert_eq!(serde_json::from_str::<String>(&replaced).unwrap(), String::from_utf16_lossy(&units));
            prop_assert_eq!(has_lone_surrogate(&text), serde_json::from_str::<String>(&text).is_err());
        }

        #[test]
        fn arbitrary_text_does_not_panic(text in r#"[\\u"d8{\[:,é\]}]*"#) {
            _ = (has_lone_surrogate(&text), replace_lone_surrogates(&text), describe_lone_surrogate(&text), entries(&text));
        }
    }
}
