//! Cuts the power after each change that a first start makes to the disk, and after each change of its first dispatch.
//!
//! The next server must accept a dispatch, and have the first one if it was answered. How many changes a start makes
//! varies a little, so a seed repeats the choices only roughly.

use crate::{
    fuse_disk::{Losses, MountedDisk, PowerCut},
    scenarios::FIRST_START as NAME,
    support::{
        http::Http,
        seeded_rng::{Random, seed_from_env},
        server::Home,
    },
};

/// Power cuts in the short form. The long form cuts the power after each change, in each way.
const SHORT: usize = 40;

/// The recipient of all dispatches.
const USER: &str = "alice";

/// Runs the test.
///
/// # Errors
/// With each server that failed after a power cut. And if no power cut removed anything.
pub fn run(long: bool) -> Result<(), String> {
    let Some(disk) = MountedDisk::new_or_skip(NAME)? else { return Ok(()) };
    let mut random = Random::from_seed(seed_from_env(NAME));
    let mut home = Home::new();
    home.move_store(disk.path("store"));
    start(&home, &disk, false)?;
    let changes = disk.changes();
    let cuts = [PowerCut::LoseAll, PowerCut::Torn, PowerCut::Reordered];
    let mut cases: Vec<_> = (1..=changes).flat_map(|change| cuts.map(|cut| (change, cut))).collect();
    while !long && cases.len() > SHORT {
        cases.swap_remove(random.within(0..=cases.len() as u64 - 1) as usize);
    }
    let (mut cut_count, mut answered_count) = (0, 0);
    let (mut violations, mut losses) = (Vec::new(), Losses::default());
    for (change, cut) in &cases {
        disk.empty_and_copy_after(*change);
        let answered = start(&home, &disk, false)?;
        // This start made fewer changes than the first one.
        let Some(lost) = disk.cut_power_at_copy(*cut, &mut random) else { continue };
        losses.add(lost);
        cut_count += 1;
        let is_answered = *change >= answered;
        answered_count += u64::from(is_answered);
        if let Err(reason) = start(&home, &disk, is_answered) {
            violations.push(format!("after change {change}, {cut:?}: {reason}"));
        }
    }
    println!(
        "{NAME}: {cut_count} power cuts within the {changes} changes of a first start, {answered_count} of them after its \
         dispatch was answered, removed {losses:?}"
    );
    if losses.writes == 0 || losses.names == 0 {
        return Err(format!("{NAME}: expected lost writes and names, got {losses:?}: nothing was tested"));
    }
    if violations.is_empty() {
        return Ok(());
    }
    Err(format!("{NAME}: {} of {cut_count} starts: {}", violations.len(), violations.join("\n")))
}

/// Starts a server, dispatches a message to it, and kills it. Returns the number of changes of the disk at the answer.
///
/// With `has_message`, the message of an earlier server must be pending.
fn start(home: &Home, disk: &MountedDisk, has_message: bool) -> Result<u64, String> {
    let server = home.ready(home.spawn(&[]))?;
    let mut http = Http::connect(server.address).map_err(|error| format!("{NAME}: {error}"))?;
    if has_message && http.pending_entries(USER).is_empty() {
        return Err("the answered dispatch is lost".into());
    }
    let status = http.try_dispatch(&serde_json::json!({ "n": 0 }), &[USER.to_owned()]);
    let answered = disk.changes();
    _ = server.process.kill();
    match status {
        Ok(200) => Ok(answered),
        Ok(status) => Err(format!("{NAME}: expected status 200 for a dispatch, got {status}")),
        Err(error) => Err(format!("{NAME}: expected a response to a dispatch, got: {error}")),
    }
}
