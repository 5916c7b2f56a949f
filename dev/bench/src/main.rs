//! `make bench`, `make bench-growth` and `make bench-peers`: onhand beside other tools, in one run on
//! the same servers. Rounds alternate; a ratio is the median of the rounds' ratios. The last lines
//! are `name=value`.

mod copying;
mod figures;
mod growth;
mod importer_rounds;
mod latency;
mod measured;
mod peers;
mod pipeline;
mod progress;
mod rows;
mod stock_rounds;
mod suite;
mod topic;
mod wait;
mod world;

use anyhow::Result;
use clap::{Parser, Subcommand};
use tokio::runtime::Runtime;
use world::World;

#[derive(Parser)]
#[command(about = "Measures onhand beside the bare tools it is built on")]
struct Arguments {
    /// Rows of the generated file
    #[arg(long, default_value_t = 1_000_000)]
    rows: u64,
    /// Rounds of each comparison
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Measure only these: importer, stock, mixed, partitions, latency, pipeline
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// The stock service's rate while its journal grows
    Growth {
        /// Events to apply
        #[arg(long, default_value_t = 20_000_000)]
        rows: u64,
    },
    /// The stock service beside Debezium's JDBC sink on Kafka Connect
    Peers {
        /// Events to apply
        #[arg(long, default_value_t = 1_000_000)]
        rows: u64,
        /// Rounds of the comparison
        #[arg(long, default_value_t = 3)]
        rounds: usize,
    },
    #[command(flatten)]
    Child(Child),
}

/// What runs in a process of its own, so that its processor time and memory are its own.
#[derive(Subcommand)]
enum Child {
    /// The importer
    #[command(hide = true)]
    Importer,
    /// The stock service
    #[command(hide = true)]
    Stock,
    /// A producer of ready-made payloads
    #[command(hide = true)]
    Producer { file: std::path::PathBuf },
}

fn main() -> Result<()> {
    runtime::lifecycle::share_one_heap();
    let arguments = Arguments::parse();
    let tokio = Runtime::new()?;
    let figures = match arguments.command {
        Some(Command::Child(Child::Importer)) => return tokio.block_on(importer_rounds::service()),
        Some(Command::Child(Child::Stock)) => return tokio.block_on(stock_rounds::service()),
        Some(Command::Child(Child::Producer { file })) => return importer_rounds::produce(&file),
        Some(Command::Growth { rows }) => growth::measure(World::new()?, &tokio, rows)?,
        Some(Command::Peers { rows, rounds }) => peers::compare(&tokio, rows, rounds)?,
        None => suite::measure(&tokio, arguments.rows, arguments.rounds, &arguments.only)?,
    };
    println!("\n{figures}");
    Ok(())
}
