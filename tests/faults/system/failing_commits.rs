//! Writes and syncs that fail under a server at work, each of them, once and for ever: what is answered is kept, and
//! from the first answer that was a failure on there are no others: the server ends, and says why.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
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
    for (file, fault) in &chosen {
        prepared.place(&home);
        match under(&home, &prepared, file, fault) {
            Ok(outcome) => {
                stopped += usize::from(outcome.stopped);
                answered += outcome.answered;
            }
            Err(told) => wrong.push(format!("with {fault} on {file}: {told}")),
        }
        fired += usize::from(strace::injected(&home) > 0);
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), chosen.len(), wrong.join("\n"));
    assert!(fired * 10 >= chosen.len() * 7, "of {} faults only {fired} happened", chosen.len());
    assert!(stopped > 0, "no fault has stopped a server");
    tools::say(&format!(
        "{fired} of {} failing writes and syncs at work: {stopped} servers stopped, {answered} dispatches answered and kept",
        faults.len()
    ));
}

/// Files, and the calls that write or sync them. Which threads of sled do so is up to it, and calls are counted for each:
/// the mark, which is written with every commit by one thread, would come first every time if it was not apart.
const CALLS: &[(&str, &str)] = &[
    ("log/db", "pwrite64"),
    ("log/db", "sync_file_range"),
    ("log/db", "fdatasync"),
    ("log/db", "fsync"),
    ("log/db", "fsync,fdatasync"),
    ("log/db", "pwrite64,fsync,fdatasync"),
    ("mark", "pwrite64"),
];

/// Each of the calls at each of its first times in a thread, and the file.
fn faults() -> Vec<(&'static str, Fault)> {
    let mut faults = Vec::new();
    for (file, call) in CALLS {
        for when in 1..=12 {
            for how in ["error=EIO", "error=ENOSPC"] {
                let fault = |for_ever| Fault { call: (*call).to_owned(), how, when, for_ever };
                faults.extend([(*file, fault(false)), (*file, fault(true))]);
            }
        }
    }
    faults
}

struct Outcome {
    stopped: bool,
    answered: usize,
}

/// Works with a server under a fault, and holds what must hold, also at the plain start afterwards.
fn under(home: &Home, prepared: &Prepared, file: &str, fault: &Fault) -> Result<Outcome, String> {
    let paths = BTreeSet::from([home.store().join(file)]);
    let mut outcome = Outcome { stopped: false, answered: 0 };
    let mut ledger = Ledger::default();
    match strace::start(home, &fault.call, &paths, Some(fault)) {
        Started::Ended(status) => strace::check_end(home, status)?,
        Started::Listens(server) => {
            let mut histories = Vec::new();
            for (done, history) in work(server.address) {
                ledger.merge(done);
                histories.extend(history);
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
                if hits_a_commit(home) && late.1.pop().is_some_and(|call| call.success) {
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

/// Whether what failed was part of a commit: sled alone calls `fsync`, behind our backs, and nothing rests on it.
fn hits_a_commit(home: &Home) -> bool {
    ["pwrite64", "sync_file_range", "fdatasync"].iter().any(|call| strace::failed_in(home, call))
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
