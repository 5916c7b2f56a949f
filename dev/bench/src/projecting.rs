//! The stock service, from a full topic to the last commit, beside a bare COPY of the same rows.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use events::{Timestamp, generate::Shape, stock::StockEvent};
use rdkafka::{
    Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
};
use runtime::{Environment, health::Health, kafka, lifecycle, logs};
use sqlx::{Connection, PgConnection};
use stock::{JournalRow, Origin};
use tokio::runtime::Runtime;

use crate::{
    copying,
    importing::wait_for,
    measured::{Measured, Process},
    world::{self, PARTITIONS, Round, World},
};

pub(crate) struct Pair {
    pub(crate) stock: Measured,
    pub(crate) copy: Measured,
}

pub(crate) fn compare(world: &World, tokio: &Runtime, rows: u64, rounds: usize, shape: Shape) -> Result<Vec<Pair>> {
    let name = format!("{:x}", shape.early.to_bits());
    let file = world.csv(rows, shape, &name)?;
    let kind =
        if shape == world::plain() { "events that fit" } else { "early sales, repeats and conflicts among them" };
    println!(
        "\nstock, {kind}: from a full topic to the last commit, its start included; copy: the same rows into the journal alone"
    );
    let mut pairs = Vec::new();
    for number in 0..rounds {
        // a topic, filled before the clock starts
        let round = world.round(tokio, PARTITIONS)?;
        fill(&round, &file)?;
        let (stock, copy) = if number % 2 == 0 {
            let copy = one_copy(world, tokio, &round)?;
            (one_stock(tokio, &round)?, copy)
        } else {
            (one_stock(tokio, &round)?, one_copy(world, tokio, &round)?)
        };
        println!("  stock {stock}\n  copy  {:>9.0}/s    ratio {:.3}", copy.rate(), stock.rate() / copy.rate());
        pairs.push(Pair { stock, copy });
    }
    Ok(pairs)
}

/// The same events in topics of so many partitions, one after the other in each round.
pub(crate) fn partitions(
    world: &World,
    tokio: &Runtime,
    rows: u64,
    rounds: usize,
    counts: &[i32],
) -> Result<Vec<Vec<Measured>>> {
    let file = world.csv(rows, world::plain(), "plain")?;
    println!("\nstock on more partitions: from a full topic to the last commit");
    let mut all = Vec::new();
    for _ in 0..rounds {
        let mut one = Vec::new();
        for count in counts {
            let round = world.round(tokio, *count)?;
            fill(&round, &file)?;
            let stock = one_stock(tokio, &round)?;
            println!("  {count:>5} partitions {stock}");
            one.push(stock);
        }
        all.push(one);
    }
    Ok(all)
}

fn fill(round: &Round, file: &Path) -> Result<()> {
    let mut variables = round.variables.clone();
    variables.push(("BENCH_TIMING".into(), "/dev/null".into()));
    Process::start(&["producer", &file.display().to_string()], &variables)?.end(false)?;
    Ok(())
}

fn one_stock(tokio: &Runtime, round: &Round) -> Result<Measured> {
    let consumer: BaseConsumer = kafka::consumer(&round.kafka, "bench", "bench").create()?;
    let topic = round.kafka.topic_of(&events::stock::EVENT_TYPE);
    let mut total = 0;
    for partition in 0..round.partitions {
        total += consumer.fetch_watermarks(topic, partition, kafka::TIMEOUT)?.1;
    }
    let began = Instant::now();
    let stock = Process::start(&["stock"], &round.variables)?;
    wait_until_read(tokio, round, total)?;
    let took = began.elapsed();
    let (cpu, peak_mib) = stock.end(true)?;
    Ok(Measured { count: total as u64, took, cpu, peak_mib })
}

/// Waits until the service's offsets have reached the topic's end.
pub(crate) fn wait_until_read(tokio: &Runtime, round: &Round, total: i64) -> Result<()> {
    let options = runtime::postgres::options(&round.postgres, "bench");
    let mut connection = tokio.block_on(PgConnection::connect_with(&options))?;
    wait_for(|| {
        let sum = sqlx::query_scalar("SELECT coalesce(sum(next_offset), 0)::bigint FROM consumer_offsets");
        let read: i64 = tokio.block_on(sum.fetch_one(&mut connection)).unwrap_or(0);
        read == total
    })
}

fn one_copy(world: &World, tokio: &Runtime, round: &Round) -> Result<Measured> {
    let target = world.round(tokio, PARTITIONS)?;
    let settings = stock::Settings::read(&mut Environment::of(round.variables.clone()));
    let partitions = read(round)?;
    ensure!(!partitions.is_empty(), "the topic is empty");
    tokio.block_on(copying::copy(&target.postgres, partitions, settings.batch_size, settings.transactions))
}

/// The distinct events of each partition.
fn read(round: &Round) -> Result<Vec<Vec<JournalRow>>> {
    let consumer: BaseConsumer = kafka::consumer(&round.kafka, "bench", "bench").create()?;
    let topic = round.kafka.topic_of(&events::stock::EVENT_TYPE);
    let mut partitions = Vec::new();
    let mut seen = std::collections::HashSet::new();
    for partition in 0..round.partitions {
        let (low, high) = consumer.fetch_watermarks(topic, partition, kafka::TIMEOUT)?;
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(topic, partition, Offset::Offset(low))?;
        consumer.assign(&list)?;
        let (mut events, mut next) = (Vec::new(), low);
        while next < high {
            let Some(message) = consumer.poll(Duration::from_secs(10)) else {
                anyhow::bail!("the topic cannot be read")
            };
            let message = message?;
            next = message.offset() + 1;
            if let Ok(event) = StockEvent::decode(message.payload().unwrap_or_default())
                && seen.insert(event.transaction_id)
            {
                let recorded_at = message.timestamp().to_millis().map(Timestamp::from_millis);
                events.push(JournalRow { event, origin: Origin { partition, offset: next - 1, recorded_at } });
            }
        }
        partitions.push(events);
    }
    Ok(partitions)
}

/// The stock service, in this process.
pub(crate) async fn service() -> Result<()> {
    let mut env = Environment::of_process();
    logs::start(&mut env);
    let settings = stock::Settings::read(&mut env);
    env.finish()?;
    stock::run(settings, Health::default(), lifecycle::shutdown_on_signals()?).await
}
