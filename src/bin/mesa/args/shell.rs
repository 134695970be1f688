//! Generates shell completions and man pages from the definition of the arguments.

use std::{
    io,
    path::{Path, PathBuf},
};

use clap::{Args, Command, CommandFactory as _, ValueEnum};
use clap_mangen::Man;

use super::{Cli, EXIT_CODES};

/// Print a script with completions for a shell
#[derive(Debug, Args)]
#[command(after_long_help = format!("\
Examples:
  mesa completions bash > ~/.local/share/bash-completion/completions/mesa
  mesa completions zsh > ~/.zfunc/_mesa        with ~/.zfunc in fpath
  mesa completions fish > ~/.config/fish/completions/mesa.fish

{EXIT_CODES}"))]
pub struct CompletionsArgs {
    /// Shell
    #[arg(value_enum, value_name = "SHELL")]
    pub shell: Shell,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Shell {
    Bash,
    Zsh,
    Fish,
}

/// Print the man page, or write one for each command
#[derive(Debug, Args)]
#[command(after_long_help = format!("\
Examples:
  mesa man | man -l -
  mesa man /usr/local/share/man/man1           mesa.1, mesa-serve.1 and so on

{EXIT_CODES}"))]
pub struct ManArgs {
    /// Directory to write all pages to; it is created if it does not exist
    #[arg(value_name = "DIR")]
    pub directory: Option<PathBuf>,
}

/// Returns the completion script of a shell.
pub fn completions(shell: Shell) -> Vec<u8> {
    use clap_complete::shells;
    let (mut command, mut script) = (Cli::command(), Vec::new());
    match shell {
        Shell::Bash => clap_complete::generate(shells::Bash, &mut command, "mesa", &mut script),
        Shell::Zsh => clap_complete::generate(shells::Zsh, &mut command, "mesa", &mut script),
        Shell::Fish => clap_complete::generate(shells::Fish, &mut command, "mesa", &mut script),
    }
    script
}

/// Returns the man page of the program.
pub fn man_page() -> io::Result<String> {
    page(&program())
}

/// Writes the man pages of the program and of each command.
pub fn write_man_pages(directory: &Path) -> io::Result<()> {
    std::fs::create_dir_all(directory)?;
    write_pages(&program(), directory)
}

fn write_pages(command: &Command, directory: &Path) -> io::Result<()> {
    command
        .get_subcommands()
        .filter(|command| !command.is_hide_set())
        .try_for_each(|each| write_pages(each, directory))?;
    std::fs::write(directory.join(Man::new(command.clone()).get_filename()), page(command)?)
}

/// Returns the program with the full names of its commands, and without the command `help`, which needs no page.
fn program() -> Command {
    let mut program = Cli::command().disable_help_subcommand(true);
    program.build();
    program
}

/// Returns the man page of a command.
fn page(command: &Command) -> io::Result<String> {
    let mut page = Vec::new();
    Man::new(command.clone()).render(&mut page)?;
    let page = String::from_utf8(page).map_err(io::Error::other)?;
    // The text after the options has lines of examples, which must not be filled.
    Ok(page.replacen(".SH EXTRA\n", ".SH EXAMPLES\n.nf\n", 1).replacen("\n.SH VERSION\n", "\n.fi\n.SH VERSION\n", 1))
}
