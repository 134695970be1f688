//! Writes and syncs that fail under a server at work, each of them, once and for ever: what is answered is kept, and
//! from the first answer that was a failure on there are no others: the server ends, and says why.

use std::{
    collections::BTreeSet,
    fs,
    net::SocketAddr,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use crate::{
    ledger::Ledger,
    prepared::Prepared,
    strace::{self, Fault, Started},
    support::{http::Http, random::Random, server::Home},
    tools,
};

/// Faults in the short form.
const FAULTS: usize = 28;

/// Backends that dispatch at the same time.
const BACKENDS: usize = 3;

/// Dispatches of each, if nothing goes wrong.
const DISPATCHES: usize = 40;

/// Further attempts of each after the first failure: none of them may succeed.
const ATTEMPTS: usize = 4;

/// A server whose store has failed is gone by then: it says farewell to its clients first.
const END_MAX: Duration = Duration::from_secs(15);

#[test]
fn after_a_write_or_a_sync_that_failed_nothing_more_is_answered() {
    if !tools::strace_is_here("writes and syncs that fail under a server at work") {
        return;
    }
    let mut random = Random::announced("failing_commits");
    let (home, prepared) = (Home::new(), Prepared::new());
    let faults = faults();
    let chosen = tools::sample(&faults, FAULTS, &mut random);
    let (mut wrong, mut fired, mut stopped, mut answered) = (Vec::new(), 0, 0, 0);
    for (file, commits, fault) in &chosen {
        prepared.place(&home);
        let goes_on = is_full(file, fault);
        match under(&home, &prepared, &files(&home, file), *commits, goes_on, fault) {
            Ok(outcome) => {
                stopped += usize::from(outcome.stopped);
                answered += outcome.answered;
            }
            Err(told) => wrong.push(format!("with {fault} on {file}: {told}")),
        }
        fired += usize::from(strace::injected(&home) > 0);
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), chosen.len(), wrong.join("\n"));
    assert!(fired * 10 >= chosen.len() * 5, "of {} faults only {fired} happened", chosen.len());
    assert!(stopped > 0, "no fault has stopped a server");
    tools::say(&format!(
        "{fired} of {} failing writes and syncs at work: {stopped} servers stopped, {answered} dispatches answered and kept",
        faults.len()
    ));
}

/// Files, or directories of them, and the calls that write or sync them; and whether every commit rests on these. Calls are
/// counted for each thread: the mark, which is written with every commit by the same thread as the journal, would come
/// first every time if it was not apart.
const CALLS: &[(&str, &str, bool)] = &[
    ("journal", "pwrite64", true),
    ("journal", "fdatasync", true),
    ("journal", "pwrite64,fdatasync", true),
    ("mark", "pwrite64", true),
    ("log/db", "pwrite64", false),
    ("log/db", "sync_file_range", false),
    ("log/db", "fsync,fdatasync", false),
];

/// Each of the calls at each of its first times in a thread, and the file.
fn faults() -> Vec<(&'static str, bool, Fault)> {
    let mut faults = Vec::new();
    for (file, call, commits) in CALLS {
        // sled writes little by itself.
        for when in 1..=if *commits { 12 } else { 3 } {
            for how in ["error=EIO", "error=ENOSPC"] {
                let fault = |for_ever| Fault { call: (*call).to_owned(), how, when, for_ever };
                faults.extend([(*file, *commits, fault(false)), (*file, *commits, fault(true))]);
            }
        }
    }
    faults
}

/// What is settled is written elsewhere, ten seconds after it was answered. Where that fails, the server ends just so, and
/// the journal has what could not be moved.
#[test]
fn a_chunk_that_cannot_be_written_or_synced_ends_the_server_and_nothing_is_lost() {
    if !tools::strace_is_here("chunks that cannot be written") {
        return;
    }
    let (home, prepared) = (Home::new(), Prepared::new());
    for (call, when) in [("pwrite64", 1), ("pwrite64", 3), ("fdatasync", 1)] {
        prepared.place(&home);
        // A server writes chunks to a file that it has begun itself.
        let last = files(&home, "inbox").into_iter().next_back().expect("the store has inboxes");
        let number = last.file_name().and_then(|name| u64::from_str_radix(name.to_str()?, 16).ok()).expect("a number");
        let next = BTreeSet::from([last.with_file_name(format!("{:016x}", number + 1))]);
        let fault = Fault { call: call.into(), how: "error=EIO", when, for_ever: false };
        let Started::Listens(server) = strace::start(&home, call, &next, Some(&fault)) else {
            panic!("{fault}: it does not start:\n{}", home.log());
        };
        let (ledger, _) = dispatch(server.address, 0, 5);
        let status = strace::wait(server.process, Duration::from_secs(40), &fault.to_string());
        strace::check_end(&home, status).unwrap_or_else(|wrong| panic!("{fault}: {wrong}"));
        assert_eq!(strace::injected(&home), 1, "{fault}");
        prepared.check_after(&home, &ledger).unwrap_or_else(|wrong| panic!("after {fault}: {wrong}"));
    }
    tools::say("3 chunks that could not be written or synced: 3 servers stopped, and lost nothing");
}

/// Whether what fails is a write that counts for nothing where the disk is full: then the server stays, and goes on when there is
/// space. A sync that fails is final, whatever the reason.
fn is_full(file: &str, fault: &Fault) -> bool {
    fault.how == "error=ENOSPC" && fault.call.starts_with("pwrite64") && ["journal", "mark"].contains(&file)
}

struct Outcome {
    stopped: bool,
    answered: usize,
}

/// A file of the store, or what is in a directory of it.
fn files(home: &Home, name: &str) -> BTreeSet<PathBuf> {
    let path = home.store().join(name);
    match fs::read_dir(&path) {
        Ok(files) => files.map(|file| file.expect("a file").path()).collect(),
        Err(_) => BTreeSet::from([path]),
    }
}

/// Works with a server under a fault, and holds what must hold, also at the plain start afterwards.
fn under(
    home: &Home,
    prepared: &Prepared,
    paths: &BTreeSet<PathBuf>,
    commits: bool,
    goes_on: bool,
    fault: &Fault,
) -> Result<Outcome, String> {
    assert!(!paths.is_empty(), "there is nothing to fail");
    let mut outcome = Outcome { stopped: false, answered: 0 };
    let mut ledger = Ledger::default();
    match strace::start(home, &fault.call, paths, Some(fault)) {
        Started::Ended(status) => strace::check_end(home, status)?,
        Started::Listens(server) => {
            let mut histories = Vec::new();
            for (done, history) in work(server.address) {
                ledger.merge(done);
                histories.extend(history);
            }
            if goes_on {
                let mut server = server;
                let late = dispatch(server.address, BACKENDS, 1);
                ledger.merge(late.0);
                if let Some(status) = server.process.ended() {
                    strace::check_end(home, status)?;
                }
                outcome.answered = ledger.answered();
                server.process.kill();
                return prepared.check_after(home, &ledger).map(|()| outcome);
            }
            let failed = histories.iter().filter(|call| !call.success).map(|call| call.answered).min();
            if let Some(failed) = failed {
                if histories.iter().any(|call| call.success && call.begun > failed) {
                    return Err("a dispatch was answered after one had failed".into());
                }
                if stays_ready(server.address) {
                    return Err("the store has failed, and the server says that it is ready".into());
                }
                let status = strace::wait(server.process, END_MAX, &fault.to_string());
                strace::check_end(home, status)?;
                outcome.stopped = true;
            } else {
                let mut late = dispatch(server.address, BACKENDS, 1);
                if commits && strace::injected(home) > 0 && late.1.pop().is_some_and(|call| call.success) {
                    return Err("a write or a sync of a commit has failed, and the server goes on answering".into());
                }
                ledger.merge(late.0);
                server.process.kill();
            }
        }
    }
    prepared.check_after(home, &ledger)?;
    outcome.answered = ledger.answered();
    Ok(outcome)
}

/// Whether the server goes on saying that it is ready. Those who waited are answered a moment before that is known.
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

/// A dispatch: when it was begun and answered, and how.
struct Call {
    begun: Instant,
    answered: Instant,
    success: bool,
}

fn work(address: SocketAddr) -> Vec<(Ledger, Vec<Call>)> {
    let backends: Vec<_> =
        (0..BACKENDS).map(|backend| thread::spawn(move || dispatch(address, backend, DISPATCHES))).collect();
    backends
        .into_iter()
        .map(|backend| backend.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        .collect()
}

/// Dispatches `count` times, and goes on a little after the first failure, over new connections.
fn dispatch(address: SocketAddr, backend: usize, count: usize) -> (Ledger, Vec<Call>) {
    let (mut ledger, mut history, mut failures) = (Ledger::default(), Vec::new(), 0);
    let mut http = Http::connect(address).ok();
    let user = format!("worked-for-by-{backend}");
    while history.len() < count && failures < ATTEMPTS {
        let begun = Instant::now();
        let answer = match &mut http {
            Some(http) => ledger.dispatch_padded(http, &user, if history.len() % 8 == 7 { 20_000 } else { 100 }),
            None => Err(std::io::ErrorKind::ConnectionRefused.into()),
        };
        // Silence is no failure: it is a hang, and that is never right.
        assert!(begun.elapsed() < Duration::from_secs(19), "a dispatch was never answered");
        let success = answer.as_ref().is_ok_and(|status| *status == 200);
        history.push(Call { begun, answered: Instant::now(), success });
        if answer.is_err() {
            http = Http::connect(address).ok();
        }
        failures += usize::from(!success);
    }
    (ledger, history)
}
