//! Draws lines on a terminal, on its alternate screen.

use std::{
    fmt::Write as _,
    io::{self, Write as _},
};

/// Shows the alternate screen, hides the cursor, and cuts long lines in place of wrapping them.
const OPEN: &str = "\x1b[?1049h\x1b[?25l\x1b[?7l";

/// Undoes [`OPEN`].
const CLOSE: &str = "\x1b[?7h\x1b[?25h\x1b[?1049l";

/// Rows of a terminal whose size is unknown.
const ROWS_DEFAULT: usize = 24;

/// The alternate screen of a terminal. Dropping it restores the terminal.
pub struct Screen(());

impl Screen {
    /// Shows the alternate screen of standard output.
    pub fn open() -> io::Result<Self> {
        // Restores the terminal also if a part of the sequence was written.
        let screen = Self(());
        write(OPEN)?;
        Ok(screen)
    }

    /// Draws lines, as far as there are rows for them.
    #[expect(clippy::unused_self, reason = "only an open screen is drawn on")]
    pub fn draw(&mut self, lines: &[String]) -> io::Result<()> {
        write(&frame(lines, rows()))
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // If the terminal is gone, there is nothing to restore.
        _ = write(CLOSE);
    }
}

/// Encodes lines over those of the frame before: from the top, each cleared to its end, then the rest of the screen.
fn frame(lines: &[String], rows: usize) -> String {
    let mut frame = "\x1b[H".to_owned();
    for (row, line) in lines.iter().take(rows).enumerate() {
        let end = if row > 0 { "\r\n" } else { "" };
        // Writing to a String cannot fail.
        _ = write!(frame, "{end}{line}\x1b[K");
    }
    frame.push_str("\x1b[J");
    frame
}

fn rows() -> usize {
    let size = rustix::termios::tcgetwinsize(io::stdout());
    size.ok().map(|size| usize::from(size.ws_row)).filter(|rows| *rows > 0).unwrap_or(ROWS_DEFAULT)
}

fn write(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frame_replaces_the_one_before_and_has_no_row_too_many() {
        let lines = ["a", "b", "c"].map(String::from);
        assert_eq!(frame(&lines, 2), "\x1b[Ha\x1b[K\r\nb\x1b[K\x1b[J");
    }
}
