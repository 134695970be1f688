//! Background work on the value log: the count of live bytes, compaction, and removal of dead files.

use std::{
    io,
    time::{Duration, Instant},
};

use super::{
    contract::{EngineError, Table, Tables as _},
    meta::ERASED_FILES_KEY,
    sled::{Disk, Reclaim},
    sled_error::{self, read_error},
};
use crate::embedded::value_log::{
    bodies::BodyId,
    compaction::CompactionStep,
    location::{BlockLocation, BlockRow},
};

/// Limit of block locations that are updated in one step, which takes about 1 ms. Table space is checked before each
/// step.
const STEP_LOCATIONS_MAX: usize = 256;

/// Limit of files that are removed in one step. The removal of a file of 8 MiB may take a millisecond.
const STEP_FILES_MAX: usize = 4;

/// Limit of rows that one step counts, and the time after which it ends earlier.
const STEP_ROWS_MAX: usize = 4096;
const STEP_TIMEOUT: Duration = Duration::from_millis(1);

impl Disk {
    /// Counts some live bytes of files that earlier processes wrote, and references to shared bodies. Returns true if
    /// there are more.
    ///
    /// A failed read affects no user, so it does not stop the store.
    pub(super) fn count_live_bytes(&self) -> bool {
        let Some(mut step) = self.value_log.begin_count() else { return false };
        let until = Instant::now() + STEP_TIMEOUT;
        let (table, from) = step.from();
        let mut rows = self.tree(table).range(from.to_vec()..);
        for _ in 0..STEP_ROWS_MAX {
            let Some(pair) = rows.next() else {
                step.end_table();
                break;
            };
            let (key, row) = match pair.map_err(read_error) {
                Ok(pair) => pair,
                // A later turn retries it.
                Err(error) if error.is_transient() => {
                    self.value_log.end_count(step);
                    return false;
                }
                Err(error) => {
                    tracing::warn!(
                        %error,
                        "the live bytes of the value log cannot be counted: its files are not compacted until the next start"
                    );
                    self.value_log.abandon_count();
                    return false;
                }
            };
            let row = BlockRow::decode(&row);
            step.add(&key, row.as_ref().map(|row| row.location));
            let mut references = self.references.lock();
            if let Some(row) = row.filter(|row| !self.value_log.is_own(row.location.file)) {
                self.value_log.stored.add(row.summary);
                references.add(&row.bodies);
            }
            // All rows of blocks are counted before the first body.
            // A crash may have interrupted an erasure of its last user.
            BodyId::of_key(&key).into_iter().for_each(|id| references.add_body(id, true));
            if Instant::now() >= until {
                break;
            }
        }
        self.value_log.end_count(step);
        self.value_log.begin_count().is_some()
    }

    /// Removes the block of an erased user, and marks its file for compaction.
    pub(super) fn remove_erased_block(&self, key: &[u8]) -> Result<(), EngineError> {
        let row = self.trees.log.get(key).map_err(read_error)?;
        if let Some(row) = row.and_then(|row| BlockRow::decode(&row)) {
            self.mark_erased_with_copy(row.location)?;
        }
        self.remove_block(key, true)
    }

    /// Marks the file of an erased block or body, and that of a copy by a compaction in progress.
    pub(super) fn mark_erased_with_copy(&self, location: BlockLocation) -> Result<(), EngineError> {
        self.mark_erased(location)?;
        let copy = self.reclaim.lock().compaction.as_ref().and_then(|step| step.copy_of(location));
        copy.map_or(Ok(()), |copy| self.mark_erased(copy))
    }

    /// Marks the file of an erased block for compaction, also after a restart.
    ///
    /// The mark is put before the block is removed or its copy released, and a power cut keeps a prefix of both.
    pub(super) fn mark_erased(&self, location: BlockLocation) -> Result<(), EngineError> {
        if let Some(files) = self.value_log.set_erased(location.file) {
            let files: Vec<u8> = files.iter().flat_map(|number| number.to_be_bytes()).collect();
            self.put(Table::Meta, ERASED_FILES_KEY, &files)?;
        }
        Ok(())
    }

    /// Removes a few of the dead files. Returns true if there are more.
    pub(super) fn remove_dead_files(&self, reclaim: &mut Reclaim) -> bool {
        let rest = reclaim.dead_files.len().saturating_sub(STEP_FILES_MAX);
        self.value_log.remove(&reclaim.dead_files.split_off(rest));
        rest > 0
    }

    /// Runs one step of a compaction. Returns the next step, if there is one.
    pub(in crate::embedded) fn compact(&self, step: CompactionStep) -> Result<Option<CompactionStep>, EngineError> {
        let row_at = |key: &[u8], location: BlockLocation| -> io::Result<Option<BlockRow>> {
            let row = self.tree_of_key(key).get(key).map_err(sled_error::to_io_error)?;
            Ok(row.and_then(|row| BlockRow::decode(&row)).filter(|row| row.location == location))
        };
        let (file, mut moved) = match step {
            CompactionStep::Copy(compaction) => {
                let step = compaction.step(&self.value_log, |key, location| Ok(row_at(key, location)?.is_some()));
                return step.map(Some).map_err(|error| self.retryable(error));
            }
            CompactionStep::Update { file, moved } => (file, moved),
        };
        for (key, from, to) in moved.drain(moved.len().saturating_sub(STEP_LOCATIONS_MAX)..) {
            match row_at(&key, from).map_err(|error| self.failed(error))? {
                Some(row) => self.set_block_row(&key, BlockRow { location: to, ..row })?,
                // The block was replaced or removed meanwhile. An erasure has marked the file of the copy.
                None => self.value_log.release(to),
            }
        }
        if !moved.is_empty() {
            return Ok(Some(CompactionStep::Update { file, moved }));
        }
        self.value_log.set_compacted(file);
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        path::Path,
        time::{Duration, Instant},
    };

    use super::*;
    use crate::embedded::{
        engine::Engine,
        file_io,
        tables::{
            DiskOptions,
            contract::{CompactionMode, NewBlock, Table, Tables},
            files::VALUE_LOG,
            open::{create, open_engine},
            schema::log_key,
            unfinished::{self, Operation},
        },
        value_log::{
            block::{Block, Body},
            summary::BlockSummary,
        },
    };

    fn open(path: &Path) -> Disk {
        open_engine(&DiskOptions::new(path)).unwrap()
    }

    fn put(disk: &Disk, keys: std::ops::Range<u64>) {
        let block =
            |n: u64| NewBlock { key: n.to_be_bytes().to_vec(), value: vec![7; 100], summary: None, bodies: Vec::new() };
        disk.put_blocks(&keys.map(block).collect::<Vec<_>>()).unwrap();
        disk.checkpoint().unwrap();
    }

    /// Returns the bytes and the file of a block.
    fn block(disk: &Disk, n: u64) -> Option<(usize, u64)> {
        let row = disk.trees.log.get(n.to_be_bytes()).unwrap()?;
        let value = disk.get(Table::Log, &n.to_be_bytes()).unwrap()?;
        Some((value.len(), BlockRow::decode(&row).unwrap().location.file))
    }

    #[test]
    fn opening_counts_no_row_and_later_steps_remove_dead_files() {
        const ROWS: u64 = 2 * STEP_ROWS_MAX as u64 + 10;
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("store");
        put(&open(&path), 0..ROWS);
        put(&open(&path), ROWS..ROWS + 10);
        let disk = open(&path);
        let files = || file_io::file_numbers(&path.join(VALUE_LOG)).unwrap();
        assert!(disk.value_log.live_by_file().values().all(|live| *live == 0), "no row was visited");
        // All but one block of the first file die, some before the count and some during it.
        (0..ROWS / 2).for_each(|n| disk.remove(Table::Log, &n.to_be_bytes()).unwrap());
        disk.checkpoint().unwrap();
        assert_eq!(files().len(), 3, "no file is removed before the count");
        assert!(disk.collect_garbage(CompactionMode::Normal).unwrap(), "one step does not count all rows");
        (ROWS / 2..ROWS).for_each(|n| disk.remove(Table::Log, &n.to_be_bytes()).unwrap());
        disk.checkpoint().unwrap();
        assert_eq!(files().len(), 3);
        while disk.collect_garbage(CompactionMode::Normal).unwrap() {}
        disk.checkpoint().unwrap();
        let (bytes, file) = block(&disk, ROWS).expect("a block of the second file");
        assert_eq!(bytes, 100);
        assert_eq!(files(), [file, file + 1], "the dead file is removed, and the files with blocks stay");
    }

    #[test]
    fn number_of_file_with_rows_is_stored_before_the_file_can_be_lost() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("store");
        put(&open(&path), 0..1);
        let lost = block(&open(&path), 0).unwrap().1;
        for number in file_io::file_numbers(&path.join(VALUE_LOG)).unwrap() {
            std::fs::remove_file(path.join(VALUE_LOG).join(file_io::file_name(number))).unwrap();
        }
        let disk = open(&path);
        put(&disk, 1..2);
        let other = block(&disk, 1).unwrap().1;
        assert!(other > lost, "{other} is the number of a lost file");
        assert_eq!(block(&disk, 0).map(|(_, file)| file), Some(lost), "the row still refers to the lost file");
    }

    #[test]
    fn erased_bytes_leave_the_value_log_after_a_restart_before_the_compaction() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("store");
        let disk = create(&path, Operation::Restore).unwrap();
        let block = |user, payload: &[u8]| {
            Block::V1 { namespace: 0, user, entries: vec![(1, 0, Body::Inline(payload))] }.encode()
        };
        disk.put(Table::Log, &log_key("alice", 1), &block("alice", b"erasable secret")).unwrap();
        disk.put(Table::Log, &log_key("bob", 1), &block("bob", &[b'x'; 1000])).unwrap();
        disk.checkpoint().unwrap();
        disk.remove_erased(&log_key("alice", 1)).unwrap();
        disk.checkpoint().unwrap();
        drop(disk);
        unfinished::end(&path).unwrap();

        let has_secret = || {
            let files = fs::read_dir(path.join("value-log")).unwrap();
            files
                .filter_map(|file| fs::read(file.unwrap().path()).ok())
                .any(|bytes| bytes.windows(b"erasable secret".len()).any(|part| part == b"erasable secret"))
        };
        assert!(has_secret(), "nothing was compacted before the restart");
        let disk = open(&path);
        let until = Instant::now() + Duration::from_secs(30);
        while has_secret() {
            assert!(Instant::now() < until, "the erased bytes leave the value log within 30 s");
            disk.collect_garbage(CompactionMode::Normal).unwrap();
        }
        assert!(disk.get(Table::Log, &log_key("bob", 1)).unwrap().is_some());
    }

    /// Removes a block while a compaction has copied it. Returns whether the file of the copy is compacted early.
    fn marks_copy_of_removed_block(is_erased: bool) -> bool {
        let home = tempfile::tempdir().unwrap();
        let disk = open(&home.path().join("store"));
        put(&disk, 0..3);
        let from = BlockRow::decode(&disk.trees.log.get(1_u64.to_be_bytes()).unwrap().unwrap()).unwrap().location;
        // Of another user, so that the file is compacted.
        disk.remove_erased(&0_u64.to_be_bytes()).unwrap();
        let copy = || disk.reclaim.lock().compaction.as_ref().and_then(|step| step.copy_of(from));
        while copy().is_none() {
            disk.collect_garbage(CompactionMode::Normal).unwrap();
        }
        let copy = copy().unwrap();
        assert_ne!(copy.file, from.file);
        let key = 1_u64.to_be_bytes();
        if is_erased { disk.remove_erased(&key) } else { disk.remove(Table::Log, &key) }.unwrap();
        while disk.reclaim.lock().compaction.as_ref().is_some_and(|step| step.copy_of(from).is_some()) {
            disk.collect_garbage(CompactionMode::Normal).unwrap();
        }
        assert_eq!(block(&disk, 2).unwrap().1, copy.file, "the compaction is complete");
        disk.value_log.is_erased(copy.file)
    }

    #[test]
    fn only_an_erasure_marks_the_copies_of_its_blocks() {
        assert!(!marks_copy_of_removed_block(false), "an acknowledged block needs no early compaction");
        assert!(marks_copy_of_removed_block(true), "the bytes of an erased user leave the disk soon");

        let home = tempfile::tempdir().unwrap();
        let disk = open(&home.path().join("store"));
        for is_erased in [false, true] {
            let block = NewBlock { key: b"key".to_vec(), value: vec![7; 100], summary: None, bodies: Vec::new() };
            let copy = disk.write_copy(block).unwrap();
            let file = copy.location.unwrap().file;
            disk.discard_copy(copy, is_erased).unwrap();
            assert_eq!(disk.value_log.is_erased(file), is_erased, "a copy of a merge");
            assert_eq!(disk.value_log.live_bytes(), 0);
        }
    }

    #[test]
    fn only_bodies_that_an_erased_user_may_have_had_mark_their_files() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("store");
        let ids = [1, 2, 3].map(|record| BodyId { record, at: 70 });
        let disk = open(&path);
        ids[..2].iter().for_each(|id| disk.put_bodies(&[(*id, b"body".to_vec())]).unwrap());
        let remove = |disk: &Disk, id: BodyId| {
            let row = BlockRow::decode(&disk.trees.bodies.get(id.key()).unwrap().unwrap()).unwrap();
            disk.remove(Table::Bodies, &id.key()).unwrap();
            disk.value_log.is_erased(row.location.file)
        };
        disk.forget_bodies(&[ids[2]]);
        disk.put_bodies(&[(ids[2], b"body".to_vec())]).unwrap();
        assert!(!remove(&disk, ids[0]), "all its users have acknowledged it before the flush wrote their blocks");
        assert!(remove(&disk, ids[2]), "its last user was erased before the flush put it");
        disk.checkpoint().unwrap();
        drop(disk);
        let disk = open(&path);
        while disk.collect_garbage(CompactionMode::Normal).unwrap() {}
        assert!(remove(&disk, ids[1]), "perhaps a crash interrupted the erasure of its last user");
    }

    #[test]
    fn shared_body_is_counted_after_opening_moved_by_compaction_and_freed_with_its_last_block() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("store");
        let id = BodyId { record: 7, at: 70 };
        let lists_body = |key: &[u8]| {
            let entries = vec![(1, 0, Body::Shared(id, 5))];
            let summary = BlockSummary::of_entries(&entries);
            let value = Block::V1 { namespace: 1, user: "a", entries }.encode();
            NewBlock { key: key.to_vec(), value, summary, bodies: vec![id] }
        };
        let disk = open(&path);
        put(&disk, 0..100);
        disk.put_bodies(&[(id, b"body".to_vec())]).unwrap();
        disk.put_blocks(&[lists_body(b"a"), lists_body(b"b")]).unwrap();
        disk.checkpoint().unwrap();
        drop(disk);

        let disk = open(&path);
        let file = || BlockRow::decode(&disk.trees.bodies.get(id.key()).unwrap().unwrap()).unwrap().location.file;
        let before = file();
        // One reference is added, and one is removed, before those of the earlier process are counted.
        disk.put_blocks(&[lists_body(b"c")]).unwrap();
        disk.remove(Table::Log, b"a").unwrap();
        (0..100_u64).for_each(|n| disk.remove(Table::Log, &n.to_be_bytes()).unwrap());
        assert_eq!(disk.unreferenced_bodies(u64::MAX, 9).unwrap(), [], "not counted yet");
        while disk.collect_garbage(CompactionMode::Eager).unwrap() {}
        while disk.collect_garbage(CompactionMode::Eager).unwrap() {}
        assert_ne!(file(), before, "compaction moves it");
        assert_eq!(disk.get(Table::Bodies, &id.key()).unwrap().unwrap(), &b"body"[..]);
        for key in [b"b", b"c"] {
            assert_eq!(disk.unreferenced_bodies(u64::MAX, 9).unwrap(), [], "{key:?} lists it");
            disk.remove(Table::Log, key).unwrap();
        }
        assert_eq!(disk.unreferenced_bodies(7, 9).unwrap(), [], "its record is in the WAL");
        assert_eq!(disk.unreferenced_bodies(8, 9).unwrap(), [id]);
        disk.remove(Table::Bodies, &id.key()).unwrap();
        assert_eq!(disk.value_log.live_bytes(), 0);
    }
}
