//! Starts a server on a store that was copied to a nearly full disk.
//!
//! The copy lacks the space that the store had reserved. The server must start, or exit and report how much space to
//! free. That much must be enough.

use std::process::Command;

use crate::{
    env,
    fixture_store::FixtureStore,
    small_disk::MIB,
    small_disk_server::{connect, create_home},
    support::server::Home,
};

const DISK_BYTES: u64 = 64 * MIB;

/// Free space of the disk after the copy, in MiB.
const FREE_MIB: [u64; 10] = [0, 1, 2, 4, 6, 8, 11, 14, 16, 20];

#[test]
fn copied_store_on_almost_full_disk_opens_or_reports_space_to_free() {
    let (original, fixture) = (Home::new(), FixtureStore::new());
    fixture.copy_to(&original);
    let mut not_started = 0;
    for free in FREE_MIB {
        let Some((home, disk)) = create_home(DISK_BYTES, "") else { return };
        // This copies neither blocks of zeros nor space that is reserved behind the end of a file.
        let copied = Command::new("cp").args(["-r", "--sparse=always"]).args([original.store(), home.store()]).status();
        assert!(copied.is_ok_and(|status| status.success()), "expected cp to succeed");
        disk.create_filler(disk.free_bytes() - free * MIB);
        let server = home.ready(home.spawn(&[])).unwrap_or_else(|_| {
            let log = home.log();
            let reason = log.lines().last().unwrap_or_default();
            assert!(reason.starts_with("mesa: ") && reason.contains("the disk is full"), "{free} MiB: {log}");
            assert!(!reason.contains("os error"), "{free} MiB: {reason}");
            let mib = reason.split("Free ").nth(1).and_then(|rest| rest.split(' ').next()?.parse::<u64>().ok());
            disk.shrink_filler(mib.unwrap_or_else(|| panic!("expected the MiB to free: {reason}")) * MIB);
            not_started += 1;
            home.ready(home.spawn(&[])).unwrap_or_else(|error| panic!("expected the freed space to be enough: {error}"))
        });
        fixture.check(&mut connect(&server)).unwrap_or_else(|violation| panic!("{free} MiB: {violation}"));
        server.process.kill();
    }
    assert!(
        (1..FREE_MIB.len()).contains(&not_started),
        "expected some of {} starts to fail: {not_started}",
        FREE_MIB.len()
    );
    env::print(&format!(
        "{not_started} of {} servers did not start on a copied store on an almost full disk",
        FREE_MIB.len()
    ));
}
