//! Tests of the erasure of a user, over power cuts, flushes, sessions and backups.

use std::{
    fs,
    io::{self, Write},
    path::Path,
    sync::atomic::Ordering,
    time::Duration,
};

use super::{power_cut::Cut, wait::until};
use crate::{
    embedded::{
        self,
        backup::restore::restore,
        options::{Options, Tuning},
        outbox::format::{Batch, Pieces, event_key},
        tables::{
            DiskOptions,
            contract::{Table, Tables},
            memory::{self, Memory},
            open,
            schema::{Connections, Ids, StoredId, wal_key},
        },
        wal::contract::Wal,
        writer::erase::{ReplayedErasure, repeat_erasures},
    },
    message::{DispatchId, Payload, Seq, UserId},
    store::{
        Append, AppendResult, Durability, Erasure, EventKind, Idempotency, Limits, OutboxEvent, OutboxOptions,
        ReadLimit, Rejected, RejectionReason, SessionReport, Store, StoreError,
    },
};

const NAME: &str = "erasable-alice";

/// Text of the messages to that user.
const SECRET: &str = "secret of erasable";

fn alice() -> UserId {
    UserId::new(NAME).unwrap()
}

fn bob() -> UserId {
    UserId::new("bob").unwrap()
}

fn options(flush_delay: Duration, durability: Durability) -> Options {
    let outbox = OutboxOptions { events: 1000, bytes: 1 << 20, kinds: vec![EventKind::Delivered] };
    let tuning = Tuning { flush_delay, ..Tuning::default() };
    Options { tuning, durability, outbox: Some(outbox), ..Options::default() }
}

async fn append(store: &dyn Store, user: UserId) -> Result<Seq, StoreError> {
    let data = format!("\"{SECRET} {}\"", "x".repeat(2000));
    let payload = Payload::encode(0, Some(&data), None).unwrap();
    let appended = store.append(Append::new(payload, vec![user])).await?;
    Ok(appended.seqs[0].unwrap())
}

/// Dispatches with an id, and with alice as a rejected recipient.
async fn append_rejected(store: &dyn Store) -> AppendResult {
    let rejected = vec![Rejected::new(NAME, RejectionReason::Quota)];
    let id = DispatchId::new("order").unwrap();
    let payload = Payload::encode(0, None, None).unwrap();
    let idempotency = Some(Idempotency { id, online: vec![true], rejected });
    store.append(Append { idempotency, ..Append::new(payload, vec![bob()]) }).await.unwrap()
}

fn acknowledge(store: &dyn Store, user: &UserId, through: Seq) {
    store.report(user, SessionReport { acknowledged: Some((1, through)), ..SessionReport::default() });
}

fn sequences(store: &dyn Store, user: &UserId) -> Vec<Seq> {
    let limit = ReadLimit { entries: usize::MAX, bytes: usize::MAX };
    store.read(user, 0, limit).unwrap().entries.iter().map(|entry| entry.seq).collect()
}

/// Counts the webhook events about a user.
fn events_of(store: &dyn Store, user: &UserId) -> usize {
    let events = store.outbox().unwrap().read(0, 1000, 1 << 20).unwrap();
    events.iter().filter(|queued| queued.event.user() == Some(user.as_str())).count()
}

/// Everything that a store may have about alice.
#[derive(Debug, PartialEq, Eq)]
struct Traces {
    entries: Vec<Seq>,
    is_listed: bool,
    events: usize,
    is_rejected: bool,
}

async fn traces(store: &dyn Store) -> Traces {
    let listed = store.users(None, 10).unwrap();
    let retried = append_rejected(store).await;
    assert!(retried.duplicate);
    Traces {
        entries: sequences(store, &alice()),
        is_listed: listed.iter().any(|(user, _)| *user == alice()),
        events: events_of(store, &alice()),
        is_rejected: retried.summary.unwrap().rejected.iter().any(|rejected| &*rejected.user == NAME),
    }
}

/// Fills a store: alice has entries in the value log and in the WAL, events in the outbox, and is named in a result.
async fn fill(durability: Durability) -> Memory {
    let tables = Memory::default();
    for flush_delay in [Duration::ZERO, Duration::from_secs(3600)] {
        let store = memory::open(&tables, options(flush_delay, durability)).unwrap();
        append_rejected(&*store).await;
        for _ in 0..15 {
            append(&*store, alice()).await.unwrap();
            append(&*store, bob()).await.unwrap();
        }
        let acknowledged = if flush_delay.is_zero() { 2 } else { 4 };
        [alice(), bob()].iter().for_each(|user| acknowledge(&*store, user, acknowledged));
        let has_events = || events_of(&*store, &alice()) == acknowledged as usize / 2;
        until("the events are written", has_events).await;
        if flush_delay.is_zero() {
            until("the WAL is flushed", || tables.record_numbers().is_none()).await;
        }
        store.close().await.unwrap();
    }
    tables
}

/// Cuts the power after a number of writes of an erasure. Returns false if no write failed.
async fn cut_after(writes: i64, durability: Durability) -> bool {
    let tables = fill(durability).await;
    let before = tables.deep_clone();
    let whole = Traces { entries: (5..=30).collect(), is_listed: true, events: 2, is_rejected: true };
    let gone = Traces { entries: Vec::new(), is_listed: false, events: 0, is_rejected: false };
    let cut = Cut::new(&tables, writes);
    let (mut erased, mut is_used, mut later) = (false, false, None);
    if let Ok(store) = embedded::open(cut.clone(), options(Duration::from_secs(3600), durability)) {
        erased = store.erase(&alice()).await.is_ok_and(|erasure| erasure == Erasure::Erased);
        // Half of the time, the user receives a message and acknowledges it before the power fails.
        is_used = erased && writes % 2 == 0;
        if is_used {
            later = append(&*store, alice()).await.ok();
            acknowledge(&*store, &alice(), Seq::MAX);
        }
        _ = store.close().await;
    }
    let failed = cut.writes_left() < 0;
    let tables = cut.after_power_cut(before);
    let store = memory::open(&tables, options(Duration::from_secs(3600), durability)).unwrap();
    let found = traces(&*store).await;
    if is_used {
        assert!(later.is_none_or(|later| later > 30), "the sequence {later:?} is reused, cut after {writes}");
        // A message that was not answered may be stored too.
        assert!(found.entries.is_empty() || found.entries == [31], "{found:?}, cut after {writes}");
        assert!(!found.is_rejected && found.events <= 1, "{found:?}, cut after {writes}");
        let acknowledged = later.is_some() && found.is_listed && found.entries.is_empty();
        let is_reported = !acknowledged || found.events == 1 || durability != Durability::Always;
        assert!(is_reported, "the event of the later message, cut after {writes}");
    } else {
        assert!(found == gone || found == whole && !erased, "{found:?}, cut after {writes}");
    }
    assert_eq!((sequences(&*store, &bob()).len(), events_of(&*store, &bob())), (27, 2), "cut after {writes}");

    // A retry completes it, and nothing is left once the WAL is flushed.
    assert!(matches!(store.erase(&alice()).await.unwrap(), Erasure::Erased | Erasure::Unknown));
    assert_eq!(traces(&*store).await, gone, "cut after {writes}");
    until("no trace is left", || !tables.contains(NAME)).await;
    assert_eq!(store.erase(&alice()).await.unwrap(), Erasure::Unknown, "cut after {writes}");
    // A client with the old position receives a new message, also after a restart.
    let seq = append(&*store, alice()).await.unwrap();
    assert!(seq > later.unwrap_or(30), "sequence {seq}, cut after {writes}");
    store.close().await.unwrap();
    let store = memory::open(&tables, options(Duration::ZERO, durability)).unwrap();
    assert_eq!(sequences(&*store, &alice()), [seq], "cut after {writes}");
    assert_eq!((sequences(&*store, &bob()).len(), events_of(&*store, &bob())), (27, 2), "cut after {writes}");
    store.close().await.unwrap();
    failed
}

// covers: G1, G5
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn power_cut_during_an_erasure_leaves_the_user_whole_or_erased() {
    for durability in [Durability::Always, Durability::Never] {
        let mut cuts = 0;
        while cut_after(cuts, durability).await {
            cuts += 1;
        }
        assert!(cuts > 15, "more than 15 writes are cut, not {cuts}");
    }
}

// covers: G5
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn erasures_between_appends_and_flushes_reuse_no_sequence_and_affect_no_other_user() {
    let tables = Memory::default();
    let (mut last, mut of_bob) = (0, 0);
    for round in 0..12 {
        // The WAL is flushed during the erasures, except in every third round.
        let flush_delay = if round % 3 == 2 { Duration::from_secs(3600) } else { Duration::ZERO };
        let store = memory::open(&tables, options(flush_delay, Durability::Always)).unwrap();
        for _ in 0..6 {
            let mut own = Vec::new();
            for _ in 0..=round % 4 * 9 {
                own.push(append(&*store, alice()).await.unwrap());
                append(&*store, bob()).await.unwrap();
                of_bob += 1;
            }
            assert!(own[0] > last && own.is_sorted(), "{own:?} after {last}");
            assert_eq!(sequences(&*store, &alice()), own);
            last = *own.last().unwrap();
            let (erased, appended) = tokio::join!(store.erase(&alice()), append(&*store, alice()));
            assert_eq!(erased.unwrap(), Erasure::Erased);
            last = last.max(appended.unwrap());
            assert!(sequences(&*store, &alice()).iter().all(|seq| *seq == last), "only an entry after the erasure");
            _ = store.erase(&alice()).await.unwrap();
            assert_eq!(sequences(&*store, &alice()), [] as [Seq; 0]);
        }
        assert_eq!(sequences(&*store, &bob()).len(), of_bob);
        store.close().await.unwrap();
    }
    let store = memory::open(&tables, options(Duration::ZERO, Durability::Always)).unwrap();
    until("no trace is left", || !tables.contains(NAME)).await;
    assert_eq!(sequences(&*store, &bob()).len(), of_bob);
    store.close().await.unwrap();
}

// covers: G4
#[test]
fn repeated_erasure_keeps_events_and_results_of_later_messages() {
    let tables = Memory::default();
    let event = || OutboxEvent::Expired { user: NAME.to_owned(), from: 1, to: 1 };
    for first in [1, 2] {
        let batch = Batch::V1 { start: 1, events: vec![(1, Some(event()))] };
        tables.put(Table::Outbox, &event_key(first, 0), &batch.pieces()[0]).unwrap();
    }
    let id = |at_ms| StoredId {
        id: format!("order {at_ms}"),
        at_ms,
        recipients: 1,
        online: 0,
        offline: 0,
        stored: 0,
        rejected: vec![(NAME.to_owned(), 1)],
        more: false,
    };
    tables.put(Table::Ids, &wal_key(1), &Ids::V1 { namespace: 0, ids: vec![id(10), id(11)] }.encode()).unwrap();
    let erasure = ReplayedErasure { user: NAME.to_owned(), at_ms: 10, events: 1 };
    repeat_erasures(&tables, &[erasure]).unwrap();
    let read = |first| Pieces::default().push(&tables.get(Table::Outbox, &event_key(first, 0)).unwrap().unwrap());
    let batches = [1, 2].map(|first| read(first).unwrap().unwrap());
    let events = batches.map(|Batch::V1 { mut events, .. }| events.remove(0).1);
    assert_eq!(events, [None, Some(event())]);
    let Ids::V1 { ids, .. } = Ids::decode(&tables.get(Table::Ids, &wal_key(1)).unwrap().unwrap()).unwrap();
    assert_eq!([ids[0].rejected.len(), ids[1].rejected.len()], [0, 1]);
    // The row of a connection before the erasure is removed, and that of a later one stays.
    for (since_ms, stays) in [(10, false), (11, true)] {
        tables.put(Table::Connected, NAME.as_bytes(), &Connections::V1 { since_ms, count: 1 }.encode()).unwrap();
        repeat_erasures(&tables, &[ReplayedErasure { user: NAME.to_owned(), at_ms: 10, events: 1 }]).unwrap();
        assert_eq!(tables.get(Table::Connected, NAME.as_bytes()).unwrap().is_some(), stays, "since {since_ms}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn user_with_an_attached_session_is_not_erased() {
    let tables = Memory::default();
    let store = memory::open(&tables, options(Duration::ZERO, Durability::Always)).unwrap();
    append(&*store, alice()).await.unwrap();
    store.attach(&alice(), None).unwrap();
    assert_eq!(store.erase(&alice()).await.unwrap(), Erasure::Online);
    assert_eq!(sequences(&*store, &alice()), [1]);
    store.detach(&alice(), None);
    assert_eq!(store.erase(&alice()).await.unwrap(), Erasure::Erased);
    // The report of the detached session was queued before, and must not make the user known again.
    append(&*store, bob()).await.unwrap();
    assert!(!store.state(&alice()).unwrap().known);
    assert_eq!(store.erase(&UserId::new("unknown").unwrap()).await.unwrap(), Erasure::Unknown);
    store.close().await.unwrap();
}

/// Returns the files below `directory` that contain `text`.
fn files_with(directory: &Path, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for file in fs::read_dir(directory).unwrap() {
        let path = file.unwrap().path();
        if path.is_dir() {
            found.extend(files_with(&path, text));
            continue;
        }
        // A file may be removed meanwhile.
        let bytes = fs::read(&path).unwrap_or_default();
        if bytes.windows(text.len()).any(|part| part == text.as_bytes()) {
            found.push(path.display().to_string());
        }
    }
    found
}

/// Erases alice when the backup writes the first entries.
struct ErasingReceiver<'a> {
    store: &'a dyn Store,
    bytes: Vec<u8>,
}

impl Write for ErasingReceiver<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes.extend_from_slice(bytes);
        let is_entries = bytes.windows(NAME.len()).any(|part| part == NAME.as_bytes());
        if is_entries && self.store.state(&alice()).unwrap().known {
            let erased = tokio::runtime::Handle::current().block_on(self.store.erase(&alice()));
            assert_eq!(erased.unwrap(), Erasure::Erased);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn erased_bytes_leave_the_value_log_and_a_restored_backup_has_none() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("store");
    let limits = Limits { free_bytes: 0, ..Limits::default() };
    let tuning = Tuning { flush_delay: Duration::ZERO, ..Tuning::default() };
    let store = open(DiskOptions { limits, tuning, ..DiskOptions::new(&path) }).unwrap();
    for _ in 0..60 {
        append(&*store, alice()).await.unwrap();
        // Bob's messages have no secret.
        let payload = Payload::encode(0, Some("1"), None).unwrap();
        store.append(Append::new(payload, vec![bob()])).await.unwrap();
    }
    until("the entries are in the value log", || !files_with(&path.join("value-log"), NAME).is_empty()).await;
    let (file, restored) = (home.path().join("backup.mesa"), home.path().join("restored"));
    let bytes = {
        let store = store.clone();
        let backup = move || {
            let mut receiver = ErasingReceiver { store: &*store, bytes: Vec::new() };
            store.backup(&mut receiver).unwrap();
            receiver.bytes
        };
        tokio::task::spawn_blocking(backup).await.unwrap()
    };
    fs::write(&file, bytes).unwrap();
    let contents = restore(&file, &restored).unwrap();
    assert_eq!((contents.users, contents.entries), (1, 60), "only bob, because alice was erased meanwhile");
    for text in [NAME, SECRET] {
        let value_log = path.join("value-log");
        until("the erased bytes leave the value log", || files_with(&value_log, text).is_empty()).await;
    }
    assert_eq!(sequences(&*store, &bob()).len(), 60);

    // A later backup, and a store restored from it, have no trace in any file, and keep the floor.
    let mut later = Vec::new();
    store.backup(&mut later).unwrap();
    store.close().await.unwrap();
    fs::write(&file, later).unwrap();
    let clean = home.path().join("clean");
    restore(&file, &clean).unwrap();
    assert_eq!(files_with(&clean, NAME), [""; 0]);
    assert_eq!(files_with(&clean, SECRET), [""; 0]);
    let store = open(DiskOptions { limits, ..DiskOptions::new(&clean) }).unwrap();
    assert!(append(&*store, alice()).await.unwrap() > 60);
    store.close().await.unwrap();
}

impl Cut {
    fn writes_left(&self) -> i64 {
        self.writes_left.load(Ordering::SeqCst)
    }
}
