//! Excerpts of text from peers: every log field that quotes a peer is one.
//!
//! A peer decides how long its text is and what is in it. Uncut, one frame of a stranger is a log line of 65 kB; unescaped,
//! it forges lines and steers a terminal.

use std::fmt::{self, Display, Write};

use super::steers::steers;

/// Longest excerpt of a peer's text, in characters. The rest is replaced by `…`.
const EXCERPT_MAX: usize = 64;

/// Longest sentence that may quote a peer somewhere in it, in characters. The rest is replaced by `…`.
const SENTENCE_MAX: usize = 400;

/// Returns the beginning of a peer's text, on one line and without control characters.
pub fn excerpt(text: impl Display) -> String {
    cut(text, EXCERPT_MAX)
}

/// Returns the beginning of an error whose text may quote a peer: one of an application's middleware, for example.
pub fn sentence(error: impl Display) -> String {
    cut(error, SENTENCE_MAX)
}

fn cut(text: impl Display, max: usize) -> String {
    let mut cut = Cut::new(max);
    // An error means that the rest was cut.
    _ = write!(cut, "{text}");
    cut.text
}

/// Takes so many characters, then `…`, and then refuses what follows.
struct Cut {
    text: String,
    left: usize,
}

impl Cut {
    fn new(max: usize) -> Self {
        Self { text: String::new(), left: max }
    }
}

impl Write for Cut {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for character in text.chars() {
            if self.left == 0 {
                self.text.push('…');
                return Err(fmt::Error);
            }
            self.left -= 1;
            if steers(character) {
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
    fn excerpt_of_a_long_text_is_cut_at_64_characters() {
        assert_eq!(excerpt("x".repeat(64)), "x".repeat(64));
        assert_eq!(excerpt("ß".repeat(65_536)), "ß".repeat(64) + "…");
        assert_eq!(sentence("x".repeat(65_536)).chars().count(), SENTENCE_MAX + 1);
    }

    #[test]
    fn excerpt_with_control_characters_is_one_line() {
        assert_eq!(excerpt("a\n2026 ERROR\u{1b}[31m\u{202e}"), "a\\u{a}2026 ERROR\\u{1b}[31m\\u{202e}");
    }
}
