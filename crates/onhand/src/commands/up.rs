//! `onhand up`: all services in this process, and servers for what is not configured.

use std::{
    io::{self, Write},
    path::Path,
    process::ExitCode,
};

use anyhow::{Context, Result};
use clap::Args;
use runtime::{Environment, KafkaSettings, PostgresSettings, env_file, lifecycle, logs};
use sandbox::Sandbox;

use crate::{
    exit,
    output::{next_steps::NextSteps, terminal::Paint},
    system::{
        private_servers, services,
        target::{DataDirectory, RunningSystem},
    },
};

/// Run all services until Ctrl-C, with a private Kafka and Postgres if none is configured
#[derive(Args)]
#[command(after_help = "\
Uses the servers that KAFKA_BROKER_URL and POSTGRES_HOSTNAME name, and starts private ones for what \
is not named; their data stays in .onhand/ for the next start. Files are taken from importer/input/ (IMPORT_DIRECTORY names another \
directory than importer). On Ctrl-C everything finishes its current work and stops; a second one exits at \
once. sample.env lists all settings. `onhand status` in another terminal shows how it is.

Exit status: 0 when stopped as asked, 2 after an error.

Example: everything on this machine; then, in another terminal, a file
  onhand up
  cp example.csv importer/input/")]
pub(crate) struct Arguments {
    #[command(flatten)]
    data: DataDirectory,
}

pub(crate) fn run(Arguments { data }: Arguments) -> Result<ExitCode> {
    exit::block_on(async {
        let mut env = Environment::of_process();
        logs::start(&mut env);
        env_file::log();
        env.finish()?;
        services::check(&services::ALL)?;
        let shutdown = lifecycle::shutdown_on_signals()?;
        let servers = private_servers::start_async(data.path.clone(), |line| tracing::info!("{line} ...")).await?;
        if shutdown.is_cancelled() {
            private_servers::stop(servers).await?;
            return Ok(ExitCode::SUCCESS);
        }
        let variables = servers.environment();
        for (name, value) in &variables {
            env.set(name, value.as_str());
        }
        let listener = services::listen(&mut env)?;
        let running_system = RunningSystem::record(&data.path, &variables, &listener).context("recording what runs")?;
        let tasks = services::start(&services::ALL, Some(listener), &mut env, &shutdown)?;
        print_next_steps(&servers, &mut env, &data.path).context("writing to stdout")?;
        let ended = tasks.join().await;
        drop(running_system);
        private_servers::stop(servers).await?;
        ended.map(|()| ExitCode::SUCCESS)
    })
}

fn print_next_steps(servers: &Sandbox, env: &mut Environment, data: &Path) -> io::Result<()> {
    let (kafka, postgres) = (KafkaSettings::read(env), PostgresSettings::read(env));
    let settings = importer::Settings::read(env);
    // the importer creates it, too, but the user may be faster
    std::fs::create_dir_all(settings.directory.join("input"))?;
    let steps = NextSteps { servers, kafka: &kafka, postgres: &postgres, input: &settings.directory.join("input") };
    let mut out = io::stdout().lock();
    writeln!(out, "\nonhand is up; its data is in {}/\n", data.display())?;
    for line in steps.lines(Paint::of_stdout()) {
        writeln!(out, "{line}")?;
    }
    writeln!(out)?;
    out.flush()
}
