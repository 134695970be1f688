//! A WAL and tables in memory, for tests. A store on them holds every guarantee except durability.

use std::{collections::BTreeMap, ops::Bound, sync::Arc};

use bytes::Bytes;
use parking_lot::RwLock;

use super::contract::{EngineError, Table, Tables};
use crate::{
    embedded::{
        self,
        engine::Engine,
        options::Options,
        tables::schema::is_log_key_of,
        user_log::Usage,
        value_log::{
            block::{Block, bodies_of},
            bodies::{BodyId, References},
            summary::BlockSummary,
        },
        wal::contract::Wal,
    },
    store::{Store, StoreError},
};

type Pairs = BTreeMap<Vec<u8>, Bytes>;

/// Holds a WAL and tables in memory. Clones share them, so that a test can open a store on them again.
#[derive(Clone, Default)]
pub struct Memory {
    wal: Arc<RwLock<BTreeMap<u64, Bytes>>>,
    tables: Arc<[RwLock<Pairs>; 7]>,
}

impl Memory {
    fn table(&self, table: Table) -> &RwLock<Pairs> {
        &self.tables[table as usize]
    }

    /// Copies the WAL and the tables.
    #[cfg(test)]
    pub(in crate::embedded) fn deep_clone(&self) -> Self {
        let tables = std::array::from_fn(|at| RwLock::new(self.tables[at].read().clone()));
        Self { wal: Arc::new(RwLock::new(self.wal.read().clone())), tables: Arc::new(tables) }
    }

    /// Returns whether any record, key or value contains this text.
    #[cfg(test)]
    pub(in crate::embedded) fn contains(&self, text: &str) -> bool {
        let has = |bytes: &[u8]| bytes.windows(text.len()).any(|part| part == text.as_bytes());
        let in_tables = |table: &RwLock<Pairs>| table.read().iter().any(|(key, value)| has(key) || has(value));
        self.wal.read().values().any(|record| has(record)) || self.tables.iter().any(in_tables)
    }

    /// Counts the blocks of this user's log.
    #[doc(hidden)]
    #[must_use]
    pub fn blocks_of(&self, user: &str) -> usize {
        self.table(Table::Log).read().keys().filter(|key| is_log_key_of(key, user)).count()
    }

    /// Counts the shared bodies.
    #[cfg(test)]
    pub(in crate::embedded) fn bodies(&self) -> usize {
        self.table(Table::Bodies).read().len()
    }

    /// Overwrites the first block of this user's log with garbage. Returns false if there is none.
    #[doc(hidden)]
    #[must_use]
    pub fn damage_block(&self, user: &str) -> bool {
        let mut pairs = self.table(Table::Log).write();
        damage(pairs.iter_mut().find(|(key, _)| is_log_key_of(key, user)).map(|(_, value)| value))
    }

    /// Overwrites this user's row with garbage. Returns false if there is none.
    #[doc(hidden)]
    #[must_use]
    pub fn damage_row(&self, user: &str) -> bool {
        damage(self.table(Table::Users).write().get_mut(user.as_bytes()))
    }
}

fn damage(value: Option<&mut Bytes>) -> bool {
    value.map(|value| *value = Bytes::from_static(&[0xFF; 24])).is_some()
}

impl Wal for Memory {
    fn append_record(&self, number: u64, record: &[u8]) -> Result<(), EngineError> {
        self.wal.write().insert(number, Bytes::copy_from_slice(record));
        Ok(())
    }

    fn remove_record(&self, number: u64) -> Result<(), EngineError> {
        self.wal.write().remove(&number);
        Ok(())
    }

    fn rollback_last(&self, number: u64) -> Result<(), EngineError> {
        self.remove_record(number)
    }

    fn record_numbers(&self) -> Option<(u64, u64)> {
        let wal = self.wal.read();
        Some((*wal.first_key_value()?.0, *wal.last_key_value()?.0))
    }

    fn record(&self, number: u64) -> Result<Option<Bytes>, EngineError> {
        Ok(self.wal.read().get(&number).cloned())
    }

    fn scan_records(&self, visit: &mut dyn FnMut(u64, Bytes) -> bool) -> Result<(), EngineError> {
        let wal = self.wal.read();
        let mut records = wal.iter();
        while records.next().is_some_and(|(number, record)| visit(*number, record.clone())) {}
        Ok(())
    }

    fn sync(&self) -> Result<(), EngineError> {
        Ok(())
    }
}

impl Tables for Memory {
    fn put(&self, table: Table, key: &[u8], value: &[u8]) -> Result<(), EngineError> {
        self.table(table).write().insert(key.to_vec(), Bytes::copy_from_slice(value));
        Ok(())
    }

    fn remove(&self, table: Table, key: &[u8]) -> Result<(), EngineError> {
        self.table(table).write().remove(key);
        Ok(())
    }

    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        Ok(self.table(table).read().get(key).cloned())
    }

    fn scan(&self, table: Table, from: &[u8], visit: &mut dyn FnMut(&[u8], Bytes) -> bool) -> Result<(), EngineError> {
        let pairs = self.table(table).read();
        let mut range = pairs.range::<[u8], _>((Bound::Included(from), Bound::Unbounded));
        while range.next().is_some_and(|(key, value)| visit(key, value.clone())) {}
        Ok(())
    }

    fn summaries(
        &self,
        from: &[u8],
        visit: &mut dyn FnMut(&[u8], Option<BlockSummary>) -> bool,
    ) -> Result<(), EngineError> {
        self.scan(Table::Log, from, &mut |key, block| visit(key, BlockSummary::of(&block)))
    }

    fn summaries_before(
        &self,
        from: &[u8],
        visit: &mut dyn FnMut(&[u8], Option<BlockSummary>) -> bool,
    ) -> Result<(), EngineError> {
        let pairs = self.table(Table::Log).read();
        let mut range = pairs.range::<[u8], _>((Bound::Unbounded, Bound::Included(from))).rev();
        while range.next().is_some_and(|(key, block)| visit(key, BlockSummary::of(block))) {}
        Ok(())
    }

    fn last_at_or_before(&self, table: Table, key: &[u8]) -> Result<Option<(Bytes, Bytes)>, EngineError> {
        let pairs = self.table(table).read();
        let mut range = pairs.range::<[u8], _>((Bound::Unbounded, Bound::Included(key)));
        Ok(range.next_back().map(|(key, value)| (Bytes::copy_from_slice(key), value.clone())))
    }

    fn write_through(&self) -> Result<(), EngineError> {
        Ok(())
    }

    fn unreferenced_bodies(&self, record: u64, limit: usize) -> Result<Vec<BodyId>, EngineError> {
        let bodies: Vec<_> = self.table(Table::Bodies).read().keys().filter_map(|key| BodyId::of_key(key)).collect();
        if bodies.is_empty() {
            return Ok(bodies);
        }
        let mut references = References::default();
        for block in self.table(Table::Log).read().values() {
            if let Ok(Block::V1 { entries, .. }) = Block::decode(block) {
                references.add(&bodies_of(&entries));
            }
        }
        bodies.into_iter().for_each(|id| references.add_body(id, false));
        Ok(references.unreferenced(record, limit))
    }
}

impl Engine for Memory {
    fn barrier(&self) -> Result<(), EngineError> {
        Ok(())
    }

    fn checkpoint(&self) -> Result<(), EngineError> {
        Ok(())
    }

    fn live_bytes(&self) -> u64 {
        let bytes = |table| self.table(table).read().values().map(|value| value.len() as u64).sum::<u64>();
        bytes(Table::Log) + bytes(Table::Bodies)
    }

    fn stored_entries(&self) -> Usage {
        let blocks = self.table(Table::Log).read();
        let mut usage = Usage::default();
        for block in blocks.values().filter_map(|block| BlockSummary::of(block)) {
            usage.entries += u64::from(block.entries);
            usage.bytes += u64::from(block.bytes);
        }
        usage
    }
}

/// Opens a store in memory.
///
/// # Errors
/// When its content belongs to another namespace, or is damaged.
pub fn open(memory: &Memory, options: Options) -> Result<Arc<dyn Store>, StoreError> {
    embedded::open(Arc::new(memory.clone()), options)
}
