//! `mesa demo`: the promises, kept before your eyes.
//!
//! Reading order: [`scenario`] is what happens; [`server`] the server it happens to, [`flaky_proxy`] what lies between,
//! [`client`] the user, [`backend`] who writes to her, [`tracker`] what was sent and what arrived, [`narrator`] the printing.

mod backend;
mod client;
mod flaky_proxy;
mod narrator;
mod scenario;
mod server;
mod tracker;

use std::time::Duration;

use crate::{args::DemoArgs, error::Failure, os::Signals, output};
use narrator::Stage;
use server::Server;
use tracker::Ledger;

/// The whole story takes a few seconds; one that takes this long has got stuck.
const PATIENCE: Duration = Duration::from_secs(60);

/// Plays it, and clears up whatever happens.
pub async fn run(args: &DemoArgs) -> Result<(), Failure> {
    // Before there is anything to clear up: from here on a signal leads through the clearing up.
    let mut signals = Signals::new().map_err(Failure::because)?;
    let stage = Stage::new(args.fast);
    let mut ledger = Ledger::default();
    let mut server = Server::new()?;
    let played = tokio::select! {
        played = tokio::time::timeout(PATIENCE, scenario::play(&stage, &mut server, &mut ledger)) => {
            played.unwrap_or_else(|_| Err(Failure::because(format!("the story got stuck for {} s", PATIENCE.as_secs()))))
        }
        (name, _) = signals.next() => Err(Failure::because(format!("called off by {name}"))),
    };
    let account = played.as_ref().err().map(|_| server.last_words());
    // Its own trouble must not hide that of the story.
    let cleared = server.clear_up().await;
    match played {
        Ok(()) => {
            Stage::summary(&ledger)?;
            cleared
        }
        Err(Failure::Failed(reason)) => {
            output::remark(&format!("\n{}", ledger.arrived_of_sent()));
            if let Some(words) = account.filter(|words| !words.is_empty()) {
                output::remark(&format!("The server's last words:\n{words}"));
            }
            Err(Failure::Failed(reason))
        }
        Err(other) => Err(other),
    }
}
