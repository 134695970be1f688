//! Migrates stores of earlier formats (`mesa-1`, `mesa-2`), which hold the WAL and the entries in sled.
//!
//! Opening such a store moves both into files. A crash in the middle leaves the store as it was, with files that the next
//! migration discards: the new format is written last, and sled's copies are removed after that.

use std::{fs, io, path::Path};

use super::{
    files::{DB, LOG, VALUE_LOG, WAL},
    watermark::WatermarkFile,
};
use crate::embedded::{
    offline::sled_file::RawTables,
    tables::{
        contract::Table,
        meta::{FLUSHED_KEY, FORMAT, FORMAT_KEY},
        schema::{wal_key, wal_number},
    },
    value_log::file::ValueLog,
    wal::{layout::OpenError, segment::WalFiles},
};

/// Formats that are migrated.
const OLD_FORMATS: [&[u8]; 2] = [b"mesa-1", b"mesa-2"];

/// Names of the trees that sled no longer holds.
const OLD_TREES: [&str; 2] = ["journal", "inbox"];

/// Returns whether these tables have an earlier format.
pub fn is_old_format(tables: &RawTables) -> io::Result<bool> {
    let format = tables.get(Table::Meta, FORMAT_KEY)?;
    Ok(format.is_some_and(|format| OLD_FORMATS.contains(&&format[..])))
}

/// Migrates the store if its format is an earlier one.
pub fn migrate(db: &sled::Db, path: &Path) -> io::Result<()> {
    let meta = db.open_tree("meta")?;
    let format = meta.get(FORMAT_KEY)?;
    if format.is_some_and(|format| OLD_FORMATS.contains(&&format[..])) {
        tracing::info!("the store is of an earlier version: its journal and its inboxes are brought over into files");
        for directory in [WAL, VALUE_LOG] {
            match fs::remove_dir_all(path.join(directory)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        let [journal, inbox] = OLD_TREES.map(|name| db.open_tree(name));
        let records = match WalFiles::open(&path.join(WAL), 0, 0) {
            Ok(records) => records,
            Err(OpenError::Io(error)) => return Err(error),
            Err(OpenError::Damage(_)) => unreachable!("there are no files yet"),
        };
        let mut first = None;
        for pair in &journal? {
            let (key, value) = pair?;
            let number = wal_number(&key).ok_or_else(|| io::Error::other("a record of the journal has no number"))?;
            first = first.or(Some(number));
            records.append(number, &value)?;
        }
        records.sync(fs::File::sync_data)?;
        let chunks = ValueLog::open(&path.join(VALUE_LOG), [].into_iter())?;
        let places = db.open_tree("places")?;
        places.clear()?;
        for pair in &inbox? {
            let (key, value) = pair?;
            places.insert(&key, &chunks.append(&key, &value)?.encode())?;
        }
        chunks.sync()?;
        // The first versions did not store the number of the last flushed record.
        let settled = meta.get(FLUSHED_KEY)?.and_then(|value| wal_number(&value)).unwrap_or(0);
        if let Some(first) = first.filter(|first| *first > settled + 1) {
            meta.insert(FLUSHED_KEY, &wal_key(first - 1))?;
        }
        sync(db, path)?;
        // A store of the new format has all its parts, as after a first start.
        WatermarkFile::open(path)?;
        fs::File::open(path)?.sync_all()?;
        meta.insert(FORMAT_KEY, FORMAT)?;
        sync(db, path)?;
    }
    for name in OLD_TREES {
        if db.tree_names().iter().any(|known| known == name.as_bytes()) {
            db.open_tree(name)?.clear()?;
        }
    }
    Ok(())
}

fn sync(db: &sled::Db, path: &Path) -> io::Result<()> {
    db.flush()?;
    fs::File::open(path.join(LOG).join(DB))?.sync_data()
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use crate::{
        embedded::{
            offline::inspect::Inspection,
            shared::{Options, Tuning},
            tables::{
                DiskOptions,
                contract::{Engine, Table},
                memory::{self, Memory},
                meta::FORMAT_KEY,
                open,
            },
        },
        message::{Payload, UserId},
        store::{Append, ReadLimit, Store},
    };

    const ALL: ReadLimit = ReadLimit { entries: usize::MAX, bytes: usize::MAX };

    async fn append(store: &Arc<dyn Store>, count: u64) {
        for n in 0..count {
            let payload = Payload::encode(0, Some(&n.to_string()), None).unwrap();
            let users = ["a", "b"].map(|id| UserId::new(id).unwrap()).to_vec();
            store.append(Append::new(payload, users)).await.unwrap();
        }
    }

    /// Writes a store in the earlier format: the same tables, all of them in sled.
    fn write_old_format(tables: &Memory, path: &std::path::Path) {
        let db =
            sled::Config::new().path(path.join("log")).segment_size(super::super::files::SEGMENT_BYTES).open().unwrap();
        for (name, table) in [
            ("journal", Table::Wal),
            ("inbox", Table::Log),
            ("users", Table::Users),
            ("meta", Table::Meta),
            ("ids", Table::Ids),
        ] {
            let tree = db.open_tree(name).unwrap();
            tables
                .scan(table, &[], &mut |key, value| {
                    tree.insert(key, &value[..]).unwrap();
                    true
                })
                .unwrap();
        }
        db.open_tree("meta").unwrap().insert(FORMAT_KEY, b"mesa-2").unwrap();
        db.flush().unwrap();
    }

    #[tokio::test]
    async fn store_of_newer_version_is_rejected_with_version_to_use() {
        let home = tempfile::tempdir().unwrap();
        let store = open(DiskOptions::new(home.path())).unwrap();
        append(&store, 1).await;
        store.close().await.unwrap();
        drop(store);
        let path = home.path().join("log");
        let db = sled::Config::new().path(path).segment_size(super::super::files::SEGMENT_BYTES).open().unwrap();
        db.open_tree("meta").unwrap().insert(FORMAT_KEY, b"mesa-999").unwrap();
        db.flush().unwrap();
        drop(db);
        let inspected = Inspection::open(home.path()).err().expect("refused").to_string();
        let opened = open(DiskOptions::new(home.path())).expect_err("refused").to_string();
        for message in [inspected, opened] {
            assert!(
                message.contains("format mesa-999") && message.contains("Use that version, or a newer one"),
                "{message}"
            );
            assert!(!message.contains("Start a server of this version"), "{message}");
        }
    }

    #[tokio::test]
    async fn store_of_earlier_format_opens_with_all_entries() {
        let tables = Memory::default();
        let tuned = |flush_delay| Options { tuning: Tuning { flush_delay, ..Tuning::default() }, ..Options::default() };
        let store = memory::open(&tables, tuned(Duration::ZERO)).unwrap();
        append(&store, 30).await;
        while tables.last_at_or_before(Table::Wal, &[0xFF; 8]).unwrap().is_some() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        store.close().await.unwrap();
        let store = memory::open(&tables, tuned(Duration::from_secs(3600))).unwrap();
        append(&store, 20).await;
        let users = ["a", "b"].map(|id| UserId::new(id).unwrap());
        let seqs = |store: &Arc<dyn Store>, user| {
            let entries = store.read(user, 0, ALL).unwrap().entries;
            entries.iter().map(|entry| (entry.seq, entry.payload.as_bytes().clone())).collect::<Vec<_>>()
        };
        let before = users.each_ref().map(|user| seqs(&store, user));
        store.close().await.unwrap();
        let home = tempfile::tempdir().unwrap();
        write_old_format(&tables, home.path());
        for _ in 0..2 {
            let store = open(DiskOptions::new(home.path())).unwrap();
            assert_eq!(users.each_ref().map(|user| seqs(&store, user)), before);
            store.close().await.unwrap();
        }
        let store = open(DiskOptions::new(home.path())).unwrap();
        append(&store, 1).await;
        assert_eq!(seqs(&store, &users[0]).last().unwrap().0, 51);
    }
}
