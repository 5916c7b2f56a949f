//! `onhand`: the launcher and the operator's command line. It may depend on every crate
//! of the workspace; none depends on it. `commands` has one file or folder a command; this one only chooses.

mod commands;
mod exit;
mod output;
mod system;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use runtime::env_file::EnvFile;

use crate::commands::{completions, demo, generate, import, offsets, run, status, tail, up, verify, with};

/// Stock on hand, exactly once: CSV files to Kafka to Postgres.
#[derive(Parser)]
#[command(version, max_term_width = 100, arg_required_else_help = true)]
#[command(after_help = "\
Begin with `onhand demo`. `onhand COMMAND --help` explains each, with examples.

Commands work with the servers that environment variables name (sample.env lists them), else with \
an `onhand up` or `onhand demo` that runs in this directory, else with those of a .env file in it.

Exit status: 0 when done, or the answer is yes; 1 when the answer is no (something differs, is \
unhealthy or was refused); 2 after an error, and when something could not be checked.")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Demo(demo::Arguments),
    Up(up::Arguments),
    With(with::Arguments),
    Status(status::Arguments),
    Tail(tail::Arguments),
    Import(import::Arguments),
    Generate(generate::Arguments),
    Verify(verify::Arguments),
    Offsets(offsets::Arguments),
    Run(run::Arguments),
    Completions(completions::CompletionsArguments),
    Man(completions::ManArguments),
}

impl Command {
    /// Whether it takes its settings from .env, too. The servers of `demo` and `with` are private unless
    /// the environment itself names others: a .env that is meant for Compose must not lead them elsewhere.
    fn reads_env_file(&self) -> bool {
        match self {
            Command::Up(_)
            | Command::Status(_)
            | Command::Tail(_)
            | Command::Import(_)
            | Command::Verify(_)
            | Command::Offsets(_)
            | Command::Run(_) => true,
            Command::Demo(_) | Command::With(_) | Command::Generate(_) | Command::Completions(_) | Command::Man(_) => {
                false
            }
        }
    }
}

fn main() -> ExitCode {
    runtime::lifecycle::share_one_heap();
    let file = EnvFile::read();
    if let Ok(file) = &file {
        // these are defaults of arguments
        file.apply(|name| name.starts_with("ONHAND_"));
    }
    let Arguments { command } = Arguments::parse();
    if command.reads_env_file() {
        match file {
            Ok(file) => file.apply(|_| true),
            Err(error) => return exit::code(Err(error.into())),
        }
    }
    exit::code(match command {
        Command::Demo(arguments) => demo::run(arguments),
        Command::Up(arguments) => up::run(arguments),
        Command::With(arguments) => with::run(arguments),
        Command::Status(arguments) => status::run(arguments),
        Command::Tail(arguments) => tail::run(arguments),
        Command::Import(arguments) => import::run(arguments),
        Command::Generate(arguments) => generate::run(arguments),
        Command::Verify(arguments) => verify::run(arguments),
        Command::Offsets(arguments) => offsets::run(arguments),
        Command::Run(arguments) => run::run(arguments),
        Command::Completions(arguments) => completions::completions(arguments, Arguments::command()),
        Command::Man(arguments) => completions::man(arguments, Arguments::command()),
    })
}
