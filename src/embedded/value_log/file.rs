//! Files of the value log. A sled tree maps each key to the location of its block.
//!
//! A file is a sequence of frames, one for each block: its key and its bytes. Blocks are appended and never changed;
//! a replaced or removed block is dead. A file without live blocks is removed at the next checkpoint. If too much of
//! all files is dead, the live blocks of the emptiest are copied ([`compaction`](super::compaction)), so that the
//! files are at most about twice the live bytes. If the disk is short of space, a file is compacted once an eighth of
//! it is dead.
//!
//! A process appends only to files that it began itself. The torn end that a crash leaves in another file is never
//! continued, and nothing refers to it.

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

use super::framing::{self, Kind, make_directory, read_at};
use crate::{
    embedded::{
        tables::{
            contract::{Cause, Copying},
            files::VALUE_LOG,
            space::Spares,
        },
        unreadable::Unreadable,
    },
    logging::system_error,
};

/// A file that is longer is not gone on with.
const FILE_BYTES: u64 = 8 << 20;

/// A file that is longer is never gone on with: places in it have 32 bits.
const FILE_BYTES_MAX: u64 = 1 << 31;

/// Dead bytes that are tolerated, however little is live.
const DEAD_BYTES_LEFT: u64 = 2 * FILE_BYTES;

/// The part of a file that has to be dead for it to be written anew where the disk has no space: seven bytes are copied for each
/// that is given back, at most.
const EAGER_SHARE: u64 = 8;

/// Files that are less than a quarter full. Each start of a server may leave one; of more, the smallest is written anew.
const SMALL_FILES_MAX: usize = 16;

/// Files that are open for reading; one more, and that which was opened first is closed.
const HANDLES_MAX: usize = 32;

/// Location of a block. Its encoding is part of the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlockLocation {
    pub file: u64,
    pub at: u32,
    /// Bytes of the whole frame.
    pub length: u32,
}

impl BlockLocation {
    pub fn encode(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.file.to_be_bytes());
        bytes[8..12].copy_from_slice(&self.at.to_be_bytes());
        bytes[12..].copy_from_slice(&self.length.to_be_bytes());
        bytes
    }

    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (file, rest) = bytes.split_first_chunk()?;
        let (at, rest) = rest.split_first_chunk()?;
        let number = |bytes: [u8; 4]| u32::from_be_bytes(bytes);
        Some(Self { file: u64::from_be_bytes(*file), at: number(*at), length: number(rest.try_into().ok()?) })
    }
}

impl BlockLocation {
    /// Names its file, in the store's directory.
    fn file(self) -> String {
        format!("{VALUE_LOG}/{}", framing::name(self.file))
    }

    /// Its file is not there.
    pub fn missing(self) -> Unreadable {
        Unreadable::new(format!("its file `{}` is missing", self.file()))
    }

    /// The system does not give it back.
    pub fn unread(self, error: &io::Error) -> Unreadable {
        Unreadable::new(format!("its file `{}` cannot be read: {}", self.file(), system_error(error)))
    }

    /// Of it were read so many bytes, and they are not what was written.
    pub fn unlike(self, read: usize) -> Unreadable {
        let (file, at, length) = (self.file(), self.at, self.length);
        Unreadable::new(if read < length as usize {
            format!(
                "its file `{file}` ends early, at byte {}, where {length} bytes from byte {at} on should be",
                at as usize + read
            )
        } else {
            format!("in its file `{file}` a checksum does not match for the {length} bytes from byte {at} on")
        })
    }
}

/// The table does not say where a chunk is.
pub fn no_place() -> Unreadable {
    Unreadable::new("its place in the table is not what was written")
}

/// Result of reading a block.
#[derive(Clone, Debug)]
pub enum BlockRead {
    /// The chunk.
    Block(Bytes),
    /// The block is damaged or has another key, for this reason.
    Damaged(Unreadable),
    /// The file does not exist (any more).
    Missing,
}

#[derive(Debug)]
struct ValueLogFile {
    length: u64,
    /// Bytes of frames that the table leads to.
    alive: u64,
    /// It was compacted, and what is left in it cannot be read: it stays until the table lets go of that.
    stuck: bool,
}

#[derive(Debug, Default)]
struct State {
    files: BTreeMap<u64, ValueLogFile>,
    /// The one that is written to, if one was begun.
    current: Option<(u64, Arc<File>)>,
    next: u64,
    /// Something was written and is not synced.
    dirty: bool,
}

impl State {
    fn is_current(&self, number: u64) -> bool {
        self.current.as_ref().is_some_and(|(current, _)| *current == number)
    }
}

/// The files, of which a few are open.
#[derive(Debug)]
pub struct ValueLog {
    directory: PathBuf,
    /// The directory, open: to sync names takes no descriptor then.
    names: File,
    state: RwLock<State>,
    handles: Mutex<VecDeque<(u64, Arc<File>)>>,
    /// Closed where a file has to be read and the process has no descriptors left.
    spares: Spares,
}

impl ValueLog {
    /// Opens the files in `directory`, which is made if it is not there. `places` are all that the table leads to; a file
    /// to which none leads is removed.
    pub fn open(directory: &Path, places: impl Iterator<Item = BlockLocation>) -> io::Result<Self> {
        make_directory(directory)?;
        let (mut alive, mut next) = (BTreeMap::<u64, u64>::new(), 1);
        for place in places {
            *alive.entry(place.file).or_default() += u64::from(place.length);
            next = next.max(place.file + 1);
        }
        let mut files = BTreeMap::new();
        for number in framing::numbered(directory)? {
            next = next.max(number.saturating_add(1));
            let path = directory.join(framing::name(number));
            let Some(alive) = alive.get(&number).copied() else {
                fs::remove_file(&path)?;
                continue;
            };
            let file = File::open(&path)?;
            // What was not synced by who wrote it is now.
            file.sync_data()?;
            let length = file.metadata()?.len();
            files.insert(number, ValueLogFile { length, alive, stuck: false });
        }
        let state = RwLock::new(State { files, current: None, next, dirty: false });
        let names = File::open(directory)?;
        let spares = Spares::default();
        let files = Self { directory: directory.to_owned(), names, state, handles: Mutex::default(), spares };
        // Now, while there are descriptors enough. On a full disk there may be none, until something has to be written.
        match files.begin_file() {
            Err(error) if Cause::of(&error) == Cause::Failed => return Err(error),
            _ => files.spares.refill(&files.names),
        }
        Ok(files)
    }

    /// Writes a block; the system has it on return, unsynced. If the disk is full, nothing of it counts, and the
    /// caller may retry.
    pub fn append(&self, key: &[u8], value: &[u8]) -> io::Result<BlockLocation> {
        // A key is a user id and a number.
        let bytes = framing::encode(Kind::Block, &[&(key.len() as u16).to_be_bytes(), key, value]);
        let current = self.state.read().current.clone();
        let length = |number: u64| self.state.read().files.get(&number).map_or(0, |file| file.length);
        let (number, file) = match current {
            Some((number, file)) if length(number) < FILE_BYTES => (number, file),
            Some(full) => match self.begin_file() {
                // Clients have all descriptors, or the disk is full: the file that is open is gone on with.
                Err(error) if Cause::of(&error) != Cause::Failed && length(full.0) < FILE_BYTES_MAX => full,
                begun => begun?,
            },
            None => self.begin_file()?,
        };
        let mut state = self.state.write();
        state.dirty = true;
        let known =
            state.files.get_mut(&number).ok_or_else(|| io::Error::other("the file that is written to is gone"))?;
        file.write_all_at(&bytes, known.length)?;
        let place = BlockLocation { file: number, at: known.length as u32, length: bytes.len() as u32 };
        known.length += bytes.len() as u64;
        known.alive += bytes.len() as u64;
        Ok(place)
    }

    /// Without the lock, but for a moment: readers need not wait for a disk, and nobody else writes.
    fn begin_file(&self) -> io::Result<(u64, Arc<File>)> {
        let (number, last) = {
            let state = self.state.read();
            (state.next, state.current.clone())
        };
        let file = Arc::new(framing::create(&self.directory, &framing::name(number))?);
        // What cannot be synced may be gone: that is never repeated.
        self.names.sync_all().map_err(io::Error::other)?;
        if let Some((_, last)) = last {
            last.sync_data().map_err(io::Error::other)?;
        }
        let mut state = self.state.write();
        state.files.insert(number, ValueLogFile { length: 0, alive: 0, stuck: false });
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
        // Without the lock, as above.
        file.sync_data()?;
        self.state.write().dirty = false;
        Ok(())
    }

    /// Reads the block of a key. Unreadable bytes count as damage: they affect one user.
    pub fn read(&self, place: BlockLocation, key: &[u8]) -> io::Result<BlockRead> {
        let Some(file) = self.file(place.file)? else { return Ok(BlockRead::Missing) };
        let bytes = match read_at(&file, u64::from(place.at), place.length as usize) {
            Ok(bytes) => bytes,
            Err(error) if Cause::of(&error) == Cause::Exhausted => return Err(error),
            Err(error) => {
                return Ok(BlockRead::Damaged(place.unread(&error)));
            }
        };
        Ok(match value_of(&bytes, key) {
            Some(from) => BlockRead::Block(Bytes::from(bytes).slice(from..)),
            None => BlockRead::Damaged(place.unlike(bytes.len())),
        })
    }

    /// A file, open for reading; `None` if there is no such file.
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
        let path = self.directory.join(framing::name(number));
        let opened = match self.spares.open(|| File::open(&path)) {
            Err(error) if Cause::of(&error) == Cause::Exhausted => {
                // The one that was opened first is closed for it, unless somebody reads it.
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

    /// Opens descriptors again that were closed for want of them. To be called now and then.
    pub fn prepare(&self) {
        self.spares.refill(&self.names);
    }

    /// Marks a block as dead.
    pub fn release(&self, place: BlockLocation) {
        if let Some(file) = self.state.write().files.get_mut(&place.file) {
            file.alive = file.alive.saturating_sub(u64::from(place.length));
        }
    }

    /// Files of which nothing is alive, and which are not written to.
    pub fn dead(&self) -> Vec<u64> {
        let state = self.state.read();
        let dead = state.files.iter().filter(|(number, file)| file.alive == 0 && !state.is_current(**number));
        dead.map(|(number, _)| *number).collect()
    }

    /// Removes files. Whoever reads one at the moment goes on reading.
    pub fn remove(&self, numbers: &[u64]) {
        for number in numbers {
            match fs::remove_file(self.directory.join(framing::name(*number))) {
                // Nothing leads to it: the next start removes it.
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(%error, file = %framing::name(*number), "cannot remove a file of the value log; the next start removes it");
                }
                _ => {}
            }
            self.state.write().files.remove(number);
            self.handles.lock().retain(|(known, _)| known != number);
        }
    }

    /// Goes on in a new file where nothing is alive any more in the one that is written to, so that that can go.
    pub fn leave_empty(&self) -> io::Result<()> {
        let is_empty = {
            let state = self.state.read();
            let current = state.current.as_ref().and_then(|(number, _)| state.files.get(number));
            current.is_some_and(|file| file.alive == 0 && file.length > 0)
        };
        match if is_empty { self.begin_file().map(drop) } else { Ok(()) } {
            // It is left later.
            Err(error) if Cause::of(&error) != Cause::Failed => Ok(()),
            left => left,
        }
    }

    /// The file with the smallest part alive, if too much of all of them is dead, or eagerly of this one.
    pub fn emptiest(&self, copying: Copying) -> Option<u64> {
        let state = self.state.read();
        // What is about to go, or cannot be moved, does not count.
        let files = || state.files.values().filter(|file| file.alive > 0 && !file.stuck);
        let sum = |of: fn(&ValueLogFile) -> u64| files().map(of).sum::<u64>();
        let (length, alive) = (sum(|file| file.length), sum(|file| file.alive));
        let sealed = || {
            let files = state.files.iter();
            files.filter(|(number, file)| !state.is_current(**number) && file.alive > 0 && !file.stuck)
        };
        let emptiest = || sealed().min_by_key(|(_, file)| file.alive * 1000 / file.length.max(1));
        if copying == Copying::Eager {
            let worth = |file: &ValueLogFile| file.length.saturating_sub(file.alive) >= file.length / EAGER_SHARE;
            return emptiest().filter(|(_, file)| worth(file)).map(|(number, _)| *number);
        }
        if length - alive.min(length) <= alive.max(DEAD_BYTES_LEFT) {
            let small = || sealed().filter(|(_, file)| file.length < FILE_BYTES / 4);
            let smallest = small().min_by_key(|(_, file)| file.length);
            return smallest.filter(|_| small().count() > SMALL_FILES_MAX).map(|(number, _)| *number);
        }
        emptiest().map(|(number, _)| *number)
    }

    /// All of this file that can be read is elsewhere now.
    pub fn compacted(&self, number: u64) {
        if let Some(file) = self.state.write().files.get_mut(&number) {
            file.stuck = file.alive > 0;
        }
    }
}

/// Where in a frame the chunk of this key begins; `None` if it is not its frame.
pub fn value_of(bytes: &[u8], key: &[u8]) -> Option<usize> {
    let (found, value) = parts(framing::body(Kind::Block, bytes)?)?;
    (found == key).then(|| framing::HEAD_BYTES + 2 + found.len()).filter(|from| from + value.len() == bytes.len())
}

/// Key and chunk, from the body of a frame.
pub fn parts(body: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = body.split_first_chunk()?;
    rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(files: &ValueLog, place: BlockLocation, key: &[u8]) -> Option<Vec<u8>> {
        match files.read(place, key).unwrap() {
            BlockRead::Block(value) => Some(value.to_vec()),
            _ => None,
        }
    }

    #[test]
    fn a_chunk_is_read_by_its_key_alone_and_a_file_goes_when_nothing_in_it_is_needed() {
        let home = tempfile::tempdir().unwrap();
        let files = ValueLog::open(home.path(), [].into_iter()).unwrap();
        let big = vec![7; FILE_BYTES as usize / 10];
        let places: Vec<_> = (0..25_u8).map(|n| files.append(&[n], &big).unwrap()).collect();
        files.sync().unwrap();
        assert_eq!(read(&files, places[3], &[3]), Some(big.clone()));
        assert_eq!(read(&files, places[3], &[4]), None, "it is another's");
        assert_eq!(framing::numbered(home.path()).unwrap(), [1, 2, 3]);
        places.iter().filter(|place| place.file == 1).for_each(|place| files.release(*place));
        assert_eq!(files.dead(), [1]);
        files.remove(&[1]);
        assert!(matches!(files.read(places[3], &[3]).unwrap(), BlockRead::Missing));
        drop(files);
        let files = ValueLog::open(home.path(), places.iter().copied().filter(|place| place.file == 3)).unwrap();
        assert_eq!(framing::numbered(home.path()).unwrap(), [3, 4], "nothing leads to the others");
        assert_eq!(files.append(b"new", b"value").unwrap().file, 4, "what was there is not gone on with");
        assert_eq!(read(&files, places[24], &[24]), Some(big));
    }

    #[test]
    fn files_that_starts_have_left_do_not_pile_up() {
        let home = tempfile::tempdir().unwrap();
        let mut places = Vec::new();
        for n in 0..=SMALL_FILES_MAX as u8 + 1 {
            let files = ValueLog::open(home.path(), places.iter().copied()).unwrap();
            assert_eq!(files.emptiest(Copying::Usual), (n as usize > SMALL_FILES_MAX).then_some(1), "{n}");
            places.push(files.append(&[n], &vec![n; 100 + usize::from(n)]).unwrap());
        }
    }

    #[test]
    fn file_of_which_an_eighth_is_dead_is_named_where_the_disk_has_no_space() {
        let home = tempfile::tempdir().unwrap();
        let files = ValueLog::open(home.path(), [].into_iter()).unwrap();
        let places: Vec<_> = (0..60_u8).map(|n| files.append(&[n], &vec![7; 500_000]).unwrap()).collect();
        let of = |file| places.iter().filter(move |place| place.file == file);
        assert_eq!(files.emptiest(Copying::Eager), None);
        of(1).take(2).for_each(|place| files.release(*place));
        assert_eq!(files.emptiest(Copying::Eager), None, "two of seventeen");
        of(2).take(3).for_each(|place| files.release(*place));
        assert_eq!(files.emptiest(Copying::Eager), Some(2));
        assert_eq!(files.emptiest(Copying::Usual), None);
        let last = places.last().unwrap().file;
        of(last).for_each(|place| files.release(*place));
        assert_eq!(files.emptiest(Copying::Eager), Some(2), "what is written to stays");
    }

    #[test]
    fn the_emptiest_file_is_named_when_more_is_dead_than_alive() {
        let home = tempfile::tempdir().unwrap();
        let files = ValueLog::open(home.path(), [].into_iter()).unwrap();
        let places: Vec<_> = (0..60_u8).map(|n| files.append(&[n], &vec![7; 1_000_000]).unwrap()).collect();
        let last_of = |file| places.iter().rposition(|place| place.file == file);
        let mut released = 0;
        for (n, place) in places.iter().enumerate() {
            assert!(released > 30 || files.emptiest(Copying::Usual).is_none(), "{released} of 60 are dead");
            // Of the third file one stays, of the others two or three.
            if n % 4 != 0 && place.file != 3 || place.file == 3 && Some(n) != last_of(3) {
                files.release(*place);
                released += 1;
            }
        }
        assert_eq!(files.emptiest(Copying::Usual), Some(3));
        files.compacted(3);
        assert!(
            files.emptiest(Copying::Usual).is_some_and(|other| other != 3),
            "what cannot be moved is not tried again"
        );
        assert_eq!(BlockLocation::decode(&places[9].encode()), Some(places[9]));
        assert_eq!(BlockLocation::decode(&places[9].encode()[1..]), None);
    }
}
