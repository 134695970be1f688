//! Reads the files of a closed store, which may be damaged, without changing them.

use std::{
    cell::OnceCell,
    collections::{BTreeMap, HashMap},
    fs, io,
    path::{Path, PathBuf},
};

use bytes::Bytes;

use super::sled_file::{DamagedRange, LostKeys, Pairs, RawTables};
use crate::{
    embedded::{
        file_io::{self, to_u32},
        framing::{self, HEADER_BYTES, Kind},
        tables::{
            contract::Table,
            files::{SLED_DIR, VALUE_LOG, WAL},
            meta::{FLUSHED_KEY, FORMAT, FORMAT_KEY},
            missing::MissingPart,
            parts::read_row,
            schema::{is_part, wal_number},
        },
        unreadable::Unreadable,
        value_log::{
            bodies::{BodyId, SharedBody, is_body_key},
            file::{block_offset, split_body},
            location::{BlockLocation, BlockRow, invalid_location},
        },
        wal::{layout::record_at, scan::is_zero},
    },
    logging::system_error,
};

/// Bytes per read. A disk error loses this many.
const READ_BYTES: usize = 4096;

/// Describes a range of a WAL segment in which no record can be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::embedded) struct UnreadableRange {
    /// Name of the file in the store's directory.
    pub file: String,
    /// First byte of the range, and the first byte after it.
    pub from: u64,
    pub to: u64,
}

/// Reads the tables, the WAL and the value log of a closed store.
#[derive(Debug)]
pub(in crate::embedded) struct OfflineReader {
    tables: RawTables,
    /// Unflushed WAL records, by their numbers.
    records: BTreeMap<u64, Bytes>,
    /// The highest record that another record states as synced.
    synced: u64,
    blocks: BlockReader,
    /// Locations of the shared bodies in the value log, for those whose location in the table is lost.
    body_frames: OnceCell<HashMap<BodyId, BlockLocation>>,
    unreadable: Vec<UnreadableRange>,
}

impl OfflineReader {
    /// Reads the store in `directory`.
    ///
    /// Reads sled's file up to the end that sled detects. With `past_end`, reads everything readable.
    pub fn open(directory: &Path, past_end: bool) -> io::Result<Self> {
        let tables = RawTables::open(&directory.join(SLED_DIR), past_end)?;
        let flushed = flushed_through(&tables)?;
        let mut reader = Self {
            tables,
            records: BTreeMap::new(),
            synced: 0,
            blocks: BlockReader { directory: directory.join(VALUE_LOG) },
            body_frames: OnceCell::new(),
            unreadable: Vec::new(),
        };
        reader.read_records(&directory.join(WAL), flushed)?;
        Ok(reader)
    }

    fn read_records(&mut self, directory: &Path, flushed: u64) -> io::Result<()> {
        for first in file_io::file_numbers(directory)? {
            let bytes = read_lossy(&directory.join(file_io::file_name(first)))?;
            let mut at = 0;
            while at < bytes.len() {
                let Some(record) = record_at(&bytes, at) else {
                    if is_zero(&bytes[at..]) {
                        break;
                    }
                    let next = framing::find(Kind::Record, &bytes, at + 1).unwrap_or(bytes.len());
                    let file = format!("{WAL}/{}", file_io::file_name(first));
                    self.unreadable.push(UnreadableRange { file, from: at as u64, to: next as u64 });
                    at = next;
                    continue;
                };
                at = record.end;
                self.synced = self.synced.max(record.synced);
                if record.number > flushed {
                    self.records.insert(record.number, bytes.slice_ref(record.value));
                }
            }
        }
        Ok(())
    }

    /// Returns the unflushed records with their numbers, in order.
    pub fn records(&self) -> impl Iterator<Item = (u64, &Bytes)> {
        self.records.iter().map(|(number, record)| (*number, record))
    }

    /// Returns the highest record that another record states as synced.
    pub fn synced(&self) -> u64 {
        self.synced
    }

    /// Returns the record up to which the WAL is flushed.
    pub fn flushed(&self) -> io::Result<u64> {
        flushed_through(&self.tables)
    }

    /// Returns the ranges of WAL segments without a readable record.
    pub fn unreadable(&self) -> &[UnreadableRange] {
        &self.unreadable
    }

    /// Returns the pairs of a table from `from` on, in order.
    ///
    /// The value of an unreadable block is a placeholder with the reason.
    pub fn pairs(&self, table: Table, from: &[u8]) -> TablePairs<'_> {
        TablePairs { table, pairs: self.tables.pairs(table, from), reader: self }
    }

    /// Returns the keys of a table, in order.
    pub fn keys(&self, table: Table) -> impl Iterator<Item = io::Result<Bytes>> {
        let keys = self.tables.pairs(table, &[]).map(|pair| pair.map(|(key, _)| key));
        keys.filter(move |key| !(table == Table::Users && key.as_ref().is_ok_and(|key| is_part(key))))
    }

    /// Returns a value of a table that is not in the value log.
    pub fn get(&self, table: Table, key: &[u8]) -> io::Result<Option<Bytes>> {
        self.tables.get(table, key)
    }

    /// Reads the payload of a shared body, also if its location in the table is lost.
    pub fn body(&self, id: BodyId, namespace: u32, length: u32) -> Result<Bytes, Unreadable> {
        let key = id.key();
        let unreadable = |error: io::Error| Unreadable::new(system_error(&error));
        let row = match self.tables.get(Table::Bodies, &key).map_err(unreadable)? {
            Some(row) => row,
            None => {
                let frames = self.body_frames.get_or_init(|| self.find_bodies().unwrap_or_default());
                let location = frames.get(&id).ok_or_else(|| Unreadable::new("its shared body is missing"))?;
                BlockRow::of_body(*location).encode().into()
            }
        };
        SharedBody::payload(&self.blocks.read(&key, &row).map_err(unreadable)?, namespace, length)
    }

    /// Finds the shared bodies in all files of the value log.
    fn find_bodies(&self) -> io::Result<HashMap<BodyId, BlockLocation>> {
        let mut found = HashMap::new();
        self.visit_frames(|location, key, _| {
            found.extend(BodyId::of_key(key).map(|id| (id, location)));
        })?;
        Ok(found)
    }

    /// Visits the blocks without a location in the table: dead blocks, and blocks whose location is lost.
    pub fn blocks_without_location(&self, mut visit: impl FnMut(&Bytes)) -> io::Result<()> {
        let mut known = HashMap::new();
        for pair in self.tables.pairs(Table::Log, &[]) {
            let (key, location) = pair?;
            known.extend(BlockRow::decode(&location).map(|row| (row.location, key)));
        }
        self.visit_frames(|location, key, value| {
            // A damaged key may refer to the block of another key. That key then has no location.
            if !is_body_key(key) && known.get(&location).is_none_or(|known| *known != key) {
                visit(&Bytes::copy_from_slice(value));
            }
        })
    }

    /// Visits all readable frames of the value log: location, key and value.
    fn visit_frames(&self, mut visit: impl FnMut(BlockLocation, &[u8], &[u8])) -> io::Result<()> {
        for file in file_io::file_numbers(&self.blocks.directory)? {
            let bytes = read_lossy(&self.blocks.directory.join(file_io::file_name(file)))?;
            let mut at = 0;
            while let Some(found) = framing::find(Kind::Block, &bytes, at) {
                let Some(body) = framing::body(Kind::Block, &bytes[found..]) else { break };
                let length = HEADER_BYTES + body.len();
                let location = BlockLocation { file, offset: to_u32(found as u64)?, length: to_u32(length as u64)? };
                if let Some((key, value)) = split_body(body) {
                    visit(location, key, value);
                }
                at = found + length;
            }
        }
        Ok(())
    }

    /// Returns the damaged parts of sled's file.
    pub fn damaged(&self) -> &[DamagedRange] {
        self.tables.damaged()
    }

    /// Returns the lost ranges of keys, and clears the list.
    pub fn take_lost_keys(&mut self) -> Vec<LostKeys> {
        std::mem::take(&mut self.tables.lost_keys)
    }

    /// Returns whether there is data after the end that sled detects in its log.
    pub fn has_data_past_end(&self) -> bool {
        self.tables.has_data_past_end()
    }

    /// Returns the first missing part of the store in `directory`, other than the tables.
    pub fn missing(&self, directory: &Path) -> io::Result<Option<MissingPart>> {
        MissingPart::find_other(directory, &self.tables)
    }

    /// Returns the log position at which sled detects the end of its log.
    pub fn end(&self) -> u64 {
        self.tables.end()
    }

    /// Returns the pairs of orphaned pages: see [`RawTables::orphan_pairs`].
    ///
    /// Excludes pages of the table `meta`, whose keys look like user ids.
    pub fn orphan_pairs(&self) -> impl Iterator<Item = io::Result<(Bytes, Bytes)>> {
        let is_meta = |pairs: &[(Bytes, Bytes)]| pairs.iter().any(|(key, value)| key == FORMAT_KEY && value == FORMAT);
        self.tables.orphan_pairs().flat_map(move |page| match page {
            Ok(pairs) if is_meta(&pairs) => Vec::new(),
            Ok(pairs) => pairs.into_iter().map(Ok).collect(),
            Err(error) => vec![Err(error)],
        })
    }
}

/// Returns the record up to which the WAL is flushed, as the tables state it.
pub(in crate::embedded) fn flushed_through(tables: &RawTables) -> io::Result<u64> {
    Ok(tables.get(Table::Meta, FLUSHED_KEY)?.and_then(|value| wal_number(&value)).unwrap_or(0))
}

/// Reads a file, with zeros in place of unreadable parts.
fn read_lossy(path: &Path) -> io::Result<Bytes> {
    let file = fs::File::open(path)?;
    let length = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX);
    let mut bytes = vec![0; length];
    for (at, part) in bytes.chunks_mut(READ_BYTES).enumerate() {
        if let Ok(read) = file_io::read_at(&file, (at * READ_BYTES) as u64, part.len()) {
            part[..read.len()].copy_from_slice(&read);
        }
    }
    Ok(bytes.into())
}

/// Reads blocks from the files of the value log.
#[derive(Debug)]
struct BlockReader {
    directory: PathBuf,
}

impl BlockReader {
    /// Reads the block of a key, or returns a placeholder with the reason why it cannot be read.
    fn read(&self, key: &[u8], location: &[u8]) -> io::Result<Bytes> {
        let Some(row) = BlockRow::decode(location) else { return Ok(invalid_location().to_value()) };
        let location = row.location;
        let file = match fs::File::open(self.directory.join(file_io::file_name(location.file))) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(location.missing().to_value()),
            file => file?,
        };
        Ok(match file_io::read_at(&file, u64::from(location.offset), location.length as usize) {
            Ok(bytes) => match block_offset(&bytes, key) {
                Some(from) => Bytes::from(bytes).slice(from..),
                None => location.mismatch(bytes.len()).to_value(),
            },
            Err(error) => location.unreadable(&error).to_value(),
        })
    }
}

/// Iterates over a table: see [`OfflineReader::pairs`].
pub(in crate::embedded) struct TablePairs<'a> {
    table: Table,
    pairs: Pairs<'a>,
    reader: &'a OfflineReader,
}

impl Iterator for TablePairs<'_> {
    type Item = io::Result<(Bytes, Bytes)>;

    fn next(&mut self) -> Option<Self::Item> {
        let OfflineReader { tables, blocks, .. } = self.reader;
        loop {
            let (key, value) = match self.pairs.next()? {
                Ok((key, _)) if self.table == Table::Users && is_part(&key) => continue,
                Ok(pair) => pair,
                Err(error) => return Some(Err(error)),
            };
            let value = match self.table {
                Table::Log | Table::Bodies => blocks.read(&key, &value),
                Table::Users => read_row(&key, value, |part| tables.get(Table::Users, part)),
                _ => Ok(value),
            };
            return Some(value.map(|value| (key, value)));
        }
    }
}
