//! Opens a store directory, also after a process was killed while opening it.

use std::{
    fs::{self, File},
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64},
    },
    thread,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use super::{
    directory::StoreDir,
    files::{SEGMENT_BYTES, SLED_FILE, VALUE_LOG, WAL},
    foreign::is_empty,
    missing::MissingPart,
    open_error::{self, io_reason, sled_reason},
    sled::{Disk, Reclaim, Trees, close_sled, discard_sled},
    space::{Ballast, BallastError, Runway},
    unfinished::{self, Operation},
    watermark::{SyncWatermark, WatermarkFile},
};
use crate::{
    embedded::{
        self,
        file_io::rewrite,
        offline::{
            reader::flushed_through,
            rebuild,
            sled_file::{RawTables, Segments, TABLES, Tail},
        },
        options::Options,
        tables::{
            contract::Table,
            meta::{
                ERASED_FILES_KEY, FLUSHED_KEY, FORMAT_KEY, LIVE_BYTES_KEY, NAMESPACE_KEY, VALUE_LOG_FILE_KEY,
                check_format, check_namespace,
            },
            schema::wal_number,
        },
        value_log::{bodies::References, file::ValueLog},
        wal::{layout::OpenError, scan::WalScan, segment::WalFiles},
    },
    health::Health,
    store::{Durability, Limits, OutboxOptions, Store, StoreError},
};

/// Interval at which sled's thread flushes and reclaims segments, in milliseconds.
///
/// Durability does not depend on it, the reuse of space does.
const BACKGROUND_FLUSH_MS: u64 = 500;

/// Share of the memory for caches that sled counts for its pages: one byte in so many.
///
/// sled counts the bytes of a page in its file, which take about four times as many in memory.
const SLED_CACHE_SHARE: u64 = 8;

/// Timeout for the system to release sled's lock of a killed process. Then the store does not open.
const SLED_LOCK_TIMEOUT: Duration = Duration::from_secs(5);

/// Options of [`open`].
#[derive(Clone)]
pub struct DiskOptions {
    /// The store's directory. Created if it does not exist; its parent directory must exist.
    pub path: PathBuf,
    /// The namespace. A store cannot change it.
    pub namespace: Option<String>,
    /// How durable an append is when it is answered.
    pub durability: Durability,
    /// Memory for caches, in bytes.
    ///
    /// One half holds the newest WAL records; the WAL is never much longer than 64 MiB. The other half holds pages of
    /// sled. Under load, sled takes more.
    pub cache_bytes: u64,
    /// Operations that may wait for the commit thread. Further callers wait until the queue has capacity.
    pub queue: usize,
    /// Quotas and capacity.
    pub limits: Limits,
    /// The outbox of webhook events. With `None` no event is stored, and stored events stay.
    pub outbox: Option<OutboxOptions>,
    /// Receives the state of the store for `/readyz`.
    #[doc(hidden)]
    pub health: Arc<Health>,
    /// Called instead of syncing the file, in tests of a failing disk.
    #[doc(hidden)]
    pub sync: Option<Arc<dyn Fn() -> std::io::Result<()> + Send + Sync>>,
    /// See [`Tuning`](crate::embedded::Tuning). For tests.
    #[doc(hidden)]
    pub tuning: embedded::options::Tuning,
    /// See [`Options::ahead_ms`].
    #[doc(hidden)]
    pub ahead_ms: Arc<AtomicU64>,
    /// The restore, salvage or import that writes the store. The directory is marked until [`unfinished::end`] is
    /// called.
    #[doc(hidden)]
    pub operation: Option<Operation>,
}

impl DiskOptions {
    /// The defaults for a store at `path`: no namespace, [`Durability::Always`], 64 MiB of cache, a queue of 10 000.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            namespace: None,
            durability: Durability::Always,
            cache_bytes: 64 << 20,
            queue: 10_000,
            limits: Limits::default(),
            outbox: None,
            health: Arc::default(),
            sync: None,
            tuning: embedded::options::Tuning::default(),
            ahead_ms: Arc::default(),
            operation: None,
        }
    }
}

/// Opens the store in a directory, and creates it if there is none.
///
/// # Errors
/// When another process has the store open, it belongs to another namespace or version, or it cannot be read.
pub fn open(options: DiskOptions) -> Result<Arc<dyn Store>, StoreError> {
    let engine = open_engine(&options)?;
    let store_options = Options {
        namespace: options.namespace,
        durability: options.durability,
        queue: options.queue,
        limits: options.limits,
        record_cache_bytes: usize::try_from(options.cache_bytes / 2).unwrap_or(usize::MAX),
        outbox: options.outbox,
        health: options.health,
        tuning: options.tuning,
        ahead_ms: options.ahead_ms,
    };
    embedded::open(Arc::new(engine), store_options)
}

/// Creates the tables of a new store. The directory is marked until [`unfinished::end`] is called.
pub(in crate::embedded) fn create(path: &Path, operation: Operation) -> Result<Disk, StoreError> {
    open_engine(&DiskOptions { operation: Some(operation), ..DiskOptions::new(path) })
}

pub(in crate::embedded) fn open_engine(options: &DiskOptions) -> Result<Disk, StoreError> {
    let cannot_open = |reason: String| StoreError::Open { path: options.path.clone(), reason };
    let dir = StoreDir::new(&options.path)?;
    unfinished::check(&options.path, options.operation)?;
    let sled_dir = dir.sled_dir();
    let unreadable = |error: std::io::Error| cannot_open(io_reason("its file `log/db` cannot be read", &error));
    dir.finish_replacement().map_err(|error| cannot_open(io_reason("its directory `log`", &error)))?;
    let (scanned, mut segments) =
        check_store(&sled_dir, &options.path, options.namespace.as_deref().unwrap_or_default())?;
    if let Some(operation) = options.operation {
        // After the checks, because a rejected store must stay usable for its server.
        unfinished::begin(&options.path, operation)
            .map_err(|error| cannot_open(io_reason("cannot mark it", &error)))?;
    }
    if segments.as_ref().is_some_and(Segments::snapshot_is_stale) {
        segments = None;
        rebuild::rebuild(&dir, &options.path, |staging| open_sled(staging, options.cache_bytes))
            .map_err(cannot_open)?;
    }
    if !sled_dir.exists() || is_empty(&sled_dir) {
        create_sled(&dir, options).map_err(cannot_open)?;
    }
    // A process that was killed while opening left this incomplete snapshot, which sled would prefer.
    for snapshot in
        dir.set_snapshots_aside(false).map_err(|error| cannot_open(io_reason("its directory `log`", &error)))?
    {
        tracing::warn!(snapshot = %snapshot.display(), "moved an incomplete snapshot away");
    }
    let ballast = Ballast::of(&options.path);
    ballast.prepare_open(&sled_dir.join(SLED_FILE)).map_err(|error| match error {
        BallastError::NoSpace { wanted, free } => cannot_open(open_error::no_space("its file `log/db`", wanted, free)),
        BallastError::Io(error) => cannot_open(io_reason("its file `log/db`", &error)),
    })?;
    // New or rebuilt files have other segments.
    let segments = segments.map_or_else(|| Segments::find(&sled_dir), Ok).map_err(unreadable)?;
    rewrite_unsynced(&segments, &sled_dir, &options.path).map_err(unreadable)?;
    drop(segments);
    let db = match open_sled(&sled_dir, options.cache_bytes) {
        Err(sled::Error::Corruption { .. }) => {
            // The snapshot is truncated. sled's log is usually intact.
            let moved =
                dir.set_snapshots_aside(true).map_err(|error| cannot_open(io_reason("its directory `log`", &error)))?;
            tracing::warn!(
                snapshots = moved.len(),
                "the store did not open: its snapshots were moved away, and it is opened again"
            );
            open_sled(&sled_dir, options.cache_bytes)
        }
        opened => opened,
    }
    .map_err(|error| cannot_open(sled_reason(&error)))?;
    open_parts(db.clone(), dir, scanned, options).inspect_err(|_| discard_sled(&db))
}

/// Opens all parts of the store except sled. `scanned` is the earlier scan of the WAL.
fn open_parts(db: sled::Db, dir: StoreDir, scanned: WalScan, options: &DiskOptions) -> Result<Disk, StoreError> {
    let path = &options.path;
    let cannot_open = |reason: String| StoreError::Open { path: path.clone(), reason };
    let sled_dir = dir.sled_dir();
    // First, because the newest snapshot must be durable before the changes that sled made after it.
    dir.sync_names().map_err(|error| cannot_open(io_reason("cannot sync it", &error)))?;
    let tree = |table| {
        let (name, _) = TABLES.iter().find(|(_, named)| *named == table).expect("every sled table has a name");
        db.open_tree(name).map_err(|error| cannot_open(sled_reason(&error)))
    };
    let trees = Trees {
        log: tree(Table::Log)?,
        users: tree(Table::Users)?,
        connected: tree(Table::Connected)?,
        meta: tree(Table::Meta)?,
        ids: tree(Table::Ids)?,
        outbox: tree(Table::Outbox)?,
        bodies: tree(Table::Bodies)?,
    };
    let file = File::options().read(true).write(true).open(sled_dir.join(SLED_FILE));
    let file = file.map_err(|error| cannot_open(io_reason("its file `log/db`", &error)))?;
    // A killed process may have left data that the system has not written yet. Files that this data makes superfluous
    // are removed below, so it must be durable first.
    db.flush().map_err(|error| cannot_open(sled_reason(&error)))?;
    file.sync_data().map_err(|error| cannot_open(io_reason("its file `log/db`", &error)))?;
    let mut runway = Runway::default();
    let ballast = file.metadata().and_then(|file| Ballast::of(path).make(file.len()));
    if let Err(error) = ballast {
        tracing::warn!(%error, "cannot create the ballast: this store may not open on a full disk");
    }
    runway.extend(&file).map_err(|error| cannot_open(io_reason("its file `log/db`", &error)))?;
    let flushed = trees.meta.get(FLUSHED_KEY).map_err(|error| cannot_open(sled_reason(&error)))?;
    let flushed = flushed.and_then(|value| wal_number(&value)).unwrap_or(0);
    let watermark = SyncWatermark::read(path).unwrap_or_default();
    let wal_dir = path.join(WAL);
    let wal = if scanned.flushed == flushed {
        WalFiles::from_scan(&wal_dir, scanned).map_err(OpenError::Io)
    } else {
        WalFiles::open(&wal_dir, flushed, watermark.record)
    };
    let wal = wal.map_err(|damage| wal_error(path, damage))?;
    let number = |key: &[u8]| -> Result<Option<u64>, StoreError> {
        let value = trees.meta.get(key).map_err(|error| cannot_open(sled_reason(&error)))?;
        Ok(value.and_then(|value| Some(u64::from_be_bytes(value[..].try_into().ok()?))))
    };
    let last_file = number(VALUE_LOG_FILE_KEY)?.unwrap_or(0);
    let value_log = ValueLog::open(&path.join(VALUE_LOG), last_file, number(LIVE_BYTES_KEY)?);
    let value_log = value_log.map_err(|error| cannot_open(io_reason("its directory `value-log`", &error)))?;
    let erased = trees.meta.get(ERASED_FILES_KEY).map_err(|error| cannot_open(sled_reason(&error)))?;
    // Their bytes would otherwise stay until the files are compacted for another reason.
    for number in erased.iter().flat_map(|files| files.as_chunks().0) {
        value_log.set_erased(u64::from_be_bytes(*number));
    }
    let watermark_file =
        WatermarkFile::open(path).map_err(|error| cannot_open(io_reason("its file `mark`", &error)))?;
    let tail = Tail::find(&sled_dir).map_err(|error| cannot_open(io_reason("its file `log/db`", &error)))?;
    dir.sync().map_err(|error| cannot_open(io_reason("cannot sync it", &error)))?;
    Ok(Disk {
        db,
        trees,
        wal,
        value_log,
        last_file: AtomicU64::new(last_file),
        references: Mutex::new(References::default()),
        file,
        watermark: watermark_file,
        tail: Mutex::new(tail),
        runway: Mutex::new(runway),
        written: Mutex::default(),
        reclaim: Mutex::new(Reclaim { compaction: None, checkpoint: Instant::now(), dead_files: Vec::new() }),
        failed: AtomicBool::new(false),
        sync: options.sync.clone(),
        dir,
    })
}

fn wal_error(path: &Path, damage: OpenError) -> StoreError {
    match damage {
        OpenError::Damage(damage) => damaged(path, damage),
        OpenError::Io(error) => {
            let reason = io_reason("its directory `wal`", &error);
            StoreError::Open { path: path.to_owned(), reason }
        }
    }
}

/// Creates sled's files.
///
/// sled writes its file `conf` in two steps and never syncs it. Without the second step it never opens the store again.
/// So the files are created in another directory, which is renamed when they are complete and synced.
fn create_sled(dir: &StoreDir, options: &DiskOptions) -> Result<(), String> {
    let cannot = |error: std::io::Error| io_reason("cannot create its directory `log`", &error);
    let staging = dir.staging_dir().map_err(cannot)?;
    let db = open_sled(&staging, options.cache_bytes).map_err(|error| sled_reason(&error))?;
    close_sled(db, &staging).map_err(cannot)?;
    dir.install(&staging).map_err(cannot)
}

fn damaged(path: &Path, what: impl std::fmt::Display) -> StoreError {
    let reason = format!(
        "{what}. Nothing was changed. See what is left with `mesa inspect {path}`, and save it with `--salvage`; or \
         restore a backup",
        path = path.display()
    );
    StoreError::Damaged(reason.into())
}

/// Rejects a damaged store, and a store of another format or namespace. Returns the scan of the WAL, and the segments of
/// sled's file, if it has any.
///
/// Runs before sled opens its files, because sled skips what it cannot read and overwrites what follows.
fn check_store(sled_dir: &Path, path: &Path, namespace: &str) -> Result<(WalScan, Option<Segments>), StoreError> {
    if SyncWatermark::is_foreign(path) {
        return Err(damaged(path, "its file `mark` was not written by mesa"));
    }
    let unread = |error: std::io::Error| StoreError::Open {
        path: path.to_owned(),
        reason: io_reason("its file `log/db` cannot be read", &error),
    };
    if let Some(missing) = MissingPart::find_tables(path).map_err(unread)? {
        return Err(damaged(path, missing));
    }
    let (watermark, length) = (SyncWatermark::read(path).unwrap_or_default(), db_bytes(sled_dir));
    let (mut flushed, mut segments) = (0, None);
    if length > 0 || watermark.end > 0 {
        // Reads the file once. So a disk error is found before sled opens it.
        let found = segments.insert(Segments::find(sled_dir).map_err(unread)?);
        let tables = RawTables::open_one(found, Table::Meta, watermark.end).map_err(unread)?;
        let tables = tables.map_err(|damage| damaged(path, damage))?;
        check_format(tables.get(Table::Meta, FORMAT_KEY).map_err(unread)?.as_deref())?;
        check_namespace(tables.get(Table::Meta, NAMESPACE_KEY).map_err(unread)?.as_deref(), namespace)?;
        if let Some(missing) = MissingPart::find_other(path, &tables).map_err(unread)? {
            return Err(damaged(path, missing));
        }
        flushed = flushed_through(&tables).map_err(unread)?;
    }
    let wal = WalFiles::check(&path.join(WAL), flushed, watermark.record).map_err(|damage| wal_error(path, damage))?;
    Ok((wal, segments))
}

/// Writes the part of sled's log that is not known to be synced once more: see [`rewrite`].
///
/// The caller syncs it. After a failed sync, sled's file may otherwise lack it in spite of a later successful sync.
fn rewrite_unsynced(segments: &Segments, sled_dir: &Path, path: &Path) -> std::io::Result<()> {
    let synced = SyncWatermark::read(path).unwrap_or_default().end;
    let ranges = segments.ranges_after(synced)?;
    let file = File::options().read(true).write(true).open(sled_dir.join(SLED_FILE))?;
    ranges.into_iter().try_for_each(|(from, to)| rewrite(&file, from, to))
}

fn db_bytes(sled_dir: &Path) -> u64 {
    fs::metadata(sled_dir.join(SLED_FILE)).map_or(0, |db| db.len())
}

/// Opens sled, and catches its panics on unexpected files.
fn open_sled(sled_dir: &Path, cache_bytes: u64) -> sled::Result<sled::Db> {
    let opened = catch_unwind(AssertUnwindSafe(|| open_with_retry(sled_dir, cache_bytes)));
    opened.unwrap_or_else(|_| Err(sled::Error::ReportableBug("sled cannot read its files".into())))
}

fn open_with_retry(sled_dir: &Path, cache_bytes: u64) -> sled::Result<sled::Db> {
    let config = sled::Config::new()
        .path(sled_dir)
        .cache_capacity(cache_bytes / SLED_CACHE_SHARE)
        .segment_size(SEGMENT_BYTES)
        .flush_every_ms(Some(BACKGROUND_FLUSH_MS));
    let since = Instant::now();
    loop {
        match config.open() {
            // This process holds the directory's lock, so the holder of sled's lock is dead. The system releases it
            // soon.
            Err(sled::Error::Io(error)) if is_lock_error(&error) && since.elapsed() < SLED_LOCK_TIMEOUT => {
                thread::sleep(Duration::from_millis(50));
            }
            opened => return opened,
        }
    }
}

fn is_lock_error(error: &std::io::Error) -> bool {
    error.kind() == std::io::ErrorKind::WouldBlock || error.to_string().contains("lock")
}
