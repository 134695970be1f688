//! Compares this server with the original Mesa (`@cryb/mesa`), mosquitto and NATS, and with a server that does the least.
//!
//! The contestants take turns in each round, each as new processes, and do the same work. The figures are medians: CPU time
//! of the server's processes, and rates and latencies of a load that shares the machine.
//!
//! - [`contestant`]: what the load needs from each: [`ours`], [`original`], [`mosquitto`], [`nats`], [`floor`]
//! - [`process`]: server processes, their CPU time and memory
//! - [`clients`], [`publisher`]: the load
//! - [`work`]: what is measured
//! - [`report`]: table, JSON and bar charts
//!
//! `cargo bench --bench versus -- --guide` writes table and charts into the guide.
#![allow(missing_docs)]

#[path = "../support/bars.rs"]
mod bars;
mod clients;
mod contestant;
mod floor;
#[path = "../support/guide.rs"]
mod guide;
mod mosquitto;
mod nats;
mod original;
mod ours;
mod process;
mod publisher;
mod report;
mod work;

use contestant::Contestant;
use report::Results;
use work::Size;

/// Allocator of the binary.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Rounds without the option `--rounds`.
const ROUNDS: usize = 5;

/// Options of the command line.
struct Options {
    rounds: usize,
    /// Measures only the contestants whose name contains this.
    only: Option<String>,
    size: Size,
    writes_guide: bool,
}

impl Options {
    fn parse(words: impl Iterator<Item = String>) -> Self {
        let mut options = Self { rounds: ROUNDS, only: None, size: Size::DEFAULT, writes_guide: false };
        let mut words = words;
        while let Some(word) = words.next() {
            let mut value = || words.next().unwrap_or_else(|| panic!("{word} needs a value"));
            match word.as_str() {
                "--rounds" => options.rounds = value().parse().expect("a number"),
                "--only" => options.only = Some(value()),
                "--quick" => (options.rounds, options.size) = (1, Size::QUICK),
                "--guide" => options.writes_guide = true,
                // Arguments of `cargo bench`.
                "--bench" => {}
                other => panic!("{other}: the options are --rounds N, --only NAME, --quick, --guide, --test"),
            }
        }
        options
    }
}

fn main() {
    let mut words = std::env::args().skip(1);
    if words.next().as_deref() == Some(floor::ARGUMENT) {
        return floor::serve();
    }
    check();
    if std::env::args().any(|word| word == "--test") {
        return println!("the parsers of the benchmark are correct");
    }
    let options = Options::parse(std::env::args().skip(1));
    process::raise_file_limit();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let contestants = available(options.only.as_deref());
    let mut results = Results::new(contestants.iter().map(|contestant| contestant.name()).collect());
    for round in 1..=options.rounds {
        for (column, contestant) in contestants.iter().enumerate() {
            let measured = work::measure(contestant.as_ref(), runtime.handle(), options.size);
            for (work, outcome) in measured {
                results.record(round, column, work, outcome);
            }
        }
    }
    println!("\n{}", results.table());
    report::write(&results, options.rounds, options.size, options.writes_guide);
}

/// Returns the contestants that can run here, and prints what the others need.
fn available(only: Option<&str>) -> Vec<Box<dyn Contestant>> {
    let all: Vec<Box<dyn Contestant>> = vec![
        Box::new(ours::Ours),
        Box::new(original::Original),
        Box::new(mosquitto::Mosquitto),
        Box::new(nats::Nats),
        Box::new(floor::Floor),
    ];
    let wanted = all.into_iter().filter(|contestant| only.is_none_or(|only| contestant.name().contains(only)));
    wanted
        .filter(|contestant| {
            let missing = contestant.prepare().err();
            if let Some(missing) = &missing {
                println!("{} is not measured: {missing}", contestant.name());
            }
            missing.is_none()
        })
        .collect()
}

/// Checks the parsers and formats.
fn check() {
    bars::check();
    clients::check();
    floor::check();
    guide::check();
    original::check();
    process::check();
    publisher::check();
    report::check();
}
