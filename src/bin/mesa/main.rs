//! Runs the command line: parses the arguments, runs one command, and returns its exit code.
//!
//! It uses only public names of the library.

mod args;
mod backup;
mod bench;
mod config;
mod connect;
mod demo;
mod disconnect;
mod dispatch;
mod drain;
mod duration;
mod endpoint;
mod env;
mod error;
mod events;
mod import_export;
mod inbox;
mod inspect;
mod logging;
mod os;
mod output;
mod progress;
mod restore;
mod serve;
mod shell;
mod status;
mod systemd;
mod token;
mod users;

use std::{future::Future, process::ExitCode};

use args::{Cli, Command};
use error::Failure;

/// Allocates with mimalloc, which is fast with many short-lived allocations of few sizes, as connections cause them.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let code = match run(args::parse()) {
        Ok(()) | Err(Failure::PipeClosed) => ExitCode::SUCCESS,
        Err(Failure::Reported) => ExitCode::from(1),
        Err(Failure::Failed(reason)) => {
            logging::report_failure(&reason);
            ExitCode::from(1)
        }
        Err(Failure::Usage(reason)) => {
            logging::report_failure(&reason);
            ExitCode::from(2)
        }
    };
    logging::flush();
    code
}

fn run(cli: Cli) -> Result<(), Failure> {
    match cli.command {
        Command::Serve(args) => serve::run(&args),
        Command::Demo(args) => wait_for(demo::run(&args)),
        Command::Connect(args) => wait_for(connect::run(&args)),
        Command::Dispatch(args) => wait_for(dispatch::run(&args)),
        Command::Drain(args) => wait_for(drain::run(&args)),
        Command::Users(args) => wait_for(users::run(&args)),
        Command::Inbox(args) => wait_for(inbox::run(&args)),
        Command::Disconnect(args) => wait_for(disconnect::run(&args)),
        Command::Status(args) => wait_for(status::run(&args)),
        Command::Events(args) => wait_for(events::run(&args)),
        Command::Token(args) => wait_for(token::run(&args)),
        Command::Config(args) => config::run(&args.command),
        Command::Inspect(args) => inspect::run(&args),
        Command::Backup(args) => wait_for(backup::run(&args)),
        Command::Restore(args) => restore::run(&args),
        Command::Import(args) => wait_for(import_export::import(&args)),
        Command::Export(args) => wait_for(import_export::export(&args)),
        Command::Bench(args) => bench::run(&args),
        Command::Completions(args) => shell::completions(&args),
        Command::Man(args) => shell::man(&args),
    }
}

/// Runs an asynchronous command on one thread.
fn wait_for(command: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::because(format!("cannot start: {error}")))?
        .block_on(command)
}
