//! Segments of the write-ahead log: append, sync, removal from the oldest end ([`reader`](super::reader) reads them).
//!
//! A segment is a sequence of frames, one for each record: its number, the record up to which all was synced when it
//! was written, and its items. Segments are named by the number of their first record. A segment that is long enough
//! is synced, and a new one begun; one that is not needed any more is removed.
//!
//! After a crash, anything may follow the last synced record: the log ends there. If a later record states that an
//! unreadable one was synced, that is damage. So is an end before the sync watermark in the file `mark`.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use parking_lot::{Mutex, RwLock};

use super::{
    layout::{Opened, RecordLocation, Segment, WalState},
    prepared::{NAME, PreparedSegment},
    replay::{WalScan, scan},
};
use crate::embedded::{
    file_io::{self, create_directory},
    tables::{contract::Cause, space::allocate},
    value_log::framing::{self, HEADER_BYTES, Kind},
};

/// A longer segment is not appended to if another can be begun.
const FILE_BYTES: u64 = 8 << 20;

/// A longer segment is never appended to: offsets have 32 bits.
const FILE_BYTES_MAX: u64 = 1 << 31;

/// Bytes of a frame without its record.
const FRAME_BYTES: u64 = HEADER_BYTES as u64 + 16;

/// The segments, open.
#[derive(Debug)]
pub struct WalFiles {
    pub directory: PathBuf,
    /// The directory, held open so that syncing names needs no descriptor.
    pub names: File,
    pub state: RwLock<WalState>,
    /// The prepared file, if it is open.
    pub prepared: Mutex<PreparedSegment>,
}

impl WalFiles {
    /// Checks that all records behind `flushed` that were ever synced are in `directory`. Changes nothing.
    pub fn check(directory: &Path, flushed: u64, watermark: u64) -> Opened<WalScan> {
        scan(directory, flushed, watermark)
    }

    /// Opens the segments in `directory`, which is created if missing. Records up to `flushed` are not needed. A torn
    /// end after the last whole record is cut off.
    pub fn open(directory: &Path, flushed: u64, watermark: u64) -> Opened<Self> {
        Ok(Self::take_over(directory, scan(directory, flushed, watermark)?)?)
    }

    /// Opens the segments of a scan. Nothing may have written to the directory since.
    pub fn take_over(directory: &Path, scan: WalScan) -> io::Result<Self> {
        create_directory(directory)?;
        let names = File::open(directory)?;
        let WalScan { flushed, mut state, done, cut } = scan;
        for first in &done {
            fs::remove_file(directory.join(file_io::file_name(*first)))?;
        }
        if !done.is_empty() {
            // If a removed name came back, it would state a wrong end of the segment before it.
            names.sync_all()?;
        }
        if let (Some(cut), Some(last)) = (cut, state.files.back()) {
            last.file.set_len(cut)?;
            last.file.sync_data()?;
        }
        if let Some(last) = state.files.back_mut() {
            last.length = cut.unwrap_or(last.length);
            // The process that wrote it may not have synced it.
            last.file.sync_data()?;
        }
        state.synced = state.last().unwrap_or(0).max(flushed);
        // Opened now, while there are enough descriptors.
        let prepared = Mutex::new(PreparedSegment::new(directory));
        Ok(Self { directory: directory.to_owned(), names, state: RwLock::new(state), prepared })
    }

    /// Writes the next record; the system has it on return, unsynced. If the disk is full, nothing of it counts, and
    /// the caller may retry.
    pub fn append(&self, number: u64, value: &[u8]) -> io::Result<()> {
        self.begin_file_if_full(number, value.len() as u64)?;
        let mut state = self.state.write();
        let next = state.last().map_or(number, |last| last + 1);
        if number != next {
            return Err(io::Error::other(format!("record {number} does not follow, {next} would")));
        }
        let bytes = framing::encode(Kind::Record, &[&number.to_be_bytes(), &state.synced.to_be_bytes(), value]);
        let file = state.files.back_mut().ok_or_else(|| io::Error::other("there is no file to write to"))?;
        if let Err(error) = file.file.write_all_at(&bytes, file.length) {
            if Cause::of(&error) != Cause::Failed {
                // A part of it may be written. The next write may be shorter.
                file.file.set_len(file.length).map_err(io::Error::other)?;
                file.allocated = file.length;
            }
            return Err(error);
        }
        let location = RecordLocation { file: file.first, at: file.length as u32, length: bytes.len() as u32 };
        file.length += bytes.len() as u64;
        if state.locations.is_empty() {
            state.first = number;
        }
        state.locations.push_back(location);
        Ok(())
    }

    /// Syncs all records, and returns the last synced one. `sync` syncs a file.
    pub fn sync(&self, sync: impl FnOnce(&File) -> io::Result<()>) -> io::Result<u64> {
        let (file, last) = {
            let state = self.state.read();
            match (state.files.back(), state.last()) {
                (Some(file), Some(last)) if last > state.synced => (file.file.clone(), last),
                _ => return Ok(state.synced),
            }
        };
        // Without the lock, so that readers do not wait for the disk.
        sync(&file)?;
        self.state.write().synced = last;
        Ok(last)
    }

    /// Numbers of the first and the last record.
    pub fn ends(&self) -> Option<(u64, u64)> {
        let state = self.state.read();
        Some((state.first, state.last()?))
    }

    /// Removes the first record.
    pub fn remove(&self, number: u64) {
        let mut state = self.state.write();
        if state.locations.is_empty() || number != state.first {
            return;
        }
        state.locations.pop_front();
        state.first += 1;
        // The last segment stays: it is appended to.
        while state.files.get(1).is_some_and(|next| next.first <= state.first) {
            let Some(done) = state.files.pop_front() else { break };
            if let Err(error) = fs::remove_file(self.directory.join(file_io::file_name(done.first))) {
                // It is not needed: the next start removes it.
                tracing::warn!(%error, file = %file_io::file_name(done.first), "cannot remove a WAL segment; the next start removes it");
            }
        }
    }

    /// Removes the last record, which was never answered, without a trace. Only during recovery, before any reader.
    pub fn roll_back(&self, number: u64) -> io::Result<()> {
        let mut state = self.state.write();
        if state.last() != Some(number) {
            return Ok(());
        }
        let Some(location) = state.locations.pop_back() else { return Ok(()) };
        state.synced = state.synced.min(number - 1);
        while state.files.back().is_some_and(|file| file.first > location.file) {
            let Some(emptied) = state.files.pop_back() else { break };
            fs::remove_file(self.directory.join(file_io::file_name(emptied.first)))?;
            self.names.sync_all()?;
        }
        let Some(file) = state.files.back_mut() else { return Ok(()) };
        file.file.set_len(u64::from(location.at))?;
        file.file.sync_data()?;
        (file.length, file.allocated) = (u64::from(location.at), u64::from(location.at));
        Ok(())
    }
}

impl WalFiles {
    /// Opens the next file, if it is not open. Call this periodically.
    pub fn prepare(&self) {
        self.prepared.lock().prepare(&self.directory);
    }

    /// Reserves disk space for `bytes` of records, the first of which will be `number`.
    ///
    /// # Errors
    /// When there is no space, or no segment and no descriptor for one. Nothing has changed then.
    pub fn reserve(&self, number: u64, bytes: u64) -> io::Result<()> {
        let is_full = match self.state.read().files.back() {
            Some(last) if last.length < FILE_BYTES && last.length + bytes <= last.allocated => return Ok(()),
            last => last.is_none_or(|last| last.length >= FILE_BYTES),
        };
        if is_full {
            self.begin_file(number)?;
        }
        let (file, length, allocated) = {
            let state = self.state.read();
            let last = state.files.back().ok_or_else(|| io::Error::other("there is no file to write to"))?;
            (last.file.clone(), last.length, last.allocated)
        };
        let mut end = length + bytes;
        if end <= allocated {
            return Ok(());
        }
        // Where the file system cannot allocate, the space is assumed, and a write may fail.
        if end < FILE_BYTES && allocate(&file, length, FILE_BYTES).is_ok() {
            end = FILE_BYTES;
        } else {
            allocate(&file, length, end)?;
        }
        if let Some(last) = self.state.write().files.back_mut() {
            last.allocated = end;
        }
        Ok(())
    }

    /// Returns the disk space that `bytes` of records need beyond what is reserved.
    pub fn bytes_required(&self, bytes: u64) -> u64 {
        match self.state.read().files.back() {
            None => FILE_BYTES.max(bytes),
            // If no file can be begun, the last one grows.
            Some(last) => (last.length + bytes).saturating_sub(last.allocated.max(last.length)),
        }
    }

    /// Begins a new segment for a record of `bytes`, if there is none or the last is long enough and has no space
    /// reserved for it.
    pub(super) fn begin_file_if_full(&self, number: u64, bytes: u64) -> io::Result<()> {
        let state = self.state.read();
        let goes_on = state
            .files
            .back()
            .is_some_and(|last| last.length < FILE_BYTES || last.length + bytes + FRAME_BYTES <= last.allocated);
        drop(state);
        if goes_on { Ok(()) } else { self.begin_file(number) }
    }

    /// Begins a new segment if possible, or keeps the last. Without the lock: readers need not wait for the disk, and
    /// there is one writer.
    fn begin_file(&self, number: u64) -> io::Result<()> {
        let last = self.state.read().files.back().map(|file| (file.file.clone(), file.length));
        let file = match self.open_next(number) {
            Err(error) if Cause::of(&error) != Cause::Failed => {
                return if last.is_some_and(|(_, length)| length < FILE_BYTES_MAX) { Ok(()) } else { Err(error) };
            }
            file => Arc::new(file?),
        };
        self.names.sync_all().map_err(io::Error::other)?;
        let synced = last.map(|(file, _)| file.sync_data()).transpose().map_err(io::Error::other)?.map(|()| number - 1);
        let mut state = self.state.write();
        state.synced = state.synced.max(synced.unwrap_or(0));
        state.files.push_back(Segment { first: number, file, length: 0, allocated: FILE_BYTES });
        Ok(())
    }

    /// Creates the segment with its disk space allocated.
    fn open_next(&self, number: u64) -> io::Result<File> {
        let mut prepared = self.prepared.lock();
        prepared.failed = None;
        prepared.prepare(&self.directory);
        let Some(file) = &prepared.file else {
            // Again, for the error.
            return file_io::create(&self.directory, &file_io::file_name(number));
        };
        allocate(file, 0, FILE_BYTES)?;
        fs::rename(self.directory.join(NAME), self.directory.join(file_io::file_name(number)))?;
        prepared.file.take().ok_or_else(|| io::Error::other("the prepared segment is missing"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::embedded::wal::layout::OpenError;

    fn open(path: &Path, flushed: u64, watermark: u64) -> Opened<WalFiles> {
        WalFiles::check(path, flushed, watermark)?;
        WalFiles::open(path, flushed, watermark)
    }

    fn numbers(files: &WalFiles) -> Vec<u64> {
        let (first, last) = files.ends().unwrap_or((1, 0));
        let value = |number| files.get(number).unwrap().unwrap();
        (first..=last).inspect(|number| assert_eq!(value(*number)[..8], number.to_be_bytes())).collect()
    }

    fn append(files: &WalFiles, numbers: std::ops::RangeInclusive<u64>, bytes: usize) {
        for number in numbers {
            let mut value = number.to_be_bytes().to_vec();
            value.resize(bytes.max(8), 7);
            files.append(number, &value).unwrap();
        }
    }

    fn sync(files: &WalFiles) {
        _ = files.sync(File::sync_data).unwrap();
    }

    fn damage(path: &Path, name: u64, change: impl FnOnce(&mut Vec<u8>)) {
        let path = path.join(file_io::file_name(name));
        let mut bytes = fs::read(&path).unwrap();
        change(&mut bytes);
        fs::write(&path, bytes).unwrap();
    }

    fn damaged_record(opened: Opened<WalFiles>) -> Option<u64> {
        match opened {
            Ok(_) => None,
            Err(OpenError::Damage(damage)) => Some(damage.number),
            Err(OpenError::Io(error)) => panic!("{error}"),
        }
    }

    #[test]
    fn open_keeps_synced_records_and_cuts_torn_end() {
        let home = tempfile::tempdir().unwrap();
        let files = open(home.path(), 0, 0).unwrap_or_else(|_| panic!("an empty directory opens"));
        append(&files, 1..=5, 100);
        sync(&files);
        append(&files, 6..=7, 100);
        drop(files);
        damage(home.path(), 1, |bytes| {
            let torn = bytes.len() - 200;
            bytes[torn] ^= 1;
        });
        let files = open(home.path(), 0, 5).unwrap_or_else(|_| panic!("record 6 was never synced"));
        assert_eq!(numbers(&files), [1, 2, 3, 4, 5]);
        append(&files, 6..=6, 50);
        sync(&files);
        drop(files);
        assert_eq!(damaged_record(open(home.path(), 0, 7)), Some(7), "the watermark states record 7");
        let files = open(home.path(), 0, 6).unwrap_or_else(|_| panic!("all records are there"));
        assert_eq!(numbers(&files), [1, 2, 3, 4, 5, 6]);
        files.roll_back(6).unwrap();
        files.roll_back(5).unwrap();
        assert_eq!(files.sync(|_| Err(io::Error::other("a sync without new records"))).unwrap(), 4);
        append(&files, 5..=5, 50);
        assert!(files.sync(|_| Err(io::Error::other("a failing sync"))).is_err());
        files.roll_back(5).unwrap();
        drop(files);
        let files = open(home.path(), 0, 4).unwrap_or_else(|_| panic!("a rolled back record is no damage"));
        assert_eq!(numbers(&files), [1, 2, 3, 4]);
    }

    // covers: G6
    #[test]
    fn damage_is_detected_by_later_records_without_watermark() {
        let home = tempfile::tempdir().unwrap();
        let files = open(home.path(), 0, 0).unwrap_or_else(|_| panic!("an empty directory opens"));
        for number in 1..=40 {
            append(&files, number..=number, 500_000);
            sync(&files);
        }
        drop(files);
        let names = file_io::file_numbers(home.path()).unwrap();
        assert_eq!(names, [1, 18, 35]);
        let whole: Vec<_> =
            names.iter().map(|name| fs::read(home.path().join(file_io::file_name(*name))).unwrap()).collect();
        let restore = || {
            for (name, bytes) in names.iter().zip(&whole) {
                fs::write(home.path().join(file_io::file_name(*name)), bytes).unwrap();
            }
        };
        for (name, at, number) in [(1, 0, 1), (1, 3_000_000, 6), (18, 600_000, 19), (35, 600_000, 36)] {
            damage(home.path(), name, |bytes| bytes[at] ^= 16);
            assert_eq!(damaged_record(open(home.path(), 0, 0)), Some(number), "{name} at {at}");
            restore();
        }
        for missing in [1, 18] {
            fs::remove_file(home.path().join(file_io::file_name(missing))).unwrap();
            assert_eq!(damaged_record(open(home.path(), 0, 0)), Some(missing));
            restore();
        }
        // Damage of flushed records does not matter.
        damage(home.path(), 18, |bytes| bytes[600_000] ^= 16);
        let files = open(home.path(), 20, 40).unwrap_or_else(|_| panic!("only flushed records are damaged"));
        assert_eq!(numbers(&files), (21..=40).collect::<Vec<_>>());
        assert_eq!(file_io::file_numbers(home.path()).unwrap(), [18, 35]);
        drop(files);
        let files = open(home.path(), 40, 40).unwrap_or_else(|_| panic!("all records are flushed"));
        assert_eq!((files.ends(), file_io::file_numbers(home.path()).unwrap()), (None, vec![]));
    }

    #[test]
    fn rollback_across_two_segments_leaves_valid_files() {
        let home = tempfile::tempdir().unwrap();
        let files = open(home.path(), 0, 0).unwrap_or_else(|_| panic!("an empty directory opens"));
        append(&files, 1..=20, 500_000);
        assert_eq!(file_io::file_numbers(home.path()).unwrap(), [1, 18]);
        (15..=20).rev().for_each(|number| files.roll_back(number).unwrap());
        append(&files, 15..=30, 50_000);
        sync(&files);
        drop(files);
        // A power cut may bring a removed name back.
        fs::write(home.path().join(file_io::file_name(18)), b"").unwrap();
        let files = open(home.path(), 20, 30).unwrap_or_else(|_| panic!("all records are there"));
        assert_eq!(numbers(&files), (21..=30).collect::<Vec<_>>());
    }

    #[test]
    fn rolled_back_only_record_can_be_written_again() {
        let home = tempfile::tempdir().unwrap();
        let files = open(home.path(), 0, 0).unwrap_or_else(|_| panic!("an empty directory opens"));
        append(&files, 1..=60, 100);
        (1..=60).for_each(|number| files.remove(number));
        append(&files, 61..=62, 100);
        drop(files);
        let files = open(home.path(), 60, 60).unwrap_or_else(|_| panic!("all records are there"));
        files.roll_back(62).unwrap();
        files.roll_back(61).unwrap();
        append(&files, 61..=61, 300);
        sync(&files);
        drop(files);
        let files = open(home.path(), 60, 61).unwrap_or_else(|_| panic!("record 61 is there"));
        assert_eq!((numbers(&files), files.get(61).unwrap().unwrap().len()), (vec![61], 300));
    }

    #[test]
    fn segment_without_records_is_removed() {
        let home = tempfile::tempdir().unwrap();
        let files = open(home.path(), 9, 9).unwrap_or_else(|_| panic!("an empty directory opens"));
        append(&files, 10..=60, 500_000);
        for number in 10..=60 {
            files.remove(number);
        }
        assert_eq!(
            (files.ends(), file_io::file_numbers(home.path()).unwrap().len()),
            (None, 1),
            "the last segment stays"
        );
        append(&files, 61..=61, 100);
        assert_eq!(numbers(&files), [61]);
        sync(&files);
        drop(files);
        assert_eq!(numbers(&open(home.path(), 60, 61).unwrap_or_else(|_| panic!("record 61 is there"))), [61]);
    }
}
