//! Random operations, restarts among them, against plain lists and sets.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::Ordering,
    time::Duration,
};

use mesa::{
    embedded::tables::memory::Memory,
    message::{CollapseKey, DeviceId, DispatchId, Payload},
    store::{Append, GapReason, Idempotency, Limits, Overflow, Reason, SessionReport},
};
use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};

use crate::support::{AT_ONCE, NEVER, Opening, Place, read, user};

const USERS: [&str; 3] = ["a", "a b", "b"];

/// Time goes on in steps of this many seconds; what expires does so in the middle of one, far from where a slow machine
/// could tell the difference.
const STEP: u64 = 100;

const MESSAGES_MAX: u64 = 12;
const BYTES_MAX: u64 = 600;
const DEVICES_MAX: usize = 2;
const IDS_WINDOW: u64 = 5 * STEP - STEP / 2;

#[derive(Clone, Debug)]
enum Op {
    Append { to: [bool; 3], long: bool, ttl: Option<u64>, key: Option<u8>, id: Option<u8> },
    Attach { user: usize, device: Option<u8> },
    Detach { user: usize, device: Option<u8> },
    Receive { user: usize, device: Option<u8>, from: u64, length: u64 },
    Hold { user: usize, hold: Option<u64> },
    Clear { user: usize },
    Read { user: usize, after: u64 },
    Wait { steps: u64 },
    Restart { settle: bool },
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
            .prop_map(|(user, device, from, length)| Op::Receive { user, device, from, length }),
        1 => (user.clone(), prop::option::of(0_u64..30)).prop_map(|(user, hold)| Op::Hold { user, hold }),
        1 => user.clone().prop_map(|user| Op::Clear { user }),
        3 => (user, 0_u64..30).prop_map(|(user, after)| Op::Read { user, after }),
        1 => (1_u64..3).prop_map(|steps| Op::Wait { steps }),
        2 => any::<bool>().prop_map(|settle| Op::Restart { settle }),
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
    received: BTreeSet<u64>,
    seen: u64,
    attached: u32,
    used: bool,
}

/// What a user's log ought to be.
struct Model {
    head: u64,
    /// Those that are not gone.
    entries: BTreeMap<u64, Entry>,
    gone: BTreeMap<u64, GapReason>,
    /// The last entry of each key.
    keys: BTreeMap<u8, u64>,
    cursors: BTreeMap<Option<u8>, Cursor>,
    hold: Option<u64>,
    /// Nothing up to here can be read any more.
    released: u64,
}

impl Default for Model {
    fn default() -> Self {
        Self {
            head: 0,
            entries: BTreeMap::new(),
            gone: BTreeMap::new(),
            keys: BTreeMap::new(),
            cursors: BTreeMap::from([(None, Cursor::default())]),
            hold: None,
            released: 0,
        }
    }
}

impl Model {
    fn all_have(&self, seq: u64) -> bool {
        self.cursors.values().all(|cursor| cursor.received.contains(&seq))
    }

    fn through(&self) -> u64 {
        (1..=self.head).take_while(|seq| self.all_have(*seq)).last().unwrap_or(0)
    }

    fn release(&mut self) {
        let released = self.hold.map_or(self.through(), |hold| hold.min(self.through()));
        self.released = self.released.max(released);
    }

    fn shown(&self, after: u64, now: u64) -> Vec<(u64, u64)> {
        let shows = |(seq, entry): &(&u64, &Entry)| {
            **seq > self.released
                && (!self.all_have(**seq) || self.hold.is_some_and(|hold| **seq > hold))
                && entry.expires.is_none_or(|at| at > now)
        };
        self.entries.range(after + 1..).filter(shows).map(|(seq, entry)| (*seq, entry.n)).collect()
    }

    /// Makes room by forgetting what has expired, and then the oldest if that is allowed; whether there is any now.
    fn make_room(&mut self, bytes: u64, now: u64, overflow: Overflow) -> bool {
        let kept = |model: &Self| {
            let kept = model.entries.range(model.released + 1..).map(|(_, entry)| entry.bytes);
            (kept.clone().count() as u64, kept.sum::<u64>())
        };
        let fits = |model: &Self| {
            let (entries, sum) = kept(model);
            entries < MESSAGES_MAX && sum + bytes <= BYTES_MAX
        };
        if !fits(self) {
            self.entries.retain(|_, entry| entry.expires.is_none_or(|at| at > now));
        }
        while !fits(self) && overflow == Overflow::DropOldest {
            let Some((oldest, _)) = self.entries.range(self.released + 1..).next() else { break };
            self.lose(*oldest.min(&(self.through() + 1)), *oldest, GapReason::Quota);
            self.release();
        }
        fits(self)
    }

    fn lose(&mut self, from: u64, to: u64, loss: GapReason) {
        let front = from <= self.through() + 1;
        for seq in from..=to {
            if !self.all_have(seq) {
                self.gone.entry(seq).or_insert(loss);
            }
            self.entries.remove(&seq);
        }
        if front {
            self.everybody_has(to);
        }
    }

    fn everybody_has(&mut self, to: u64) {
        self.cursors.values_mut().for_each(|cursor| cursor.received.extend(1..=to));
    }

    fn attach(&mut self, device: Option<u8>, at: u64) -> bool {
        if !self.cursors.contains_key(&device) {
            let mut fresh = Cursor { received: (1..=self.through()).collect(), ..Cursor::default() };
            if device.is_some() {
                let unused = self.cursors.len() == 1 && self.cursors.get(&None).is_some_and(|shared| !shared.used);
                if unused {
                    fresh = self.cursors.remove(&None).unwrap();
                }
                if self.cursors.keys().flatten().count() >= DEVICES_MAX {
                    let away = self.cursors.iter().filter(|(device, cursor)| device.is_some() && cursor.attached == 0);
                    let Some(oldest) = away.min_by_key(|(_, cursor)| cursor.seen).map(|(device, _)| *device) else {
                        return false;
                    };
                    self.cursors.remove(&oldest);
                }
            }
            self.cursors.insert(device, fresh);
        }
        let cursor = self.cursors.get_mut(&device).unwrap();
        (cursor.attached, cursor.seen, cursor.used) = (cursor.attached + 1, at, true);
        self.release();
        true
    }
}

/// What was answered under an id, and when.
struct Remembered {
    at: u64,
    recipients: u32,
    rejected: usize,
}

fn name(device: u8) -> DeviceId {
    DeviceId::new(&format!("device {device}")).unwrap()
}

#[derive(Default)]
struct Run {
    models: [Model; 3],
    ids: BTreeMap<u8, Remembered>,
    now: u64,
    /// Rises with every operation: of two devices, who was here last.
    at: u64,
}

impl Run {
    /// Appends for real and in the models, and holds the answers against each other.
    async fn append(&mut self, store: &dyn mesa::store::Store, n: u64, op: Op, overflow: Overflow) {
        let Op::Append { to, long, ttl, key, id } = op else { unreachable!("an append") };
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
            ttl: ttl.map(|steps| Duration::from_secs(steps * STEP + STEP / 2)),
            collapse: key.map(|key| CollapseKey::new(&format!("key {key}")).unwrap()),
            idempotency,
            ..Append::new(payload, recipients)
        };
        let appended = store.append(append).await.unwrap();
        let known = id.and_then(|id| self.ids.get(&id)).filter(|known| known.at + IDS_WINDOW > self.now);
        assert_eq!(appended.duplicate, known.is_some(), "append {n}");
        if let Some(known) = known {
            let answered = appended.summary.unwrap();
            assert_eq!((answered.recipients, answered.rejected.len()), (known.recipients, known.rejected));
            return;
        }
        let mut rejected = 0;
        for (at, seq) in users.iter().zip(&appended.seqs) {
            let model = &mut self.models[*at];
            let replaced = key.and_then(|key| {
                let seq = *model.keys.get(&key)?;
                let entry = model.entries.get(&seq)?;
                (entry.expires.is_none_or(|at| at > self.now) && !model.all_have(seq)).then_some(seq)
            });
            if replaced.is_none() && !model.make_room(bytes, self.now, overflow) {
                assert_eq!(*seq, Err(Reason::Quota), "append {n} to {}", USERS[*at]);
                rejected += 1;
                continue;
            }
            model.head += 1;
            assert_eq!(*seq, Ok(model.head), "append {n} to {}", USERS[*at]);
            if let Some(replaced) = replaced {
                model.lose(replaced, replaced, GapReason::Collapsed);
                model.release();
            }
            let expires = ttl.map(|steps| self.now + steps * STEP + STEP / 2);
            model.entries.insert(model.head, Entry { n, bytes, expires });
            key.map(|key| model.keys.insert(key, model.head));
        }
        if let Some(id) = id {
            let recipients = users.len() as u32;
            self.ids.insert(id, Remembered { at: self.now, recipients, rejected });
        }
    }

    fn check_missed(&self, store: &dyn mesa::store::Store, at: usize) {
        let model = &self.models[at];
        if model.head == 0 {
            return;
        }
        let missed = store.explain_gaps(&user(USERS[at]), None, 1, model.head).unwrap();
        let mut next = 1;
        for part in missed {
            assert_eq!(part.from, next, "no part is left out");
            next = part.to + 1;
            for seq in part.from..=part.to {
                match model.gone.get(&seq) {
                    Some(loss) => assert_eq!(part.reason, *loss, "{seq} of {}", USERS[at]),
                    // What was received in the middle of what was dropped went with it.
                    None if part.reason == GapReason::Quota => assert!(model.all_have(seq)),
                    None => assert!(matches!(part.reason, GapReason::Acknowledged | GapReason::Expired)),
                }
            }
        }
        assert_eq!(next, model.head + 1);
    }
}

async fn run(place: &Place, ops: Vec<Op>, overflow: Overflow) {
    let opening = Opening {
        limits: Limits {
            messages: MESSAGES_MAX,
            bytes: BYTES_MAX,
            overflow,
            devices: DEVICES_MAX,
            ids_window: Duration::from_secs(IDS_WINDOW),
            device_age: None,
            free_bytes: 0,
            ..Limits::default()
        },
        ..Opening::default()
    };
    let mut store = place.open_with(NEVER, &opening);
    let mut run = Run::default();
    let mut settles = false;
    for (n, op) in ops.into_iter().enumerate() {
        run.at += 1;
        // By this the store tells who of two was here last.
        opening.ahead_ms.fetch_add(1, Ordering::Relaxed);
        let (now, at_ms) = (run.now, run.at);
        match op {
            Op::Append { .. } => run.append(&*store, n as u64, op, overflow).await,
            Op::Attach { user: at, device } => {
                let attached = store.attach(&user(USERS[at]), device.map(name).as_ref());
                assert_eq!(attached.is_ok(), run.models[at].attach(device, at_ms), "{attached:?}");
                if let Ok(attached) = attached {
                    let model = &run.models[at];
                    let received = &model.cursors[&device].received;
                    assert_eq!(attached.head, model.head);
                    // What is gone may count as received or not: dropping the oldest entry takes along what is gone behind
                    // it, if the two are in the same place, and that depends on when the log was settled.
                    let fits = |seq| match model.entries.get(&seq) {
                        Some(entry) if entry.expires.is_none_or(|at| at > now) => {
                            attached.acknowledged.contains(seq) == received.contains(&seq)
                        }
                        _ => attached.acknowledged.contains(seq) || !received.contains(&seq),
                    };
                    assert!((1..=model.head).all(fits), "{:?}, and not {received:?}", attached.acknowledged);
                }
            }
            Op::Detach { user: at, device } => {
                store.detach(&user(USERS[at]), device.map(name).as_ref());
                if let Some(cursor) = run.models[at].cursors.get_mut(&device) {
                    (cursor.attached, cursor.seen) = (cursor.attached.saturating_sub(1), at_ms);
                    cursor.used = true;
                }
            }
            Op::Receive { user: at, device, from, length } => {
                let model = &mut run.models[at];
                let note = SessionReport {
                    device: device.map(name),
                    acknowledged: Some((from, from + length)),
                    hold: model.hold,
                    seen: None,
                };
                store.report(&user(USERS[at]), note);
                if let Some(cursor) = model.cursors.get_mut(&device) {
                    cursor.received.extend(from.max(1)..=(from + length).min(model.head));
                }
                model.release();
            }
            Op::Hold { user: at, hold } => {
                store.report(&user(USERS[at]), SessionReport { hold, ..SessionReport::default() });
                run.models[at].hold = hold;
                run.models[at].release();
            }
            Op::Clear { user: at } => {
                store.clear(&user(USERS[at])).await.unwrap();
                let model = &mut run.models[at];
                for seq in model.through() + 1..=model.head {
                    model.gone.entry(seq).or_insert(GapReason::Cleared);
                }
                model.everybody_has(model.head);
                model.release();
            }
            Op::Read { user: at, after } => {
                let read = read(&*store, USERS[at], after);
                assert_eq!(read, run.models[at].shown(after, now), "user {:?} above {after}", USERS[at]);
                run.check_missed(&*store, at);
            }
            Op::Wait { steps } => {
                run.now += steps * STEP;
                opening.ahead_ms.fetch_add(steps * STEP * 1000, Ordering::Relaxed);
            }
            Op::Restart { settle } => {
                store.close().await.unwrap();
                drop(store);
                // The store goes on from the time it had.
                opening.ahead_ms.store(0, Ordering::Relaxed);
                settles |= settle;
                store = place.open_with(if settle { AT_ONCE } else { NEVER }, &opening);
                for model in &mut run.models {
                    model.hold = None;
                    model.cursors.values_mut().for_each(|cursor| cursor.attached = 0);
                    model.release();
                }
            }
        }
    }
    for (at, model) in run.models.iter().enumerate() {
        let shown = model.shown(0, run.now);
        assert_eq!(read(&*store, USERS[at], 0), shown, "user {:?} at the end, settled: {settles}", USERS[at]);
        let state = store.state(&user(USERS[at])).unwrap();
        assert_eq!(state.head, model.head);
        let pending = shown.iter().filter(|(seq, _)| !model.all_have(*seq)).count() as u64;
        assert!(state.pending >= pending, "{} are pending, and {} are said to be", pending, state.pending);
    }
    store.close().await.unwrap();
}

fn check(place: fn() -> Place, cases: u32) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let mut runner = TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() });
    let ops = (prop::collection::vec(op(), 1..80), any::<bool>());
    // A failing case is printed, shrunk, with its operations.
    runner
        .run(&ops, |(ops, reject)| {
            let overflow = if reject { Overflow::Reject } else { Overflow::DropOldest };
            runtime.block_on(run(&place(), ops, overflow));
            Ok(())
        })
        .unwrap();
}

#[test]
fn random_operations_in_memory_leave_what_a_list_would() {
    check(|| Place::Memory(Memory::default()), 400);
}

#[test]
fn random_operations_on_disk_leave_what_a_list_would() {
    check(Place::disk, 40);
}

#[cfg(feature = "redis")]
#[test]
fn random_operations_over_redis_leave_what_a_list_would() {
    check(|| Place::Redis(crate::redis::Somewhere::default()), 60);
}

#[cfg(feature = "redis")]
#[test]
fn random_operations_over_a_redis_cluster_leave_what_a_list_would() {
    // Or each case would start one of its own.
    let _cluster = crate::redis_topologies::Cluster::shared();
    check(|| Place::Redis(crate::redis::Somewhere::spread()), 20);
}
