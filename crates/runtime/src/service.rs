//! The `main` of every service: `--help`, `--version`, `health`, or run until a signal.

use std::{future::Future, process::ExitCode};

use anyhow::{Context, Result};
use tokio_util::sync::CancellationToken;

use crate::{
    Environment,
    env_file::{self, EnvFile},
    health::Health,
    lifecycle::{self, Tasks},
    logs, metrics,
};

/// A service's name, version and help.
#[derive(Debug, Clone, Copy)]
pub struct Service {
    /// Its binary's name.
    pub name: &'static str,
    /// Its version.
    pub version: &'static str,
    /// The whole text of `--help`.
    pub help: &'static str,
}

impl Service {
    /// Runs a binary: `prepare` reads the settings and returns what runs the service until
    /// shutdown. The exit status: 0 when it stopped as asked, 1 after an error (`health`: when it is
    /// unhealthy), 2 for wrong arguments.
    pub fn main<P, R, F>(self, prepare: P) -> ExitCode
    where
        P: FnOnce(&mut Environment) -> R,
        R: FnOnce(Health, CancellationToken) -> F,
        F: Future<Output = Result<()>> + Send + 'static,
    {
        lifecycle::share_one_heap();
        let arguments: Vec<_> = std::env::args().skip(1).collect();
        let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        let ended = match arguments[..] {
            [] => self.run(prepare),
            ["health"] => health(),
            ["--help" | "-h" | "help"] => {
                print!("{}", self.help);
                Ok(())
            }
            ["--version" | "-V"] => {
                println!("{} {}", self.name, self.version);
                Ok(())
            }
            _ => {
                eprintln!("{}: unexpected arguments {arguments:?}; see {} --help", self.name, self.name);
                return ExitCode::from(2);
            }
        };
        match ended {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("error: {error:#}");
                ExitCode::FAILURE
            }
        }
    }

    fn run<P, R, F>(self, prepare: P) -> Result<()>
    where
        P: FnOnce(&mut Environment) -> R,
        R: FnOnce(Health, CancellationToken) -> F,
        F: Future<Output = Result<()>> + Send + 'static,
    {
        EnvFile::read()?.apply(|_| true);
        let mut env = Environment::of_process();
        logs::start(&mut env);
        env_file::log();
        let run = prepare(&mut env);
        let address = metrics::address(&mut env);
        env.finish()?;
        let listener = address.map(metrics::listen).transpose()?;
        lifecycle::block_on(async {
            let health = Health::default();
            let shutdown = lifecycle::shutdown_on_signals()?;
            let mut tasks = Tasks::new(shutdown.clone());
            if let Some(listener) = listener {
                tasks.spawn("metrics", metrics::serve(listener, health.clone(), shutdown.clone()));
            }
            tasks.spawn(self.name, run(health.of(self.name), shutdown));
            tasks.join().await
        })
    }
}

fn health() -> Result<()> {
    EnvFile::read()?.apply(|_| true);
    let mut env = Environment::of_process();
    let address = metrics::address(&mut env);
    env.finish()?;
    metrics::probe(address.context("METRICS_ADDRESS is not set (for example METRICS_ADDRESS=0.0.0.0:9100)")?)
}
