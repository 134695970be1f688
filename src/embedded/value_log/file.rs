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
//! earlier file, and no location refers to that end. The live bytes of earlier files are counted in steps after the
//! store is open: see [`live_count`](super::live_count).

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

use super::{
    live_count::{CountPosition, CountStep, StoredEntries},
    location::BlockLocation,
    spare_descriptors::SpareDescriptors,
};
use crate::embedded::{
    file_io::{self, create_directory, read_at, to_u32},
    framing::{self, Kind},
    tables::contract::{Cause, CompactionMode, Table},
    unreadable::Unreadable,
};

/// Size above which no block is appended to a file if a new file can be created.
pub(super) const FILE_BYTES: u64 = 8 << 20;

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
pub(super) const SMALL_FILES_MAX: usize = 16;

/// Number of files that are open for reading. A further one closes the file that was opened first.
const HANDLES_MAX: usize = 32;

/// Limit of files that stay marked over a restart: 32 GiB. Further ones are compacted for another reason.
const ERASED_FILES_MAX: usize = 4096;

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
    /// Bytes of live frames: those to which the tables refer. In a file of an earlier process, as far as counted.
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
    /// Number of the first file that this process writes.
    first_own: u64,
    /// Position of the count of live bytes in earlier files; `None` when it is complete.
    count: Option<CountPosition>,
    /// The count cannot be completed.
    is_uncountable: bool,
    /// Live bytes of all files. An estimate until the count is complete.
    live: u64,
}

impl ValueLogState {
    /// Returns whether the live bytes of a file are known.
    fn is_counted(&self, number: u64) -> bool {
        self.count.is_none() || number >= self.first_own
    }

    /// Subtracts a block that no row locates any more. `was_counted`: the live bytes of its file include it.
    fn release(&mut self, location: BlockLocation, was_counted: bool) {
        let Some(file) = self.files.get_mut(&location.file) else { return };
        let length = u64::from(location.length);
        self.live = self.live.saturating_sub(length);
        if was_counted {
            file.live = file.live.saturating_sub(length);
        }
    }

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
    pub stored: StoredEntries,
}

impl ValueLog {
    /// Opens the files in `directory`, which is created if missing. Only their lengths are read.
    ///
    /// `last_file` is at least the number of each file to which a row refers. A lost file may have had that number, and
    /// a new one must not take it. `live` is an estimate of the live bytes; without it, all bytes count.
    pub fn open(directory: &Path, last_file: u64, live: Option<u64>) -> io::Result<Self> {
        create_directory(directory)?;
        let mut next = last_file.saturating_add(1);
        let (mut files, mut bytes) = (BTreeMap::new(), 0);
        for number in file_io::file_numbers(directory)? {
            next = next.max(number.saturating_add(1));
            let file = File::open(directory.join(file_io::file_name(number)))?;
            // The process that wrote the file may not have synced it.
            file.sync_data()?;
            let length = file.metadata()?.len();
            bytes += length;
            files.insert(number, ValueLogFile { length, live: 0, has_unreadable: false, has_erased: false });
        }
        let count = (!files.is_empty()).then(CountPosition::start);
        let live = live.unwrap_or(bytes).min(bytes);
        let state = ValueLogState {
            files,
            current: None,
            next,
            dirty: false,
            first_own: next,
            count,
            is_uncountable: false,
            live,
        };
        let (state, names) = (RwLock::new(state), File::open(directory)?);
        let spare_descriptors = SpareDescriptors::default();
        let (directory, handles, stored) = (directory.to_owned(), Mutex::default(), StoredEntries::default());
        let value_log = Self { directory, names, state, handles, spare_descriptors, stored };
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
        state.live += bytes.len() as u64;
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

    /// Marks a block of this process as dead, to which no row refers.
    pub fn release(&self, location: BlockLocation) {
        self.state.write().release(location, true);
    }

    /// Marks the block of a row as dead that was removed or replaced. Returns whether the row was counted.
    pub fn release_row(&self, table: Table, key: &[u8], location: BlockLocation) -> bool {
        let mut state = self.state.write();
        let was_counted = state.is_counted(location.file)
            || state.count.as_ref().is_some_and(|position| position.is_after(table, key));
        state.release(location, was_counted);
        was_counted
    }

    /// Returns whether a file was written by this process. Rows that locate its blocks are counted when they are put.
    pub fn is_own(&self, number: u64) -> bool {
        number >= self.state.read().first_own
    }

    /// Returns whether all rows are counted.
    pub fn is_counted(&self) -> bool {
        self.state.read().count.is_none()
    }

    /// Returns the live bytes of all files: an estimate until they are counted.
    pub fn live_bytes(&self) -> u64 {
        self.state.read().live
    }

    /// Returns the length of all files.
    pub fn bytes(&self) -> u64 {
        self.state.read().files.values().map(|file| file.length).sum()
    }

    #[cfg(test)]
    pub fn live_by_file(&self) -> BTreeMap<u64, u64> {
        self.state.read().files.iter().map(|(number, file)| (*number, file.live)).collect()
    }

    /// Begins a step that counts live bytes of earlier files. Returns `None` if they are counted, or cannot be.
    pub fn begin_count(&self) -> Option<CountStep> {
        let state = self.state.read();
        state.count.clone().filter(|_| !state.is_uncountable).map(CountStep::new)
    }

    /// Gives up the count, because a row cannot be read. Earlier files stay as they are until the next opening.
    pub fn abandon_count(&self) {
        self.state.write().is_uncountable = true;
    }

    /// Adds the live bytes that a step has found. No row may change between its begin and its end.
    pub fn end_count(&self, step: CountStep) {
        let (position, live) = step.finish();
        let mut state = self.state.write();
        let first_own = state.first_own;
        // Blocks in files of this process were counted when they were appended.
        for (number, bytes) in live.into_iter().filter(|(number, _)| *number < first_own) {
            if let Some(file) = state.files.get_mut(&number) {
                file.live += bytes;
            }
        }
        state.count = position;
        if state.count.is_none() {
            state.live = state.files.values().map(|file| file.live).sum();
        }
    }

    /// Marks a file with a block of an erased user. Returns all such files if it was not marked, at most 4096.
    pub fn set_erased(&self, number: u64) -> Option<Vec<u64>> {
        let mut state = self.state.write();
        let file = state.files.get_mut(&number)?;
        if std::mem::replace(&mut file.has_erased, true) {
            return None;
        }
        let erased = state.files.iter().filter(|(_, file)| file.has_erased);
        Some(erased.map(|(number, _)| *number).take(ERASED_FILES_MAX).collect())
    }

    /// Returns whether a file has blocks of an erased user.
    #[cfg(test)]
    pub fn is_erased(&self, number: u64) -> bool {
        self.state.read().files.get(&number).is_some_and(|file| file.has_erased)
    }

    /// Returns the files that are known to have no live blocks, except the current one.
    pub fn dead_files(&self) -> Vec<u64> {
        let state = self.state.read();
        let is_dead =
            |number: u64, file: &ValueLogFile| file.live == 0 && !state.is_current(number) && state.is_counted(number);
        let dead = state.files.iter().filter(|(number, file)| is_dead(**number, file));
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
    /// small files. Compaction moves blocks, so it waits until the live bytes are counted.
    pub fn emptiest(&self, mode: CompactionMode) -> Option<u64> {
        let state = self.state.read();
        if state.count.is_some() {
            return None;
        }
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
