//! Tests the commands of the built binary, with a running server where a command needs one.

mod dispatch;
mod serve;
mod store;
#[path = "../support/mod.rs"]
#[allow(dead_code, reason = "each suite uses a part of it")]
mod support;

mod environment;
#[cfg(feature = "failpoints")]
mod failpoints;
mod guess_limit;
mod log_limits;
mod log_output;
mod output;
#[cfg(feature = "failpoints")]
mod task_panics;
mod token;
mod unstored;
mod users;

use support::{
    command::{output_text, run_mesa},
    wait::WAIT_TIMEOUT,
};
