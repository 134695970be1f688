//! Tests the capacity of the whole store.

use std::time::Duration;

use mesa::{
    embedded::Tuning,
    message::{Payload, Seq},
    store::{Append, Limits, RejectionReason, Store, StoreError},
};

use crate::support::{
    ALL, FLUSH_AT_LIMIT, FLUSH_AT_ONCE, HOUR, Location, acknowledge, advance_clock, append, append_one,
    append_when_accepted, message, open_options, reopen, sized, user, wait_until, wait_until_flushed,
};

/// Appends messages to three users in turn until the store is full; returns the error.
async fn fill_up(store: &dyn Store) -> StoreError {
    let large = format!("\"{}\"", "x".repeat(20_000));
    for n in 0..2_000 {
        let payload = Payload::encode(0, Some(&large), None).unwrap();
        // On a slow disk an append may have to wait for a flush for too long. That is not the capacity.
        loop {
            match store.append(Append::new(payload.clone(), vec![user(&format!("user-{}", n % 3))])).await {
                Ok(_) => break,
                Err(StoreError::Busy(_)) => {}
                Err(error) => return error,
            }
        }
    }
    panic!("expected an error above 1 MB, but 40 MB were accepted");
}

// covers: G4
#[tokio::test]
async fn full_store_rejects_appends_until_users_are_cleared_or_acknowledge() {
    for location in Location::embedded() {
        for tuning in [FLUSH_AT_LIMIT, FLUSH_AT_ONCE] {
            let options = open_options(Limits { store_bytes: Some(1 << 20), ..Limits::default() });
            let store = location.open_with(tuning, &options);
            // Entries of the previous run count until the store finds that no cursor needs them.
            append_when_accepted(&*store, &sized(0, 20_000), "user-1").await;
            for round in 0..3 {
                let error = fill_up(&*store).await;
                assert!(matches!(&error, StoreError::Full(reason) if reason.contains("store.maxBytes")), "{error}");
                assert_eq!(store.full_reason().map(StoreError::Full).unwrap().to_string(), error.to_string());
                assert!(matches!(append(&*store, 1, &["another"]).await, Err(StoreError::Full(_))));
                let has_entries = |id: &str| !store.read(&user(id), 0, ALL).unwrap().entries.is_empty();
                assert!(round > 0 || has_entries("user-1"), "a full store is still read");
                for id in ["user-0", "user-1", "user-2"] {
                    match round {
                        0 => _ = store.clear(&user(id)).await.unwrap(),
                        _ => acknowledge(&*store, id, 1, Seq::MAX),
                    }
                }
                wait_until("the store has capacity", || store.full_reason().is_none()).await;
                let seq = append(&*store, 2, &["another"]).await.unwrap();
                acknowledge(&*store, "another", 1, seq[0]);
            }
            store.close().await.unwrap();
        }
    }
}

#[tokio::test]
async fn acknowledged_messages_do_not_fill_the_store() {
    for location in Location::embedded() {
        let options = open_options(Limits { store_bytes: Some(2 << 20), ..Limits::default() });
        let store = location.open_with(FLUSH_AT_LIMIT, &options);
        let large = format!("\"{}\"", "x".repeat(20_000));
        for n in 0..1_000 {
            let payload = Payload::encode(0, Some(&large), None).unwrap();
            let appended = store.append(Append::new(payload, vec![user("a")])).await;
            let seq = appended.unwrap_or_else(|error| panic!("message {n}: {error}")).seqs[0].unwrap();
            acknowledge(&*store, "a", 1, seq);
        }
    }
}

#[tokio::test]
async fn full_store_rejects_the_first_append_after_it_was_opened() {
    for location in Location::embedded() {
        for tuning in [FLUSH_AT_LIMIT, FLUSH_AT_ONCE] {
            let options = open_options(Limits { store_bytes: Some(1 << 20), ..Limits::default() });
            let mut store = location.open_with(tuning, &options);
            fill_up(&*store).await;
            // Opening may free what a flush had not freed yet. Then the store has capacity, but less each time.
            let (mut accepted, mut rejected) = (0, 0);
            while rejected < 2 {
                store = reopen(store, &location, tuning, &options).await;
                match store.append(Append::new(sized(1, 20_000), vec![user("another")])).await {
                    Err(StoreError::Full(_)) => {
                        assert!(store.full_reason().is_some());
                        rejected += 1;
                    }
                    Ok(_) => (accepted, rejected) = (accepted + 1, 0),
                    // On a slow disk an append may have to wait for a flush for too long.
                    Err(StoreError::Busy(_)) => {}
                    Err(error) => panic!("{error}"),
                }
                assert!(accepted * 20_000 < 1 << 20, "{accepted} messages were accepted after opening a full store");
            }
            store.close().await.unwrap();
        }
    }
}

/// Each append scans the user's log for expired entries to remove, and is rejected nevertheless.
#[tokio::test]
async fn rejected_append_does_not_lower_the_usage_of_the_store() {
    let location = Location::Memory(mesa::embedded::tables::memory::Memory::default());
    let limits = Limits { bytes: 100 << 10, store_bytes: Some(1 << 20), ..Limits::default() };
    let options = open_options(limits);
    let store = location.open_with(Tuning { expiry_interval: HOUR, ..FLUSH_AT_ONCE }, &options);
    let to = |id: &str, bytes| Append::new(sized(1, bytes), vec![user(id)]);
    append_one(&*store, Append { ttl: Some(HOUR), ..to("a", 30_000) }).await;
    append_one(&*store, to("a", 60_000)).await;
    for n in 0..8 {
        append_one(&*store, to(&format!("b{n}"), 60_000)).await;
    }
    wait_until_flushed(&*store, "a").await;
    wait_until_flushed(&*store, "b7").await;
    advance_clock(&options, 2);
    for _ in 0..30 {
        assert_eq!(append_one(&*store, to("a", 60_000)).await.seqs, [Err(RejectionReason::Quota)]);
        // Leaves time for the user's log to leave the cache.
        tokio::time::sleep(Duration::from_millis(5)).await;
        append_one(&*store, Append::new(message(1), vec![user("c")])).await;
    }
    let mut bytes = 9 * 60_000;
    for n in 0..100 {
        if store.append(to(&format!("d{n}"), 60_000)).await.is_err() {
            break;
        }
        bytes += 60_000;
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
    assert!(bytes < 1_200_000, "expected less than 1,200,000 bytes, but {bytes} were accepted");
}
