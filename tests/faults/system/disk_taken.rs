//! A disk that another process fills, and dispatches that cost more later than when they are answered. The server stays,
//! delivers what it has, refuses dispatches with 507 and takes them again when there is space.

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
    on_small_disk::{
        PATIENCE, clear, connect, metric, not_ready, pending, refusal, settling_home, until_full, until_ready,
    },
    small_disk::{Disk, MIB, bytes_in, until},
    support::{
        http::Http,
        server::{Home, Server},
    },
    tracker::Ledger,
};

/// Bytes of a message.
const MESSAGE_BYTES: usize = 30_000;

/// Attempts to flush while the disk is full: one is made every 100 ms.
const FULL: Duration = Duration::from_secs(2);

/// Receives all that a user has, and acknowledges it.
fn receive(server: &Server, http: &mut Http, user: &str) {
    let log = crate::tracker::read_log(http, user);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let mut client = Client::connect(server.address, user).await.expect("connected");
        let numbers = client.until_message(log.last().expect("messages").1).await.expect("all messages");
        assert_eq!(numbers, log.iter().map(|(_, n)| *n).collect::<Vec<_>>());
        // The receipt is asked for behind the messages.
        let end = Instant::now() + PATIENCE;
        while pending(http, user) > 0 {
            assert!(Instant::now() < end, "the receipt is not taken");
            client.next(Duration::from_millis(20)).await;
        }
    });
}

/// Checks that a server on a full disk delivers and refuses, for as long as it would flush.
fn serves_what_it_has(server: &Server, http: &mut Http, ledger: &Ledger, reader: &str) {
    until_full(http);
    let (status, why) = refusal(http);
    assert_eq!((status, why.contains("\"full\"")), (507, true), "{why}");
    ledger.check(http).expect("all that was answered");
    receive(server, http, reader);
    let end = Instant::now() + FULL;
    while Instant::now() < end {
        assert_eq!(refusal(http).0, 507);
        thread::sleep(Duration::from_millis(50));
    }
}

// covers: G1
#[test]
fn idle_server_whose_disk_is_filled_delivers_and_resumes_without_a_restart() {
    let Some((home, disk)) = settling_home(128 * MIB, "store: { minFree: 4194304 }") else { return };
    let mut server = home.start();
    let mut http = connect(&server);
    let mut ledger = Ledger::default();
    for round in 0..env::times(2, 8) {
        let users = [format!("reader-{round}"), format!("away-{round}")];
        for user in users.iter().cycle().take(20) {
            assert_eq!(ledger.dispatch_padded(&mut http, user, MESSAGE_BYTES).expect("an answer"), 200);
        }
        disk.fill();
        serves_what_it_has(&server, &mut http, &ledger, &users[0]);
        let mut read = Ledger::default();
        std::mem::swap(&mut read, &mut ledger);
        if round % 2 == 1 {
            // A start on a full disk serves what there is.
            server.process.kill();
            disk.fill();
            server = home.start();
            http = connect(&server);
            until_full(&mut http);
            assert_eq!(refusal(&mut http).0, 507);
            read.check_user(&mut http, &users[1]).expect("all that was answered");
        }
        disk.remove_ballast();
        until_ready(&mut http);
        assert_eq!(ledger.dispatch_padded(&mut http, &format!("after-{round}"), 100).expect("an answer"), 200);
        read.check_user(&mut http, &users[1]).expect("all that was answered");
    }
    assert!(!home.log().contains("panicked"), "{}", home.log());
    server.process.kill();
    let server = home.start();
    ledger.check(&mut connect(&server)).expect("all that was answered");
}

// covers: G1
#[test]
fn server_under_load_whose_disk_is_filled_again_and_again_loses_nothing_and_stays() {
    let Some((home, disk)) = settling_home(128 * MIB, "store: { minFree: 0 }") else { return };
    let server = home.start();
    fill_under_load(&home, &disk, server);
}

/// Fills the disk of a server again and again while three backends dispatch, and holds that it stays and has all that it
/// answered.
pub fn fill_under_load(home: &Home, disk: &Disk, server: Server) {
    let (stop, refused, taken) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
    let ledger = thread::scope(|scope| {
        let backends: Vec<_> = (0..3)
            .map(|backend| {
                let (stop, refused, taken) = (&stop, &refused, &taken);
                let server = &server;
                scope.spawn(move || {
                    let (mut http, mut ledger) = (connect(server), Ledger::default());
                    for n in 0.. {
                        if stop.load(Ordering::Relaxed) {
                            break;
                        }
                        let user = format!("backend-{backend}-user-{}", n % 7);
                        match ledger.dispatch_padded(&mut http, &user, if n % 3 == 0 { 3_000 } else { 50 }) {
                            Ok(200) => _ = taken.fetch_add(1, Ordering::Relaxed),
                            Ok(507) => {
                                refused.fetch_add(1, Ordering::Relaxed);
                                thread::sleep(Duration::from_millis(5));
                            }
                            other => panic!("a dispatch came to {other:?}"),
                        }
                        thread::sleep(Duration::from_millis(1));
                    }
                    ledger
                })
            })
            .collect();
        let mut http = connect(&server);
        for _ in 0..env::times(3, 20) {
            let before = taken.load(Ordering::Relaxed);
            until("dispatches to be taken", PATIENCE, || taken.load(Ordering::Relaxed) > before + 50);
            let before = refused.load(Ordering::Relaxed);
            disk.fill();
            until("dispatches to be refused", PATIENCE, || {
                disk.fill();
                refused.load(Ordering::Relaxed) > before
            });
            until_full(&mut http);
            disk.remove_ballast();
            until_ready(&mut http);
        }
        stop.store(true, Ordering::Relaxed);
        let mut all = Ledger::default();
        backends.into_iter().for_each(|backend| all.merge(backend.join().expect("a backend")));
        all
    });
    let mut http = connect(&server);
    ledger.check(&mut http).expect("all that was answered");
    server.terminate();
    assert!(server.process.wait(PATIENCE).success());
    let server = home.start();
    ledger.check(&mut connect(&server)).expect("all that was answered");
    env::say(&format!(
        "a disk filled by another process under load: {} dispatches taken, {} refused",
        taken.load(Ordering::Relaxed),
        refused.load(Ordering::Relaxed)
    ));
}

/// Dispatches one message to so many users.
fn fan_out(http: &mut Http, bytes: usize, name: &str, users: usize) -> u16 {
    let recipients: Vec<_> = (0..users).map(|n| format!("{name}-{n}")).collect();
    let body = json!({"message": {"op": 0, "d": {"n": 0, "x": "x".repeat(bytes)}, "t": "T"}, "recipients": recipients});
    http.call("POST", "/v1/dispatch", &body.to_string()).expect("an answer").0
}

/// Waits until nothing is in the journal that has to be flushed: the inboxes do not grow any more.
fn until_flushed(inboxes: &Path, bytes: u64) {
    until("all copies to be flushed", PATIENCE, || bytes_in(inboxes) >= bytes);
}

#[test]
fn fan_out_that_does_not_fit_after_its_flush_is_refused_before_it_is_answered() {
    let Some((home, disk)) = settling_home(160 * MIB, "store: { minFree: 33554432 }") else { return };
    let server = home.start();
    let mut http = connect(&server);
    // 1000 copies of 50 kB are 48 MiB, of some 90 that are there.
    assert_eq!(fan_out(&mut http, 50_000, "first", 1000), 200);
    assert_eq!(fan_out(&mut http, 50_000, "second", 1000), 507);
    assert_eq!(not_ready(&mut http), None, "what is smaller fits");
    assert_eq!(refusal(&mut http).0, 200);
    // What is set aside is known again after a crash.
    server.process.kill();
    let server = home.start();
    let mut http = connect(&server);
    assert_eq!(fan_out(&mut http, 50_000, "third", 1000), 507);
    until_flushed(&disk.0.join("store/inbox"), 1000 * 50_000);
    assert_eq!(fan_out(&mut http, 50_000, "fourth", 1000), 507);
    assert_eq!(refusal(&mut http).0, 200);
    for n in [0, 500, 999] {
        assert_eq!(pending(&mut http, &format!("first-{n}")), 1);
    }
}

#[test]
fn fan_outs_take_no_more_than_max_bytes() {
    let Some((home, disk)) = settling_home(160 * MIB, "store: { minFree: 0, maxBytes: 10000000 }") else { return };
    let server = home.start();
    let mut http = connect(&server);
    let answers: Vec<_> = (0..6).map(|n| fan_out(&mut http, 50_000, &format!("round-{n}"), 60)).collect();
    // Of 60 copies of 50 kB three fit.
    assert_eq!(answers, [200, 200, 200, 507, 507, 507]);
    let inboxes = disk.0.join("store/inbox");
    until_flushed(&inboxes, 9_000_000);
    assert!(bytes_in(&inboxes) < 10_000_000, "{}", bytes_in(&inboxes));
    assert_eq!(fan_out(&mut http, 50_000, "one-more", 60), 507);
    assert_eq!(fan_out(&mut http, 50_000, "smaller", 15), 200);
    for (user, copies) in [("round-0-0", 1), ("round-2-59", 1), ("smaller-14", 1)] {
        assert_eq!(pending(&mut http, user), copies);
    }
    // What is received leaves space for others.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        for n in 0..60 {
            let user = format!("round-0-{n}");
            let mut client = Client::connect(server.address, &user).await.expect("connected");
            assert_eq!(client.next(PATIENCE).await, Event::Message(0));
            let end = Instant::now() + PATIENCE;
            while pending(&mut http, &user) > 0 {
                assert!(Instant::now() < end, "the receipt is not taken");
                client.next(Duration::from_millis(5)).await;
            }
        }
    });
    until("what was received not to count", PATIENCE, || fan_out(&mut http, 50_000, "last", 50) == 200);
}

/// Messages that are received or deleted leave space in files with others: it is given back where it is needed, long before half
/// of all is gone.
#[test]
fn full_disk_has_room_again_once_a_quarter_of_the_messages_was_deleted() {
    const USERS: usize = 4;
    const BYTES: usize = 30_000;
    let Some((home, disk)) = settling_home(96 * MIB, "store: { minFree: 16777216 }") else { return };
    let server = home.start();
    let mut http = connect(&server);
    let mut taken = 0;
    while fan_out(&mut http, BYTES, &format!("round-{taken}"), USERS) == 200 {
        taken += 1;
    }
    let inboxes = disk.0.join("store/inbox");
    until_flushed(&inboxes, (taken * USERS * BYTES) as u64);
    let before = bytes_in(&inboxes);
    (0..taken).for_each(|round| clear(&mut http, &format!("round-{round}-0")));
    until("half of what was deleted to be given back", PATIENCE, || bytes_in(&inboxes) < before / 8 * 7);
    until_ready(&mut http);
    assert_eq!(fan_out(&mut http, BYTES, "after", USERS), 200);
    assert_eq!(pending(&mut http, "round-0-1"), 1);
}

/// What is to stay free on a disk with an outbox.
const MIN_FREE: u64 = 16 * MIB;

/// Settings with a webhook whose receiver is down.
fn receiver_is_down() -> String {
    let webhook = "webhook: { url: 'http://127.0.0.1:9/', secret: 'sixteen-bytes-xx', allowPrivate: true, undeliveredAfter: 100 }";
    format!("store: {{ minFree: {MIN_FREE} }}, portal: {{ {webhook} }}")
}

/// Copies of messages for a webhook whose receiver is down are work in the background: they leave free what is to stay free.
#[test]
fn disk_is_not_filled_by_the_outbox_of_a_webhook_whose_receiver_is_down() {
    let Some((home, disk)) = settling_home(160 * MIB, &receiver_is_down()) else { return };
    let server = home.start();
    let mut http = connect(&server);
    // 55 MiB of messages; more than twice that as events, in what is left.
    assert_eq!(fan_out(&mut http, 50_000, "away", 1100), 200);
    until_flushed(&disk.0.join("store/inbox"), 1100 * 50_000);
    until("events", PATIENCE, || metric(&mut http, "mesa_webhook_outbox_events") > 0);
    let end = Instant::now() + 2 * FULL;
    while Instant::now() < end {
        let free = disk.free();
        assert!(free >= MIN_FREE, "{free} bytes are free");
        thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(not_ready(&mut http), None);
    assert_eq!(refusal(&mut http).0, 200);
    for n in 0..20 {
        clear(&mut http, &format!("away-{n}"));
    }
    server.process.kill();
    let server = home.start();
    let mut http = connect(&server);
    assert_eq!((not_ready(&mut http), pending(&mut http, "away-0"), pending(&mut http, "away-20")), (None, 0, 1));
}

/// A disk may have little more than is to stay free, for ever. Messages are taken there, and so their events go out.
#[test]
fn undelivered_messages_are_reported_where_the_disk_has_little_more_than_is_to_stay_free() {
    let Some((home, disk)) = settling_home(160 * MIB, &receiver_is_down()) else { return };
    let server = home.start();
    let mut http = connect(&server);
    let events = |http: &mut Http| metric(http, "mesa_webhook_outbox_events");
    // The first message has the files made.
    assert_eq!(refusal(&mut http).0, 200);
    until("its event", PATIENCE, || events(&mut http) == 1);
    disk.put_ballast(disk.free() - MIN_FREE - 6 * MIB);
    assert_eq!(refusal(&mut http).0, 200);
    until("the second event", PATIENCE, || events(&mut http) == 2);
    assert!(disk.free() >= MIN_FREE, "{} bytes are free", disk.free());
}

/// A disk may have too little space from the start on: what the server says of itself is what a dispatch meets.
#[test]
fn server_started_with_little_space_is_ready_exactly_where_it_takes_dispatches() {
    for mib in [20, 24, 28, 32, 36, 40, 48] {
        let Some((home, _disk)) = settling_home(mib * MIB, "store: { minFree: 1048576 }") else { return };
        let server = home.start();
        let mut http = connect(&server);
        let (mut differ, end) = (Vec::new(), Instant::now() + FULL);
        while Instant::now() < end {
            let before = not_ready(&mut http);
            let (status, answer) = refusal(&mut http);
            if before.is_none() != (status == 200) {
                differ.push((before, answer));
            }
            thread::sleep(Duration::from_millis(250));
        }
        // What was taken may have filled the disk just before.
        assert!(differ.len() <= 1, "{mib} MiB: {differ:?}");
    }
}
