//! The sync watermark: a small file that states how far the WAL and sled's log were synced.
//!
//! sled treats a damaged log as one that ends where the damage begins, and an older log as complete. The watermark detects
//! both. It is written after each sync and never synced itself. So a crash may leave a watermark that is too low, never one
//! that is too high. An incomplete watermark is ignored.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::Path,
};

use parking_lot::Mutex;

use super::files::{SEGMENT_BYTES, WATERMARK};

/// Size of the file: three numbers and a checksum.
const BYTES: usize = 28;

/// Holds the values of the file. A value that the file does not state is 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::embedded) struct SyncWatermark {
    /// The last WAL record that was synced.
    pub record: u64,
    /// Length of sled's file in bytes.
    pub length: u64,
    /// Position at which sled's log ended.
    pub end: u64,
}

impl SyncWatermark {
    /// Reads the file in a store's directory. Returns `None` if it is missing or incomplete.
    pub fn read(directory: &Path) -> Option<Self> {
        Self::decode(&fs::read(directory.join(WATERMARK)).ok()?)
    }

    /// Returns whether no version of mesa can have written the file. A shorter file may be a torn write.
    pub fn is_foreign(directory: &Path) -> bool {
        fs::metadata(directory.join(WATERMARK)).is_ok_and(|mark| mark.len() > BYTES as u64)
    }

    /// Returns whether sled's file, now of `length` bytes, lost bytes since it was last synced.
    ///
    /// sled itself truncates the file by whole segments that are empty.
    pub fn was_longer_than(&self, length: u64) -> bool {
        length < self.length && !length.is_multiple_of(SEGMENT_BYTES as u64)
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let number = |at: usize| Some(u64::from_be_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
        let (numbers, crc) = bytes.split_last_chunk::<4>()?;
        let whole = bytes.len() == BYTES && crc32fast::hash(numbers) == u32::from_be_bytes(*crc);
        whole.then_some(Self { record: number(0)?, length: number(8)?, end: number(16)? })
    }

    fn encode(&self) -> [u8; BYTES] {
        let mut bytes = [0; BYTES];
        for (at, number) in [self.record, self.length, self.end].into_iter().enumerate() {
            bytes[at * 8..at * 8 + 8].copy_from_slice(&number.to_be_bytes());
        }
        let crc = crc32fast::hash(&bytes[..BYTES - 4]);
        bytes[BYTES - 4..].copy_from_slice(&crc.to_be_bytes());
        bytes
    }
}

/// Writes the watermark file.
pub(in crate::embedded) struct WatermarkFile {
    file: File,
    values: Mutex<SyncWatermark>,
}

impl WatermarkFile {
    pub fn open(directory: &Path) -> io::Result<Self> {
        let file =
            File::options().read(true).write(true).create(true).truncate(false).open(directory.join(WATERMARK))?;
        Ok(Self { file, values: Mutex::new(SyncWatermark::read(directory).unwrap_or_default()) })
    }

    /// Clears the end of sled's log, durably, before another log replaces it.
    pub fn clear_end(directory: &Path) -> io::Result<()> {
        let mark = Self::open(directory)?;
        mark.set_end(0, 0)?;
        mark.file.sync_all()
    }

    pub fn set_record(&self, record: u64) -> io::Result<()> {
        self.write(|values| values.record = record)
    }

    pub fn set_end(&self, length: u64, end: u64) -> io::Result<()> {
        self.write(|values| (values.length, values.end) = (length, end))
    }

    fn write(&self, change: impl FnOnce(&mut SyncWatermark)) -> io::Result<()> {
        let mut values = self.values.lock();
        change(&mut values);
        self.file.write_all_at(&values.encode(), 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_truncated_by_sled_is_not_damage() {
        let segments = |count: u64| count * SEGMENT_BYTES as u64;
        let marked = SyncWatermark { length: segments(7), ..SyncWatermark::default() };
        assert!(!marked.was_longer_than(segments(7)) && !marked.was_longer_than(segments(6)));
        assert!(marked.was_longer_than(segments(6) + 1));
    }

    #[test]
    fn incomplete_watermark_is_ignored() {
        let marked = SyncWatermark { record: 7, length: 1 << 30, end: 300 };
        let bytes = marked.encode();
        assert_eq!(SyncWatermark::decode(&bytes), Some(marked));
        for at in 0..BYTES {
            let mut torn = bytes;
            torn[at] ^= 1;
            assert_eq!(SyncWatermark::decode(&torn), None);
            assert_eq!(SyncWatermark::decode(&bytes[..at]), None);
        }
    }
}
