//! `mesa config`: checks a configuration, or prints the effective one.

use mesa::config::{ConfigError, Sources, load};

use crate::{
    args::{ConfigCheckArgs, ConfigCommand, ConfigPrintArgs, StoreKind},
    env,
    error::Failure,
    output,
};

/// Runs a subcommand.
pub fn run(command: &ConfigCommand) -> Result<(), Failure> {
    match command {
        ConfigCommand::Check(args) => check(args),
        ConfigCommand::Print(args) => print(args),
    }
}

fn check(args: &ConfigCheckArgs) -> Result<(), Failure> {
    let embedded = args.store == Some(StoreKind::Embedded);
    // `serve` reads the environment too, so a check without it would be incomplete.
    let sources = Sources { embedded, ..env::sources(Some(args.file.clone())) };
    match load(&sources) {
        Ok(loaded) => {
            let together = match &loaded.variables[..] {
                [] => String::new(),
                variables => format!(" together with {} of the environment", variables.join(", ")),
            };
            output::line(&format!("{} is valid{together}", args.file.display()))?;
            for warning in loaded.warnings {
                output::line(&format!("warning: {warning}"))?;
            }
            Ok(())
        }
        Err(error) => {
            output::remark(&error.to_string());
            Err(Failure::Reported)
        }
    }
}

fn print(args: &ConfigPrintArgs) -> Result<(), Failure> {
    let mut sources = env::sources(env::config_file(args.config.as_ref()));
    sources.dev = args.dev;
    sources.embedded = args.store == Some(StoreKind::Embedded);
    let loaded = load(&sources).map_err(|error| unusable(&error))?;
    for warning in &loaded.warnings {
        output::remark(&format!("warning: {warning}"));
    }
    Ok(output::json_text(&loaded.config.effective())?)
}

/// Returns the failure of a command with an invalid configuration.
pub fn unusable(error: &ConfigError) -> Failure {
    let problems = error.to_string().replace('\n', "\n  ");
    Failure::listed(format!("the configuration cannot be used:\n  {problems}"))
}
