//! Tests idempotency: repeated appends with the same id, and their stored result.

use std::time::Duration;

use mesa::{
    embedded::Tuning,
    message::DispatchId,
    store::{Append, Idempotency, Limits, Rejected, RejectionReason},
};

use crate::support::{
    FLUSH_AT_ONCE, FLUSH_NEVER, HOUR, Location, acknowledge, advance_clock, append, append_one, message, open_options,
    read, reopen, user, wait_until_flushed,
};

fn with_id(n: u64, users: &[&str]) -> Append {
    let rejected = vec![Rejected { user: "not a user".into(), reason: RejectionReason::Invalid }];
    let online = vec![true, false];
    let idempotency = Idempotency { id: DispatchId::new("order 66").unwrap(), online, rejected };
    Append { idempotency: Some(idempotency), ..Append::new(message(n), users.iter().map(|id| user(id)).collect()) }
}

// covers: G2
#[tokio::test]
async fn append_with_repeated_id_returns_the_first_result_within_the_window() {
    for location in Location::all() {
        for tuning in [FLUSH_NEVER, FLUSH_AT_ONCE] {
            let location = location.another();
            let options = open_options(Limits { messages: 1, ids_window: 10 * HOUR, ..Limits::default() });
            let mut store = location.open_with(tuning, &options);
            append(&*store, 1, &["full"]).await.unwrap();
            let first = append_one(&*store, with_id(2, &["a", "full"])).await;
            assert_eq!((first.duplicate, &first.seqs[..]), (false, &[Ok(1), Err(RejectionReason::Quota)][..]));
            let summary = first.summary.unwrap();
            assert_eq!((summary.recipients, summary.online, summary.offline), (3, 1, 0));
            let rejected: Vec<_> = summary.rejected.iter().map(|one| (&*one.user, one.reason)).collect();
            assert_eq!(rejected, [("not a user", RejectionReason::Invalid), ("full", RejectionReason::Quota)]);
            for round in 0..3 {
                if tuning.flush_delay.is_zero() {
                    wait_until_flushed(&*store, "a").await;
                }
                // A new append would now be accepted.
                acknowledge(&*store, "full", 1, 1);
                let repeat = append_one(&*store, Append { payload: message(9), ..with_id(9, &["a", "full"]) }).await;
                assert_eq!((repeat.duplicate, repeat.seqs.len(), repeat.summary), (true, 0, Some(summary.clone())));
                assert_eq!(read(&*store, "a", 0), [(1, 2)], "round {round}");
                assert_eq!(store.state(&user("full")).unwrap().head, 1);
                advance_clock(&options, 3);
                if round < 2 {
                    store = reopen(store, &location, tuning, &options).await;
                }
            }
            advance_clock(&options, 2);
            acknowledge(&*store, "a", 1, 1);
            let later = append_one(&*store, with_id(3, &["a", "full"])).await;
            assert_eq!(
                (later.duplicate, later.seqs),
                (false, vec![Ok(2), Ok(2)]),
                "expected a new append after the window"
            );
        }
    }
}

/// The rejected users of the result are in several records, and a flush may move only some of these.
#[tokio::test]
async fn result_with_two_thousand_rejected_users_is_unchanged_after_a_partial_flush() {
    let location = Location::Memory(mesa::embedded::tables::memory::Memory::default());
    let options = open_options(Limits { ids_window: 10 * HOUR, ..Limits::default() });
    let tuning = Tuning { wal_bytes_max: 150 << 10, ..FLUSH_NEVER };
    let store = location.open_with(tuning, &options);
    let rejected: Vec<_> = (0..2000)
        .map(|n| Rejected { user: format!("{n}{}", "x".repeat(96)).into(), reason: RejectionReason::Invalid })
        .collect();
    let append = || {
        let id = DispatchId::new("order 67").unwrap();
        let idempotency = Idempotency { id, online: vec![true], rejected: rejected.clone() };
        Append { idempotency: Some(idempotency), ..Append::new(message(1), vec![user("a")]) }
    };
    let first = append_one(&*store, append()).await.summary.unwrap();
    assert_eq!(first.rejected.len(), 2000);
    // A part is flushed, because the write-ahead log exceeds its limit.
    wait_until_flushed(&*store, "a").await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let store = reopen(store, &location, tuning, &options).await;
    let repeat = append_one(&*store, append()).await;
    assert!(repeat.duplicate);
    assert_eq!(repeat.summary.unwrap().rejected.len(), first.rejected.len());
}

/// A recipient that is not a valid user id may be as long as a request.
#[tokio::test]
async fn rejected_user_of_any_length_is_stored_with_the_result() {
    let with_rejected = |id: &str, rejected: Vec<Rejected>| {
        let idempotency = Idempotency { id: DispatchId::new(id).unwrap(), online: vec![true], rejected };
        Append { idempotency: Some(idempotency), ..Append::new(message(1), vec![user("a")]) }
    };
    let invalid = |bytes: usize| Rejected { user: "x".repeat(bytes).into(), reason: RejectionReason::Invalid };
    for location in Location::all() {
        let options = open_options(Limits::default());
        let store = location.open_with(FLUSH_NEVER, &options);
        append_one(&*store, with_rejected("order 68", (0..250).map(|_| invalid(100)).collect())).await;
        // The longest that fits into a request.
        append_one(&*store, with_rejected("order 69", vec![invalid(1_040_000)])).await;
        let store = reopen(store, &location, FLUSH_AT_ONCE, &options).await;
        wait_until_flushed(&*store, "a").await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        let store = reopen(store, &location, FLUSH_NEVER, &options).await;
        append(&*store, 2, &["a"]).await.unwrap();
    }
}
