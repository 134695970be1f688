//! A store that was copied without the space that it had set aside, on a disk that is nearly full. It is served, or its server
//! ends with how much has to be freed, and that is enough.

use std::process::Command;

use crate::{
    env,
    fixture_store::Prepared,
    on_small_disk::{connect, home},
    small_disk::MIB,
    support::server::Home,
};

const DISK_BYTES: u64 = 64 * MIB;

/// MiB of it that are left, beside the copy.
const LEFT: [u64; 10] = [0, 1, 2, 4, 6, 8, 11, 14, 16, 20];

#[test]
fn copied_store_on_an_almost_full_disk_is_served_or_says_how_much_to_free() {
    let (original, prepared) = (Home::new(), Prepared::new());
    prepared.place(&original);
    let mut refused = 0;
    for left in LEFT {
        let Some((home, disk)) = home(DISK_BYTES, "") else { return };
        // Neither zeros nor what is set aside behind the end of a file are copied.
        let copied = Command::new("cp").args(["-r", "--sparse=always"]).args([original.store(), home.store()]).status();
        assert!(copied.is_ok_and(|status| status.success()), "cp");
        disk.put_ballast(disk.free() - left * MIB);
        let server = home.ready(home.spawn(&[])).unwrap_or_else(|_| {
            let log = home.log();
            let told = log.lines().last().unwrap_or_default();
            assert!(told.starts_with("mesa: ") && told.contains("the disk is full"), "{left} MiB: {log}");
            assert!(!told.contains("os error"), "{left} MiB: {told}");
            let mib = told.split("Free ").nth(1).and_then(|rest| rest.split(' ').next()?.parse::<u64>().ok());
            disk.give_back(mib.unwrap_or_else(|| panic!("it does not say how much: {told}")) * MIB);
            refused += 1;
            home.ready(home.spawn(&[])).unwrap_or_else(|why| panic!("what was to be freed is not enough: {why}"))
        });
        prepared.check(&mut connect(&server)).unwrap_or_else(|wrong| panic!("{left} MiB: {wrong}"));
        server.process.kill();
    }
    assert!((1..LEFT.len()).contains(&refused), "{refused} of {} starts were refused", LEFT.len());
    env::say(&format!("{refused} of {} starts of a copied store on an almost full disk were refused", LEFT.len()));
}
