//! Kills a server at each system call with which it opens its store. The next start must find every entry.
//!
//! A kill is most critical while the start writes: a snapshot half written, a lock without its owner's process id, a
//! log truncated. A call is killed before it takes effect, so a kill at a reading call tests the state between two
//! writes.

use std::os::unix::process::ExitStatusExt as _;

use crate::{
    env,
    fixture_store::{self, FixtureStore},
    strace::{self, Fault, StartResult},
    support::{http::Http, seeded_rng::Random, server::Home},
};

/// Kills of each test in the short form.
const KILLS: usize = 40;

// covers: G1
#[test]
fn start_after_start_killed_at_any_system_call_has_every_entry() {
    if !env::strace_available("SIGKILL at each system call of a start") {
        return;
    }
    let mut random = Random::from_env("kill_at_start");
    let (home, fixture) = (Home::new(), FixtureStore::new());
    let prepare = || fixture.copy_to(&home);
    let check = || fixture.check_after_start(&home);
    let (kills, calls) = kill_at_each_call(&home, &mut random, prepare, check);
    env::print(&format!("{kills} starts killed at {kills} of {calls} system calls, on a store with entries"));
}

#[test]
fn start_after_first_start_killed_at_any_system_call_accepts_dispatches() {
    if !env::strace_available("SIGKILL at each system call of a first start") {
        return;
    }
    let mut random = Random::from_env("kill_at_first_start");
    let home = Home::new();
    let prepare = || fixture_store::remove_store(&home);
    let check = || {
        let server = strace::start_untraced(&home)?;
        let mut http = Http::connect(server.address).map_err(|error| error.to_string())?;
        let status = http.try_dispatch(&serde_json::json!({ "n": 0 }), &["alice".to_owned()]);
        match status.map_err(|error| error.to_string())? {
            200 => Ok(()),
            status => Err(format!("expected status 200 for a dispatch, found {status}")),
        }
    };
    let (kills, calls) = kill_at_each_call(&home, &mut random, prepare, check);
    env::print(&format!("{kills} first starts killed at {kills} of {calls} system calls"));
}

/// Kills a start at each system call, and checks the next start.
///
/// The short form has a sample of the calls. `prepare` creates the store for each start.
/// Returns the number of starts killed, and the number of calls of a start.
fn kill_at_each_call(
    home: &Home,
    random: &mut Random,
    prepare: impl Fn(),
    check: impl Fn() -> Result<(), String>,
) -> (usize, usize) {
    prepare();
    let traced = strace::trace_start(home);
    let calls: Vec<(String, usize)> =
        traced.counts.iter().flat_map(|(call, count)| (1..=*count).map(move |when| (call.clone(), when))).collect();
    let chosen = env::sample(&calls, KILLS, random);
    let (mut kills, mut violations) = (0, Vec::new());
    for (call, when) in &chosen {
        let fault = Fault { call: call.clone(), effect: "signal=KILL", when: *when, permanent: false };
        prepare();
        match strace::start(home, call, &traced.paths, Some(&fault)) {
            StartResult::Exited(status) => {
                assert_eq!(status.signal(), Some(9), "{fault}: exited with {status}:\n{}", home.log());
                kills += 1;
            }
            // Calls may be spread over threads in another way than in the trace, so the fault may not happen.
            StartResult::Listening(server) => _ = server.process.kill(),
        }
        if let Err(violation) = check() {
            violations.push(format!("after {fault}: {violation}"));
        }
    }
    assert!(violations.is_empty(), "{} of {} starts: {}", violations.len(), chosen.len(), violations.join("\n"));
    assert!(kills * 10 >= chosen.len() * 8, "expected at least 80 % of {} starts to be killed: {kills}", chosen.len());
    (kills, calls.len())
}
