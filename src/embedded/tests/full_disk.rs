//! Tests of a disk that is full at the nth write and has space later. No answered message is lost or duplicated, and
//! suspended work is completed.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;

use super::{intercept::Intercept, wait::until};
use crate::{
    embedded::{
        self,
        options::{Options, Tuning},
        tables::{
            contract::{EngineError, Table, TableSpace, Tables},
            memory::Memory,
        },
        wal::contract::Wal,
    },
    message::{CollapseKey, DispatchId, Payload, Seq, UserId},
    store::{
        Append, EventKind, Idempotency, Limits, OutboxEvent, OutboxOptions, ReadLimit, SessionReport, Store, StoreError,
    },
};

/// Bytes that may be put into the tables between two checks of their space.
///
/// sled writes up to four times as much, and 8 MiB are preallocated.
const STEP_BYTES_MAX: u64 = 1 << 20;

/// Engine in memory whose writes fail as on a full disk, after a number of writes and for a number of writes.
struct ScarceDisk {
    tables: Memory,
    /// Writes that succeed before the disk is full.
    writes_left: AtomicI64,
    /// Writes that fail before there is space again.
    failures: AtomicI64,
    /// Free bytes of the disk.
    free: AtomicU64,
    /// Bytes that the tables accept before their file grows.
    slack: AtomicU64,
    /// WAL writes fail too, although space was preallocated.
    wal_fails: bool,
    /// Bytes put into the tables since their space was checked.
    step: AtomicU64,
    /// Maximum of `step`.
    largest_step: AtomicU64,
}

impl ScarceDisk {
    fn new(writes_left: i64, failures: i64, wal_fails: bool) -> Arc<Self> {
        let (writes_left, failures) = (AtomicI64::new(writes_left), AtomicI64::new(failures));
        let (free, slack) = (AtomicU64::new(1 << 40), AtomicU64::default());
        let (step, largest_step) = (AtomicU64::default(), AtomicU64::default());
        Arc::new(Self { tables: Memory::default(), writes_left, failures, free, slack, wal_fails, step, largest_step })
    }

    /// Asserts that no step wrote more than is preallocated for one step.
    fn check_steps(&self) {
        let bytes = self.largest_step.load(Ordering::SeqCst);
        assert!(bytes <= STEP_BYTES_MAX, "{bytes} bytes were put into the tables without a check of their space");
    }

    fn is_full(&self) -> bool {
        self.writes_left.load(Ordering::SeqCst) <= 0 && self.failures.load(Ordering::SeqCst) > 0
    }

    fn write(&self) -> Result<(), EngineError> {
        if self.writes_left.fetch_sub(1, Ordering::SeqCst) > 0 || self.failures.fetch_sub(1, Ordering::SeqCst) <= 0 {
            return Ok(());
        }
        Err(std::io::Error::from_raw_os_error(rustix::io::Errno::NOSPC.raw_os_error()).into())
    }
}

impl Intercept for ScarceDisk {
    fn memory(&self) -> &Memory {
        &self.tables
    }

    fn on_append_record(&self, number: u64, record: &[u8]) -> Result<(), EngineError> {
        if self.wal_fails {
            self.write()?;
        }
        self.tables.append_record(number, record)
    }

    fn on_put(&self, table: Table, key: &[u8], value: &[u8]) -> Result<(), EngineError> {
        if table == Table::Log {
            self.write()?;
        } else {
            let bytes = (key.len() + value.len()) as u64;
            self.largest_step.fetch_max(self.step.fetch_add(bytes, Ordering::SeqCst) + bytes, Ordering::SeqCst);
        }
        self.tables.put(table, key, value)
    }

    fn on_replace(&self, table: Table, pairs: &[(Vec<u8>, Vec<u8>)]) -> Result<(), EngineError> {
        self.write()?;
        pairs.iter().try_for_each(|(key, value)| self.tables.put(table, key, value))
    }

    fn on_reserve(&self) -> Result<(), EngineError> {
        if self.wal_fails { Ok(()) } else { self.write() }
    }

    fn on_table_space(&self) -> TableSpace {
        self.step.store(0, Ordering::SeqCst);
        // A check counts as a write too, or the disk would stay full.
        let is_full = self.is_full();
        self.failures.fetch_sub(i64::from(is_full), Ordering::SeqCst);
        if is_full { TableSpace::Little } else { TableSpace::Enough }
    }

    fn on_table_slack(&self) -> u64 {
        self.slack.load(Ordering::Relaxed)
    }

    fn on_disk_free(&self) -> Option<u64> {
        Some(self.free.load(Ordering::Relaxed))
    }
}

fn user(n: u64) -> UserId {
    UserId::new(&format!("user-{n}")).unwrap()
}

fn payload(n: u64) -> Payload {
    Payload::encode(0, Some(&format!("[{n},\"{}\"]", "x".repeat(3_000))), None).unwrap()
}

fn read(store: &Arc<dyn Store>, user: &UserId) -> Vec<(Seq, Bytes)> {
    let all = ReadLimit { entries: usize::MAX, bytes: usize::MAX };
    let entries = store.read(user, 0, all).unwrap().entries;
    entries.iter().map(|entry| (entry.seq, entry.payload.as_bytes().clone())).collect()
}

/// Appends messages, and retries rejected appends. Returns the expected messages of each user, in order.
///
/// Each has a flag: the outcome of an attempt was unknown, so the log may have the message several times.
async fn append_all(store: &Arc<dyn Store>, rejections: &mut usize) -> Vec<Vec<(u64, bool)>> {
    let mut sent = vec![Vec::new(); 4];
    for n in 0..40 {
        let mut unknown = false;
        loop {
            let recipients = if n % 5 == 0 { (0..4).map(user).collect() } else { vec![user(n % 4)] };
            let collapse = (n % 7 == 3).then(|| CollapseKey::new("key").unwrap());
            match store.append(Append { collapse, ..Append::new(payload(n), recipients) }).await {
                Ok(_) => break,
                Err(StoreError::Full(_)) => {}
                Err(StoreError::OutcomeUnknown(_)) => unknown = true,
                Err(error) => panic!("{error}"),
            }
            *rejections += 1;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        for (at, sent) in sent.iter_mut().enumerate() {
            if n % 5 == 0 || n % 4 == at as u64 {
                sent.push((n, unknown));
            }
        }
        if n % 6 == 5 {
            let acknowledged = Some((1, store.state(&user(3)).unwrap().head));
            store.report(&user(3), SessionReport { acknowledged, ..SessionReport::default() });
        }
    }
    sent
}

async fn run_with_full_disk(writes_left: i64, failures: i64, wal_fails: bool) -> usize {
    let tables = ScarceDisk::new(writes_left, failures, wal_fails);
    let tuning = Tuning { flush_delay: Duration::from_millis(1), wal_bytes_max: 20_000, ..Tuning::default() };
    let options = || Options { tuning, ..Options::default() };
    let store = embedded::open(tables.clone(), options()).unwrap();
    let mut rejections = 0;
    let sent = append_all(&store, &mut rejections).await;
    until("flush of all records", || tables.record_numbers().is_none()).await;
    // The store checks its space at an interval, so it may count as full for a moment longer.
    until("end of the full state", || store.full_reason().is_none()).await;
    assert!(store.health().reports().is_empty(), "{:?}", store.health().reports());
    let found: Vec<_> = (0..4).map(|n| read(&store, &user(n))).collect();
    for (at, (log, sent)) in found.iter().zip(&sent).enumerate() {
        // User 3 has acknowledged some messages, and of those with a collapse key the last one stays.
        let keyed: Vec<_> = sent.iter().filter(|(n, _)| n % 7 == 3).collect();
        let last = keyed.last().map(|(n, _)| *n);
        let wanted: Vec<_> = sent.iter().filter(|(n, _)| n % 7 != 3 || Some(*n) == last).collect();
        let mut numbers: Vec<_> = log.iter().map(|(_, bytes)| number(bytes)).collect();
        numbers.dedup();
        let wanted: Vec<_> = wanted.iter().map(|(n, _)| *n).collect();
        if at < 3 {
            assert_eq!(numbers, wanted, "user {at}, {writes_left} writes, {failures} failures");
            let unknown = sent.iter().filter(|(_, unknown)| *unknown).count();
            assert!(log.len() <= wanted.len() + 4 * unknown, "user {at} has {} of {}", log.len(), wanted.len());
        } else {
            assert!(wanted.ends_with(&numbers), "user {at}: {numbers:?} of {wanted:?}");
        }
        assert!(log.windows(2).all(|pair| pair[0].0 < pair[1].0));
        let pending = store.state(&user(at as u64)).unwrap().pending;
        assert_eq!(pending, log.len() as u64, "user {at}");
    }
    store.close().await.unwrap();
    drop(store);
    let store = embedded::open(tables.clone(), options()).unwrap();
    let again: Vec<_> = (0..4).map(|n| read(&store, &user(n))).collect();
    assert_eq!(again, found);
    tables.check_steps();
    rejections
}

fn number(bytes: &Bytes) -> u64 {
    let text = String::from_utf8_lossy(bytes);
    let from = text.find('[').unwrap() + 1;
    text[from..from + text[from..].find(',').unwrap()].parse().unwrap()
}

/// Fills the disk at several writes, for one and for three failures. With `wal_fails` WAL writes fail too.
async fn fill_disk_at_several_writes(wal_fails: bool) {
    let mut rejections = 0;
    for writes_left in (0..90).step_by(13) {
        for failures in [1, 3] {
            rejections += run_with_full_disk(writes_left, failures, wal_fails).await;
        }
    }
    assert!(rejections > 0, "the disk was full at least once");
}

#[tokio::test]
async fn work_on_full_disk_is_done_when_there_is_space() {
    fill_disk_at_several_writes(false).await;
}

#[tokio::test]
async fn commit_on_full_disk_is_written_when_there_is_space() {
    fill_disk_at_several_writes(true).await;
}

/// Disk bytes are reserved until a message is flushed or acknowledged, also after a restart.
#[tokio::test]
async fn reservation_counts_until_messages_are_flushed_or_acknowledged() {
    let tables = ScarceDisk::new(i64::MAX, 0, false);
    let never = Tuning { flush_delay: Duration::from_secs(3600), ..Tuning::default() };
    let limits = Limits { free_bytes: 8 << 20, ..Limits::default() };
    let open = |tuning| embedded::open(tables.clone(), Options { limits, tuning, ..Options::default() }).unwrap();
    // 100 copies of 3 kB fit, 200 do not.
    tables.free.store((8 << 20) + 500_000, Ordering::Relaxed);
    let store = open(never);
    // A message for each user, because a message for all of them would be stored once.
    let append = |n: u64, users: u64| (0..users).map(|at| Append::new(payload(n), vec![user(at)])).collect::<Vec<_>>();
    store.append_all(append(1, 100)).await.unwrap();
    assert!(matches!(store.append_all(append(2, 100)).await, Err(StoreError::Full(_))));
    store.append_all(append(3, 10)).await.unwrap();
    assert!(store.full_reason().is_none(), "a small append fits");
    store.close().await.unwrap();
    drop(store);
    let store = open(never);
    assert!(matches!(store.append_all(append(4, 100)).await, Err(StoreError::Full(_))));
    // Acknowledged messages are no longer reserved.
    for n in 0..100 {
        store.report(&user(n), SessionReport { acknowledged: Some((1, 2)), ..SessionReport::default() });
    }
    store.append_all(append(5, 100)).await.unwrap();
    assert!(matches!(store.append_all(append(6, 100)).await, Err(StoreError::Full(_))));
    store.close().await.unwrap();
    drop(store);
    // Flushed messages are on the disk.
    let store = open(Tuning { flush_delay: Duration::ZERO, ..Tuning::default() });
    until("flush of all records", || tables.record_numbers().is_none()).await;
    store.append_all(append(7, 100)).await.unwrap();
}

/// Opens a store with an outbox, on a disk of which 8 MiB must stay free. The tables' file also grows by 8 MiB.
fn store_with_outbox(tables: &Arc<ScarceDisk>) -> Arc<dyn Store> {
    let limits = Limits { free_bytes: 8 << 20, ..Limits::default() };
    let outbox = Some(OutboxOptions { events: 1000, bytes: 100 << 20, kinds: EventKind::CONFIGURABLE.to_vec() });
    embedded::open(tables.clone(), Options { limits, outbox, ..Options::default() }).unwrap()
}

/// The outbox must not use the bytes that must stay free. Undelivered messages can be reported later, other events wait
/// in memory, and all of them are written when there is space.
#[tokio::test]
async fn outbox_waits_for_space_beyond_the_free_reserve() {
    let tables = ScarceDisk::new(i64::MAX, 0, false);
    tables.free.store((16 << 20) + 20_000, Ordering::Relaxed);
    let store = store_with_outbox(&tables);
    let outbox = store.outbox().unwrap();
    let payload = "x".repeat(50_000);
    let put = |seq| {
        let (user, devices, payload) = (user(1).as_str().to_owned(), vec![None], payload.clone());
        let event = OutboxEvent::Undelivered { user, seq, devices, payload };
        outbox.put_undelivered(&self::user(1), seq, event)
    };
    let delivered = || OutboxEvent::Delivered { user: "user-2".into(), device: None, from: 1, to: 1 };
    until("check of the disk", || !put(1)).await;
    let before = outbox.status();
    assert_eq!((before.events, outbox.reported(&user(1)).unwrap()), (0, 0), "no event was written");
    // A small event fits; a large client message does not.
    outbox.put(delivered());
    until("small event", || outbox.status().events == 1).await;
    let connection = String::new();
    outbox.put(OutboxEvent::Message { connection, user: None, op: 0, data: Some(payload.clone()), kind: None });
    outbox.put(delivered());
    // The commit thread has checked the events when it commits the second append.
    store.append(Append::new(self::payload(1), vec![user(3)])).await.unwrap();
    store.append(Append::new(self::payload(2), vec![user(3)])).await.unwrap();
    assert_eq!(outbox.status().events, 1);
    // On a disk with space, all waiting events are written.
    tables.free.store(1 << 40, Ordering::Relaxed);
    until("waiting events", || outbox.status().events == 3).await;
    until("undelivered message", || put(1)).await;
    until("all events", || outbox.status().events >= 4).await;
    assert_eq!((outbox.status().lost, outbox.reported(&user(1)).unwrap()), (0, 1));
    store.close().await.unwrap();
}

/// A disk may permanently have little more free than must stay free. Events that fit into the tables' file as it is are
/// written even then.
#[tokio::test]
async fn undelivered_events_are_written_while_the_file_need_not_grow() {
    const PAYLOAD_BYTES: usize = 50_000;
    let tables = ScarceDisk::new(i64::MAX, 0, false);
    tables.free.store((8 << 20) + (4 << 20), Ordering::Relaxed);
    let store = store_with_outbox(&tables);
    let outbox = store.outbox().unwrap();
    let put = |seq| {
        let (user, devices, payload) = (user(1).as_str().to_owned(), vec![None], "x".repeat(PAYLOAD_BYTES));
        outbox.put_undelivered(&self::user(1), seq, OutboxEvent::Undelivered { user, seq, devices, payload })
    };
    until("check of the disk", || !put(1)).await;
    tables.slack.store(4 << 20, Ordering::Relaxed);
    until("first message", || put(1)).await;
    until("event of the first message", || outbox.status().events == 1).await;
    // Events are accepted until the file would have to grow.
    let mut seq = 2;
    until("full tables", || {
        seq += u64::from(put(seq));
        tables.slack.store((4_u64 << 20).saturating_sub(4 * seq * PAYLOAD_BYTES as u64), Ordering::Relaxed);
        tables.slack.load(Ordering::Relaxed) < 1 << 20 && !put(seq)
    })
    .await;
    tables.free.store(8 << 20, Ordering::Relaxed);
    tables.slack.store(8 << 20, Ordering::Relaxed);
    until("rejection of events that need reserved space", || !put(seq)).await;
    store.close().await.unwrap();
}

/// Removals free space, so they continue on a disk without space for anything else.
#[tokio::test]
async fn accepted_events_are_removed_while_tables_have_little_space() {
    let tables = ScarceDisk::new(i64::MAX, 0, false);
    let store = store_with_outbox(&tables);
    let outbox = store.outbox().unwrap();
    let event = |n: u64| OutboxEvent::Message {
        connection: String::new(),
        user: None,
        op: n,
        data: Some("x".repeat(50_000)),
        kind: None,
    };
    for n in 1..=40 {
        outbox.put(event(n));
    }
    until("40 events", || outbox.status().events == 40).await;
    tables.failures.store(i64::MAX, Ordering::SeqCst);
    tables.writes_left.store(0, Ordering::SeqCst);
    outbox.put(event(41));
    outbox.remove(40);
    until("removal of 40 events", || outbox.status().removed == 40).await;
    assert_eq!(outbox.status().events, 0);
    tables.failures.store(0, Ordering::SeqCst);
    until("last event", || outbox.status().events == 1).await;
    store.close().await.unwrap();
}

#[tokio::test]
async fn events_waiting_for_space_at_close_are_counted_as_lost() {
    let tables = ScarceDisk::new(i64::MAX, 0, false);
    tables.free.store(8 << 20, Ordering::Relaxed);
    let store = store_with_outbox(&tables);
    let outbox = store.outbox().unwrap();
    for n in 1..=3 {
        outbox.put(OutboxEvent::Delivered { user: "user-1".into(), device: None, from: n, to: n });
    }
    store.close().await.unwrap();
    drop(store);
    tables.free.store(1 << 40, Ordering::Relaxed);
    let store = store_with_outbox(&tables);
    let outbox = store.outbox().unwrap();
    until("overflow event", || outbox.status().events == 1).await;
    let event = outbox.read(0, 1, 1).unwrap().remove(0).event;
    let OutboxEvent::Overflow { lost, .. } = event else { panic!("{event:?}") };
    assert_eq!(lost, [(EventKind::Delivered as u8, 3)]);
    store.close().await.unwrap();
}

/// Another process may use free space at any time, so no step writes more than was preallocated at the last check.
#[tokio::test]
async fn waiting_events_are_written_in_steps_with_a_space_check_each() {
    let tables = ScarceDisk::new(i64::MAX, 0, false);
    let store = store_with_outbox(&tables);
    let outbox = store.outbox().unwrap();
    tables.failures.store(i64::MAX, Ordering::SeqCst);
    tables.writes_left.store(0, Ordering::SeqCst);
    // The rejection shows that the commit thread has checked the disk.
    assert!(matches!(store.append(Append::new(payload(1), vec![user(1)])).await, Err(StoreError::Full(_))));
    // As many events as may wait in memory.
    let data = Some("x".repeat(50_000));
    let event =
        || OutboxEvent::Message { connection: String::new(), user: None, op: 0, data: data.clone(), kind: None };
    let mut events = 0;
    while outbox.status().lost == 0 {
        outbox.put(event());
        events += 1;
    }
    assert!(events > 150, "{events}");
    tables.failures.store(0, Ordering::SeqCst);
    until("events with the overflow event", || outbox.status().events == events).await;
    outbox.remove(events);
    until("removal of all events", || outbox.status().events == 0).await;
    store.close().await.unwrap();
    tables.check_steps();
}

/// As above, for the ids of all records of one flush.
#[tokio::test]
async fn ids_are_written_in_steps_with_a_space_check_each() {
    const IDS: usize = 30_000;
    let tables = ScarceDisk::new(i64::MAX, 0, false);
    let open = |flush_delay| {
        let tuning = Tuning { flush_delay, ..Tuning::default() };
        embedded::open(tables.clone(), Options { tuning, ..Options::default() }).unwrap()
    };
    let store = open(Duration::from_secs(3600));
    let append = |n: usize| {
        let id = DispatchId::new(&format!("{n:064}")).unwrap();
        let idempotency = Some(Idempotency { id, online: vec![false], rejected: Vec::new() });
        Append { idempotency, ..Append::new(Payload::encode(0, None, None).unwrap(), vec![user(n as u64 % 7)]) }
    };
    for from in (0..IDS).step_by(1000) {
        store.append_all((from..from + 1000).map(append).collect()).await.unwrap();
    }
    store.close().await.unwrap();
    drop(store);
    let store = open(Duration::ZERO);
    until("flush of all records", || tables.record_numbers().is_none()).await;
    store.close().await.unwrap();
    tables.check_steps();
    let mut ids = 0;
    tables
        .scan(Table::Ids, &[], &mut |_, value| {
            ids += value.len();
            true
        })
        .unwrap();
    assert!(ids > IDS * 64, "{ids}");
}
