//! Tables on disk: sled, with its traps fenced off.
//!
//! Three things about sled 0.34.7 shape this file. Its `flush` hands writes to the system and waits for the data to be
//! written, but does not sync the file: that is done here, on a handle of our own. Values that are too large go to
//! files of their own that are never synced: segments are made so large that none of ours does. And batches take a
//! lock that a flush holds: there are none, an atomic unit is one value.

mod directory;
mod mark;
mod open;
mod raw;

use std::{
    fs::File,
    os::unix::fs::MetadataExt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use parking_lot::Mutex;

pub use self::open::{DiskOptions, open};
pub(super) use self::{
    mark::Marked,
    open::create,
    raw::{Gap, Pairs, RawTables},
};
use super::engine::{DiskRoom, Engine, EngineError, Table};
use crate::planted::{self, Bug};
use directory::Locked;
use mark::Mark;
use raw::Tail;

/// Tables on disk.
pub struct Sled {
    db: sled::Db,
    /// One per [`Table`], in its order.
    trees: [sled::Tree; 6],
    /// Our own handle of the file sled appends to.
    file: File,
    /// How far it went when it was last synced.
    mark: Mark,
    /// How far it goes. Only the commit thread asks.
    tail: Mutex<Tail>,
    /// A write, a flush or a sync has failed.
    failed: AtomicBool,
    /// Calls instead of syncing, in tests.
    sync: Option<Arc<dyn Fn() -> std::io::Result<()> + Send + Sync>>,
    /// Held until everything above is closed.
    _locked: Locked,
}

impl Sled {
    fn tree(&self, table: Table) -> &sled::Tree {
        &self.trees[table as usize]
    }

    fn failed(&self, error: impl std::fmt::Display) -> EngineError {
        self.failed.store(true, Ordering::Relaxed);
        EngineError::new(error)
    }
}

/// Leaves sled standing as it is, with its threads and its lock. At its end it syncs its file and panics where that
/// fails; and after a failure there is nothing more to be had from it.
fn abandon(db: &sled::Db) {
    Box::leak(Box::new(db.clone()));
}

impl Drop for Sled {
    fn drop(&mut self) {
        if self.failed.load(Ordering::Relaxed) || self.file.sync_data().is_err() {
            abandon(&self.db);
        }
    }
}

impl Engine for Sled {
    fn put(&self, table: Table, key: &[u8], value: &[u8]) -> Result<(), EngineError> {
        self.tree(table).insert(key, value).map(drop).map_err(|error| self.failed(error))
    }

    fn remove(&self, table: Table, key: &[u8]) -> Result<(), EngineError> {
        self.tree(table).remove(key).map(drop).map_err(|error| self.failed(error))
    }

    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        Ok(self.tree(table).get(key).map_err(EngineError::new)?.map(Bytes::from_owner))
    }

    fn scan(&self, table: Table, from: &[u8], visit: &mut dyn FnMut(&[u8], Bytes) -> bool) -> Result<(), EngineError> {
        for pair in self.tree(table).range(from..) {
            // An iterator that failed stays failed: what follows would be a silent hole.
            let (key, value) = pair.map_err(EngineError::new)?;
            if !visit(&key, Bytes::from_owner(value)) {
                break;
            }
        }
        Ok(())
    }

    fn floor(&self, table: Table, key: &[u8]) -> Result<Option<(Bytes, Bytes)>, EngineError> {
        let pair = self.tree(table).range(..=key).next_back().transpose().map_err(EngineError::new)?;
        Ok(pair.map(|(key, value)| (Bytes::from_owner(key), Bytes::from_owner(value))))
    }

    fn flush(&self) -> Result<(), EngineError> {
        self.db.flush().map(drop).map_err(|error| self.failed(error))
    }

    fn sync(&self) -> Result<(), EngineError> {
        // Asked before: what is written meanwhile may not be synced.
        let length = self.file.metadata().map_err(|error| self.failed(error))?.len();
        let end = self.tail.lock().advance(&self.file).map_err(|error| self.failed(error))?;
        match &self.sync {
            _ if planted::is(Bug::NoSync) => Ok(()),
            Some(sync) => sync(),
            None => self.file.sync_data(),
        }
        .and_then(|()| self.mark.set_end(length, end))
        .map_err(|error| self.failed(error))
    }

    fn disk_room(&self) -> Result<Option<DiskRoom>, EngineError> {
        let disk = rustix::fs::fstatvfs(&self.file).map_err(EngineError::new)?;
        let file = self.file.metadata().map_err(EngineError::new)?;
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        // Blocks of 512 bytes, whatever the disk's own are: where the file has holes, nothing is taken.
        Ok(Some(DiskRoom { free, taken: file.blocks().saturating_mul(512).min(file.len()) }))
    }

    fn mark(&self, record: u64) -> Result<(), EngineError> {
        self.mark.set_record(record).map_err(EngineError::new)
    }

    fn marked(&self) -> Result<Option<u64>, EngineError> {
        Ok(self.mark.record())
    }
}
