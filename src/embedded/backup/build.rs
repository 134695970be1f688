//! Builds a store from rows, entries and idempotency ids.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use bytes::Bytes;

use super::{format::Contents, payloads::Payloads};
use crate::{
    embedded::{
        engine::Engine,
        offline::inspect::{InspectSink, LogFacts},
        outbox::format::{self as outbox_format, event_key, reported_key},
        tables::{
            contract::{Table, Tables},
            meta::{
                CLOCK_KEY, CLOSED, FLOOR_KEY, FLUSHED_KEY, FORMAT, FORMAT_KEY, LOSSY_RESTARTS_KEY, NAMESPACE_KEY,
                OPEN_KEY,
            },
            schema::{StoredId, StoredLog, log_key, wal_key},
            sled::Disk,
            unfinished::{self, Operation},
        },
        value_log::{
            block::{Block, Body, split_entries},
            bodies::{BodyId, SHARED_BYTES_MIN, SharedBody, is_shared},
        },
    },
    message::Seq,
    store::{StoreError, fingerprint, gaps::GapList},
    util::saturate::saturate,
};

/// Lossy restarts that a restored or salvaged store adds to every log: about a million sequences.
///
/// Clients may have received entries that followed the backup, or that a damaged log lost. Their sequences are not
/// reused.
pub(in crate::embedded) const LOSSY_RESTARTS_ADDED: u32 = 16;

/// Writes a store to `OUT.partial`, and renames it to `OUT` when it is complete.
pub(in crate::embedded) struct StoreBuilder {
    /// Final directory.
    out: PathBuf,
    /// Directory in which the store is built.
    partial: PathBuf,
    engine: Disk,
    namespace: u32,
    /// Entries of the current user: sequence, bytes of payload, expiry in seconds of the Unix epoch (0 = never).
    user_entries: Vec<(Seq, u32, u32)>,
    /// Keys of the blocks of the current user.
    user_blocks: Vec<Vec<u8>>,
    /// The batch of webhook events that is being written: number of its first event, and of its next piece.
    batch: (u64, usize),
    /// Number of written blocks of idempotency ids.
    id_blocks: u64,
    /// Number of written shared bodies.
    bodies: u64,
    payloads: Payloads,
    contents: Contents,
}

impl StoreBuilder {
    /// Creates an empty, marked store. `out` must be missing or empty.
    pub(in crate::embedded) fn begin(out: &Path, namespace: &str, operation: Operation) -> Result<Self, StoreError> {
        let cannot_open = |reason: String| StoreError::Open { path: out.to_owned(), reason };
        let occupied = match fs::read_dir(out) {
            Ok(mut files) => files.next().map(|_| "is not empty"),
            Err(_) => out.is_file().then_some("is a file"),
        };
        if let Some(how) = occupied {
            return Err(cannot_open(format!("it {how}. Name a directory that does not exist, or is empty")));
        }
        let mut partial = out.as_os_str().to_owned();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        if partial.exists() && !unfinished::remove_unfinished(&partial)? {
            let reason = format!("{} exists, perhaps from an earlier run. Remove it", partial.display());
            return Err(cannot_open(reason));
        }
        let engine = crate::embedded::tables::open::create(&partial, operation)?;
        engine.put(Table::Meta, FORMAT_KEY, FORMAT)?;
        engine.put(Table::Meta, NAMESPACE_KEY, namespace.as_bytes())?;
        Ok(Self {
            out: out.to_owned(),
            partial,
            engine,
            namespace: fingerprint(namespace),
            user_entries: Vec::new(),
            user_blocks: Vec::new(),
            batch: (0, 0),
            id_blocks: 0,
            bodies: 0,
            payloads: Payloads::default(),
            contents: Contents::default(),
        })
    }

    fn put(&mut self, table: Table, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        Ok(self.engine.put(table, key, value)?)
    }

    /// Writes idempotency ids.
    pub(in crate::embedded) fn write_ids(&mut self, ids: Vec<StoredId>) -> Result<(), StoreError> {
        for block in crate::embedded::writer::dedup::pack_blocks(self.namespace, ids) {
            self.id_blocks += 1;
            self.put(Table::Ids, &wal_key(self.id_blocks), &block.encode())?;
        }
        Ok(())
    }

    /// Writes sequences up to which messages were reported as undelivered.
    pub(super) fn write_reported(&mut self, reported: &[(String, Seq)]) -> Result<(), StoreError> {
        let mut all = reported.iter();
        all.try_for_each(|(user, seq)| {
            self.put(Table::Outbox, &reported_key(user), &outbox_format::encode_reported(*seq))
        })
    }

    /// Writes the next piece of the batch of webhook events whose first event has number `first`.
    pub(super) fn write_events(&mut self, first: u64, piece: &[u8]) -> Result<(), StoreError> {
        let at = if self.batch.0 == first { self.batch.1 } else { 0 };
        self.batch = (first, at + 1);
        self.put(Table::Outbox, &event_key(first, at), piece)
    }

    /// Writes the counts of dropped webhook events.
    pub(super) fn write_lost(&mut self, lost: &[u8]) -> Result<(), StoreError> {
        self.put(Table::Outbox, outbox_format::LOST_KEY, lost)
    }

    /// Returns the shared body with this payload. Writes it if enough logs have had the payload to make up for its cost.
    ///
    /// Returns `None` if the entry has the payload itself, as the first entries with any payload do. The body is written
    /// before the block that references it.
    fn shared_body(&mut self, payload: &[u8]) -> Result<Option<BodyId>, StoreError> {
        if payload.len() < SHARED_BYTES_MIN {
            return Ok(None);
        }
        let occurrences = self.payloads.count(payload);
        if let Some(id) = occurrences.body {
            // Two payloads may have the same hash.
            let stored = self.engine.get(Table::Bodies, &id.key())?.unwrap_or_default();
            let stored = SharedBody::payload(&stored, self.namespace, saturate(payload.len()));
            return Ok(stored.is_ok_and(|stored| stored == payload).then_some(id));
        }
        if !is_shared(payload.len(), occurrences.count) {
            return Ok(None);
        }
        self.bodies += 1;
        let id = BodyId { record: self.bodies, at: 0 };
        occurrences.body = Some(id);
        let body = SharedBody::V1 { namespace: self.namespace, payload }.encode();
        self.put(Table::Bodies, &id.key(), &body)?;
        Ok(Some(id))
    }

    /// Removes the entries of the current user, who has no row.
    pub(super) fn discard_entries(&mut self) -> Result<(), StoreError> {
        self.user_entries.clear();
        let mut blocks = std::mem::take(&mut self.user_blocks).into_iter();
        blocks.try_for_each(|key| Ok(self.engine.remove(Table::Log, &key)?))
    }

    /// Writes a user's row, after all entries of that user.
    pub(super) fn write_row(&mut self, user: &str, mut log: StoredLog) -> Result<(), StoreError> {
        let through = log.through();
        let entries = std::mem::take(&mut self.user_entries);
        self.user_blocks.clear();
        let gaps = GapList::from_stored(&log.gaps);
        let pending = || entries.iter().filter(|(seq, ..)| *seq > through && !gaps.hides(*seq));
        log.head = log.head.max(entries.last().map_or(0, |(seq, ..)| *seq));
        log.flushed = log.head;
        log.counted = through;
        log.block_usage = (pending().count() as u64, pending().map(|(_, bytes, _)| u64::from(*bytes)).sum());
        log.expires_s = pending().map(|(.., at)| *at).filter(|at| *at > 0).min().unwrap_or(0);
        log.keys.retain(|(_, seq, ..)| entries.binary_search_by_key(seq, |(seq, ..)| *seq).is_ok());
        log.gaps = gaps.stored();
        self.contents.users += 1;
        self.contents.entries += entries.len() as u64;
        self.contents.bytes += entries.iter().map(|(_, bytes, _)| u64::from(*bytes)).sum::<u64>();
        self.put(Table::Users, user.as_bytes(), &log.encode())
    }

    /// Makes the store durable, removes the marker, and renames the directory.
    pub(in crate::embedded) fn finish(
        mut self,
        lossy_restarts: u32,
        clock_ms: u64,
        floor: Seq,
    ) -> Result<Contents, StoreError> {
        self.put(Table::Meta, LOSSY_RESTARTS_KEY, &lossy_restarts.to_be_bytes())?;
        self.put(Table::Meta, CLOCK_KEY, &clock_ms.to_be_bytes())?;
        self.put(Table::Meta, FLOOR_KEY, &floor.to_be_bytes())?;
        // The keys of id blocks and of shared bodies have numbers of WAL records, so the WAL continues after them.
        self.put(Table::Meta, FLUSHED_KEY, &wal_key(self.id_blocks.max(self.bodies)))?;
        self.put(Table::Meta, OPEN_KEY, CLOSED)?;
        self.engine.checkpoint()?;
        let failed_io = |error: std::io::Error| StoreError::Open { path: self.out.clone(), reason: error.to_string() };
        unfinished::end(&self.partial).map_err(failed_io)?;
        drop(self.engine);
        fs::rename(&self.partial, &self.out).map_err(failed_io)?;
        let parent = fs::canonicalize(&self.out).map_err(failed_io)?;
        if let Some(parent) = parent.parent() {
            File::open(parent).and_then(|parent| parent.sync_all()).map_err(failed_io)?;
        }
        Ok(self.contents)
    }
}

impl InspectSink for StoreBuilder {
    fn entries(&mut self, user: &str, entries: &[(Seq, u32, Bytes)]) -> Result<(), StoreError> {
        for part in split_entries(entries, |(.., payload)| payload.len()) {
            let first = part[0].0;
            let entries = part.iter().map(|(seq, expires_s, payload)| {
                let body = match self.shared_body(payload)? {
                    Some(id) => Body::Shared(id, saturate(payload.len())),
                    None => Body::Inline(payload),
                };
                Ok((*seq, *expires_s, body))
            });
            let entries = entries.collect::<Result<_, StoreError>>()?;
            let block = Block::V1 { namespace: self.namespace, user, entries }.encode();
            let key = log_key(user, first);
            self.put(Table::Log, &key, &block)?;
            self.user_blocks.push(key);
            // A payload has at most 64 KiB.
            self.user_entries
                .extend(part.iter().map(|(seq, expires_s, payload)| (*seq, saturate(payload.len()), *expires_s)));
        }
        Ok(())
    }

    fn log(&mut self, facts: LogFacts) -> Result<(), StoreError> {
        self.write_row(&facts.user, facts.stored.0)
    }
}
