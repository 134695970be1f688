//! Excerpts of text from peers, for log lines and errors. Every log field that quotes a peer is an excerpt.
//!
//! The text of a peer may be long, and may contain any character. Without truncation one frame could be a log line of
//! 65 kB. Without escapes it could forge lines and control a terminal.

use std::fmt::{self, Display, Write};

use super::control_chars::is_control;

/// Longest excerpt of a peer's text, in characters. `…` replaces the rest.
const EXCERPT_MAX: usize = 64;

/// Longest error text that may quote a peer, in characters. `…` replaces the rest.
const SENTENCE_MAX: usize = 400;

/// Truncates a peer's text to 64 characters, on one line, with control characters escaped.
pub fn excerpt(text: impl Display) -> String {
    truncate(text, EXCERPT_MAX)
}

/// Truncates an error text that may quote a peer to 400 characters, on one line, with control characters escaped.
pub fn sentence(error: impl Display) -> String {
    truncate(error, SENTENCE_MAX)
}

fn truncate(text: impl Display, max: usize) -> String {
    let mut writer = TruncatingWriter { text: String::new(), left: max };
    // An error means that the rest was truncated.
    _ = write!(writer, "{text}");
    writer.text
}

/// Accepts `left` characters, then appends `…` and fails.
struct TruncatingWriter {
    text: String,
    left: usize,
}

impl Write for TruncatingWriter {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for character in text.chars() {
            if self.left == 0 {
                self.text.push('…');
                return Err(fmt::Error);
            }
            self.left -= 1;
            if is_control(character) {
                self.text.extend(character.escape_unicode());
            } else {
                self.text.push(character);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn excerpt_of_a_long_text_is_truncated_to_64_characters() {
        assert_eq!(excerpt("x".repeat(64)), "x".repeat(64));
        assert_eq!(excerpt("ß".repeat(65_536)), "ß".repeat(64) + "…");
        assert_eq!(sentence("x".repeat(65_536)).chars().count(), SENTENCE_MAX + 1);
    }

    #[test]
    fn excerpt_with_control_characters_is_one_line() {
        assert_eq!(excerpt("a\n2026 ERROR\u{1b}[31m\u{202e}"), "a\\u{a}2026 ERROR\\u{1b}[31m\\u{202e}");
    }
}
