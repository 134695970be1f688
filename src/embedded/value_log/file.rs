//! Files of the value log. A sled tree maps each key to the location of its block.
//!
//! A file is a sequence of frames. Each holds one block with its key. Blocks are appended and never changed. A replaced
//! or removed block is dead, and a file without live blocks is removed at the next checkpoint.
//!
//! If more is dead than live, and more than 16 MiB, [`compaction`](super::compaction) copies the live blocks of the
//! emptiest file. So the files have at most about twice the live bytes, or 16 MiB more. If the disk is short of space,
//! a file is compacted once an eighth of it is dead.
//!
//! A process appends only to files that it began itself. So nothing follows the torn end that a crash leaves in an
//! earlier file, and no location refers to that end.

use std::{
    collections::{BTreeMap, VecDeque},
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};

use super::{location::BlockLocation, spare_descriptors::SpareDescriptors};
use crate::embedded::{
    file_io::{self, create_directory, read_at, to_u32},
    framing::{self, Kind},
    tables::contract::{Cause, CompactionMode},
    unreadable::Unreadable,
};

/// Size above which no block is appended to a file if a new file can be created.
const FILE_BYTES: u64 = 8 << 20;

/// Size above which no block is ever appended to a file, because offsets have 32 bits.
const FILE_BYTES_MAX: u64 = 1 << 31;

/// Dead bytes below which no compaction is due, however few bytes are live.
const DEAD_BYTES_TOLERATED: u64 = 2 * FILE_BYTES;

/// Part of a file that must be dead for an eager compaction: one in this many bytes.
///
/// So at most seven bytes are copied for each reclaimed byte.
const EAGER_SHARE: u64 = 8;

/// Number of files less than a quarter full, above which the smallest is compacted. Each start of a server may leave
/// one.
const SMALL_FILES_MAX: usize = 16;

/// Number of files that are open for reading. A further one closes the file that was opened first.
const HANDLES_MAX: usize = 32;

/// Result of reading a block.
#[derive(Clone, Debug)]
pub enum BlockRead {
    /// The block.
    Block(Bytes),
    /// The block is damaged or has another key, for this reason.
    Damaged(Unreadable),
    /// The file does not exist.
    Missing,
}

#[derive(Debug)]
struct ValueLogFile {
    length: u64,
    /// Bytes of live frames: those to which the table refers.
    live: u64,
    /// The file was compacted, but has unreadable blocks. It stays until the table no longer refers to them.
    has_unreadable: bool,
    /// The file has blocks of an erased user, so it is compacted soon.
    has_erased: bool,
}

#[derive(Debug, Default)]
struct ValueLogState {
    files: BTreeMap<u64, ValueLogFile>,
    /// The file to which blocks are appended, if one was created.
    current: Option<(u64, Arc<File>)>,
    /// Number of the next file.
    next: u64,
    /// The current file has blocks that are not durable.
    dirty: bool,
}

impl ValueLogState {
    fn is_current(&self, number: u64) -> bool {
        self.current.as_ref().is_some_and(|(current, _)| *current == number)
    }
}

/// Appends blocks to files, reads them, and counts their live bytes.
#[derive(Debug)]
pub struct ValueLog {
    directory: PathBuf,
    /// The directory, held open so that syncing names needs no descriptor.
    names: File,
    state: RwLock<ValueLogState>,
    handles: Mutex<VecDeque<(u64, Arc<File>)>>,
    spare_descriptors: SpareDescriptors,
}

impl ValueLog {
    /// Opens the files in `directory`, which is created if missing.
    ///
    /// `locations` are those of the table. A file to which no location refers is removed.
    pub fn open(directory: &Path, locations: impl Iterator<Item = BlockLocation>) -> io::Result<Self> {
        create_directory(directory)?;
        let (mut live, mut next) = (BTreeMap::<u64, u64>::new(), 1);
        for location in locations {
            *live.entry(location.file).or_default() += u64::from(location.length);
            next = next.max(location.file + 1);
        }
        let mut files = BTreeMap::new();
        for number in file_io::file_numbers(directory)? {
            next = next.max(number.saturating_add(1));
            let path = directory.join(file_io::file_name(number));
            let Some(live) = live.get(&number).copied() else {
                fs::remove_file(&path)?;
                continue;
            };
            let file = File::open(&path)?;
            // The process that wrote the file may not have synced it.
            file.sync_data()?;
            let length = file.metadata()?.len();
            files.insert(number, ValueLogFile { length, live, has_unreadable: false, has_erased: false });
        }
        let state = RwLock::new(ValueLogState { files, current: None, next, dirty: false });
        let names = File::open(directory)?;
        let spare_descriptors = SpareDescriptors::default();
        let value_log =
            Self { directory: directory.to_owned(), names, state, handles: Mutex::default(), spare_descriptors };
        // Now, while there are enough descriptors. On a full disk this may fail; the first append retries it.
        match value_log.begin_file() {
            Err(error) if Cause::of(&error) == Cause::Failed => return Err(error),
            _ => value_log.spare_descriptors.refill(&value_log.names),
        }
        Ok(value_log)
    }

    /// Appends a block without syncing it. A killed process does not lose it.
    ///
    /// On a full disk the call has no effect, and the caller may retry it.
    pub fn append(&self, key: &[u8], value: &[u8]) -> io::Result<BlockLocation> {
        let locations = self.append_all(&[(key, value)])?;
        locations.first().copied().ok_or_else(|| io::Error::other("a block has no location"))
    }

    /// Appends blocks with one write, as [`append`](Self::append) does with one block. All are in the same file.
    pub fn append_all(&self, blocks: &[(&[u8], &[u8])]) -> io::Result<Vec<BlockLocation>> {
        if blocks.is_empty() {
            return Ok(Vec::new());
        }
        let (mut bytes, mut lengths) = (Vec::new(), Vec::with_capacity(blocks.len()));
        for (key, value) in blocks {
            // A key is a user id and a sequence, so its length fits into 16 bits.
            let key_length = u16::try_from(key.len()).map_err(io::Error::other)?;
            let frame = framing::encode(Kind::Block, &[&key_length.to_be_bytes(), key, value]);
            lengths.push(to_u32(frame.len() as u64)?);
            // One block is written without a copy.
            if bytes.is_empty() { bytes = frame } else { bytes.extend_from_slice(&frame) }
        }
        let current = self.state.read().current.clone();
        let length = |number: u64| self.state.read().files.get(&number).map_or(0, |file| file.length);
        let (number, file) = match current {
            Some((number, file)) if length(number) < FILE_BYTES => (number, file),
            Some(full) => match self.begin_file() {
                // No descriptor or disk space for a new file: the current one grows.
                Err(error) if Cause::of(&error) != Cause::Failed && length(full.0) < FILE_BYTES_MAX => full,
                begun => begun?,
            },
            None => self.begin_file()?,
        };
        let at = length(number);
        let mut end = at;
        let locations = lengths.into_iter().map(|length| {
            let location = BlockLocation { file: number, offset: to_u32(end)?, length };
            end += u64::from(length);
            Ok(location)
        });
        let locations = locations.collect::<io::Result<Vec<_>>>()?;
        // Without the lock, so that readers do not wait. There is one writer.
        file.write_all_at(&bytes, at)?;
        let mut state = self.state.write();
        state.dirty = true;
        let known = state
            .files
            .get_mut(&number)
            .ok_or_else(|| io::Error::other("the current file of the value log is not known"))?;
        known.length += bytes.len() as u64;
        known.live += bytes.len() as u64;
        Ok(locations)
    }

    /// Creates a file, and makes it the current one.
    ///
    /// Does not hold the lock during disk access, so that readers do not wait. There is one writer.
    fn begin_file(&self) -> io::Result<(u64, Arc<File>)> {
        let (number, last) = {
            let state = self.state.read();
            (state.next, state.current.clone())
        };
        let file = Arc::new(file_io::create(&self.directory, &file_io::file_name(number))?);
        // `other`, because a failed sync is never retried.
        self.names.sync_all().map_err(io::Error::other)?;
        if let Some((_, last)) = last {
            last.sync_data().map_err(io::Error::other)?;
        }
        let mut state = self.state.write();
        state.files.insert(number, ValueLogFile { length: 0, live: 0, has_unreadable: false, has_erased: false });
        state.next = number + 1;
        state.current = Some((number, file.clone()));
        state.dirty = false;
        Ok((number, file))
    }

    /// Syncs all blocks.
    pub fn sync(&self) -> io::Result<()> {
        let file = {
            let state = self.state.read();
            match &state.current {
                Some((_, file)) if state.dirty => file.clone(),
                _ => return Ok(()),
            }
        };
        // Without the lock, so that readers do not wait for the disk.
        file.sync_data()?;
        self.state.write().dirty = false;
        Ok(())
    }

    /// Reads the block of a key. Unreadable bytes count as damage, which affects one user.
    pub fn read(&self, location: BlockLocation, key: &[u8]) -> io::Result<BlockRead> {
        let Some(file) = self.file(location.file)? else { return Ok(BlockRead::Missing) };
        let bytes = match read_at(&file, u64::from(location.offset), location.length as usize) {
            Ok(bytes) => bytes,
            Err(error) if Cause::of(&error) == Cause::Exhausted => return Err(error),
            Err(error) => {
                return Ok(BlockRead::Damaged(location.unreadable(&error)));
            }
        };
        Ok(match block_offset(&bytes, key) {
            Some(from) => BlockRead::Block(Bytes::from(bytes).slice(from..)),
            None => BlockRead::Damaged(location.mismatch(bytes.len())),
        })
    }

    /// Returns a file, open for reading, or `None` if it does not exist.
    pub fn file(&self, number: u64) -> io::Result<Option<Arc<File>>> {
        {
            let state = self.state.read();
            if let Some((_, file)) = state.current.as_ref().filter(|(current, _)| *current == number) {
                return Ok(Some(file.clone()));
            }
            if !state.files.contains_key(&number) {
                return Ok(None);
            }
        }
        if let Some((_, file)) = self.handles.lock().iter().find(|(known, _)| *known == number) {
            return Ok(Some(file.clone()));
        }
        let path = self.directory.join(file_io::file_name(number));
        let opened = match self.spare_descriptors.open(|| File::open(&path)) {
            Err(error) if Cause::of(&error) == Cause::Exhausted => {
                // Frees the descriptor of the file that was opened first, unless it is being read.
                self.handles.lock().pop_front();
                File::open(&path)
            }
            opened => opened,
        };
        let file = match opened {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => Arc::new(file?),
        };
        let mut handles = self.handles.lock();
        handles.push_back((number, file.clone()));
        if handles.len() > HANDLES_MAX {
            handles.pop_front();
        }
        Ok(Some(file))
    }

    /// Reopens spare descriptors that were closed. Call this periodically.
    pub fn refill_spare_descriptors(&self) {
        self.spare_descriptors.refill(&self.names);
    }

    /// Marks a block as dead.
    pub fn release(&self, location: BlockLocation) {
        if let Some(file) = self.state.write().files.get_mut(&location.file) {
            file.live = file.live.saturating_sub(u64::from(location.length));
        }
    }

    /// Marks the file of a block whose user is erased.
    pub fn set_erased(&self, location: BlockLocation) {
        if let Some(file) = self.state.write().files.get_mut(&location.file) {
            file.has_erased = true;
        }
    }

    /// Returns whether a file has blocks of an erased user.
    pub fn is_erased(&self, number: u64) -> bool {
        self.state.read().files.get(&number).is_some_and(|file| file.has_erased)
    }

    /// Returns the files without live blocks, except the current one.
    pub fn dead_files(&self) -> Vec<u64> {
        let state = self.state.read();
        let dead = state.files.iter().filter(|(number, file)| file.live == 0 && !state.is_current(**number));
        dead.map(|(number, _)| *number).collect()
    }

    /// Removes files. Reads in progress continue on their open files.
    pub fn remove(&self, numbers: &[u64]) {
        for number in numbers {
            match fs::remove_file(self.directory.join(file_io::file_name(*number))) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(%error, file = %file_io::file_name(*number), "cannot remove a file of the value log; the next start removes it");
                }
                _ => {}
            }
            self.state.write().files.remove(number);
            self.handles.lock().retain(|(known, _)| known != number);
        }
    }

    /// Creates a file if the current one has only dead blocks, or blocks of an erased user, so that the latter can be
    /// removed.
    pub fn begin_file_if_dead(&self) -> io::Result<()> {
        let is_dead = {
            let state = self.state.read();
            let current = state.current.as_ref().and_then(|(number, _)| state.files.get(number));
            current.is_some_and(|file| file.length > 0 && (file.live == 0 || file.has_erased))
        };
        match if is_dead { self.begin_file().map(drop) } else { Ok(()) } {
            // A later call retries it.
            Err(error) if Cause::of(&error) != Cause::Failed => Ok(()),
            begun => begun,
        }
    }

    /// Returns the file to compact, if compaction is due.
    ///
    /// It is a file with blocks of an erased user, the file with the smallest live part, or the smallest of too many
    /// small files.
    pub fn emptiest(&self, mode: CompactionMode) -> Option<u64> {
        let state = self.state.read();
        // Excludes files without live blocks, and those that compaction cannot empty.
        let files = || state.files.values().filter(|file| file.live > 0 && !file.has_unreadable);
        let sum = |of: fn(&ValueLogFile) -> u64| files().map(of).sum::<u64>();
        let (length, live) = (sum(|file| file.length), sum(|file| file.live));
        let sealed = || {
            let files = state.files.iter();
            files.filter(|(number, file)| !state.is_current(**number) && file.live > 0 && !file.has_unreadable)
        };
        let erased = sealed().find(|(_, file)| file.has_erased).map(|(number, _)| *number);
        if erased.is_some() {
            return erased;
        }
        let emptiest = || sealed().min_by_key(|(_, file)| file.live * 1000 / file.length.max(1));
        if mode == CompactionMode::Eager {
            let is_worth = |file: &ValueLogFile| file.length.saturating_sub(file.live) >= file.length / EAGER_SHARE;
            return emptiest().filter(|(_, file)| is_worth(file)).map(|(number, _)| *number);
        }
        if length - live.min(length) <= live.max(DEAD_BYTES_TOLERATED) {
            let small = || sealed().filter(|(_, file)| file.length < FILE_BYTES / 4);
            let smallest = small().min_by_key(|(_, file)| file.length);
            return smallest.filter(|_| small().count() > SMALL_FILES_MAX).map(|(number, _)| *number);
        }
        emptiest().map(|(number, _)| *number)
    }

    /// Records that all readable blocks of a file were copied.
    pub fn set_compacted(&self, number: u64) {
        if let Some(file) = self.state.write().files.get_mut(&number) {
            file.has_unreadable = file.live > 0;
        }
    }
}

/// Returns the offset of the block in a frame, or `None` if the frame is damaged or has another key.
pub fn block_offset(bytes: &[u8], key: &[u8]) -> Option<usize> {
    let (found, value) = split_body(framing::body(Kind::Block, bytes)?)?;
    (found == key).then(|| framing::HEADER_BYTES + 2 + found.len()).filter(|from| from + value.len() == bytes.len())
}

/// Splits the body of a frame into key and block.
pub fn split_body(body: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = body.split_first_chunk()?;
    rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(files: &ValueLog, location: BlockLocation, key: &[u8]) -> Option<Vec<u8>> {
        match files.read(location, key).unwrap() {
            BlockRead::Block(value) => Some(value.to_vec()),
            _ => None,
        }
    }

    #[test]
    fn blocks_of_one_write_are_read_one_by_one() {
        let home = tempfile::tempdir().unwrap();
        let files = ValueLog::open(home.path(), [].into_iter()).unwrap();
        files.append(b"before", b"0").unwrap();
        let locations = files.append_all(&[(b"a", b"one"), (b"b", b""), (b"c", b"three")]).unwrap();
        let found = [b"a", b"b", b"c"].iter().zip(&locations).map(|(key, at)| read(&files, *at, *key).unwrap());
        assert_eq!(found.collect::<Vec<_>>(), [&b"one"[..], b"", b"three"]);
        assert_eq!(files.append_all(&[]).unwrap(), []);
    }

    #[test]
    fn block_is_read_only_by_its_key_and_file_without_live_blocks_is_removed() {
        let home = tempfile::tempdir().unwrap();
        let files = ValueLog::open(home.path(), [].into_iter()).unwrap();
        let big = vec![7; FILE_BYTES as usize / 10];
        let locations: Vec<_> = (0..25_u8).map(|n| files.append(&[n], &big).unwrap()).collect();
        files.sync().unwrap();
        assert_eq!(read(&files, locations[3], &[3]), Some(big.clone()));
        assert_eq!(read(&files, locations[3], &[4]), None, "the block has another key");
        assert_eq!(file_io::file_numbers(home.path()).unwrap(), [1, 2, 3]);
        locations.iter().filter(|location| location.file == 1).for_each(|location| files.release(*location));
        assert_eq!(files.dead_files(), [1]);
        files.remove(&[1]);
        assert!(matches!(files.read(locations[3], &[3]).unwrap(), BlockRead::Missing));
        drop(files);
        let files =
            ValueLog::open(home.path(), locations.iter().copied().filter(|location| location.file == 3)).unwrap();
        assert_eq!(file_io::file_numbers(home.path()).unwrap(), [3, 4], "the other files are removed");
        assert_eq!(files.append(b"new", b"value").unwrap().file, 4, "an earlier file is not appended to");
        assert_eq!(read(&files, locations[24], &[24]), Some(big));
    }

    #[test]
    fn small_files_above_limit_are_compacted() {
        let home = tempfile::tempdir().unwrap();
        let mut locations = Vec::new();
        for n in 0..=SMALL_FILES_MAX as u8 + 1 {
            let files = ValueLog::open(home.path(), locations.iter().copied()).unwrap();
            assert_eq!(files.emptiest(CompactionMode::Normal), (n as usize > SMALL_FILES_MAX).then_some(1), "{n}");
            locations.push(files.append(&[n], &vec![n; 100 + usize::from(n)]).unwrap());
        }
    }

    #[test]
    fn eager_compaction_selects_file_with_an_eighth_dead() {
        let home = tempfile::tempdir().unwrap();
        let files = ValueLog::open(home.path(), [].into_iter()).unwrap();
        let locations: Vec<_> = (0..60_u8).map(|n| files.append(&[n], &vec![7; 500_000]).unwrap()).collect();
        let of = |file| locations.iter().filter(move |location| location.file == file);
        assert_eq!(files.emptiest(CompactionMode::Eager), None);
        of(1).take(2).for_each(|location| files.release(*location));
        assert_eq!(files.emptiest(CompactionMode::Eager), None, "two of seventeen blocks are dead");
        of(2).take(3).for_each(|location| files.release(*location));
        assert_eq!(files.emptiest(CompactionMode::Eager), Some(2));
        assert_eq!(files.emptiest(CompactionMode::Normal), None);
        let last = locations.last().unwrap().file;
        of(last).for_each(|location| files.release(*location));
        assert_eq!(files.emptiest(CompactionMode::Eager), Some(2), "the current file is not compacted");
    }

    #[test]
    fn compaction_selects_emptiest_file_when_more_is_dead_than_live() {
        let home = tempfile::tempdir().unwrap();
        let files = ValueLog::open(home.path(), [].into_iter()).unwrap();
        let locations: Vec<_> = (0..60_u8).map(|n| files.append(&[n], &vec![7; 1_000_000]).unwrap()).collect();
        let last_of = |file| locations.iter().rposition(|location| location.file == file);
        let mut released = 0;
        for (n, location) in locations.iter().enumerate() {
            assert!(released > 30 || files.emptiest(CompactionMode::Normal).is_none(), "{released} of 60 are dead");
            // One block of the third file stays, and two or three of each other file.
            if n % 4 != 0 && location.file != 3 || location.file == 3 && Some(n) != last_of(3) {
                files.release(*location);
                released += 1;
            }
        }
        assert_eq!(files.emptiest(CompactionMode::Normal), Some(3));
        files.set_compacted(3);
        assert!(
            files.emptiest(CompactionMode::Normal).is_some_and(|other| other != 3),
            "a file that cannot be emptied is not compacted again"
        );
        assert_eq!(BlockLocation::decode(&locations[9].encode()), Some(locations[9]));
        assert_eq!(BlockLocation::decode(&locations[9].encode()[1..]), None);
    }
}
