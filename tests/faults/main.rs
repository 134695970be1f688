//! The fault battery: a server under load is harmed again and again, everybody who takes part writes down what he sees,
//! and a program that knows nothing else holds that history against what is promised.
//!
//! `cargo test --test faults` runs the short forms; `tests/faults/run` the long ones, on an optimised build.
//!
//! - [`history`]: what is written down
//! - [`checker`]: the checker, a process of its own (`faults check FILE`), tested in `self_tests.rs`
//! - [`workload`]: backends and clients
//! - [`runner`]: the server, what is done to it, and the chapters a run consists of
//! - [`fuse_disk`]: a file system that forgets what was not synced
//! - [`scenarios`]: the runs there are

mod checker;
#[allow(dead_code, reason = "where there is no FUSE the disk is not used")]
mod fuse_disk;
mod history;
mod runner;
mod scenarios;
#[path = "../support/mod.rs"]
#[allow(dead_code, reason = "each test uses its part")]
mod support;
mod workload;

use std::{path::Path, process::ExitCode};

const HELP: &str = "\
faults                  all short forms
faults kills [N]        N kills at random moments, under load and during start-up
faults interval [N]     the same with `store.durability: { interval: 100 }`
faults power [N]        N power cuts, on a disk that forgets what was not synced
faults soak [MINUTES]   every kind of fault, one every five seconds
faults planted [BUG]    each planted bug is found (with `--features failpoints`)
faults settling [N]     kills and power cuts on servers that settle soon (with the same)
faults check FILE       the checker

MESA_SEED repeats the choices of a run.";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["check", file] => checker::run(Path::new(file)),
        ["help" | "--help"] => {
            println!("{HELP}");
            ExitCode::SUCCESS
        }
        // As test runners ask which tests there are.
        [.., "--list"] | ["--list", ..] => {
            scenarios::NAMES.iter().for_each(|name| println!("{name}: test"));
            ExitCode::SUCCESS
        }
        ["planted", ref bugs @ ..] => scenarios::planted(bugs),
        ["settling"] => scenarios::settling(None),
        ["settling", amount] => scenarios::settling(Some(amount)),
        [name, ref rest @ ..] if scenarios::NAMES.contains(&name) => scenarios::long(name, rest.first().copied()),
        // As `cargo test WORD` hands its word to every test program.
        _ => scenarios::short(&words),
    }
}
