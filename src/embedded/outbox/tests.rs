//! Tests the outbox over tables in memory: durability over power cuts, and counts of dropped events.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use super::*;
use crate::{
    embedded::{
        self,
        options::Options,
        tables::{
            contract::{EngineError, TableSpace},
            memory::{self, Memory},
        },
        tests::{intercept::Intercept, power_cut::Cut},
        wal::contract::Wal,
    },
    store::{SessionReport, Store},
};

pub(in crate::embedded) fn options(events: u64, bytes: u64) -> Options {
    let kinds = EventKind::CONFIGURABLE.to_vec();
    Options { outbox: Some(OutboxOptions { events, bytes, kinds }), ..Options::default() }
}

pub(in crate::embedded) fn client_message(n: usize, bytes: usize) -> OutboxEvent {
    let data = Some("x".repeat(bytes));
    OutboxEvent::Message { connection: String::new(), user: None, op: n as u64, data, kind: None }
}

fn undelivered(seq: Seq) -> OutboxEvent {
    OutboxEvent::Undelivered { user: "bob".into(), seq, devices: vec![None], payload: "{}".into() }
}

pub(in crate::embedded) fn bob() -> UserId {
    UserId::new("bob").unwrap()
}

pub(in crate::embedded) fn all(outbox: &Arc<dyn crate::store::Outbox>) -> Vec<QueuedEvent> {
    outbox.read(0, usize::MAX, u64::MAX).unwrap()
}

/// Waits until a condition holds. Returns false if the store fails before.
pub(in crate::embedded) async fn wait_until(
    store: &dyn Store,
    outbox: &Arc<dyn crate::store::Outbox>,
    condition: impl Fn(&Arc<dyn crate::store::Outbox>) -> bool,
) -> bool {
    let mut changes = outbox.changes();
    let waited = tokio::time::timeout(Duration::from_secs(10), async {
        loop {
            if condition(outbox) {
                return true;
            }
            tokio::select! {
                changed = changes.changed() => changed.unwrap(),
                _ = store.failure() => return condition(outbox),
            }
        }
    });
    waited.await.expect("the condition holds within 10 s")
}

/// Puts, removes and puts events until the power fails after `writes` writes. Returns true if no write failed.
async fn cut_after(writes: i64) -> bool {
    let tables = Memory::default();
    let (before, cut) = (tables.deep_clone(), Cut::new(&tables, writes));
    let (mut readable, mut removed, mut whole) = (0, 0, false);
    if let Ok(store) = embedded::open(cut.clone(), options(1000, 10 << 20)) {
        let outbox = store.outbox().unwrap();
        let step = async |last: u64| {
            wait_until(&*store, &outbox, |outbox| all(outbox).iter().any(|one| one.number >= last)).await
        };
        (1..=3).for_each(|n| outbox.put(client_message(n, 10)));
        if step(3).await {
            // Events of several pieces, enough for several batches.
            outbox.put(client_message(4, 60_000));
            (5..=6).for_each(|n| outbox.put(client_message(n, 30_000)));
            if step(6).await {
                readable = 6;
                outbox.remove(4);
                removed = 4;
                if wait_until(&*store, &outbox, |outbox| outbox.status().removed == 4).await {
                    assert!(outbox.put_undelivered(&bob(), 7, undelivered(7)));
                    if step(7).await {
                        readable = 7;
                    }
                }
            } else {
                readable = 3;
            }
        }
        whole = store.close().await.is_ok();
    }

    let tables = cut.after_power_cut(before);
    let store = memory::open(&tables, options(1000, 10 << 20)).unwrap();
    let outbox = store.outbox().unwrap();
    let stored = all(&outbox);
    let numbers: Vec<u64> = stored.iter().map(|one| one.number).collect();
    let (first, last) = (numbers.first().copied().unwrap_or(1), numbers.last().copied().unwrap_or(0));
    assert_eq!(numbers, (first..=last).collect::<Vec<_>>(), "no gap, cut after {writes}");
    assert!(first <= removed + 1 && last >= readable, "{numbers:?} of {removed} and {readable}, cut after {writes}");
    if last == 7 && readable == 7 {
        assert_eq!(outbox.reported(&bob()).unwrap(), 7, "cut after {writes}");
    }
    assert_eq!(outbox.status().events, numbers.len() as u64);
    outbox.put(client_message(8, 10));
    assert!(wait_until(&*store, &outbox, |outbox| outbox.read(last, 9, 999).unwrap().len() == 1).await);
    let more = outbox.read(last, 9, 999).unwrap();
    assert_eq!(more[0].number, last + 1);
    assert!(stored.iter().all(|one| one.id != more[0].id), "ids are unique, cut after {writes}");
    whole
}

#[tokio::test]
async fn power_cut_at_any_write_keeps_readable_events() {
    let mut writes = 0;
    while !cut_after(writes).await {
        writes += 1;
        assert!(writes < 200, "the store writes fewer than 200 times");
    }
    assert!(writes > 20, "more than 20 writes are cut, not {writes}");
}

/// Records the calls to tables in memory.
#[derive(Default)]
struct Recorder {
    tables: Memory,
    done: Mutex<Vec<&'static str>>,
}

impl Intercept for Recorder {
    fn memory(&self) -> &Memory {
        &self.tables
    }

    fn on_append_record(&self, number: u64, record: &[u8]) -> Result<(), EngineError> {
        self.done.lock().push("record");
        self.tables.append_record(number, record)
    }

    fn on_sync(&self) -> Result<(), EngineError> {
        self.done.lock().push("sync");
        Ok(())
    }

    fn on_put(&self, table: Table, key: &[u8], value: &[u8]) -> Result<(), EngineError> {
        if table == Table::Outbox {
            self.done.lock().push("put");
        }
        self.tables.put(table, key, value)
    }

    fn on_flush(&self) -> Result<(), EngineError> {
        self.done.lock().push("flush");
        Ok(())
    }

    fn on_checkpoint(&self) -> Result<(), EngineError> {
        self.done.lock().push("checkpoint");
        Ok(())
    }
}

#[tokio::test]
async fn readable_event_was_synced_before() {
    let recorder = Arc::new(Recorder::default());
    let store = embedded::open(recorder.clone(), options(100, 1 << 20)).unwrap();
    let outbox = store.outbox().unwrap();
    for n in 1..=3 {
        recorder.done.lock().clear();
        outbox.put(client_message(n, 10));
        assert!(wait_until(&*store, &outbox, |outbox| all(outbox).len() == n).await);
        let done = recorder.done.lock();
        assert_eq!(done[..3], ["record", "sync", "put"]);
        assert!(!done.contains(&"checkpoint"), "events cost no sync of the tables: {done:?}");
    }
}

// covers: G4
#[tokio::test]
async fn events_over_bound_are_counted_by_kind_and_reported_when_an_eighth_is_free() {
    let tables = Memory::default();
    let store = memory::open(&tables, options(16, 10 << 20)).unwrap();
    let outbox = store.outbox().unwrap();
    (1..=20).for_each(|n| outbox.put(client_message(n, 10)));
    outbox.put(OutboxEvent::Connection { connection: "c".into() });
    assert!(wait_until(&*store, &outbox, |outbox| all(outbox).len() == 16).await);
    assert_eq!((outbox.status().lost, outbox.status().losing), (5, true));
    outbox.remove(1);
    // The events were written together, so they are only removed together.
    assert!(!outbox.put_undelivered(&bob(), 1, undelivered(1)), "the outbox is full, and nothing is lost");
    assert_eq!((outbox.status().lost, outbox.reported(&bob()).unwrap()), (5, 0));
    outbox.remove(16);
    assert!(wait_until(&*store, &outbox, |outbox| all(outbox).len() == 1).await);
    let queued = all(&outbox).pop().unwrap();
    let OutboxEvent::Overflow { lost, at_least, .. } = queued.event else { panic!("{queued:?}") };
    assert_eq!((queued.number, lost, at_least), (17, vec![(0, 1), (2, 4)], false));
    assert!(!outbox.status().losing);
    assert!(outbox.put_undelivered(&bob(), 1, undelivered(1)));
    assert!(wait_until(&*store, &outbox, |outbox| all(outbox).len() == 2).await);
}

// covers: G4
#[tokio::test]
async fn dropped_events_are_reported_once_by_the_next_start() {
    let tables = Memory::default();
    for (start, expected) in [(0, None), (1, Some(true)), (2, None)] {
        let store = memory::open(&tables, options(3, 10 << 20)).unwrap();
        let outbox = store.outbox().unwrap();
        if start == 0 {
            (1..=10).for_each(|n| outbox.put(client_message(n, 10)));
            assert!(wait_until(&*store, &outbox, |outbox| all(outbox).len() == 3).await);
        } else {
            outbox.remove(3);
            let empty =
                |outbox: &Arc<dyn crate::store::Outbox>| outbox.status().removed >= 3 && !outbox.status().losing;
            assert!(wait_until(&*store, &outbox, empty).await);
        }
        store.close().await.unwrap();
        let reported = all(&outbox).into_iter().find_map(|queued| match queued.event {
            OutboxEvent::Overflow { lost, at_least, .. } => Some((lost, at_least)),
            _ => None,
        });
        if start == 2 {
            assert_eq!(reported, Some((vec![(2, 7)], true)), "the same event, because no backend has accepted it");
            assert_eq!(all(&outbox).len(), 1);
        } else {
            assert_eq!(reported.as_ref().map(|(_, at_least)| *at_least), expected, "start {start}");
        }
    }
}

/// An engine on a disk without space for events, or for anything.
struct FullDisk(Memory, TableSpace);

impl Intercept for FullDisk {
    fn memory(&self) -> &Memory {
        &self.0
    }

    fn on_table_space(&self) -> TableSpace {
        self.1
    }

    fn on_disk_free(&self) -> Option<u64> {
        Some(0)
    }
}

// covers: G4
#[tokio::test]
async fn events_that_wait_for_disk_space_at_close_count_as_lost() {
    for (space, is_stored) in [(TableSpace::Enough, true), (TableSpace::None, false)] {
        let tables = Memory::default();
        let store = embedded::open(Arc::new(FullDisk(tables.clone(), space)), options(1000, 10 << 20)).unwrap();
        let outbox = store.outbox().unwrap();
        (1..=3).for_each(|n| outbox.put(client_message(n, 10)));
        outbox.put(OutboxEvent::Connection { connection: "c".into() });
        store.close().await.unwrap();
        assert_eq!((outbox.status().events, outbox.status().lost), (0, 4), "{space:?}");
        // The next start, on a disk with space.
        let store = memory::open(&tables, options(1000, 10 << 20)).unwrap();
        let outbox = store.outbox().unwrap();
        outbox.put(client_message(9, 10));
        assert!(wait_until(&*store, &outbox, |outbox| !all(outbox).is_empty()).await);
        let OutboxEvent::Overflow { lost, .. } = &all(&outbox)[0].event else {
            assert!(!is_stored, "expected an overflow event");
            continue;
        };
        assert!(is_stored && *lost == [(0, 1), (2, 3)], "{lost:?}");
    }
}

/// The monitor of undelivered messages removes the sequence of a user without pending reported messages.
#[tokio::test]
async fn listed_sequence_includes_a_report_that_is_not_written_yet() {
    let store = embedded::EmbeddedStore::open(Arc::new(Memory::default()), options(100, 1 << 20)).unwrap();
    let shared = store.shared.outbox.clone().unwrap();
    let outbox: Arc<dyn crate::store::Outbox> = shared.clone();
    assert!(outbox.put_undelivered(&bob(), 1, undelivered(1)));
    assert!(wait_until(&store, &outbox, |_| shared.state.lock().reported.is_empty()).await);
    // No event accompanies it, so the commit thread is not notified.
    shared.state.lock().reported.insert(bob(), Some(2));
    assert_eq!(outbox.all_reported(None, 9).unwrap(), [(bob(), 2)]);
    shared.state.lock().reported.insert(bob(), None);
    assert_eq!(outbox.all_reported(None, 9).unwrap(), []);
}

#[tokio::test]
async fn unwritten_outbox_has_bounded_memory() {
    let tables = Memory::default();
    let store = memory::open(&tables, options(1_000_000, 1 << 30)).unwrap();
    let outbox = store.outbox().unwrap();
    // Events arrive faster than the commit thread can write them.
    (0..2_000).for_each(|n| outbox.put(client_message(n, 100_000)));
    let lost = outbox.status().lost;
    assert!(lost > 0, "the outbox does not accept 200 MB at once");
    assert!(wait_until(&*store, &outbox, |outbox| !outbox.status().losing).await);
    store.close().await.unwrap();
    let counted: u64 = all(&outbox)
        .iter()
        .filter_map(|queued| match &queued.event {
            OutboxEvent::Overflow { lost, .. } => Some(lost.iter().map(|(_, count)| count).sum::<u64>()),
            _ => None,
        })
        .sum();
    let (queued, lost) = (all(&outbox).len() as u64, outbox.status().lost);
    let overflows = all(&outbox).iter().filter(|queued| queued.event.kind() == EventKind::Overflow).count() as u64;
    assert_eq!((counted, queued - overflows + lost), (lost, 2_000));
}

#[tokio::test]
async fn put_stores_enabled_kinds_only_and_reported_users_are_listed() {
    let tables = Memory::default();
    let kinds = vec![EventKind::Undelivered];
    let wanted = OutboxOptions { events: 100, bytes: 1 << 20, kinds };
    let store = memory::open(&tables, Options { outbox: Some(wanted), ..Options::default() }).unwrap();
    let outbox = store.outbox().unwrap();
    outbox.put(client_message(1, 10));
    let user = |n: usize| UserId::new(&format!("u{n}")).unwrap();
    (0..5).for_each(|n| assert!(outbox.put_undelivered(&user(n), 3, undelivered(3))));
    outbox.remove_reported(&user(2));
    assert_eq!((outbox.reported(&user(1)).unwrap(), outbox.reported(&user(2)).unwrap()), (3, 0));
    assert!(wait_until(&*store, &outbox, |outbox| all(outbox).len() == 5).await);
    let first = outbox.all_reported(None, 3).unwrap();
    assert_eq!(first, [(user(0), 3), (user(1), 3), (user(3), 3)]);
    assert_eq!(outbox.all_reported(Some(&user(3)), 3).unwrap(), [(user(4), 3)]);
    assert_eq!(outbox.all_reported(None, 0).unwrap(), []);
    assert!(memory::open(&tables, Options::default()).unwrap().outbox().is_none());
}

#[tokio::test]
async fn expired_entries_are_reported_once_over_many_restarts() {
    use crate::{
        embedded::options::Tuning,
        store::{Append, Limits},
    };
    let tables = Memory::default();
    let mut opening = options(1000, 10 << 20);
    // Nothing is flushed: the WAL has all entries, expired or not.
    opening.tuning = Tuning { flush_delay: Duration::from_secs(3600), ..Tuning::default() };
    // With a quota of one message, each append checks whether the previous one has expired.
    opening.limits = Limits { messages: 1, ..Limits::default() };
    const STARTS: u64 = 9;
    for start in 1..=STARTS {
        let store = memory::open(&tables, opening.clone()).unwrap();
        let payload = crate::message::Payload::encode(0, None, None).unwrap();
        let append = Append { ttl: Some(Duration::from_secs(1)), ..Append::new(payload, vec![bob()]) };
        assert_eq!(store.append(append).await.unwrap().seqs, [Ok(start)]);
        opening.ahead_ms.fetch_add(3000, std::sync::atomic::Ordering::Relaxed);
        store.close().await.unwrap();
    }
    let store = memory::open(&tables, opening).unwrap();
    let outbox = store.outbox().unwrap();
    let expired = |one: &QueuedEvent| match &one.event {
        OutboxEvent::Expired { from, to, .. } => Some((*from, *to)),
        _ => None,
    };
    let reported: Vec<_> = all(&outbox).iter().filter_map(expired).collect();
    assert_eq!(reported, (1..STARTS).map(|seq| (seq, seq)).collect::<Vec<_>>());
}

/// Two sessions of a user report, and the outbox delays the first report after it has marked the log.
///
/// The second session finds the mark. Its report must be in the commit of a later dispatch, because a client whose
/// acknowledgement was accepted may know of that dispatch.
#[test]
fn report_is_in_commit_of_later_dispatch_while_another_report_of_the_user_is_delayed() {
    let tables = Memory::default();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let store = embedded::EmbeddedStore::open(Arc::new(tables.clone()), options(1000, 10 << 20)).unwrap();
    let append = |user: &str| {
        let payload = crate::message::Payload::encode(0, Some("1"), None).unwrap();
        let recipients = vec![UserId::new(user).unwrap()];
        runtime.block_on(store.append(crate::store::Append::new(payload, recipients))).unwrap()
    };
    append("bob");
    let outbox = store.shared.outbox.clone().unwrap();
    let seen = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(1);
    let copied = std::thread::scope(|scope| {
        let held = outbox.state.lock();
        let first = scope
            .spawn(|| store.report(&bob(), SessionReport { acknowledged: Some((1, 1)), ..SessionReport::default() }));
        // The report may not wait for the outbox yet. Then the test checks nothing, and does not fail.
        std::thread::sleep(Duration::from_millis(100));
        let (done, reported) = std::sync::mpsc::channel();
        let (store, append, tables) = (&store, &append, &tables);
        let second = scope.spawn(move || {
            store.report(&bob(), SessionReport { seen: Some(seen), ..SessionReport::default() });
            _ = done.send(());
            append("carol");
            tables.deep_clone()
        });
        // The second report may wait for the first.
        _ = reported.recv_timeout(Duration::from_millis(100));
        std::thread::sleep(Duration::from_millis(100));
        drop(held);
        first.join().unwrap();
        second.join().unwrap()
    });
    let after_kill = embedded::open(Arc::new(copied), Options::default()).unwrap();
    assert_eq!(after_kill.state(&bob()).unwrap().seen, Some(seen));
}

/// Tables in memory that stop the next read of the outbox after its first value.
#[derive(Default)]
struct Stop {
    tables: Memory,
    is_armed: AtomicBool,
    is_stopped: AtomicBool,
}

impl Intercept for Stop {
    fn memory(&self) -> &Memory {
        &self.tables
    }

    fn on_read(&self, table: Table, _: &bytes::Bytes) {
        if table == Table::Outbox && self.is_armed.swap(false, Ordering::SeqCst) {
            self.is_stopped.store(true, Ordering::SeqCst);
            until("the test continues the read", || !self.is_stopped.load(Ordering::SeqCst));
        }
    }
}

fn until(what: &str, holds: impl Fn() -> bool) {
    for _ in 0..30_000 {
        if holds() {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("{what} within 30 s");
}

/// Reads the outbox, and erases a user after the first piece was read.
async fn erase_during(read: impl FnOnce(Arc<dyn Store>) + Send + 'static, has_earlier: bool) {
    let tables = Arc::new(Stop::default());
    let store = embedded::open(tables.clone(), options(1000, 10 << 20)).unwrap();
    let outbox = store.outbox().unwrap();
    let large = |user: &str| OutboxEvent::Undelivered {
        user: user.into(),
        seq: 1,
        devices: vec![],
        payload: "x".repeat(300_000),
    };
    if has_earlier {
        outbox.put(client_message(1, 10));
    }
    outbox.put(large("bob"));
    outbox.put(large("alice"));
    let count = 2 + usize::from(has_earlier);
    assert!(wait_until(&*store, &outbox, |outbox| all(outbox).len() == count).await);
    let after = u64::from(has_earlier);
    assert_eq!(outbox.read(after, 1, u64::MAX).unwrap()[0].event.user(), Some("bob"));
    tables.is_armed.store(true, Ordering::SeqCst);
    let reader = tokio::task::spawn_blocking({
        let store = store.clone();
        move || read(store)
    });
    let stopping = tables.clone();
    tokio::task::spawn_blocking(move || until("a read", || stopping.is_stopped.load(Ordering::SeqCst))).await.unwrap();
    _ = store.erase(&bob()).await.unwrap();
    // After the removal of an empty first batch.
    assert!(wait_until(&*store, &outbox, |outbox| has_earlier || outbox.status().removed == 1).await);
    tables.is_stopped.store(false, Ordering::SeqCst);
    reader.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn outbox_is_readable_while_events_of_a_user_are_erased() {
    for has_earlier in [false, true] {
        let after = u64::from(has_earlier);
        erase_during(
            move |store| {
                let read = store.outbox().unwrap().read(after, usize::MAX, u64::MAX).unwrap();
                assert_eq!(read.iter().map(|event| event.event.user()).collect::<Vec<_>>(), [Some("alice")]);
            },
            has_earlier,
        )
        .await;
    }
}
