//! A store that holds something, prepared once and copied for each fault: messages in inboxes, messages in the journal,
//! a user who has read half, and an end that was none.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::FutureExt as _;
use mesa::{
    message::{Payload, UserId},
    store::{
        Append, Note, ReadLimit, Store,
        disk::{DiskOptions, open},
        journal::Tuning,
    },
};
use tokio::runtime::Runtime;

use crate::{
    ledger::{Ledger, Log, read_log},
    strace,
    support::{http::Http, server::Home},
};

/// Users, each with this many messages in the inbox and as many in the journal.
const USERS: u64 = 8;
const MESSAGES: u64 = 20;

/// The user who has read the first half.
const READER: &str = "user-0";

/// A store in a directory that is not touched, and what is in it.
#[derive(Debug)]
pub struct Prepared {
    directory: tempfile::TempDir,
    logs: BTreeMap<String, Log>,
}

impl Prepared {
    /// Makes one.
    pub fn new() -> Self {
        let directory = tempfile::Builder::new().prefix("mesa-test-").tempdir().expect("a temporary directory");
        let (work, image) = (directory.path().join("work"), directory.path().join("image"));
        let mut made = Self { directory, logs: BTreeMap::new() };
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let at_once = Tuning { settle_after: Duration::ZERO, ..Tuning::default() };
        let store = open(DiskOptions { tuning: at_once, ..DiskOptions::new(&work) }).expect("a store");
        made.append(&runtime, &store);
        wait_until_settled(&store);
        runtime.block_on(store.close()).expect("closed");
        drop(store);

        let never = Tuning { settle_after: Duration::from_secs(3600), ..Tuning::default() };
        let store = open(DiskOptions { tuning: never, ..DiskOptions::new(&work) }).expect("a store");
        made.append(&runtime, &store);
        let reader = UserId::new(READER).expect("a user id");
        store.note(&reader, Note { received: Some((1, MESSAGES)), ..Note::default() });
        // Receipts are written with a following commit: this one.
        made.append(&runtime, &store);
        made.logs.get_mut(READER).expect("has messages").drain(..MESSAGES as usize);
        // What a killed process leaves: all of it was flushed before it was answered.
        copy(&work, &image);
        made
    }

    fn append(&mut self, runtime: &Runtime, store: &Arc<dyn Store>) {
        for n in 0..MESSAGES {
            let text = format!("{{\"n\":{n}}}");
            let recipients: Vec<UserId> = names().map(|user| UserId::new(&user).expect("a user id")).collect();
            let payload = Payload::encode(0, Some(&text), Some("TEST")).expect("a message");
            let appended = runtime.block_on(store.append(Append::new(payload, recipients))).expect("appended");
            for (user, seq) in names().zip(appended.seqs) {
                self.logs.entry(user).or_default().push((seq.expect("it was taken"), n));
            }
        }
    }

    /// Puts a copy of it in the place of what the server of `home` has.
    pub fn place(&self, home: &Home) {
        place_none(home);
        copy(&self.directory.path().join("image"), &home.store());
    }

    /// Holds what was there before a fault, and what was answered during it, against a plain start behind it.
    ///
    /// # Errors
    /// With what is wrong: a panic, a start that fails, or a log that is not what it has to be.
    pub fn check_after(&self, home: &Home, ledger: &Ledger) -> Result<(), String> {
        check_no_panic(home)?;
        let server = strace::start_without(home)?;
        let mut http = Http::connect(server.address).map_err(|error| error.to_string())?;
        self.check(&mut http)?;
        ledger.check(&mut http)?;
        server.process.kill();
        Ok(())
    }

    /// Holds what the server has against what was put there: every message, in its place.
    ///
    /// # Errors
    /// With the first user whose log is not what it was.
    pub fn check(&self, http: &mut Http) -> Result<(), String> {
        for (user, log) in &self.logs {
            let found = read_log(http, user);
            if found != *log {
                return Err(format!("{user}: there were {log:?}, there are {found:?}"));
            }
        }
        Ok(())
    }

    /// The same, from starting the server as it is started every day.
    pub fn check_at_a_plain_start(&self, home: &Home) -> Result<(), String> {
        let server = strace::start_without(home)?;
        let mut http = Http::connect(server.address).map_err(|error| error.to_string())?;
        self.check(&mut http)?;
        server.process.kill();
        Ok(())
    }
}

/// Takes away what the server of `home` has, and what it said.
pub fn place_none(home: &Home) {
    _ = fs::remove_dir_all(home.store());
    _ = fs::remove_file(home.path("log"));
}

/// Holds that nothing panicked.
///
/// # Errors
/// With the log of the server, if something did.
pub fn check_no_panic(home: &Home) -> Result<(), String> {
    let log = home.log();
    let panicked = log.lines().any(|line| line.contains("panicked") && !is_caught_panic(line));
    if panicked { Err(format!("a panic:\n{log}")) } else { Ok(()) }
}

/// sled panics where it cannot sync its file at its end. The store catches that, and the start is refused with a sentence.
pub fn is_caught_panic(line: &str) -> bool {
    line.contains("sled-0.34.7/src/pagecache/logger.rs")
}

fn names() -> impl Iterator<Item = String> {
    (0..USERS).map(|n| format!("user-{n}"))
}

/// Waits until the journal of a store that settles at once is empty: until it is, reads come from memory.
fn wait_until_settled(store: &Arc<dyn Store>) {
    let user = UserId::new("user-1").expect("a user id");
    let limit = ReadLimit { entries: 1, bytes: 1 << 20 };
    let end = Instant::now() + Duration::from_secs(120);
    while store.recent(&user, 0, limit).is_some() {
        assert!(Instant::now() < end, "the journal is never settled");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Appends at once, which is less than may wait for the store.
const AT_ONCE: u64 = 5_000;

/// Makes a store in which `count` messages wait for a user: 256 bytes each, numbered from zero.
pub fn backlog(path: &Path, user: &str, count: u64) {
    let store = open(DiskOptions::new(path)).expect("a store");
    let user = UserId::new(user).expect("a user id");
    let append = |n: u64| {
        let text = format!("{{\"n\":{n},\"x\":\"{}\"}}", "x".repeat(215));
        let payload = Payload::encode(0, Some(&text), Some("TEST")).expect("a message");
        store.append(Append::new(payload, vec![user.clone()]))
    };
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    for first in (0..count).step_by(AT_ONCE as usize) {
        let last = count.min(first + AT_ONCE) - 1;
        // Asked for one behind the other, and the last waited for: it comes when all before it are there.
        (first..last).for_each(|n| _ = append(n).now_or_never());
        runtime.block_on(append(last)).expect("appended");
    }
    runtime.block_on(store.close()).expect("closed");
}

/// Copies a directory.
pub fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a directory");
    let mode = fs::metadata(from).expect("a directory").permissions();
    fs::set_permissions(to, mode).expect("permissions");
    for entry in fs::read_dir(from).expect("a readable directory") {
        let entry = entry.expect("an entry");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("a type").is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("copied");
        }
    }
}
