//! Fills a disk with messages. The server must reject dispatches before the disk is full, and accept them again without
//! a restart when there is space.

use std::time::Duration;

use serde_json::Value;

use crate::{
    client::Client,
    env,
    small_disk::{MIB, bytes_in},
    small_disk_server::{clear, connect, create_home, not_ready_reason, pending, try_dispatch},
    support::{current_thread_runtime, http::Http, server::Server, wait::block_until_within},
    tracker::Tracker,
};

/// Size of the disk.
const DISK_BYTES: u64 = 320 * MIB;

/// Space that the server leaves free (`store.minFree`).
const MIN_FREE: u64 = 128 * MIB;

/// Size of another process's file.
const FILLER_BYTES: u64 = 64 * MIB;

/// Bytes of a message. What is dispatched within 100 ms is far less than `MIN_FREE`.
const MESSAGE_BYTES: usize = 30_000;

/// Users that are dispatched to in turn, so that none reaches its quota.
const USERS: usize = 5;

/// Time within which the server must have space again. Entries are flushed 10 s after they were answered.
const SPACE_TIMEOUT: Duration = Duration::from_secs(40);

fn users(round: usize) -> Vec<String> {
    (0..USERS).map(|n| format!("round-{round}-user-{n}")).collect()
}

/// Dispatches until the server rejects a dispatch with 507. Returns what was dispatched.
fn dispatch_until_full(http: &mut Http, users: &[String]) -> Tracker {
    let mut tracker = Tracker::default();
    for user in users.iter().cycle().take(DISK_BYTES as usize / MESSAGE_BYTES * 2) {
        match tracker.dispatch_padded(http, user, MESSAGE_BYTES).expect("a response") {
            200 => {}
            507 => return tracker,
            status => panic!("expected status 200 or 507 for a dispatch, found {status}"),
        }
    }
    panic!("expected 507 before twice the size of the disk was accepted: {} messages", tracker.answered());
}

/// Checks that a full server rejects dispatches with a reason, and delivers what it has.
fn check_rejects_and_delivers(server: &Server, http: &mut Http, tracker: &Tracker, reader: &str) {
    let (status, response) = try_dispatch(http);
    let response: Value = serde_json::from_str(&response).expect("JSON");
    assert_eq!((status, &response["error"]["code"]), (507, &Value::from("full")), "{response}");
    let reason = response["error"]["message"].as_str().expect("a message").to_owned();
    assert!(reason.contains("store.minFree"), "{reason}");
    let reason = not_ready_reason(http).expect("the server is not ready");
    assert!(reason.contains("store.minFree"), "{reason}");

    tracker.check(http).expect("every answered message");
    let log = crate::tracker::read_log(http, reader);
    let runtime = current_thread_runtime();
    runtime.block_on(async {
        let mut client = Client::connect(server.address, reader).await.expect("a connection");
        let numbers = client.read_until_message(log.last().expect("a message").1).await.expect("every message");
        assert_eq!(numbers, log.iter().map(|(_, n)| *n).collect::<Vec<_>>());
        // The server requests an acknowledgement after the messages.
        client.next(Duration::from_secs(10)).await;
        block_until_within(SPACE_TIMEOUT, "every message of the reader is acknowledged", || pending(http, reader) == 0);
    });
}

// covers: G1, G4
#[test]
fn disk_filled_by_messages_rejects_dispatches_until_space_is_freed() {
    let Some((home, disk)) = create_home(DISK_BYTES, &format!("store: {{ minFree: {MIN_FREE} }}")) else { return };
    assert_eq!(disk.create_filler(FILLER_BYTES), FILLER_BYTES);
    let server = home.start();
    let mut http = connect(&server);
    let rounds = env::repetitions(2, 12);
    let (mut results, mut answered) = (Vec::new(), 0);
    for round in 0..rounds {
        let users = users(round);
        let tracker = dispatch_until_full(&mut http, &users);
        let accepted = tracker.answered();
        assert!(accepted > 100, "expected more than 100 accepted messages in round {round}, found {accepted}");
        check_rejects_and_delivers(&server, &mut http, &tracker, &users[0]);
        results.push(format!("{accepted}, {}", bytes_in(&home.store()) / MIB));
        answered += accepted;
        users.iter().for_each(|user| clear(&mut http, user));
        block_until_within(SPACE_TIMEOUT, "the store has space", || not_ready_reason(&mut http).is_none());
    }
    let (users, more_users) = (users(rounds), users(rounds + 1));
    let before = dispatch_until_full(&mut http, &users);
    disk.remove_filler();
    block_until_within(SPACE_TIMEOUT, "the disk has space", || not_ready_reason(&mut http).is_none());
    let after = dispatch_until_full(&mut http, &more_users);
    assert!(after.answered() > 100, "expected more than 100 accepted messages, found {}", after.answered());
    server.process.kill();
    let server = home.start();
    let mut http = connect(&server);
    for tracker in [&before, &after] {
        tracker.check(&mut http).expect("every answered message");
        answered += tracker.answered();
    }
    server.process.kill();
    env::print(&format!(
        "a full disk: {answered} dispatches answered and kept, in {rounds} rounds (dispatches, MiB of store): {}",
        results.join("; ")
    ));
}
