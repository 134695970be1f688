//! Tables in memory, for tests. A store on them keeps every guarantee except durability.

use std::{collections::BTreeMap, ops::Bound, sync::Arc};

use bytes::Bytes;
use parking_lot::RwLock;

use super::contract::{Engine, EngineError, Table};
use crate::{
    embedded::{
        self,
        shared::Options,
        tables::schema::{is_log_key_of, wal_key},
    },
    store::{Store, StoreError},
};

type Pairs = BTreeMap<Vec<u8>, Bytes>;

/// Holds tables in memory. Clones share them, so that a test can open a store on them again.
#[derive(Clone, Default)]
pub struct Memory(Arc<[RwLock<Pairs>; 6]>);

impl Memory {
    fn table(&self, table: Table) -> &RwLock<Pairs> {
        &self.0[table as usize]
    }

    /// Copies the tables.
    #[cfg(test)]
    pub(in crate::embedded) fn copied(&self) -> Self {
        Self(Arc::new(std::array::from_fn(|at| RwLock::new(self.0[at].read().clone()))))
    }

    /// Counts the blocks of this user's log.
    #[doc(hidden)]
    #[must_use]
    pub fn blocks_of(&self, user: &str) -> usize {
        self.table(Table::Log).read().keys().filter(|key| is_log_key_of(key, user)).count()
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

impl Engine for Memory {
    fn put(&self, table: Table, key: &[u8], value: &[u8]) -> Result<(), EngineError> {
        self.table(table).write().insert(key.to_vec(), Bytes::copy_from_slice(value));
        Ok(())
    }

    fn remove(&self, table: Table, key: &[u8]) -> Result<(), EngineError> {
        self.table(table).write().remove(key);
        Ok(())
    }

    fn rollback_last(&self, number: u64) -> Result<(), EngineError> {
        self.remove(Table::Wal, &wal_key(number))
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

    fn last_at_or_before(&self, table: Table, key: &[u8]) -> Result<Option<(Bytes, Bytes)>, EngineError> {
        let pairs = self.table(table).read();
        let mut range = pairs.range::<[u8], _>((Bound::Unbounded, Bound::Included(key)));
        Ok(range.next_back().map(|(key, value)| (Bytes::copy_from_slice(key), value.clone())))
    }

    fn flush(&self) -> Result<(), EngineError> {
        Ok(())
    }

    fn sync(&self) -> Result<(), EngineError> {
        Ok(())
    }

    fn barrier(&self) -> Result<(), EngineError> {
        Ok(())
    }

    fn checkpoint(&self) -> Result<(), EngineError> {
        Ok(())
    }
}

/// Opens a store over tables in memory.
///
/// # Errors
/// When the tables belong to another namespace, or are damaged.
pub fn open(memory: &Memory, options: Options) -> Result<Arc<dyn Store>, StoreError> {
    embedded::open(Arc::new(memory.clone()), options)
}
