//! The stock service's binary: settings from the environment, logs, metrics, then [`stock::run`].

use anyhow::{Result, bail};
use runtime::{Environment, health::Health, lifecycle, logs, metrics};

const HELP: &str = "\
stock: folds the events topic into Postgres (stores, items, transactions), each event exactly once

Usage: stock            runs until SIGTERM or Ctrl-C
       stock health     asks the running service at METRICS_ADDRESS how it is (exit status 0: well)

Settings are environment variables, listed in sample.env. The least that is needed:
  KAFKA_BROKER_URL=localhost:9092 POSTGRES_HOSTNAME=localhost:5432 POSTGRES_USER=onhand \\
  POSTGRES_PASSWORD=secret POSTGRES_DB=onhand stock
";

#[tokio::main]
async fn main() -> Result<()> {
    let mut env = Environment::of_process();
    match std::env::args().nth(1).as_deref() {
        None => {}
        Some("health") => return health(&mut env),
        Some("--version" | "-V") => {
            println!("stock {}", env!("CARGO_PKG_VERSION"));
            return Ok(());
        }
        Some("--help" | "-h") => {
            print!("{HELP}");
            return Ok(());
        }
        Some(other) => bail!("unknown argument {other:?}\n\n{HELP}"),
    }
    logs::start(&mut env);
    let settings = stock::Settings::read(&mut env);
    let metrics_address = metrics::address(&mut env);
    env.finish()?;

    let health = Health::default();
    let shutdown = lifecycle::shutdown_on_signals()?;
    let mut tasks = lifecycle::Tasks::new(shutdown.clone());
    if let Some(address) = metrics_address {
        tasks.spawn("metrics", metrics::serve(address, health.clone(), shutdown.clone()));
    }
    tasks.spawn("stock", stock::run(settings, health, shutdown));
    tasks.join().await
}

fn health(env: &mut Environment) -> Result<()> {
    let address = metrics::address(env);
    env.finish()?;
    match address {
        Some(address) => metrics::probe(address),
        None => bail!("METRICS_ADDRESS is not set (for example METRICS_ADDRESS=0.0.0.0:9100)"),
    }
}
