//! Measures Dispatchers of the original Mesa (`@cryb/mesa`) on this server, and on Redis with the original's server.
//!
//! Reports dispatches per second and CPU of the server side per dispatch, for all of them in one run. The driver is
//! `original_dispatcher.js`, because the Dispatcher is JavaScript. It needs Node, `redis-server`, and `npm ci` in
//! `tests/node_clients`.
#![allow(missing_docs)]

use std::{path::Path, process::Command};

fn main() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let driver = root.join("benches/original_dispatcher.js");
    let status = Command::new("node").arg(driver).arg(env!("CARGO_BIN_EXE_mesa")).status();
    let status = status.expect("node is installed");
    assert!(status.success(), "the driver exited with {status}");
}
