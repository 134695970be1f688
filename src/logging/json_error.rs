//! Rewords errors of `serde_json` in terms of JSON instead of Rust types.

use std::fmt::{self, Write as _};

use super::excerpt::{excerpt, sentence};

/// Characters of each end of an error text. The middle quotes the peer, and may be megabytes long.
const END_CHARACTERS_MAX: usize = 256;

/// Returns why JSON from a peer was rejected: the reason in terms of JSON, with excerpts, and the position.
pub fn json_error(error: &serde_json::Error) -> String {
    let mut ends = Ends::default();
    // `Ends` never fails.
    _ = write!(ends, "{error}");
    let text = ends.text();
    if error.line() == 0 {
        return reworded(&text);
    }
    let position = format!(" at line {} column {}", error.line(), error.column());
    reworded(text.strip_suffix(&position).unwrap_or(&text)) + &position
}

/// Returns the position of the first byte that is not UTF-8.
pub fn utf8_error(error: &std::str::Utf8Error) -> String {
    format!("byte {} is not UTF-8", error.valid_up_to() + 1)
}

fn reworded(reason: &str) -> String {
    let Some((found, expected)) = reason.rsplit_once(", expected ") else {
        return match reason {
            "recursion limit exceeded" => "it is nested too deeply".into(),
            "expected ident" => "expected true, false or null".into(),
            "expected value" => "expected a value".into(),
            "invalid number" => "it has an invalid number".into(),
            "number out of range" => "the number is too large".into(),
            "lone leading surrogate in hex escape" => "an escape has a lone surrogate".into(),
            "unexpected end of hex escape" => {
                "\\u is followed by fewer than four hexadecimal digits, or by a lone surrogate".into()
            }
            "key must be a string" => "a name in an object has to be a string".into(),
            reason => match (reason.strip_prefix("EOF while parsing "), reason.strip_prefix("duplicate field ")) {
                (Some(what), _) => format!("the text ends within {}", excerpt(what)),
                (_, Some(name)) => format!("{} occurs twice", excerpt(name)),
                _ => excerpt(reason),
            },
        };
    };
    let value = found.strip_prefix("invalid type: ").or_else(|| found.strip_prefix("invalid value: "));
    let value = value.map(value_found).or_else(|| found.strip_prefix("invalid length ").map(excerpt));
    match value {
        Some(value) => format!("expected {}, but found {value}", value_expected(expected)),
        // An unknown name, followed by the known ones.
        None => format!("{}, expected {}", excerpt(found), sentence(expected)),
    }
}

fn value_found(found: &str) -> String {
    let quoted = ["integer `", "floating point `", "boolean `"].iter().find_map(|kind| found.strip_prefix(kind));
    match (found, quoted) {
        (_, Some(value)) => excerpt(value.trim_end_matches('`')),
        ("map", _) => "an object".into(),
        ("sequence", _) => "a list".into(),
        ("unit value" | "Option value", _) => "null".into(),
        // `null` and `string "…"` are terms of JSON already.
        (found, _) => excerpt(found),
    }
}

fn value_expected(expected: &str) -> String {
    let (least, kind) = match expected.strip_prefix("a nonzero ") {
        Some(kind) => (1, kind),
        None => (0, expected),
    };
    let most = match kind {
        "u8" => u64::from(u8::MAX),
        "u16" => u64::from(u16::MAX),
        "u32" => u64::from(u32::MAX),
        "u64" | "u128" | "usize" => return format!("a whole number, {least} or more"),
        "i8" | "i16" | "i32" | "i64" | "i128" | "isize" => return "a whole number".into(),
        "f32" | "f64" => return "a number".into(),
        "a boolean" => return "true or false".into(),
        "a borrowed string" | "string" | "str" | "a character" | "a byte array" => return "a string".into(),
        "a sequence" | "an array" => return "a list".into(),
        "a map" => return "an object".into(),
        "unit" => return "null".into(),
        kind if kind.starts_with("struct ") => return "an object".into(),
        other => return sentence(other),
    };
    format!("a whole number from {least} to {most}")
}

/// Stores the beginning and the end of a text that is written to it.
#[derive(Default)]
struct Ends {
    head: String,
    head_characters: usize,
    tail: String,
    cut: bool,
}

impl Ends {
    fn text(&self) -> String {
        let middle = if self.cut { "…" } else { "" };
        format!("{}{middle}{}", self.head, self.tail)
    }
}

impl fmt::Write for Ends {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for character in text.chars() {
            if self.head_characters < END_CHARACTERS_MAX {
                self.head_characters += 1;
                self.head.push(character);
                continue;
            }
            self.tail.push(character);
            // A character has at most four bytes. Truncating only at four times that keeps the cost low.
            if self.tail.len() > 16 * END_CHARACTERS_MAX {
                let mut from = self.tail.len() - 4 * END_CHARACTERS_MAX;
                while !self.tail.is_char_boundary(from) {
                    from += 1;
                }
                self.tail.drain(..from);
                self.cut = true;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde::de::DeserializeOwned;

    use super::*;

    fn error<T: DeserializeOwned + std::fmt::Debug>(text: &str) -> String {
        json_error(&serde_json::from_str::<T>(text).unwrap_err())
    }

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Fields {
        #[allow(dead_code, reason = "only deserialized")]
        name: String,
    }

    #[test]
    fn json_error_uses_terms_of_json() {
        let whole = "expected a whole number from 0 to 4294967295, but found";
        assert_eq!(error::<u32>("\"x\""), format!("{whole} string \"x\" at line 1 column 3"));
        assert_eq!(error::<u32>("-1"), format!("{whole} -1 at line 1 column 2"));
        assert_eq!(error::<u32>("1.5"), format!("{whole} 1.5 at line 1 column 3"));
        assert_eq!(error::<u32>("null"), format!("{whole} null at line 1 column 4"));
        assert_eq!(error::<u32>("[]"), format!("{whole} a list at line 1 column 0"));
        let nonzero = error::<std::num::NonZeroU32>("0");
        assert_eq!(nonzero, "expected a whole number from 1 to 4294967295, but found 0 at line 1 column 1");
        assert_eq!(error::<u64>("true"), "expected a whole number, 0 or more, but found true at line 1 column 4");
        assert_eq!(error::<bool>("{}"), "expected true or false, but found an object at line 1 column 0");
        assert_eq!(error::<Vec<u8>>("{}"), "expected a list, but found an object at line 1 column 0");
        assert_eq!(error::<Fields>("7"), "expected an object, but found 7 at line 1 column 1");
        assert_eq!(error::<Fields>("{}"), "missing field `name` at line 1 column 2");
        assert_eq!(error::<Fields>("{\"x\":1}"), "unknown field `x`, expected `name` at line 1 column 4");
        assert_eq!(error::<u32>(""), "the text ends within a value at line 1 column 0");
        for text in
            ["nul", "tru", "{\"a\":fals}", "{a:1}", "[1", "\"\\u12", "{", "-", "1e999", "\"\\ud83d\"", "[1,]", "01"]
        {
            let reason = error::<serde_json::Value>(text);
            for term in ["ident", "EOF", "parsing", "lone leading", "unit", "hex escape"] {
                assert!(!reason.contains(term), "{text}: {reason}");
            }
        }
        let deep = "[".repeat(200);
        assert!(error::<serde_json::Value>(&deep).starts_with("it is nested too deeply at line 1"));
    }

    #[test]
    fn json_error_has_the_position_and_truncated_quotes() {
        let long = error::<u32>(&format!("\"{}\"", "x".repeat(65_536)));
        assert!(long.starts_with("expected a whole number from 0 to 4294967295, but found string \"xxx"), "{long}");
        assert!(long.ends_with("x… at line 1 column 65538") && long.chars().count() < 200, "{long}");
        let name = error::<Fields>(&format!("{{\"{}\":1}}", "x".repeat(65_536)));
        assert!(name.contains("x…, expected `name` at line 1") && name.chars().count() < 200, "{name}");
    }
}
