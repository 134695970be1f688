//! Stock Dispatchers on this server and on a real Redis with the stock server, in one run: how many dispatches a second, and
//! how much CPU of the server's side each costs. The driver is `original_dispatcher.js`, because the Dispatcher is; it needs Node,
//! `redis-server`, and the packages of `tests/node_clients` (`npm ci` there).
#![allow(missing_docs)]

use std::{path::Path, process::Command};

fn main() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let driver = root.join("benches/original_dispatcher.js");
    let ended = Command::new("node").arg(driver).arg(env!("CARGO_BIN_EXE_mesa")).status();
    let ended = ended.expect("node is installed");
    assert!(ended.success(), "the driver ended with {ended}");
}
