//! Decodes one segment: a header, then messages, each with a checksum, until a cap or the end.

/// Size of a segment's header, in bytes.
pub const HEADER_BYTES: usize = 20;

/// Bytes at the end of a segment in which no message begins.
pub const RED_ZONE_BYTES: usize = 32;

/// Offset of the kind in a message. No kind is zero.
const KIND_AT: usize = 4;

/// Mask that sled applies to its numbers, so that a file of zeros has no valid header.
const MASK: u64 = 0x7FFF_FFFF_FFFF_FFFF;

/// Holds a segment's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Position in the log of the segment's first byte.
    pub lsn: u64,
    /// Everything up to this position was written when the segment was begun.
    pub stable: i64,
}

impl Header {
    /// Decodes a header. Returns `None` if the checksum is wrong.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.get(..HEADER_BYTES)?;
        let number = |at: usize| Some(u64::from_le_bytes(bytes[at..at + 8].try_into().ok()?) ^ MASK);
        let crc = u32::from_le_bytes(bytes[..4].try_into().ok()?) ^ u32::MAX;
        let (lsn, stable) = (number(4)?, number(12)?);
        (crc == crc32fast::hash(&bytes[4..]) && lsn <= MASK).then_some(Self { lsn, stable: stable.cast_signed() })
    }
}

/// Names the kind of a message, as sled numbers them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Canceled by sled: skipped.
    Canceled,
    /// The segment ends here.
    Cap,
    /// Part of a batch of sled, which the store never uses: skipped.
    Batch,
    /// The page was freed.
    Free,
    /// A counter of sled.
    Counter,
    /// The names of trees, and the root page of each.
    Names,
    /// A page.
    Node,
    /// A change to a page.
    Link,
    /// A large value in its own file. The store's values are too small for that.
    Blob,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Canceled,
            2 => Self::Cap,
            3 => Self::Batch,
            4 => Self::Free,
            5 => Self::Counter,
            6 => Self::Names,
            8 => Self::Node,
            10 => Self::Link,
            7 | 9 | 11 => Self::Blob,
            _ => return None,
        })
    }
}

/// A message with a valid checksum.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    pub kind: Kind,
    pub page: u64,
    /// Offset of its first byte in the segment.
    pub at: usize,
    /// Offset of the next message in the segment.
    pub end: usize,
    pub body: &'a [u8],
}

/// Reads the message at `at` of the segment with this number, if there is one.
pub fn message(segment: &[u8], at: usize, number: u64) -> Option<Message<'_>> {
    let (message, found) = any_message(segment, at)?;
    (found == number).then_some(message)
}

/// Returns the length in bytes that the header of a message states. `bytes` begins with the message.
pub fn length(bytes: &[u8]) -> Option<usize> {
    Kind::from_byte(*bytes.get(4)?)?;
    let mut rest = &bytes[5..];
    let (length, _number, _page) = (varint(&mut rest)?, varint(&mut rest)?, varint(&mut rest)?);
    usize::try_from(length).ok()?.checked_add(bytes.len() - rest.len())
}

/// Reads the message at `at`, and the number of the segment for which it was written.
fn any_message(segment: &[u8], at: usize) -> Option<(Message<'_>, u64)> {
    let bytes = segment.get(at..)?;
    let kind = Kind::from_byte(*bytes.get(KIND_AT)?)?;
    let mut rest = &bytes[5..];
    let (length, number, page) = (varint(&mut rest)?, varint(&mut rest)?, varint(&mut rest)?);
    let header = bytes.len() - rest.len();
    let body = rest.get(..usize::try_from(length).ok()?)?;
    let mut crc = crc32fast::Hasher::new();
    crc.update(body);
    crc.update(&bytes[4..header]);
    let stored = u32::from_le_bytes(bytes[..4].try_into().ok()?) ^ u32::MAX;
    let end = at + header + body.len();
    (crc.finalize() == stored).then_some((Message { kind, page, at, end, body }, number))
}

/// States why a segment has no further message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentEnd {
    /// The segment is full.
    Full,
    /// No valid message of this segment begins at this offset.
    At(usize),
}

/// Visits the messages from `at` on. Returns why no further message follows.
pub fn visit_messages<'a>(
    segment: &'a [u8],
    size: usize,
    mut at: usize,
    number: u64,
    mut visit: impl FnMut(Message<'a>),
) -> SegmentEnd {
    while at + RED_ZONE_BYTES <= size {
        match message(segment, at, number) {
            Some(message) if message.kind == Kind::Cap => return SegmentEnd::Full,
            Some(message) => {
                at = message.end;
                visit(message);
            }
            None => return SegmentEnd::At(at),
        }
    }
    SegmentEnd::Full
}

/// Returns the offsets from `at` on at which a message may begin.
///
/// Skips blocks of zeros, because zero is no kind. Most of an incomplete segment is zeros.
fn candidate_offsets(segment: &[u8], at: usize) -> impl Iterator<Item = usize> {
    const BLOCK_BYTES: usize = 256;
    let kinds = segment.get(at + KIND_AT..).unwrap_or_default();
    let blocks = kinds.chunks(BLOCK_BYTES).enumerate();
    let nonzero = blocks.filter(|(_, block)| block.iter().fold(0, |all, byte| all | byte) != 0);
    nonzero.flat_map(move |(n, block)| (0..block.len()).map(move |each| at + n * BLOCK_BYTES + each))
}

/// Finds the next message, from `at` on, of the segment with this number.
pub fn find_message(segment: &[u8], at: usize, number: u64) -> Option<usize> {
    // Checks one byte of each offset first: few bytes are a kind.
    candidate_offsets(segment, at).find(|at| message(segment, *at, number).is_some())
}

/// Returns whether a message from `at` on was written for a later segment than `number`.
pub fn has_newer(segment: &[u8], at: usize, number: u64) -> bool {
    candidate_offsets(segment, at).any(|at| any_message(segment, at).is_some_and(|(_, found)| found > number))
}

/// Returns the segment number in the first message from `at` on that has a body.
pub fn first_segment_number(segment: &[u8], at: usize) -> Option<u64> {
    candidate_offsets(segment, at)
        .find_map(|at| any_message(segment, at).filter(|(message, _)| !message.body.is_empty()))
        .map(|(_, number)| number)
}

/// Decodes a number of one to nine bytes, and advances `rest`.
pub fn varint(rest: &mut &[u8]) -> Option<u64> {
    let bytes = *rest;
    let (number, length) = match *bytes.first()? {
        first @ 0..=240 => (u64::from(first), 1),
        first @ 241..=248 => (240 + 256 * (u64::from(first) - 241) + u64::from(*bytes.get(1)?), 2),
        249 => (2288 + 256 * u64::from(*bytes.get(1)?) + u64::from(*bytes.get(2)?), 3),
        first => {
            let length = usize::from(first) - 247;
            let mut number = [0; 8];
            number[..length].copy_from_slice(bytes.get(1..=length)?);
            (u64::from_le_bytes(number), length + 1)
        }
    };
    *rest = &bytes[length..];
    Some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn candidate_offsets_include_every_offset_with_a_kind() {
        for from in [0, 3, 255, 256, 300] {
            for kind in [0, 4, 5, 259, 260, 261, 515, 999] {
                let mut segment = vec![0; 1000];
                segment[kind] = 8;
                let wanted = kind.checked_sub(KIND_AT).filter(|at| *at >= from);
                let found: Vec<_> = candidate_offsets(&segment, from).filter(|at| segment[at + KIND_AT] != 0).collect();
                assert_eq!(found, wanted.into_iter().collect::<Vec<_>>(), "from {from}, a kind at {kind}");
            }
        }
        assert_eq!(
            candidate_offsets(&[1; 4], 0).count()
                + candidate_offsets(&[1; 9], 7).count()
                + candidate_offsets(&[], 5).count(),
            0
        );
    }
}
