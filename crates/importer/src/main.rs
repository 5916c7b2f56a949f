//! The importer's binary: reads the settings, wires, runs.

use anyhow::{Context, Result, bail};
use importer::Settings;
use runtime::{Environment, health::Health, lifecycle, logs, metrics};

const HELP: &str = include_str!("help.txt");

#[tokio::main]
async fn main() -> Result<()> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        [] => serve().await,
        ["health"] => {
            let mut env = Environment::of_process();
            let address = metrics::address(&mut env);
            env.finish()?;
            metrics::probe(address.context("METRICS_ADDRESS is not set (for example METRICS_ADDRESS=0.0.0.0:9100)")?)
        }
        ["--help" | "-h" | "help"] => {
            print!("{HELP}");
            Ok(())
        }
        ["--version" | "-V"] => {
            println!("importer {}", env!("CARGO_PKG_VERSION"));
            Ok(())
        }
        _ => bail!("{arguments:?} is not understood; importer --help tells what is"),
    }
}

async fn serve() -> Result<()> {
    let mut env = Environment::of_process();
    logs::start(&mut env);
    let settings = Settings::read(&mut env);
    let address = metrics::address(&mut env);
    env.finish()?;
    let health = Health::default();
    let shutdown = lifecycle::shutdown_on_signals()?;
    let mut tasks = lifecycle::Tasks::new(shutdown.clone());
    if let Some(address) = address {
        tasks.spawn("metrics", metrics::serve(address, health.clone(), shutdown.clone()));
    }
    tasks.spawn("importer", importer::run(settings, health, shutdown));
    tasks.join().await
}
