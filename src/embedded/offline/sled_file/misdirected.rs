//! Detects misdirected writes: disk blocks that the disk wrote to the wrong offset of a segment.
//!
//! Messages in such a block have a valid checksum and segment number. If they were replayed at that offset, messages of
//! an earlier block would undo later writes.

use std::ops::Range;

use super::segment::{HEADER_BYTES, Message};

/// Size of a disk block in bytes. A misdirected write is off by a multiple of it.
const BLOCK_BYTES: usize = 512;

/// Finds the messages of one segment that a misdirected write copied.
///
/// Only messages after a damaged range are checked: a misdirected write cuts off the message before it.
#[derive(Debug, Default)]
pub struct MisdirectedWrites {
    /// Ranges of the segment that were found to be copies.
    found: Vec<Range<usize>>,
    /// Offset of the original of the next message, while the messages are copies.
    original: Option<usize>,
}

impl MisdirectedWrites {
    /// Starts after a damaged range, with the message at `at`.
    pub fn begin(&mut self, segment: &[u8], at: usize) {
        let start = at / BLOCK_BYTES * BLOCK_BYTES;
        let block = segment.get(start..start + BLOCK_BYTES);
        self.original = block.and_then(|block| {
            let others = segment.chunks_exact(BLOCK_BYTES).zip((0..).step_by(BLOCK_BYTES));
            let mut same = others.filter(|(other, from)| *from != start && *other == block);
            // Of two equal blocks that both follow a damaged range, one counts as the original. No message is read in the
            // header of the segment, so none there is an original.
            let is_original = |original: usize| original >= HEADER_BYTES && !self.has(original);
            same.find(|(_, from)| is_original(from + at - start)).map(|(_, from)| from + at - start)
        });
    }

    fn has(&self, at: usize) -> bool {
        self.found.iter().any(|range| range.contains(&at))
    }

    /// Returns whether the next message is a copy, which must not be replayed.
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
