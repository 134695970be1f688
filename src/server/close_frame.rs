//! Reads the close frame of a peer.
//!
//! tungstenite answers a code that must not be sent with words of its own and reports those as the peer's, and what is wrong
//! with a reason as it does with a text. So the frame does not reach it: it is read here, and each cause has its reason.

use crate::protocol::close_code::CloseCode;

/// Bytes of a mask.
pub(super) const MASK_BYTES: usize = 4;

/// Bytes of a code.
const CODE_BYTES: usize = 2;

/// Codes that may stand in a close frame: those of RFC 6455, those registered since, and those of applications.
const LEGAL: [std::ops::RangeInclusive<u16>; 3] = [1000..=1003, 1007..=1014, 3000..=4999];

/// Codes that a program reports where no close frame came.
const LOCAL: [u16; 3] = [1005, 1006, 1015];

/// A masked close frame behind its header.
#[derive(Debug)]
pub(super) struct CloseFrame {
    /// The mask, and the body as it comes.
    bytes: Vec<u8>,
    /// How many those are.
    length: usize,
}

/// What a close frame says: code and reason, if it has them.
pub(super) type Goodbye = Option<(u16, String)>;

impl CloseFrame {
    /// One with a body of so many bytes.
    pub(super) fn new(body_bytes: u8) -> Self {
        let length = MASK_BYTES + usize::from(body_bytes);
        Self { bytes: Vec::with_capacity(length), length }
    }

    /// Reads on. What follows a close frame is passed over.
    pub(super) fn read(&mut self, bytes: &[u8]) {
        let left = self.length - self.bytes.len();
        self.bytes.extend_from_slice(&bytes[..left.min(bytes.len())]);
    }

    pub(super) fn is_complete(&self) -> bool {
        self.bytes.len() == self.length
    }

    /// What it says, or why it is illegal.
    pub(super) fn said(&self) -> Result<Goodbye, (CloseCode, &'static str)> {
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
mod tests {
    use super::*;

    fn said(body: &[u8]) -> Result<Goodbye, (CloseCode, &'static str)> {
        let mask = [0xff, 1, 2, 3];
        let masked = body.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask);
        let bytes: Vec<u8> = mask.into_iter().chain(masked).collect();
        let mut frame = CloseFrame::new(u8::try_from(body.len()).unwrap());
        for byte in bytes {
            assert!(!frame.is_complete());
            frame.read(&[byte]);
        }
        assert!(frame.is_complete());
        frame.read(b"what follows");
        frame.said()
    }

    #[test]
    fn close_code_is_taken_where_it_may_be_sent() {
        let with = |code: u16| said(&[&code.to_be_bytes()[..], "é".as_bytes()].concat());
        assert_eq!(said(&[]), Ok(None));
        for code in 0..=u16::MAX {
            let legal = matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999);
            assert_eq!(with(code).is_ok(), legal, "{code}");
        }
        assert_eq!(with(1000), Ok(Some((1000, "é".to_owned()))));
    }

    #[test]
    fn illegal_close_frame_has_one_reason_for_each_cause() {
        let causes = [&[3][..], &[3, 0xed], &[3, 0xe7], &[3, 0xe8, 0xff]];
        let refused: Vec<_> = causes.into_iter().map(|body| said(body).unwrap_err()).collect();
        let codes: Vec<u16> = refused.iter().map(|(code, _)| code.code()).collect();
        assert_eq!(codes, [1002, 1002, 1002, 1007]);
        let reasons: std::collections::HashSet<&str> = refused.iter().map(|(_, reason)| *reason).collect();
        assert_eq!(reasons.len(), causes.len());
        assert!(reasons.iter().all(|reason| reason.len() <= 123));
    }
}
