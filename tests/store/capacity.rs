//! Capacity of the store as a whole.

use std::time::Duration;

use mesa::{
    embedded::Tuning,
    message::{Payload, Seq},
    store::{Append, Limits, Reason, Store, StoreError},
};

use crate::{
    limits::{HOUR, PRESSED, again, in_the_inbox, later, opening, put, sized},
    support::{ALL, AT_ONCE, Place, append, message, receive, until, until_taken, user},
};

/// Fills the store to its bound, with messages to one user after the other.
async fn fill_up(store: &dyn Store) -> StoreError {
    let large = format!("\"{}\"", "x".repeat(20_000));
    for n in 0..2_000 {
        let payload = Payload::encode(0, Some(&large), None).unwrap();
        if let Err(error) = store.append(Append::new(payload, vec![user(&format!("user-{}", n % 3))])).await {
            return error;
        }
    }
    panic!("40 MB were taken where 1 MB is allowed");
}

#[tokio::test]
async fn a_store_that_is_full_refuses_and_takes_again_when_users_were_cleared() {
    for place in Place::embedded() {
        for tuning in [PRESSED, AT_ONCE] {
            let opening = opening(Limits { store_bytes: Some(1 << 20), ..Limits::default() });
            let store = place.open_with(tuning, &opening);
            // What is there from before counts until it is found that nobody needs it.
            until_taken(&*store, &sized(0, 20_000), "user-1").await;
            for round in 0..3 {
                let error = fill_up(&*store).await;
                assert!(matches!(&error, StoreError::Full(why) if why.contains("store.maxBytes")), "{error}");
                assert_eq!(store.full_reason().map(StoreError::Full).unwrap().to_string(), error.to_string());
                assert!(matches!(append(&*store, 1, &["another"]).await, Err(StoreError::Full(_))));
                let there = |id: &str| !store.read(&user(id), 0, ALL).unwrap().entries.is_empty();
                assert!(round > 0 || there("user-1"), "what is there is read");
                for id in ["user-0", "user-1", "user-2"] {
                    match round {
                        0 => _ = store.clear(&user(id)).await.unwrap(),
                        _ => receive(&*store, id, 1, Seq::MAX),
                    }
                }
                until("room", || store.full_reason().is_none()).await;
                let seq = append(&*store, 2, &["another"]).await.unwrap();
                receive(&*store, "another", 1, seq[0]);
            }
            store.close().await.unwrap();
        }
    }
}

#[tokio::test]
async fn what_was_received_long_ago_does_not_fill_the_store() {
    for place in Place::embedded() {
        let opening = opening(Limits { store_bytes: Some(2 << 20), ..Limits::default() });
        let store = place.open_with(PRESSED, &opening);
        let large = format!("\"{}\"", "x".repeat(20_000));
        for n in 0..1_000 {
            let payload = Payload::encode(0, Some(&large), None).unwrap();
            let appended = store.append(Append::new(payload, vec![user("a")])).await;
            let seq = appended.unwrap_or_else(|error| panic!("message {n}: {error}")).seqs[0].unwrap();
            receive(&*store, "a", 1, seq);
        }
    }
}

/// "Whoever opens a store that is full is told so by its first answer."
#[tokio::test]
async fn a_store_that_is_full_says_so_by_its_first_answer_after_it_was_opened() {
    let place = Place::Memory(mesa::embedded::tables::memory::Memory::default());
    let opening = opening(Limits { store_bytes: Some(1 << 20), ..Limits::default() });
    let store = place.open_with(PRESSED, &opening);
    fill_up(&*store).await;
    let store = again(store, &place, PRESSED, &opening).await;
    let told = store.append(Append::new(sized(1, 20_000), vec![user("another")])).await;
    assert!(matches!(told, Err(StoreError::Full(_))), "{told:?}");
    assert!(store.full_reason().is_some());
}

/// An inbox that is gone through for a message that is refused all the same, again and again.
#[tokio::test]
async fn refusing_a_message_does_not_make_the_store_look_emptier() {
    let place = Place::Memory(mesa::embedded::tables::memory::Memory::default());
    let limits = Limits { bytes: 100 << 10, store_bytes: Some(1 << 20), ..Limits::default() };
    let opening = opening(limits);
    let store = place.open_with(Tuning { expiry_interval: HOUR, ..AT_ONCE }, &opening);
    let to = |id: &str, bytes| Append::new(sized(1, bytes), vec![user(id)]);
    put(&*store, Append { ttl: Some(HOUR), ..to("a", 30_000) }).await;
    put(&*store, to("a", 60_000)).await;
    for n in 0..8 {
        put(&*store, to(&format!("b{n}"), 60_000)).await;
    }
    in_the_inbox(&*store, "a").await;
    in_the_inbox(&*store, "b7").await;
    later(&opening, 2);
    for _ in 0..30 {
        assert_eq!(put(&*store, to("a", 60_000)).await.seqs, [Err(Reason::Quota)]);
        // Time for the log to leave memory.
        tokio::time::sleep(Duration::from_millis(5)).await;
        put(&*store, Append::new(message(1), vec![user("c")])).await;
    }
    let mut bytes = 9 * 60_000;
    for n in 0..100 {
        if store.append(to(&format!("d{n}"), 60_000)).await.is_err() {
            break;
        }
        bytes += 60_000;
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
    assert!(bytes < 1_200_000, "{bytes} bytes were taken where {} are allowed", 1 << 20);
}
