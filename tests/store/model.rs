//! Random operations, restarts among them, against a plain list per user.

use std::collections::{BTreeMap, BTreeSet};

use mesa::store::{Note, memory::Memory};
use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};

use crate::support::{AT_ONCE, NEVER, Place, append, read, user};

const USERS: [&str; 3] = ["a", "a b", "b"];

#[derive(Clone, Debug)]
enum Op {
    Append { to: [bool; 3] },
    Receive { user: usize, from: u64, length: u64 },
    Hold { user: usize, hold: Option<u64> },
    Clear { user: usize },
    Read { user: usize, after: u64 },
    Restart { settle: bool },
}

fn op() -> impl Strategy<Value = Op> {
    let user = 0_usize..3;
    prop_oneof![
        6 => any::<[bool; 3]>().prop_map(|to| Op::Append { to }),
        3 => (user.clone(), 0_u64..30, 0_u64..12).prop_map(|(user, from, length)| Op::Receive { user, from, length }),
        1 => (user.clone(), prop::option::of(0_u64..30)).prop_map(|(user, hold)| Op::Hold { user, hold }),
        1 => user.clone().prop_map(|user| Op::Clear { user }),
        3 => (user, 0_u64..30).prop_map(|(user, after)| Op::Read { user, after }),
        1 => any::<bool>().prop_map(|settle| Op::Restart { settle }),
    ]
}

/// What a user's log ought to be.
#[derive(Default)]
struct Model {
    head: u64,
    entries: BTreeMap<u64, u64>,
    received: BTreeSet<u64>,
    hold: Option<u64>,
    /// Nothing up to here can be read any more.
    released: u64,
}

impl Model {
    fn through(&self) -> u64 {
        (1..=self.head).take_while(|seq| self.received.contains(seq)).last().unwrap_or(0)
    }

    fn release(&mut self) {
        let released = self.hold.map_or(self.through(), |hold| hold.min(self.through()));
        self.released = self.released.max(released);
    }

    fn shown(&self, after: u64) -> Vec<(u64, u64)> {
        let shows = |seq: u64| {
            seq > self.released && (!self.received.contains(&seq) || self.hold.is_some_and(|hold| seq > hold))
        };
        self.entries.range(after + 1..).filter(|(seq, _)| shows(**seq)).map(|(seq, n)| (*seq, *n)).collect()
    }
}

async fn run(place: &Place, ops: Vec<Op>) {
    let mut store = place.open(NEVER);
    let mut models: [Model; 3] = Default::default();
    let mut settles = false;
    for (n, op) in ops.into_iter().enumerate() {
        match op {
            Op::Append { to } => {
                let users: Vec<usize> = (0..3).filter(|at| to[*at]).collect();
                let ids: Vec<&str> = users.iter().map(|at| USERS[*at]).collect();
                let seqs = append(&*store, n as u64, &ids).await.unwrap();
                for (at, seq) in users.into_iter().zip(seqs) {
                    models[at].head += 1;
                    assert_eq!(seq, models[at].head);
                    models[at].entries.insert(seq, n as u64);
                }
            }
            Op::Receive { user: at, from, length } => {
                let model = &mut models[at];
                let hold = model.hold;
                store.note(&user(USERS[at]), Note { received: Some((from, from + length)), hold, ..Note::default() });
                model.received.extend(from.max(1)..=(from + length).min(model.head));
                model.release();
            }
            Op::Hold { user: at, hold } => {
                store.note(&user(USERS[at]), Note { hold, ..Note::default() });
                models[at].hold = hold;
                models[at].release();
            }
            Op::Clear { user: at } => {
                let model = &mut models[at];
                let missing = (1..=model.head).filter(|seq| !model.received.contains(seq)).count();
                assert_eq!(store.clear(&user(USERS[at])).await.unwrap(), missing as u64);
                model.received.extend(1..=model.head);
                model.release();
            }
            Op::Read { user: at, after } => {
                // What is held after a release may be gone already or not yet: settled chunks go as a whole.
                let read = read(&*store, USERS[at], after);
                assert_eq!(read, models[at].shown(after), "user {:?} above {after}", USERS[at]);
            }
            Op::Restart { settle } => {
                store.close().await.unwrap();
                drop(store);
                settles |= settle;
                store = place.open(if settle { AT_ONCE } else { NEVER });
                for model in &mut models {
                    model.hold = None;
                    model.release();
                }
            }
        }
    }
    for (at, model) in models.iter().enumerate() {
        assert_eq!(read(&*store, USERS[at], 0), model.shown(0), "user {:?} at the end, settled: {settles}", USERS[at]);
        assert_eq!(store.state(&user(USERS[at])).unwrap().head, model.head);
    }
    store.close().await.unwrap();
}

fn check(place: fn() -> Place, cases: u32) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let mut runner = TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() });
    let ops = prop::collection::vec(op(), 1..60);
    // A failing case is printed, shrunk, with its operations.
    runner
        .run(&ops, |ops| {
            runtime.block_on(run(&place(), ops));
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
