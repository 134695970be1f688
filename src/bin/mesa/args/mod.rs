//! Defines the arguments of the command line, which clap parses.
//!
//! Doc comments on commands and options are the text of `--help`. Only this module uses clap.
#![allow(clippy::doc_markdown, rustdoc::bare_urls, reason = "backticks and angle brackets would be shown as they are")]
#![allow(clippy::struct_excessive_bools, reason = "each is an option without a value")]

use std::{num::NonZeroU32, path::PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum};

pub use bench::{BenchArgs, Via, Work};
pub use config::{ConfigArgs, ConfigCheckArgs, ConfigCommand, ConfigInitArgs, ConfigPrintArgs};
pub use drain::DrainArgs;
use numbers::{count, port, seconds, whole};
pub use observe::{DisconnectArgs, EventKind, EventsArgs, StatusArgs};
pub use shell::{CompletionsArgs, ManArgs, completions, man_page, write_man_pages};
pub use store::{BackupArgs, ImportExportArgs, InspectArgs, RestoreArgs};
pub use token::TokenArgs;
pub use user_id::user_id;

const EXIT_CODES: &str = "\
Exit codes:
  0  success
  1  failure; the reason is on standard error
  2  wrong arguments";

const AFTER_HELP: &str = "\
Try it, in three terminals:
  mesa serve --dev
  mesa connect --as alice
  mesa dispatch --to alice --type GREETING '{\"text\":\"Hello\"}'
Set MESA_API_KEY to the key that serve prints.

Or watch a demonstration:
  mesa demo

Environment:
  MESA_CONFIG   configuration file for serve, config print and token
  MESA_URL      the server, for connect and all commands that need a key
  MESA_API_KEY  API key for dispatch, drain, users, inbox, disconnect, status,
                events and backup
  MESA_TOKEN    token for connect
  Settings have variables too, MESA_PORT for example; `mesa config print` shows
  the effective ones.
";

/// A message server that delivers also to offline users
///
/// A backend dispatches a message to user ids. Online users receive it at once. Offline users receive it in order when
/// they reconnect. The server needs no other service.
#[derive(Debug, Parser)]
#[command(name = "mesa", version, arg_required_else_help = true, propagate_version = true, max_term_width = 100)]
#[command(after_help = "Each command has examples: mesa help COMMAND", after_long_help = format!("{AFTER_HELP}\n{EXIT_CODES}"))]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    Serve(ServeArgs),
    Demo(DemoArgs),
    Connect(ConnectArgs),
    Dispatch(DispatchArgs),
    Drain(DrainArgs),
    Users(UsersArgs),
    Inbox(InboxArgs),
    Disconnect(DisconnectArgs),
    Status(StatusArgs),
    Events(EventsArgs),
    Token(TokenArgs),
    Config(ConfigArgs),
    Inspect(InspectArgs),
    Backup(BackupArgs),
    Restore(RestoreArgs),
    /// Copy pending messages from a Redis of the original Mesa into a store
    ///
    /// The original is @cryb/mesa. Needs a build with --features redis, which makes the program 4 MB larger, and a store
    /// that no server has open. Stop
    /// everything that writes to the Redis first. Nothing is removed there. When run again, the command continues, and
    /// copies no message twice.
    Import(ImportExportArgs),
    /// Copy pending messages from a store into a Redis of the original Mesa
    ///
    /// Needs a build with --features redis, which makes the program 4 MB larger, and a store that no server has open.
    /// Appends the messages to those that are
    /// pending there, and copies none twice. The store is not changed. The original has no times to live, devices and
    /// sequences, so they are not copied.
    Export(ImportExportArgs),
    Bench(BenchArgs),
    Completions(CompletionsArgs),
    Man(ManArgs),
}

/// Run the server
///
/// An option overrides the environment, the environment the file, and the file the defaults. The server prints its
/// address; its log goes to standard error. SIGTERM or SIGINT stops it after the requests in progress, a second one at
/// once.
#[derive(Debug, Args)]
#[command(after_long_help = format!("\
Examples:
  mesa serve --dev                      for development, on this machine only
  mesa serve --config mesa.json5        with a file; see mesa config check
  MESA_PORT=8080 mesa serve --config mesa.json5
  mesa serve --dev --tls-self-signed    wss:// on this machine
  mesa serve --config original.json5 --store embedded
                                        ignores the redis of the file

{EXIT_CODES}
  130, 143  a second signal (SIGINT, SIGTERM) stopped it at once"))]
pub struct ServeArgs {
    /// Configuration file, JSON5; without it none is read, also not ./mesa.json5 [env: MESA_CONFIG]
    #[arg(long, short, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Development settings: this machine only; sync, portals and reconnects on; tokens are user ids; generates, keeps
    /// and prints an API key
    #[arg(long)]
    pub dev: bool,
    /// Port for WebSocket and HTTP; 0 lets the system choose
    #[arg(long, short, value_parser = port)]
    pub port: Option<u16>,
    /// Address to listen on
    #[arg(long, value_name = "ADDRESS")]
    pub host: Option<String>,
    /// Path of the WebSocket
    #[arg(long)]
    pub path: Option<String>,
    /// Namespace, which separates applications
    #[arg(long)]
    pub namespace: Option<String>,
    /// Store to use; `embedded` ignores a configured redis
    #[arg(long, value_enum, value_name = "STORE")]
    pub store: Option<StoreKind>,
    /// Directory of the embedded store
    #[arg(long, value_name = "DIR")]
    pub store_path: Option<String>,
    /// Speak TLS with a new certificate for localhost, for trials; prints how clients trust it
    #[arg(long)]
    pub tls_self_signed: bool,
    /// Level of the log: error, warn, info, debug, trace, or a filter such as mesa=debug
    #[arg(long, value_name = "LEVEL")]
    pub log_level: Option<String>,
    /// Format of log lines
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,
    /// Once listening, write address, process id and an API key to this file, as JSON
    #[arg(long, value_name = "FILE", hide = true)]
    pub ready_file: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum StoreKind {
    /// Store on this machine, without a Redis
    Embedded,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Text for people
    Text,
    /// One JSON object per line
    Json,
}

/// Show offline delivery, a network failure and a killed server
///
/// Starts its own server on a free port with a temporary store, and plays a scenario. Alice receives a message, goes
/// offline, and receives the missed messages when she reconnects. Then her network fails without a close, and the
/// server is killed. Every line is checked before it is printed. The demo takes a few seconds, and removes its store.
#[derive(Debug, Args)]
#[command(after_long_help = format!("\
Examples:
  mesa demo
  mesa demo --fast    without pauses

{EXIT_CODES}"))]
pub struct DemoArgs {
    /// Without pauses between lines
    #[arg(long)]
    pub fast: bool,
}

/// Connect as a user: print messages, send typed lines
///
/// A line that is a JSON object with `op`, `t` or `d` is sent as it is. Any other line is sent as text:
/// {"op":0,"d":{"text":LINE},"t":"TEXT"}. A line that begins with a brace and is not JSON is not sent. The server
/// passes client messages to portals and the webhook. Use `mesa dispatch` to reach another user.
///
/// /quit or Ctrl-C ends the command; the end of the input does not. After a lost connection it reconnects, unless the
/// close code excludes it.
///
/// A message is acknowledged after it was printed. If the command is killed, no message is lost, and the last one may
/// be printed again on the next run.
#[derive(Debug, Args)]
#[command(after_long_help = format!("\
Examples:
  mesa connect --as alice                  user ids as tokens (serve --dev)
  MESA_TOKEN=$(mesa token --id alice --config mesa.json5) mesa connect
                                           a server with JWTs
  mesa connect --as alice --no-sync        discards the backlog
  mesa connect --as alice --device phone-1
                                           a device with its own cursor
  mesa connect --as alice --after 41       resumes after sequence 41
  mesa connect --as alice --json | jq .d   one JSON object per line
  echo '{{\"t\":\"TYPING\",\"d\":{{}}}}' | mesa connect --as alice
                                           sends that, and stays connected

{EXIT_CODES}"))]
pub struct ConnectArgs {
    /// User id, for servers that use it as the token (serve --dev)
    #[arg(long = "as", value_name = "USER", conflicts_with = "token")]
    pub user: Option<String>,
    /// Token to authenticate with [env: MESA_TOKEN, which does not show in the list of processes]
    #[arg(long, value_name = "TOKEN")]
    pub token: Option<String>,
    /// The server [env: MESA_URL] [default: ws://127.0.0.1:4000/]
    #[arg(long, value_name = "URL")]
    pub url: Option<String>,
    /// Trust the certificates of this PEM file for wss://, in place of the system's
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// Discard the backlog; it counts as acknowledged
    #[arg(long)]
    pub no_sync: bool,
    /// Resume after this sequence of the user's log, 0 for everything; gaps are printed
    #[arg(long, value_name = "N", conflicts_with = "no_sync", value_parser = whole)]
    pub after: Option<u64>,
    /// Name of this device, which has its own cursor in the user's log
    #[arg(long, value_name = "NAME")]
    pub device: Option<String>,
    /// End when the connection ends
    #[arg(long)]
    pub once: bool,
    /// One JSON object per line, as the server sent it
    #[arg(long)]
    pub json: bool,
}

/// Dispatch a message to users
///
/// Returns when every synced entry is on disk. Fails if a recipient was rejected, and prints the recipient and the
/// reason.
///
/// With --ndjson it sends many dispatches, one JSON object per line in the format of the HTTP API. They share one
/// request and group commits. Rejected dispatches are reported line by line, with a count at the end.
#[derive(Debug, Args)]
#[command(after_long_help = format!("\
Examples:
  mesa dispatch --to alice --type GREETING '{{\"text\":\"Hello\"}}'
  mesa dispatch --to alice,bob --type TYPING --no-sync '{{}}'
                                                not stored for offline users
  mesa dispatch --to '*' --excluding bob --type NEWS '{{}}'
                                                every connected client but bob
  generate | mesa dispatch --to alice --type REPORT -
                                                data from standard input
  mesa dispatch --to alice --type SCORE --collapse score --ttl 3600 '[2,1]'
                                                replaces a pending score,
                                                expires after an hour
  mesa dispatch --to alice --type PAID --id order-7 '{{}}'
                                                a retry is not sent again
  mesa dispatch --ndjson dispatches.ndjson      many, from a file
  generate | mesa dispatch --ndjson --json      from a program; prints results

{EXIT_CODES}"))]
pub struct DispatchArgs {
    /// User ids, separated by commas; '*' for every connected client
    #[arg(long, value_name = "USERS", required_unless_present = "ndjson", value_delimiter = ',')]
    pub to: Vec<String>,
    /// User ids to leave out
    #[arg(long, value_name = "USERS", value_delimiter = ',')]
    pub excluding: Vec<String>,
    /// Type of the message
    #[arg(long = "type", short, value_name = "TYPE")]
    pub kind: Option<String>,
    /// Opcode: 0, or above 22
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = whole)]
    pub op: u64,
    /// Not stored for offline users
    #[arg(long)]
    pub no_sync: bool,
    /// Expires after this time
    #[arg(long, value_name = "SECONDS", conflicts_with = "no_sync", value_parser = seconds)]
    pub ttl: Option<NonZeroU32>,
    /// Collapse key: replaces a pending message with the same key
    #[arg(long, value_name = "KEY", conflicts_with = "no_sync")]
    pub collapse: Option<String>,
    /// Idempotency id: a retry with the same id is not sent again
    #[arg(long, value_name = "ID")]
    pub id: Option<String>,
    /// Send the dispatches in this file, one JSON object per line; - or no name reads standard input
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-", conflicts_with_all = [
        "to", "excluding", "kind", "op", "no_sync", "ttl", "collapse", "id", "data",
    ])]
    pub ndjson: Option<PathBuf>,
    #[command(flatten)]
    pub api: ApiArgs,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
    /// The data, as JSON; - reads it from standard input
    #[arg(value_name = "DATA", default_value = "{}")]
    pub data: String,
}

/// URL and key of the HTTP API.
#[derive(Debug, Args)]
pub struct ApiArgs {
    /// The server [env: MESA_URL] [default: http://127.0.0.1:4000]
    #[arg(long, value_name = "URL")]
    pub url: Option<String>,
    /// API key [env: MESA_API_KEY, which does not show in the list of processes]
    #[arg(long, value_name = "KEY")]
    pub key: Option<String>,
    /// Trust the certificates of this PEM file for https://, in place of the system's
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,
}

/// List users, show one, or erase one
///
/// Lists all known users, or the online ones. For one user, shows the devices too.
///
/// With --erase, disconnects a user and removes everything that the server has about this user, permanently.
#[derive(Debug, Args)]
#[command(after_long_help = format!("\
Examples:
  mesa users
  mesa users --online
  mesa users alice                with devices and their pending counts
  mesa users --json | jq -r 'select(.pending > 0) | .id'
                                  users with pending messages
  mesa users --erase alice        removes the user, permanently

{EXIT_CODES}"))]
pub struct UsersArgs {
    /// User id
    #[arg(value_name = "USER", conflicts_with = "online")]
    pub user: Option<String>,
    /// Only online users
    #[arg(long)]
    pub online: bool,
    /// Disconnect this user, and remove everything about the user
    #[arg(long, value_name = "USER", conflicts_with_all = ["user", "online", "json"])]
    pub erase: Option<String>,
    /// One JSON object per line
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub api: ApiArgs,
}

/// Show or clear the pending messages of a user
///
/// Shown messages stay pending, unless --clear is given.
#[derive(Debug, Args)]
#[command(after_long_help = format!("\
Examples:
  mesa inbox alice
  mesa inbox alice --after 40 --limit 10
  mesa inbox alice --json | jq .d
  mesa inbox alice --clear    acknowledges everything, permanently

{EXIT_CODES}"))]
pub struct InboxArgs {
    /// User id
    #[arg(value_name = "USER")]
    pub user: String,
    /// Acknowledge all pending messages
    #[arg(long, conflicts_with_all = ["after", "limit"])]
    pub clear: bool,
    /// Only messages with a sequence above this
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = whole)]
    pub after: u64,
    /// Most messages to show
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = count)]
    pub limit: usize,
    /// One JSON object per line
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub api: ApiArgs,
}

/// Parses the command line. Prints help or an error, and exits, if there is no command to run.
pub fn parse() -> Cli {
    Cli::parse()
}

/// Parses words in a test. For an error, returns the exit code and the output.
#[cfg(test)]
pub fn parse_words(words: &[&str]) -> Result<Command, (i32, String)> {
    let words = std::iter::once(&"mesa").chain(words);
    Cli::try_parse_from(words).map(|cli| cli.command).map_err(|error| (error.exit_code(), error.to_string()))
}

mod bench;
mod config;
mod drain;
mod numbers;
mod observe;
mod shell;
mod store;
#[cfg(test)]
mod tests;
mod token;
mod user_id;
