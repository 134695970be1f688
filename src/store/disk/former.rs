//! Stores as earlier versions wrote them (`mesa-1`, `mesa-2`), with the journal and the inboxes in sled too: both are brought
//! over into files when such a store is opened.
//!
//! A crash in the middle leaves the store as it was, and something that is thrown away the next time: the version is
//! written last, and what was brought over is removed from sled behind that.

use std::{fs, io, path::Path};

use super::{
    chunks::ChunkFiles,
    raw::RawTables,
    records::{Broken, RecordFiles},
    rest::{INBOX, JOURNAL},
};
use crate::store::{
    engine::Table,
    record::journal_number,
    recovery::{FORMAT, FORMAT_KEY},
};

/// Versions of such stores.
const FORMER: [&[u8]; 2] = [b"mesa-1", b"mesa-2"];

/// What sled called the tables that it does not have any more.
const TABLES: [&str; 2] = ["journal", "inbox"];

/// Whether the store of which this is the log is such a one. Read without sled.
pub fn is_former(log: &Path) -> io::Result<bool> {
    if fs::metadata(log.join("db")).map_or(0, |db| db.len()) == 0 {
        return Ok(false);
    }
    let format = RawTables::open(log, false)?.get(Table::Meta, FORMAT_KEY)?;
    Ok(format.is_some_and(|format| FORMER.contains(&&format[..])))
}

/// Brings over what has to be.
pub fn bring_over(db: &sled::Db, path: &Path) -> io::Result<()> {
    let meta = db.open_tree("meta")?;
    let format = meta.get(FORMAT_KEY)?;
    if format.is_some_and(|format| FORMER.contains(&&format[..])) {
        tracing::info!("the store is of an earlier version: its journal and its inboxes are brought over into files");
        for directory in [JOURNAL, INBOX] {
            match fs::remove_dir_all(path.join(directory)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        let [journal, inbox] = TABLES.map(|name| db.open_tree(name));
        let records = match RecordFiles::open(&path.join(JOURNAL), 0, 0) {
            Ok(records) => records,
            Err(Broken::Io(error)) => return Err(error),
            Err(Broken::Damage(_)) => unreachable!("there are no files yet"),
        };
        for pair in journal?.iter() {
            let (key, value) = pair?;
            let number =
                journal_number(&key).ok_or_else(|| io::Error::other("a record of the journal has no number"))?;
            records.append(number, &value)?;
        }
        records.sync(fs::File::sync_data)?;
        let chunks = ChunkFiles::open(&path.join(INBOX), [].into_iter())?;
        let places = db.open_tree("places")?;
        places.clear()?;
        for pair in inbox?.iter() {
            let (key, value) = pair?;
            places.insert(&key, &chunks.append(&key, &value)?.encode())?;
        }
        chunks.sync()?;
        sync(db, path)?;
        meta.insert(FORMAT_KEY, FORMAT)?;
        sync(db, path)?;
    }
    for name in TABLES {
        if db.tree_names().iter().any(|known| known == name.as_bytes()) {
            db.open_tree(name)?.clear()?;
        }
    }
    Ok(())
}

fn sync(db: &sled::Db, path: &Path) -> io::Result<()> {
    db.flush()?;
    fs::File::open(path.join("log/db"))?.sync_data()
}
