//! `onhand completions` and `onhand man`: what shells and `man` want to know of the command line.

use std::{
    fs,
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::{Context, Result, anyhow};
use clap::{Args, Command};
use clap_complete::Shell;

/// Print what makes a shell complete onhand's commands and options
#[derive(Args)]
#[command(after_help = "\
Examples: for bash, zsh (in a directory of its $fpath), and fish
  onhand completions bash > ~/.local/share/bash-completion/completions/onhand
  onhand completions zsh > ~/.zfunc/_onhand
  onhand completions fish > ~/.config/fish/completions/onhand.fish")]
pub(crate) struct CompletionsArguments {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

/// Print a manual page, or write all of them to a directory
#[derive(Args)]
#[command(after_help = "\
Examples: read one; install all for this user
  onhand man tail | man -l -
  onhand man --dir ~/.local/share/man/man1")]
pub(crate) struct ManArguments {
    /// The command whose page is printed [default: the overview]
    #[arg(value_name = "COMMAND", conflicts_with = "dir")]
    of: Option<String>,
    /// Write onhand.1 and a page for each command here; the directory is made when missing
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

pub(crate) fn completions(arguments: CompletionsArguments, mut command: Command) -> Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut command, "onhand", &mut script);
    io::stdout().write_all(&script).context("writing to stdout")?;
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn man(arguments: ManArguments, mut command: Command) -> Result<ExitCode> {
    if let Some(dir) = arguments.dir {
        let written = fs::create_dir_all(&dir).and_then(|()| clap_mangen::generate_to(command, &dir));
        written.with_context(|| format!("writing {}", dir.display()))?;
        return Ok(ExitCode::SUCCESS);
    }
    command.build();
    let page = match arguments.of {
        None => command,
        Some(name) => {
            let found = command.find_subcommand(&name);
            found.cloned().ok_or_else(|| anyhow!("there is no command {name:?}; `onhand --help` lists them"))?
        }
    };
    clap_mangen::Man::new(page).render(&mut io::stdout()).context("writing to stdout")?;
    Ok(ExitCode::SUCCESS)
}
