//! The sync watermark: a small file that states how far the WAL and sled's log were synced.
//!
//! sled takes the beginning of damage for the end of its log, and an older log for a complete one. The watermark
//! detects both. The length of sled's file is no evidence: sled truncates empty segments and extends the file again, and a
//! power cut in between leaves a shorter file that has lost nothing.
//!
//! The watermark is not synced itself. So a crash may leave a watermark that is too low, but none that is too high.
//! An incomplete watermark is ignored.
//!
//! It is written after each sync of sled's file, and at most every [`WRITE_INTERVAL`] after a sync of the WAL: a write
//! for each commit would add a system call to each. Once it is idle, the commit thread writes a pending watermark within
//! twice that interval. Damage of what was synced within this time before a kill may be taken for a torn end.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::Path,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use super::files::WATERMARK;

/// Size of the file in bytes: three numbers, of which the second is unused, and a checksum.
const FILE_BYTES: usize = 28;

/// Shortest time between two writes for synced WAL records.
pub(in crate::embedded) const WRITE_INTERVAL: Duration = Duration::from_millis(100);

/// Holds the values of the file; 0 = unknown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::embedded) struct SyncWatermark {
    /// The last WAL record that was synced.
    pub record: u64,
    /// Log position at which sled's log ended.
    pub end: u64,
}

impl SyncWatermark {
    /// Reads the file in a store's directory. Returns `None` if it is missing or incomplete.
    pub fn read(directory: &Path) -> Option<Self> {
        Self::decode(&fs::read(directory.join(WATERMARK)).ok()?)
    }

    /// Returns whether another program wrote the file: it is too long. A shorter file may be a torn write.
    pub fn is_foreign(directory: &Path) -> bool {
        fs::metadata(directory.join(WATERMARK)).is_ok_and(|file| file.len() > FILE_BYTES as u64)
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let number = |at: usize| Some(u64::from_be_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
        let (numbers, crc) = bytes.split_last_chunk::<4>()?;
        let is_intact = bytes.len() == FILE_BYTES && crc32fast::hash(numbers) == u32::from_be_bytes(*crc);
        is_intact.then_some(Self { record: number(0)?, end: number(16)? })
    }

    fn encode(&self) -> [u8; FILE_BYTES] {
        let mut bytes = [0; FILE_BYTES];
        for (at, number) in [self.record, 0, self.end].into_iter().enumerate() {
            bytes[at * 8..at * 8 + 8].copy_from_slice(&number.to_be_bytes());
        }
        let crc = crc32fast::hash(&bytes[..FILE_BYTES - 4]);
        bytes[FILE_BYTES - 4..].copy_from_slice(&crc.to_be_bytes());
        bytes
    }
}

/// Writes the watermark file.
pub(in crate::embedded) struct WatermarkFile {
    file: File,
    state: Mutex<WatermarkState>,
}

struct WatermarkState {
    values: SyncWatermark,
    /// Time of the last write.
    written: Instant,
    /// The file has older values.
    is_behind: bool,
}

impl WatermarkFile {
    pub fn open(directory: &Path) -> io::Result<Self> {
        let file =
            File::options().read(true).write(true).create(true).truncate(false).open(directory.join(WATERMARK))?;
        let values = SyncWatermark::read(directory).unwrap_or_default();
        Ok(Self { file, state: Mutex::new(WatermarkState { values, written: Instant::now(), is_behind: false }) })
    }

    /// Clears the end of sled's log, durably, before another log replaces it.
    pub fn clear_end(directory: &Path) -> io::Result<()> {
        let watermark = Self::open(directory)?;
        watermark.set_end(0)?;
        watermark.file.sync_all()
    }

    /// Sets the last synced record. Writes it at once, or with a later call.
    pub fn set_record(&self, record: u64) -> io::Result<()> {
        {
            let mut state = self.state.lock();
            state.is_behind |= state.values.record != record;
            state.values.record = record;
        }
        self.write_if_due()
    }

    /// Sets the end of sled's log, and writes all values.
    pub fn set_end(&self, end: u64) -> io::Result<()> {
        let mut state = self.state.lock();
        state.values.end = end;
        self.write(&mut state)
    }

    /// Writes values that are not written yet, [`WRITE_INTERVAL`] after the last write. Call this periodically.
    pub fn write_if_due(&self) -> io::Result<()> {
        let mut state = self.state.lock();
        if state.is_behind && state.written.elapsed() >= WRITE_INTERVAL { self.write(&mut state) } else { Ok(()) }
    }

    fn write(&self, state: &mut WatermarkState) -> io::Result<()> {
        // Also after an error, so that a full disk does not add a failing call to each commit.
        state.written = Instant::now();
        self.file.write_all_at(&state.values.encode(), 0)?;
        state.is_behind = false;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_written_at_intervals_and_with_the_end() {
        let home = tempfile::tempdir().unwrap();
        let file = WatermarkFile::open(home.path()).unwrap();
        let record = || SyncWatermark::read(home.path()).unwrap_or_default().record;
        let make_due = || file.state.lock().written -= WRITE_INTERVAL;
        make_due();
        file.set_record(1).unwrap();
        assert_eq!(record(), 1);
        // As if no time had passed, however slow the machine is.
        file.state.lock().written = Instant::now() + Duration::from_secs(60);
        file.set_record(2).unwrap();
        assert_eq!(record(), 1);
        file.set_end(7).unwrap();
        assert_eq!(record(), 2, "the end is written at once, with the record");
        file.state.lock().written = Instant::now() + Duration::from_secs(60);
        file.set_record(3).unwrap();
        file.state.lock().written = Instant::now();
        make_due();
        file.write_if_due().unwrap();
        assert_eq!(record(), 3);
    }

    #[test]
    fn incomplete_watermark_is_ignored() {
        let watermark = SyncWatermark { record: 7, end: 300 };
        let bytes = watermark.encode();
        assert_eq!(SyncWatermark::decode(&bytes), Some(watermark));
        for at in 0..FILE_BYTES {
            let mut torn = bytes;
            torn[at] ^= 1;
            assert_eq!(SyncWatermark::decode(&torn), None);
            assert_eq!(SyncWatermark::decode(&bytes[..at]), None);
        }
    }
}
