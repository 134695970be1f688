//! Compares random operations and restarts with a model of plain lists and sets.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::Ordering,
    time::Duration,
};

use mesa::{
    embedded::tables::memory::Memory,
    message::{CollapseKey, DeviceId, DispatchId, Payload},
    store::{Append, GapReason, Idempotency, Limits, Overflow, RejectionReason, SessionReport},
};
use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};

use crate::support::{FLUSH_AT_ONCE, FLUSH_NEVER, Location, OpenOptions, read, user};

const USERS: [&str; 3] = ["a", "a b", "b"];

/// Step of the clock, in seconds. Entries expire in the middle of a step, so that a slow machine makes no difference.
const STEP_S: u64 = 100;

const MESSAGES_MAX: u64 = 12;
const BYTES_MAX: u64 = 600;
const DEVICES_MAX: usize = 2;
/// In seconds.
const IDS_WINDOW_S: u64 = 5 * STEP_S - STEP_S / 2;

#[derive(Clone, Debug)]
enum Op {
    Append { to: [bool; 3], long: bool, ttl: Option<u64>, key: Option<u8>, id: Option<u8> },
    Attach { user: usize, device: Option<u8> },
    Detach { user: usize, device: Option<u8> },
    Acknowledge { user: usize, device: Option<u8>, from: u64, length: u64 },
    Hold { user: usize, hold: Option<u64> },
    Clear { user: usize },
    Read { user: usize, after: u64 },
    Wait { steps: u64 },
    Restart { flush: bool },
}

fn op() -> impl Strategy<Value = Op> {
    let user = 0_usize..3;
    let device = || prop::option::weighted(0.6, 0_u8..3);
    let append = (
        any::<[bool; 3]>(),
        prop::bool::weighted(0.2),
        prop::option::weighted(0.2, 0_u64..4),
        prop::option::weighted(0.3, 0_u8..3),
        prop::option::weighted(0.2, 0_u8..4),
    );
    prop_oneof![
        12 => append.prop_map(|(to, long, ttl, key, id)| Op::Append { to, long, ttl, key, id }),
        2 => (user.clone(), device()).prop_map(|(user, device)| Op::Attach { user, device }),
        1 => (user.clone(), device()).prop_map(|(user, device)| Op::Detach { user, device }),
        5 => (user.clone(), device(), 0_u64..30, 0_u64..12)
            .prop_map(|(user, device, from, length)| Op::Acknowledge { user, device, from, length }),
        1 => (user.clone(), prop::option::of(0_u64..30)).prop_map(|(user, hold)| Op::Hold { user, hold }),
        1 => user.clone().prop_map(|user| Op::Clear { user }),
        3 => (user, 0_u64..30).prop_map(|(user, after)| Op::Read { user, after }),
        1 => (1_u64..3).prop_map(|steps| Op::Wait { steps }),
        2 => any::<bool>().prop_map(|flush| Op::Restart { flush }),
    ]
}

#[derive(Clone, Debug)]
struct Entry {
    n: u64,
    bytes: u64,
    expires: Option<u64>,
}

#[derive(Clone, Debug, Default)]
struct Cursor {
    acknowledged: BTreeSet<u64>,
    seen: u64,
    attached: u32,
    used: bool,
}

/// Expected state of a user's log.
struct Model {
    head: u64,
    /// Entries that are not in `gaps`.
    entries: BTreeMap<u64, Entry>,
    gaps: BTreeMap<u64, GapReason>,
    /// Last entry of each collapse key.
    keys: BTreeMap<u8, u64>,
    cursors: BTreeMap<Option<u8>, Cursor>,
    hold: Option<u64>,
    /// Entries up to this sequence are trimmed.
    trimmed: u64,
}

impl Default for Model {
    fn default() -> Self {
        Self {
            head: 0,
            entries: BTreeMap::new(),
            gaps: BTreeMap::new(),
            keys: BTreeMap::new(),
            cursors: BTreeMap::from([(None, Cursor::default())]),
            hold: None,
            trimmed: 0,
        }
    }
}

impl Model {
    fn is_acknowledged(&self, seq: u64) -> bool {
        self.cursors.values().all(|cursor| cursor.acknowledged.contains(&seq))
    }

    fn through(&self) -> u64 {
        (1..=self.head).take_while(|seq| self.is_acknowledged(*seq)).last().unwrap_or(0)
    }

    fn trim(&mut self) {
        let trimmed = self.hold.map_or(self.through(), |hold| hold.min(self.through()));
        self.trimmed = self.trimmed.max(trimmed);
    }

    fn shown(&self, after: u64, now: u64) -> Vec<(u64, u64)> {
        let shows = |(seq, entry): &(&u64, &Entry)| {
            **seq > self.trimmed
                && (!self.is_acknowledged(**seq) || self.hold.is_some_and(|hold| **seq > hold))
                && entry.expires.is_none_or(|at| at > now)
        };
        self.entries.range(after + 1..).filter(shows).map(|(seq, entry)| (*seq, entry.n)).collect()
    }

    /// Removes expired entries, and then evicts the oldest if `overflow` allows it; returns whether the new entry fits.
    fn make_space(&mut self, bytes: u64, now: u64, overflow: Overflow) -> bool {
        let usage = |model: &Self| {
            let bytes = model.entries.range(model.trimmed + 1..).map(|(_, entry)| entry.bytes);
            (bytes.clone().count() as u64, bytes.sum::<u64>())
        };
        let fits = |model: &Self| {
            let (entries, sum) = usage(model);
            entries < MESSAGES_MAX && sum + bytes <= BYTES_MAX
        };
        if !fits(self) {
            self.entries.retain(|_, entry| entry.expires.is_none_or(|at| at > now));
        }
        while !fits(self) && overflow == Overflow::DropOldest {
            let Some((oldest, _)) = self.entries.range(self.trimmed + 1..).next() else { break };
            self.add_gap(*oldest.min(&(self.through() + 1)), *oldest, GapReason::Quota);
            self.trim();
        }
        fits(self)
    }

    fn add_gap(&mut self, from: u64, to: u64, reason: GapReason) {
        let front = from <= self.through() + 1;
        for seq in from..=to {
            if !self.is_acknowledged(seq) {
                self.gaps.entry(seq).or_insert(reason);
            }
            self.entries.remove(&seq);
        }
        if front {
            self.acknowledge_all(to);
        }
    }

    fn acknowledge_all(&mut self, to: u64) {
        self.cursors.values_mut().for_each(|cursor| cursor.acknowledged.extend(1..=to));
    }

    fn attach(&mut self, device: Option<u8>, at: u64) -> bool {
        if !self.cursors.contains_key(&device) {
            let mut new = Cursor { acknowledged: (1..=self.through()).collect(), ..Cursor::default() };
            if device.is_some() {
                let unused = self.cursors.len() == 1 && self.cursors.get(&None).is_some_and(|shared| !shared.used);
                if unused {
                    new = self.cursors.remove(&None).unwrap();
                }
                if self.cursors.keys().flatten().count() >= DEVICES_MAX {
                    let offline =
                        self.cursors.iter().filter(|(device, cursor)| device.is_some() && cursor.attached == 0);
                    let Some(oldest) = offline.min_by_key(|(_, cursor)| cursor.seen).map(|(device, _)| *device) else {
                        return false;
                    };
                    self.cursors.remove(&oldest);
                }
            }
            self.cursors.insert(device, new);
        }
        let cursor = self.cursors.get_mut(&device).unwrap();
        (cursor.attached, cursor.seen, cursor.used) = (cursor.attached + 1, at, true);
        self.trim();
        true
    }
}

/// Result of an append with an id, and its time.
struct StoredResult {
    at: u64,
    recipients: u32,
    rejected: usize,
}

fn device_id(device: u8) -> DeviceId {
    DeviceId::new(&format!("device {device}")).unwrap()
}

#[derive(Default)]
struct Run {
    models: [Model; 3],
    ids: BTreeMap<u8, StoredResult>,
    now: u64,
    /// Rises with every operation: orders the times at which devices were seen.
    at: u64,
}

impl Run {
    /// Appends to the store and to the models, and compares the results.
    async fn append(&mut self, store: &dyn mesa::store::Store, n: u64, op: Op, overflow: Overflow) {
        let Op::Append { to, long, ttl, key, id } = op else { unreachable!("called with an append") };
        let users: Vec<usize> = (0..3).filter(|at| to[*at]).collect();
        let padding = "x".repeat(if long { 150 } else { 0 });
        let payload = Payload::encode(0, Some(&n.to_string()), Some(&padding)).unwrap();
        let bytes = payload.as_bytes().len() as u64;
        let recipients: Vec<_> = users.iter().map(|at| user(USERS[*at])).collect();
        let idempotency = id.map(|id| Idempotency {
            id: DispatchId::new(&format!("id {id}")).unwrap(),
            online: vec![false; recipients.len()],
            rejected: Vec::new(),
        });
        let append = Append {
            ttl: ttl.map(|steps| Duration::from_secs(steps * STEP_S + STEP_S / 2)),
            collapse: key.map(|key| CollapseKey::new(&format!("key {key}")).unwrap()),
            idempotency,
            ..Append::new(payload, recipients)
        };
        let appended = store.append(append).await.unwrap();
        let first = id.and_then(|id| self.ids.get(&id)).filter(|first| first.at + IDS_WINDOW_S > self.now);
        assert_eq!(appended.duplicate, first.is_some(), "append {n}");
        if let Some(first) = first {
            let summary = appended.summary.unwrap();
            assert_eq!((summary.recipients, summary.rejected.len()), (first.recipients, first.rejected));
            return;
        }
        let mut rejected = 0;
        for (at, seq) in users.iter().zip(&appended.seqs) {
            let model = &mut self.models[*at];
            let replaced = key.and_then(|key| {
                let seq = *model.keys.get(&key)?;
                let entry = model.entries.get(&seq)?;
                (entry.expires.is_none_or(|at| at > self.now) && !model.is_acknowledged(seq)).then_some(seq)
            });
            if replaced.is_none() && !model.make_space(bytes, self.now, overflow) {
                assert_eq!(*seq, Err(RejectionReason::Quota), "append {n} to {}", USERS[*at]);
                rejected += 1;
                continue;
            }
            model.head += 1;
            assert_eq!(*seq, Ok(model.head), "append {n} to {}", USERS[*at]);
            if let Some(replaced) = replaced {
                model.add_gap(replaced, replaced, GapReason::Collapsed);
                model.trim();
            }
            let expires = ttl.map(|steps| self.now + steps * STEP_S + STEP_S / 2);
            model.entries.insert(model.head, Entry { n, bytes, expires });
            key.map(|key| model.keys.insert(key, model.head));
        }
        if let Some(id) = id {
            let recipients = users.len() as u32;
            self.ids.insert(id, StoredResult { at: self.now, recipients, rejected });
        }
    }

    fn check_gaps(&self, store: &dyn mesa::store::Store, at: usize) {
        let model = &self.models[at];
        if model.head == 0 {
            return;
        }
        let gaps = store.explain_gaps(&user(USERS[at]), None, 1, model.head).unwrap();
        let mut next = 1;
        for gap in gaps {
            assert_eq!(gap.from, next, "expected a reason for each sequence");
            next = gap.to + 1;
            for seq in gap.from..=gap.to {
                match model.gaps.get(&seq) {
                    Some(reason) => assert_eq!(gap.reason, *reason, "{seq} of {}", USERS[at]),
                    // An acknowledged entry between evicted ones is part of their gap.
                    None if gap.reason == GapReason::Quota => assert!(model.is_acknowledged(seq)),
                    None => assert!(matches!(gap.reason, GapReason::Acknowledged | GapReason::Expired)),
                }
            }
        }
        assert_eq!(next, model.head + 1);
    }
}

async fn run(location: &Location, ops: Vec<Op>, overflow: Overflow) {
    let options = OpenOptions {
        limits: Limits {
            messages: MESSAGES_MAX,
            bytes: BYTES_MAX,
            overflow,
            devices: DEVICES_MAX,
            ids_window: Duration::from_secs(IDS_WINDOW_S),
            device_age: None,
            free_bytes: 0,
            ..Limits::default()
        },
        ..OpenOptions::default()
    };
    let mut store = location.open_with(FLUSH_NEVER, &options);
    let mut run = Run::default();
    let mut has_flushed = false;
    for (n, op) in ops.into_iter().enumerate() {
        run.at += 1;
        // Each operation takes 1 ms, so that the store can order the times at which devices were seen.
        options.ahead_ms.fetch_add(1, Ordering::Relaxed);
        let (now, at_ms) = (run.now, run.at);
        match op {
            Op::Append { .. } => run.append(&*store, n as u64, op, overflow).await,
            Op::Attach { user: at, device } => {
                let attached = store.attach(&user(USERS[at]), device.map(device_id).as_ref());
                assert_eq!(attached.is_ok(), run.models[at].attach(device, at_ms), "{attached:?}");
                if let Ok(attached) = attached {
                    let model = &run.models[at];
                    let acknowledged = &model.cursors[&device].acknowledged;
                    assert_eq!(attached.head, model.head);
                    // A lost sequence may count as acknowledged or not. Eviction of the oldest entry acknowledges the
                    // lost sequences after it if both are in the same block, which depends on the time of the flush.
                    let fits = |seq| match model.entries.get(&seq) {
                        Some(entry) if entry.expires.is_none_or(|at| at > now) => {
                            attached.acknowledged.contains(seq) == acknowledged.contains(&seq)
                        }
                        _ => attached.acknowledged.contains(seq) || !acknowledged.contains(&seq),
                    };
                    assert!((1..=model.head).all(fits), "expected {acknowledged:?}, not {:?}", attached.acknowledged);
                }
            }
            Op::Detach { user: at, device } => {
                store.detach(&user(USERS[at]), device.map(device_id).as_ref());
                if let Some(cursor) = run.models[at].cursors.get_mut(&device) {
                    (cursor.attached, cursor.seen) = (cursor.attached.saturating_sub(1), at_ms);
                    cursor.used = true;
                }
            }
            Op::Acknowledge { user: at, device, from, length } => {
                let model = &mut run.models[at];
                let report = SessionReport {
                    device: device.map(device_id),
                    acknowledged: Some((from, from + length)),
                    hold: model.hold,
                    seen: None,
                };
                store.report(&user(USERS[at]), report);
                if let Some(cursor) = model.cursors.get_mut(&device) {
                    cursor.acknowledged.extend(from.max(1)..=(from + length).min(model.head));
                }
                model.trim();
            }
            Op::Hold { user: at, hold } => {
                store.report(&user(USERS[at]), SessionReport { hold, ..SessionReport::default() });
                run.models[at].hold = hold;
                run.models[at].trim();
            }
            Op::Clear { user: at } => {
                store.clear(&user(USERS[at])).await.unwrap();
                let model = &mut run.models[at];
                for seq in model.through() + 1..=model.head {
                    model.gaps.entry(seq).or_insert(GapReason::Cleared);
                }
                model.acknowledge_all(model.head);
                model.trim();
            }
            Op::Read { user: at, after } => {
                let read = read(&*store, USERS[at], after);
                assert_eq!(read, run.models[at].shown(after, now), "user {:?} after {after}", USERS[at]);
                run.check_gaps(&*store, at);
            }
            Op::Wait { steps } => {
                run.now += steps * STEP_S;
                options.ahead_ms.fetch_add(steps * STEP_S * 1000, Ordering::Relaxed);
            }
            Op::Restart { flush } => {
                store.close().await.unwrap();
                drop(store);
                // The store continues its stored clock, so the advance is reset.
                options.ahead_ms.store(0, Ordering::Relaxed);
                has_flushed |= flush;
                store = location.open_with(if flush { FLUSH_AT_ONCE } else { FLUSH_NEVER }, &options);
                for model in &mut run.models {
                    model.hold = None;
                    model.cursors.values_mut().for_each(|cursor| cursor.attached = 0);
                    model.trim();
                }
            }
        }
    }
    for (at, model) in run.models.iter().enumerate() {
        let shown = model.shown(0, run.now);
        assert_eq!(read(&*store, USERS[at], 0), shown, "user {:?} at the end, flushed: {has_flushed}", USERS[at]);
        let state = store.state(&user(USERS[at])).unwrap();
        assert_eq!(state.head, model.head);
        let pending = shown.iter().filter(|(seq, _)| !model.is_acknowledged(*seq)).count() as u64;
        assert!(state.pending >= pending, "expected at least {pending} pending entries, not {}", state.pending);
    }
    store.close().await.unwrap();
}

fn check(location: fn() -> Location, cases: u32) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let mut runner = TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() });
    let ops = (prop::collection::vec(op(), 1..80), any::<bool>());
    // proptest shrinks a failing case and prints its operations.
    runner
        .run(&ops, |(ops, reject)| {
            let overflow = if reject { Overflow::Reject } else { Overflow::DropOldest };
            runtime.block_on(run(&location(), ops, overflow));
            Ok(())
        })
        .unwrap();
}

#[test]
fn random_operations_in_memory_match_the_model() {
    check(|| Location::Memory(Memory::default()), 400);
}

// covers: G2, G4, G5
#[test]
fn random_operations_on_disk_match_the_model() {
    check(Location::disk, 40);
}

// covers: G2, G4, G5
#[cfg(feature = "redis")]
#[test]
fn random_operations_on_redis_match_the_model() {
    check(|| Location::Redis(crate::redis::RedisNamespace::default()), 60);
}

#[cfg(feature = "redis")]
#[test]
fn random_operations_on_a_redis_cluster_match_the_model() {
    // Without this reference each case would start a cluster of its own.
    let _cluster = crate::redis_topologies::RedisCluster::shared();
    check(|| Location::Redis(crate::redis::RedisNamespace::in_cluster()), 20);
}
