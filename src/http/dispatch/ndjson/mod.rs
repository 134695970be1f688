//! Splits a body into lines. A line above the limit is reported once, and its other bytes are discarded unbuffered.

use std::io::BufRead as _;

use axum::body::Bytes;

/// Maximum capacity of a buffer that is reused for the next partial line, in bytes.
const BUFFER_REUSE_MAX: usize = 64 << 10;

/// Represents the next line.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line<'a> {
    /// A line, without its end; never blank.
    Whole(&'a [u8]),
    /// A line of more bytes than the limit.
    TooLong,
}

/// Splits chunks of a body into lines.
#[derive(Debug)]
pub(super) struct LineSplitter {
    bytes_max: usize,
    /// The last chunk.
    chunk: Bytes,
    /// Offset in `chunk` up to which lines were returned.
    at: usize,
    /// Start of a line that began in an earlier chunk.
    partial: Vec<u8>,
    /// Whether `partial` was returned as a line, so that the next call clears it.
    returned: bool,
    /// Whether the current line was reported as too long, so that its further bytes are discarded.
    skipping: bool,
}

impl LineSplitter {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self { bytes_max, chunk: Bytes::new(), at: 0, partial: Vec::new(), returned: false, skipping: false }
    }

    /// Returns the limit of a line.
    pub(super) fn bytes_max(&self) -> usize {
        self.bytes_max
    }

    /// Adds the next chunk. All lines of the previous one must have been returned.
    pub(super) fn push(&mut self, chunk: Bytes) {
        debug_assert!(self.needs_chunk(), "the previous chunk has more lines");
        self.chunk = chunk;
        self.at = 0;
    }

    /// Ends the body: a partial line counts as its last line.
    pub(super) fn end(&mut self) {
        if self.is_in_line() {
            self.push(Bytes::from_static(b"\n"));
        }
    }

    /// Reports whether all lines of the chunks so far were returned.
    pub(super) fn needs_chunk(&self) -> bool {
        self.at == self.chunk.len()
    }

    /// Reports whether a line has begun and not ended.
    pub(super) fn is_in_line(&self) -> bool {
        self.needs_chunk() && (self.skipping || (!self.partial.is_empty() && !self.returned))
    }

    /// Returns the next line; `None` when another chunk is needed.
    pub(super) fn next(&mut self) -> Option<Line<'_>> {
        if std::mem::take(&mut self.returned) {
            if self.partial.capacity() > BUFFER_REUSE_MAX {
                self.partial = Vec::new();
            }
            self.partial.clear();
        }
        while !self.needs_chunk() {
            let from = self.at;
            // Reading a slice cannot fail.
            let length = (&self.chunk[from..]).skip_until(b'\n').unwrap_or(self.chunk.len() - from);
            self.at += length;
            let whole = self.chunk[self.at - 1] == b'\n';
            let part = from..self.at - usize::from(whole);
            if self.skipping {
                self.skipping = !whole;
                continue;
            }
            if self.partial.len() + part.len() > self.bytes_max {
                self.partial = Vec::new();
                self.skipping = !whole;
                return Some(Line::TooLong);
            }
            if whole && self.partial.is_empty() {
                if self.chunk[part.clone()].trim_ascii().is_empty() {
                    continue;
                }
                return Some(Line::Whole(&self.chunk[part]));
            }
            self.partial.extend_from_slice(&self.chunk[part]);
            if whole {
                if !self.partial.trim_ascii().is_empty() {
                    self.returned = true;
                    return Some(Line::Whole(&self.partial));
                }
                self.partial.clear();
            }
        }
        None
    }
}

#[cfg(test)]
mod tests;
