//! The whole way: a file moved into the directory, to the last commit of its last row.

use std::time::Instant;

use anyhow::Result;
use events::generate::Shape;
use tokio::runtime::Runtime;

use crate::{
    importer_rounds::warm_up,
    measured::{Measured, Process},
    progress::wait_until_applied,
    rows,
    world::{PARTITIONS, World},
};

/// One round: a file of 100,000 cards and one of 1,000,000, drawn at random. Their memory is that of
/// the service which took more.
pub(crate) struct Pipeline {
    pub(crate) plain: Measured,
    pub(crate) million_cards: Measured,
}

pub(crate) fn measure(world: &World, tokio: &Runtime, count: u64, rounds: usize) -> Result<Vec<Pipeline>> {
    println!("\npipeline: from the file's appearance to the last commit, importer and stock in parallel");
    let mut pipelines = Vec::new();
    for number in 0..rounds {
        let plain = || run(world, tokio, count, "100,000 cards", rows::plain());
        let million_cards = || run(world, tokio, count, "1,000,000 cards at random", rows::million_cards());
        // who goes first alternates
        pipelines.push(if number % 2 == 0 {
            let plain = plain()?;
            Pipeline { plain, million_cards: million_cards()? }
        } else {
            let million_cards = million_cards()?;
            Pipeline { plain: plain()?, million_cards }
        });
    }
    Ok(pipelines)
}

fn run(world: &World, tokio: &Runtime, count: u64, name: &str, shape: Shape) -> Result<Measured> {
    let file = world.csv(count, shape)?;
    let round = world.round(tokio, PARTITIONS)?;
    let importer = Process::start(&["importer"], &round.variables)?;
    let stock = Process::start(&["stock"], &round.variables)?;
    warm_up(&round)?;
    wait_until_applied(tokio, &round, 1)?;
    let staged = round.directory.join("staged.csv");
    std::fs::copy(&file, &staged)?;
    let began = Instant::now();
    std::fs::rename(&staged, round.directory.join("input/bench.csv"))?;
    wait_until_applied(tokio, &round, count + 1)?;
    let took = began.elapsed();
    let (importer_cpu, importer_mib) = importer.end(true)?;
    let (stock_cpu, stock_mib) = stock.end(true)?;
    let measured = Measured { count, took, cpu: importer_cpu + stock_cpu, peak_mib: importer_mib.max(stock_mib) };
    println!("  {:>9.0} rows/s  {name}  importer {importer_mib:.0} MiB, stock {stock_mib:.0} MiB", measured.rate());
    Ok(measured)
}
