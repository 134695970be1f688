//! Arguments of `drain`.

use clap::Args;

use super::{ApiArgs, EXIT_CODES, numbers::whole};

/// Close the connections of a server before it stops
///
/// The server takes no new connections from then on, and /readyz reports "draining", so that a load balancer uses other
/// servers. The present connections close spread over the time. Clients reconnect after different delays. The command
/// waits until all are closed. A restart ends the state, and so does --cancel.
#[derive(Debug, Args)]
#[command(after_long_help = format!("\
Examples:
  mesa drain
  mesa drain --seconds 120
  mesa drain --no-wait
  mesa drain --cancel

{EXIT_CODES}"))]
pub struct DrainArgs {
    /// Time over which connections close, at most 3600
    #[arg(long, value_name = "N", default_value_t = 30, value_parser = whole)]
    pub seconds: u64,
    /// Return at once, while connections are closed
    #[arg(long)]
    pub no_wait: bool,
    /// Cancel a drain: take new connections again, and close no further ones
    #[arg(long, conflicts_with_all = ["seconds", "no_wait"])]
    pub cancel: bool,
    #[command(flatten)]
    pub api: ApiArgs,
}
