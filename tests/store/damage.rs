//! Damage to what is stored of one user harms that user alone, and is told.

use std::time::Duration;

use futures_util::FutureExt as _;
use mesa::{
    embedded::tables::memory::Memory,
    message::Seq,
    store::{Append, Limits, Overflow, Reason, Store, StoreError},
};

use crate::support::{ALL, AT_ONCE, Opening, Place, append, message, read, receive, until, user};

async fn in_the_inbox(store: &dyn Store, id: &str) {
    until("the journal to be settled", || store.read_cached(&user(id), 0, ALL).is_none()).await;
}

/// Other users are read, sent to, settled and trimmed as ever.
async fn others_are_served(store: &dyn Store, tables: &Memory, n: u64) {
    let seq = append(store, n, &["b"]).await.unwrap()[0];
    in_the_inbox(store, "b").await;
    assert_eq!(read(store, "b", seq - 1), [(seq, n)]);
    receive(store, "b", 1, seq);
    until("the other's chunks to go", || tables.blocks_of("b") == 0).await;
    assert!(store.failure().now_or_never().is_none(), "the store goes on");
}

fn told(error: &StoreError) -> bool {
    matches!(error, StoreError::Damaged(what) if what.contains("\"a\""))
}

#[tokio::test]
async fn a_damaged_chunk_harms_its_user_and_nobody_else() {
    for overflow in [Overflow::Reject, Overflow::DropOldest] {
        let tables = Memory::default();
        let limits = Limits { messages: 6, overflow, ..Limits::default() };
        let opening = Opening { limits, ..Opening::default() };
        let store = Place::Memory(tables.clone()).open_with(AT_ONCE, &opening);
        for n in 1..=4 {
            let ttl = (n == 4).then_some(Duration::from_secs(3600));
            store.append(Append { ttl, ..Append::new(message(n), vec![user("a")]) }).await.unwrap();
            in_the_inbox(&*store, "a").await;
        }
        assert!(tables.damage_block("a"));
        let error = store.read(&user("a"), 0, ALL).unwrap_err();
        assert!(told(&error), "{error}");
        others_are_served(&*store, &tables, 1).await;
        // What expires beside it, and what is to make room for more, lead past the damage.
        opening.ahead_ms.fetch_add(2 * 3_600_000, std::sync::atomic::Ordering::Relaxed);
        until("the last to expire", || store.state(&user("a")).unwrap().pending <= 3).await;
        for n in 5..=12 {
            let seqs = store.append(Append::new(message(n), vec![user("a")])).await.unwrap().seqs;
            assert!(seqs[0].is_ok() || overflow == Overflow::Reject && seqs[0] == Err(Reason::Quota), "{seqs:?}");
        }
        others_are_served(&*store, &tables, 2).await;
        store.clear(&user("a")).await.unwrap();
        until("the damage to be cleared with the rest", || tables.blocks_of("a") == 0).await;
        let seq = append(&*store, 13, &["a"]).await.unwrap()[0];
        assert_eq!(read(&*store, "a", 0), [(seq, 13)], "from then on the user is served again");
        store.close().await.unwrap();
    }
}

#[tokio::test]
async fn a_damaged_chunk_that_everybody_has_received_goes_with_the_rest() {
    let tables = Memory::default();
    let store = Place::Memory(tables.clone()).open(AT_ONCE);
    let last: Seq = append(&*store, 1, &["a"]).await.unwrap()[0];
    in_the_inbox(&*store, "a").await;
    assert!(tables.damage_block("a"));
    receive(&*store, "a", 1, last);
    until("it to go", || tables.blocks_of("a") == 0).await;
    assert_eq!(read(&*store, "a", 0), []);
}

#[tokio::test]
async fn a_damaged_row_harms_its_user_and_nobody_else() {
    let tables = Memory::default();
    let place = Place::Memory(tables.clone());
    let store = place.open(AT_ONCE);
    append(&*store, 1, &["a"]).await.unwrap();
    in_the_inbox(&*store, "a").await;
    store.close().await.unwrap();
    drop(store);
    assert!(tables.damage_row("a"));
    let store = place.open(AT_ONCE);
    let error = store.read(&user("a"), 0, ALL).unwrap_err();
    assert!(told(&error), "{error}");
    assert!(store.attach(&user("a"), None).is_err() && store.state(&user("a")).is_err());
    let both = store.append(Append::new(message(2), vec![user("a"), user("b")])).await.unwrap().seqs;
    assert_eq!(both, [Err(Reason::Damaged), Ok(1)]);
    until("both to be listed", || store.users(None, 10).unwrap().len() == 2).await;
    let listed = store.users(None, 10).unwrap();
    assert!(listed[0].1.as_ref().is_err_and(told), "{listed:?}");
    assert!(listed[1].1.as_ref().is_ok_and(|state| state.pending == 1), "{listed:?}");
    receive(&*store, "a", 1, 1);
    let cleared = store.clear(&user("a")).await;
    assert!(cleared.as_ref().is_err_and(told), "{cleared:?}");
    others_are_served(&*store, &tables, 3).await;
    assert_eq!(store.clear(&user("b")).await.unwrap(), 0);
    store.close().await.unwrap();
}
