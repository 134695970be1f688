//! Everything in a store that nobody has open, read without changing anything and without taking anything for granted.

use std::{
    collections::{BTreeMap, HashMap},
    fs, io,
    path::{Path, PathBuf},
};

use bytes::Bytes;

use super::sled_file::{Broken, Gap, Pairs, RawTables};
use crate::embedded::{
    tables::{
        contract::Table,
        files::{LOG, VALUE_LOG, WAL},
        meta::{FLUSHED_KEY, FORMAT, FORMAT_KEY},
        missing::Missing,
        schema::wal_number,
    },
    value_log::{
        file::{BlockLocation, no_place, parts, value_of},
        framing::{self, HEAD_BYTES, Kind},
    },
    wal::layout::record_at,
};

/// What the disk is asked for at once: where it gives no answer, this much is missed.
const PART_BYTES: usize = 4096;

/// A stretch of a file of ours in which nothing can be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::embedded) struct Unreadable {
    /// Which, in the store's directory.
    pub file: String,
    /// First byte of it, and the first behind it.
    pub from: u64,
    pub to: u64,
}

/// All that is in the files.
#[derive(Debug)]
pub(in crate::embedded) struct OfflineReader {
    tables: RawTables,
    /// Records that are needed, by their numbers.
    records: BTreeMap<u64, Bytes>,
    /// The highest record that one of them says was synced.
    synced: u64,
    chunks: Chunks,
    unreadable: Vec<Unreadable>,
}

impl OfflineReader {
    /// Reads the store in `directory`; of sled's file up to where sled takes it to end, or, with `behind`, all that can be
    /// read.
    pub fn open(directory: &Path, behind: bool) -> io::Result<Self> {
        let tables = RawTables::open(&directory.join(LOG), behind)?;
        let settled = flushed_through(&tables)?;
        let mut rest = Self {
            tables,
            records: BTreeMap::new(),
            synced: 0,
            chunks: Chunks { directory: directory.join(VALUE_LOG) },
            unreadable: Vec::new(),
        };
        rest.read_records(&directory.join(WAL), settled)?;
        Ok(rest)
    }

    fn read_records(&mut self, directory: &Path, settled: u64) -> io::Result<()> {
        for first in framing::numbered(directory)? {
            let bytes = read_what_can_be(&directory.join(framing::name(first)))?;
            let mut at = 0;
            while at < bytes.len() {
                let Some(record) = record_at(&bytes, at) else {
                    let next = framing::find(Kind::Record, &bytes, at + 1).unwrap_or(bytes.len());
                    let file = format!("{WAL}/{}", framing::name(first));
                    self.unreadable.push(Unreadable { file, from: at as u64, to: next as u64 });
                    at = next;
                    continue;
                };
                at = record.end;
                self.synced = self.synced.max(record.synced);
                if record.number > settled {
                    self.records.insert(record.number, bytes.slice_ref(record.value));
                }
            }
        }
        Ok(())
    }

    /// Records that are needed, with their numbers, in order.
    pub fn records(&self) -> impl Iterator<Item = (u64, &Bytes)> {
        self.records.iter().map(|(number, record)| (*number, record))
    }

    /// The highest record that another one says was synced.
    pub fn synced(&self) -> u64 {
        self.synced
    }

    /// Up to this record nothing is needed of the journal.
    pub fn settled(&self) -> io::Result<u64> {
        flushed_through(&self.tables)
    }

    /// Parts of the journal's files in which nothing can be read.
    pub fn unreadable(&self) -> &[Unreadable] {
        &self.unreadable
    }

    /// The pairs of a table from `from` on, in order; of an inbox, of chunks that cannot be read why. The journal is
    /// none of these.
    pub fn pairs(&self, table: Table, from: &[u8]) -> TablePairs<'_> {
        let chunks = (table == Table::Log).then_some(&self.chunks);
        TablePairs { pairs: self.tables.pairs(table, from), chunks }
    }

    /// The keys of a table, in order.
    pub fn keys(&self, table: Table) -> impl Iterator<Item = io::Result<Bytes>> {
        self.tables.pairs(table, &[]).map(|pair| pair.map(|(key, _)| key))
    }

    /// A value of a table other than the inboxes.
    pub fn get(&self, table: Table, key: &[u8]) -> io::Result<Option<Bytes>> {
        self.tables.get(table, key)
    }

    /// Visits the chunks to which no table leads: such that were let go, and such whose place is lost.
    pub fn chunks_without_place(&self, mut visit: impl FnMut(&Bytes)) -> io::Result<()> {
        let mut known = HashMap::new();
        for pair in self.tables.pairs(Table::Log, &[]) {
            let (key, place) = pair?;
            known.extend(BlockLocation::decode(&place).map(|place| (place, key)));
        }
        for file in framing::numbered(&self.chunks.directory)? {
            let bytes = read_what_can_be(&self.chunks.directory.join(framing::name(file)))?;
            let mut at = 0;
            while let Some(found) = framing::find(Kind::Block, &bytes, at) {
                let Some(body) = framing::body(Kind::Block, &bytes[found..]) else { break };
                let length = HEAD_BYTES + body.len();
                let place = BlockLocation { file, at: found as u32, length: length as u32 };
                // A damaged key may lead to a chunk of another key, and that chunk is not read through it.
                let has_place = |key: &[u8]| known.get(&place).is_some_and(|known| *known == key);
                if let Some((_, value)) = parts(body).filter(|(key, _)| !has_place(key)) {
                    visit(&Bytes::copy_from_slice(value));
                }
                at = found + length;
            }
        }
        Ok(())
    }

    /// Parts of sled's file that are not what was written there.
    pub fn broken(&self) -> &[Broken] {
        self.tables.broken()
    }

    /// Keys of tables of which nothing is known any more.
    pub fn gaps(&mut self) -> Vec<Gap> {
        std::mem::take(&mut self.tables.gaps)
    }

    /// Whether there is something behind the place at which sled takes its log to end.
    pub fn goes_on(&self) -> bool {
        self.tables.goes_on()
    }

    /// A part of the store in `directory` that is not there.
    pub fn missing(&self, directory: &Path) -> io::Result<Option<Missing>> {
        Missing::beside(directory, &self.tables)
    }

    /// Where in its log sled takes it to end.
    pub fn end(&self) -> u64 {
        self.tables.end()
    }

    /// See [`RawTables::lost`]. Leaves out the table of what the store says of itself, whose keys look like ids of users.
    pub fn lost(&self) -> impl Iterator<Item = io::Result<(Bytes, Bytes)>> {
        let is_meta = |pairs: &[(Bytes, Bytes)]| pairs.iter().any(|(key, value)| key == FORMAT_KEY && value == FORMAT);
        self.tables.lost().flat_map(move |page| match page {
            Ok(pairs) if is_meta(&pairs) => Vec::new(),
            Ok(pairs) => pairs.into_iter().map(Ok).collect(),
            Err(error) => vec![Err(error)],
        })
    }
}

/// Up to which record the tables of sled's file say that the journal is not needed.
pub(in crate::embedded) fn flushed_through(tables: &RawTables) -> io::Result<u64> {
    Ok(tables.get(Table::Meta, FLUSHED_KEY)?.and_then(|value| wal_number(&value)).unwrap_or(0))
}

/// A file, with zeros where the disk does not give it back.
fn read_what_can_be(path: &Path) -> io::Result<Bytes> {
    let file = fs::File::open(path)?;
    let length = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX);
    let mut bytes = vec![0; length];
    for (at, part) in bytes.chunks_mut(PART_BYTES).enumerate() {
        if let Ok(read) = framing::read_at(&file, (at * PART_BYTES) as u64, part.len()) {
            part[..read.len()].copy_from_slice(&read);
        }
    }
    Ok(bytes.into())
}

/// The files of chunks.
#[derive(Debug)]
struct Chunks {
    directory: PathBuf,
}

impl Chunks {
    /// The chunk of a key, or why it cannot be read.
    fn chunk(&self, key: &[u8], place: &[u8]) -> io::Result<Bytes> {
        let Some(place) = BlockLocation::decode(place) else { return Ok(no_place().to_value()) };
        let file = match fs::File::open(self.directory.join(framing::name(place.file))) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(place.missing().to_value()),
            file => file?,
        };
        Ok(match framing::read_at(&file, u64::from(place.at), place.length as usize) {
            Ok(bytes) => match value_of(&bytes, key) {
                Some(from) => Bytes::from(bytes).slice(from..),
                None => place.unlike(bytes.len()).to_value(),
            },
            Err(error) => place.unread(&error).to_value(),
        })
    }
}

/// See [`OfflineReader::pairs`].
pub(in crate::embedded) struct TablePairs<'a> {
    pairs: Pairs<'a>,
    chunks: Option<&'a Chunks>,
}

impl Iterator for TablePairs<'_> {
    type Item = io::Result<(Bytes, Bytes)>;

    fn next(&mut self) -> Option<Self::Item> {
        let pair = self.pairs.next()?;
        let Some(chunks) = self.chunks else { return Some(pair) };
        Some(pair.and_then(|(key, place)| Ok((key.clone(), chunks.chunk(&key, &place)?))))
    }
}
