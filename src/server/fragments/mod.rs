//! Counts the fragments among the frames of a peer, and finds its close frame.
//!
//! tungstenite joins the fragments of a message and reports only the complete message. A peer could send empty
//! fragments of one message without end, and no limit would apply. So the bytes are parsed here too, and each frame
//! without the FIN bit is counted. tungstenite reports every other frame, as a message or a control frame. It receives
//! only the header of a close frame, see [`close_frame`](super::close_frame).

use super::close_frame::{CloseFrame, MASK_BYTES};

/// Maximum fragments of one message; one more closes the connection with 1008. No byte limit bounds empty fragments.
pub(super) const FRAGMENTS_PER_MESSAGE_MAX: u32 = 1024;

/// Bytes of a frame header without its mask: two, and up to eight for the length.
const HEAD_BYTES_MAX: usize = 10;

const FIN: u8 = 0x80;
const MASKED: u8 = 0x80;
const LENGTH: u8 = 0x7f;
const CLOSE: u8 = 8;

/// Longest body of a control frame, in bytes.
const CONTROL_BYTES_MAX: u8 = 125;

/// Lowest opcode of control frames, which may arrive between the fragments of a message.
const CONTROL: u8 = 8;

/// Parser state of a peer's stream of frames.
#[derive(Debug, Default)]
pub(super) struct Fragments {
    head: [u8; HEAD_BYTES_MAX],
    head_len: usize,
    /// Bytes of mask and payload of the current frame that are still to come.
    body_left: u64,
    /// Fragments of the incomplete message.
    in_message: u32,
    /// Fragments that were not reported yet.
    unreported: u32,
    /// The close frame, once it has begun. No later bytes are frames.
    close: Option<Box<CloseFrame>>,
}

impl Fragments {
    /// Parses more bytes; returns how many are for tungstenite: those before the body of a close frame.
    pub(super) fn read(&mut self, mut bytes: &[u8]) -> usize {
        let all = bytes.len();
        while let Some(byte) = bytes.first() {
            if let Some(close) = &mut self.close {
                close.read(bytes);
                return all - bytes.len();
            }
            if self.body_left > 0 {
                let skipped = usize::try_from(self.body_left).map_or(bytes.len(), |left| left.min(bytes.len()));
                self.body_left -= skipped as u64;
                bytes = &bytes[skipped..];
                continue;
            }
            self.head[self.head_len] = *byte;
            self.head_len += 1;
            bytes = &bytes[1..];
            if self.head_len >= 2 && self.head_len == 2 + self.length_bytes() {
                self.take_head();
            }
        }
        all
    }

    /// Returns the close frame, once all of it has arrived.
    pub(super) fn close(&self) -> Option<&CloseFrame> {
        self.close.as_deref().filter(|close| close.is_complete())
    }

    /// Returns the fragments since the last call, to be charged like frames.
    pub(super) fn take(&mut self) -> u32 {
        std::mem::take(&mut self.unreported)
    }

    /// Reports whether fragments have not been returned by [`Fragments::take`].
    pub(super) fn any(&self) -> bool {
        self.unreported > 0
    }

    /// Reports whether a message has more than [`FRAGMENTS_PER_MESSAGE_MAX`].
    pub(super) fn too_many(&self) -> bool {
        self.in_message > FRAGMENTS_PER_MESSAGE_MAX
    }

    /// Returns the number of length bytes after the first two.
    fn length_bytes(&self) -> usize {
        match self.head[1] & LENGTH {
            126 => 2,
            127 => 8,
            _ => 0,
        }
    }

    fn take_head(&mut self) {
        let length = match self.length_bytes() {
            0 => u64::from(self.head[1] & LENGTH),
            bytes => self.head[2..2 + bytes].iter().fold(0, |length, byte| length << 8 | u64::from(*byte)),
        };
        let mask = if self.head[1] & MASKED == 0 { 0 } else { MASK_BYTES as u64 };
        // tungstenite reports an illegal header of a close frame.
        if let Ok(length @ 0..=CONTROL_BYTES_MAX) = u8::try_from(length)
            && self.head[0] == FIN | CLOSE
            && mask > 0
        {
            self.close = Some(Box::new(CloseFrame::new(length)));
        }
        // tungstenite rejects a length that saturates.
        self.body_left = length.saturating_add(mask);
        self.head_len = 0;
        if self.head[0] & FIN == 0 {
            self.unreported = self.unreported.saturating_add(1);
            self.in_message = self.in_message.saturating_add(1);
        } else if self.head[0] & 0x0f < CONTROL {
            self.in_message = 0;
        }
    }
}

#[cfg(test)]
mod tests;
