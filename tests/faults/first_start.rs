//! Cuts the power after each change that a first start makes to the disk. The next start must create a store.

use std::io;

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

/// Runs the test.
///
/// # Errors
/// With each server that did not start, or did not accept a dispatch. And if no power cut removed anything.
pub fn run(long: bool) -> Result<(), String> {
    let disk = match MountedDisk::new() {
        Ok(disk) => disk,
        Err(error) if std::env::var_os("CI").is_some() => return Err(format!("{NAME}: no simulated disk: {error}")),
        Err(error) => {
            eprintln!("{NAME}: no simulated disk ({error}): power cuts were NOT tested");
            return Ok(());
        }
    };
    let mut random = Random::from_seed(seed_from_env(NAME));
    let mut home = Home::new();
    home.move_store(disk.path("store"));
    disk.empty_and_copy_after(u64::MAX);
    start(&home)?;
    let changes = disk.changes();
    let cuts = [PowerCut::LoseAll, PowerCut::Torn, PowerCut::Reordered];
    let mut cases: Vec<_> = (1..=changes).flat_map(|change| cuts.map(|cut| (change, cut))).collect();
    while !long && cases.len() > SHORT {
        cases.swap_remove(random.within(0..=cases.len() as u64 - 1) as usize);
    }
    let (mut violations, mut losses) = (Vec::new(), Losses::default());
    for (change, cut) in &cases {
        disk.empty_and_copy_after(*change);
        start(&home)?;
        losses.add(disk.cut_power_at_copy(*cut, &mut random));
        if let Err(reason) = start(&home) {
            violations.push(format!("after change {change}, {cut:?}: {reason}"));
        }
    }
    println!("{NAME}: {} power cuts in the {changes} changes of a first start removed {losses:?}", cases.len());
    if losses.writes == 0 || losses.names == 0 {
        return Err(format!("{NAME}: expected lost writes and names, got {losses:?}: nothing was tested"));
    }
    if violations.is_empty() {
        return Ok(());
    }
    Err(format!("{NAME}: {} of {} starts: {}", violations.len(), cases.len(), violations.join("\n")))
}

/// Starts a server, dispatches a message to it, and kills it.
fn start(home: &Home) -> Result<(), String> {
    let server = home.ready(home.spawn(&[]))?;
    let dispatch = || -> io::Result<u16> {
        Http::connect(server.address)?.try_dispatch(&serde_json::json!({ "n": 0 }), &["alice".to_owned()])
    };
    let status = dispatch();
    _ = server.process.kill();
    match status {
        Ok(200) => Ok(()),
        Ok(status) => Err(format!("expected status 200 for a dispatch, got {status}")),
        Err(error) => Err(format!("expected a response to a dispatch, got: {error}")),
    }
}
