//! Rebuilds sled's files if sled could not open them without loss.
//!
//! sled writes a snapshot when it opens, and then clears the parts of its file that the snapshot makes superfluous. It
//! does not sync the snapshot's name. A power cut that loses only that name leaves a file that sled reports as corrupt,
//! or treats as nearly empty. All data is still readable without sled. So it is copied to new files, which replace the
//! old files when they are complete. The old files are moved away, not deleted.

use std::{io, path::Path};

use super::sled_file::{RawTables, TABLES};
use crate::embedded::tables::{
    directory::StoreDir,
    open_error::{io_reason, sled_reason},
    sled::{close_sled, discard_sled},
    sled_error,
    watermark::WatermarkFile,
};

/// Rebuilds sled's files. `open` opens sled in a directory.
pub fn rebuild(dir: &StoreDir, path: &Path, open: impl FnOnce(&Path) -> sled::Result<sled::Db>) -> Result<(), String> {
    let failed = |error: io::Error| io_reason("its tables cannot be rebuilt", &sled_error::restore_system_error(error));
    let tables = RawTables::open(&dir.sled_dir(), false).map_err(failed)?;
    if let Some(damaged) = tables.damaged().first() {
        return Err(damaged.to_string());
    }
    if !tables.lost_keys.is_empty() {
        return Err("parts of its tables are missing. See what is left with `mesa inspect`".into());
    }
    let staging = dir.staging_dir().map_err(failed)?;
    let db = open(&staging).map_err(|error| sled_reason(&error))?;
    copy_tables(&db, &tables).inspect_err(|_| discard_sled(&db)).map_err(failed)?;
    close_sled(db, &staging).map_err(failed)?;
    // The end in the watermark is that of the old log.
    WatermarkFile::clear_end(path).map_err(failed)?;
    dir.replace(&staging).map_err(failed)?;
    tracing::warn!("rebuilt the tables with all data: after a power cut, sled could not have opened them");
    Ok(())
}

fn copy_tables(db: &sled::Db, tables: &RawTables) -> io::Result<()> {
    for (name, table) in TABLES {
        let tree = db.open_tree(name)?;
        for pair in tables.pairs(table, &[]) {
            let (key, value) = pair?;
            tree.insert(key, &value[..])?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{fs, sync::Arc, time::Duration};

    use super::*;
    use crate::{
        embedded::{
            options::Tuning,
            tables::{DiskOptions, files::SLED_FILE, open},
        },
        message::{Payload, UserId},
        store::{Append, ReadLimit, Store},
    };

    async fn append(store: &Arc<dyn Store>, count: u64) {
        for n in 0..count {
            let payload = Payload::encode(0, Some(&n.to_string()), None).unwrap();
            store.append(Append::new(payload, vec![UserId::new("a").unwrap()])).await.unwrap();
        }
    }

    fn seqs(store: &Arc<dyn Store>) -> Vec<u64> {
        let all = ReadLimit { entries: usize::MAX, bytes: usize::MAX };
        let entries = store.read(&UserId::new("a").unwrap(), 0, all).unwrap().entries;
        entries.iter().map(|entry| entry.seq).collect()
    }

    #[tokio::test]
    async fn rebuild_interrupted_anywhere_keeps_all_entries() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("store");
        let tuned = |flush_delay| DiskOptions {
            tuning: Tuning { flush_delay, ..Tuning::default() },
            ..DiskOptions::new(&path)
        };
        let store = open(tuned(Duration::ZERO)).unwrap();
        append(&store, 40).await;
        while store.read_cached(&UserId::new("a").unwrap(), 39, ReadLimit { entries: 1, bytes: 1 }).is_some() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let connected = UserId::new("connected").unwrap();
        store.set_connections(&connected, 1);
        store.close().await.unwrap();
        drop(store);
        let never = Duration::from_secs(3600);
        let mut head = 40;
        for step in ["rebuilt", "new files and old files", "new files only"] {
            let log = path.join("log");
            match step {
                "rebuilt" => {
                    let dir = StoreDir::new(&path).unwrap();
                    let opened = |path: &Path| {
                        sled::Config::new()
                            .path(path)
                            .segment_size(crate::embedded::tables::files::SEGMENT_BYTES)
                            .open()
                    };
                    rebuild(&dir, &path, opened).unwrap();
                }
                "new files only" => fs::rename(&log, path.join("rebuilt")).unwrap(),
                _ => {
                    fs::rename(&log, path.join("rebuilt")).unwrap();
                    fs::create_dir(&log).unwrap();
                    fs::write(log.join(SLED_FILE), b"not a file of sled").unwrap();
                }
            }
            let store = open(tuned(never)).unwrap();
            let interrupted = if step == "rebuilt" { vec![connected.clone()] } else { Vec::new() };
            assert_eq!(store.take_interrupted(), interrupted, "{step}");
            assert_eq!(seqs(&store), (1..=head).collect::<Vec<_>>(), "{step}");
            append(&store, 5).await;
            head += 5;
            store.close().await.unwrap();
            drop(store);
            assert!(!path.join("rebuilt").exists());
        }
    }
}
