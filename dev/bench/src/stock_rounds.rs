//! The stock service, from a full topic to the last commit, beside a bare COPY of the same rows.

use std::time::Instant;

use anyhow::{Result, ensure};
use events::generate::Shape;
use runtime::{Environment, health::Health, lifecycle, logs};
use stock::JournalRow;
use tokio::runtime::Runtime;

use crate::{
    copying::{self, Copied, Order},
    measured::{Measured, Process},
    progress::Progress,
    rows, topic, wait,
    world::{PARTITIONS, Round, World},
};

/// One run of the service over a full topic.
pub(crate) struct StockRun {
    /// From the start of the process to the last commit.
    pub(crate) total: Measured,
    pub(crate) progress: Progress,
    /// Events a second from the first commit to the last.
    pub(crate) rate_after_start_up: f64,
    /// Events a second in the second half of the events: by then nearly all cards exist.
    pub(crate) steady_rate: f64,
}

/// One round: the service, and COPY of the same rows.
pub(crate) struct Comparison {
    pub(crate) stock: StockRun,
    /// In the order of the topic: the ids are at random.
    pub(crate) unsorted: Copied,
    /// Each batch in the order of its ids, as the service writes it. Sorting is not measured.
    pub(crate) sorted: Copied,
}

pub(crate) fn compare(
    world: &World,
    tokio: &Runtime,
    count: u64,
    rounds: usize,
    shape: Shape,
) -> Result<Vec<Comparison>> {
    let kind = if shape == rows::plain() { "events that fit" } else { "early sales, repeats and conflicts among them" };
    println!(
        "\nstock, {kind}: from a full topic, the second half of the events; copy: the second half of the same rows \
         into the journal alone, with the ids of a batch in any order (unsorted) or sorted"
    );
    let mut comparisons = Vec::new();
    for number in 0..rounds {
        let round = world.round(tokio, PARTITIONS)?;
        rows::fill(&round, count, shape)?;
        let batches = Batches::read(&round)?;
        let copy = |order| batches.copy(world, tokio, order);
        // who goes first alternates
        let comparison = if number % 2 == 0 {
            let (unsorted, sorted) = (copy(Order::OfTopic)?, copy(Order::OfIds)?);
            Comparison { stock: run_stock(tokio, &round)?, unsorted, sorted }
        } else {
            let stock = run_stock(tokio, &round)?;
            let sorted = copy(Order::OfIds)?;
            Comparison { stock, unsorted: copy(Order::OfTopic)?, sorted }
        };
        let Comparison { stock, unsorted, sorted } = &comparison;
        println!(
            "  stock {:>9.0}/s    {:.2} us of cpu each  {:.0} MiB  first commit after {:.0} ms, {:.0}/s from the start",
            stock.steady_rate,
            stock.total.cpu_us_each(),
            stock.total.peak_mib,
            stock.progress.start_up().as_secs_f64() * 1e3,
            stock.total.rate()
        );
        for (name, copy) in [("unsorted", unsorted), ("sorted", sorted)] {
            println!(
                "  copy  {:>9.0}/s    {name:<8}  ratio {:.3}  {:.0}/s from the start",
                copy.steady_rate,
                stock.steady_rate / copy.steady_rate,
                copy.total.rate()
            );
        }
        comparisons.push(comparison);
    }
    Ok(comparisons)
}

/// The same events in topics of so many partitions, one after the other in each round.
pub(crate) fn partitions(
    world: &World,
    tokio: &Runtime,
    count: u64,
    rounds: usize,
    partitions: &[i32],
) -> Result<Vec<Vec<Measured>>> {
    println!("\nstock on more partitions: from the start of the process on a full topic to the last commit");
    let mut all = Vec::new();
    for _ in 0..rounds {
        let mut one = Vec::new();
        for partitions in partitions {
            let round = world.round(tokio, *partitions)?;
            rows::fill(&round, count, rows::plain())?;
            let stock = run_stock(tokio, &round)?.total;
            println!("  {partitions:>5} partitions {stock}");
            one.push(stock);
        }
        all.push(one);
    }
    Ok(all)
}

/// Runs the service until it has applied its topic.
pub(crate) fn run_stock(tokio: &Runtime, round: &Round) -> Result<StockRun> {
    let count = topic::records(round)?;
    let began = Instant::now();
    let mut stock = Process::start(&["stock"], &round.variables)?;
    let progress = Progress::watch(tokio, round, &mut stock, began, count, wait::PAUSE)?;
    let (cpu, peak_mib) = stock.end(true)?;
    let total = Measured { count, took: progress.total(), cpu, peak_mib };
    Ok(StockRun {
        total,
        rate_after_start_up: progress.rate_after_start_up()?,
        steady_rate: progress.steady_rate()?,
        progress,
    })
}

/// The distinct events of each partition, and how the service would write them.
struct Batches {
    partitions: Vec<Vec<JournalRow>>,
    batch_size: usize,
    transactions: u32,
}

impl Batches {
    fn read(round: &Round) -> Result<Batches> {
        let settings = stock::Settings::read(&mut Environment::of(round.variables.clone()));
        let partitions = topic::distinct_events(round)?;
        ensure!(!partitions.is_empty(), "the topic is empty");
        Ok(Batches { partitions, batch_size: settings.batch_size, transactions: settings.transactions })
    }

    fn copy(&self, world: &World, tokio: &Runtime, order: Order) -> Result<Copied> {
        let target = world.round(tokio, PARTITIONS)?;
        let copying =
            copying::copy(&target.postgres, self.partitions.clone(), self.batch_size, self.transactions, order);
        tokio.block_on(copying)
    }
}

/// The stock service, in this process.
pub(crate) async fn service() -> Result<()> {
    let mut env = Environment::of_process();
    logs::start(&mut env);
    let settings = stock::Settings::read(&mut env);
    env.finish()?;
    stock::run(settings, Health::default(), lifecycle::shutdown_on_signals()?).await
}
