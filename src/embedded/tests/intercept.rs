//! An engine in memory with calls that a test can intercept.

use bytes::Bytes;

use crate::embedded::{
    engine::Engine,
    tables::{
        contract::{CompactionMode, EngineError, Table, TableSpace, Tables},
        memory::Memory,
    },
    user_log::Usage,
    value_log::{bodies::BodyId, summary::BlockSummary},
    wal::contract::Wal,
};

/// Intercepts calls of an [`Engine`]. Calls that a test does not override go to the WAL and the tables in memory.
pub(in crate::embedded) trait Intercept: Send + Sync + 'static {
    fn memory(&self) -> &Memory;

    fn on_append_record(&self, number: u64, record: &[u8]) -> Result<(), EngineError> {
        self.memory().append_record(number, record)
    }

    fn on_remove_record(&self, number: u64) -> Result<(), EngineError> {
        self.memory().remove_record(number)
    }

    fn on_put(&self, table: Table, key: &[u8], value: &[u8]) -> Result<(), EngineError> {
        self.memory().put(table, key, value)
    }

    fn on_remove(&self, table: Table, key: &[u8]) -> Result<(), EngineError> {
        self.memory().remove(table, key)
    }

    fn on_rollback_last(&self, number: u64) -> Result<(), EngineError> {
        self.memory().rollback_last(number)
    }

    fn on_replace(&self, table: Table, pairs: &[(Vec<u8>, Vec<u8>)]) -> Result<(), EngineError> {
        pairs.iter().try_for_each(|(key, value)| self.on_put(table, key, value))
    }

    fn on_unreferenced_bodies(&self) -> Result<(), EngineError> {
        Ok(())
    }

    /// Called with every value that was read.
    fn on_read(&self, _table: Table, _value: &Bytes) {}

    fn on_flush(&self) -> Result<(), EngineError> {
        Ok(())
    }

    fn on_sync(&self) -> Result<(), EngineError> {
        Ok(())
    }

    fn on_barrier(&self) -> Result<(), EngineError> {
        Ok(())
    }

    fn on_checkpoint(&self) -> Result<(), EngineError> {
        Ok(())
    }

    fn on_reserve(&self) -> Result<(), EngineError> {
        Ok(())
    }

    /// Called once in each turn of the commit thread: after a commit, and the steps of background work before it.
    fn on_collect_garbage(&self) {}

    fn on_table_space(&self) -> TableSpace {
        TableSpace::Enough
    }

    fn on_table_slack(&self) -> u64 {
        0
    }

    fn on_disk_free(&self) -> Option<u64> {
        None
    }
}

impl<T: Intercept> Wal for T {
    fn append_record(&self, number: u64, record: &[u8]) -> Result<(), EngineError> {
        self.on_append_record(number, record)
    }

    fn remove_record(&self, number: u64) -> Result<(), EngineError> {
        self.on_remove_record(number)
    }

    fn rollback_last(&self, number: u64) -> Result<(), EngineError> {
        self.on_rollback_last(number)
    }

    fn record_numbers(&self) -> Option<(u64, u64)> {
        self.memory().record_numbers()
    }

    fn record(&self, number: u64) -> Result<Option<Bytes>, EngineError> {
        self.memory().record(number)
    }

    fn scan_records(&self, visit: &mut dyn FnMut(u64, Bytes) -> bool) -> Result<(), EngineError> {
        self.memory().scan_records(visit)
    }

    fn sync(&self) -> Result<(), EngineError> {
        self.on_sync()
    }

    fn reserve(&self, _: u64, _: u64) -> Result<(), EngineError> {
        self.on_reserve()
    }
}

impl<T: Intercept> Tables for T {
    fn put(&self, table: Table, key: &[u8], value: &[u8]) -> Result<(), EngineError> {
        self.on_put(table, key, value)
    }

    fn remove(&self, table: Table, key: &[u8]) -> Result<(), EngineError> {
        self.on_remove(table, key)
    }

    fn replace(&self, table: Table, pairs: &[(Vec<u8>, Vec<u8>)]) -> Result<(), EngineError> {
        self.on_replace(table, pairs)
    }

    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        let value = self.memory().get(table, key)?;
        value.iter().for_each(|value| self.on_read(table, value));
        Ok(value)
    }

    fn scan(&self, table: Table, from: &[u8], visit: &mut dyn FnMut(&[u8], Bytes) -> bool) -> Result<(), EngineError> {
        self.memory().scan(table, from, &mut |key, value| {
            self.on_read(table, &value);
            visit(key, value)
        })
    }

    fn keys(&self, table: Table, from: &[u8], visit: &mut dyn FnMut(&[u8]) -> bool) -> Result<(), EngineError> {
        self.memory().keys(table, from, visit)
    }

    fn summaries(
        &self,
        from: &[u8],
        visit: &mut dyn FnMut(&[u8], Option<BlockSummary>) -> bool,
    ) -> Result<(), EngineError> {
        self.memory().summaries(from, visit)
    }

    fn summaries_before(
        &self,
        from: &[u8],
        visit: &mut dyn FnMut(&[u8], Option<BlockSummary>) -> bool,
    ) -> Result<(), EngineError> {
        self.memory().summaries_before(from, visit)
    }

    fn last_at_or_before(&self, table: Table, key: &[u8]) -> Result<Option<(Bytes, Bytes)>, EngineError> {
        let pair = self.memory().last_at_or_before(table, key)?;
        pair.iter().for_each(|(_, value)| self.on_read(table, value));
        Ok(pair)
    }

    fn last_key_at_or_before(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        self.memory().last_key_at_or_before(table, key)
    }

    fn unreferenced_bodies(&self, record: u64, limit: usize) -> Result<Vec<BodyId>, EngineError> {
        self.on_unreferenced_bodies()?;
        self.memory().unreferenced_bodies(record, limit)
    }

    fn write_through(&self) -> Result<(), EngineError> {
        self.on_flush()
    }

    fn table_space(&self) -> Result<TableSpace, EngineError> {
        Ok(self.on_table_space())
    }

    fn table_slack(&self) -> Result<u64, EngineError> {
        Ok(self.on_table_slack())
    }
}

impl<T: Intercept> Engine for T {
    fn barrier(&self) -> Result<(), EngineError> {
        self.on_barrier()
    }

    fn checkpoint(&self) -> Result<(), EngineError> {
        self.on_checkpoint()
    }

    fn collect_garbage(&self, _mode: CompactionMode) -> Result<bool, EngineError> {
        self.on_collect_garbage();
        Ok(false)
    }

    fn live_bytes(&self) -> u64 {
        self.memory().live_bytes()
    }

    fn stored_entries(&self) -> Usage {
        self.memory().stored_entries()
    }

    fn disk_free(&self) -> Result<Option<u64>, EngineError> {
        Ok(self.on_disk_free())
    }
}
