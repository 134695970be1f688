//! Creates the stores that are damaged, and records their content.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use mesa::{
    embedded::{Tuning, tables::DiskOptions},
    message::{CollapseKey, DeviceId, DispatchId, Payload, UserId},
    store::{Append, Idempotency, SessionReport, Store},
};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::current_thread_runtime;

pub const USERS: u64 = 7;

/// A store that no process has open, and its content.
pub struct Fixture {
    pub name: &'static str,
    /// Copy of the store while the last messages were appended.
    pub earlier: PathBuf,
    /// The store in its final state.
    pub store: PathBuf,
    /// Bytes of `log/db` up to the last one that is not zero.
    pub db_written: u64,
    /// Files of the WAL and the value log.
    pub data_files: Vec<String>,
    /// Every entry that was appended, by user and sequence.
    pub appended: BTreeMap<String, BTreeMap<u64, Value>>,
    /// Pending entries of each user, as a server on the undamaged store shows them.
    pub pending: BTreeMap<String, Vec<(u64, Value)>>,
    _home: TempDir,
}

const FLUSH_AT_ONCE: Tuning = Tuning {
    flush_delay: Duration::ZERO,
    wal_bytes_max: 64 << 20,
    memory_bytes_max: usize::MAX,
    busy_timeout: Duration::from_secs(60),
    idle_seconds: 1,
    expiry_interval: Duration::from_secs(9),
};
const NO_FLUSH: Tuning =
    Tuning { flush_delay: Duration::from_secs(3600), wal_bytes_max: usize::MAX, idle_seconds: 3600, ..FLUSH_AT_ONCE };

impl Fixture {
    /// Creates three stores.
    ///
    /// One has its entries in the WAL. One was not closed and has entries in the value log. One is several sled
    /// segments long.
    pub fn create_all() -> Vec<Self> {
        vec![
            Self::create("wal", &[(NO_FLUSH, 60, 200), (NO_FLUSH, 60, 200), (NO_FLUSH, 60, 200)], true),
            Self::create(
                "value log",
                &[(FLUSH_AT_ONCE, 90, 300), (NO_FLUSH, 40, 300), (FLUSH_AT_ONCE, 90, 300)],
                false,
            ),
            Self::create("long", &[(FLUSH_AT_ONCE, 20, 300), (FLUSH_AT_ONCE, 440, 40_000)], true),
        ]
    }

    /// Creates a store by opening it once for each of `runs`.
    ///
    /// A run has a tuning, a number of messages, and the bytes of each.
    /// `close`: the store is copied after it was closed, not while it is open.
    fn create(name: &'static str, runs: &[(Tuning, u64, usize)], close: bool) -> Self {
        let home = tempfile::Builder::new().prefix("mesa-corrupt-").tempdir().expect("a temporary directory");
        let [live, store, earlier] = ["live", "store", "earlier"].map(|name| home.path().join(name));
        let mut appended = BTreeMap::new();
        let runtime = current_thread_runtime();
        runtime.block_on(async {
            let mut n = 0;
            for (index, (tuning, count, bytes)) in runs.iter().enumerate() {
                let options = DiskOptions { tuning: *tuning, ..DiskOptions::new(&live) };
                let opened = mesa::embedded::tables::open(options).expect("a store");
                let half = count / 2;
                fill(&opened, &mut n, half, *bytes, &mut appended).await;
                let last = index + 1 == runs.len();
                if last {
                    copy(&live, &earlier);
                }
                fill(&opened, &mut n, count - half, *bytes, &mut appended).await;
                if last && !close {
                    // Acknowledgements are synced with a later message, or after a delay. These messages sync all of
                    // them.
                    fill(&opened, &mut n, 10, *bytes, &mut appended).await;
                    copy_when_idle(&live, &store).await;
                }
                opened.close().await.expect("the store closes");
            }
        });
        if close {
            copy(&live, &store);
        }
        let db = fs::read(store.join("log/db")).expect("sled's log");
        let db_written = db.iter().rposition(|byte| *byte != 0).map_or(0, |last| last as u64 + 1);
        let data_files = ["wal", "value-log"].into_iter().flat_map(|directory| {
            let files = fs::read_dir(store.join(directory)).expect("a directory");
            files.map(move |file| format!("{directory}/{}", file.expect("a file").file_name().to_string_lossy()))
        });
        let mut data_files: Vec<String> = data_files.collect();
        data_files.sort();
        let mut fixture =
            Self { name, earlier, store, db_written, data_files, appended, pending: BTreeMap::new(), _home: home };
        fixture.pending = crate::verify::read_pending(&fixture).expect("the server shows an undamaged store");
        for (user, entries) in &fixture.pending {
            for (seq, value) in entries {
                assert_eq!(fixture.appended[user].get(seq), Some(value), "{name}: entry {seq} of {user}");
            }
        }
        fixture
    }

    /// Forges one expected entry, so that any store that opens is reported as wrong.
    pub fn forge_entry(&mut self) {
        let entry = self.pending.values_mut().flatten().next().expect("a pending entry");
        entry.1 = json!("forged");
    }
}

pub fn user(n: u64) -> String {
    format!("user {n}")
}

/// Appends messages in groups of ten, and acknowledges a part of them after each group.
async fn fill(
    store: &Arc<dyn Store>,
    n: &mut u64,
    count: u64,
    bytes: usize,
    appended: &mut BTreeMap<String, BTreeMap<u64, Value>>,
) {
    for _ in 0..count.div_ceil(10) {
        let mut appends = Vec::new();
        let mut messages = Vec::new();
        for _ in 0..10 {
            *n += 1;
            let to: Vec<String> =
                (0..=if bytes > 10_000 { 0 } else { *n % 3 }).map(|nth| user((*n * 5 + nth * 2) % USERS)).collect();
            let data = json!({ "n": *n, "to": to, "pad": "x".repeat(bytes) });
            let payload = Payload::encode(0, Some(&data.to_string()), Some("TEST")).expect("a payload");
            let recipients = to.iter().map(|id| UserId::new(id).expect("a user id")).collect::<Vec<_>>();
            let mut append = Append::new(payload, recipients);
            append.ttl = n.is_multiple_of(7).then_some(Duration::from_secs(7 * 24 * 3600));
            append.collapse = n.is_multiple_of(11).then(|| CollapseKey::new("weather").expect("a collapse key"));
            append.idempotency = n.is_multiple_of(9).then(|| Idempotency {
                id: DispatchId::new(&format!("dispatch {n}")).expect("a dispatch id"),
                online: vec![false; to.len()],
                rejected: Vec::new(),
            });
            appends.push(append);
            messages.push((to, data));
        }
        let results = store.append_all(appends).await.expect("the store accepts the messages");
        for (result, (to, data)) in results.iter().zip(messages) {
            for (seq, user) in result.seqs.iter().zip(to) {
                let seq = *seq.as_ref().expect("the recipient is accepted");
                assert!(
                    appended.entry(user).or_default().insert(seq, data.clone()).is_none(),
                    "expected sequence {seq} to be assigned once"
                );
            }
        }
        acknowledge_some(store, bytes);
    }
}

/// Acknowledges a part of the users' entries.
///
/// Some users have two devices, one of them behind. Others have none, or acknowledge out of order.
fn acknowledge_some(store: &Arc<dyn Store>, bytes: usize) {
    for n in 0..USERS {
        let id = UserId::new(&user(n)).expect("a user id");
        let head = store.state(&id).expect("a state").head;
        let acknowledged = |device: Option<&str>, from, to| SessionReport {
            device: device.map(|name| DeviceId::new(name).expect("a device id")),
            acknowledged: Some((from, to)),
            ..SessionReport::default()
        };
        match n {
            // Large entries are mostly acknowledged, so that most of sled's log is obsolete.
            0.. if bytes > 10_000 => store.report(&id, acknowledged(None, 1, head * 3 / 4)),
            1 | 2 => {
                for device in ["phone", "desk"] {
                    let name = DeviceId::new(device).expect("a device id");
                    store.attach(&id, Some(&name)).expect("the device attaches");
                    let last = if device == "phone" { head / 2 } else { head * 2 / 3 };
                    store.report(&id, acknowledged(Some(device), 1, last));
                    store.detach(&id, Some(&name));
                }
            }
            3 | 4 => store.report(&id, acknowledged(None, 1, head / 3)),
            5 => store.report(&id, acknowledged(None, head / 2, head / 2 + 2)),
            _ => {}
        }
    }
}

/// Copies an open store when it has not changed for 1.5 s. Every background task of the store runs within that time.
async fn copy_when_idle(from: &Path, to: &Path) {
    let bytes = |path: &Path| {
        let files = files(path).into_iter();
        files.map(|file| (file.clone(), fs::read(path.join(file)).expect("a readable file"))).collect::<Vec<_>>()
    };
    let mut before = bytes(from);
    for _ in 0..60 {
        tokio::time::sleep(Duration::from_millis(1500)).await;
        let now = bytes(from);
        if now == before {
            copy(from, to);
            return;
        }
        before = now;
    }
    panic!("expected an idle store to stop writing within 90 s");
}

/// Lists the files of a store, relative to its directory.
fn files(store: &Path) -> Vec<PathBuf> {
    let mut files = vec![PathBuf::from("mark"), PathBuf::from("lock")];
    for directory in ["log", "wal", "value-log"] {
        for file in fs::read_dir(store.join(directory)).expect("a directory") {
            let file = file.expect("a file");
            if file.path().is_file() {
                files.push(Path::new(directory).join(file.file_name()));
            }
        }
    }
    files
}

/// Copies a store. The sync watermark (`mark`) is copied first, so that it does not cover later writes.
pub fn copy(from: &Path, to: &Path) {
    for directory in ["log", "wal", "value-log"] {
        fs::create_dir_all(to.join(directory)).expect("a directory");
    }
    for file in files(from) {
        if from.join(&file).exists() {
            fs::copy(from.join(&file), to.join(&file)).expect("a copy");
        }
    }
}
