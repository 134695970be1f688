//! Tests the commands of the built binary, with a running server where a command needs one.

mod config_init;
mod dispatch;
mod drain;
mod serve;
mod store;
#[path = "../support/mod.rs"]
#[allow(dead_code, reason = "each suite uses a part of it")]
mod support;

mod bench;
mod closed_pipe;
mod dev_key;
mod disconnect;
mod environment;
mod events;
mod exit_codes;
#[cfg(feature = "failpoints")]
mod failpoints;
mod guess_limit;
mod log_levels;
mod log_limits;
mod log_output;
mod output;
mod progress;
mod reload;
mod shell;
mod status;
#[cfg(feature = "failpoints")]
mod task_panics;
mod token;
mod unstored;
mod users;

use support::{
    command::{output_text, run_mesa},
    wait::WAIT_TIMEOUT,
};
