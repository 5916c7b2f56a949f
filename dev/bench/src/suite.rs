//! `make bench`: each service beside the bare tool it is built on, the whole pipeline, and latency.

use anyhow::{Result, bail};
use events::generate::Shape;
use tokio::runtime::Runtime;

use crate::{
    figures::Figures,
    importer_rounds, latency, pipeline, rows, stock_rounds,
    world::{PARTITIONS, World},
};

/// What `--only` selects, in the order in which it is measured.
const PARTS: [&str; 6] = ["importer", "stock", "mixed", "partitions", "latency", "pipeline"];

/// Measures the parts named in `only`, or all.
pub(crate) fn measure(tokio: &Runtime, count: u64, rounds: usize, only: &[String]) -> Result<Figures> {
    if let Some(unknown) = only.iter().find(|name| !PARTS.contains(&name.as_str())) {
        bail!("--only {unknown}: expected some of {}", PARTS.join(", "));
    }
    let world = World::new()?;
    let mut figures = Figures::default();
    for part in PARTS.into_iter().filter(|part| only.is_empty() || only.iter().any(|name| name == part)) {
        match part {
            "importer" => importer(&world, tokio, count, rounds, &mut figures)?,
            "stock" => stock(&world, tokio, count, rounds, &mut figures)?,
            "mixed" => mixed(&world, tokio, count, rounds, &mut figures)?,
            "partitions" => partitions(&world, tokio, count, rounds, &mut figures)?,
            "latency" => latency(&world, tokio, &mut figures)?,
            _ => pipeline(&world, tokio, count, rounds, &mut figures)?,
        }
    }
    Ok(figures)
}

fn importer(world: &World, tokio: &Runtime, count: u64, rounds: usize, figures: &mut Figures) -> Result<()> {
    let rounds = importer_rounds::compare(world, tokio, count, rounds)?;
    figures.median("importer_vs_producer", 3, &rounds, |round| round.importer.rate() / round.producer.rate());
    figures.median("importer_cpu_us_per_row", 2, &rounds, |round| round.importer.cpu_us_each());
    figures.highest("importer_peak_mib", 0, &rounds, |round| round.importer.peak_mib);
    Ok(())
}

fn stock(world: &World, tokio: &Runtime, count: u64, rounds: usize, figures: &mut Figures) -> Result<()> {
    let rounds = stock_rounds::compare(world, tokio, count, rounds, rows::plain())?;
    figures.median("stock_vs_copy", 3, &rounds, |round| round.stock.steady_rate / round.unsorted.steady_rate);
    figures.median("stock_vs_sorted_copy", 3, &rounds, |round| round.stock.steady_rate / round.sorted.steady_rate);
    figures.median("stock_with_startup_vs_copy", 3, &rounds, |round| {
        round.stock.total.rate() / round.unsorted.total.rate()
    });
    figures.median("stock_startup_ms", 0, &rounds, |round| round.stock.progress.start_up().as_secs_f64() * 1e3);
    figures.median("stock_per_s", 0, &rounds, |round| round.stock.steady_rate);
    figures.median("stock_cpu_us_per_event", 2, &rounds, |round| round.stock.total.cpu_us_each());
    figures.highest("stock_peak_mib", 0, &rounds, |round| round.stock.total.peak_mib);
    Ok(())
}

fn mixed(world: &World, tokio: &Runtime, count: u64, rounds: usize, figures: &mut Figures) -> Result<()> {
    let rounds = stock_rounds::compare(world, tokio, count, rounds, Shape::default())?;
    figures.median("stock_mixed_vs_copy", 3, &rounds, |round| round.stock.steady_rate / round.unsorted.steady_rate);
    figures
        .median("stock_mixed_vs_sorted_copy", 3, &rounds, |round| round.stock.steady_rate / round.sorted.steady_rate);
    figures.median("stock_mixed_with_startup_vs_copy", 3, &rounds, |round| {
        round.stock.total.rate() / round.unsorted.total.rate()
    });
    figures.median("stock_mixed_per_s", 0, &rounds, |round| round.stock.steady_rate);
    figures.highest("stock_mixed_peak_mib", 0, &rounds, |round| round.stock.total.peak_mib);
    Ok(())
}

fn partitions(world: &World, tokio: &Runtime, count: u64, rounds: usize, figures: &mut Figures) -> Result<()> {
    let counts = [PARTITIONS, 100, 1_000];
    let rounds = stock_rounds::partitions(world, tokio, count, rounds, &counts)?;
    figures.median("stock_100_partitions_vs_6", 3, &rounds, |round| round[1].rate() / round[0].rate());
    figures.median("stock_1000_partitions_vs_6", 3, &rounds, |round| round[2].rate() / round[0].rate());
    figures.highest("stock_1000_partitions_peak_mib", 0, &rounds, |round| round[2].peak_mib);
    Ok(())
}

fn latency(world: &World, tokio: &Runtime, figures: &mut Figures) -> Result<()> {
    let latency = latency::measure(world, tokio)?;
    figures.set("event_p50_ms", latency.event_p50, 1);
    figures.set("event_p99_ms", latency.event_p99, 1);
    figures.set("row_p50_ms", latency.row_p50, 1);
    Ok(())
}

fn pipeline(world: &World, tokio: &Runtime, count: u64, rounds: usize, figures: &mut Figures) -> Result<()> {
    let rounds = pipeline::measure(world, tokio, count, rounds)?;
    figures.median("pipeline_rows_per_s", 0, &rounds, |round| round.plain.rate());
    figures.median("pipeline_million_cards_rows_per_s", 0, &rounds, |round| round.million_cards.rate());
    figures
        .median("pipeline_million_cards_vs_plain", 3, &rounds, |round| round.million_cards.rate() / round.plain.rate());
    figures.highest("pipeline_peak_mib", 0, &rounds, |round| round.plain.peak_mib);
    figures.highest("pipeline_million_cards_peak_mib", 0, &rounds, |round| round.million_cards.peak_mib);
    Ok(())
}
