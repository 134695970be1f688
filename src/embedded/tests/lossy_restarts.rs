//! Tests that no answered sequence is assigned again after a power cut, with a durability other than `always`.

use std::time::Duration;

use super::power_cut::Cut;
use crate::{
    embedded::{
        self,
        options::{Options, Tuning},
        tables::{
            contract::{Table, Tables},
            memory::{self, Memory},
        },
    },
    message::{Payload, Seq, UserId},
    store::{Append, Durability, Limits, Overflow, RejectionReason, Store},
};

/// Number of prefixes of the writes that are checked for each case.
const SEEDS: u64 = 32;

fn options() -> Options {
    let tuning = Tuning { flush_delay: Duration::from_secs(3600), ..Tuning::default() };
    let limits = Limits { messages: 3, overflow: Overflow::Reject, ..Limits::default() };
    Options { durability: Durability::Never, tuning, limits, ..Options::default() }
}

fn bob() -> UserId {
    UserId::new("bob").unwrap()
}

async fn append(store: &dyn Store) -> Result<Seq, RejectionReason> {
    let append = Append::new(Payload::encode(0, None, None).unwrap(), vec![bob()]);
    store.append(append).await.unwrap().seqs[0]
}

/// Attaches a session of the user, and waits until the user has a row.
async fn connect(store: &dyn Store, tables: &Memory) {
    store.attach(&bob(), None).unwrap();
    let waited = tokio::time::timeout(Duration::from_secs(30), async {
        while tables.get(Table::Users, b"bob").unwrap().is_none() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    waited.await.expect("the report of the session is written");
}

/// States what precedes the first entry.
#[derive(Clone, Copy, Debug)]
enum Case {
    /// A session of a new user.
    Attached,
    /// A session in an earlier start, which ended cleanly.
    AttachedBefore,
    /// A session in an earlier start, which was killed before a flush.
    AttachedAndKilled,
    /// A session of a user whose earlier log was erased.
    Erased,
    /// A lossy restart, and then a message that exceeds the quota.
    OverQuota,
}

/// Returns the store before the start that the power cut ends.
async fn prepare(case: Case) -> Memory {
    let tables = Memory::default();
    let store = memory::open(&tables, options()).unwrap();
    match case {
        Case::Attached => {}
        Case::AttachedBefore => connect(&*store, &tables).await,
        Case::AttachedAndKilled => {
            connect(&*store, &tables).await;
            store.detach(&bob(), None);
            // Its commit has the report too.
            store.clear(&UserId::new("other").unwrap()).await.unwrap();
            let killed = tables.deep_clone();
            killed.remove(Table::Users, b"bob").unwrap();
            return killed;
        }
        Case::Erased => {
            append(&*store).await.unwrap();
            _ = store.erase(&bob()).await.unwrap();
        }
        Case::OverQuota => {
            for _ in 0..3 {
                append(&*store).await.unwrap();
            }
            return tables.deep_clone();
        }
    }
    store.close().await.unwrap();
    tables
}

// covers: G5
#[tokio::test]
async fn first_sequence_is_not_assigned_again_after_a_power_cut() {
    for case in [Case::Attached, Case::AttachedBefore, Case::AttachedAndKilled, Case::Erased, Case::OverQuota] {
        let before = prepare(case).await;
        let tables = before.deep_clone();
        let cut = Cut::new(&tables, i64::MAX);
        let store = embedded::open(cut.clone(), options()).unwrap();
        match case {
            Case::Attached | Case::Erased => connect(&*store, &tables).await,
            Case::AttachedBefore | Case::AttachedAndKilled => {}
            Case::OverQuota => {
                assert_eq!(append(&*store).await, Err(RejectionReason::Quota));
                store.clear(&bob()).await.unwrap();
            }
        }
        let answered = append(&*store).await.unwrap();
        for seed in 0..SEEDS {
            let store = memory::open(&cut.after_power_cut_with(before.deep_clone(), seed), options()).unwrap();
            if matches!(case, Case::OverQuota) {
                store.clear(&bob()).await.unwrap();
            }
            let next = append(&*store).await.unwrap();
            assert!(next > answered, "{case:?}, seed {seed}: {next} after {answered}");
        }
    }
}
