//! `mesa demo`: plays a scenario that shows the guarantees, and checks each step.
//!
//! Files in reading order: [`scenario`] (the steps), [`server`] (child process), [`flaky_proxy`] (network that fails),
//! [`client`] (Alice), [`backend`] (dispatches to her), [`tracker`] (sent and received messages), [`narrator`] (output).

mod backend;
mod client;
mod flaky_proxy;
mod narrator;
mod scenario;
mod server;
mod tracker;

use std::time::Duration;

use crate::{args::DemoArgs, error::Failure, os::Signals, output};
use narrator::Narrator;
use server::Server;
use tracker::Tracker;

/// Time limit of the demo, which normally takes a few seconds.
const DEMO_TIMEOUT: Duration = Duration::from_secs(60);

/// Plays the scenario, and removes the server and its store in any case.
pub async fn run(args: &DemoArgs) -> Result<(), Failure> {
    // Before the server starts: after a signal it must be removed too.
    let mut signals = Signals::new().map_err(Failure::because)?;
    let narrator = Narrator::new(args.fast);
    let mut tracker = Tracker::default();
    let mut server = Server::new()?;
    let played = tokio::select! {
        played = tokio::time::timeout(DEMO_TIMEOUT, scenario::play(&narrator, &mut server, &mut tracker)) => {
            let seconds = DEMO_TIMEOUT.as_secs();
            played.unwrap_or_else(|_| Err(Failure::because(format!("the demo did not finish within {seconds} s"))))
        }
        (name, _) = signals.next() => Err(Failure::because(format!("stopped by {name}"))),
    };
    let log_tail = played.as_ref().err().map(|_| server.log_tail());
    // A failure of the removal must not hide a failure of the scenario.
    let removed = server.remove().await;
    match played {
        Ok(()) => {
            Narrator::summary(&tracker)?;
            removed
        }
        Err(Failure::Failed(reason)) => {
            output::remark(&format!("\n{}", tracker.arrived_of_sent()));
            if let Some(lines) = log_tail.filter(|lines| !lines.is_empty()) {
                output::remark(&format!("Last lines of the server's log:\n{lines}"));
            }
            Err(Failure::Failed(reason))
        }
        Err(other) => Err(other),
    }
}
