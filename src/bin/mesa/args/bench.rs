//! Defines the arguments of `mesa bench`.

use std::num::{NonZeroU32, NonZeroU64, NonZeroUsize};

use clap::{Args, ValueEnum};

use super::{
    ApiArgs, EXIT_CODES,
    numbers::{at_least_one, from_one},
};

/// Measure a running server
///
/// Connects clients of its own, with user ids that begin with `bench-`, and dispatches messages to them. Checks that each
/// client receives each message once and in order. CPU time and memory are those that the server reports about itself.
///
/// Client and server share the cores of one machine: run the client on another one to measure the server's limit.
#[derive(Debug, Args)]
#[command(after_long_help = format!("\
Examples:
  mesa bench unicast
  mesa bench latency --rate 2000 --messages 20000
  mesa bench fanout --users 5000 --messages 100
  mesa bench idle --users 10000 --seconds 30
  mesa bench enqueue --via http --connections 50 --json
  mesa bench connect --jwt-secret 32-bytes-of-the-server-s-secret

{EXIT_CODES}

The exit code is also 1 if a message was lost, repeated, rejected or out of order."))]
pub struct BenchArgs {
    /// What to measure
    #[arg(value_enum)]
    pub work: Work,
    /// Users, each with one client
    #[arg(long, value_name = "N", default_value = "1000", value_parser = at_least_one)]
    pub users: NonZeroUsize,
    /// Messages in all; default: 100 for fanout, else 20000
    #[arg(long, value_name = "N", value_parser = from_one)]
    pub messages: Option<NonZeroU64>,
    /// Bytes of data in one message, at least 64
    #[arg(long, value_name = "N", default_value = "256", value_parser = at_least_one)]
    pub bytes: NonZeroUsize,
    /// Messages per second, for latency
    #[arg(long, value_name = "N", default_value = "1000", value_parser = from_one)]
    pub rate: NonZeroU64,
    /// How messages are dispatched
    #[arg(long, value_enum, value_name = "HOW", default_value = "ndjson")]
    pub via: Via,
    /// HTTP connections, each with one request at a time, for its part of the users; fanout uses one
    #[arg(long, value_name = "N", default_value = "16", value_parser = at_least_one)]
    pub connections: NonZeroUsize,
    /// Dispatches without an answer on the NDJSON stream
    #[arg(long, value_name = "N", default_value = "1000", value_parser = at_least_one)]
    pub in_flight: NonZeroUsize,
    /// Clients that connect at the same time
    #[arg(long, value_name = "N", default_value = "64", value_parser = at_least_one)]
    pub concurrency: NonZeroUsize,
    /// Time for which idle connections are held
    #[arg(long, value_name = "SECONDS", default_value = "10")]
    pub seconds: NonZeroU32,
    /// Sign tokens with this secret (HS256); otherwise the token is the user id, as with --dev
    #[arg(long, value_name = "SECRET")]
    pub jwt_secret: Option<String>,
    /// One JSON object instead of a table
    #[arg(long)]
    pub json: bool,
    /// Leave the users and their messages in the store, instead of erasing them
    #[arg(long)]
    pub keep: bool,
    #[command(flatten)]
    pub api: ApiArgs,
}

/// States what a run of `mesa bench` does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Work {
    /// Hold authenticated connections: memory of each, and CPU time
    Idle,
    /// Connect and authenticate
    Connect,
    /// Each message goes to all users
    Fanout,
    /// Each message goes to one online user, as fast as possible
    Unicast,
    /// Each message goes to one online user, at a fixed rate
    Latency,
    /// Each message goes to one offline user
    Enqueue,
    /// Users connect and receive their pending messages
    Drain,
}

/// States how messages are dispatched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Via {
    /// One NDJSON stream
    Ndjson,
    /// One request for each message
    Http,
}
