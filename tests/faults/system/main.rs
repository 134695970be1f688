//! What a machine can do to a server, done to one: killed at each system call of its start, disks that fail, two
//! servers on one directory, SIGTERM at any moment, no descriptors left, no room on the disk, clocks that jump, pauses,
//! readers that do not read. After each of it, what was answered is there, and nobody waits for ever.
//!
//! One file a fault; beside them what they share:
//!
//! - `env`: what the machine must have, the short and the long form, and saying figures
//! - `strace`: a server under `strace`, and its faults
//! - `fixture_store`: a store that holds something, to be copied as often as there are faults
//! - `tracker`: what was dispatched and answered, held against a server
//! - `backends`, `client`: who dispatches, and who receives
//! - `proc`: what the system knows of a process
//! - `small_disk`, `on_small_disk`: a file system in memory, and a server on it
//!
//! Every test shows that its fault has happened before it trusts what followed. `cargo test` runs the short form;
//! `MESA_FAULTS=all` the long one, in which nothing is sampled. `MESA_SEED` repeats a run's choices.

#[path = "../../support/mod.rs"]
#[allow(dead_code, reason = "each test uses its part")]
mod support;

mod backends;
mod client;
mod clock;
mod descriptors;
mod disk_copied;
mod disk_full;
mod disk_taken;
mod disk_without_fallocate;
mod env;
mod failing_commits;
mod failing_start;
mod fixture_store;
mod kill_at_start;
mod on_small_disk;
mod pause;
mod proc;
mod slow_readers;
mod small_disk;
mod strace;
mod terminate;
mod tracker;
mod two_processes;
