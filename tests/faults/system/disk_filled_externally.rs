//! Fills the disk of a server with another process's data.
//!
//! Some tests dispatch messages that need more space after their flush than when they are answered. The server
//! must stay, deliver what it has, reject dispatches with 507, and accept them again when there is space.

use std::{
    path::Path,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use serde_json::json;

use crate::{
    client::{Client, Event},
    env,
    small_disk::{MIB, SmallDisk, bytes_in},
    small_disk_server::{
        clear, connect, create_early_flush_home, fill_until_reported, not_ready_reason, pending, try_dispatch,
        wait_until_ready,
    },
    support::{
        current_thread_runtime,
        http::Http,
        server::{Home, Server},
        wait::{WAIT_TIMEOUT, block_until},
    },
    tracker::Tracker,
};

/// Bytes of a message.
const MESSAGE_BYTES: usize = 30_000;

/// Time for which a server on a full disk is observed. It attempts a flush every 100 ms.
const FULL_DELAY: Duration = Duration::from_secs(2);

/// Receives and acknowledges every pending message of a user.
fn receive_all(server: &Server, http: &mut Http, user: &str) {
    let log = crate::tracker::read_log(http, user);
    let runtime = current_thread_runtime();
    runtime.block_on(async {
        let mut client = Client::connect(server.address, user).await.expect("a connection");
        let numbers = client.read_until_message(log.last().expect("a message").1).await.expect("every message");
        assert_eq!(numbers, log.iter().map(|(_, n)| *n).collect::<Vec<_>>());
        // The server requests an acknowledgement after the messages.
        let end = Instant::now() + WAIT_TIMEOUT;
        while pending(http, user) > 0 {
            assert!(Instant::now() < end, "expected every message to be acknowledged within {WAIT_TIMEOUT:?}");
            client.next(Duration::from_millis(20)).await;
        }
    });
}

/// Checks that a server on a full disk delivers, and rejects dispatches.
///
/// The rejections are checked during several attempts to flush.
fn check_delivers_and_rejects(disk: &SmallDisk, server: &Server, http: &mut Http, tracker: &Tracker, reader: &str) {
    fill_until_reported(disk, http);
    let (status, response) = try_dispatch(http);
    assert_eq!((status, response.contains("\"full\"")), (507, true), "{response}");
    tracker.check(http).expect("every answered message");
    receive_all(server, http, reader);
    let end = Instant::now() + FULL_DELAY;
    while Instant::now() < end {
        assert_eq!(try_dispatch(http).0, 507);
        thread::sleep(Duration::from_millis(50));
    }
}

// covers: G1, G4
#[test]
fn idle_server_when_disk_is_filled_delivers_and_resumes_without_restart() {
    let Some((home, disk)) = create_early_flush_home(128 * MIB, "store: { minFree: 4194304 }") else { return };
    let mut server = home.start();
    let mut http = connect(&server);
    let mut tracker = Tracker::default();
    for round in 0..env::repetitions(2, 8) {
        let users = [format!("reader-{round}"), format!("offline-{round}")];
        for user in users.iter().cycle().take(20) {
            assert_eq!(tracker.dispatch_padded(&mut http, user, MESSAGE_BYTES).expect("a response"), 200);
        }
        check_delivers_and_rejects(&disk, &server, &mut http, &tracker, &users[0]);
        let mut before = Tracker::default();
        std::mem::swap(&mut before, &mut tracker);
        if round % 2 == 1 {
            // A server that starts on a full disk must deliver and reject too.
            server.process.kill();
            disk.fill();
            server = home.start();
            http = connect(&server);
            fill_until_reported(&disk, &mut http);
            assert_eq!(try_dispatch(&mut http).0, 507);
            before.check_user(&mut http, &users[1]).expect("every answered message");
        }
        disk.remove_filler();
        wait_until_ready(&mut http);
        assert_eq!(tracker.dispatch_padded(&mut http, &format!("after-{round}"), 100).expect("a response"), 200);
        before.check_user(&mut http, &users[1]).expect("every answered message");
    }
    assert!(!home.log().contains("panicked"), "{}", home.log());
    server.process.kill();
    let server = home.start();
    tracker.check(&mut connect(&server)).expect("every answered message");
}

// covers: G1
#[test]
fn server_under_load_when_disk_is_filled_repeatedly_stays_and_keeps_messages() {
    let Some((home, disk)) = create_early_flush_home(128 * MIB, "store: { minFree: 0 }") else { return };
    let server = home.start();
    fill_under_load(&home, &disk, server);
}

/// Fills the disk repeatedly while three backends dispatch. The server must stay and keep every answered message.
pub fn fill_under_load(home: &Home, disk: &SmallDisk, server: Server) {
    let (stop, rejected, accepted) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
    let tracker = thread::scope(|scope| {
        let backends: Vec<_> = (0..3)
            .map(|backend| {
                let (stop, rejected, accepted) = (&stop, &rejected, &accepted);
                let server = &server;
                scope.spawn(move || {
                    let (mut http, mut tracker) = (connect(server), Tracker::default());
                    for n in 0.. {
                        if stop.load(Ordering::Relaxed) {
                            break;
                        }
                        let user = format!("backend-{backend}-user-{}", n % 7);
                        match tracker.dispatch_padded(&mut http, &user, if n % 3 == 0 { 3_000 } else { 50 }) {
                            Ok(200) => _ = accepted.fetch_add(1, Ordering::Relaxed),
                            Ok(507) => {
                                rejected.fetch_add(1, Ordering::Relaxed);
                                thread::sleep(Duration::from_millis(5));
                            }
                            other => panic!("expected status 200 or 507 for a dispatch, found {other:?}"),
                        }
                        thread::sleep(Duration::from_millis(1));
                    }
                    tracker
                })
            })
            .collect();
        let mut http = connect(&server);
        for _ in 0..env::repetitions(3, 20) {
            let before = accepted.load(Ordering::Relaxed);
            block_until("dispatches are accepted", || accepted.load(Ordering::Relaxed) > before + 50);
            let before = rejected.load(Ordering::Relaxed);
            disk.fill();
            block_until("dispatches are rejected", || {
                disk.fill();
                rejected.load(Ordering::Relaxed) > before
            });
            fill_until_reported(disk, &mut http);
            disk.remove_filler();
            wait_until_ready(&mut http);
        }
        stop.store(true, Ordering::Relaxed);
        let mut all = Tracker::default();
        backends.into_iter().for_each(|backend| all.merge(backend.join().expect("the backend does not panic")));
        all
    });
    let mut http = connect(&server);
    tracker.check(&mut http).expect("every answered message");
    server.stop(WAIT_TIMEOUT);
    let server = home.start();
    tracker.check(&mut connect(&server)).expect("every answered message");
    env::print(&format!(
        "a disk filled by another process under load: {} dispatches accepted, {} rejected",
        accepted.load(Ordering::Relaxed),
        rejected.load(Ordering::Relaxed)
    ));
}

/// Dispatches one message to a number of users, and returns the status.
fn fan_out(http: &mut Http, bytes: usize, name: &str, users: usize) -> u16 {
    let recipients: Vec<_> = (0..users).map(|n| format!("{name}-{n}")).collect();
    let body = json!({"message": {"op": 0, "d": {"n": 0, "x": "x".repeat(bytes)}, "t": "T"}, "recipients": recipients});
    http.call("POST", "/v1/dispatch", &body.to_string()).expect("a response").0
}

/// Dispatches a message of its own to each of some users, and returns the first status that is not 200.
///
/// The value log has a body that several logs share once, and these bodies once for each user.
fn dispatch_each(http: &mut Http, bytes: usize, name: &str, users: usize) -> u16 {
    let dispatch = |n| {
        let body = json!({"message": {"op": 0, "d": {"n": 0, "x": "x".repeat(bytes)}, "t": "T"}, "recipients": [format!("{name}-{n}")]});
        http.call("POST", "/v1/dispatch", &body.to_string()).expect("a response").0
    };
    (0..users).map(dispatch).find(|status| *status != 200).unwrap_or(200)
}

/// Bytes of a message that is too small to be shared: each log has a copy.
const SMALL_BYTES: usize = 900;

/// Waits until the value log has this number of bytes: every entry has been flushed.
fn wait_until_flushed(value_log: &Path, bytes: u64) {
    block_until("every entry is flushed", || bytes_in(value_log) >= bytes);
}

#[test]
fn fan_out_that_would_not_fit_after_flush_is_rejected() {
    let Some((home, disk)) =
        create_early_flush_home(160 * MIB, "store: { minFree: 33554432 }, limits: { recipients: 60000 }")
    else {
        return;
    };
    let server = home.start();
    let mut http = connect(&server);
    // 57 MiB, of about 100 MiB that are free.
    let users = 55_000;
    assert_eq!(fan_out(&mut http, SMALL_BYTES, "first", users), 200);
    assert_eq!(fan_out(&mut http, SMALL_BYTES, "second", users), 507);
    assert_eq!(not_ready_reason(&mut http), None, "expected the server to be ready for smaller dispatches");
    assert_eq!(try_dispatch(&mut http).0, 200);
    // The reserved space must be known again after a crash.
    server.process.kill();
    let server = home.start();
    let mut http = connect(&server);
    assert_eq!(fan_out(&mut http, SMALL_BYTES, "third", users), 507);
    wait_until_flushed(&disk.0.join("store/value-log"), (users * SMALL_BYTES) as u64);
    assert_eq!(fan_out(&mut http, SMALL_BYTES, "fourth", users), 507);
    assert_eq!(try_dispatch(&mut http).0, 200);
    for n in [0, 500, 999] {
        assert_eq!(pending(&mut http, &format!("first-{n}")), 1);
    }
}

#[test]
fn fan_outs_above_max_bytes_are_rejected() {
    let settings = "store: { minFree: 0, maxBytes: 10000000 }";
    let Some((home, disk)) = create_early_flush_home(160 * MIB, settings) else { return };
    let server = home.start();
    let mut http = connect(&server);
    let users = 2_700;
    let statuses: Vec<_> = (0..6).map(|n| fan_out(&mut http, SMALL_BYTES, &format!("round-{n}"), users)).collect();
    // Three fan-outs of 3 MB fit.
    assert_eq!(statuses, [200, 200, 200, 507, 507, 507]);
    let value_log = disk.0.join("store/value-log");
    wait_until_flushed(&value_log, (3 * users * SMALL_BYTES) as u64);
    assert!(bytes_in(&value_log) < 10_000_000, "{}", bytes_in(&value_log));
    assert_eq!(fan_out(&mut http, SMALL_BYTES, "one-more", users), 507);
    assert_eq!(fan_out(&mut http, SMALL_BYTES, "smaller", users / 10), 200);
    // A body that all logs share counts once.
    assert_eq!(fan_out(&mut http, 50_000, "shared", 100), 200);
    for (user, entries) in [("round-0-0", 1), ("round-2-59", 1), ("smaller-14", 1), ("shared-99", 1)] {
        assert_eq!(pending(&mut http, user), entries);
    }
    // Acknowledged and deleted entries free their space.
    let runtime = current_thread_runtime();
    runtime.block_on(async {
        for n in 0..20 {
            let user = format!("round-0-{n}");
            let mut client = Client::connect(server.address, &user).await.expect("a connection");
            assert_eq!(client.next(WAIT_TIMEOUT).await, Event::Message(0));
            let end = Instant::now() + WAIT_TIMEOUT;
            while pending(&mut http, &user) > 0 {
                assert!(Instant::now() < end, "expected the message to be acknowledged within {WAIT_TIMEOUT:?}");
                client.next(Duration::from_millis(5)).await;
            }
        }
    });
    (20..users).for_each(|n| clear(&mut http, &format!("round-0-{n}")));
    block_until("removed entries do not count", || fan_out(&mut http, SMALL_BYTES, "last", users * 9 / 10) == 200);
}

/// Removed entries leave space in files that also have pending entries. On a full disk, compaction frees it early: long
/// before half of a file's entries are removed.
#[test]
fn full_disk_has_space_after_a_quarter_of_messages_was_deleted() {
    const USERS: usize = 4;
    const BYTES: usize = 30_000;
    let Some((home, disk)) = create_early_flush_home(96 * MIB, "store: { minFree: 16777216 }") else { return };
    let server = home.start();
    let mut http = connect(&server);
    let mut accepted = 0;
    while dispatch_each(&mut http, BYTES, &format!("round-{accepted}"), USERS) == 200 {
        accepted += 1;
    }
    let value_log = disk.0.join("store/value-log");
    wait_until_flushed(&value_log, (accepted * USERS * BYTES) as u64);
    let before = bytes_in(&value_log);
    (0..accepted).for_each(|round| clear(&mut http, &format!("round-{round}-0")));
    block_until("half of the deleted bytes are freed", || bytes_in(&value_log) < before / 8 * 7);
    wait_until_ready(&mut http);
    assert_eq!(dispatch_each(&mut http, BYTES, "after", USERS), 200);
    assert_eq!(pending(&mut http, "round-0-1"), 1);
}

/// `store.minFree` in the tests of the outbox.
const MIN_FREE: u64 = 16 * MIB;

/// Returns settings with a webhook whose backend does not listen.
fn unreachable_webhook() -> String {
    let webhook = "webhook: { url: 'http://127.0.0.1:9/', secret: 'sixteen-bytes-xx', allowPrivate: true, undeliveredAfter: 100 }";
    format!("store: {{ minFree: {MIN_FREE} }}, portal: {{ {webhook} }}")
}

/// Webhook events contain the message. They are background work, so the outbox must leave `store.minFree` free.
#[test]
fn outbox_of_unreachable_webhook_leaves_min_free() {
    let Some((home, disk)) = create_early_flush_home(160 * MIB, &unreachable_webhook()) else { return };
    let server = home.start();
    let mut http = connect(&server);
    // 55 MiB of messages. Their events are more than twice that, and do not fit.
    assert_eq!(dispatch_each(&mut http, 50_000, "offline", 1100), 200);
    wait_until_flushed(&disk.0.join("store/value-log"), 1100 * 50_000);
    let events = "mesa_webhook_outbox_events";
    block_until("the outbox has events", || http.metric(events) > 0);
    let end = Instant::now() + 2 * FULL_DELAY;
    while Instant::now() < end {
        let free = disk.free_bytes();
        assert!(free >= MIN_FREE, "expected at least {MIN_FREE} free bytes, found {free}");
        thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(not_ready_reason(&mut http), None);
    assert_eq!(try_dispatch(&mut http).0, 200);
    for n in 0..20 {
        clear(&mut http, &format!("offline-{n}"));
    }
    server.process.kill();
    let server = home.start();
    let mut http = connect(&server);
    assert_eq!(
        (not_ready_reason(&mut http), pending(&mut http, "offline-0"), pending(&mut http, "offline-20")),
        (None, 0, 1)
    );
}

/// A disk may permanently have little more than `store.minFree`. Dispatches are accepted there, so their events must be
/// too.
// covers: G4
#[test]
fn undelivered_events_are_recorded_with_little_more_than_min_free() {
    let Some((home, disk)) = create_early_flush_home(160 * MIB, &unreachable_webhook()) else { return };
    let server = home.start();
    let mut http = connect(&server);
    let events = |http: &mut Http| http.metric("mesa_webhook_outbox_events");
    // The first message makes the server create its files.
    assert_eq!(try_dispatch(&mut http).0, 200);
    block_until("the outbox has the first event", || events(&mut http) == 1);
    disk.create_filler(disk.free_bytes() - MIN_FREE - 6 * MIB);
    assert_eq!(try_dispatch(&mut http).0, 200);
    block_until("the outbox has the second event", || events(&mut http) == 2);
    let free = disk.free_bytes();
    assert!(free >= MIN_FREE, "expected at least {MIN_FREE} free bytes, found {free}");
}

/// A disk may have too little space from the start on.
#[test]
fn readiness_on_nearly_full_disk_agrees_with_dispatches() {
    for mib in [20, 24, 28, 32, 36, 40, 48] {
        let Some((home, _disk)) = create_early_flush_home(mib * MIB, "store: { minFree: 1048576 }") else { return };
        let server = home.start();
        let mut http = connect(&server);
        let (mut differences, end) = (Vec::new(), Instant::now() + FULL_DELAY);
        while Instant::now() < end {
            let reason = not_ready_reason(&mut http);
            let (status, response) = try_dispatch(&mut http);
            if reason.is_none() != (status == 200) {
                differences.push((reason, response));
            }
            thread::sleep(Duration::from_millis(250));
        }
        // One difference is possible: the dispatch before may have filled the disk.
        assert!(differences.len() <= 1, "{mib} MiB: {differences:?}");
    }
}
