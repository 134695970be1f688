//! Runs a server under `strace`, which injects faults into system calls and writes a trace.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    path::{Path, PathBuf},
    process::ExitStatus,
    thread,
    time::{Duration, Instant},
};

use crate::{
    fixture_store::is_caught_panic,
    support::server::{Home, Process, Server},
};

/// Time within which a server under `strace` must listen or exit.
const START_TIMEOUT: Duration = Duration::from_secs(120);

/// A fault injected into system calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Names of the calls, separated by commas.
    pub call: String,
    /// Effect in the syntax of `strace`: `signal=KILL`, `error=EIO`.
    pub effect: &'static str,
    /// Number of the call that is hit, counted for each thread from one.
    pub when: usize,
    /// Every later call is hit too.
    pub permanent: bool,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { call, effect, when, permanent } = self;
        write!(f, "{call}:{effect}:when={when}{}", if *permanent { "+" } else { "" })
    }
}

/// Result of a start.
#[derive(Debug)]
pub enum StartResult {
    /// The server listens.
    Listening(Server),
    /// The server has exited.
    Exited(ExitStatus),
}

/// Starts the server of `home` under `strace`, and waits until it listens or has exited.
///
/// `strace` traces `calls` on `paths` only, or on every path if there are none.
pub fn start(home: &Home, calls: &str, paths: &BTreeSet<PathBuf>, fault: Option<&Fault>) -> StartResult {
    let fault_name = fault.map_or("no fault".to_owned(), Fault::to_string);
    wait_for_start(home, spawn(home, calls, paths, fault), &fault_name)
}

/// Starts the server as [`start`], and returns at once.
pub fn spawn(home: &Home, calls: &str, paths: &BTreeSet<PathBuf>, fault: Option<&Fault>) -> Process {
    _ = fs::remove_file(trace_path(home));
    let trace = trace_path(home);
    let (traced, fault) = (format!("trace={calls}"), fault.map(|fault| format!("inject={fault}")));
    // With `-D` the server is the test's child and `strace` a grandchild, which exits with the server.
    let mut wrapper = vec!["strace", "-D", "-f", "-y", "-e", "signal=none", "-o", utf8(&trace), "-e", &traced];
    wrapper.extend(fault.iter().flat_map(|fault| ["-e", fault.as_str()]));
    wrapper.extend(paths.iter().flat_map(|path| ["-P", utf8(path)]));
    home.spawn(&wrapper)
}

/// Starts the server of `home` without `strace`.
///
/// # Errors
/// If it exits, with its log output.
pub fn start_untraced(home: &Home) -> Result<Server, String> {
    match wait_for_start(home, home.spawn(&[]), "no fault") {
        StartResult::Listening(server) => Ok(server),
        StartResult::Exited(status) => Err(format!("the next start exited with {status}:\n{}", home.log())),
    }
}

fn wait_for_start(home: &Home, mut process: Process, fault: &str) -> StartResult {
    let end = Instant::now() + START_TIMEOUT;
    loop {
        if let Some(status) = process.try_wait() {
            return StartResult::Exited(status);
        }
        if home.path("ready").exists() {
            return StartResult::Listening(home.wait_until_ready(process));
        }
        assert!(
            Instant::now() < end,
            "with {fault}: expected the server to listen or exit within {START_TIMEOUT:?}:\n{}",
            home.log()
        );
        thread::sleep(Duration::from_millis(2));
    }
}

/// Waits until a server of `home` has exited, at most for `limit`.
pub fn wait_for_exit(home: &Home, mut process: Process, limit: Duration, context: &str) -> ExitStatus {
    let end = Instant::now() + limit;
    loop {
        if let Some(status) = process.try_wait() {
            return status;
        }
        assert!(Instant::now() < end, "{context}: expected the server to exit within {limit:?}:\n{}", home.log());
        thread::sleep(Duration::from_millis(5));
    }
}

/// Checks that a server with a fault exited with code 1 and reported it.
///
/// The report is the last line of the log, and begins with `mesa: `.
///
/// # Errors
/// If the exit code is another, the report is missing, or the log has internal terms.
pub fn check_exit(home: &Home, status: ExitStatus) -> Result<(), String> {
    let log = home.log();
    let reported = log.lines().last().is_some_and(|last| last.starts_with("mesa: "));
    // Debug output and sled's own messages do not help an operator.
    let is_logged = |term: &&str| log.lines().any(|line| line.contains(term) && !is_caught_panic(line));
    if let Some(term) = ["Os {", "kind: ", "IO error", "REPORT THIS BUG"].iter().find(|term| is_logged(term)) {
        return Err(format!("the server exited with {status} and logged {term:?}:\n{log}"));
    }
    if status.code() == Some(1) && reported {
        Ok(())
    } else {
        Err(format!("the server exited with {status}; expected exit code 1 and a last line `mesa: …`:\n{log}"))
    }
}

/// Returns the path of the trace of the last start.
fn trace_path(home: &Home) -> PathBuf {
    home.path("trace")
}

/// Counts the faults that `strace` has injected so far. It may still write the trace, so the count may rise.
pub fn count_injected(home: &Home) -> usize {
    fs::read_to_string(trace_path(home)).unwrap_or_default().matches("(INJECTED)").count()
}

/// System calls of a start that name the store.
#[derive(Debug)]
pub struct StoreCalls {
    /// Number of each call, in the thread that made it most often.
    pub counts: BTreeMap<String, usize>,
    /// Files of the store that were used, and the store's directory.
    pub paths: BTreeSet<PathBuf>,
}

/// Starts the server of `home` without a fault, kills it, and returns its store calls.
pub fn trace_start(home: &Home) -> StoreCalls {
    let StartResult::Listening(server) = start(home, "%file,%desc", &BTreeSet::new(), None) else {
        panic!("expected the server to start under strace:\n{}", home.log());
    };
    server.process.kill();
    let store = home.store();
    let store = utf8(&store);
    let mut thread_counts: HashMap<(String, String), usize> = HashMap::new();
    let mut paths = BTreeSet::new();
    for line in fs::read_to_string(trace_path(home)).expect("a trace").lines() {
        let Some((thread, text)) = line.trim_start().split_once(' ') else { continue };
        let Some((call, arguments)) = text.trim_start().split_once('(') else { continue };
        // A resumed call begins with "<...", and was counted when it began. `execve` has the store's path as an
        // argument only.
        if call.contains(' ') || call == "execve" || !arguments.contains(store) {
            continue;
        }
        *thread_counts.entry((thread.to_owned(), call.to_owned())).or_default() += 1;
        paths.extend(arguments.match_indices(store).filter_map(|(index, _)| {
            let path = &arguments[index..];
            Some(PathBuf::from(&path[..path.find(['"', '>'])?]))
        }));
    }
    let mut counts = BTreeMap::new();
    for ((_, call), count) in thread_counts {
        let most = counts.entry(call).or_default();
        *most = count.max(*most);
    }
    assert!(
        counts.len() > 5 && paths.len() > 3,
        "expected more than 5 calls on more than 3 paths: {counts:?}, {paths:?}"
    );
    StoreCalls { counts, paths }
}

fn utf8(path: &Path) -> &str {
    path.to_str().expect("a UTF-8 path")
}
