//! Defines the arguments of commands about a running server: status, events and disconnect.

use clap::{Args, ValueEnum};

use super::{ApiArgs, EXIT_CODES};

/// Show the state of a server: connections, rates, latencies, sizes
///
/// On a terminal the screen is refreshed every second until Ctrl-C. Otherwise, and with --once or --json, the state is
/// printed once. Counts are since the start of the server; rates are those of the last second.
#[derive(Debug, Args)]
#[command(after_long_help = format!("\
Examples:
  mesa status
  mesa status --once
  mesa status --json | jq .pending.messages

{EXIT_CODES}"))]
pub struct StatusArgs {
    /// Print once, also on a terminal
    #[arg(long)]
    pub once: bool,
    /// Print once, as a JSON object
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub api: ApiArgs,
}

/// Show what clients do, as it happens
///
/// Prints connections, authentications, messages from clients, and disconnections. It takes no event from portals and
/// webhooks. It begins when the command connects: earlier events are not kept. After a lost connection it reconnects;
/// events meanwhile are missed. Ctrl-C ends the command.
#[derive(Debug, Args)]
#[command(after_long_help = format!("\
Examples:
  mesa events
  mesa events --user alice,bob
  mesa events --type message --json | jq .message.d

{EXIT_CODES}"))]
pub struct EventsArgs {
    /// Only events of these users, separated by commas
    #[arg(long = "user", value_name = "USERS", value_delimiter = ',')]
    pub users: Vec<String>,
    /// Only events of these types, separated by commas
    #[arg(long = "type", value_enum, value_name = "TYPES", value_delimiter = ',')]
    pub kinds: Vec<EventKind>,
    /// One JSON object per line, as the server sent it
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub api: ApiArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum EventKind {
    /// A client has connected
    Connection,
    /// A client has authenticated
    Authentication,
    /// A client has sent a message
    Message,
    /// A client has disconnected
    Disconnection,
}

impl EventKind {
    /// Returns its name in events.
    pub fn name(self) -> &'static str {
        match self {
            Self::Connection => "connection",
            Self::Authentication => "authentication",
            Self::Message => "message",
            Self::Disconnection => "disconnection",
        }
    }
}

/// Disconnect a user
///
/// Closes all connections of the user with 1000. The published clients do not reconnect after 1000. Pending messages
/// stay. To keep the user out, revoke the token too.
#[derive(Debug, Args)]
#[command(after_long_help = format!("\
Examples:
  mesa disconnect alice
  mesa disconnect alice --reason 'your account was suspended'

{EXIT_CODES}"))]
pub struct DisconnectArgs {
    /// User id
    #[arg(value_name = "USER")]
    pub user: String,
    /// Text for the clients, at most 123 bytes
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub api: ApiArgs,
}
