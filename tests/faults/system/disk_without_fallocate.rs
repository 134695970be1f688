//! Fills the disk of a server on a file system without `fallocate`.
//!
//! NFS, ZFS and some FUSE file systems have none. Another process's data fills the disk.

use std::collections::BTreeSet;

use crate::{
    disk_filled_externally::fill_under_load,
    env,
    small_disk::MIB,
    small_disk_server::create_early_flush_home,
    strace::{self, Fault, StartResult},
};

// covers: G1
#[test]
fn server_under_load_without_fallocate_when_disk_is_filled_keeps_messages() {
    if !env::strace_available("a disk that fills up on a file system without fallocate") {
        return;
    }
    let Some((home, disk)) = create_early_flush_home(192 * MIB, "store: { minFree: 0 }") else { return };
    let fault = Fault { call: "fallocate".into(), effect: "error=EOPNOTSUPP", when: 1, permanent: true };
    let StartResult::Listening(server) = strace::start(&home, "fallocate", &BTreeSet::new(), Some(&fault)) else {
        panic!("expected the server to start:\n{}", home.log());
    };
    fill_under_load(&home, &disk, server);
    assert!(strace::count_injected(&home) > 0, "expected a failed fallocate");
}
