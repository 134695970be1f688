//! Checksummed frames of the WAL and the value log. They detect damage, and can be found after a damaged range.
//!
//! Layout: 4 bytes magic, length of the body (u32), checksum of length and body (u32), body. Numbers are big-endian.

/// Bytes of a frame before its body.
pub const HEADER_BYTES: usize = 12;

/// Longest body that is accepted, in bytes. Written bodies are far shorter.
const BODY_BYTES_MAX: usize = 1 << 20;

/// Names the content of a frame. The first byte of each magic number is invalid in UTF-8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A WAL record.
    Record,
    /// A block of the value log.
    Block,
}

impl Kind {
    const fn magic(self) -> [u8; 4] {
        match self {
            Self::Record => [0xF7, b'm', b'r', 1],
            Self::Block => [0xF7, b'm', b'c', 1],
        }
    }
}

/// Encodes a frame around the parts of a body.
pub fn encode(kind: Kind, body: &[&[u8]]) -> Vec<u8> {
    let length: usize = body.iter().map(|part| part.len()).sum();
    assert!(length <= BODY_BYTES_MAX, "a body of {length} bytes");
    let mut bytes = Vec::with_capacity(HEADER_BYTES + length);
    bytes.extend_from_slice(&kind.magic());
    bytes.extend_from_slice(&(length as u32).to_be_bytes());
    bytes.extend_from_slice(&[0; 4]);
    body.iter().for_each(|part| bytes.extend_from_slice(part));
    let crc = checksum(&bytes[4..8], &bytes[HEADER_BYTES..]);
    bytes[8..HEADER_BYTES].copy_from_slice(&crc.to_be_bytes());
    bytes
}

fn checksum(length: &[u8], body: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(length);
    crc.update(body);
    crc.finalize()
}

/// Returns the body of the frame at the beginning of `bytes`, or `None` if it is invalid.
///
/// An invalid frame is of another kind, incomplete or damaged.
pub fn body(kind: Kind, bytes: &[u8]) -> Option<&[u8]> {
    if bytes.get(..4)? != kind.magic() {
        return None;
    }
    let length = u32::from_be_bytes(bytes.get(4..8)?.try_into().ok()?) as usize;
    let crc = u32::from_be_bytes(bytes.get(8..HEADER_BYTES)?.try_into().ok()?);
    let body = bytes.get(HEADER_BYTES..HEADER_BYTES.checked_add(length)?)?;
    (length <= BODY_BYTES_MAX && checksum(&bytes[4..8], body) == crc).then_some(body)
}

/// Finds the offset of the next frame of this kind, from `at` on.
pub fn find(kind: Kind, bytes: &[u8], at: usize) -> Option<usize> {
    // Checks one byte first: few bytes are the first byte of a magic number.
    (at..bytes.len()).find(|at| bytes[*at] == kind.magic()[0] && body(kind, &bytes[*at..]).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frame_with_flipped_bit_or_cut_end_is_rejected() {
        let bytes = encode(Kind::Record, &[b"two ", b"parts"]);
        assert_eq!(body(Kind::Record, &bytes), Some(&b"two parts"[..]));
        assert_eq!(body(Kind::Block, &bytes), None);
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut flipped = bytes.clone();
                flipped[at] ^= 1 << bit;
                assert_eq!(body(Kind::Record, &flipped), None, "byte {at}, bit {bit}");
            }
            assert_eq!(body(Kind::Record, &bytes[..at]), None);
        }
        let mut behind = b"garbage \xF7mr\x01 garbage".to_vec();
        let at = behind.len();
        behind.extend(&bytes);
        assert_eq!(find(Kind::Record, &behind, 0), Some(at));
        assert_eq!(find(Kind::Record, &behind, at + 1), None);
    }
}
