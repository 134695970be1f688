//! Lets writes and syncs of a running server fail, once and permanently.
//!
//! Every answered dispatch must be kept. After the first failed dispatch no other may succeed: the server must exit and
//! report the fault. A write that fails because the disk is full is the exception: the server stays.

use std::{
    collections::BTreeSet,
    fs,
    net::SocketAddr,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use crate::{
    env,
    fixture_store::FixtureStore,
    strace::{self, Fault, StartResult},
    support::{http::Http, seeded_rng::Random, server::Home},
    tracker::Tracker,
};

/// Faults in the short form.
const FAULTS: usize = 28;

/// Backends that dispatch at the same time.
const BACKENDS: usize = 3;

/// Dispatches of each backend, if none fails.
const DISPATCHES: usize = 40;

/// Failures after which a backend stops. None of its dispatches after the first failure may succeed.
const FAILURES_MAX: usize = 4;

/// Time within which a server whose store has failed must exit. It closes its connections first.
const EXIT_TIMEOUT: Duration = Duration::from_secs(15);

// covers: G1
#[test]
fn dispatch_after_failed_write_or_sync_is_not_answered() {
    if !env::strace_available("writes and syncs that fail under a running server") {
        return;
    }
    let mut random = Random::from_env("failing_commits");
    let (home, fixture) = (Home::new(), FixtureStore::new());
    let faults = faults();
    let chosen = env::sample(&faults, FAULTS, &mut random);
    let (mut violations, mut happened, mut stopped, mut answered) = (Vec::new(), 0, 0, 0);
    for (file, in_each_commit, fault) in &chosen {
        fixture.copy_to(&home);
        let stays = is_full_disk(file, fault);
        match run_with_fault(&home, &fixture, &files(&home, file), *in_each_commit, stays, fault) {
            Ok(outcome) => {
                stopped += usize::from(outcome.stopped);
                answered += outcome.answered;
            }
            Err(violation) => violations.push(format!("with {fault} on {file}: {violation}")),
        }
        happened += usize::from(strace::count_injected(&home) > 0);
    }
    assert!(violations.is_empty(), "{} of {}:\n{}", violations.len(), chosen.len(), violations.join("\n"));
    assert!(happened * 10 >= chosen.len() * 5, "expected at least half of {} faults: {happened}", chosen.len());
    assert!(stopped > 0, "expected a fault to stop a server");
    env::print(&format!(
        "{happened} of {} failing writes and syncs: {stopped} servers stopped, {answered} dispatches answered and kept",
        faults.len()
    ));
}

/// Files of the store, the calls that fail there, and whether each commit makes them.
///
/// Calls are counted per thread. `mark` is written at intervals, so it is a case of its own.
const CALLS: &[(&str, &str, bool)] = &[
    ("wal", "pwrite64", true),
    ("wal", "fdatasync", true),
    ("wal", "pwrite64,fdatasync", true),
    ("mark", "pwrite64", false),
    ("log/db", "pwrite64", false),
    ("log/db", "sync_file_range", false),
    ("log/db", "fsync,fdatasync", false),
];

/// Lists the faults: file, whether each commit makes the call, and the fault.
fn faults() -> Vec<(&'static str, bool, Fault)> {
    let mut faults = Vec::new();
    for (file, call, in_each_commit) in CALLS {
        // sled alone makes few calls.
        for when in 1..=if *in_each_commit { 12 } else { 3 } {
            for effect in ["error=EIO", "error=ENOSPC"] {
                let fault = |permanent| Fault { call: (*call).to_owned(), effect, when, permanent };
                faults.extend([(*file, *in_each_commit, fault(false)), (*file, *in_each_commit, fault(true))]);
            }
        }
    }
    faults
}

/// Entries are flushed to the value log 10 s after they were answered. If that fails, the WAL still has them.
// covers: G1
#[test]
fn flush_with_failing_write_or_sync_stops_server_and_keeps_entries() {
    if !env::strace_available("blocks of the value log that cannot be written") {
        return;
    }
    let (home, fixture) = (Home::new(), FixtureStore::new());
    // The blocks of several users are one write.
    for (call, when) in [("pwrite64", 1), ("fdatasync", 1)] {
        fixture.copy_to(&home);
        // A started server appends blocks to a new file of the value log, not to the last one.
        let last = files(&home, "value-log").into_iter().next_back().expect("a file of the value log");
        let number = last.file_name().and_then(|name| u64::from_str_radix(name.to_str()?, 16).ok()).expect("a number");
        let next = BTreeSet::from([last.with_file_name(format!("{:016x}", number + 1))]);
        let fault = Fault { call: call.into(), effect: "error=EIO", when, permanent: false };
        let StartResult::Listening(server) = strace::start(&home, call, &next, Some(&fault)) else {
            panic!("{fault}: expected the server to start:\n{}", home.log());
        };
        let (tracker, _) = dispatch(server.address, 0, 5);
        let status = strace::wait_for_exit(&home, server.process, Duration::from_secs(40), &fault.to_string());
        strace::check_exit(&home, status).unwrap_or_else(|violation| panic!("{fault}: {violation}"));
        assert_eq!(strace::count_injected(&home), 1, "{fault}");
        fixture.check_after_fault(&home, &tracker).unwrap_or_else(|violation| panic!("after {fault}: {violation}"));
    }
    env::print("2 flushes that could not be written or synced: 2 servers stopped, and lost nothing");
}

/// Reports whether the fault is a failed write on a full disk. The server stays, and resumes when there is space.
///
/// A failed sync is final, whatever its error.
fn is_full_disk(file: &str, fault: &Fault) -> bool {
    fault.effect == "error=ENOSPC" && fault.call.starts_with("pwrite64") && ["wal", "mark"].contains(&file)
}

struct Outcome {
    stopped: bool,
    answered: usize,
}

/// Returns a file of the store, or the files in a directory of the store.
fn files(home: &Home, name: &str) -> BTreeSet<PathBuf> {
    let path = home.store().join(name);
    match fs::read_dir(&path) {
        Ok(files) => files.map(|file| file.expect("a file").path()).collect(),
        Err(_) => BTreeSet::from([path]),
    }
}

/// Dispatches to a server with a fault, then checks the server and the next start.
fn run_with_fault(
    home: &Home,
    fixture: &FixtureStore,
    paths: &BTreeSet<PathBuf>,
    in_each_commit: bool,
    stays: bool,
    fault: &Fault,
) -> Result<Outcome, String> {
    assert!(!paths.is_empty(), "expected files on which calls fail");
    let mut outcome = Outcome { stopped: false, answered: 0 };
    let mut tracker = Tracker::default();
    match strace::start(home, &fault.call, paths, Some(fault)) {
        StartResult::Exited(status) => strace::check_exit(home, status)?,
        StartResult::Listening(server) => {
            let mut requests = Vec::new();
            for (dispatched, history) in dispatch_concurrently(server.address) {
                tracker.merge(dispatched);
                requests.extend(history);
            }
            if stays {
                let mut server = server;
                let late = dispatch(server.address, BACKENDS, 1);
                tracker.merge(late.0);
                if let Some(status) = server.process.try_wait() {
                    strace::check_exit(home, status)?;
                }
                outcome.answered = tracker.answered();
                server.process.kill();
                return fixture.check_after_fault(home, &tracker).map(|()| outcome);
            }
            let first_failure = requests.iter().filter(|request| !request.success).map(|request| request.ended).min();
            if let Some(first_failure) = first_failure {
                if requests.iter().any(|request| request.success && request.began > first_failure) {
                    return Err("a dispatch succeeded after another had failed".into());
                }
                if stays_ready(server.address) {
                    return Err("the store has failed, and /readyz still answers 200".into());
                }
                let status = strace::wait_for_exit(home, server.process, EXIT_TIMEOUT, &fault.to_string());
                strace::check_exit(home, status)?;
                outcome.stopped = true;
            } else {
                let mut late = dispatch(server.address, BACKENDS, 1);
                let injected = strace::count_injected(home) > 0;
                if in_each_commit && injected && late.1.pop().is_some_and(|request| request.success) {
                    return Err("a write or sync of a commit failed, and the server still answers dispatches".into());
                }
                tracker.merge(late.0);
                server.process.kill();
            }
        }
    }
    fixture.check_after_fault(home, &tracker)?;
    outcome.answered = tracker.answered();
    Ok(outcome)
}

/// Reports whether `/readyz` answers 200 for 2 s. Dispatches may fail just before the server is no longer ready.
fn stays_ready(address: SocketAddr) -> bool {
    let end = Instant::now() + Duration::from_secs(2);
    let ready = || Http::connect(address).and_then(|mut http| http.status("/readyz")).is_ok_and(|status| status == 200);
    while ready() {
        if Instant::now() > end {
            return true;
        }
        thread::sleep(Duration::from_millis(5));
    }
    false
}

/// A dispatch: its begin, its end, and whether it was answered with 200.
struct Request {
    began: Instant,
    ended: Instant,
    success: bool,
}

fn dispatch_concurrently(address: SocketAddr) -> Vec<(Tracker, Vec<Request>)> {
    let backends: Vec<_> =
        (0..BACKENDS).map(|backend| thread::spawn(move || dispatch(address, backend, DISPATCHES))).collect();
    backends
        .into_iter()
        .map(|backend| backend.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        .collect()
}

/// Dispatches `count` times, or until `FAILURES_MAX` dispatches have failed. Reconnects after an error.
fn dispatch(address: SocketAddr, backend: usize, count: usize) -> (Tracker, Vec<Request>) {
    let (mut tracker, mut history, mut failures) = (Tracker::default(), Vec::new(), 0);
    let mut http = Http::connect(address).ok();
    let user = format!("user-of-backend-{backend}");
    while history.len() < count && failures < FAILURES_MAX {
        let began = Instant::now();
        let result = match &mut http {
            Some(http) => tracker.dispatch_padded(http, &user, if history.len() % 8 == 7 { 20_000 } else { 100 }),
            None => Err(std::io::ErrorKind::ConnectionRefused.into()),
        };
        // A request that times out is a hang of the server, not a failed dispatch.
        assert!(began.elapsed() < Duration::from_secs(19), "expected a response or an error within 19 s");
        let success = result.as_ref().is_ok_and(|status| *status == 200);
        history.push(Request { began, ended: Instant::now(), success });
        if result.is_err() {
            http = Http::connect(address).ok();
        }
        failures += usize::from(!success);
    }
    (tracker, history)
}
