//! Defines the arguments of `mesa token`.

use std::path::PathBuf;

use clap::Args;

use super::EXIT_CODES;

/// Sign a token for a user, or check one
///
/// Signs a JWT for a server with the same secret, for tests and scripts. An application signs the tokens of its users
/// itself.
///
/// With --check, tells whether a server accepts a token: whose it is, when it expires, and why it is rejected. The
/// exit code is 0 only for an accepted token.
#[derive(Debug, Args)]
#[command(after_long_help = format!("\
Examples:
  mesa token --id alice --config mesa.json5    with the server's secret
  WS_KEY=… mesa token --id alice --ttl 1h
  mesa token --id alice --ttl 7d --claim role=admin --config mesa.json5
  mesa token --check TOKEN --config mesa.json5  as the server checks it
  mesa token --check TOKEN --key-file public.pem
  pbpaste | mesa token --check - --config mesa.json5

{EXIT_CODES}"))]
pub struct TokenArgs {
    /// User id
    #[arg(long, value_name = "USER", required_unless_present = "check")]
    pub id: Option<String>,
    /// Check this token; - reads it from standard input, so that it does not show in the list of processes
    #[arg(long, value_name = "TOKEN", conflicts_with_all = ["id", "ttl", "claims"])]
    pub check: Option<String>,
    /// The shared secret [env: WS_KEY, which does not show in the list of processes]
    #[arg(long, value_name = "SECRET", conflicts_with_all = ["config", "key_file"])]
    pub secret: Option<String>,
    /// PEM file with the public key to check with
    #[arg(long, value_name = "FILE", conflicts_with_all = ["config", "id", "ttl", "claims"])]
    pub key_file: Option<PathBuf>,
    /// Configuration file with the key and required claims [env: MESA_CONFIG]
    #[arg(long, short, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Time until it expires: 90s, 15m, 1h, 7d; default: never
    #[arg(long, value_name = "TIME")]
    pub ttl: Option<String>,
    /// Further claim; a value that is JSON is used as JSON, any other as text
    #[arg(long = "claim", value_name = "NAME=VALUE")]
    pub claims: Vec<String>,
}
