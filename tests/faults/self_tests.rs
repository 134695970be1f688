//! Tests the tools of the fault tests: the checker, and the simulated disk.

#[allow(dead_code, reason = "`main.rs` runs the checker")]
mod checker;
mod checker_tests;
mod device_tests;
mod disk_tests;
#[allow(dead_code, reason = "the runner uses more of it")]
mod fuse_disk;
#[allow(dead_code, reason = "these histories are handmade")]
mod history;
#[path = "../support/mod.rs"]
#[allow(dead_code, reason = "each suite uses a part of it")]
mod support;
