//! Detects blocks that the disk wrote to a wrong place of a segment.
//!
//! The messages in such a block have the checksum and the segment number of any other. Replayed in that place, a message of
//! an earlier block would take back what was written since.

use std::ops::Range;

use super::segment::Message;

/// The unit of a disk: data written to a wrong place is off by a multiple of this.
const BLOCK_BYTES: usize = 512;

/// The copied messages of one segment. Only those behind a broken place are looked at: a copy cuts a message off.
#[derive(Debug, Default)]
pub struct Copies {
    /// Ranges of the segment that were recognized.
    found: Vec<Range<usize>>,
    /// Where the originals of the messages that follow begin, while these are copies.
    original: Option<usize>,
}

impl Copies {
    /// Begins behind a broken place, with the message at `at`.
    pub fn begin(&mut self, segment: &[u8], at: usize) {
        let start = at / BLOCK_BYTES * BLOCK_BYTES;
        let whole = segment.get(start..start + BLOCK_BYTES);
        self.original = whole.and_then(|block| {
            let others = segment.chunks_exact(BLOCK_BYTES).zip((0..).step_by(BLOCK_BYTES));
            let mut same = others.filter(|(other, from)| *from != start && *other == block);
            // Of two that are equal and both behind a broken place, one is read.
            same.find(|(_, from)| !self.has(from + at - start)).map(|(_, from)| from + at - start)
        });
    }

    fn has(&self, at: usize) -> bool {
        self.found.iter().any(|range| range.contains(&at))
    }

    /// Whether the next message is a copy, and is not to be replayed.
    pub fn is_copy(&mut self, segment: &[u8], message: &Message<'_>) -> bool {
        let Some(original) = self.original else { return false };
        let end = original + (message.end - message.at);
        if segment.get(original..end) != segment.get(message.at..message.end) {
            self.original = None;
            return false;
        }
        self.original = Some(end);
        self.found.push(message.at..message.end);
        true
    }
}
