//! A disk that another process fills, on a file system that cannot set space aside (NFS, ZFS, some FUSE).

use std::collections::BTreeSet;

use crate::{
    disk_taken::fill_under_load,
    env,
    on_small_disk::settling_home,
    small_disk::MIB,
    strace::{self, Fault, Started},
};

// covers: G1
#[test]
fn server_without_fallocate_whose_disk_is_filled_again_and_again_loses_nothing_and_stays() {
    if !env::strace_is_here("a disk that fills up on a file system without fallocate") {
        return;
    }
    let Some((home, disk)) = settling_home(192 * MIB, "store: { minFree: 0 }") else { return };
    let refused = Fault { call: "fallocate".into(), how: "error=EOPNOTSUPP", when: 1, for_ever: true };
    let Started::Listens(server) = strace::start(&home, "fallocate", &BTreeSet::new(), Some(&refused)) else {
        panic!("it does not start:\n{}", home.log());
    };
    fill_under_load(&home, &disk, server);
    assert!(strace::injected(&home) > 0, "space was set aside");
}
