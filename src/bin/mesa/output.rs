//! Writes output for terminals and scripts.

use std::{
    fmt::Write as _,
    io::{self, Write as _},
};

use mesa::logging::is_control;
use rustix::{
    event::{PollFd, PollFlags, poll},
    fs::FileType,
};
use serde::Serialize;

/// Writes one or more lines to standard output. Characters that control a terminal are escaped.
pub fn line(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(escaped(text, "\n").as_bytes())?;
    out.write_all(b"\n")?;
    out.flush()
}

/// Writes bytes of our own to standard output.
pub fn bytes(text: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text)?;
    out.flush()
}

/// Waits until the reader of standard output has closed its pipe, as in `… | head`. Never returns for a file or terminal.
///
/// A command that waits for events would otherwise notice only with the next one.
pub async fn reader_closed() {
    let is_pipe = rustix::fs::fstat(io::stdout())
        .is_ok_and(|file| matches!(FileType::from_raw_mode(file.st_mode), FileType::Fifo | FileType::Socket));
    let (closed, wait) = tokio::sync::oneshot::channel::<()>();
    if !is_pipe {
        return std::future::pending().await;
    }
    std::thread::spawn(move || {
        let out = io::stdout();
        // No event is requested, so only an error or a hang-up ends the wait. A signal may interrupt it.
        while poll(&mut [PollFd::new(&out, PollFlags::empty())], None) == Err(rustix::io::Errno::INTR) {}
        _ = closed.send(());
    });
    // An error means that the thread could not wait. Then the next write reports the closed pipe.
    if wait.await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Returns the name of this program as it was started, for the commands to copy.
pub fn program() -> String {
    std::env::args().next().filter(|name| !name.contains(char::is_whitespace)).unwrap_or_else(|| "mesa".into())
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

/// Formats a size: `999 bytes`, `1.2 MiB`.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return count(bytes, "byte");
    }
    let (mut value, mut unit) = (bytes as f64 / 1024.0, 0);
    // What would be rounded to 1024 belongs to the next unit.
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        (value, unit) = (value / 1024.0, unit + 1);
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// Formats a number with its noun: `1 message`, `2 messages`.
pub fn count(number: u64, noun: &str) -> String {
    if number == 1 { format!("1 {noun}") } else { format!("{number} {noun}s") }
}

/// Formats a number with commas between thousands.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
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
    fn size_has_a_unit_that_keeps_it_below_1024() {
        let sizes = [0, 1, 1023, 1024, 1536, (1 << 20) - 1, 5 << 30, u64::MAX];
        let expected = ["0 bytes", "1 byte", "1023 bytes", "1.0 KiB", "1.5 KiB", "1.0 MiB", "5.0 GiB", "16384.0 PiB"];
        assert_eq!(sizes.map(size), expected);
    }

    #[test]
    fn count_uses_singular_and_plural() {
        assert_eq!([count(0, "user"), count(1, "user"), count(2, "user")], ["0 users", "1 user", "2 users"]);
    }

    #[test]
    fn numbers_are_grouped_by_thousands() {
        assert_eq!([0, 999, 1000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
    }
}
