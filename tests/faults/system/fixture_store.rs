//! Creates a store once, and copies it for each fault.
//!
//! It has messages in the value log and in the WAL. One user has acknowledged those in the value log. It was not
//! closed.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::FutureExt as _;
use mesa::{
    embedded::{
        Tuning,
        tables::{DiskOptions, open},
    },
    message::{Payload, UserId},
    store::{Append, ReadLimit, SessionReport, Store},
};
use tokio::runtime::Runtime;

use crate::{
    strace,
    support::{current_thread_runtime, http::Http, server::Home, wait::WAIT_TIMEOUT},
    tracker::{Log, Tracker, read_log},
};

/// Users, each with `MESSAGES` in the value log and twice as many in the WAL.
const USERS: u64 = 8;
const MESSAGES: u64 = 20;

/// User that has acknowledged the messages in the value log.
const READER: &str = "user-0";

/// A store in a directory of its own, and its pending entries.
#[derive(Debug)]
pub struct FixtureStore {
    directory: tempfile::TempDir,
    logs: BTreeMap<String, Log>,
}

impl FixtureStore {
    /// Creates the store.
    pub fn new() -> Self {
        let directory = tempfile::Builder::new().prefix("mesa-test-").tempdir().expect("a temporary directory");
        let (work, image) = (directory.path().join("work"), directory.path().join("image"));
        let mut fixture = Self { directory, logs: BTreeMap::new() };
        let runtime = current_thread_runtime();
        let flush_at_once = Tuning { flush_delay: Duration::ZERO, ..Tuning::default() };
        let store = open(DiskOptions { tuning: flush_at_once, ..DiskOptions::new(&work) }).expect("a store");
        fixture.append(&runtime, &store);
        wait_until_flushed(&store);
        runtime.block_on(store.close()).expect("the store closes");
        drop(store);

        let no_flush = Tuning { flush_delay: Duration::from_secs(3600), ..Tuning::default() };
        let store = open(DiskOptions { tuning: no_flush, ..DiskOptions::new(&work) }).expect("a store");
        fixture.append(&runtime, &store);
        let reader = UserId::new(READER).expect("a user id");
        store.report(&reader, SessionReport { acknowledged: Some((1, MESSAGES)), ..SessionReport::default() });
        // An acknowledgement is written with the next commit, which this is.
        fixture.append(&runtime, &store);
        fixture.logs.get_mut(READER).expect("the reader's log").drain(..MESSAGES as usize);
        // A copy of the open store is what a killed process leaves: every entry was synced before it was answered.
        copy(&work, &image);
        fixture
    }

    fn append(&mut self, runtime: &Runtime, store: &Arc<dyn Store>) {
        for n in 0..MESSAGES {
            let text = format!("{{\"n\":{n}}}");
            let recipients: Vec<UserId> = user_ids().map(|user| UserId::new(&user).expect("a user id")).collect();
            let payload = Payload::encode(0, Some(&text), Some("TEST")).expect("a payload");
            let result = runtime.block_on(store.append(Append::new(payload, recipients))).expect("a result");
            for (user, seq) in user_ids().zip(result.seqs) {
                self.logs.entry(user).or_default().push((seq.expect("the recipient is accepted"), n));
            }
        }
    }

    /// Replaces the store of `home` with a copy.
    pub fn copy_to(&self, home: &Home) {
        remove_store(home);
        copy(&self.directory.path().join("image"), &home.store());
    }

    /// Checks entries of the fixture, and entries dispatched during the fault, at a normal start.
    ///
    /// # Errors
    /// With the violation: a panic, a server that does not start, or a wrong log.
    pub fn check_after_fault(&self, home: &Home, tracker: &Tracker) -> Result<(), String> {
        check_no_panic(home)?;
        let server = strace::start_untraced(home)?;
        let mut http = Http::connect(server.address).map_err(|error| error.to_string())?;
        self.check(&mut http)?;
        tracker.check(&mut http)?;
        server.process.kill();
        Ok(())
    }

    /// Checks that the server has exactly the pending entries of the fixture, in order.
    ///
    /// # Errors
    /// With the first user whose log differs.
    pub fn check(&self, http: &mut Http) -> Result<(), String> {
        for (user, log) in &self.logs {
            let found = read_log(http, user);
            if found != *log {
                return Err(format!("{user}: expected the entries {log:?}, found {found:?}"));
            }
        }
        Ok(())
    }

    /// Starts a server without a fault, and checks the entries of the fixture.
    ///
    /// # Errors
    /// If the server does not start, or with the first user whose log differs.
    pub fn check_after_start(&self, home: &Home) -> Result<(), String> {
        let server = strace::start_untraced(home)?;
        let mut http = Http::connect(server.address).map_err(|error| error.to_string())?;
        self.check(&mut http)?;
        server.process.kill();
        Ok(())
    }
}

/// Removes the store of `home`, and its log output.
pub fn remove_store(home: &Home) {
    _ = fs::remove_dir_all(home.store());
    _ = fs::remove_file(home.path("log"));
}

/// Checks that the server has not panicked.
///
/// # Errors
/// With the server's log output, if it has.
pub fn check_no_panic(home: &Home) -> Result<(), String> {
    let log = home.log();
    let panicked = log.lines().any(|line| line.contains("panicked") && !is_caught_panic(line));
    if panicked { Err(format!("a panic:\n{log}")) } else { Ok(()) }
}

/// Reports whether the line is of a panic that the store catches.
///
/// sled panics if it cannot sync its file at exit. The server then does not start, and reports why.
pub fn is_caught_panic(line: &str) -> bool {
    line.contains("sled-0.34.7/src/pagecache/logger.rs")
}

fn user_ids() -> impl Iterator<Item = String> {
    (0..USERS).map(|n| format!("user-{n}"))
}

/// Waits until the WAL of a store that flushes at once is empty. Before that, reads come from memory.
fn wait_until_flushed(store: &Arc<dyn Store>) {
    let user = UserId::new("user-1").expect("a user id");
    let limit = ReadLimit { entries: 1, bytes: 1 << 20 };
    let end = Instant::now() + WAIT_TIMEOUT;
    while store.read_cached(&user, 0, limit).is_some() {
        assert!(Instant::now() < end, "expected the WAL to be flushed within {WAIT_TIMEOUT:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Appends in flight at the same time. The queue of the store has room for more.
const BATCH: u64 = 5_000;

/// Creates a store with `count` pending messages of a user, of 256 bytes, numbered from zero.
pub fn create_backlog(path: &Path, user: &str, count: u64) {
    let store = open(DiskOptions::new(path)).expect("a store");
    let user = UserId::new(user).expect("a user id");
    let append = |n: u64| {
        let text = format!("{{\"n\":{n},\"x\":\"{}\"}}", "x".repeat(215));
        let payload = Payload::encode(0, Some(&text), Some("TEST")).expect("a payload");
        store.append(Append::new(payload, vec![user.clone()]))
    };
    let runtime = current_thread_runtime();
    for first in (0..count).step_by(BATCH as usize) {
        let last = count.min(first + BATCH) - 1;
        // Appends are processed in order, so only the last of a batch is awaited.
        (first..last).for_each(|n| _ = append(n).now_or_never());
        runtime.block_on(append(last)).expect("a result");
    }
    runtime.block_on(store.close()).expect("the store closes");
}

/// Copies a directory.
pub fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a directory");
    let mode = fs::metadata(from).expect("a directory").permissions();
    fs::set_permissions(to, mode).expect("permissions");
    for entry in fs::read_dir(from).expect("a readable directory") {
        let entry = entry.expect("a directory entry");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("a file type").is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("a copy");
        }
    }
}
