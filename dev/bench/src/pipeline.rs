//! The whole way: a file dropped into the directory, to the last commit of its last row.

use std::time::Instant;

use anyhow::Result;
use tokio::runtime::Runtime;

use crate::{
    importing::warm_up,
    measured::Process,
    projecting::wait_until_read,
    world::{self, PARTITIONS, World},
};

/// Rows a second of each round.
pub(crate) fn rates(world: &World, tokio: &Runtime, rows: u64, rounds: usize) -> Result<Vec<f64>> {
    let file = world.csv(rows, world::plain(), "plain")?;
    println!("\npipeline: from the file's appearance to the last commit, importer and stock side by side");
    let mut rates = Vec::new();
    for _ in 0..rounds {
        let round = world.round(tokio, PARTITIONS)?;
        let processes =
            [Process::start(&["importer"], &round.variables)?, Process::start(&["stock"], &round.variables)?];
        warm_up(&round)?;
        wait_until_read(tokio, &round, 1)?;
        let staged = round.directory.join("staged.csv");
        std::fs::copy(&file, &staged)?;
        let began = Instant::now();
        std::fs::rename(&staged, round.directory.join("input/bench.csv"))?;
        wait_until_read(tokio, &round, rows as i64 + 1)?;
        let rate = rows as f64 / began.elapsed().as_secs_f64();
        println!("  {rate:>9.0} rows/s");
        rates.push(rate);
        for process in processes {
            process.end(true)?;
        }
    }
    Ok(rates)
}
