//! Format of backups: a store in one file, as a sequence of blocks.
//!
//! The first line names the version. Each block is its length, a checksum over its number and its body, and the body.
//! The checksum detects reordered blocks. The last block has the counts of the file, which detects a truncated file.
//! The entries of a user precede the user's log. The logs precede the outbox: a log never states an acknowledgement
//! whose event the outbox lacks.

use std::io::{self, Read, Write};

use bincode::{Decode, Encode, config};
use bytes::Bytes;

pub use crate::store::{BackupError, Contents};
use crate::{
    embedded::{
        outbox::format::{Batch, Pieces},
        tables::schema::{StoredId, StoredLog},
        unreadable::Unreadable,
        value_log::block,
    },
    message::Seq,
};

/// First line of a backup.
const MAGIC: &[u8; 16] = b"mesa backup 003\n";

/// First bytes of a backup of any version.
const MAGIC_PREFIX: &[u8] = b"mesa backup ";

/// Longest block, in bytes. It holds entries of one user, or one large entry; a row is far shorter.
const BLOCK_BYTES_MAX: usize = 256 << 10;

/// Idempotency ids in one block.
const IDS_MAX: usize = 64;

/// Users with a reported sequence in one block.
const REPORTED_MAX: usize = 128;

/// Holds one part of a backup. Variants are only appended.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(in crate::embedded) enum Block {
    /// The first block.
    Begin { namespace: String, lossy_restarts: u32 },
    /// Entries of a user, ascending: sequence, expiry in seconds of the Unix epoch (0 = never), payload.
    Entries { user: String, entries: Vec<(Seq, u32, Vec<u8>)> },
    /// A user's log without its entries, which precede it.
    Log { user: String, log: StoredLog },
    /// This user was erased while the log was read. The entries that precede it are not part of the backup.
    Erased { user: String },
    /// Idempotency ids and their results.
    Ids(Vec<StoredId>),
    /// Users, each with the sequence up to which messages were reported as undelivered.
    Reported(Vec<(String, Seq)>),
    /// A piece of the batch of webhook events whose first event has number `first`. Batches descend.
    Events { first: u64, piece: Vec<u8> },
    /// The encoded counts of dropped webhook events.
    Lost(Vec<u8>),
    /// The last block: counts, the time of the store's clock in milliseconds of the Unix epoch, and the sequence floor.
    End { users: u64, entries: u64, bytes: u64, events: u64, clock_ms: u64, floor: Seq },
    /// The last block of a backup that failed, with the reason.
    Failed(String),
}

type BincodeConfig =
    config::Configuration<config::LittleEndian, config::Varint, config::Limit<{ 4 * BLOCK_BYTES_MAX }>>;

fn bincode_config() -> BincodeConfig {
    config::standard().with_limit::<{ 4 * BLOCK_BYTES_MAX }>()
}

fn checksum(number: u64, body: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&number.to_le_bytes());
    crc.update(body);
    crc.finalize()
}

/// Counts the contents of the blocks.
#[derive(Default)]
struct Counter {
    contents: Contents,
    /// Entries of the user whose log has not followed yet.
    user: Contents,
    /// Pieces of the batch of events whose last piece has not followed yet.
    pieces: Pieces,
}

impl Counter {
    fn add(&mut self, block: &Block) -> Result<(), Unreadable> {
        match block {
            Block::Entries { entries, .. } => {
                self.user.entries += entries.len() as u64;
                self.user.bytes += entries.iter().map(|(.., payload)| payload.len() as u64).sum::<u64>();
            }
            Block::Log { .. } => {
                let user = std::mem::take(&mut self.user);
                self.contents.users += 1;
                self.contents.entries += user.entries;
                self.contents.bytes += user.bytes;
            }
            Block::Erased { .. } => self.user = Contents::default(),
            Block::Events { piece, .. } => {
                if let Some(Batch::V1 { events, .. }) = self.pieces.push(piece)? {
                    self.contents.events += events.iter().filter(|(_, event)| event.is_some()).count() as u64;
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// Writes a backup.
pub(in crate::embedded) struct BackupWriter<W> {
    out: W,
    number: u64,
    counter: Counter,
}

impl<W: Write> BackupWriter<W> {
    pub fn begin(mut out: W, namespace: String, lossy_restarts: u32) -> io::Result<Self> {
        out.write_all(MAGIC)?;
        let mut writer = Self { out, number: 0, counter: Counter::default() };
        writer.put(&Block::Begin { namespace, lossy_restarts })?;
        Ok(writer)
    }

    fn put(&mut self, block: &Block) -> io::Result<()> {
        self.counter.add(block).map_err(io::Error::other)?;
        let body = bincode::encode_to_vec(block, bincode_config()).map_err(io::Error::other)?;
        let length = u32::try_from(body.len()).ok().filter(|length| *length as usize <= BLOCK_BYTES_MAX);
        let length = length.ok_or_else(|| io::Error::other(format!("a block of {} bytes", body.len())))?;
        // One write per block, so that a stream forwards complete blocks.
        let mut bytes = Vec::with_capacity(body.len() + 8);
        bytes.extend(length.to_le_bytes());
        bytes.extend(checksum(self.number, &body).to_le_bytes());
        bytes.extend(body);
        self.number += 1;
        self.out.write_all(&bytes)
    }

    pub fn entries(&mut self, user: &str, entries: &[(Seq, u32, Bytes)]) -> io::Result<()> {
        for part in block::split_entries(entries, |(.., payload)| payload.len()) {
            let entries = part.iter().map(|(seq, expires_s, payload)| (*seq, *expires_s, payload.to_vec())).collect();
            self.put(&Block::Entries { user: user.to_owned(), entries })?;
        }
        Ok(())
    }

    pub fn log(&mut self, user: &str, log: StoredLog) -> io::Result<()> {
        self.put(&Block::Log { user: user.to_owned(), log })
    }

    /// Withdraws the entries of a user who was erased meanwhile.
    pub fn erased(&mut self, user: &str) -> io::Result<()> {
        self.put(&Block::Erased { user: user.to_owned() })
    }

    pub fn reported(&mut self, reported: &[(String, Seq)]) -> io::Result<()> {
        reported.chunks(REPORTED_MAX).try_for_each(|part| self.put(&Block::Reported(part.to_vec())))
    }

    pub fn events(&mut self, first: u64, batch: &Batch) -> io::Result<()> {
        batch.pieces().into_iter().try_for_each(|piece| self.put(&Block::Events { first, piece }))
    }

    pub fn lost(&mut self, lost: Vec<u8>) -> io::Result<()> {
        self.put(&Block::Lost(lost))
    }

    pub fn ids(&mut self, ids: &[StoredId]) -> io::Result<()> {
        ids.chunks(IDS_MAX).try_for_each(|part| self.put(&Block::Ids(part.to_vec())))
    }

    /// Ends the backup with the time of the store's clock, and the sequence floor.
    pub fn end(mut self, clock_ms: u64, floor: Seq) -> io::Result<Contents> {
        let Contents { users, entries, bytes, events } = self.counter.contents;
        self.put(&Block::End { users, entries, bytes, events, clock_ms, floor })?;
        self.out.flush()?;
        Ok(self.counter.contents)
    }

    /// Ends an incomplete backup with the reason.
    pub fn fail(mut self, why: String) -> io::Result<()> {
        self.put(&Block::Failed(why))?;
        self.out.flush()
    }
}

/// Reads a backup, and verifies each block.
pub(in crate::embedded) struct BackupReader<R> {
    from: R,
    number: u64,
    counter: Counter,
    ended: bool,
}

impl<R: Read> BackupReader<R> {
    pub fn begin(mut from: R) -> Result<Self, BackupError> {
        let mut magic = [0; MAGIC.len()];
        from.read_exact(&mut magic).map_err(|_| BackupError::Foreign)?;
        if magic != *MAGIC && magic.starts_with(MAGIC_PREFIX) {
            return Err(BackupError::OtherVersion);
        }
        if magic != *MAGIC {
            return Err(BackupError::Foreign);
        }
        Ok(Self { from, number: 0, counter: Counter::default(), ended: false })
    }

    /// Reads the next block. Returns `None` after the last.
    pub fn next(&mut self) -> Result<Option<Block>, BackupError> {
        if self.ended {
            return Ok(None);
        }
        let mut head = [0; 8];
        self.fill(&mut head)?;
        let [length, crc] = [0, 4].map(|at| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]));
        if length as usize > BLOCK_BYTES_MAX {
            return Err(self.damaged("its length is invalid"));
        }
        let mut body = vec![0; length as usize];
        self.fill(&mut body)?;
        if checksum(self.number, &body) != crc {
            return Err(self.damaged("its checksum does not match"));
        }
        let decoded: Result<(Block, usize), _> = bincode::decode_from_slice(&body, bincode_config());
        let block = match decoded {
            Ok((block, read)) if read == body.len() => block,
            Ok(_) => return Err(self.damaged("it has bytes after its content")),
            Err(error) => return Err(self.damaged(error)),
        };
        self.count(&block)?;
        self.number += 1;
        Ok(Some(block))
    }

    /// Counts the contents of a block, and rejects a block out of order.
    fn count(&mut self, block: &Block) -> Result<(), BackupError> {
        match block {
            Block::Begin { .. } if self.number > 0 => return Err(self.damaged("it is a second first block")),
            Block::Begin { .. } => {}
            _ if self.number == 0 => return Err(self.damaged("it is not a first block")),
            Block::End { users, entries, bytes, events, .. } => {
                let stated = Contents { users: *users, entries: *entries, bytes: *bytes, events: *events };
                if stated != self.counter.contents {
                    return Err(self.damaged("its counts do not match the file"));
                }
                self.ended = true;
                if self.from.read(&mut [0])? > 0 {
                    return Err(self.damaged("data follows it, although it is the last block"));
                }
            }
            Block::Failed(why) => return Err(BackupError::Failed(why.clone())),
            counted => self.counter.add(counted).map_err(|error| self.damaged(error))?,
        }
        Ok(())
    }

    pub fn contents(&self) -> Contents {
        self.counter.contents
    }

    fn damaged(&self, what: impl ToString) -> BackupError {
        BackupError::Damaged { block: self.number, what: what.to_string() }
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), BackupError> {
        self.from.read_exact(bytes).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => BackupError::CutOff,
            _ => error.into(),
        })
    }
}

/// Decodes a block as it was written, without a check of its number.
#[cfg(test)]
pub(in crate::embedded) fn decode_block(bytes: &[u8]) -> Result<Block, bincode::error::DecodeError> {
    let body = bytes.get(8..).unwrap_or_default();
    bincode::decode_from_slice(body, bincode_config()).map(|(block, _)| block)
}

/// Verifies a backup. Returns its counts.
///
/// # Errors
/// When the backup is incomplete or damaged.
pub fn verify(from: impl Read) -> Result<Contents, BackupError> {
    let mut reader = BackupReader::begin(from)?;
    while reader.next()?.is_some() {}
    Ok(reader.contents())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::OutboxEvent;

    fn file() -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut writer = BackupWriter::begin(&mut bytes, "chat".into(), 2).unwrap();
        let entries: Vec<_> = (1..=300).map(|seq| (seq, 0, Bytes::from(vec![b'x'; 1000]))).collect();
        writer.entries("alice", &entries).unwrap();
        writer.log("alice", StoredLog { head: 300, ..StoredLog::default() }).unwrap();
        writer.ids(&[]).unwrap();
        let event = OutboxEvent::Connection { connection: "c".into() };
        writer.events(5, &Batch::V1 { start: 1, events: vec![(7, Some(event)), (8, None)] }).unwrap();
        let contents = writer.end(7, 9).unwrap();
        assert_eq!(contents, Contents { users: 1, entries: 300, bytes: 300_000, events: 1 });
        bytes
    }

    #[test]
    fn truncated_file_is_rejected() {
        let file = file();
        assert_eq!(verify(&file[..]).unwrap().entries, 300);
        for end in (0..file.len()).step_by(97).chain(file.len() - 40..file.len()) {
            assert!(verify(&file[..end]).is_err(), "cut off at {end} of {}", file.len());
        }
        assert!(verify(&[&file[..], b"x"].concat()[..]).is_err(), "data follows the last block");
    }

    #[test]
    fn file_with_flipped_bit_is_rejected() {
        let file = file();
        for at in (0..file.len()).step_by(61) {
            let mut damaged = file.clone();
            damaged[at] ^= 1 << (at % 8);
            assert!(verify(&damaged[..]).is_err(), "a bit at {at}");
        }
    }

    #[test]
    fn file_with_reordered_blocks_is_rejected() {
        let file = file();
        let mut at = MAGIC.len();
        let mut blocks = Vec::new();
        while at < file.len() {
            let length = u32::from_le_bytes(file[at..at + 4].try_into().unwrap()) as usize + 8;
            blocks.push(&file[at..at + length]);
            at += length;
        }
        blocks.swap(1, 2);
        let swapped = [&MAGIC[..], &blocks.concat()].concat();
        assert!(verify(&swapped[..]).is_err());
    }
}
