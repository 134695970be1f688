//! Writing to people and to scripts.

use std::{
    fmt::Write as _,
    io::{self, Write as _},
};

use serde::Serialize;

/// A line on standard output, at once.
pub fn line(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.write_all(b"\n")?;
    out.flush()
}

/// One JSON object on a line of standard output.
pub fn json(value: &impl Serialize) -> io::Result<()> {
    line(&serde_json::to_string(value).map_err(io::Error::other)?)
}

/// A remark on standard error, where it is in nobody's way. If nobody reads that either, so be it.
pub fn remark(text: &str) {
    _ = writeln!(io::stderr().lock(), "{text}");
}

/// Why a command failed, as it is printed.
pub fn complaint(reason: &str) -> String {
    format!("mesa: {reason}")
}

/// `text` on one line and without anything a terminal would obey: what comes from elsewhere must not move the cursor,
/// change colours or forge a line.
pub fn printable(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        if steers(character) {
            // Writing to a String cannot fail.
            _ = write!(safe, "{}", character.escape_unicode());
        } else {
            safe.push(character);
        }
    }
    safe
}

/// Control characters, and the invisible ones that turn the direction of writing around.
fn steers(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
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
    fn numbers_agree_with_their_nouns() {
        assert_eq!([count(0, "user"), count(1, "user"), count(2, "user")], ["0 users", "1 user", "2 users"]);
    }
}
