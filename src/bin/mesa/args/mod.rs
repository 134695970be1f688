//! What can be typed, as it was typed. The only place that names clap; what it means is made of it in each command.
//!
//! The comments on commands and flags are the help that people read, so they are written for a terminal.
#![allow(clippy::doc_markdown, rustdoc::bare_urls, reason = "backticks and angle brackets would be shown as they are")]
#![allow(clippy::struct_excessive_bools, reason = "each is a flag that was typed or not")]

use std::{num::NonZeroU32, path::PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum};

use numbers::{count, port, seconds, whole};
pub use store::{BackupArgs, InspectArgs, MoveArgs, RestoreArgs};

const EXIT_CODES: &str = "\
Exit codes:
  0  it worked
  1  it did not; the reason is on standard error
  2  what was typed makes no sense";

const AFTER: &str = "\
Try it, in three terminals:
  mesa serve --dev
  mesa connect --as alice
  mesa dispatch --to alice --type GREETING '{\"text\":\"Hello\"}'
with the key that serve printed in MESA_API_KEY.

Or watch what it promises:
  mesa demo

Environment:
  MESA_CONFIG   configuration file for serve, config print and token
  MESA_URL      the server, for connect, dispatch, users, inbox and backup
  MESA_API_KEY  key for dispatch, users, inbox and backup
  MESA_TOKEN    token for connect
  Settings have variables too, MESA_PORT for example; `mesa config print` shows what holds.
";

/// A message server for users who come and go.
///
/// A backend dispatches a message to user ids. A user who is there gets it at once; a user who is not gets it, in order,
/// on coming back. The server needs nothing beside itself.
#[derive(Debug, Parser)]
#[command(name = "mesa", version, arg_required_else_help = true, propagate_version = true, max_term_width = 100)]
#[command(after_help = "Each command has examples: mesa help COMMAND", after_long_help = format!("{AFTER}\n{EXIT_CODES}"))]
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
    Users(UsersArgs),
    Inbox(InboxArgs),
    Token(TokenArgs),
    Config(ConfigArgs),
    Inspect(InspectArgs),
    Backup(BackupArgs),
    Restore(RestoreArgs),
    /// Bring what waits in a stock set-up's Redis into a store
    ///
    /// Needs a build with --features redis, and a store that no server has open. Nothing is taken away in Redis: stop what
    /// writes there first. Said again, it goes on where it was stopped, and brings nothing twice.
    Import(MoveArgs),
    /// Bring what waits in a store into a stock set-up's Redis
    ///
    /// The same the other way round: behind what waits there for each user, and nothing twice. The store keeps what it has.
    /// Times to live, devices and sequences are nothing that stock knows.
    Export(MoveArgs),
}

/// Run the server
///
/// Settings come from these flags, then the environment, then the file, then the defaults. The server prints where it
/// listens and how to reach it; its log goes to standard error. SIGTERM or SIGINT stops it once what was begun is done,
/// a second one at once.
#[derive(Debug, Args)]
#[command(after_long_help = format!("\
Examples:
  mesa serve --dev                      to try things, for this machine only
  mesa serve --config mesa.json5        with a file; see mesa config check
  MESA_PORT=8080 mesa serve --config mesa.json5
  mesa serve --config stock.json5 --store embedded
                                        the file names a Redis; do without

{EXIT_CODES}
  130, 143  a second signal (SIGINT, SIGTERM) stopped it at once"))]
pub struct ServeArgs {
    /// Configuration file, JSON5 [env: MESA_CONFIG]
    #[arg(long, short, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// For trying things out: this machine only; sync, portals and reconnects on; tokens are user ids; an API key is made up
    /// and printed
    #[arg(long)]
    pub dev: bool,
    /// Port for WebSocket and HTTP; 0 lets the system choose
    #[arg(long, short, value_parser = port)]
    pub port: Option<u16>,
    /// Address to listen on
    #[arg(long, value_name = "ADDRESS")]
    pub host: Option<String>,
    /// Path at which WebSockets are accepted
    #[arg(long)]
    pub path: Option<String>,
    /// Keeps several applications apart
    #[arg(long)]
    pub namespace: Option<String>,
    /// Which store; `embedded` sets a configured redis aside
    #[arg(long, value_enum, value_name = "STORE")]
    pub store: Option<StoreKind>,
    /// Directory of the embedded store
    #[arg(long, value_name = "DIR")]
    pub store_path: Option<String>,
    /// What to log: error, warn, info, debug, trace, or a filter such as mesa=debug
    #[arg(long, value_name = "LEVEL")]
    pub log_level: Option<String>,
    /// Log lines for people or for machines
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,
    /// Once listening, write address, process id and an API key to this file, as JSON
    #[arg(long, value_name = "FILE", hide = true)]
    pub ready_file: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum StoreKind {
    /// On this machine, needing nothing else
    Embedded,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people
    Text,
    /// One JSON object a line
    Json,
}

/// Watch the server keep its promises
///
/// Starts a server of its own on a free port with a temporary store, and plays a story: Alice gets a message, goes away,
/// comes back to what she missed, loses her network without a word, and has the server killed under her. Everything it
/// prints it has checked. Takes a few seconds and leaves nothing behind.
#[derive(Debug, Args)]
#[command(after_long_help = format!("\
Examples:
  mesa demo
  mesa demo --fast    without the pauses that let a reader follow

{EXIT_CODES}"))]
pub struct DemoArgs {
    /// Without pauses for the reader
    #[arg(long)]
    pub fast: bool,
}

/// Be a user: print what arrives, send what is typed
///
/// A line that is a JSON object with `op`, `t` or `d` is sent as it is; any other is sent as text, as
/// {"op":0,"d":{"text":LINE},"t":"TEXT"}. One that begins with a brace and is not JSON is not sent. The server passes it to
/// a portal and the webhook, where there are any; use `mesa dispatch` to reach another user. /quit or Ctrl-C leaves, the end of the input does not. When the
/// connection is lost it is made again, as often as it takes, unless the server said that there is no use.
///
/// What was printed counts as received once the next message is asked for, so nothing is lost if this program dies, and a
/// message may be printed twice then.
#[derive(Debug, Args)]
#[command(after_long_help = format!("\
Examples:
  mesa connect --as alice                  user ids as tokens (serve --dev)
  MESA_TOKEN=$(mesa token --id alice --config mesa.json5) mesa connect
                                           a server that takes JWTs
  mesa connect --as alice --no-sync        forget what was missed
  mesa connect --as alice --device phone-1
                                           with a place in the log of its own
  mesa connect --as alice --after 41       resume behind message 41
  mesa connect --as alice --json | jq .d   one JSON object a line
  echo '{{\"t\":\"TYPING\",\"d\":{{}}}}' | mesa connect --as alice
                                           sends that and goes on reading

{EXIT_CODES}"))]
pub struct ConnectArgs {
    /// User id, for servers that take the token for one (serve --dev)
    #[arg(long = "as", value_name = "USER", conflicts_with = "token")]
    pub user: Option<String>,
    /// Token to authenticate with [env: MESA_TOKEN, which does not show in the list of processes]
    #[arg(long, value_name = "TOKEN")]
    pub token: Option<String>,
    /// The server [env: MESA_URL] [default: ws://127.0.0.1:4000/]
    #[arg(long, value_name = "URL")]
    pub url: Option<String>,
    /// Forget what was missed; it counts as received
    #[arg(long)]
    pub no_sync: bool,
    /// Resume behind this sequence of the user's log, 0 for all there is; what is not there any more is said
    #[arg(long, value_name = "N", conflicts_with = "no_sync", value_parser = whole)]
    pub after: Option<u64>,
    /// The device this is: what it has received, the user's other devices still get
    #[arg(long, value_name = "NAME")]
    pub device: Option<String>,
    /// End when the connection does
    #[arg(long)]
    pub once: bool,
    /// One JSON object a line, as the server sent it
    #[arg(long)]
    pub json: bool,
}

/// Send a message to users
///
/// Returns once every copy that is to be kept is on disk. Fails if the message was not taken for some recipient, and says
/// for whom and why.
///
/// With --ndjson many dispatches are sent, one JSON object a line as the HTTP API takes them. They go over one request and
/// share syncs. What was not taken is told line by line, and at the end how many were.
#[derive(Debug, Args)]
#[command(after_long_help = format!("\
Examples:
  mesa dispatch --to alice --type GREETING '{{\"text\":\"Hello\"}}'
  mesa dispatch --to alice,bob --type TYPING --no-sync '{{}}'
                                                not kept for who is away
  mesa dispatch --to '*' --excluding bob --type NEWS '{{}}'
                                                every connected client but bob
  generate | mesa dispatch --to alice --type REPORT -
                                                data from standard input
  mesa dispatch --to alice --type SCORE --collapse score --ttl 3600 '[2,1]'
                                                in the place of an older score,
                                                and for an hour at most
  mesa dispatch --to alice --type PAID --id order-7 '{{}}'
                                                once, however often it is said
  mesa dispatch --ndjson dispatches.ndjson      a file of them
  generate | mesa dispatch --ndjson --json      as they come, with each result

{EXIT_CODES}"))]
pub struct DispatchArgs {
    /// User ids, separated by commas; '*' for every connected client
    #[arg(long, value_name = "USERS", required_unless_present = "ndjson", value_delimiter = ',')]
    pub to: Vec<String>,
    /// User ids that are left out
    #[arg(long, value_name = "USERS", value_delimiter = ',')]
    pub excluding: Vec<String>,
    /// Type of the message, by which applications tell messages apart
    #[arg(long = "type", short, value_name = "TYPE")]
    pub kind: Option<String>,
    /// Opcode: 0, or one above 22 as the application likes
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = whole)]
    pub op: u64,
    /// Not kept for who is away
    #[arg(long)]
    pub no_sync: bool,
    /// Kept for this long at most
    #[arg(long, value_name = "SECONDS", conflicts_with = "no_sync", value_parser = seconds)]
    pub ttl: Option<NonZeroU32>,
    /// What it is about: it takes the place of a message with the same key that still waits
    #[arg(long, value_name = "KEY", conflicts_with = "no_sync")]
    pub collapse: Option<String>,
    /// Name of this dispatch: said again with the same name, it is not sent again
    #[arg(long, value_name = "ID")]
    pub id: Option<String>,
    /// Send the dispatches in this file, one JSON object a line; - or nothing reads them from standard input
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-", conflicts_with_all = [
        "to", "excluding", "kind", "op", "no_sync", "ttl", "collapse", "id", "data",
    ])]
    pub ndjson: Option<PathBuf>,
    #[command(flatten)]
    pub api: ApiArgs,
    /// Print the server's answer as JSON
    #[arg(long)]
    pub json: bool,
    /// The data, as JSON; - reads it from standard input
    #[arg(value_name = "DATA", default_value = "{}")]
    pub data: String,
}

/// Where the API is, and the key to it.
#[derive(Debug, Args)]
pub struct ApiArgs {
    /// The server [env: MESA_URL] [default: http://127.0.0.1:4000]
    #[arg(long, value_name = "URL")]
    pub url: Option<String>,
    /// Key of the API [env: MESA_API_KEY, which does not show in the list of processes]
    #[arg(long, value_name = "KEY")]
    pub key: Option<String>,
}

/// List users, or show one
///
/// Everybody the server knows, here or away, or those who are connected now; or what it knows of one, with each of his
/// devices.
#[derive(Debug, Args)]
#[command(after_long_help = format!("\
Examples:
  mesa users
  mesa users --online
  mesa users alice                with devices, and what waits for each
  mesa users --json | jq -r 'select(.pending > 0) | .id'
                                  who has messages waiting

{EXIT_CODES}"))]
pub struct UsersArgs {
    /// User id
    #[arg(value_name = "USER", conflicts_with = "online")]
    pub user: Option<String>,
    /// Only those who are connected
    #[arg(long)]
    pub online: bool,
    /// One JSON object a line
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub api: ApiArgs,
}

/// Show what waits for a user, or clear it
///
/// Looking takes nothing away: the messages still wait.
#[derive(Debug, Args)]
#[command(after_long_help = format!("\
Examples:
  mesa inbox alice
  mesa inbox alice --after 40 --limit 10
  mesa inbox alice --json | jq .d
  mesa inbox alice --clear    all of it counts as received, for good

{EXIT_CODES}"))]
pub struct InboxArgs {
    /// User id
    #[arg(value_name = "USER")]
    pub user: String,
    /// Count all that waits as received
    #[arg(long, conflicts_with_all = ["after", "limit"])]
    pub clear: bool,
    /// Only messages with a sequence above this
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = whole)]
    pub after: u64,
    /// At most this many
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = count)]
    pub limit: usize,
    /// JSON, one object a line
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub api: ApiArgs,
}

/// Make a token for a user
///
/// Signs a JWT that a server with the same secret takes. For trying things out and for scripts; an application makes its
/// users' tokens itself.
#[derive(Debug, Args)]
#[command(after_long_help = format!("\
Examples:
  mesa token --id alice --config mesa.json5    with the server's secret
  WS_KEY=… mesa token --id alice --ttl 1h
  mesa token --id alice --ttl 7d --claim role=admin --claim level=3

{EXIT_CODES}"))]
pub struct TokenArgs {
    /// User id
    #[arg(long, value_name = "USER")]
    pub id: String,
    /// The shared secret [env: WS_KEY, which does not show in the list of processes]
    #[arg(long, value_name = "SECRET", conflicts_with = "config")]
    pub secret: Option<String>,
    /// Take the secret, and what else a token needs, from this file [env: MESA_CONFIG]
    #[arg(long, short, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// How long it holds: 90s, 15m, 1h, 7d; without, for ever
    #[arg(long, value_name = "TIME")]
    pub ttl: Option<String>,
    /// A further claim; the value is read as JSON where it is JSON, else as text
    #[arg(long = "claim", value_name = "NAME=VALUE")]
    pub claims: Vec<String>,
}

/// Check a configuration, or show the one that holds
#[derive(Debug, Args)]
#[command(arg_required_else_help = true, after_long_help = format!("\
Examples:
  mesa config check mesa.json5
  mesa config print --config mesa.json5

{EXIT_CODES}"))]
pub struct ConfigArgs {
    #[command(subcommand)]
    pub command: ConfigCommand,
}

#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    Check(ConfigCheckArgs),
    Print(ConfigPrintArgs),
}

/// Check a file, and name all that is wrong with it
///
/// Reads the file and the environment as serve does, and starts nothing. A variable that sets something is named: it holds
/// over the file.
#[derive(Debug, Args)]
#[command(after_long_help = format!("\
Examples:
  mesa config check mesa.json5
  mesa config check stock.json5 --store embedded    as serve would take it

{EXIT_CODES}"))]
pub struct ConfigCheckArgs {
    /// Configuration file, JSON5
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Which store; `embedded` sets a configured redis aside
    #[arg(long, value_enum, value_name = "STORE")]
    pub store: Option<StoreKind>,
}

/// Print what holds, from file, environment and defaults, as JSON with secrets masked
#[derive(Debug, Args)]
#[command(after_long_help = format!("\
Examples:
  mesa config print
  mesa config print --config mesa.json5
  mesa config print --dev | jq .sync

{EXIT_CODES}"))]
pub struct ConfigPrintArgs {
    /// Configuration file, JSON5 [env: MESA_CONFIG]
    #[arg(long, short, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// As `mesa serve --dev` would have it
    #[arg(long)]
    pub dev: bool,
    /// Which store; `embedded` sets a configured redis aside
    #[arg(long, value_enum, value_name = "STORE")]
    pub store: Option<StoreKind>,
}

/// Reads the command line. Prints help or says what is wrong, and leaves, where there is nothing to do.
pub fn parse() -> Cli {
    Cli::parse()
}

/// What a command line would be read as; for those that cannot be, the exit code and what would be printed.
#[cfg(test)]
pub fn typed(words: &[&str]) -> Result<Command, (i32, String)> {
    let words = std::iter::once(&"mesa").chain(words);
    Cli::try_parse_from(words).map(|cli| cli.command).map_err(|error| (error.exit_code(), error.to_string()))
}

mod numbers;
mod store;
#[cfg(test)]
mod tests;
