//! Measures how the cost of a message grows with users, messages and bytes, and that of a connection with connections.
//!
//! Server and load are processes of their own, and the figure is the server's CPU time.
//!
//! - [`work`]: each kind of work at its base, with ten times the users, with ten times the messages, and with 4 KiB
//! - [`connections`]: up to 100,000 connections with heartbeats, broadcasts and reconnecting clients
//! - [`child`], [`crowd`], [`frames`]: the server, the light clients and their frames
//! - [`report`]: tables and plots
//!
//! `cargo bench --bench growth -- --rounds 5 --clients 100000 --guide` measures medians of five rounds, and writes tables
//! and plots into the guide.
#![allow(missing_docs)]

mod child;
mod connections;
mod crowd;
mod frames;
#[path = "../support/guide.rs"]
mod guide;
mod report;
#[path = "../support/svg.rs"]
mod svg;
mod work;

use connections::Size;

/// Allocator of the binary.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Numbers of connections, as far as the option `--clients` and the limit of open files allow.
const SIZES: [usize; 3] = [1_000, 10_000, 100_000];

/// Options of the command line.
struct Options {
    rounds: usize,
    clients: usize,
    /// Measures only the work whose name contains this.
    only: Option<String>,
    writes_guide: bool,
}

impl Options {
    fn parse() -> Self {
        let mut options = Self { rounds: 1, clients: 10_000, only: None, writes_guide: false };
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            let mut value = || words.next().unwrap_or_else(|| panic!("{word} needs a value"));
            let number = |text: String| text.parse().expect("a number");
            match word.as_str() {
                "--rounds" => options.rounds = number(value()),
                "--clients" => options.clients = number(value()),
                "--only" => options.only = Some(value()),
                "--guide" => options.writes_guide = true,
                // Arguments of `cargo bench`.
                "--bench" => {}
                other => panic!("{other}: the options are --rounds N, --clients N, --only TEXT, --guide"),
            }
        }
        options
    }

    fn is_wanted(&self, name: &str) -> bool {
        self.only.as_ref().is_none_or(|only| name.contains(only.as_str()))
    }
}

fn main() {
    frames::check();
    guide::check();
    let options = Options::parse();
    let rows = work::measure(options.rounds, |name| options.is_wanted(name));
    println!("\n{}", report::work_table(&rows));
    let sizes: Vec<Size> =
        if options.is_wanted("connections") { connections::measure(&possible(options.clients)) } else { Vec::new() };
    println!("\n{}", report::connections_table(&sizes));
    if options.writes_guide {
        report::write(&rows, &sizes, options.rounds);
    }
}

/// Returns the sizes up to `wanted`. The limit of open files replaces a size that exceeds it.
fn possible(wanted: usize) -> Vec<usize> {
    let files = connections::files_max();
    let mut sizes: Vec<usize> = SIZES.into_iter().filter(|size| *size <= wanted).collect();
    if sizes.iter().any(|size| *size > files) {
        println!("The limit of open files allows {files} connections: raise it with `ulimit -n` for more.");
        sizes.retain(|size| *size <= files);
        if sizes.last().is_none_or(|largest| *largest < files) {
            sizes.push(files);
        }
    }
    sizes
}
