//! `make bench-peers`: the stock service beside Debezium's JDBC sink at its best, on one topic. The
//! sink only upserts a journal by transaction_id; the service also checks and keeps the stock.

mod connect;

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use sqlx::{Connection, PgConnection};
use tokio::runtime::Runtime;
use uuid::Uuid;

use crate::{
    figures::Figures,
    measured::Measured,
    rows, stock_rounds, topic, wait,
    world::{PARTITIONS, Round, World},
};
use connect::Connect;

/// Where the sink writes. Values are strings in the topic, and the sink has no option to convert them.
const JOURNAL: &str = "CREATE TABLE journal (transaction_id uuid PRIMARY KEY, event_type text NOT NULL, \
                       date text NOT NULL, store_number text NOT NULL, item_number text NOT NULL, value text NOT NULL)";

/// One round.
struct Pair {
    stock: stock_rounds::StockRun,
    sink: SinkRun,
}

struct SinkRun {
    /// From the start of the process to the last row.
    total: Measured,
    start_up: Duration,
    /// Rows a second from the first commit to the last.
    steady_rate: f64,
}

pub(crate) fn compare(tokio: &Runtime, count: u64, rounds: usize) -> Result<Figures> {
    let jars = connect::jars()?;
    let world = World::new()?;
    println!("\nstock and Debezium's JDBC sink: the same topic, from the first commit to the last");
    let mut pairs = Vec::new();
    for number in 0..rounds {
        let round = world.round(tokio, PARTITIONS)?;
        rows::fill(&round, count, rows::plain())?;
        let count = topic::records(&round)?;
        let run_sink = || run_sink(tokio, &round, &jars, count);
        // who goes first alternates
        let pair = if number % 2 == 0 {
            let sink = run_sink()?;
            Pair { stock: stock_rounds::run_stock(tokio, &round)?, sink }
        } else {
            let stock = stock_rounds::run_stock(tokio, &round)?;
            Pair { stock, sink: run_sink()? }
        };
        let print = |name: &str, steady_rate: f64, total: &Measured, start_up: Duration| {
            let (cpu, mib, start_up) = (total.cpu_us_each(), total.peak_mib, start_up.as_secs_f64());
            println!(
                "  {name:<8} {steady_rate:>9.0}/s  {cpu:>6.2} us of cpu each  {mib:>5.0} MiB  first commit after \
                 {start_up:.1} s"
            );
        };
        print("stock", pair.stock.rate_after_start_up, &pair.stock.total, pair.stock.progress.start_up());
        print("debezium", pair.sink.steady_rate, &pair.sink.total, pair.sink.start_up);
        pairs.push(pair);
    }
    let mut figures = Figures::default();
    figures.median("stock_vs_debezium", 2, &pairs, |pair| pair.stock.rate_after_start_up / pair.sink.steady_rate);
    figures.median("stock_per_s", 0, &pairs, |pair| pair.stock.rate_after_start_up);
    figures.median("debezium_per_s", 0, &pairs, |pair| pair.sink.steady_rate);
    figures.median("debezium_cpu_us_per_event", 2, &pairs, |pair| pair.sink.total.cpu_us_each());
    figures.highest("stock_peak_mib", 0, &pairs, |pair| pair.stock.total.peak_mib);
    figures.highest("debezium_peak_mib", 0, &pairs, |pair| pair.sink.total.peak_mib);
    Ok(figures)
}

fn run_sink(tokio: &Runtime, round: &Round, jars: &Path, count: u64) -> Result<SinkRun> {
    let mut journal = Journal::create(tokio, round)?;
    // counting all rows again and again would slow the sink down: a partition's last record comes last
    let last_ids = topic::last_ids(round)?;
    let began = Instant::now();
    let mut connect = Connect::start(jars, round)?;
    let mut first = None;
    wait::until(wait::PAUSE, || {
        connect.ensure_running()?;
        if first.is_none() {
            let rows = journal.rows()?;
            first = (rows > 0).then(|| (began.elapsed(), rows));
            return Ok(false);
        }
        journal.contains_all(&last_ids)
    })?;
    let took = began.elapsed();
    let rows = journal.rows()?;
    let (cpu, peak_mib) = connect.stop()?;
    ensure!(rows == count, "the sink wrote {rows} of {count} rows");
    let (start_up, first_rows) = first.context("the sink wrote nothing")?;
    ensure!(first_rows < count, "everything was in one commit: the rate needs more rows");
    let steady_rate = (count - first_rows) as f64 / (took - start_up).as_secs_f64();
    Ok(SinkRun { total: Measured { count, took, cpu, peak_mib }, start_up, steady_rate })
}

/// The sink's table.
struct Journal<'a> {
    tokio: &'a Runtime,
    connection: PgConnection,
}

impl Journal<'_> {
    fn create<'a>(tokio: &'a Runtime, round: &Round) -> Result<Journal<'a>> {
        let options = runtime::postgres::options(&round.postgres, "bench");
        let mut connection = tokio.block_on(PgConnection::connect_with(&options))?;
        tokio.block_on(sqlx::raw_sql(JOURNAL).execute(&mut connection))?;
        Ok(Journal { tokio, connection })
    }

    fn rows(&mut self) -> Result<u64> {
        let count = sqlx::query_scalar::<_, i64>("SELECT count(*) FROM journal");
        Ok(self.tokio.block_on(count.fetch_one(&mut self.connection))?.try_into()?)
    }

    fn contains_all(&mut self, ids: &[Uuid]) -> Result<bool> {
        let sql = "SELECT count(*) FROM journal WHERE transaction_id = ANY($1)";
        let count = sqlx::query_scalar::<_, i64>(sql).bind(ids);
        Ok(self.tokio.block_on(count.fetch_one(&mut self.connection))? == ids.len() as i64)
    }
}
