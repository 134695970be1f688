//! Puts and removes blocks and shared bodies: their bytes in the value log, and their rows in sled.

use std::{os::unix::fs::MetadataExt, sync::atomic::Ordering};

use bytes::Bytes;

use super::{
    contract::{BlockCopy, EngineError, NewBlock, Table, Tables},
    meta::VALUE_LOG_FILE_KEY,
    sled::Disk,
    sled_error::read_error,
};
use crate::embedded::value_log::{
    bodies::{BodyId, is_body_key},
    file::BlockRead,
    location::{BlockLocation, BlockRow, invalid_location},
};

/// Attempts to read a block that compaction moves meanwhile. Then the block counts as missing.
const READ_ATTEMPTS_MAX: usize = 8;

impl Disk {
    /// Returns the tree that has the row of a block or a shared body.
    pub(super) fn tree_of_key(&self, key: &[u8]) -> &sled::Tree {
        if is_body_key(key) { &self.trees.bodies } else { &self.trees.log }
    }

    /// Reads the block of a row, or a placeholder if it is damaged. Returns `None` if the key was removed.
    pub(super) fn block(&self, key: &[u8], row: &[u8]) -> Result<Option<Bytes>, EngineError> {
        let Some(BlockRow { mut location, .. }) = BlockRow::decode(row) else {
            return Ok(Some(invalid_location().to_value()));
        };
        for _ in 0..READ_ATTEMPTS_MAX {
            match self.value_log.read(location, key)? {
                BlockRead::Block(value) => return Ok(Some(value)),
                BlockRead::Damaged(why) => return Ok(Some(why.to_value())),
                BlockRead::Missing => {
                    // Compaction moved the block, or it was removed, since its location was read.
                    let Some(now) = self.tree_of_key(key).get(key).map_err(read_error)? else { return Ok(None) };
                    let Some(now) = BlockRow::decode(&now) else { return Ok(Some(invalid_location().to_value())) };
                    if now.location == location {
                        break;
                    }
                    location = now.location;
                }
            }
        }
        Ok(Some(location.missing().to_value()))
    }

    pub(super) fn put_block(&self, key: &[u8], value: &[u8]) -> Result<(), EngineError> {
        if self.tree_of_key(key).contains_key(key).map_err(|error| self.tables_failed(error))? {
            return self.replace_blocks(&[(key, value)]);
        }
        let location = self.value_log.append(key, value).map_err(|error| self.retryable(error))?;
        self.set_block_row(key, row_of(key, location, value))
    }

    /// Replaces blocks. Syncs the new ones before any location is set.
    ///
    /// sled may write a location at any time, and the block that it replaces is still needed until then.
    pub(super) fn replace_blocks(&self, pairs: &[(&[u8], &[u8])]) -> Result<(), EngineError> {
        let locations = self.value_log.append_all(pairs).map_err(|error| self.retryable(error))?;
        self.value_log.sync().map_err(|error| self.failed(error))?;
        pairs
            .iter()
            .zip(locations)
            .try_for_each(|((key, value), location)| self.set_block_row(key, row_of(key, location, value)))
    }

    /// Sets the location and the summary of a block, as one value. So a crash never leaves one without the other.
    pub(super) fn set_block_row(&self, key: &[u8], row: BlockRow) -> Result<(), EngineError> {
        self.record_file(row.location.file)?;
        let before = self.insert(self.tree_of_key(key), key, &row.encode())?;
        self.value_log.stored.add(row.summary);
        {
            let mut references = self.references.lock();
            // Before the references of the replaced row are subtracted: none of those that stay reaches 0.
            references.add(&row.bodies);
            BodyId::of_key(key).into_iter().for_each(|id| references.add_body(id, false));
        }
        self.release_block(key, before, false);
        Ok(())
    }

    /// Removes a block, or a shared body. If `is_erased`, the block is that of an erased user.
    pub(super) fn remove_block(&self, key: &[u8], is_erased: bool) -> Result<(), EngineError> {
        if let Some(id) = BodyId::of_key(key) {
            // Read first: if that fails, a retry still finds the id among the unreferenced ones.
            let row = self.trees.bodies.get(key).map_err(read_error)?.and_then(|row| BlockRow::decode(&row));
            // Whether its last user was erased.
            if self.references.lock().remove_body(id)
                && let Some(row) = row
            {
                self.mark_erased_with_copy(row.location)?;
            }
        }
        let before = self.take(self.tree_of_key(key), key)?;
        self.release_block(key, before, is_erased);
        Ok(())
    }

    /// Marks the block of a replaced or removed row as dead, and subtracts its references.
    fn release_block(&self, key: &[u8], row: Option<sled::IVec>, is_erased: bool) {
        let Some(row) = row.and_then(|row| BlockRow::decode(&row)) else { return };
        let table = if is_body_key(key) { Table::Bodies } else { Table::Log };
        // Otherwise the count after opening will not see the row, and has not counted its references.
        if self.value_log.release_row(table, key, row.location) {
            self.value_log.stored.subtract(row.summary);
            self.references.lock().subtract(&row.bodies, is_erased);
        }
    }

    /// Puts shared bodies, with one write for all of them.
    ///
    /// A repeated flush replaces bodies. sled may write a location at any time, so the new bodies are synced first.
    pub(super) fn put_shared_bodies(&self, bodies: &[(BodyId, Vec<u8>)]) -> Result<(), EngineError> {
        let keys: Vec<_> = bodies.iter().map(|(id, _)| id.key()).collect();
        let pairs: Vec<_> = keys.iter().zip(bodies).map(|(key, (_, body))| (&key[..], &body[..])).collect();
        let locations = self.value_log.append_all(&pairs).map_err(|error| self.retryable(error))?;
        for key in &keys {
            if self.trees.bodies.contains_key(key).map_err(|error| self.tables_failed(error))? {
                self.value_log.sync().map_err(|error| self.failed(error))?;
                break;
            }
        }
        let mut rows = keys.iter().zip(locations);
        rows.try_for_each(|(key, location)| self.set_block_row(key, BlockRow::of_body(location)))
    }

    /// Stores the number of a file, before the first row refers to it: see [`VALUE_LOG_FILE_KEY`].
    fn record_file(&self, number: u64) -> Result<(), EngineError> {
        if number > self.last_file.load(Ordering::Relaxed) {
            self.insert(&self.trees.meta, VALUE_LOG_FILE_KEY, &number.to_be_bytes())?;
            self.last_file.store(number, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Visits blocks from the key `from` on, in order, until `visit` returns false.
    pub(super) fn scan_blocks(
        &self,
        from: &[u8],
        visit: &mut dyn FnMut(&[u8], Bytes) -> bool,
    ) -> Result<(), EngineError> {
        let mut from = from.to_vec();
        'rows: loop {
            for pair in self.trees.log.range(&from[..]..) {
                let (key, row) = pair.map_err(read_error)?;
                let Some(block) = self.block(&key, &row)? else {
                    // The row was removed after the iterator had read it. Perhaps a merge has moved the entries to a
                    // later row, of which the iterator may know an older version. So this reads the rows again.
                    from = key.to_vec();
                    continue 'rows;
                };
                if !visit(&key, block) {
                    return Ok(());
                }
            }
            return Ok(());
        }
    }

    /// Writes a copy of other blocks. No row refers to it yet.
    pub(super) fn write_block_copy(&self, mut block: NewBlock) -> Result<BlockCopy, EngineError> {
        let written = self.value_log.append(&block.key, &block.value);
        let location = Some(written.map_err(|error| self.retryable(error))?);
        block.value = Vec::new();
        Ok(BlockCopy { block, location })
    }

    /// Sets the row of a copy.
    pub(super) fn set_block_copy(&self, BlockCopy { block, location }: BlockCopy) -> Result<(), EngineError> {
        match location {
            Some(location) => {
                let row = BlockRow { location, summary: block.summary, bodies: block.bodies };
                self.set_block_row(&block.key, row)
            }
            None => self.put(Table::Log, &block.key, &block.value),
        }
    }

    /// Marks a copy as dead. If its user was erased, also marks its file for compaction.
    pub(super) fn discard_block_copy(&self, copy: &BlockCopy, is_erased: bool) -> Result<(), EngineError> {
        let Some(location) = copy.location else { return Ok(()) };
        if is_erased {
            self.mark_erased(location)?;
        }
        self.value_log.release(location);
        Ok(())
    }

    /// Returns the bytes of the files of the store; `None` if that of sled cannot be measured.
    pub(super) fn file_bytes(&self) -> Option<u64> {
        let sled = self.file.metadata().ok()?.blocks() * 512;
        Some(sled + self.wal.bytes() + self.value_log.bytes())
    }

    /// Adds blocks whose keys do not exist yet, with one write for all of them.
    pub(super) fn put_new_blocks(&self, blocks: &[NewBlock]) -> Result<(), EngineError> {
        let pairs: Vec<_> = blocks.iter().map(|block| (&block.key[..], &block.value[..])).collect();
        let locations = self.value_log.append_all(&pairs).map_err(|error| self.retryable(error))?;
        blocks.iter().zip(locations).try_for_each(|(block, location)| {
            let row = BlockRow { location, summary: block.summary, bodies: block.bodies.clone() };
            self.set_block_row(&block.key, row)
        })
    }
}

/// Describes a block, or a shared body.
fn row_of(key: &[u8], location: BlockLocation, value: &[u8]) -> BlockRow {
    if is_body_key(key) { BlockRow::of_body(location) } else { BlockRow::of(location, value) }
}
