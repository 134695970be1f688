//! Tests that damage to one user's data is reported and affects no other user.

use futures_util::FutureExt as _;
use mesa::{
    embedded::tables::memory::Memory,
    message::Seq,
    store::{Append, Limits, Overflow, RejectionReason, Store, StoreError},
};

use crate::support::{
    ALL, FLUSH_AT_ONCE, HOUR, Location, OpenOptions, acknowledge, advance_clock, append, message, read, user,
    wait_until, wait_until_flushed,
};

/// Checks that entries of another user are appended, flushed, read and trimmed.
async fn assert_other_user_is_served(store: &dyn Store, tables: &Memory, n: u64) {
    let seq = append(store, n, &["b"]).await.unwrap()[0];
    wait_until_flushed(store, "b").await;
    assert_eq!(read(store, "b", seq - 1), [(seq, n)]);
    acknowledge(store, "b", 1, seq);
    wait_until("the blocks of the other user are removed", || tables.blocks_of("b") == 0).await;
    assert!(store.failure().now_or_never().is_none(), "the store has not failed");
}

fn names_user_a(error: &StoreError) -> bool {
    matches!(error, StoreError::Damaged(reason) if reason.contains("\"a\""))
}

// covers: G6
#[tokio::test]
async fn damaged_block_affects_only_its_user() {
    for overflow in [Overflow::Reject, Overflow::DropOldest] {
        let tables = Memory::default();
        let limits = Limits { messages: 6, overflow, ..Limits::default() };
        let options = OpenOptions { limits, ..OpenOptions::default() };
        let store = Location::Memory(tables.clone()).open_with(FLUSH_AT_ONCE, &options);
        for n in 1..=4 {
            let ttl = (n == 4).then_some(HOUR);
            store.append(Append { ttl, ..Append::new(message(n), vec![user("a")]) }).await.unwrap();
            wait_until_flushed(&*store, "a").await;
        }
        assert!(tables.damage_block("a"));
        let error = store.read(&user("a"), 0, ALL).unwrap_err();
        assert!(names_user_a(&error), "{error}");
        assert_other_user_is_served(&*store, &tables, 1).await;
        // Expiry of a later entry, and eviction for new ones, skip the damaged block.
        advance_clock(&options, 2);
        wait_until("the last entry expires", || store.state(&user("a")).unwrap().pending <= 3).await;
        for n in 5..=12 {
            let seqs = store.append(Append::new(message(n), vec![user("a")])).await.unwrap().seqs;
            assert!(
                seqs[0].is_ok() || overflow == Overflow::Reject && seqs[0] == Err(RejectionReason::Quota),
                "{seqs:?}"
            );
        }
        assert_other_user_is_served(&*store, &tables, 2).await;
        store.clear(&user("a")).await.unwrap();
        wait_until("the damaged block is removed by the clear", || tables.blocks_of("a") == 0).await;
        let seq = append(&*store, 13, &["a"]).await.unwrap()[0];
        assert_eq!(read(&*store, "a", 0), [(seq, 13)], "the user is served again after the clear");
        store.close().await.unwrap();
    }
}

#[tokio::test]
async fn damaged_block_is_removed_once_acknowledged() {
    let tables = Memory::default();
    let store = Location::Memory(tables.clone()).open(FLUSH_AT_ONCE);
    let last: Seq = append(&*store, 1, &["a"]).await.unwrap()[0];
    wait_until_flushed(&*store, "a").await;
    assert!(tables.damage_block("a"));
    acknowledge(&*store, "a", 1, last);
    wait_until("the block is removed", || tables.blocks_of("a") == 0).await;
    assert_eq!(read(&*store, "a", 0), []);
}

// covers: G6
#[tokio::test]
async fn damaged_row_affects_only_its_user() {
    let tables = Memory::default();
    let location = Location::Memory(tables.clone());
    let store = location.open(FLUSH_AT_ONCE);
    append(&*store, 1, &["a"]).await.unwrap();
    wait_until_flushed(&*store, "a").await;
    store.close().await.unwrap();
    drop(store);
    assert!(tables.damage_row("a"));
    let store = location.open(FLUSH_AT_ONCE);
    let error = store.read(&user("a"), 0, ALL).unwrap_err();
    assert!(names_user_a(&error), "{error}");
    assert!(store.attach(&user("a"), None).is_err() && store.state(&user("a")).is_err());
    let both = store.append(Append::new(message(2), vec![user("a"), user("b")])).await.unwrap().seqs;
    assert_eq!(both, [Err(RejectionReason::Damaged), Ok(1)]);
    wait_until("both users are listed", || store.users(None, 10).unwrap().len() == 2).await;
    let listed = store.users(None, 10).unwrap();
    assert!(listed[0].1.as_ref().is_err_and(names_user_a), "{listed:?}");
    assert!(listed[1].1.as_ref().is_ok_and(|state| state.pending == 1), "{listed:?}");
    acknowledge(&*store, "a", 1, 1);
    let cleared = store.clear(&user("a")).await;
    assert!(cleared.as_ref().is_err_and(names_user_a), "{cleared:?}");
    assert_other_user_is_served(&*store, &tables, 3).await;
    assert_eq!(store.clear(&user("b")).await.unwrap(), 0);
    store.close().await.unwrap();
}
