//! System calls that fail while a server opens its store, each of them, once and for ever: it starts all the same and
//! keeps what it promises, or it ends with a sentence. Nothing that was there is harmed.

use std::collections::BTreeSet;

use crate::{
    env,
    fixture_store::{self, Prepared},
    strace::{self, Fault, Footprint, Started},
    support::{http::Http, seeded_rng::Random, server::Home},
    tracker::Ledger,
};

/// Faults in the short form, beside those of syncs.
const FAULTS: usize = 60;
const FIRST_FAULTS: usize = 20;

/// What fails with EIO, and whether a full disk can make it fail as well.
const CALLS: &[(&str, bool)] = &[
    ("openat", true),
    ("mkdir", true),
    ("rename", true),
    ("pwrite64", true),
    ("write", true),
    ("ftruncate", true),
    ("fallocate", true),
    ("fsync", true),
    ("fdatasync", true),
    ("sync_file_range", true),
    ("read", false),
    ("getdents64", false),
    ("statx", false),
    ("flock", false),
    ("unlink", false),
];

#[test]
fn a_start_with_failing_system_calls_ends_with_a_sentence_or_serves() {
    if !env::strace_is_here("system calls that fail while a store is opened") {
        return;
    }
    let mut random = Random::announced("failing_start");
    let (home, prepared) = (Home::new(), Prepared::new());
    let place = || prepared.place(&home);
    let check = |ledger: &Ledger| prepared.check_after(&home, ledger);
    let told = fail_everywhere(&home, &mut random, FAULTS, place, check);
    env::say(&format!("{told}, over a store that holds something"));
}

#[test]
fn a_first_start_with_failing_system_calls_ends_with_a_sentence_or_serves() {
    if !env::strace_is_here("system calls that fail while a store is made") {
        return;
    }
    let mut random = Random::announced("failing_first_start");
    let home = Home::new();
    let place = || fixture_store::place_none(&home);
    let check = |ledger: &Ledger| {
        fixture_store::check_no_panic(&home)?;
        let server = strace::start_without(&home)?;
        let mut http = Http::connect(server.address).map_err(|error| error.to_string())?;
        ledger.check(&mut http)?;
        let mut after = Ledger::default();
        match after.dispatch(&mut http, "after").map_err(|error| error.to_string())? {
            200 => after.check(&mut http),
            status => Err(format!("a dispatch was answered with {status}")),
        }
    };
    let told = fail_everywhere(&home, &mut random, FIRST_FAULTS, place, check);
    env::say(&format!("{told}, of a first start"));
}

/// Places a store, lets a call of a start on it fail, and checks; for each call, or for `count` of them and all syncs.
/// Tells what came of it.
fn fail_everywhere(
    home: &Home,
    random: &mut Random,
    count: usize,
    place: impl Fn(),
    check: impl Fn(&Ledger) -> Result<(), String>,
) -> String {
    place();
    let footprint = strace::footprint(home);
    // What fails to last is what this is about most, and those are few: none of them is left to luck.
    let (mut chosen, others): (Vec<_>, Vec<_>) =
        faults(&footprint).into_iter().partition(|fault| fault.call == "fsync" || fault.call == "fdatasync");
    let all = chosen.len() + others.len();
    chosen.extend(env::sample(&others, count, random));
    let (mut wrong, mut fired, mut refused) = (Vec::new(), 0, 0);
    for fault in &chosen {
        place();
        let started = strace::start(home, &fault.call, &footprint.paths, Some(fault));
        refused += usize::from(matches!(started, Started::Ended(_)));
        let held = hold(home, started).and_then(|ledger| check(&ledger));
        if let Err(told) = held {
            wrong.push(format!("after {fault}: {told}"));
        }
        fired += usize::from(strace::injected(home) > 0);
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), chosen.len(), wrong.join("\n"));
    assert!(fired * 10 >= chosen.len() * 8, "of {} faults only {fired} happened", chosen.len());
    format!("{fired} of {all} failing calls at a start; {refused} starts refused, the others served")
}

/// Each call of a start, failing in each way in which it can.
fn faults(footprint: &Footprint) -> Vec<Fault> {
    let mut faults = Vec::new();
    for (call, count) in &footprint.calls {
        let Some((_, full)) = CALLS.iter().find(|(name, _)| name == call) else { continue };
        for when in 1..=*count {
            for how in if *full { &["error=EIO", "error=ENOSPC"][..] } else { &["error=EIO"] } {
                let fault = |for_ever| Fault { call: call.clone(), how, when, for_ever };
                faults.extend([fault(false), fault(true)]);
            }
        }
    }
    faults
}

/// What cannot be read is not what was never written. sled takes a log that it cannot read to end there, and overwrites
/// the rest; its own reads (`pread64`) must not be the first to find out. So all of them fail here, from the moment on at
/// which the n-th `read` of the log does.
#[test]
fn a_log_that_cannot_be_read_is_refused_and_not_harmed() {
    if !env::strace_is_here("a log that cannot be read") {
        return;
    }
    let (home, prepared) = (Home::new(), Prepared::new());
    let log = BTreeSet::from([home.store().join("log").join("db")]);
    let mut refused = 0;
    for when in 1.. {
        prepared.place(&home);
        let fault = Fault { call: "read,pread64".into(), how: "error=EIO", when, for_ever: true };
        let started = strace::start(&home, "read,pread64", &log, Some(&fault));
        if !strace::failed_in(&home, "read") {
            // Every `read` went through: what failed was none of ours.
            break;
        }
        let Started::Ended(status) = started else { panic!("{fault}: it serves:\n{}", home.log()) };
        strace::check_end(&home, status).unwrap_or_else(|wrong| panic!("{wrong}"));
        assert!(home.log().contains("cannot be read"), "{}", home.log());
        refused += 1;
        prepared.check_at_a_plain_start(&home).unwrap_or_else(|wrong| panic!("after {fault}: {wrong}"));
    }
    assert!(refused > 1, "a log of several MiB was read at once");
    env::say(&format!("{refused} starts over a log that could not be read were refused, and harmed nothing"));
}

/// What must hold of a start, however it came out; and what it promised, if it serves.
fn hold(home: &Home, started: Started) -> Result<Ledger, String> {
    let mut ledger = Ledger::default();
    match started {
        Started::Ended(status) => strace::check_end(home, status)?,
        Started::Listens(server) => {
            let http = Http::connect(server.address);
            // What was promised by a server that does not know yet that its disk fails was promised all the same.
            if let Ok(mut http) = http {
                while ledger.sent() < 4 && ledger.dispatch(&mut http, "late").is_ok_and(|status| status == 200) {}
            }
            server.process.kill();
        }
    }
    Ok(ledger)
}
