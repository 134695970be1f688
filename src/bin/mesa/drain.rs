//! `mesa drain`: makes a server take no new connections, and close the present ones.

use std::time::Duration;

use crate::{
    args::DrainArgs,
    endpoint,
    error::Failure,
    output::{count, line},
};

/// Interval at which the remaining connections are counted.
const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// Runs the command.
pub async fn run(args: &DrainArgs) -> Result<(), Failure> {
    let dispatcher = endpoint::dispatcher(&args.api)?;
    let drain = dispatcher.drain(Duration::from_secs(args.seconds)).await.map_err(Failure::because)?;
    line(&format!(
        "draining: {} close over {} s, new ones are refused",
        count(drain.connections, "connection"),
        args.seconds
    ))?;
    if args.no_wait {
        return Ok(());
    }
    while dispatcher.drain_state().await.map_err(Failure::because)?.connections > 0 {
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    line("drained: all connections are closed; stop or restart the server now")?;
    Ok(())
}
