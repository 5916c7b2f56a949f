//! `make bench-growth`: does the stock service get slower while its journal grows?

use std::{path::PathBuf, time::Duration, time::Instant};

use anyhow::{Context, Result};
use sandbox::Postgres;
use sqlx::{Connection, PgConnection};
use tokio::runtime::Runtime;

use crate::{
    figures::Figures,
    measured::Process,
    progress::Progress,
    rows, topic,
    world::{PARTITIONS, Round, World},
};

/// The rate is printed for each of so many equal parts of the events.
const PARTS: u64 = 20;
/// Figures compare the last quarter with the first.
const QUARTER: u64 = PARTS / 4;
const BAR_WIDTH: f64 = 50.0;

/// As docker-compose.yml has them, with a quarter of a small machine's memory: the index fits.
const POSTGRES: [&str; 3] = ["shared_buffers=1GB", "max_wal_size=4GB", "wal_compression=lz4"];

pub(crate) fn measure(world: World, tokio: &Runtime, count: u64) -> Result<Figures> {
    let data = tempfile::tempdir()?;
    let postgres = Postgres::start_with(data.path(), &POSTGRES)?;
    let world = world.on(&postgres);
    let round = world.round(tokio, PARTITIONS)?;
    // before the service starts, so that nothing competes with it
    println!("filling a topic with {count} events ...");
    rows::fill(&round, count, rows::plain())?;
    let count = topic::records(&round)?;
    println!("stock: from the first commit to the last, for each twentieth of the events");
    let began = Instant::now();
    let mut stock = Process::start(&["stock"], &round.variables)?;
    let progress = Progress::watch(tokio, &round, &mut stock, began, count, Duration::from_millis(50))?;
    let (_, peak_mib) = stock.end(true)?;

    let end_of = |part: u64| count * part / PARTS;
    let rates = (0..PARTS).map(|part| progress.rate_between(end_of(part), end_of(part + 1)));
    let rates = rates.collect::<Result<Vec<f64>>>()?;
    let highest = rates.iter().copied().fold(0.0, f64::max);
    for (rate, part) in rates.iter().zip(1..) {
        println!("  {:>11} {rate:>9.0}/s  {}", end_of(part), bar(rate / highest));
    }
    let file = csv_file()?;
    std::fs::write(&file, progress.csv())?;
    let first = progress.rate_between(0, end_of(QUARTER))?;
    let last = progress.rate_between(end_of(PARTS - QUARTER), count)?;
    let sizes = tokio.block_on(Sizes::read(&round))?;
    println!(
        "  first quarter {first:.0}/s, last quarter {last:.0}/s, {:.0} s in total, {peak_mib:.0} MiB\n  at the end the \
         journal takes {} MiB, its index {} MiB; shared_buffers is {}\n  each commit: {}",
        progress.total().as_secs_f64(),
        sizes.journal_mib,
        sizes.index_mib,
        sizes.shared_buffers,
        file.display()
    );
    let mut figures = Figures::default();
    figures.set("stock_growth", last / first, 3);
    figures.set("stock_growth_first_quarter_per_s", first, 0);
    figures.set("stock_growth_last_quarter_per_s", last, 0);
    figures.set("stock_growth_index_mib", sizes.index_mib as f64, 0);
    figures.set("stock_growth_peak_mib", peak_mib, 0);
    Ok(figures)
}

struct Sizes {
    journal_mib: i64,
    index_mib: i64,
    shared_buffers: String,
}

impl Sizes {
    async fn read(round: &Round) -> Result<Sizes> {
        let mut connection = PgConnection::connect_with(&runtime::postgres::options(&round.postgres, "bench")).await?;
        let sql = "SELECT pg_table_size('transactions') >> 20, pg_indexes_size('transactions') >> 20, \
                   current_setting('shared_buffers')";
        let (journal_mib, index_mib, shared_buffers) = sqlx::query_as(sql).fetch_one(&mut connection).await?;
        Ok(Sizes { journal_mib, index_mib, shared_buffers })
    }
}

/// A bar of full and partial block characters for a share of the full width.
fn bar(share: f64) -> String {
    let eighths = (share * BAR_WIDTH * 8.0).round() as usize;
    let partial = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"][eighths % 8];
    "█".repeat(eighths / 8) + partial
}

/// Cargo's `target/bench-growth.csv`: this program is in `target/release/`.
fn csv_file() -> Result<PathBuf> {
    let program = std::env::current_exe()?;
    let target = program.ancestors().nth(2).context("this program is not in a target directory")?;
    Ok(target.join("bench-growth.csv"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_has_a_resolution_of_an_eighth_of_a_character() {
        assert_eq!(bar(0.0), "");
        assert_eq!(bar(1.0), "█".repeat(50));
        assert_eq!(bar(0.5 + 3.0 / 400.0), "█".repeat(25) + "▍");
    }
}
