//! `onhand run`: one service in this process.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use runtime::{Environment, env_file, lifecycle, logs, metrics};

use crate::{
    exit,
    system::services::{self, Service},
};

/// Run one service, with the settings of the environment and of .env alone
#[derive(Args)]
#[command(after_help = "\
Kafka and Postgres are those of the environment (sample.env lists all settings); no private server \
is started. On SIGTERM or Ctrl-C the service finishes its current work and stops; a second one exits \
at once.

Exit status: 0 when stopped as asked, 2 after an error.

Example: another stock process, which shares the partitions
  KAFKA_BROKER_URL=localhost:9092 POSTGRES_HOSTNAME=localhost POSTGRES_USER=onhand \\
  POSTGRES_PASSWORD=secret POSTGRES_DB=onhand onhand run stock")]
pub(crate) struct Arguments {
    /// importer: files to topics; stock: the events topic to Postgres
    #[arg(value_enum)]
    service: Service,
}

pub(crate) fn run(Arguments { service }: Arguments) -> Result<ExitCode> {
    exit::block_on(async {
        let mut env = Environment::of_process();
        logs::start(&mut env);
        env_file::log();
        let shutdown = lifecycle::shutdown_on_signals()?;
        let listener = metrics::address(&mut env).map(metrics::listen).transpose()?;
        services::start(&[service], listener, &mut env, &shutdown)?.join().await?;
        Ok(ExitCode::SUCCESS)
    })
}
