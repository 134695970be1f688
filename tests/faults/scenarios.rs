//! Defines the scenarios. Each has a short form for every test run, and a long form of any length on the command line.

use std::{collections::BTreeSet, process::ExitCode, time::Duration};

use crate::{
    runner::{Fault, Runner, Scenario, Until, any_power_cut},
    support::seeded_rng::{Random, seed_from_env},
    workload::Params,
};

/// Names of the scenarios.
pub const NAMES: &[&str] = &["kills", "interval", "power", "soak"];

/// Name of the power cuts during a first start, which have no load and no history.
pub const FIRST_START: &str = "first-start";

/// Name of the failed syncs, each followed by a restart and a power cut.
pub const FAILED_SYNC: &str = "failed-sync";

/// Failpoints, each with the scenario that must find it.
const FAILPOINTS: &[(&str, &str)] = &[
    ("NoSync", "power"),
    ("EarlyResponse", "power"),
    ("LostRecord", "kills"),
    ("ForeignEntry", "kills"),
    ("Reorder", "kills"),
    ("AckTooFar", "kills"),
    ("LostAck", "kills"),
    ("SequenceReuse", "kills"),
    ("LostIds", "kills"),
    ("SharedCursor", "kills"),
    ("UnreportedGap", "kills"),
    ("SwappedResults", "kills"),
];

/// Faults within which a failpoint must be found.
const FAULTS_MAX: u64 = 60;

/// Time between two faults of a soak, in milliseconds.
const SOAK_WORK_MS: u64 = 5_000;

/// Returns a scenario, with the lengths of its short form and its long form.
fn scenario(name: &str) -> (Scenario, Until, Until) {
    let kills = Scenario {
        name: "kills",
        settings: "",
        durability: "always",
        work_ms: 0..=250,
        faults_per_round: 10,
        start_faults: true,
        simulated_disk: false,
        choose_fault: |_| Fault::Kill,
        params: Params::standard(),
        failpoint: None,
        progress: false,
    };
    match name {
        // covers: G1, G2, G3, G4, G5
        "kills" => (kills, Until::Faults(100), Until::Faults(1000)),
        // covers: G4, G5
        "interval" => {
            let settings = "store: { durability: { interval: 100 } },";
            let scenario = Scenario { name: "interval", settings, durability: "interval", ..kills };
            (scenario, Until::Faults(20), Until::Faults(200))
        }
        // covers: G1, G2, G3, G4, G5
        "power" => {
            let choose_fault = |random: &mut Random| Fault::PowerCut(any_power_cut(random));
            let scenario = Scenario { name: "power", simulated_disk: true, choose_fault, ..kills };
            (scenario, Until::Faults(24), Until::Faults(500))
        }
        // covers: G1, G2, G3, G4, G5
        "soak" => {
            let scenario = Scenario { name: "soak", simulated_disk: true, choose_fault: any_fault, ..kills };
            (scenario, Until::Faults(10), Until::Time(minutes(30)))
        }
        other => unreachable!("{other} is not a scenario"),
    }
}

/// Chooses any kind of fault.
fn any_fault(random: &mut Random) -> Fault {
    // Half of them leave the server alive, so that some servers live long enough to flush their write-ahead log.
    match random.within(0..=9) {
        0 => Fault::Terminate,
        1..=2 => Fault::Pause,
        3..=5 => Fault::Disconnect,
        6 => Fault::Kill,
        _ => Fault::PowerCut(any_power_cut(random)),
    }
}

const fn minutes(minutes: u64) -> Duration {
    Duration::from_secs(60 * minutes)
}

/// Turns on each failpoint, and fails unless its scenario finds it.
pub fn failpoints(names: &[&str]) -> ExitCode {
    if let Err(code) = require_failpoints() {
        return code;
    }
    if let Some(unknown) = names.iter().find(|name| FAILPOINTS.iter().all(|(failpoint, _)| failpoint != *name)) {
        let known: Vec<&str> = FAILPOINTS.iter().map(|(failpoint, _)| *failpoint).collect();
        eprintln!("unknown failpoint {unknown}; the failpoints are {known:?}");
        return ExitCode::from(2);
    }
    let chosen = FAILPOINTS.iter().filter(|(failpoint, _)| names.is_empty() || names.contains(failpoint));
    let results: Vec<Result<(), String>> = chosen.map(|(failpoint, name)| find(failpoint, name)).collect();
    conclude(&results)
}

/// Runs kills and power cuts on servers that flush early.
///
/// A record stays in the write-ahead log for 10 s before its flush, and few servers live that long here. The failpoint
/// `EarlyFlush` shortens that time.
pub fn flush(faults: Option<&str>) -> ExitCode {
    if let Err(code) = require_failpoints() {
        return code;
    }
    let progress = faults.is_some();
    let faults = faults.map_or(40, |faults| faults.parse().expect("the number of faults is a number"));
    let results = ["kills", "power"].map(|name| {
        let (scenario, ..) = scenario(name);
        let scenario = Scenario { failpoint: Some("EarlyFlush"), work_ms: 0..=600, progress, ..scenario };
        run(&scenario, Until::Faults(faults))
    });
    conclude(&results)
}

/// Returns exit code 2 if this build has no failpoints.
fn require_failpoints() -> Result<(), ExitCode> {
    if cfg!(feature = "failpoints") {
        return Ok(());
    }
    eprintln!("this build has no failpoints; use: cargo test --features failpoints --test faults -- failpoints");
    Err(ExitCode::from(2))
}

/// Runs a scenario with a failpoint. Fails if the checker finds no violation.
fn find(failpoint: &'static str, name: &str) -> Result<(), String> {
    let (scenario, _, _) = scenario(name);
    let scenario = Scenario { failpoint: Some(failpoint), faults_per_round: 5, ..scenario };
    match run(&scenario, Until::Faults(FAULTS_MAX)) {
        Ok(()) => Err(format!("expected `{name}` to find the failpoint {failpoint}")),
        Err(report) => {
            let kinds = report.lines().filter_map(|line| Some(line.split_once(": ")?.0)).filter(|kind| is_kind(kind));
            let kinds: BTreeSet<&str> = kinds.collect();
            // A server that does not know the failpoint does not start. That is a violation too, but not of the
            // failpoint.
            if kinds.is_empty() || report.contains("unknown failpoint") {
                return Err(format!("failpoint {failpoint}: expected `{name}` to find a violation, not: {report}"));
            }
            eprintln!("failpoint {failpoint}: found by `{name}`: {kinds:?}\n");
            Ok(())
        }
    }
}

/// Reports whether a text could be the name of a kind of violation.
fn is_kind(text: &str) -> bool {
    text.starts_with(char::is_uppercase) && text.chars().all(char::is_alphabetic)
}

/// Runs the long form of a scenario. `length` is in faults, of a soak in minutes.
pub fn long(name: &str, length: Option<&str>) -> ExitCode {
    let (mut scenario, _, default) = scenario(name);
    let length = length.map(|length| length.parse().expect("the length is a number"));
    let until = match (default, length) {
        (default, None) => default,
        (Until::Faults(_), Some(faults)) => Until::Faults(faults),
        (Until::Time(_), Some(length)) => Until::Time(minutes(length)),
    };
    scenario.progress = true;
    scenario.work_ms = match until {
        // Enough work for a million answers in 1,000 kills.
        Until::Faults(_) => 0..=800,
        Until::Time(_) => SOAK_WORK_MS..=SOAK_WORK_MS,
    };
    conclude(&[run(&scenario, until)])
}

/// Runs the short forms of all scenarios whose name contains one of the filters.
pub fn short(filters: &[&str]) -> ExitCode {
    let filters: Vec<&str> = filters.iter().copied().filter(|filter| !filter.starts_with('-')).collect();
    let is_chosen = |name: &str| filters.is_empty() || filters.iter().any(|filter| name.contains(filter));
    let chosen = NAMES.iter().filter(|name| is_chosen(name));
    let mut results: Vec<Result<(), String>> = chosen
        .map(|name| {
            let (scenario, until, _) = scenario(name);
            run(&scenario, until)
        })
        .collect();
    for name in [FIRST_START, FAILED_SYNC] {
        if is_chosen(name) {
            results.push(run_on_simulated_disk(name, false));
        }
    }
    conclude(&results)
}

/// Runs the long form of [`FIRST_START`] or [`FAILED_SYNC`].
pub fn simulated_disk(name: &str) -> ExitCode {
    conclude(&[run_on_simulated_disk(name, true)])
}

#[cfg(target_os = "linux")]
fn run_on_simulated_disk(name: &str, long: bool) -> Result<(), String> {
    if name == FIRST_START { crate::first_start::run(long) } else { crate::failed_sync::run(long) }
}

#[cfg(not(target_os = "linux"))]
fn run_on_simulated_disk(name: &str, _: bool) -> Result<(), String> {
    eprintln!("{name}: the simulated disk exists only on Linux: power cuts were NOT tested");
    Ok(())
}

fn run(scenario: &Scenario, until: Until) -> Result<(), String> {
    match Runner::new(scenario, seed_from_env(scenario.name)) {
        Ok(runner) => runner.run(until),
        Err(error) if std::env::var_os("CI").is_some() => Err(format!("{}: no simulated disk: {error}", scenario.name)),
        Err(error) => {
            eprintln!("{}: no simulated disk ({error}): power cuts were NOT tested", scenario.name);
            Ok(())
        }
    }
}

fn conclude(results: &[Result<(), String>]) -> ExitCode {
    let failures: Vec<&String> = results.iter().filter_map(|result| result.as_ref().err()).collect();
    failures.iter().for_each(|failure| eprintln!("FAILED: {failure}"));
    ExitCode::from(u8::from(!failures.is_empty()))
}
