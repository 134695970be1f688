//! Locks, reads and checks the directory of a closed store.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::{Path, PathBuf},
};

use bytes::Bytes;

use super::{
    CloseState, Damage, DedupEntry, Facts, InspectSink,
    connected::{count_entries, read_connected},
    labels::lost_range,
    now_s, open_error,
    users::{UserWalk, VisitError, invalid_keys},
    wal_events::WalEvents,
};
use crate::{
    embedded::{
        offline::reader::OfflineReader,
        tables::{
            contract::Table,
            directory::{in_use, try_lock},
            files::{LOCK, REBUILT, SLED_CONF, SLED_DIR, SLED_FILE, UNFINISHED, WATERMARK},
            meta::{
                CLOSED, FLOOR_KEY, FORMAT_KEY, FULL_LOSSY_RESTARTS_KEY, LOSSY_RESTARTS_KEY, NAMESPACE_KEY, OPEN_ALWAYS,
                OPEN_KEY, OPEN_LOSSY, check_format,
            },
            missing::MissingPart,
            schema::{Ids, StoredLog, wal_number},
            unfinished,
            watermark::SyncWatermark,
        },
        user_log::lossy_restarts::LossyRestarts,
        value_log::block::block_entries,
        wal::events::is_continued,
    },
    logging::system_error,
    message::{Seq, UserId},
    store::{StoreError, fingerprint},
};

/// Number of damaged parts that are listed. Further ones are counted.
const DAMAGE_MAX: usize = 1000;

/// Bytes of orphaned entries that are held in memory. Further ones are reported as damage.
const ORPHAN_BYTES_MAX: usize = 512 << 20;

/// Inspects a closed store.
pub struct Inspection {
    path: PathBuf,
    reader: OfflineReader,
    facts: Facts,
    wal_events: WalEvents,
    ids: Vec<DedupEntry>,
    /// Entries of blocks without a location, by user: sequence, expiry in seconds of the Unix epoch (0 = never),
    /// payload.
    orphan_entries: BTreeMap<String, Vec<(Seq, u32, Bytes)>>,
    orphan_bytes: usize,
    /// Rows on pages to which no tree refers, by user.
    orphan_rows: BTreeMap<String, StoredLog>,
    damage: Vec<Damage>,
    omitted_damage: u64,
    /// Holds the lock of the directory until this value is dropped.
    _lock: Option<File>,
}

impl Inspection {
    /// Reads the store in a directory. Writes nothing there, not even into its lock file.
    ///
    /// # Errors
    /// When another process has the store open, or there is no store.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let lock = lock(path)?;
        let sled_dir = path.join(SLED_DIR);
        let failed = |error: std::io::Error| {
            open_error(path, format!("{}. Name the directory of a store", system_error(&error)))
        };
        if path.join(REBUILT).join(SLED_FILE).exists() {
            // The server reads the tables in `rebuilt`, not those in `log`.
            let why = "its tables were rebuilt, and its server ended before the new tables in `rebuilt` replaced the old \
                       ones. Start its server once to finish that";
            return Err(open_error(path, why));
        }
        let no_tables = MissingPart::find_tables(path).map_err(failed)?;
        let mut reader = OfflineReader::open(path, false).map_err(failed)?;
        let stored = SyncWatermark::read(path);
        let watermark = stored.unwrap_or_default();
        let end = watermark.end;
        let has_lost_data = end > reader.end();
        let detected_end = reader.end();
        if has_lost_data && reader.has_data_past_end() {
            // Synced data is missing at the detected end, so the data after it belongs to the log.
            reader = OfflineReader::open(path, true).map_err(failed)?;
        }
        let synced = watermark.record.max(reader.synced());
        let mut inspection = Self {
            path: path.to_owned(),
            facts: Facts {
                format: None,
                namespace: None,
                close_state: CloseState::Unknown,
                lossy_restarts: 0,
                floor: 0,
                records: None,
                wal_bytes: 0,
                flushed: reader.flushed().map_err(failed)?,
                synced_record: stored.map(|stored| stored.record),
                ids: 0,
                file_bytes: directory_bytes(path),
                trees: Vec::new(),
                connected: Vec::new(),
            },
            reader,
            wal_events: WalEvents::default(),
            ids: Vec::new(),
            orphan_entries: BTreeMap::new(),
            orphan_bytes: 0,
            orphan_rows: BTreeMap::new(),
            damage: Vec::new(),
            omitted_damage: 0,
            _lock: lock,
        };
        if end > detected_end {
            let what = "it ends before the position to which it was synced; data after that follows a gap";
            inspection.report("log/db", format!("log position {detected_end}, synced to {end}"), what);
        }
        if let Some(why) = unfinished::reason(path).map_err(failed)? {
            inspection.report(UNFINISHED, String::new(), why);
        }
        if SyncWatermark::is_foreign(path) {
            inspection.report(WATERMARK, String::new(), "it was not written by mesa");
        }
        if !conf_is_intact(&sled_dir) {
            let what = "it is damaged, and no server starts with it. Remove it: the next start writes a new one";
            inspection.report("log/conf", String::new(), what);
        }
        inspection.report_file_damage();
        inspection.read_meta().map_err(failed)?;
        // Data of another format would look like damage, and a salvage would omit it.
        check_format(inspection.facts.format.as_deref().map(str::as_bytes))?;
        if let Some(missing) = no_tables.or(inspection.reader.missing(path).map_err(failed)?) {
            inspection.report(missing.name(), String::new(), missing);
        }
        inspection.read_wal(synced);
        inspection.read_ids().map_err(failed)?;
        let (connected, unreadable) = read_connected(&inspection.reader).map_err(failed)?;
        (inspection.facts.connected, inspection.facts.trees) =
            (connected, count_entries(&inspection.reader).map_err(failed)?);
        inspection.report_all(unreadable);
        let invalid = invalid_keys(&inspection.reader).map_err(failed)?;
        inspection.report_all(invalid);
        if !inspection.damage.is_empty() {
            inspection.collect_orphans().map_err(failed)?;
        }
        Ok(inspection)
    }

    /// Returns the properties of the store.
    #[must_use]
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Returns the damage found so far, at most 1000 parts. [`Inspection::visit`] completes it.
    #[must_use]
    pub fn damage(&self) -> &[Damage] {
        &self.damage
    }

    /// Returns the number of damaged parts that [`Inspection::damage`] omits.
    #[must_use]
    pub fn omitted_damage(&self) -> u64 {
        self.omitted_damage
    }

    /// Returns whether no damage was found so far.
    #[must_use]
    pub fn is_undamaged(&self) -> bool {
        self.damage.is_empty()
    }

    /// Returns the idempotency ids and their results, oldest first.
    #[must_use]
    pub fn ids(&self) -> &[DedupEntry] {
        &self.ids
    }

    /// Returns the fingerprint of the namespace.
    #[must_use]
    pub fn namespace(&self) -> u32 {
        fingerprint(self.facts.namespace.as_deref().unwrap_or_default())
    }

    fn report(&mut self, place: &'static str, key: String, what: impl std::fmt::Display) {
        self.report_all([Damage { place, key, what: what.to_string(), user: None }]);
    }

    fn report_all(&mut self, damage: impl IntoIterator<Item = Damage>) {
        for damage in damage {
            if self.damage.len() < DAMAGE_MAX {
                self.damage.push(damage);
            } else {
                self.omitted_damage += 1;
            }
        }
    }

    fn report_file_damage(&mut self) {
        let ranges: Vec<_> = self.reader.damaged().to_vec();
        for range in ranges {
            self.report("log/db", format!("bytes {} to {}", range.from, range.to), range.what);
        }
        for lost in self.reader.take_lost_keys() {
            let (place, range) = lost_range(&lost);
            self.report(place, range, "a page of this table is missing");
        }
    }

    fn read_meta(&mut self) -> std::io::Result<()> {
        let text = |bytes: &Bytes| String::from_utf8(bytes.to_vec()).ok();
        let get = |key: &[u8]| self.reader.get(Table::Meta, key);
        let format = get(FORMAT_KEY)?.as_ref().and_then(text);
        let namespace = get(NAMESPACE_KEY)?.as_ref().and_then(text);
        let lossy_restarts = get(LOSSY_RESTARTS_KEY)?;
        let open = get(OPEN_KEY)?;
        let floor = get(FLOOR_KEY)?;
        self.facts.close_state = match open.as_deref() {
            Some(CLOSED) => CloseState::Clean,
            Some(OPEN_ALWAYS) => CloseState::Unclean,
            Some(OPEN_LOSSY) => CloseState::UncleanLossy,
            _ => CloseState::Unknown,
        };
        if let Some(lossy_restarts) = lossy_restarts {
            match lossy_restarts[..].try_into() {
                Ok(lossy_restarts) => self.facts.lossy_restarts = u32::from_be_bytes(lossy_restarts),
                Err(_) => self.report("meta", key_name(LOSSY_RESTARTS_KEY), "it is not a number"),
            }
        }
        if let Some(floor) = floor {
            match wal_number(&floor) {
                Some(floor) => self.facts.floor = floor,
                None => self.report("meta", key_name(FLOOR_KEY), "it is not a number"),
            }
        }
        for (key, found) in [(FORMAT_KEY, format.is_some()), (NAMESPACE_KEY, namespace.is_some())] {
            if !found {
                self.report("meta", key_name(key), "it is missing");
            }
        }
        (self.facts.format, self.facts.namespace) = (format, namespace);
        Ok(())
    }

    fn read_wal(&mut self, synced: u64) {
        let mut records: Vec<(u64, Bytes)> =
            self.reader.records().map(|(number, value)| (number, value.clone())).collect();
        let flushed = self.facts.flushed;
        // Records above the sync watermark that follow a missing one were left by a crash. The server discards them.
        let mut next = flushed + 1;
        records.retain(|(number, _)| {
            let is_contiguous = *number == next || next <= synced;
            next = if is_contiguous { number + 1 } else { next };
            is_contiguous
        });
        // The last commit, if incomplete, was never answered. If synced records are missing, it may have been.
        let last_present = records.last().map_or(flushed, |(number, _)| *number);
        let mut rolled_back = u64::MAX;
        while synced <= last_present
            && let Some((number, _)) = records.last().filter(|(_, value)| is_continued(value) == Some(true))
        {
            rolled_back = *number;
            records.pop();
        }
        let synced = synced.min(rolled_back - 1);
        let (mut next, mut first, mut count, mut is_complete) = (flushed + 1, None, 0, true);
        for (number, value) in &records {
            if *number != next {
                is_complete = false;
                self.report("wal", record_range(next, number - 1), "missing");
            }
            first = first.or(Some(*number));
            (next, count) = (number + 1, count + 1);
            self.facts.wal_bytes += value.len() as u64;
            self.read_record(*number, value);
        }
        if synced >= next {
            is_complete = false;
            self.report("wal", record_range(next, synced), "missing, although synced");
        }
        if !is_complete {
            for part in self.reader.unreadable().to_vec() {
                let key = format!("{}, bytes {} to {}", part.file, part.from, part.to);
                self.report("wal", key, "nothing in this range can be read");
            }
        }
        self.facts.records = first.map(|first| (first, next - 1, count));
        self.facts.floor = self.facts.floor.max(self.wal_events.floor);
    }

    fn read_record(&mut self, number: u64, value: &Bytes) {
        let key = format!("record {number}");
        let (namespace, decoded) = self.wal_events.add_record(value);
        if let Err(what) = decoded {
            self.report("wal", key.clone(), what);
        }
        if self.facts.namespace.is_some() && namespace.is_some_and(|namespace| namespace != self.namespace()) {
            self.report("wal", key, "it belongs to another namespace");
        }
    }

    fn read_ids(&mut self) -> std::io::Result<()> {
        let mut found = Vec::new();
        for pair in self.reader.pairs(Table::Ids, &[]) {
            found.push(pair?);
        }
        for (key, value) in found {
            match Ids::decode(&value) {
                Ok(Ids::V1 { mut ids, .. }) => {
                    ids.iter_mut().for_each(|id| self.wal_events.remove_erased(id));
                    self.ids.extend(ids.into_iter().map(DedupEntry));
                }
                Err(error) => self.report("ids", format!("{key:?}"), error),
            }
        }
        self.ids.extend(std::mem::take(&mut self.wal_events.ids).into_iter().map(DedupEntry));
        self.facts.ids = self.ids.len() as u64;
        Ok(())
    }

    /// Collects orphaned rows and blocks: no table refers to them.
    ///
    /// A block contains its user. The key of a row is its user.
    fn collect_orphans(&mut self) -> std::io::Result<()> {
        for pair in self.reader.orphan_pairs() {
            let (key, value) = pair?;
            let user = std::str::from_utf8(&key).ok().filter(|id| UserId::new(id).is_ok());
            if let (Some(user), Ok(row)) = (user, StoredLog::decode(&value)) {
                self.orphan_rows.insert(user.to_owned(), row);
            }
        }
        let (mut over, ours) = (0, self.namespace());
        let Self { reader, orphan_entries, orphan_bytes, .. } = self;
        reader.blocks_without_location(|value| {
            let mut read_body = |id, namespace, length| reader.body(id, namespace, length);
            let Ok((namespace, _, entries)) = block_entries(value, &mut read_body) else { return };
            if namespace != ours {
                return;
            }
            // The block may be dead, and then also its shared bodies.
            for (entry, expires_s) in entries.into_iter().filter_map(|(entry, at)| Some((entry.ok()?, at))) {
                let Ok(user) = std::str::from_utf8(&entry.owner) else { continue };
                if *orphan_bytes > ORPHAN_BYTES_MAX {
                    over += 1;
                    continue;
                }
                let payload = entry.payload.as_bytes().clone();
                *orphan_bytes += payload.len();
                orphan_entries.entry(user.to_owned()).or_default().push((entry.seq, expires_s, payload));
            }
        })?;
        if over > 0 {
            let what =
                format!("{over} entries without a location were not read, because the others fill 512 MiB of memory");
            self.report("value-log", String::new(), what);
        }
        Ok(())
    }

    /// Visits all users in the order of their ids, with all readable data of each.
    ///
    /// # Errors
    /// When the file cannot be read, or the sink returns an error.
    pub fn visit(&mut self, sink: &mut dyn InspectSink) -> Result<(), StoreError> {
        self.visit_some(sink, None)
    }

    /// As [`Inspection::visit`], for one user.
    ///
    /// # Errors
    /// As [`Inspection::visit`].
    pub fn visit_one(&mut self, user: &str, sink: &mut dyn InspectSink) -> Result<(), StoreError> {
        self.visit_some(sink, Some(user))
    }

    fn visit_some(&mut self, sink: &mut dyn InspectSink, only: Option<&str>) -> Result<(), StoreError> {
        let from = only.unwrap_or_default().as_bytes();
        let at_restore =
            self.reader.get(Table::Meta, FULL_LOSSY_RESTARTS_KEY).map_err(|error| open_error(&self.path, error))?;
        let at_restore = at_restore
            .and_then(|bytes| Some(u32::from_be_bytes(bytes[..].try_into().ok()?)))
            .unwrap_or(self.facts.lossy_restarts);
        let mut found = Vec::new();
        let mut walk = UserWalk {
            reader: &self.reader,
            rows: self.reader.pairs(Table::Users, from).peekable(),
            blocks: self.reader.pairs(Table::Log, from).peekable(),
            wal_events: &self.wal_events,
            orphan_entries: &self.orphan_entries,
            orphan_rows: &self.orphan_rows,
            namespace: self.namespace(),
            lossy_restarts: LossyRestarts { count: self.facts.lossy_restarts, at_restore },
            damaged: !self.damage.is_empty(),
            only,
            damage_found: &mut found,
            now_s: now_s(),
        };
        let walked = walk.visit_users(sink).map_err(|error| match error {
            VisitError::Sink(error) => error,
            VisitError::Read(error) => open_error(&self.path, error),
        });
        drop(walk);
        self.report_all(found);
        walked
    }
}

/// Sums the bytes of all files in a directory and its subdirectories.
fn directory_bytes(path: &Path) -> u64 {
    let files = fs::read_dir(path).into_iter().flatten().flatten();
    files
        .map(|file| {
            if file.path().is_dir() {
                directory_bytes(&file.path())
            } else {
                file.metadata().map_or(0, |file| file.len())
            }
        })
        .sum()
}

/// Returns whether sled's settings match their checksum. sled itself rewrites a missing or too short file.
fn conf_is_intact(sled_dir: &Path) -> bool {
    let conf = fs::read(sled_dir.join(SLED_CONF)).unwrap_or_default();
    match conf.split_last_chunk::<4>() {
        Some((text, crc)) if conf.len() > 8 => crc32fast::hash(text) == u32::from_le_bytes(*crc),
        _ => true,
    }
}

fn record_range(from: u64, to: u64) -> String {
    if from == to { format!("record {from}") } else { format!("records {from} to {to}") }
}

/// Returns the name of a key of the table `meta`.
fn key_name(key: &[u8]) -> String {
    String::from_utf8_lossy(key).into_owned()
}

fn cannot_lock(error: &std::io::Error) -> String {
    format!("its file `{LOCK}` cannot be locked: {}. Check that it may be read", system_error(error))
}

/// Locks a directory without writing into it. Returns `None` if it has no lock file.
fn lock(path: &Path) -> Result<Option<File>, StoreError> {
    if !path.is_dir() {
        return Err(open_error(path, "there is no such directory"));
    }
    let file = match File::open(path.join(LOCK)) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(open_error(path, cannot_lock(&error))),
    };
    match try_lock(&file) {
        Ok(None) => Ok(Some(file)),
        Ok(Some(holder)) => Err(in_use(path, &holder)),
        Err(error) => Err(open_error(path, cannot_lock(&error))),
    }
}
