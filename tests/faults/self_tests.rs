//! What judges a server has to be judged itself: the checker of the fault battery, and the disk that forgets.

#[allow(dead_code, reason = "the program around the checker is in `main.rs`")]
mod checker;
mod checker_tests;
mod device_tests;
mod disk_tests;
#[allow(dead_code, reason = "the battery uses more of it")]
mod fuse_disk;
#[allow(dead_code, reason = "histories are made by hand here")]
mod history;
#[path = "../support/mod.rs"]
#[allow(dead_code, reason = "each test uses its part")]
mod support;
