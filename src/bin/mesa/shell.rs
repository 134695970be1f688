//! `mesa completions` and `mesa man`: prints scripts for shells, and man pages.

use crate::{
    args::{self, CompletionsArgs, ManArgs},
    error::Failure,
    output,
};

/// Prints the completion script of a shell.
pub fn completions(args: &CompletionsArgs) -> Result<(), Failure> {
    Ok(output::bytes(&args::completions(args.shell))?)
}

/// Prints the man page of the program, or writes all pages.
pub fn man(args: &ManArgs) -> Result<(), Failure> {
    let Some(directory) = &args.directory else { return Ok(output::bytes(args::man_page()?.as_bytes())?) };
    let shown = directory.display();
    args::write_man_pages(directory).map_err(|error| {
        Failure::because(format!("cannot write man pages to {shown}: {error}. Name a directory that may be written to"))
    })?;
    Ok(output::line(&format!("man pages are in {shown}"))?)
}
