//! The chunks of inboxes, in files of their own: a table says for each key where its chunk is.
//!
//! A file is frames, one a chunk: its key and its bytes. Chunks are appended and never changed; one that is replaced or
//! removed is dead weight from then on. A file of which nothing is alive is removed at the next checkpoint, and where
//! too much of all files is dead, what lives in the emptiest is written anew ([`compact`](super::compact)), so that they
//! are never more than twice what is alive, and a little.
//!
//! A process appends to files that it has begun itself: what a crash has left at the end of others is never gone on from,
//! and nothing leads to it.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use parking_lot::RwLock;

use super::{
    frame::{self, Kind, read_at},
    records::make_directory,
};

/// A file that is longer is not gone on with.
const FILE_BYTES: u64 = 8 << 20;

/// Dead bytes that are left alone, however little is alive.
const DEAD_BYTES_LEFT: u64 = 2 * FILE_BYTES;

/// Where a chunk is. Its bytes are part of the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    pub file: u64,
    pub at: u32,
    /// Bytes of the whole frame.
    pub length: u32,
}

impl Place {
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

/// What is at a place.
#[derive(Clone, Debug)]
pub enum Found {
    /// The chunk.
    Chunk(Bytes),
    /// Not the chunk of that key as it was written.
    Damaged,
    /// There is no such file (any more).
    Gone,
}

#[derive(Debug)]
struct ChunkFile {
    file: Arc<File>,
    length: u64,
    /// Bytes of frames that the table leads to.
    alive: u64,
    /// It was compacted, and what is left in it cannot be read: it stays until the table lets go of that.
    stuck: bool,
}

#[derive(Debug, Default)]
struct Inside {
    files: BTreeMap<u64, ChunkFile>,
    /// The one that is written to, if one was begun.
    current: Option<u64>,
    next: u64,
    /// Something was written and is not synced.
    dirty: bool,
}

/// The files, open.
#[derive(Debug)]
pub struct ChunkFiles {
    directory: PathBuf,
    inside: RwLock<Inside>,
}

impl ChunkFiles {
    /// Opens the files in `directory`, which is made if it is not there. `places` are all that the table leads to; a file
    /// to which none leads is removed.
    pub fn open(directory: &Path, places: impl Iterator<Item = Place>) -> io::Result<Self> {
        make_directory(directory)?;
        let (mut alive, mut next) = (BTreeMap::<u64, u64>::new(), 1);
        for place in places {
            *alive.entry(place.file).or_default() += u64::from(place.length);
            next = next.max(place.file + 1);
        }
        let mut files = BTreeMap::new();
        for number in frame::numbered(directory)? {
            next = next.max(number.saturating_add(1));
            let path = directory.join(frame::name(number));
            let Some(alive) = alive.get(&number).copied() else {
                fs::remove_file(&path)?;
                continue;
            };
            let file = File::open(&path)?;
            // What was not synced by who wrote it is now.
            file.sync_data()?;
            let length = file.metadata()?.len();
            files.insert(number, ChunkFile { file: Arc::new(file), length, alive, stuck: false });
        }
        let inside = Inside { files, current: None, next, dirty: false };
        Ok(Self { directory: directory.to_owned(), inside: RwLock::new(inside) })
    }

    /// Writes a chunk. The system has it then.
    pub fn append(&self, key: &[u8], value: &[u8]) -> io::Result<Place> {
        // A key is a user id and a number.
        let bytes = frame::encode(Kind::Chunk, &[&(key.len() as u16).to_be_bytes(), key, value]);
        let mut inside = self.inside.write();
        let full = |inside: &Inside, current| inside.files.get(&current).is_none_or(|file| file.length >= FILE_BYTES);
        let number = match inside.current.filter(|current| !full(&inside, *current)) {
            Some(current) => current,
            None => self.begin_file(&mut inside)?,
        };
        let file = inside.files.get_mut(&number).expect("the file that is written to");
        file.file.write_all_at(&bytes, file.length)?;
        let place = Place { file: number, at: file.length as u32, length: bytes.len() as u32 };
        file.length += bytes.len() as u64;
        file.alive += bytes.len() as u64;
        inside.dirty = true;
        Ok(place)
    }

    fn begin_file(&self, inside: &mut Inside) -> io::Result<u64> {
        if let Some(last) = inside.current.and_then(|current| inside.files.get(&current)) {
            last.file.sync_data()?;
        }
        let number = inside.next;
        let file = Arc::new(frame::create(&self.directory, &frame::name(number))?);
        inside.files.insert(number, ChunkFile { file, length: 0, alive: 0, stuck: false });
        inside.next += 1;
        inside.current = Some(number);
        Ok(number)
    }

    /// Makes all chunks last.
    pub fn sync(&self) -> io::Result<()> {
        let file = {
            let inside = self.inside.read();
            let current = inside.current.filter(|_| inside.dirty).and_then(|current| inside.files.get(&current));
            let Some(current) = current else { return Ok(()) };
            current.file.clone()
        };
        // Without the lock: readers need not wait for a disk. Only the one who writes syncs.
        file.sync_data()?;
        self.inside.write().dirty = false;
        Ok(())
    }

    /// Reads the chunk of a key.
    pub fn read(&self, place: Place, key: &[u8]) -> io::Result<Found> {
        let Some(file) = self.file(place.file) else { return Ok(Found::Gone) };
        let bytes = read_at(&file, u64::from(place.at), place.length as usize)?;
        Ok(value_of(&bytes, key).map_or(Found::Damaged, |from| Found::Chunk(Bytes::from(bytes).slice(from..))))
    }

    pub fn file(&self, number: u64) -> Option<Arc<File>> {
        self.inside.read().files.get(&number).map(|file| file.file.clone())
    }

    /// The table does not lead there any more.
    pub fn release(&self, place: Place) {
        if let Some(file) = self.inside.write().files.get_mut(&place.file) {
            file.alive = file.alive.saturating_sub(u64::from(place.length));
        }
    }

    /// Files of which nothing is alive, and which are not written to.
    pub fn dead(&self) -> Vec<u64> {
        let inside = self.inside.read();
        let dead = inside.files.iter().filter(|(number, file)| file.alive == 0 && Some(**number) != inside.current);
        dead.map(|(number, _)| *number).collect()
    }

    /// Removes files. Whoever reads one at the moment goes on reading.
    pub fn remove(&self, numbers: &[u64]) -> io::Result<()> {
        for number in numbers {
            fs::remove_file(self.directory.join(frame::name(*number)))?;
            self.inside.write().files.remove(number);
        }
        Ok(())
    }

    /// Of a file that is written to and in which nothing is alive any more, no more is written to.
    pub fn leave_empty(&self) {
        let mut inside = self.inside.write();
        let current = inside.current.and_then(|current| inside.files.get(&current));
        if current.is_some_and(|file| file.alive == 0 && file.length > 0) {
            inside.current = None;
            inside.dirty = false;
        }
    }

    /// The file with the smallest part alive, if too much of all of them is dead.
    pub fn emptiest(&self) -> Option<u64> {
        let inside = self.inside.read();
        // What is about to go, or cannot be moved, does not count.
        let files = || inside.files.values().filter(|file| file.alive > 0 && !file.stuck);
        let sum = |of: fn(&ChunkFile) -> u64| files().map(of).sum::<u64>();
        let (length, alive) = (sum(|file| file.length), sum(|file| file.alive));
        if length - alive.min(length) <= alive.max(DEAD_BYTES_LEFT) {
            return None;
        }
        let sealed = inside
            .files
            .iter()
            .filter(|(number, file)| Some(**number) != inside.current && file.alive > 0 && !file.stuck);
        sealed.min_by_key(|(_, file)| file.alive * 1000 / file.length.max(1)).map(|(number, _)| *number)
    }

    /// All of this file that can be read is elsewhere now.
    pub fn compacted(&self, number: u64) {
        if let Some(file) = self.inside.write().files.get_mut(&number) {
            file.stuck = file.alive > 0;
        }
    }
}

/// Where in a frame the chunk of this key begins; `None` if it is not its frame.
pub fn value_of(bytes: &[u8], key: &[u8]) -> Option<usize> {
    let (found, value) = parts(frame::body(Kind::Chunk, bytes)?)?;
    (found == key).then(|| frame::HEAD_BYTES + 2 + found.len()).filter(|from| from + value.len() == bytes.len())
}

/// Key and chunk, from the body of a frame.
pub fn parts(body: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = body.split_first_chunk()?;
    rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(files: &ChunkFiles, place: Place, key: &[u8]) -> Option<Vec<u8>> {
        match files.read(place, key).unwrap() {
            Found::Chunk(value) => Some(value.to_vec()),
            _ => None,
        }
    }

    #[test]
    fn a_chunk_is_read_by_its_key_alone_and_a_file_goes_when_nothing_in_it_is_needed() {
        let home = tempfile::tempdir().unwrap();
        let files = ChunkFiles::open(home.path(), [].into_iter()).unwrap();
        let big = vec![7; FILE_BYTES as usize / 10];
        let places: Vec<_> = (0..25_u8).map(|n| files.append(&[n], &big).unwrap()).collect();
        files.sync().unwrap();
        assert_eq!(read(&files, places[3], &[3]), Some(big.clone()));
        assert_eq!(read(&files, places[3], &[4]), None, "it is another's");
        assert_eq!(frame::numbered(home.path()).unwrap(), [1, 2, 3]);
        places.iter().filter(|place| place.file == 1).for_each(|place| files.release(*place));
        assert_eq!(files.dead(), [1]);
        files.remove(&[1]).unwrap();
        assert!(matches!(files.read(places[3], &[3]).unwrap(), Found::Gone));
        drop(files);
        let files = ChunkFiles::open(home.path(), places.iter().copied().filter(|place| place.file == 3)).unwrap();
        assert_eq!(frame::numbered(home.path()).unwrap(), [3], "nothing leads to the others");
        assert_eq!(files.append(b"new", b"value").unwrap().file, 4, "what was there is not gone on with");
        assert_eq!(read(&files, places[24], &[24]), Some(big));
    }

    #[test]
    fn the_emptiest_file_is_named_when_more_is_dead_than_alive() {
        let home = tempfile::tempdir().unwrap();
        let files = ChunkFiles::open(home.path(), [].into_iter()).unwrap();
        let places: Vec<_> = (0..60_u8).map(|n| files.append(&[n], &vec![7; 1_000_000]).unwrap()).collect();
        let last_of = |file| places.iter().rposition(|place| place.file == file);
        let mut released = 0;
        for (n, place) in places.iter().enumerate() {
            assert!(released > 30 || files.emptiest().is_none(), "{released} of 60 are dead");
            // Of the third file one stays, of the others two or three.
            if n % 4 != 0 && place.file != 3 || place.file == 3 && Some(n) != last_of(3) {
                files.release(*place);
                released += 1;
            }
        }
        assert_eq!(files.emptiest(), Some(3));
        files.compacted(3);
        assert!(files.emptiest().is_some_and(|other| other != 3), "what cannot be moved is not tried again");
        assert_eq!(Place::decode(&places[9].encode()), Some(places[9]));
        assert_eq!(Place::decode(&places[9].encode()[1..]), None);
    }
}
