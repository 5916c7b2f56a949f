//! How long one event takes: from produced to committed while 3,000 a second come, and from a file
//! of one row, renamed into `input/`, to its card in `items`.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use events::stock::{CSV, Card, EVENT_TYPE, Movement, StockEvent};
use rdkafka::{
    ClientContext, Message,
    config::FromClientConfigAndContext,
    message::DeliveryResult,
    producer::{BaseProducer, BaseRecord, ProducerContext},
};
use runtime::kafka;
use sqlx::{Connection, PgConnection};
use tokio::runtime::Runtime;
use uuid::Uuid;

use crate::{
    importer_rounds::warm_up,
    measured::Process,
    progress::wait_until_applied,
    wait,
    world::{PARTITIONS, Round, World},
};

/// Events a second, and for how long.
const RATE: u32 = 3_000;
const SECONDS: u32 = 25;
/// Not counted: the first seconds, in which the broker's Java compiles what it runs.
const WARM_UP: u32 = RATE * 10;
/// Files of one row.
const FILES: i64 = 100;

/// The latencies, in ms: of events the median and the 99th percentile, of files the median.
pub(crate) struct Latency {
    pub(crate) event_p50: f64,
    pub(crate) event_p99: f64,
    pub(crate) row_p50: f64,
}

pub(crate) fn measure(world: &World, tokio: &Runtime) -> Result<Latency> {
    println!("\nlatency: {RATE} events/s from produced to committed; a file of one row from its name to its card");
    let (event_p50, event_p99) = events_latency(world, tokio)?;
    let row_p50 = row_latency(world, tokio)?;
    println!(
        "  event    {event_p50:>5.1} ms in the middle, {event_p99:.1} ms for all but 1 %\n  row      {row_p50:>5.1} ms"
    );
    Ok(Latency { event_p50, event_p99, row_p50 })
}

/// Where each event was put: its partition and offset, by its number.
#[derive(Clone, Default)]
struct Delivered(Arc<Mutex<Vec<(usize, i32, i64)>>>);

impl ClientContext for Delivered {}

impl ProducerContext for Delivered {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, number: usize) {
        if let Ok(message) = result {
            let mut delivered = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            delivered.push((number, message.partition(), message.offset()));
        }
    }
}

fn events_latency(world: &World, tokio: &Runtime) -> Result<(f64, f64)> {
    let round = world.round(tokio, PARTITIONS)?;
    let stock = Process::start(&["stock"], &round.variables)?;
    let delivered = Delivered::default();
    let mut config = kafka::producer(&round.kafka, "bench");
    // with 0 the broker has a request for each event, and no time for anything else
    config.set("linger.ms", "1");
    let producer: BaseProducer<Delivered> = BaseProducer::from_config_and_context(&config, delivered.clone())?;
    let topic = round.kafka.topic_of(&EVENT_TYPE);
    let count = (RATE * SECONDS) as usize;

    // one event before, so that all is connected and ready
    let (key, payload) = event(Card { store: 0, item: 0 });
    send(&producer, topic, count, &key, &payload)?;
    wait_until_applied(tokio, &round, 1)?;

    let watched = std::thread::scope(|scope| {
        let watching = scope.spawn(|| watch(tokio, &round, count as i64 + 1));
        let mut produced = Vec::with_capacity(count);
        let began = Instant::now();
        for number in 0..count {
            let due = began + Duration::from_secs(1) * number as u32 / RATE;
            while Instant::now() < due {
                producer.poll(Duration::ZERO);
                std::thread::sleep(Duration::from_micros(200));
            }
            let (key, payload) = event(Card { store: number as i64 % 50, item: number as i64 % 2_000 });
            produced.push(Instant::now());
            send(&producer, topic, number, &key, &payload)?;
        }
        wait::until(wait::PAUSE, || {
            producer.poll(Duration::ZERO);
            Ok(delivered.0.lock().unwrap_or_else(PoisonError::into_inner).len() == count + 1)
        })?;
        let seen = watching.join().map_err(|_| anyhow::anyhow!("the watching thread panicked"))??;
        anyhow::Ok((produced, seen))
    });
    let (produced, seen) = watched?;
    stock.end(true)?;
    let mut latencies = Vec::new();
    for (number, partition, offset) in delivered.0.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        let Some(produced) = produced.get(*number).filter(|_| *number >= WARM_UP as usize) else { continue };
        let seen = seen.get(partition).context("a partition")?;
        let first = seen.partition_point(|(_, next_offset)| next_offset <= offset);
        let (committed, _) = seen.get(first).context("an event that was not applied")?;
        latencies.push(committed.duration_since(*produced).as_secs_f64() * 1e3);
    }
    latencies.sort_by(f64::total_cmp);
    ensure!(latencies.len() > 100, "too few events");
    Ok((latencies[latencies.len() / 2], latencies[latencies.len() * 99 / 100]))
}

/// Looks again and again at what is committed: when each offset of each partition was first seen.
fn watch(tokio: &Runtime, round: &Round, total: i64) -> Result<HashMap<i32, Vec<(Instant, i64)>>> {
    let options = runtime::postgres::options(&round.postgres, "bench");
    let mut seen: HashMap<i32, Vec<(Instant, i64)>> = HashMap::new();
    let deadline = Instant::now() + Duration::from_secs(u64::from(SECONDS) + 60);
    tokio.block_on(async {
        let mut connection = PgConnection::connect_with(&options).await?;
        loop {
            let rows: Vec<(i32, i64)> = sqlx::query_as("SELECT partition, next_offset FROM consumer_offsets")
                .fetch_all(&mut connection)
                .await?;
            let now = Instant::now();
            for (partition, next_offset) in &rows {
                let seen = seen.entry(*partition).or_default();
                if seen.last().is_none_or(|(_, last)| last < next_offset) {
                    seen.push((now, *next_offset));
                }
            }
            if rows.iter().map(|(_, next_offset)| next_offset).sum::<i64>() >= total {
                return Ok(seen);
            }
            ensure!(now < deadline, "not all events were applied a minute after the last one was sent");
            tokio::time::sleep(Duration::from_micros(500)).await;
        }
    })
}

fn row_latency(world: &World, tokio: &Runtime) -> Result<f64> {
    let round = world.round(tokio, PARTITIONS)?;
    let processes = [Process::start(&["importer"], &round.variables)?, Process::start(&["stock"], &round.variables)?];
    warm_up(&round)?;
    wait_until_applied(tokio, &round, 1)?;
    let options = runtime::postgres::options(&round.postgres, "bench");
    let mut connection = tokio.block_on(PgConnection::connect_with(&options))?;
    let staged = round.directory.join("staged.csv");
    let mut latencies = Vec::new();
    for item in 1..=FILES {
        let row = format!("{},incoming,2026-01-01T00:00:00Z,7,{item},1", Uuid::new_v4());
        std::fs::write(&staged, format!("{}\n{row}\n", CSV.header_line()))?;
        let began = Instant::now();
        std::fs::rename(&staged, round.directory.join(format!("input/row-{item}.csv")))?;
        loop {
            let sql = "SELECT 1 FROM items WHERE store_id = 7 AND item_id = $1";
            let found = sqlx::query(sql).bind(item).fetch_optional(&mut connection);
            if tokio.block_on(found)?.is_some() {
                break;
            }
            ensure!(began.elapsed() < Duration::from_secs(30), "a row of a file did not become a card in 30 s");
            std::thread::sleep(Duration::from_micros(300));
        }
        latencies.push(began.elapsed().as_secs_f64() * 1e3);
    }
    for process in processes {
        process.end(true)?;
    }
    latencies.sort_by(f64::total_cmp);
    Ok(latencies[latencies.len() / 2])
}

fn event(card: Card) -> (String, String) {
    let date = events::Timestamp(1_767_225_600_000_000);
    let event = StockEvent { transaction_id: Uuid::new_v4(), movement: Movement::Incoming, date, card, value: 1 };
    (card.to_string(), event.to_json())
}

fn send(producer: &BaseProducer<Delivered>, topic: &str, number: usize, key: &str, payload: &str) -> Result<()> {
    let record = BaseRecord::with_opaque_to(topic, number).key(key).payload(payload);
    producer.send(record).map_err(|(error, _)| error)?;
    producer.poll(Duration::ZERO);
    Ok(())
}
