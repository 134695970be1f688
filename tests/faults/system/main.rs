//! Injects faults of the machine into a server.
//!
//! After each fault every answered dispatch must be kept, and no request may hang.
//!
//! One file for each fault, and these for all of them:
//!
//! - `env`: requirements, short and long form, printed results
//! - `strace`: a server under `strace`, with faults in system calls
//! - `fixture_store`: a store with entries, which is copied for each fault
//! - `tracker`: messages dispatched and answered, compared with a server's logs
//! - `backends`, `client`: concurrent backends, a WebSocket client
//! - `proc`: `/proc` and signals
//! - `small_disk`, `small_disk_server`: a small file system, requests to a server on it
//!
//! Each test checks that its fault has happened. `cargo test` runs the short form. `MESA_FAULTS=all` runs the long
//! form, with every case instead of a sample. `MESA_SEED` repeats the choices of a run.

#[path = "../../support/mod.rs"]
#[allow(dead_code, reason = "each suite uses a part of it")]
mod support;

mod backends;
mod client;
mod clock;
mod copied_store;
mod descriptors;
mod disk_filled_externally;
mod disk_full;
mod disk_without_fallocate;
mod env;
mod failing_commits;
mod failing_start;
mod fixture_store;
mod kill_at_start;
mod pause;
mod proc;
mod slow_disk;
mod slow_readers;
mod small_disk;
mod small_disk_server;
mod strace;
mod terminate;
mod tracker;
mod two_processes;
