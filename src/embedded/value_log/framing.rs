//! Checksummed frames of the WAL and the value log. A frame can be found again after damage, and damage is detected.
//!
//! Layout: 4 bytes magic, length of the body (u32), checksum of length and body (u32), body. Numbers are big-endian.

use std::{fs::File, io, os::unix::fs::FileExt, path::Path};

/// Bytes of a frame before its body.
pub const HEAD_BYTES: usize = 12;

/// Longest body that is accepted as valid. The longest that is written is far shorter.
const BODY_BYTES_MAX: usize = 1 << 20;

/// Names the content of a frame. The magic numbers are part of the format; the first byte of each is invalid in UTF-8.
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
    let mut bytes = Vec::with_capacity(HEAD_BYTES + length);
    bytes.extend_from_slice(&kind.magic());
    bytes.extend_from_slice(&(length as u32).to_be_bytes());
    bytes.extend_from_slice(&[0; 4]);
    body.iter().for_each(|part| bytes.extend_from_slice(part));
    let crc = checksum(&bytes[4..8], &bytes[HEAD_BYTES..]);
    bytes[8..HEAD_BYTES].copy_from_slice(&crc.to_be_bytes());
    bytes
}

fn checksum(length: &[u8], body: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(length);
    crc.update(body);
    crc.finalize()
}

/// Returns the body of the frame at the beginning of `bytes`; `None` if it is of another kind, incomplete or damaged.
pub fn body(kind: Kind, bytes: &[u8]) -> Option<&[u8]> {
    if bytes.get(..4)? != kind.magic() {
        return None;
    }
    let length = u32::from_be_bytes(bytes.get(4..8)?.try_into().ok()?) as usize;
    let crc = u32::from_be_bytes(bytes.get(8..HEAD_BYTES)?.try_into().ok()?);
    let body = bytes.get(HEAD_BYTES..HEAD_BYTES.checked_add(length)?)?;
    (length <= BODY_BYTES_MAX && checksum(&bytes[4..8], body) == crc).then_some(body)
}

/// Finds the offset of the next frame of this kind, from `at` on.
pub fn find(kind: Kind, bytes: &[u8], at: usize) -> Option<usize> {
    // Fast: few bytes are the first byte of a magic number.
    (at..bytes.len()).find(|at| bytes[*at] == kind.magic()[0] && body(kind, &bytes[*at..]).is_some())
}

/// Reads `length` bytes of a file from `at` on, or fewer at its end.
pub fn read_at(file: &File, at: u64, length: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    let read = fill(file, at, &mut bytes)?;
    bytes.truncate(read);
    Ok(bytes)
}

/// Fills `bytes` from a file, from `at` on. Returns the number of bytes read, which is lower at the end of the file.
pub fn fill(file: &File, at: u64, bytes: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while done < bytes.len() {
        match file.read_at(&mut bytes[done..], at + done as u64) {
            Ok(0) => break,
            Ok(read) => done += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

/// Creates an empty file. Its name is durable once the directory is synced.
pub fn create(directory: &Path, name: &str) -> io::Result<File> {
    File::options().read(true).write(true).create(true).truncate(true).open(directory.join(name))
}

/// Creates a directory of the store, and makes its name durable.
pub fn make_directory(directory: &Path) -> io::Result<()> {
    if directory.is_dir() {
        return Ok(());
    }
    std::fs::create_dir(directory)?;
    directory.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
}

/// Lists the numbers of the files in a directory, ascending. Files with other names are ignored.
pub fn numbered(directory: &Path) -> io::Result<Vec<u64>> {
    let files = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        files => files?,
    };
    let mut numbers = Vec::new();
    for file in files {
        numbers.extend(file?.file_name().to_str().and_then(number_of));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// Returns the name of the file with this number. Names sort as numbers do.
pub fn name(number: u64) -> String {
    format!("{number:016x}")
}

fn number_of(name: &str) -> Option<u64> {
    let number = u64::from_str_radix(name, 16).ok()?;
    (self::name(number) == name).then_some(number)
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

    #[test]
    fn numbered_files_are_listed_in_order_without_others() {
        let home = tempfile::tempdir().unwrap();
        for number in [300, 2, u64::MAX] {
            create(home.path(), &name(number)).unwrap();
        }
        std::fs::write(home.path().join("12"), b"").unwrap();
        assert_eq!(numbered(home.path()).unwrap(), [2, 300, u64::MAX]);
        assert_eq!(numbered(&home.path().join("none")).unwrap(), [0; 0]);
    }
}
