//! A small file beside the log: how far it went when it was last synced.
//!
//! sled takes a damaged log for one that ends where the damage begins, and one that is older for one that never went on.
//! This tells otherwise. It is written after each sync and never synced itself, so a crash leaves one that says too
//! little, and never one that says too much. One that is not whole says nothing.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::Path,
};

use parking_lot::Mutex;

use super::files::{SEGMENT_BYTES, WATERMARK};

/// Three numbers and a checksum.
const BYTES: usize = 28;

/// What the file says. What it does not say is 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::embedded) struct SyncWatermark {
    /// The last record of the journal that somebody was answered for.
    pub record: u64,
    /// How long the file of the log was.
    pub length: u64,
    /// Where the log ended.
    pub end: u64,
}

impl SyncWatermark {
    /// Reads the file in a store's directory; `None` where there is none that is whole.
    pub fn read(directory: &Path) -> Option<Self> {
        Self::decode(&fs::read(directory.join(WATERMARK)).ok()?)
    }

    /// Whether what is in the file was never written by any of ours. One that is merely not whole may be torn.
    pub fn is_foreign(directory: &Path) -> bool {
        fs::metadata(directory.join(WATERMARK)).is_ok_and(|mark| mark.len() > BYTES as u64)
    }

    /// Whether the file, which has `length` bytes, was longer when it was last synced, and not made shorter by sled:
    /// that cuts off segments at the end when nothing is in them any more, and whole ones.
    pub fn was_longer_than(&self, length: u64) -> bool {
        length < self.length && !length.is_multiple_of(SEGMENT_BYTES as u64)
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let number = |at: usize| Some(u64::from_be_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
        if bytes.len() == 8 {
            // As earlier versions wrote it.
            return Some(Self { record: number(0)?, ..Self::default() });
        }
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

/// The file, open.
pub(in crate::embedded) struct WatermarkFile {
    file: File,
    says: Mutex<SyncWatermark>,
}

impl WatermarkFile {
    pub fn open(directory: &Path) -> io::Result<Self> {
        let file =
            File::options().read(true).write(true).create(true).truncate(false).open(directory.join(WATERMARK))?;
        Ok(Self { file, says: Mutex::new(SyncWatermark::read(directory).unwrap_or_default()) })
    }

    /// Forgets where the log ended, for good: there is to be another.
    pub fn forget_end(directory: &Path) -> io::Result<()> {
        let mark = Self::open(directory)?;
        mark.set_end(0, 0)?;
        mark.file.sync_all()
    }

    pub fn set_record(&self, record: u64) -> io::Result<()> {
        self.write(|says| says.record = record)
    }

    pub fn set_end(&self, length: u64, end: u64) -> io::Result<()> {
        self.write(|says| (says.length, says.end) = (length, end))
    }

    fn write(&self, change: impl FnOnce(&mut SyncWatermark)) -> io::Result<()> {
        let mut says = self.says.lock();
        change(&mut says);
        self.file.write_all_at(&says.encode(), 0)
    }

    pub fn record(&self) -> Option<u64> {
        Some(self.says.lock().record).filter(|record| *record > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_sled_has_cut_is_not_taken_for_a_damaged_one() {
        let segments = |count: u64| count * SEGMENT_BYTES as u64;
        let marked = SyncWatermark { length: segments(7), ..SyncWatermark::default() };
        assert!(!marked.was_longer_than(segments(7)) && !marked.was_longer_than(segments(6)));
        assert!(marked.was_longer_than(segments(6) + 1));
    }

    #[test]
    fn what_is_not_whole_says_nothing_and_what_earlier_versions_wrote_is_read() {
        let marked = SyncWatermark { record: 7, length: 1 << 30, end: 300 };
        let bytes = marked.encode();
        assert_eq!(SyncWatermark::decode(&bytes), Some(marked));
        for at in 0..BYTES {
            let mut torn = bytes;
            torn[at] ^= 1;
            assert_eq!(SyncWatermark::decode(&torn), None);
            assert!(at == 8 || SyncWatermark::decode(&bytes[..at]).is_none());
        }
        assert_eq!(
            SyncWatermark::decode(&9_u64.to_be_bytes()),
            Some(SyncWatermark { record: 9, ..SyncWatermark::default() })
        );
    }
}
