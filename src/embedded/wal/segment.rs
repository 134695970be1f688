//! The journal's records, in files of their own: appended, synced, and let go from the old end ([`runs`](super::reader) reads
//! them).
//!
//! A file is frames, one a record: its number, up to which record all was synced when it was written, and what it says.
//! Files are named by the number of their first record. A file that is long enough is synced and a new one begun; one
//! of which nothing is needed is removed.
//!
//! What a crash leaves behind the last record that was synced may be anything: it ends there. But where a later record
//! says that an earlier one was synced, and that one cannot be read, that is damage. So is an end before what the file
//! `mark` says was synced.

use std::{
    collections::VecDeque,
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use parking_lot::{Mutex, RwLock};

use super::{
    replay::{Broken, Survey, survey},
    spare::Spare,
};
use crate::embedded::{
    tables::contract::Cause,
    value_log::framing::{self, HEAD_BYTES, Kind, make_directory},
};

/// A record as it stands in a file.
#[derive(Debug)]
pub struct Record<'a> {
    pub number: u64,
    /// When it was written, everything up to this record was synced.
    pub synced: u64,
    pub value: &'a [u8],
    /// Where the next one begins.
    pub end: usize,
}

/// The record that begins at `at`, if one does.
pub fn record_at(bytes: &[u8], at: usize) -> Option<Record<'_>> {
    let body = framing::body(Kind::Record, bytes.get(at..)?)?;
    let (number, rest) = body.split_first_chunk()?;
    let (synced, value) = rest.split_first_chunk()?;
    let (number, synced) = (u64::from_be_bytes(*number), u64::from_be_bytes(*synced));
    Some(Record { number, synced, value, end: at + HEAD_BYTES + body.len() })
}

/// Where a record is.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// The first record of its file.
    pub file: u64,
    pub at: u32,
    /// Bytes of the whole frame.
    pub length: u32,
}

impl Place {
    /// Where its frame ends.
    pub fn end(self) -> u32 {
        self.at + self.length
    }
}

#[derive(Debug)]
pub struct RecordFile {
    pub first: u64,
    pub file: Arc<File>,
    pub length: u64,
    /// Its blocks go up to here.
    pub allocated: u64,
}

#[derive(Debug, Default)]
pub struct Inside {
    /// Oldest first. The last is written to.
    pub files: VecDeque<RecordFile>,
    /// Of record `first` and those behind it.
    pub(super) places: VecDeque<Place>,
    pub(super) first: u64,
    /// All up to this are synced.
    pub synced: u64,
}

impl Inside {
    /// Where a record is, and its file.
    pub fn place(&self, number: u64) -> Option<(&RecordFile, Place)> {
        let at = number.checked_sub(self.first)?;
        let place = *self.places.get(usize::try_from(at).ok()?)?;
        // They are named by their first records, and there are never many.
        Some((self.files.iter().rev().find(|file| file.first == place.file)?, place))
    }

    pub fn last(&self) -> Option<u64> {
        Some(self.first + self.places.len() as u64 - 1).filter(|_| !self.places.is_empty())
    }
}

/// The files, open.
#[derive(Debug)]
pub struct RecordFiles {
    pub directory: PathBuf,
    /// The directory, open: to sync names takes no descriptor then.
    pub names: File,
    pub inside: RwLock<Inside>,
    /// The file that is begun next, if it is open.
    pub spare: Mutex<Spare>,
}

/// What opening came to.
pub type Opened<T> = Result<T, Broken>;

impl RecordFiles {
    /// Whether what is in `directory` is what was written: all behind record `settled` that was ever synced is there.
    /// Changes nothing.
    pub fn check(directory: &Path, settled: u64, marked: u64) -> Opened<Survey> {
        survey(directory, settled, marked)
    }

    /// Opens the files in `directory`, which is made if it is not there. What is up to record `settled` is not needed;
    /// what a crash has left behind the last whole record is cut off.
    pub fn open(directory: &Path, settled: u64, marked: u64) -> Opened<Self> {
        Ok(Self::take_over(directory, survey(directory, settled, marked)?)?)
    }

    /// The same, of what was looked at before. Nobody has written there since.
    pub fn take_over(directory: &Path, survey: Survey) -> io::Result<Self> {
        make_directory(directory)?;
        let names = File::open(directory)?;
        let Survey { settled, mut inside, done, cut } = survey;
        for first in &done {
            fs::remove_file(directory.join(framing::name(*first)))?;
        }
        if !done.is_empty() {
            // One that came back would say by its name that the one before it ends where it does not any more.
            names.sync_all()?;
        }
        if let (Some(cut), Some(last)) = (cut, inside.files.back()) {
            last.file.set_len(cut)?;
            last.file.sync_data()?;
        }
        if let Some(last) = inside.files.back_mut() {
            last.length = cut.unwrap_or(last.length);
            // What was not synced by who wrote it is now.
            last.file.sync_data()?;
        }
        inside.synced = inside.last().unwrap_or(0).max(settled);
        // Now, while there are descriptors enough.
        let spare = Mutex::new(Spare::new(directory));
        Ok(Self { directory: directory.to_owned(), names, inside: RwLock::new(inside), spare })
    }

    /// Writes the record behind the last. The system has it then. Where the disk is full nothing of it counts, and the
    /// caller may repeat it.
    pub fn append(&self, number: u64, value: &[u8]) -> io::Result<()> {
        self.begin_file_if_full(number, value.len() as u64)?;
        let mut inside = self.inside.write();
        let next = inside.last().map_or(number, |last| last + 1);
        if number != next {
            return Err(io::Error::other(format!("record {number} does not follow, {next} would")));
        }
        let bytes = framing::encode(Kind::Record, &[&number.to_be_bytes(), &inside.synced.to_be_bytes(), value]);
        let file = inside.files.back_mut().ok_or_else(|| io::Error::other("there is no file to write to"))?;
        if let Err(error) = file.file.write_all_at(&bytes, file.length) {
            if Cause::of(&error) != Cause::Failed {
                // A part of it may be there. What is written next may be shorter.
                file.file.set_len(file.length).map_err(io::Error::other)?;
                file.allocated = file.length;
            }
            return Err(error);
        }
        let place = Place { file: file.first, at: file.length as u32, length: bytes.len() as u32 };
        file.length += bytes.len() as u64;
        if inside.places.is_empty() {
            inside.first = number;
        }
        inside.places.push_back(place);
        Ok(())
    }

    /// Makes all records last, and returns the last that does. `sync` syncs a file.
    pub fn sync(&self, sync: impl FnOnce(&File) -> io::Result<()>) -> io::Result<u64> {
        let (file, last) = {
            let inside = self.inside.read();
            match (inside.files.back(), inside.last()) {
                (Some(file), Some(last)) if last > inside.synced => (file.file.clone(), last),
                _ => return Ok(inside.synced),
            }
        };
        // Without the lock, as above.
        sync(&file)?;
        self.inside.write().synced = last;
        Ok(last)
    }

    /// Numbers of the first and the last record.
    pub fn ends(&self) -> Option<(u64, u64)> {
        let inside = self.inside.read();
        Some((inside.first, inside.last()?))
    }

    /// Removes the first record.
    pub fn remove(&self, number: u64) {
        let mut inside = self.inside.write();
        if inside.places.is_empty() || number != inside.first {
            return;
        }
        inside.places.pop_front();
        inside.first += 1;
        // The last file stays: it is written to.
        while inside.files.get(1).is_some_and(|next| next.first <= inside.first) {
            let Some(done) = inside.files.pop_front() else { break };
            if let Err(error) = fs::remove_file(self.directory.join(framing::name(done.first))) {
                // Nothing is needed of it: the next start removes it.
                tracing::warn!(%error, file = %framing::name(done.first), "cannot remove a file of the journal");
            }
        }
    }

    /// Takes back the last record, which was never synced for anybody: nothing is left of it. Only before others read.
    pub fn take_back(&self, number: u64) -> io::Result<()> {
        let mut inside = self.inside.write();
        if inside.last() != Some(number) {
            return Ok(());
        }
        let Some(place) = inside.places.pop_back() else { return Ok(()) };
        inside.synced = inside.synced.min(number - 1);
        while inside.files.back().is_some_and(|file| file.first > place.file) {
            let Some(emptied) = inside.files.pop_back() else { break };
            fs::remove_file(self.directory.join(framing::name(emptied.first)))?;
            self.names.sync_all()?;
        }
        let Some(file) = inside.files.back_mut() else { return Ok(()) };
        file.file.set_len(u64::from(place.at))?;
        file.file.sync_data()?;
        (file.length, file.allocated) = (u64::from(place.at), u64::from(place.at));
        Ok(())
    }
}

pub(super) fn place_of(directory: &Path, first: u64) -> String {
    let own = directory.file_name().unwrap_or_default().to_string_lossy();
    format!("{own}/{}", framing::name(first))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(path: &Path, settled: u64, marked: u64) -> Opened<RecordFiles> {
        RecordFiles::check(path, settled, marked)?;
        RecordFiles::open(path, settled, marked)
    }

    fn numbers(files: &RecordFiles) -> Vec<u64> {
        let (first, last) = files.ends().unwrap_or((1, 0));
        let value = |number| files.get(number).unwrap().unwrap();
        (first..=last).inspect(|number| assert_eq!(value(*number)[..8], number.to_be_bytes())).collect()
    }

    fn append(files: &RecordFiles, numbers: std::ops::RangeInclusive<u64>, bytes: usize) {
        for number in numbers {
            let mut value = number.to_be_bytes().to_vec();
            value.resize(bytes.max(8), 7);
            files.append(number, &value).unwrap();
        }
    }

    fn sync(files: &RecordFiles) {
        _ = files.sync(File::sync_data).unwrap();
    }

    fn damage(path: &Path, name: u64, change: impl FnOnce(&mut Vec<u8>)) {
        let path = path.join(framing::name(name));
        let mut bytes = fs::read(&path).unwrap();
        change(&mut bytes);
        fs::write(&path, bytes).unwrap();
    }

    fn told(opened: Opened<RecordFiles>) -> Option<u64> {
        match opened {
            Ok(_) => None,
            Err(Broken::Damage(broken)) => Some(broken.number),
            Err(Broken::Io(error)) => panic!("{error}"),
        }
    }

    #[test]
    fn what_was_synced_is_there_and_what_a_crash_has_torn_is_cut_off() {
        let home = tempfile::tempdir().unwrap();
        let files = open(home.path(), 0, 0).unwrap_or_else(|_| panic!("nothing is there"));
        append(&files, 1..=5, 100);
        sync(&files);
        append(&files, 6..=7, 100);
        drop(files);
        damage(home.path(), 1, |bytes| {
            let torn = bytes.len() - 200;
            bytes[torn] ^= 1;
        });
        let files = open(home.path(), 0, 5).unwrap_or_else(|_| panic!("6 was never synced"));
        assert_eq!(numbers(&files), [1, 2, 3, 4, 5]);
        append(&files, 6..=6, 50);
        sync(&files);
        drop(files);
        assert_eq!(told(open(home.path(), 0, 7)), Some(7), "the mark knows of more");
        let files = open(home.path(), 0, 6).unwrap_or_else(|_| panic!("all is there"));
        assert_eq!(numbers(&files), [1, 2, 3, 4, 5, 6]);
        files.take_back(6).unwrap();
        files.take_back(5).unwrap();
        assert_eq!(files.sync(|_| Err(io::Error::other("there is nothing to sync"))).unwrap(), 4);
        append(&files, 5..=5, 50);
        assert!(files.sync(|_| Err(io::Error::other("it is synced"))).is_err());
        files.take_back(5).unwrap();
        drop(files);
        let files = open(home.path(), 0, 4).unwrap_or_else(|_| panic!("what was taken back is no damage"));
        assert_eq!(numbers(&files), [1, 2, 3, 4]);
    }

    #[test]
    fn damage_is_told_by_what_lies_behind_it_also_without_a_mark() {
        let home = tempfile::tempdir().unwrap();
        let files = open(home.path(), 0, 0).unwrap_or_else(|_| panic!("nothing is there"));
        for number in 1..=40 {
            append(&files, number..=number, 500_000);
            sync(&files);
        }
        drop(files);
        let names = framing::numbered(home.path()).unwrap();
        assert_eq!(names, [1, 18, 35]);
        let whole: Vec<_> =
            names.iter().map(|name| fs::read(home.path().join(framing::name(*name))).unwrap()).collect();
        let restore = || {
            for (name, bytes) in names.iter().zip(&whole) {
                fs::write(home.path().join(framing::name(*name)), bytes).unwrap();
            }
        };
        for (name, at, number) in [(1, 0, 1), (1, 3_000_000, 6), (18, 600_000, 19), (35, 600_000, 36)] {
            damage(home.path(), name, |bytes| bytes[at] ^= 16);
            assert_eq!(told(open(home.path(), 0, 0)), Some(number), "{name} at {at}");
            restore();
        }
        for missing in [1, 18] {
            fs::remove_file(home.path().join(framing::name(missing))).unwrap();
            assert_eq!(told(open(home.path(), 0, 0)), Some(missing));
            restore();
        }
        // Nobody needs what is settled: whatever has become of that.
        damage(home.path(), 18, |bytes| bytes[600_000] ^= 16);
        let files = open(home.path(), 20, 40).unwrap_or_else(|_| panic!("only what is settled is damaged"));
        assert_eq!(numbers(&files), (21..=40).collect::<Vec<_>>());
        assert_eq!(framing::numbered(home.path()).unwrap(), [18, 35]);
        drop(files);
        let files = open(home.path(), 40, 40).unwrap_or_else(|_| panic!("all is settled"));
        assert_eq!((files.ends(), framing::numbered(home.path()).unwrap()), (None, vec![]));
    }

    #[test]
    fn what_is_taken_back_over_the_border_of_two_files_leaves_nothing_that_misleads() {
        let home = tempfile::tempdir().unwrap();
        let files = open(home.path(), 0, 0).unwrap_or_else(|_| panic!("nothing is there"));
        append(&files, 1..=20, 500_000);
        assert_eq!(framing::numbered(home.path()).unwrap(), [1, 18]);
        (15..=20).rev().for_each(|number| files.take_back(number).unwrap());
        append(&files, 15..=30, 50_000);
        sync(&files);
        drop(files);
        // As if the removed name had come back with the power.
        fs::write(home.path().join(framing::name(18)), b"").unwrap();
        let files = open(home.path(), 20, 30).unwrap_or_else(|_| panic!("all is there"));
        assert_eq!(numbers(&files), (21..=30).collect::<Vec<_>>());
    }

    #[test]
    fn the_only_record_is_taken_back_without_a_trace() {
        let home = tempfile::tempdir().unwrap();
        let files = open(home.path(), 0, 0).unwrap_or_else(|_| panic!("nothing is there"));
        append(&files, 1..=60, 100);
        (1..=60).for_each(|number| files.remove(number));
        append(&files, 61..=62, 100);
        drop(files);
        let files = open(home.path(), 60, 60).unwrap_or_else(|_| panic!("all is there"));
        files.take_back(62).unwrap();
        files.take_back(61).unwrap();
        append(&files, 61..=61, 300);
        sync(&files);
        drop(files);
        let files = open(home.path(), 60, 61).unwrap_or_else(|_| panic!("61 is there"));
        assert_eq!((numbers(&files), files.get(61).unwrap().unwrap().len()), (vec![61], 300));
    }

    #[test]
    fn a_file_goes_when_all_its_records_are_removed() {
        let home = tempfile::tempdir().unwrap();
        let files = open(home.path(), 9, 9).unwrap_or_else(|_| panic!("nothing is needed"));
        append(&files, 10..=60, 500_000);
        for number in 10..=60 {
            files.remove(number);
        }
        assert_eq!((files.ends(), framing::numbered(home.path()).unwrap().len()), (None, 1), "the last is written to");
        append(&files, 61..=61, 100);
        assert_eq!(numbers(&files), [61]);
        sync(&files);
        drop(files);
        assert_eq!(numbers(&open(home.path(), 60, 61).unwrap_or_else(|_| panic!("61 is there"))), [61]);
    }
}
