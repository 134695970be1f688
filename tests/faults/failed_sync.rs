//! Lets one sync of a server fail, starts the server again without a reboot, and then cuts the power.
//!
//! After a failed sync, Linux takes the changed pages for written, so a later sync succeeds without them. Every dispatch
//! that was answered before or after must survive the power cut.

use std::{collections::BTreeSet, time::Duration};

use crate::{
    fuse_disk::{MountedDisk, PowerCut},
    scenarios::FAILED_SYNC as NAME,
    support::{
        http::Http,
        seeded_rng::{Random, seed_from_env},
        server::{Home, Server},
    },
};

/// Failing syncs in the short form. The long form lets each sync fail.
const SHORT: usize = 12;

/// Dispatches of each server.
const DISPATCHES: u64 = 5;

/// The recipient of all dispatches.
const USER: &str = "alice";

/// Time within which a server exits after a failed sync, or after a signal.
const EXIT_TIMEOUT: Duration = Duration::from_secs(30);

/// Starts after the failed sync until one succeeds. A sync may fail during a start.
const STARTS_MAX: usize = 2;

/// The answered dispatches, and the number of the next.
#[derive(Default)]
struct Dispatches {
    answered: BTreeSet<u64>,
    next: u64,
}

/// Runs the test.
///
/// # Errors
/// With each lost dispatch, and each server that does not start. And if no sync failed.
pub fn run(long: bool) -> Result<(), String> {
    let Some(disk) = MountedDisk::new_or_skip(NAME)? else { return Ok(()) };
    let mut random = Random::from_seed(seed_from_env(NAME));
    let mut home = Home::new();
    home.move_store(disk.path("store"));
    run_servers(&home, &mut Dispatches::default())?;
    let syncs = disk.syncs();
    let mut cases: Vec<u64> = (1..=syncs).collect();
    while !long && cases.len() > SHORT {
        cases.swap_remove(random.within(0..=cases.len() as u64 - 1) as usize);
    }
    let (mut violations, mut failed) = (Vec::new(), 0);
    for sync in &cases {
        disk.empty_and_fail_sync(*sync);
        let cut = [PowerCut::LoseAll, PowerCut::Torn, PowerCut::Reordered][random.within(0..=2) as usize];
        let result = run_case(&home, &disk, cut, &mut random);
        failed += u64::from(disk.syncs() >= *sync);
        if let Err(reason) = result {
            violations.push(format!("sync {sync} of {syncs}, then {cut:?}: {reason}"));
        }
    }
    println!("{NAME}: {failed} failed syncs, each with a later power cut, {} violations", violations.len());
    if failed == 0 {
        return Err(format!("{NAME}: expected a failed sync: nothing was tested"));
    }
    if violations.is_empty() { Ok(()) } else { Err(format!("{NAME}: {}", violations.join("\n"))) }
}

/// Runs servers until one sync has failed and more dispatches were answered, cuts the power, and checks the next server.
fn run_case(home: &Home, disk: &MountedDisk, cut: PowerCut, random: &mut Random) -> Result<(), String> {
    let mut dispatches = Dispatches::default();
    let mut starts = 0;
    while let Err(error) = run_servers(home, &mut dispatches) {
        starts += 1;
        if starts == STARTS_MAX {
            return Err(error);
        }
    }
    disk.cut_power(cut, random);
    let server = home.ready(home.spawn(&[]))?;
    let mut http = Http::connect(server.address).map_err(|error| error.to_string())?;
    let pending: BTreeSet<u64> = http.pending_entries(USER).iter().filter_map(|(_, data)| data["n"].as_u64()).collect();
    _ = server.process.kill();
    let lost: Vec<_> = dispatches.answered.difference(&pending).collect();
    if lost.is_empty() { Ok(()) } else { Err(format!("the answered dispatches {lost:?} are lost")) }
}

/// Runs a server that is stopped in order, which syncs the tables, and then one that is killed.
fn run_servers(home: &Home, dispatches: &mut Dispatches) -> Result<(), String> {
    for is_stopped in [true, false] {
        let server = home.ready(home.spawn(&[]))?;
        let answered = dispatch(&server, dispatches);
        if answered.is_err() {
            // The store has failed, so the server exits by itself.
            let status = server.process.wait(EXIT_TIMEOUT);
            if status.success() {
                return Err(format!("expected the server to report the failed sync, found {status}:\n{}", home.log()));
            }
        } else if is_stopped {
            server.terminate();
            server.process.wait(EXIT_TIMEOUT);
        } else {
            _ = server.process.kill();
        }
    }
    Ok(())
}

/// Dispatches messages one after the other, until one fails.
fn dispatch(server: &Server, dispatches: &mut Dispatches) -> Result<(), String> {
    let mut http = Http::connect(server.address).map_err(|error| error.to_string())?;
    for _ in 0..DISPATCHES {
        let n = dispatches.next;
        dispatches.next += 1;
        match http.try_dispatch(&serde_json::json!({ "n": n }), &[USER.to_owned()]) {
            Ok(200) => _ = dispatches.answered.insert(n),
            Ok(status) => return Err(format!("status {status}")),
            Err(error) => return Err(error.to_string()),
        }
    }
    Ok(())
}
