//! A server under `strace`, which kills it or lets system calls fail as told, and writes down what it did.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    path::{Path, PathBuf},
    process::ExitStatus,
    thread,
    time::{Duration, Instant},
};

use crate::{
    prepared::is_caught_panic,
    support::server::{Home, Process, Server},
};

/// How long a server under `strace` may take to listen or to end. A hang is longer.
const PATIENCE: Duration = Duration::from_secs(120);

/// What is to happen at a system call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The name of the call.
    pub call: String,
    /// What happens there: `signal=KILL`, `error=EIO`.
    pub how: &'static str,
    /// At which of them, counted for each thread from one.
    pub when: usize,
    /// At all that follow, too.
    pub for_ever: bool,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { call, how, when, for_ever } = self;
        write!(f, "{call}:{how}:when={when}{}", if *for_ever { "+" } else { "" })
    }
}

/// How a start under `strace` came out.
#[derive(Debug)]
pub enum Started {
    /// It listens.
    Listens(Server),
    /// It has ended.
    Ended(ExitStatus),
}

/// Starts the server of `home` under `strace`, which looks at `calls` on `paths` only (on everything where there are
/// none), and waits until it listens or has ended.
pub fn start(home: &Home, calls: &str, paths: &BTreeSet<PathBuf>, fault: Option<&Fault>) -> Started {
    let with = fault.map_or("nothing".to_owned(), Fault::to_string);
    come_up(home, spawn(home, calls, paths, fault), &with)
}

/// The same without waiting.
pub fn spawn(home: &Home, calls: &str, paths: &BTreeSet<PathBuf>, fault: Option<&Fault>) -> Process {
    _ = fs::remove_file(trace(home));
    let trace = trace(home);
    let (traced, fault) = (format!("trace={calls}"), fault.map(|fault| format!("inject={fault}")));
    // The server is our own child, and strace its tracer beside it: to end the one is to end both.
    let mut wrapper = vec!["strace", "-D", "-f", "-y", "-e", "signal=none", "-o", utf8(&trace), "-e", &traced];
    wrapper.extend(fault.iter().flat_map(|fault| ["-e", fault.as_str()]));
    wrapper.extend(paths.iter().flat_map(|path| ["-P", utf8(path)]));
    home.spawn(&wrapper)
}

/// Starts the server of `home` as it is started every day.
///
/// # Errors
/// When it does not come up, with what it said.
pub fn start_without(home: &Home) -> Result<Server, String> {
    match come_up(home, home.spawn(&[]), "no fault any more") {
        Started::Listens(server) => Ok(server),
        Started::Ended(status) => Err(format!("the next start ended with {status}:\n{}", home.log())),
    }
}

fn come_up(home: &Home, mut process: Process, with: &str) -> Started {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = process.ended() {
            return Started::Ended(status);
        }
        if home.path("ready").exists() {
            return Started::Listens(home.wait_until_ready(process));
        }
        assert!(Instant::now() < end, "with {with}: neither up nor down after {PATIENCE:?}:\n{}", home.log());
        thread::sleep(Duration::from_millis(2));
    }
}

/// How a server under `strace` ends, which it has to within `patience`.
pub fn wait(mut process: Process, patience: Duration, what: &str) -> ExitStatus {
    let end = Instant::now() + patience;
    loop {
        if let Some(status) = process.ended() {
            return status;
        }
        assert!(Instant::now() < end, "{what}: the server does not end within {patience:?}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Holds that a server which ended with a fault ended as it should: with a failure, and a sentence that says which.
///
/// # Errors
/// When it did not.
pub fn check_end(home: &Home, status: ExitStatus) -> Result<(), String> {
    let log = home.log();
    let told = log.lines().last().is_some_and(|last| last.starts_with("mesa: "));
    // Terms for programmers, not for operators.
    let said = |terms: &&str| log.lines().any(|line| line.contains(terms) && !is_caught_panic(line));
    if let Some(terms) = ["Os {", "kind: ", "IO error", "REPORT THIS BUG"].iter().find(|terms| said(terms)) {
        return Err(format!("it ended with {status} and says {terms:?}:\n{log}"));
    }
    if status.code() == Some(1) && told { Ok(()) } else { Err(format!("it ended with {status}:\n{log}")) }
}

/// Where the trace of the last start is.
fn trace(home: &Home) -> PathBuf {
    home.path("trace")
}

/// How often `strace` has let a call fail, as it says itself. It may still be writing: only more can come.
pub fn injected(home: &Home) -> usize {
    fs::read_to_string(trace(home)).unwrap_or_default().matches("(INJECTED)").count()
}

/// Whether `strace` has let a call of this name fail.
pub fn failed_in(home: &Home, call: &str) -> bool {
    let (whole, end) = (format!(" {call}("), format!("<... {call} resumed>"));
    let trace = fs::read_to_string(trace(home)).unwrap_or_default();
    trace.lines().any(|line| line.ends_with("(INJECTED)") && (line.contains(&whole) || line.contains(&end)))
}

/// What a start did to the store: how often each call was made by the thread that made it most, and on which files.
#[derive(Debug)]
pub struct Footprint {
    /// Calls and their counts.
    pub calls: BTreeMap<String, usize>,
    /// Everything in the store, and the store itself.
    pub paths: BTreeSet<PathBuf>,
}

/// Starts the server of `home` without a fault, ends it, and tells what it did to its store.
pub fn footprint(home: &Home) -> Footprint {
    let Started::Listens(server) = start(home, "%file,%desc", &BTreeSet::new(), None) else {
        panic!("the server does not start under strace:\n{}", home.log());
    };
    server.process.kill();
    let store = home.store();
    let store = utf8(&store);
    let mut counts: HashMap<(String, String), usize> = HashMap::new();
    let mut paths = BTreeSet::new();
    for line in fs::read_to_string(trace(home)).expect("a trace").lines() {
        let Some((thread, text)) = line.trim_start().split_once(' ') else { continue };
        let Some((call, arguments)) = text.trim_start().split_once('(') else { continue };
        // Ends of calls begin with "<...": their beginnings were counted. And the program itself is no file of a store.
        if call.contains(' ') || call == "execve" || !arguments.contains(store) {
            continue;
        }
        *counts.entry((thread.to_owned(), call.to_owned())).or_default() += 1;
        paths.extend(arguments.match_indices(store).filter_map(|(at, _)| {
            let path = &arguments[at..];
            Some(PathBuf::from(&path[..path.find(['"', '>'])?]))
        }));
    }
    let mut calls = BTreeMap::new();
    for ((_, call), count) in counts {
        let most = calls.entry(call).or_default();
        *most = count.max(*most);
    }
    assert!(calls.len() > 5 && paths.len() > 3, "hardly anything was traced: {calls:?} on {paths:?}");
    Footprint { calls, paths }
}

fn utf8(path: &Path) -> &str {
    path.to_str().expect("a plain path")
}
