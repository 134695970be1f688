//! The stores that are damaged, and what is in them.

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

pub const USERS: u64 = 7;

/// A store that nobody has open, and the truth about it.
pub struct Sample {
    pub name: &'static str,
    /// The store as it was in the middle, and at the end.
    pub earlier: PathBuf,
    pub store: PathBuf,
    /// Bytes of the log of its tables up to the last that is not zero.
    pub written: u64,
    /// Files of its journal and its inboxes.
    pub large: Vec<String>,
    /// For each user everything that was ever appended, by its sequence.
    pub appended: BTreeMap<String, BTreeMap<u64, Value>>,
    /// For each user what is pending, as an undamaged server shows it.
    pub pending: BTreeMap<String, Vec<(u64, Value)>>,
    _home: TempDir,
}

const AT_ONCE: Tuning = Tuning {
    flush_delay: Duration::ZERO,
    wal_bytes_max: 64 << 20,
    idle_seconds: 1,
    expiry_interval: Duration::from_secs(9),
};
const NEVER: Tuning =
    Tuning { flush_delay: Duration::from_secs(3600), wal_bytes_max: usize::MAX, idle_seconds: 3600, ..AT_ONCE };

impl Sample {
    /// One whose entries are in the journal, one that was not closed and has them in inboxes, and one that is several
    /// segments long.
    pub fn all() -> Vec<Self> {
        vec![
            Self::new("journal", &[(NEVER, 60, 200), (NEVER, 60, 200), (NEVER, 60, 200)], true),
            Self::new("inbox", &[(AT_ONCE, 90, 300), (NEVER, 40, 300), (AT_ONCE, 90, 300)], false),
            Self::new("long", &[(AT_ONCE, 20, 300), (AT_ONCE, 440, 40_000)], true),
        ]
    }

    /// Opened once for each of `times`: how it settles, how many messages are appended, and of how many bytes.
    fn new(name: &'static str, times: &[(Tuning, u64, usize)], close: bool) -> Self {
        let home = tempfile::Builder::new().prefix("mesa-corrupt-").tempdir().expect("a temporary directory");
        let [live, store, earlier] = ["live", "store", "earlier"].map(|name| home.path().join(name));
        let mut appended = BTreeMap::new();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let mut n = 0;
            for (at, (tuning, count, bytes)) in times.iter().enumerate() {
                let options = DiskOptions { tuning: *tuning, ..DiskOptions::new(&live) };
                let opened = mesa::embedded::tables::open(options).expect("a store");
                let half = count / 2;
                fill(&opened, &mut n, half, *bytes, &mut appended).await;
                let last = at + 1 == times.len();
                if last {
                    copy(&live, &earlier);
                }
                fill(&opened, &mut n, count - half, *bytes, &mut appended).await;
                if last && !close {
                    // Receipts are synced with a message behind them, or after a while: all that is there now is promised.
                    fill(&opened, &mut n, 10, *bytes, &mut appended).await;
                    copy_at_rest(&live, &store).await;
                }
                opened.close().await.expect("it closes");
            }
        });
        if close {
            copy(&live, &store);
        }
        let db = fs::read(store.join("log/db")).expect("a log");
        let written = db.iter().rposition(|byte| *byte != 0).map_or(0, |last| last as u64 + 1);
        let large = ["journal", "inbox"].into_iter().flat_map(|directory| {
            let files = fs::read_dir(store.join(directory)).expect("a directory");
            files.map(move |file| format!("{directory}/{}", file.expect("a file").file_name().to_string_lossy()))
        });
        let mut large: Vec<String> = large.collect();
        large.sort();
        let mut sample = Self { name, earlier, store, written, large, appended, pending: BTreeMap::new(), _home: home };
        sample.pending = crate::verify::pending(&sample).expect("an undamaged store is served");
        for (user, entries) in &sample.pending {
            for (seq, value) in entries {
                assert_eq!(sample.appended[user].get(seq), Some(value), "{name}: entry {seq} of {user}");
            }
        }
        sample
    }

    /// Forges one entry of what is expected, so that whatever is served is wrong.
    pub fn forge(&mut self) {
        let forged = self.pending.values_mut().flatten().next().expect("an entry");
        forged.1 = json!("forged");
    }
}

pub fn user(n: u64) -> String {
    format!("user {n}")
}

async fn fill(
    store: &Arc<dyn Store>,
    n: &mut u64,
    count: u64,
    bytes: usize,
    appended: &mut BTreeMap<String, BTreeMap<u64, Value>>,
) {
    for _ in 0..count.div_ceil(10) {
        let mut appends = Vec::new();
        let mut said = Vec::new();
        for _ in 0..10 {
            *n += 1;
            let to: Vec<String> =
                (0..=if bytes > 10_000 { 0 } else { *n % 3 }).map(|other| user((*n * 5 + other * 2) % USERS)).collect();
            let data = json!({ "n": *n, "to": to, "pad": "x".repeat(bytes) });
            let payload = Payload::encode(0, Some(&data.to_string()), Some("TEST")).expect("a payload");
            let recipients = to.iter().map(|id| UserId::new(id).expect("an id")).collect::<Vec<_>>();
            let mut append = Append::new(payload, recipients);
            append.ttl = n.is_multiple_of(7).then_some(Duration::from_secs(7 * 24 * 3600));
            append.collapse = n.is_multiple_of(11).then(|| CollapseKey::new("weather").expect("a key"));
            append.idempotency = n.is_multiple_of(9).then(|| Idempotency {
                id: DispatchId::new(&format!("dispatch {n}")).expect("an id"),
                online: vec![false; to.len()],
                rejected: Vec::new(),
            });
            appends.push(append);
            said.push((to, data));
        }
        let answers = store.append_all(appends).await.expect("it is taken");
        for (answer, (to, data)) in answers.iter().zip(said) {
            for (seq, user) in answer.seqs.iter().zip(to) {
                let seq = *seq.as_ref().expect("it is taken");
                assert!(
                    appended.entry(user).or_default().insert(seq, data.clone()).is_none(),
                    "a sequence given out twice"
                );
            }
        }
        // Some have devices, of which one stays behind; some receive without one, also out of order.
        for n in 0..USERS {
            let id = UserId::new(&user(n)).expect("an id");
            let head = store.state(&id).expect("a state").head;
            let note = |device: Option<&str>, from, to| SessionReport {
                device: device.map(|name| DeviceId::new(name).expect("a device")),
                acknowledged: Some((from, to)),
                ..SessionReport::default()
            };
            match n {
                // Much was written and little of it is left, so that most of the log is what nobody needs any more.
                0.. if bytes > 10_000 => store.report(&id, note(None, 1, head * 3 / 4)),
                1 | 2 => {
                    for device in ["phone", "desk"] {
                        let name = DeviceId::new(device).expect("a device");
                        store.attach(&id, Some(&name)).expect("it comes");
                        let far = if device == "phone" { head / 2 } else { head * 2 / 3 };
                        store.report(&id, note(Some(device), 1, far));
                        store.detach(&id, Some(&name));
                    }
                }
                3 | 4 => store.report(&id, note(None, 1, head / 3)),
                5 => store.report(&id, note(None, head / 2, head / 2 + 2)),
                _ => {}
            }
        }
    }
}

/// Copies a store that a process has open, when nothing is written to it any more: when it is the same a second and a half
/// later, within which everything that goes on in the background has had its turn.
async fn copy_at_rest(from: &Path, to: &Path) {
    let bytes = |path: &Path| {
        let files = files(path).into_iter();
        files.map(|file| (file.clone(), fs::read(path.join(file)).expect("it is read"))).collect::<Vec<_>>()
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
    panic!("a store that nobody uses goes on writing");
}

/// The files of a store, named from its directory on.
fn files(store: &Path) -> Vec<PathBuf> {
    let mut all = vec![PathBuf::from("mark"), PathBuf::from("lock")];
    for directory in ["log", "journal", "inbox"] {
        for file in fs::read_dir(store.join(directory)).expect("files") {
            let file = file.expect("a file");
            if file.path().is_file() {
                all.push(Path::new(directory).join(file.file_name()));
            }
        }
    }
    all
}

/// Copies a store. What tells how far it went goes first: it must not tell of what is written meanwhile.
pub fn copy(from: &Path, to: &Path) {
    for directory in ["log", "journal", "inbox"] {
        fs::create_dir_all(to.join(directory)).expect("a directory");
    }
    for file in files(from) {
        if from.join(&file).exists() {
            fs::copy(from.join(&file), to.join(&file)).expect("a copy");
        }
    }
}
