//! Defines the arguments of commands on a store: inspect, backup, restore, import and export.

use std::{num::NonZeroUsize, path::PathBuf};

use clap::Args;

use super::{
    ApiArgs, EXIT_CODES,
    numbers::{at_least_one, count},
};

/// Inspect a store that no server has open, or salvage a damaged one
///
/// Changes nothing in the directory. Prints the content and every damaged place, and fails if there is one.
///
/// With --salvage, writes everything readable to a new store: each user's messages with their sequences, and the
/// cursors. Each lost range leaves a gap, and is listed.
#[derive(Debug, Args)]
#[command(after_long_help = format!("\
Examples:
  mesa inspect data/store
  mesa inspect data/store --user alice          one user, with each sequence
  mesa inspect data/store --json | jq -r 'select(.pending > 0) | .id'
                                                users with pending messages
  mesa inspect data/store --salvage data/saved  everything readable

Exit codes:
  0  the store is undamaged; with --salvage: everything readable was written, also of a damaged store
  1  something is damaged, or could not be read or written; standard error has the details
  2  wrong arguments"))]
pub struct InspectArgs {
    /// Directory of the store
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,
    /// Only this user, in detail
    #[arg(long, value_name = "USER")]
    pub user: Option<String>,
    /// Most users to show, or messages of one user
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = count)]
    pub limit: usize,
    /// One JSON object per line: the store, each user, each damaged place
    #[arg(long)]
    pub json: bool,
    /// Write everything readable to a new store in this directory, which must not exist, or be empty
    #[arg(long, value_name = "OUT", conflicts_with_all = ["user", "limit"])]
    pub salvage: Option<PathBuf>,
}

/// Back up the store of a running server
///
/// The backup has every dispatch that was answered before it began, and complete logs. The server serves requests
/// meanwhile. The file gets its name after it is complete, verified and synced.
///
/// With --every, the command takes backups until SIGTERM or SIGINT stops it, and then exits with 0. It names each file
/// by its time, verifies it, and then removes its own oldest files. A failed backup is reported on standard error and
/// does not end the command. A backup in progress is removed when the command is stopped.
#[derive(Debug, Args)]
#[command(after_long_help = format!("\
Examples:
  mesa backup monday.mesa
  mesa backup --url http://127.0.0.1:4000 monday.mesa
  mesa backup --every 1h --keep 24 backups    hourly; keeps the last 24

{EXIT_CODES}"))]
pub struct BackupArgs {
    /// File of the backup, which must not exist; with --every: an existing directory
    #[arg(value_name = "FILE")]
    pub path: PathBuf,
    /// Take a backup at once, and then at this interval: 90s, 15m, 1h, 7d
    #[arg(long, value_name = "TIME")]
    pub every: Option<String>,
    /// Backups to keep; the oldest ones are removed [default: 24]
    #[arg(long, value_name = "N", requires = "every", value_parser = at_least_one)]
    pub keep: Option<NonZeroUsize>,
    #[command(flatten)]
    pub api: ApiArgs,
}

/// Create a store from a backup
///
/// Verifies the complete file first. Every log skips about a million sequences, so that no sequence assigned after the
/// backup is assigned again.
#[derive(Debug, Args)]
#[command(after_long_help = format!("\
Examples:
  mesa restore monday.mesa --store-path data/restored
  mesa serve --store-path data/restored

{EXIT_CODES}"))]
pub struct RestoreArgs {
    /// File of the backup
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Directory of the store; must not exist, or be empty
    #[arg(long, value_name = "DIR")]
    pub store_path: PathBuf,
}

/// Arguments of import and export.
#[derive(Debug, Args)]
#[command(after_long_help = format!("\
Examples:
  mesa import redis://localhost:6379 --store-path data/store
  mesa import redis://:secret@cache --namespace shop --store-path data/store
  mesa export redis://localhost:6379 --store-path data/store

{EXIT_CODES}"))]
pub struct ImportExportArgs {
    /// URL of the Redis: redis://user:password@host:port/database
    #[arg(value_name = "URL")]
    pub redis: String,
    /// Namespace, in the Redis and of the store
    #[arg(long, value_name = "NAME")]
    pub namespace: Option<String>,
    /// Directory of the store
    #[arg(long, value_name = "DIR")]
    pub store_path: PathBuf,
}
