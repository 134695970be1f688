//! Stores that record connected users, as a killed server leaves them.

use std::{fs, path::Path};

use mesa::{
    embedded::{
        offline::inspect::Inspection,
        tables::{DiskOptions, open},
    },
    message::UserId,
};

use super::wait::block_until;

/// Creates a store in which these users are connected, as after a kill. Their connections outlive the store's close.
pub fn leave_connected(store: &Path, users: &[&str]) {
    let store = open(DiskOptions::new(store)).expect("a store");
    for user in users {
        store.set_connections(&UserId::new(user).expect("a user id"), 1);
    }
}

/// Waits until the store of a running server has recorded exactly these users, with their numbers of connections.
pub fn wait_for_connected(store: &Path, expected: &[(&str, u32)]) {
    block_until(&format!("the store records {expected:?} as connected"), || {
        // A copy, because the server has locked its store. It may be torn, and is then made again.
        let copy = tempfile::tempdir().expect("a temporary directory");
        copy_directory(store, copy.path());
        let Ok(inspection) = Inspection::open(copy.path()) else { return false };
        let connected = &inspection.facts().connected;
        connected.iter().map(|one| (one.user.as_str(), one.connections)).eq(expected.iter().copied())
    });
}

fn copy_directory(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a directory");
    for file in fs::read_dir(from).expect("a directory").map(|file| file.expect("a file")) {
        let target = to.join(file.file_name());
        if file.path().is_dir() {
            copy_directory(&file.path(), &target);
        } else {
            // The server may have removed the file meanwhile.
            _ = fs::copy(file.path(), target);
        }
    }
}
