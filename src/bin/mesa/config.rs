//! `mesa config`: writes, checks or prints a configuration.

use std::{
    fs::OpenOptions,
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
};

use mesa::config::{ConfigError, Sources, load};

use crate::{
    args::{ConfigCheckArgs, ConfigCommand, ConfigInitArgs, ConfigPrintArgs, StoreKind},
    env,
    error::Failure,
    output,
};

/// Content of a new file.
const INITIAL: &str = include_str!("initial.json5");

/// Runs a subcommand.
pub fn run(command: &ConfigCommand) -> Result<(), Failure> {
    match command {
        ConfigCommand::Init(args) => init(args),
        ConfigCommand::Check(args) => check(args),
        ConfigCommand::Print(args) => print(args),
    }
}

/// Writes a small configuration file.
fn init(args: &ConfigInitArgs) -> Result<(), Failure> {
    let name = args.file.display();
    let mut secrets = [[0; 16]; 3];
    for secret in &mut secrets {
        getrandom::fill(secret).map_err(|error| Failure::because(format!("no secret can be generated: {error}")))?;
    }
    let [key, first, second] = secrets.map(|secret| format!("{:032x}", u128::from_be_bytes(secret)));
    let text = INITIAL.replace("API-KEY", &key).replace("JWT-SECRET", &format!("{first}{second}"));
    // Readable by its owner only, because it has secrets.
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    let written = options.open(&args.file).and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.sync_all()
    });
    written.map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => {
            Failure::because(format!("{name} exists and was not changed; remove it first, or name another file"))
        }
        io::ErrorKind::NotFound => {
            Failure::because(format!("{name} cannot be written: its directory does not exist; create it first"))
        }
        _ => Failure::because(format!("{name} cannot be written: {error}")),
    })?;
    output::line(&format!(
        "{name} is written, with a new API key and JWT secret. Next:\n  mesa config check {name}\n  mesa serve --config {name}\n\
         In other terminals:\n  MESA_TOKEN=$(mesa token --id alice --config {name}) mesa connect\n  \
         MESA_API_KEY={key} mesa dispatch --to alice --type GREETING '{{\"text\":\"Hello\"}}'"
    ))?;
    Ok(())
}

fn check(args: &ConfigCheckArgs) -> Result<(), Failure> {
    let embedded = args.store == Some(StoreKind::Embedded);
    let file = if args.env { env::config_file(args.file.as_ref()) } else { args.file.clone() };
    let name = file.as_ref().map_or_else(|| "the environment".to_owned(), |file| file.display().to_string());
    // `serve` reads the environment too, so a check without it would be incomplete.
    let sources = Sources { embedded, ..env::sources(file.clone()) };
    match load(&sources) {
        Ok(loaded) => {
            let together = match (&loaded.variables[..], &file) {
                ([], None) => " (it has no setting)".to_owned(),
                ([], Some(_)) => String::new(),
                (variables, Some(_)) => format!(" together with {} of the environment", variables.join(", ")),
                (variables, None) => format!(" ({})", variables.join(", ")),
            };
            output::line(&format!("{name} is valid{together}"))?;
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
