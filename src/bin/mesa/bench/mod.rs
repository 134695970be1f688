//! `mesa bench`: measures a running server, and checks that it loses and reorders nothing.
//!
//! - [`clients`]: connections of users, which check and count what they receive
//! - [`sender`]: dispatches messages over a stream or by requests
//! - [`work`]: the sequence of steps of each measurement
//! - [`deliveries`]: counters and latencies · [`users`]: names, tokens and their removal
//! - [`usage`]: CPU time and memory of the server
//! - [`report`]: the result as a table or JSON

mod clients;
mod deliveries;
mod report;
mod sender;
mod usage;
mod users;
mod work;

use crate::{args::BenchArgs, error::Failure, os, output};

/// Measures a server, and fails if it lost or reordered a message.
pub fn run(args: &BenchArgs) -> Result<(), Failure> {
    // Each client is an open file.
    os::raise_file_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::because(format!("cannot start: {error}")))?;
    let report = runtime.block_on(async {
        let bench = work::Bench::new(args)?;
        let measured = bench.measure().await;
        // Also after a failure: the messages would stay in the store.
        let removed = if args.keep { Ok(()) } else { bench.users.erase(&bench.dispatcher).await };
        let report = measured?;
        removed?;
        Ok::<_, Failure>(report)
    })?;
    if args.json {
        output::json(&report)?;
    } else {
        output::line(&report.table())?;
    }
    match report.violation() {
        None => Ok(()),
        Some(violation) => Err(Failure::because(violation)),
    }
}
