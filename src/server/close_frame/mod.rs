//! Parses the close frame of a peer.
//!
//! tungstenite reports an illegal code as a close frame with a reason of its own. It reports an illegal reason like an
//! illegal text frame. So the frame does not reach tungstenite: it is parsed here, and each error has its own close
//! reason.

use crate::protocol::close_code::CloseCode;

/// Bytes of a mask.
pub(super) const MASK_BYTES: usize = 4;

/// Bytes of a code.
const CODE_BYTES: usize = 2;

/// Codes that are legal in a close frame: those of RFC 6455, those registered since, and those of applications.
const LEGAL: [std::ops::RangeInclusive<u16>; 3] = [1000..=1003, 1007..=1014, 3000..=4999];

/// Codes that a program reports when it has received no close frame.
const LOCAL: [u16; 3] = [1005, 1006, 1015];

/// A masked close frame after its header.
#[derive(Debug)]
pub(super) struct CloseFrame {
    /// Mask and body, as far as they have arrived.
    bytes: Vec<u8>,
    /// Number of these bytes.
    length: usize,
}

/// Code and reason of a close frame, if it has them.
pub(super) type PeerClose = Option<(u16, String)>;

impl CloseFrame {
    /// Creates a reader for a body of `bytes` bytes.
    pub(super) fn new(body_bytes: u8) -> Self {
        let length = MASK_BYTES + usize::from(body_bytes);
        Self { bytes: Vec::with_capacity(length), length }
    }

    /// Reads more bytes. Bytes after the frame are ignored.
    pub(super) fn read(&mut self, bytes: &[u8]) {
        let left = self.length - self.bytes.len();
        self.bytes.extend_from_slice(&bytes[..left.min(bytes.len())]);
    }

    pub(super) fn is_complete(&self) -> bool {
        self.bytes.len() == self.length
    }

    /// Returns code and reason, or why the frame is illegal.
    pub(super) fn parse(&self) -> Result<PeerClose, (CloseCode, &'static str)> {
        let (mask, masked) = self.bytes.split_at(MASK_BYTES.min(self.bytes.len()));
        let body: Vec<u8> = masked.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask).collect();
        let Some((code, reason)) = body.split_first_chunk::<CODE_BYTES>() else {
            return match body.len() {
                0 => Ok(None),
                _ => Err((CloseCode::Version, "a close frame has no body, or a code of two bytes and a reason")),
            };
        };
        let code = u16::from_be_bytes(*code);
        if LOCAL.contains(&code) {
            return Err((CloseCode::Version, "1005, 1006 and 1015 must not stand in a close frame"));
        }
        if !LEGAL.iter().any(|legal| legal.contains(&code)) {
            return Err((CloseCode::Version, "a close code is needed that is defined, or one from 3000 to 4999"));
        }
        match String::from_utf8(reason.to_vec()) {
            Ok(reason) => Ok(Some((code, reason))),
            Err(_) => Err((CloseCode::NotJson, "the reason in a close frame must be UTF-8")),
        }
    }
}

#[cfg(test)]
mod tests;
