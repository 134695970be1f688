//! `mesa drain`: makes a server take no new connections, and close the present ones; or cancels that.

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
    if args.cancel {
        let drain = dispatcher.cancel_drain().await.map_err(Failure::because)?;
        let open = count(drain.connections, "connection");
        line(&format!("not draining: new connections are taken; {open} open"))?;
        return Ok(());
    }
    let drain = dispatcher.drain(Duration::from_secs(args.seconds)).await.map_err(Failure::because)?;
    line(&format!(
        "draining: {} close over {} s, new ones are refused",
        count(drain.connections, "connection"),
        args.seconds
    ))?;
    if args.no_wait {
        return Ok(());
    }
    loop {
        let state = dispatcher.drain_state().await.map_err(Failure::because)?;
        if !state.draining {
            let open = count(state.connections, "connection");
            let text =
                format!("the drain was cancelled, or the server was restarted; {open} open, run it again to drain");
            return Err(Failure::because(text));
        }
        if state.connections == 0 {
            break;
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    line("drained: all connections are closed; stop or restart the server now")?;
    Ok(())
}
