//! Tests a server under load and faults.
//!
//! The runner kills the server or injects another fault, again and again. Backends and clients record a history. A
//! checker that knows only that history compares it with the guarantees.
//!
//! `cargo test --test faults` runs the short forms. `tests/faults/run` runs the long forms on an optimised build.
//!
//! - [`history`]: events that are recorded
//! - [`checker`]: the checker, a process of its own (`faults check FILE`); tested in `self_tests.rs`
//! - [`workload`]: backends and clients
//! - [`runner`]: runs servers, injects faults
//! - [`fuse_disk`]: a file system that loses unsynced changes
//! - [`scenarios`]: kinds of runs
//! - [`first_start`]: power cuts during the first start of a server
//! - [`failed_sync`]: a failed sync, a restart, and a power cut

mod checker;
#[cfg(target_os = "linux")]
mod failed_sync;
#[cfg(target_os = "linux")]
mod first_start;
#[allow(dead_code, reason = "the simulated disk is not used without FUSE")]
mod fuse_disk;
mod history;
mod runner;
mod scenarios;
#[path = "../support/mod.rs"]
#[allow(dead_code, reason = "each suite uses a part of it")]
mod support;
mod workload;

use std::{path::Path, process::ExitCode};

const HELP: &str = "\
faults                   all short forms
faults kills [N]         N kills at random moments: under load, during start, and while nothing is pending
faults interval [N]      the same with `store.durability: { interval: 100 }`
faults power [N]         N power cuts, on a simulated disk that loses unsynced changes
faults soak [MINUTES]    a random fault of any kind every 5 s
faults first-start       a power cut after each change of a first start
faults failed-sync       each sync fails once; then a restart and a power cut
faults failpoints [NAME] seeded bugs that must be found (needs `--features failpoints`)
faults flush [N]         N kills, then N power cuts, on servers that flush early (needs the same)
faults check FILE        check a history

MESA_SEED repeats the choices of a run.";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["check", file] => checker::run(Path::new(file)),
        ["help" | "--help"] => {
            println!("{HELP}");
            ExitCode::SUCCESS
        }
        // Test runners pass `--list` to list the tests.
        [.., "--list"] | ["--list", ..] => {
            scenarios::NAMES
                .iter()
                .chain([&scenarios::FIRST_START, &scenarios::FAILED_SYNC])
                .for_each(|name| println!("{name}: test"));
            ExitCode::SUCCESS
        }
        ["failpoints", ref names @ ..] => scenarios::failpoints(names),
        ["flush"] => scenarios::flush(None),
        ["flush", faults] => scenarios::flush(Some(faults)),
        [name @ (scenarios::FIRST_START | scenarios::FAILED_SYNC)] => scenarios::simulated_disk(name),
        [name @ (scenarios::FIRST_START | scenarios::FAILED_SYNC), ..] => {
            eprintln!("{name} has no length; use: faults {name}");
            ExitCode::from(2)
        }
        [name, ref rest @ ..] if scenarios::NAMES.contains(&name) => scenarios::long(name, rest.first().copied()),
        // `cargo test FILTER` passes its filter to every test program.
        _ => scenarios::short(&args),
    }
}
