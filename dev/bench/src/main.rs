//! `make bench`: the importer beside a bare producer, the stock service beside a bare COPY, in one
//! run on the same servers. Rounds alternate; a ratio is the median of the rounds' ratios. The
//! last lines are `name=value`.

mod copying;
mod importing;
mod latency;
mod measured;
mod pipeline;
mod projecting;
mod world;

use std::collections::BTreeMap;

use anyhow::Result;
use clap::{Parser, Subcommand};
use measured::median;
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
    /// Measure only these: importer, stock, mixed, partitions, pipeline, latency
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    #[command(subcommand)]
    child: Option<Child>,
}

/// What runs in a process of its own, so that its processor time and memory are its own.
#[derive(Subcommand, Clone)]
#[command(hide = true)]
enum Child {
    /// The importer
    Importer,
    /// The stock service
    Stock,
    /// A producer of ready-made payloads
    Producer { file: std::path::PathBuf },
}

fn main() -> Result<()> {
    runtime::lifecycle::share_one_heap();
    let arguments = Arguments::parse();
    let tokio = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    match arguments.child {
        Some(Child::Importer) => tokio.block_on(importing::service()),
        Some(Child::Stock) => tokio.block_on(projecting::service()),
        Some(Child::Producer { file }) => importing::produce(&file),
        None => measure(&arguments, &tokio),
    }
}

fn measure(arguments: &Arguments, tokio: &tokio::runtime::Runtime) -> Result<()> {
    let world = World::new()?;
    let wanted = |name: &str| arguments.only.is_empty() || arguments.only.iter().any(|only| only == name);
    let mut figures: BTreeMap<&str, String> = BTreeMap::new();
    if wanted("importer") {
        let rounds = importing::compare(&world, tokio, arguments.rows, arguments.rounds)?;
        let ratios: Vec<_> = rounds.iter().map(|round| round.importer.rate() / round.producer.rate()).collect();
        figures.insert("importer_vs_producer", format!("{:.3}", median(&ratios)));
        let cpu: Vec<_> = rounds.iter().map(|round| round.importer.cpu_us_each()).collect();
        figures.insert("importer_cpu_us_per_row", format!("{:.2}", median(&cpu)));
        let peak = rounds.iter().map(|round| round.importer.peak_mib).fold(0.0, f64::max);
        figures.insert("importer_peak_mib", format!("{peak:.0}"));
    }
    for (only, shape, ratio) in [
        ("stock", world::plain(), "stock_vs_copy"),
        ("mixed", events::generate::Shape::default(), "stock_mixed_vs_copy"),
    ] {
        if !wanted(only) {
            continue;
        }
        let rounds = projecting::compare(&world, tokio, arguments.rows, arguments.rounds, shape)?;
        let ratios: Vec<_> = rounds.iter().map(|round| round.stock.rate() / round.copy.rate()).collect();
        figures.insert(ratio, format!("{:.3}", median(&ratios)));
        if only == "stock" {
            let cpu: Vec<_> = rounds.iter().map(|round| round.stock.cpu_us_each()).collect();
            figures.insert("stock_cpu_us_per_event", format!("{:.2}", median(&cpu)));
            let peak = rounds.iter().map(|round| round.stock.peak_mib).fold(0.0, f64::max);
            figures.insert("stock_peak_mib", format!("{peak:.0}"));
        }
    }
    if wanted("partitions") {
        let counts = [world::PARTITIONS, 100, 1_000];
        let rounds = projecting::partitions(&world, tokio, arguments.rows, arguments.rounds, &counts)?;
        let names = ["stock_100_partitions_vs_6", "stock_1000_partitions_vs_6"];
        for (name, which) in names.into_iter().zip(1..) {
            let ratios: Vec<_> = rounds.iter().map(|round| round[which].rate() / round[0].rate()).collect();
            figures.insert(name, format!("{:.3}", median(&ratios)));
        }
        let peak = rounds.iter().map(|round| round[2].peak_mib).fold(0.0, f64::max);
        figures.insert("stock_1000_partitions_peak_mib", format!("{peak:.0}"));
    }
    if wanted("latency") {
        let latency = latency::measure(&world, tokio)?;
        figures.insert("event_p50_ms", format!("{:.1}", latency.event_p50));
        figures.insert("event_p99_ms", format!("{:.1}", latency.event_p99));
        figures.insert("row_p50_ms", format!("{:.1}", latency.row_p50));
    }
    if wanted("pipeline") {
        let rates = pipeline::rates(&world, tokio, arguments.rows, arguments.rounds)?;
        figures.insert("pipeline_rows_per_s", format!("{:.0}", median(&rates)));
    }
    println!();
    for (name, value) in figures {
        println!("{name}={value}");
    }
    Ok(())
}
