//! Lets each system call fail, once and permanently, while a server opens its store.
//!
//! The server must either start and keep its guarantees, or exit and report the fault. It must not damage the store.

use std::collections::BTreeSet;

use crate::{
    env,
    fixture_store::{self, FixtureStore},
    strace::{self, Fault, StartResult, StoreCalls},
    support::{http::Http, seeded_rng::Random, server::Home},
    tracker::Tracker,
};

/// Faults of each test in the short form, besides those of syncs.
const FAULTS: usize = 60;
const FIRST_START_FAULTS: usize = 20;

/// Calls that fail with `EIO`, and whether they also fail with `ENOSPC`.
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

// covers: G1
#[test]
fn start_with_failing_system_call_serves_or_exits_with_reason() {
    if !env::strace_available("system calls that fail while a store is opened") {
        return;
    }
    let mut random = Random::from_env("failing_start");
    let (home, fixture) = (Home::new(), FixtureStore::new());
    let prepare = || fixture.copy_to(&home);
    let check = |tracker: &Tracker| fixture.check_after_fault(&home, tracker);
    let summary = inject_each_fault(&home, &mut random, FAULTS, prepare, check);
    env::print(&format!("{summary}, on a store with entries"));
}

#[test]
fn first_start_with_failing_system_call_serves_or_exits_with_reason() {
    if !env::strace_available("system calls that fail while a store is created") {
        return;
    }
    let mut random = Random::from_env("failing_first_start");
    let home = Home::new();
    let prepare = || fixture_store::remove_store(&home);
    let check = |tracker: &Tracker| {
        fixture_store::check_no_panic(&home)?;
        let server = strace::start_untraced(&home)?;
        let mut http = Http::connect(server.address).map_err(|error| error.to_string())?;
        tracker.check(&mut http)?;
        let mut after = Tracker::default();
        match after.dispatch(&mut http, "after").map_err(|error| error.to_string())? {
            200 => after.check(&mut http),
            status => Err(format!("expected status 200 for a dispatch, found {status}")),
        }
    };
    let summary = inject_each_fault(&home, &mut random, FIRST_START_FAULTS, prepare, check);
    env::print(&format!("{summary}, of a first start"));
}

/// Injects each fault into a start, and checks the next start. Returns a summary.
///
/// `prepare` creates the store for each start. The short form has all faults of syncs and `count` others.
fn inject_each_fault(
    home: &Home,
    random: &mut Random,
    count: usize,
    prepare: impl Fn(),
    check: impl Fn(&Tracker) -> Result<(), String>,
) -> String {
    prepare();
    let traced = strace::trace_start(home);
    // Failing syncs matter most, and there are few of them, so they are not sampled.
    let (mut chosen, others): (Vec<_>, Vec<_>) =
        faults(&traced).into_iter().partition(|fault| fault.call == "fsync" || fault.call == "fdatasync");
    let total = chosen.len() + others.len();
    chosen.extend(env::sample(&others, count, random));
    let (mut violations, mut happened, mut not_started) = (Vec::new(), 0, 0);
    for fault in &chosen {
        prepare();
        let started = strace::start(home, &fault.call, &traced.paths, Some(fault));
        not_started += usize::from(matches!(started, StartResult::Exited(_)));
        let result = use_briefly(home, started).and_then(|tracker| check(&tracker));
        if let Err(violation) = result {
            violations.push(format!("after {fault}: {violation}"));
        }
        happened += usize::from(strace::count_injected(home) > 0);
    }
    assert!(violations.is_empty(), "{} of {}:\n{}", violations.len(), chosen.len(), violations.join("\n"));
    assert!(happened * 10 >= chosen.len() * 8, "expected at least 80 % of {} faults: {happened}", chosen.len());
    format!("{happened} of {total} failing calls of a start; {not_started} servers did not start, the others served")
}

/// Lists the faults of each call of a start: with each error, once and permanently.
fn faults(traced: &StoreCalls) -> Vec<Fault> {
    let mut faults = Vec::new();
    for (call, count) in &traced.counts {
        let Some((_, can_be_full)) = CALLS.iter().find(|(name, _)| name == call) else { continue };
        for when in 1..=*count {
            for effect in if *can_be_full { &["error=EIO", "error=ENOSPC"][..] } else { &["error=EIO"] } {
                let fault = |permanent| Fault { call: call.clone(), effect, when, permanent };
                faults.extend([fault(false), fault(true)]);
            }
        }
    }
    faults
}

/// Bytes of a segment of sled's file.
const SEGMENT_BYTES: u64 = 512 << 10;

/// sled takes an unreadable log for a shorter one, and overwrites the rest. So mesa must read the log before sled does.
///
/// From the n-th read of its file on, all reads fail. mesa first reads the header of each segment, and then the segments.
// covers: G6
#[test]
fn start_with_unreadable_sled_log_exits_and_keeps_store() {
    if !env::strace_available("a sled log that cannot be read") {
        return;
    }
    let (home, fixture) = (Home::new(), FixtureStore::new());
    let log = BTreeSet::from([home.store().join("log").join("db")]);
    fixture.copy_to(&home);
    let segments =
        std::fs::metadata(home.store().join("log/db")).expect("the file of sled").len().div_ceil(SEGMENT_BYTES);
    let reads = 1..=usize::try_from(segments).expect("few segments") + 1;
    for when in reads.clone() {
        fixture.copy_to(&home);
        let fault = Fault { call: "read,pread64".into(), effect: "error=EIO", when, permanent: true };
        let started = strace::start(&home, "read,pread64", &log, Some(&fault));
        let StartResult::Exited(status) = started else {
            panic!("{fault}: expected the server not to start:\n{}", home.log())
        };
        strace::check_exit(&home, status).unwrap_or_else(|violation| panic!("{violation}"));
        assert!(home.log().contains("cannot be read"), "{}", home.log());
        fixture.check_after_start(&home).unwrap_or_else(|violation| panic!("after {fault}: {violation}"));
    }
    let not_started = reads.count();
    env::print(&format!("{not_started} servers did not start on an unreadable sled log, and kept the store"));
}

/// Checks the exit of a server, or dispatches to a listening one and kills it.
fn use_briefly(home: &Home, started: StartResult) -> Result<Tracker, String> {
    let mut tracker = Tracker::default();
    match started {
        StartResult::Exited(status) => strace::check_exit(home, status)?,
        StartResult::Listening(server) => {
            let http = Http::connect(server.address);
            // A server that has not yet noticed the fault answers dispatches, and must keep those too.
            if let Ok(mut http) = http {
                while tracker.dispatched() < 4 && tracker.dispatch(&mut http, "late").is_ok_and(|status| status == 200)
                {
                }
            }
            server.process.kill();
        }
    }
    Ok(tracker)
}
