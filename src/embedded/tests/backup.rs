//! Tests of backups whose logs change while they are read.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::runtime::Runtime;

use crate::{
    embedded::{
        backup::{
            format::{Block, decode_block},
            restore::restore,
        },
        options::{Options, Tuning},
        tables::{
            DiskOptions,
            memory::{self, Memory},
            open,
        },
        wal::contract::Wal,
    },
    message::{CollapseKey, Payload, Seq, UserId},
    store::{Append, Limits, Overflow, ReadLimit, SessionReport, Store},
};

const USERS: usize = 3;

/// Pending entries of one user, above which the oldest are evicted.
const QUOTA: u64 = 400;

/// Number of collapse keys. Plain messages lie between their entries, so each replaced entry is a gap of its own.
const KEYS: u64 = 48;

/// Milliseconds by which the clock advances at a time. An expiry lies halfway between two such times.
const CLOCK_STEP_MS: u64 = 1_000_000;

/// A live store, and what its readers saw when the backup wrote each user's log.
struct Live {
    store: Arc<dyn Store>,
    tables: Memory,
    ahead_ms: Arc<AtomicU64>,
    runtime: Runtime,
    /// Number of changes between two blocks. With many, the list of gaps is full before the last part of a log is read.
    changes: u64,
    seed: u64,
    /// Collapse key of each keyed entry.
    keys: BTreeMap<(usize, Seq), u64>,
    /// Expiry of each entry that expires, in milliseconds that the clock is ahead.
    expiry: BTreeMap<(usize, Seq), u64>,
    /// Milliseconds that the clock was ahead at the last block.
    last_ms: u64,
    /// Visible sequences, and the head of the saved log, when the log was saved.
    saved: BTreeMap<usize, (Vec<Seq>, Seq)>,
}

impl Live {
    fn random(&mut self, below: u64) -> u64 {
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.seed >> 33) % below
    }

    fn append(&mut self, at: usize) {
        let key = (self.random(5) < 3).then(|| self.random(KEYS));
        let collapse = key.map(|key| CollapseKey::new(&format!("key {key}")).unwrap());
        let expires = self.random(8) == 0;
        let ttl = expires.then(|| Duration::from_millis(CLOCK_STEP_MS / 2 + CLOCK_STEP_MS * self.random(3)));
        let append = Append { ttl, collapse, ..Append::new(payload(), vec![user(at)]) };
        let appended = self.runtime.block_on(self.store.append(append)).unwrap();
        let seq = appended.seqs[0].unwrap();
        key.map(|key| self.keys.insert((at, seq), key));
        let now_ms = self.ahead_ms.load(Ordering::SeqCst);
        ttl.map(|ttl| self.expiry.insert((at, seq), now_ms + ttl.as_millis() as u64));
    }

    fn flush(&self) {
        let flushed = async {
            while self.tables.record_numbers().is_some() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        self.runtime.block_on(async { tokio::time::timeout(Duration::from_secs(30), flushed).await }).unwrap();
    }

    /// Changes the logs of all users, as the callers of a live store do.
    fn change(&mut self) {
        for _ in 0..self.changes {
            let at = self.random(USERS as u64) as usize;
            match self.random(60) {
                0 => {
                    let to = sequences(&*self.store, at).get(20).copied().unwrap_or(0);
                    let acknowledged = Some((1, to));
                    self.store.report(&user(at), SessionReport { acknowledged, ..SessionReport::default() });
                }
                1 => self.flush(),
                2 if self.random(6) == 0 => _ = self.runtime.block_on(self.store.clear(&user(at))).unwrap(),
                3 if self.random(3) == 0 => _ = self.ahead_ms.fetch_add(CLOCK_STEP_MS, Ordering::SeqCst),
                _ => self.append(at),
            }
        }
    }

    fn is_expired(&self, at: usize, seq: Seq) -> bool {
        self.expiry.get(&(at, seq)).is_some_and(|expiry| *expiry < self.last_ms)
    }
}

/// Receives the backup, and changes the logs between two blocks.
struct Receiver<'a> {
    live: &'a mut Live,
    bytes: Vec<u8>,
}

impl Write for Receiver<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Ok(Block::Log { user, log }) = decode_block(bytes) {
            let at = (0..USERS).find(|at| self::user(*at).as_str() == user).unwrap();
            self.live.saved.insert(at, (sequences(&*self.live.store, at), log.head));
        }
        self.bytes.extend_from_slice(bytes);
        self.live.last_ms = self.live.ahead_ms.load(Ordering::SeqCst);
        self.live.change();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn user(at: usize) -> UserId {
    UserId::new(&format!("user-{at}")).unwrap()
}

fn payload() -> Payload {
    Payload::encode(0, Some(&format!("\"{}\"", "x".repeat(700))), None).unwrap()
}

/// Returns the sequences that a reader of the log sees.
fn sequences(store: &dyn Store, at: usize) -> Vec<Seq> {
    let limit = ReadLimit { entries: usize::MAX, bytes: usize::MAX };
    store.read(&user(at), 0, limit).unwrap().entries.iter().map(|entry| entry.seq).collect()
}

fn options(ahead_ms: &Arc<AtomicU64>) -> Options {
    Options {
        tuning: Tuning { flush_delay: Duration::ZERO, expiry_interval: Duration::from_millis(5), ..Tuning::default() },
        limits: Limits { messages: QUOTA, overflow: Overflow::DropOldest, ..Limits::default() },
        ahead_ms: ahead_ms.clone(),
        ..Options::default()
    }
}

/// Backs up a store that changes meanwhile, restores it, and compares.
fn back_up_and_restore(seed: u64) {
    let (tables, ahead_ms) = (Memory::default(), Arc::default());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let store = memory::open(&tables, options(&ahead_ms)).unwrap();
    let changes = if seed.is_multiple_of(2) { 15 } else { 120 };
    let (keys, expiry, saved) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    let mut live =
        Live { store: store.clone(), tables, ahead_ms, runtime, changes, seed, keys, expiry, last_ms: 0, saved };
    for n in 0..USERS as u64 * 250 {
        live.append(n as usize % USERS);
    }
    live.flush();
    let before: Vec<Vec<Seq>> = (0..USERS).map(|at| sequences(&*store, at)).collect();
    let mut receiver = Receiver { live: &mut live, bytes: Vec::new() };
    store.backup(&mut receiver).unwrap();
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("backup.mesa");
    std::fs::write(&file, &receiver.bytes).unwrap();
    restore(&file, &home.path().join("restored")).unwrap();
    let restored =
        open(DiskOptions { limits: options(&live.ahead_ms).limits, ..DiskOptions::new(home.path().join("restored")) });
    let restored = restored.unwrap();
    for (at, before) in before.iter().enumerate() {
        let found = sequences(&*restored, at);
        let (visible, head) = &live.saved[&at];
        let expected: Vec<Seq> =
            visible.iter().copied().filter(|seq| seq <= head && !live.is_expired(at, *seq)).collect();
        assert_eq!(found, expected, "user {at}: what readers saw when the log was saved, seed {seed}");
        // What was pending before the backup is pending, acknowledged or expired, or so is a saved entry that replaced it.
        let acknowledged = restored.state(&user(at)).unwrap().acknowledged;
        let is_saved = |seq: &Seq| found.contains(seq) || acknowledged.contains(*seq) || live.is_expired(at, *seq);
        for seq in before {
            let key = live.keys.get(&(at, *seq));
            let mut later = (*seq + 1..=*head).filter(|later| key.is_some() && live.keys.get(&(at, *later)) == key);
            assert!(
                is_saved(seq) || later.any(|later| is_saved(&later)),
                "user {at}: entry {seq} is lost, seed {seed}"
            );
        }
    }
    live.runtime.block_on(async {
        restored.close().await.unwrap();
        store.close().await.unwrap();
    });
}

// covers: G4
#[test]
fn entry_that_readers_no_longer_see_does_not_return_with_a_restore() {
    (1..=12).for_each(back_up_and_restore);
}
