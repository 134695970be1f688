//! Arguments of the commands on a store: inspect, backup, restore, import and export.

use std::path::PathBuf;

use clap::Args;

use super::{ApiArgs, EXIT_CODES, numbers::count};

/// Look at a store that no server has open, and save what is left of a damaged one
///
/// Changes nothing in the directory. Says what is there and what is damaged, and fails if anything is.
///
/// With --salvage, all that can be read is written to a new directory, of which a server can be started: each user's
/// messages with the sequences they had, and what each has received. What is lost leaves a gap, and is listed.
#[derive(Debug, Args)]
#[command(after_long_help = format!("\
Examples:
  mesa inspect data/store
  mesa inspect data/store --user alice          one user, message by message
  mesa inspect data/store --json | jq -r 'select(.pending > 0) | .id'
                                                who has messages waiting
  mesa inspect data/store --salvage data/saved  what can be read, anew

Exit codes:
  0  the store is whole; with --salvage: all that can be read was written, also of a damaged store
  1  something is damaged, or it could not be read (with --salvage: or written); standard error says what
  2  what was typed makes no sense"))]
pub struct InspectArgs {
    /// Directory of the store
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,
    /// Only this user, in detail
    #[arg(long, value_name = "USER")]
    pub user: Option<String>,
    /// At most this many users, or messages of one
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = count)]
    pub limit: usize,
    /// JSON, one object a line: the store first, then each user, then each damage
    #[arg(long)]
    pub json: bool,
    /// Write what can be read to a new store in this directory, which must not exist, or be empty
    #[arg(long, value_name = "OUT", conflicts_with_all = ["user", "limit"])]
    pub salvage: Option<PathBuf>,
}

/// Make a backup of a running server's store
///
/// Everything that was answered before it begins is in it, and no user's messages have a hole. The server goes on
/// meanwhile. The file has its name only once it is whole, verified and on disk.
#[derive(Debug, Args)]
#[command(after_long_help = format!("\
Examples:
  mesa backup monday.mesa
  mesa backup --url http://127.0.0.1:4000 monday.mesa

{EXIT_CODES}"))]
pub struct BackupArgs {
    /// Where to; must not exist
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    #[command(flatten)]
    pub api: ApiArgs,
}

/// Make a store of a backup
///
/// The whole file is verified first. Every user's log goes on behind a gap of about a million, so that no sequence that
/// was given out after the backup is given out again.
#[derive(Debug, Args)]
#[command(after_long_help = format!("\
Examples:
  mesa restore monday.mesa --store-path data/restored
  mesa serve --store-path data/restored

{EXIT_CODES}"))]
pub struct RestoreArgs {
    /// The backup
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Directory of the store; must not exist, or be empty
    #[arg(long, value_name = "DIR")]
    pub store_path: PathBuf,
}

/// What is moved, and where.
#[derive(Debug, Args)]
#[command(after_long_help = format!("\
Examples:
  mesa import redis://localhost:6379 --store-path data/store
  mesa import redis://:secret@cache --namespace shop --store-path data/store
  mesa export redis://localhost:6379 --store-path data/store

{EXIT_CODES}"))]
pub struct MoveArgs {
    /// The Redis: redis://user:password@host:port/database
    #[arg(value_name = "URL")]
    pub redis: String,
    /// Namespace, of the set-up and of the store
    #[arg(long, value_name = "NAME")]
    pub namespace: Option<String>,
    /// Directory of the store
    #[arg(long, value_name = "DIR")]
    pub store_path: PathBuf,
}
