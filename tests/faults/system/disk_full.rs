//! A disk that fills up. Before it is full dispatches are refused, and taken again when there is room, without a restart;
//! and where something else takes all of it, the server ends aloud and has everything when it is started again.

use std::{
    fs::File,
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
    client::Client,
    ledger::Ledger,
    support::{
        http::Http,
        server::{Home, Server},
    },
    tools,
};

const MIB: u64 = 1 << 20;

/// The disk, what the server is to leave free of it, and what somebody else has put there.
const DISK_BYTES: u64 = 320 * MIB;
const FREE_BYTES: u64 = 128 * MIB;
const BALLAST_BYTES: u64 = 64 * MIB;

/// Bytes of a message. A hundred milliseconds of them are far less than stay free.
const MESSAGE_BYTES: usize = 30_000;

/// Users who are dispatched to in turn: none of them reaches a quota of his own.
const USERS: usize = 5;

/// Until there is room again: what is in the journal is kept for ten seconds.
const ROOM_PATIENCE: Duration = Duration::from_secs(40);

/// A file system in memory, of a given size. Gone with this.
#[derive(Debug)]
struct Disk(PathBuf);

impl Disk {
    /// Mounts one; `None`, said aloud, where that is not allowed.
    fn mount(home: &Home, bytes: u64) -> Option<Self> {
        let path = home.path("disk");
        std::fs::create_dir(&path).expect("a directory");
        let size = format!("size={bytes},mode=0700");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "mesa-test"]).arg(&path).output();
        let here = mounted.is_ok_and(|output| output.status.success());
        (here || tools::missing("the right to mount a tmpfs", "a disk that fills up")).then_some(Self(path))
    }

    /// Puts a file there, of so many bytes or as many as there is room for; how many those were.
    fn put_ballast(&self, bytes: u64) -> u64 {
        let mut file = File::create(self.ballast()).expect("a file");
        let part = vec![1; 1 << 16];
        let mut written = 0;
        while written < bytes {
            match file.write(&part) {
                Ok(count) => written += count as u64,
                Err(_) => break,
            }
        }
        written
    }

    fn ballast(&self) -> PathBuf {
        self.0.join("ballast")
    }

    fn remove_ballast(&self) {
        std::fs::remove_file(self.ballast()).expect("it is there");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: after a failed assertion the server may still be there.
        _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

fn bytes_in(path: &Path) -> u64 {
    let files = std::fs::read_dir(path).into_iter().flatten().flatten();
    let bytes = |file: std::fs::DirEntry| {
        // What is not needed any more goes while it is looked at.
        if file.path().is_dir() { bytes_in(&file.path()) } else { file.metadata().map_or(0, |file| file.len()) }
    };
    files.map(bytes).sum()
}

fn users(round: usize) -> Vec<String> {
    (0..USERS).map(|n| format!("round-{round}-user-{n}")).collect()
}

/// Dispatches until it is refused, which has to be for want of room; what was answered.
fn fill(http: &mut Http, users: &[String]) -> Ledger {
    let mut ledger = Ledger::default();
    for user in users.iter().cycle().take(DISK_BYTES as usize / MESSAGE_BYTES * 2) {
        match ledger.dispatch_padded(http, user, MESSAGE_BYTES).expect("an answer") {
            200 => {}
            507 => return ledger,
            status => panic!("a dispatch was answered with {status}"),
        }
    }
    panic!("more was taken than the disk has room for: {} messages", ledger.answered());
}

/// What a full server has to be like: refusing for a reason, and serving whoever comes for what there is.
fn is_full_and_delivers(server: &Server, http: &mut Http, ledger: &Ledger, reader: &str) {
    let body = r#"{"message":{"op":0,"d":{},"t":"T"},"recipients":["another"]}"#;
    let (status, answer) = http.call("POST", "/v1/dispatch", body).expect("an answer");
    let answer: Value = serde_json::from_slice(&answer).expect("JSON");
    assert_eq!((status, &answer["error"]["code"]), (507, &Value::from("full")), "{answer}");
    let why = answer["error"]["message"].as_str().expect("a sentence").to_owned();
    assert!(why.contains("store.minFree"), "{why}");
    let (status, ready) = http.call("GET", "/readyz", "").expect("an answer");
    let ready = String::from_utf8(ready).expect("text");
    assert!(status == 503 && ready.contains("store.minFree"), "{status}: {ready}");

    ledger.check(http).expect("all that was answered");
    let log = crate::ledger::read_log(http, reader);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let mut client = Client::connect(server.address, reader).await.expect("connected");
        let numbers = client.until_message(log.last().expect("messages").1).await.expect("all messages");
        assert_eq!(numbers, log.iter().map(|(_, n)| *n).collect::<Vec<_>>());
        // The receipt is asked for behind the messages.
        client.next(Duration::from_secs(10)).await;
        until("the receipt to be taken", ROOM_PATIENCE, || pending(http, reader) == 0);
    });
}

fn pending(http: &mut Http, user: &str) -> u64 {
    let found: Value = http.get(&format!("/v1/users/{user}")).expect("an answer");
    found["pending"]["messages"].as_u64().or_else(|| found["pending"].as_u64()).expect("a number")
}

fn until(what: &str, patience: Duration, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + patience;
    while !done() {
        assert!(Instant::now() < end, "waited in vain for {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

fn has_room(http: &mut Http) -> bool {
    http.status("/readyz").expect("an answer") == 200
}

fn clear(http: &mut Http, users: &[String]) {
    for user in users {
        let (status, _) = http.call("DELETE", &format!("/v1/users/{user}/messages"), "").expect("an answer");
        assert!(status < 300, "{status}");
    }
}

#[test]
fn before_the_disk_is_full_dispatches_are_refused_and_taken_again_when_there_is_room() {
    let mut home = Home::with(&format!("store: {{ minFree: {FREE_BYTES} }}"));
    let Some(disk) = Disk::mount(&home, DISK_BYTES) else { return };
    assert_eq!(disk.put_ballast(BALLAST_BYTES), BALLAST_BYTES);
    home.move_store(disk.0.join("store"));
    let server = home.start();
    let mut http = Http::connect(server.address).expect("a connection");
    let rounds = tools::times(2, 12);
    let (mut told, mut all) = (Vec::new(), 0);
    for round in 0..rounds {
        let users = users(round);
        let ledger = fill(&mut http, &users);
        assert!(ledger.answered() > 100, "only {} were taken in round {round}", ledger.answered());
        is_full_and_delivers(&server, &mut http, &ledger, &users[0]);
        told.push(format!("{}, {}", ledger.answered(), bytes_in(&home.store()) / MIB));
        all += ledger.answered();
        clear(&mut http, &users);
        until("room in the store", ROOM_PATIENCE, || has_room(&mut http));
    }
    let (users, more) = (users(rounds), users(rounds + 1));
    let ledger = fill(&mut http, &users);
    disk.remove_ballast();
    until("room on the disk", ROOM_PATIENCE, || has_room(&mut http));
    let after = fill(&mut http, &more);
    assert!(after.answered() > 100, "only {} were taken", after.answered());
    server.process.kill();
    let server = home.start();
    let mut http = Http::connect(server.address).expect("a connection");
    for ledger in [&ledger, &after] {
        ledger.check(&mut http).expect("all that was answered");
        all += ledger.answered();
    }
    server.process.kill();
    tools::say(&format!(
        "a full disk: {all} dispatches answered and kept, in {rounds} rounds (dispatches, MiB of store): {}",
        told.join("; ")
    ));
}

#[test]
fn where_something_else_takes_all_of_the_disk_the_server_ends_aloud_and_nothing_is_lost() {
    let mut home = Home::with("store: { minFree: 0 }");
    let Some(disk) = Disk::mount(&home, 96 * MIB) else { return };
    home.move_store(disk.0.join("store"));
    let (mut ledgers, rounds) = (Vec::new(), tools::times(3, 10));
    let mut refused = 0;
    for round in 0..rounds {
        let server = home.start();
        let mut http = Http::connect(server.address).expect("a connection");
        let mut ledger = Ledger::default();
        let user = format!("round-{round}");
        let mut end = false;
        for n in 0..2_000 {
            if n == 20 {
                let written = disk.put_ballast(u64::MAX);
                assert!(written > MIB, "the disk was full before");
            }
            match ledger.dispatch_padded(&mut http, &user, MESSAGE_BYTES) {
                Ok(200) => assert!(!end, "a dispatch was answered after one had failed"),
                Ok(503) => end = true,
                Ok(status) => panic!("a dispatch was answered with {status}"),
                Err(_) => break,
            }
        }
        let status = server.process.wait(Duration::from_secs(20));
        assert!(!status.success(), "{status}");
        let log = home.log();
        assert!(log.contains("the store has failed") && log.contains("No space left"), "{log}");
        assert!(!log.contains("panicked"), "{log}");
        assert!(ledger.answered() >= 20);
        ledgers.push(ledger);

        // As long as there is no room, it says so and harms nothing, or it serves what there is.
        if let Err(why) = home.ready(home.spawn(&[])).map(|server| server.process.kill()) {
            assert!(why.contains("No space left") && !why.contains("panicked"), "{why}");
            refused += 1;
        }
        disk.remove_ballast();
        let server = home.start();
        let mut http = Http::connect(server.address).expect("a connection");
        for ledger in &ledgers {
            ledger.check(&mut http).expect("all that was answered");
        }
        // So that the next round has something to fill.
        let cleared: Vec<_> = (0..=round).map(|round| format!("round-{round}")).collect();
        clear(&mut http, &cleared);
        ledgers.clear();
        server.process.kill();
    }
    tools::say(&format!(
        "a disk taken by something else: {rounds} times the server ended aloud, and {refused} times it did not start \
         before there was room"
    ));
}
