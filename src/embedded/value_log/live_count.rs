//! Counts the live bytes of the files that earlier processes wrote, in steps after the store is open.
//!
//! At opening, only the lengths of these files are known. The commit thread then visits the rows of the tables that
//! locate blocks, in the order of their keys, and adds their bytes to the files. Until the last row is visited, no such
//! file is removed or compacted, and the capacity uses the stored figure of an earlier flush.
//!
//! The tables change meanwhile, but only the commit thread changes them. A row that is removed or replaced was counted
//! if its key is before the position of the count. Otherwise the count will not see it. A row that is added refers to a
//! file of this process, which is counted when the block is appended.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering},
};

use super::{location::BlockLocation, summary::BlockSummary};
use crate::embedded::{tables::contract::Table, user_log::Usage};

/// Tables whose rows locate blocks, in the order in which they are counted.
const TABLES: [Table; 2] = [Table::Log, Table::Bodies];

/// Counts the entries of the blocks that rows locate. Rows that are not counted yet are excluded.
#[derive(Debug, Default)]
pub struct StoredEntries {
    entries: AtomicU64,
    bytes: AtomicU64,
}

impl StoredEntries {
    /// Adds a block whose row was put or counted.
    pub fn add(&self, block: Option<BlockSummary>) {
        let Some(block) = block else { return };
        self.entries.fetch_add(block.entries.into(), Ordering::Relaxed);
        self.bytes.fetch_add(block.bytes.into(), Ordering::Relaxed);
    }

    /// Subtracts a block that was added and has no row any more.
    pub fn subtract(&self, block: Option<BlockSummary>) {
        let Some(block) = block else { return };
        self.entries.fetch_sub(block.entries.into(), Ordering::Relaxed);
        self.bytes.fetch_sub(block.bytes.into(), Ordering::Relaxed);
    }

    /// Returns the number of entries, and their bytes of payload.
    pub fn usage(&self) -> Usage {
        // A reader may find a block in one of the counts only.
        Usage { entries: self.entries.load(Ordering::Relaxed), bytes: self.bytes.load(Ordering::Relaxed) }
    }
}

/// Position of the count: all rows before it are counted.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CountPosition {
    /// Index in [`TABLES`].
    table: usize,
    /// The lowest key that is not counted.
    next: Vec<u8>,
}

impl CountPosition {
    /// Returns the position before the first row.
    pub fn start() -> Self {
        Self { table: 0, next: Vec::new() }
    }

    /// Returns whether the row of this key was counted.
    pub fn is_after(&self, table: Table, key: &[u8]) -> bool {
        let at = TABLES.iter().position(|counted| *counted == table);
        at.is_some_and(|at| (at, key) < (self.table, &self.next[..]))
    }
}

/// One step of the count.
#[derive(Debug)]
pub struct CountStep {
    position: CountPosition,
    /// Live bytes of each file, as far as this step has visited rows.
    live: BTreeMap<u64, u64>,
}

impl CountStep {
    pub fn new(position: CountPosition) -> Self {
        Self { position, live: BTreeMap::new() }
    }

    /// Returns the table and the first key to visit.
    pub fn from(&self) -> (Table, &[u8]) {
        (TABLES[self.position.table], &self.position.next)
    }

    /// Counts a row. The rows are visited in the order of their keys. `location` is `None` if the row has no valid one.
    pub fn add(&mut self, key: &[u8], location: Option<BlockLocation>) {
        // The lowest key above this one.
        self.position.next.clear();
        self.position.next.extend_from_slice(key);
        self.position.next.push(0);
        if let Some(location) = location {
            *self.live.entry(location.file).or_default() += u64::from(location.length);
        }
    }

    /// Ends the table. Returns false if it was the last one.
    pub fn end_table(&mut self) -> bool {
        self.position = CountPosition { table: self.position.table + 1, next: Vec::new() };
        self.position.table < TABLES.len()
    }

    /// Returns the position after the step, or `None` after the last row, and the live bytes that it has found.
    pub fn finish(self) -> (Option<CountPosition>, BTreeMap<u64, u64>) {
        let is_complete = self.position.table >= TABLES.len();
        ((!is_complete).then_some(self.position), self.live)
    }
}
