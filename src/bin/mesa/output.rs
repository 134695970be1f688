//! Writing to people and to scripts.

use std::{
    fmt::Write as _,
    io::{self, Write as _},
};

use mesa::logging::is_control;
use serde::Serialize;

/// Writes a line, or several, to standard output at once. What would steer the terminal is escaped.
pub fn line(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(escaped(text, "\n").as_bytes())?;
    out.write_all(b"\n")?;
    out.flush()
}

/// One JSON object on a line of standard output.
pub fn json(value: &impl Serialize) -> io::Result<()> {
    let text = serde_json::to_string(value).map_err(io::Error::other)?;
    // Between values JSON may have line ends, which would end the line; within strings it has none.
    line(&json_escaped(&text.replace(['\n', '\r', '\t'], " ")))
}

/// A JSON text with line ends, for people.
pub fn json_text(value: &impl Serialize) -> io::Result<()> {
    line(&json_escaped(&serde_json::to_string_pretty(value).map_err(io::Error::other)?))
}

/// A remark on standard error, where it is in nobody's way. If nobody reads that either, so be it.
pub fn remark(text: &str) {
    _ = writeln!(io::stderr().lock(), "{}", escaped(text, "\n"));
}

/// Why a command failed, as it is printed.
pub fn complaint(reason: &str) -> String {
    format!("mesa: {reason}")
}

/// `text` on one line and without anything a terminal would obey: what comes from elsewhere must not move the cursor,
/// change colours or forge a line.
pub fn printable(text: &str) -> String {
    escaped(text, "")
}

/// Escapes what a terminal would obey, but for the characters in `kept`.
fn escaped(text: &str, kept: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        if is_control(character) && !kept.contains(character) {
            // Writing to a String cannot fail.
            _ = write!(safe, "{}", character.escape_unicode());
        } else {
            safe.push(character);
        }
    }
    safe
}

/// Escapes it as JSON does: in a JSON text such characters stand in strings alone, but for line ends and tabs.
fn json_escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        if is_control(character) && !matches!(character, '\n' | '\r' | '\t') {
            let mut units = [0; 2];
            // Writing to a String cannot fail.
            character.encode_utf16(&mut units).iter().for_each(|unit| _ = write!(safe, "\\u{unit:04x}"));
        } else {
            safe.push(character);
        }
    }
    safe
}

/// `1 message`, `2 messages`.
pub fn count(number: u64, noun: &str) -> String {
    if number == 1 { format!("1 {noun}") } else { format!("{number} {noun}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_from_elsewhere_cannot_steer_a_terminal() {
        assert_eq!(printable("a\u{1b}[31m\nb\u{9b}\u{202e}"), "a\\u{1b}[31m\\u{a}b\\u{9b}\\u{202e}");
        assert_eq!(printable("Grüße, 名前 🙂"), "Grüße, 名前 🙂");
    }

    #[test]
    fn json_is_escaped_as_json() {
        let value = "a\u{7f}\u{9b}[31m\u{202e}\u{200b}\u{e0041}\u{1b}ü🙂\n";
        let text = json_escaped(&serde_json::to_string(value).unwrap());
        assert_eq!(text, "\"a\\u007f\\u009b[31m\\u202e\\u200b\\udb40\\udc41\\u001bü🙂\\n\"");
        assert_eq!(serde_json::from_str::<String>(&text).unwrap(), value);
    }

    #[test]
    fn numbers_agree_with_their_nouns() {
        assert_eq!([count(0, "user"), count(1, "user"), count(2, "user")], ["0 users", "1 user", "2 users"]);
    }
}
