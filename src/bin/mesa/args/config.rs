//! Arguments of `config`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{EXIT_CODES, StoreKind};

/// Write, check or print a configuration
#[derive(Debug, Args)]
#[command(arg_required_else_help = true, after_long_help = format!("\
Examples:
  mesa config init mesa.json5
  mesa config check mesa.json5
  mesa config print --config mesa.json5

{EXIT_CODES}"))]
pub struct ConfigArgs {
    #[command(subcommand)]
    pub command: ConfigCommand,
}

#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    Init(ConfigInitArgs),
    Check(ConfigCheckArgs),
    Print(ConfigPrintArgs),
}

/// Write a small configuration file, with a new API key and JWT secret
///
/// Only its owner can read the file. An existing file is not replaced.
#[derive(Debug, Args)]
#[command(after_long_help = format!("\
Examples:
  mesa config init
  mesa config init /etc/mesa/mesa.json5

{EXIT_CODES}"))]
pub struct ConfigInitArgs {
    /// File to write
    #[arg(value_name = "FILE", default_value = "mesa.json5")]
    pub file: PathBuf,
}

/// Check a configuration, and report every mistake
///
/// Reads file and environment as serve does, and starts nothing. Names the variables that override the file. With --env
/// the file is that of MESA_CONFIG, or none.
#[derive(Debug, Args)]
#[command(after_long_help = format!("\
Examples:
  mesa config check mesa.json5
  mesa config check --env                              as serve without options
  mesa config check original.json5 --store embedded    as serve reads it

{EXIT_CODES}"))]
pub struct ConfigCheckArgs {
    /// Configuration file, JSON5
    #[arg(value_name = "FILE", required_unless_present = "env")]
    pub file: Option<PathBuf>,
    /// Check the environment, with the file of MESA_CONFIG if it is set
    #[arg(long)]
    pub env: bool,
    /// Store to use; `embedded` ignores a configured redis
    #[arg(long, value_enum, value_name = "STORE")]
    pub store: Option<StoreKind>,
}

/// Print the effective configuration as JSON, with secrets masked
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
    /// With the settings of `mesa serve --dev`
    #[arg(long)]
    pub dev: bool,
    /// Store to use; `embedded` ignores a configured redis
    #[arg(long, value_enum, value_name = "STORE")]
    pub store: Option<StoreKind>,
}
