//! SIGKILL at each system call with which a server opens its store: the next start finds everything.
//!
//! Where a start is killed matters most while it writes: a snapshot half written, a lock without its holder's name, a
//! log cut to its size. A call is killed before it is done, so the calls that only read stand for the moments between
//! those that write.

use std::os::unix::process::ExitStatusExt as _;

use crate::{
    env,
    fixture_store::{self, Prepared},
    strace::{self, Fault, Started},
    support::{http::Http, seeded_rng::Random, server::Home},
};

/// Kills of each kind of store in the short form.
const KILLS: usize = 40;

#[test]
fn a_start_killed_at_any_system_call_is_followed_by_one_that_finds_everything() {
    if !env::strace_is_here("being killed at each system call of a start") {
        return;
    }
    let mut random = Random::announced("kill_at_start");
    let (home, prepared) = (Home::new(), Prepared::new());
    let place = || prepared.place(&home);
    let check = || prepared.check_at_a_plain_start(&home);
    let (kills, sites) = kill_everywhere(&home, &mut random, place, check);
    env::say(&format!("{kills} starts killed at {kills} of {sites} system calls, over a store that holds something"));
}

#[test]
fn a_first_start_killed_at_any_system_call_is_followed_by_one_that_works() {
    if !env::strace_is_here("being killed at each system call of a first start") {
        return;
    }
    let mut random = Random::announced("kill_at_first_start");
    let home = Home::new();
    let place = || fixture_store::place_none(&home);
    let check = || {
        let server = strace::start_without(&home)?;
        let mut http = Http::connect(server.address).map_err(|error| error.to_string())?;
        let status = http.try_dispatch(&serde_json::json!({ "n": 0 }), &["alice".to_owned()]);
        match status.map_err(|error| error.to_string())? {
            200 => Ok(()),
            status => Err(format!("a dispatch was answered with {status}")),
        }
    };
    let (kills, sites) = kill_everywhere(&home, &mut random, place, check);
    env::say(&format!("{kills} first starts killed at {kills} of {sites} system calls"));
}

/// Places a store, kills a start on it at a call, and checks; for each call, or for a sample. Returns how many were
/// killed, and how many calls there are.
fn kill_everywhere(
    home: &Home,
    random: &mut Random,
    place: impl Fn(),
    check: impl Fn() -> Result<(), String>,
) -> (usize, usize) {
    place();
    let footprint = strace::footprint(home);
    let sites: Vec<(String, usize)> =
        footprint.calls.iter().flat_map(|(call, count)| (1..=*count).map(move |when| (call.clone(), when))).collect();
    let chosen = env::sample(&sites, KILLS, random);
    let (mut kills, mut wrong) = (0, Vec::new());
    for (call, when) in &chosen {
        let fault = Fault { call: call.clone(), how: "signal=KILL", when: *when, for_ever: false };
        place();
        match strace::start(home, call, &footprint.paths, Some(&fault)) {
            Started::Ended(status) => {
                assert_eq!(status.signal(), Some(9), "{fault}: ended with {status}:\n{}", home.log());
                kills += 1;
            }
            // Threads may share their work otherwise than they did while we counted.
            Started::Listens(server) => _ = server.process.kill(),
        }
        if let Err(told) = check() {
            wrong.push(format!("after {fault}: {told}"));
        }
    }
    assert!(wrong.is_empty(), "{} of {} starts: {}", wrong.len(), chosen.len(), wrong.join("\n"));
    assert!(kills * 10 >= chosen.len() * 8, "of {} starts only {kills} were killed", chosen.len());
    (kills, sites.len())
}
