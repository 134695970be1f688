//! Writes output for terminals and scripts.

use std::{
    fmt::Write as _,
    io::{self, Write as _},
};

use mesa::logging::is_control;
use serde::Serialize;

/// Writes one or more lines to standard output. Characters that control a terminal are escaped.
pub fn line(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(escaped(text, "\n").as_bytes())?;
    out.write_all(b"\n")?;
    out.flush()
}

/// Writes a JSON value on one line of standard output.
pub fn json(value: &impl Serialize) -> io::Result<()> {
    let text = serde_json::to_string(value).map_err(io::Error::other)?;
    // JSON may have line ends between values, but not within strings.
    line(&json_escaped(&text.replace(['\n', '\r', '\t'], " ")))
}

/// Writes an indented JSON value.
pub fn json_text(value: &impl Serialize) -> io::Result<()> {
    line(&json_escaped(&serde_json::to_string_pretty(value).map_err(io::Error::other)?))
}

/// Writes a remark to standard error. An error of writing is ignored.
pub fn remark(text: &str) {
    _ = writeln!(io::stderr().lock(), "{}", escaped(text, "\n"));
}

/// Returns the line that reports the failure of a command.
pub fn failure_line(reason: &str) -> String {
    format!("mesa: {reason}")
}

/// Escapes all characters that control a terminal, line ends included.
///
/// Text from a peer must not move the cursor, change colours or forge a line.
pub fn printable(text: &str) -> String {
    escaped(text, "")
}

/// Escapes characters that control a terminal, except those in `allowed`.
fn escaped(text: &str, allowed: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        if is_control(character) && !allowed.contains(character) {
            // Writing to a String cannot fail.
            _ = write!(safe, "{}", character.escape_unicode());
        } else {
            safe.push(character);
        }
    }
    safe
}

/// Escapes characters that control a terminal in a JSON text. Except line ends and tabs, they occur only in strings.
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

/// Formats a number with its noun: `1 message`, `2 messages`.
pub fn count(number: u64, noun: &str) -> String {
    if number == 1 { format!("1 {noun}") } else { format!("{number} {noun}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn printable_text_cannot_control_a_terminal() {
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
    fn count_uses_singular_and_plural() {
        assert_eq!([count(0, "user"), count(1, "user"), count(2, "user")], ["0 users", "1 user", "2 users"]);
    }
}
