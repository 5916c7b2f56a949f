//! The importer beside a bare producer that sends the same payloads, ready-made in memory, with
//! the same client settings.

use std::{
    path::Path,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context, Result, ensure};
use rdkafka::producer::{BaseProducer, Producer};
use runtime::{Environment, KafkaSettings, health::Health, kafka, lifecycle, logs};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::runtime::Runtime;

use crate::{
    measured::{Measured, Process},
    rows, wait,
    world::{PARTITIONS, Round, World},
};

pub(crate) struct Pair {
    pub(crate) importer: Measured,
    pub(crate) producer: Measured,
}

pub(crate) fn compare(world: &World, tokio: &Runtime, count: u64, rounds: usize) -> Result<Vec<Pair>> {
    let file = world.csv(count, rows::plain())?;
    println!(
        "\nimporter: from the file's appearance to the last acknowledgement; producer: the same payloads from memory"
    );
    let mut pairs = Vec::new();
    for number in 0..rounds {
        // who goes first alternates
        let (importer, producer) = if number % 2 == 0 {
            let producer = one_producer(world, tokio, &file, count)?;
            (one_importer(world, tokio, &file, count)?, producer)
        } else {
            (one_importer(world, tokio, &file, count)?, one_producer(world, tokio, &file, count)?)
        };
        println!("  importer {importer}\n  producer {producer}    ratio {:.3}", importer.rate() / producer.rate());
        pairs.push(Pair { importer, producer });
    }
    Ok(pairs)
}

fn one_importer(world: &World, tokio: &Runtime, file: &Path, count: u64) -> Result<Measured> {
    let round = world.round(tokio, PARTITIONS)?;
    let importer = Process::start(&["importer"], &round.variables)?;
    warm_up(&round)?;
    let staged = round.directory.join("staged.csv");
    std::fs::copy(file, &staged)?;
    let receipt = round.directory.join("done/bench.csv.receipt.json");
    let appeared = SystemTime::now();
    std::fs::rename(&staged, round.directory.join("input/bench.csv"))?;
    wait::until(wait::PAUSE, || Ok(receipt.exists()))?;
    let receipt: serde_json::Value = serde_json::from_slice(&std::fs::read(receipt)?)?;
    ensure!(receipt["accepted"] == count, "the importer accepted {} of {count} rows", receipt["accepted"]);
    let acknowledged = receipt["finished_at"].as_str().context("finished_at")?;
    let took = SystemTime::from(OffsetDateTime::parse(acknowledged, &Rfc3339)?).duration_since(appeared)?;
    let (cpu, peak_mib) = importer.end(true)?;
    Ok(Measured { count, took, cpu, peak_mib })
}

fn one_producer(world: &World, tokio: &Runtime, file: &Path, count: u64) -> Result<Measured> {
    let round = world.round(tokio, PARTITIONS)?;
    let timing = round.directory.join("took");
    let mut variables = round.variables;
    variables.push(("BENCH_TIMING".into(), timing.display().to_string()));
    let producer = Process::start(&["producer", &file.display().to_string()], &variables)?;
    let (_, peak_mib) = producer.end(false)?;
    let text = std::fs::read_to_string(timing)?;
    let mut micros = text.split_whitespace().map(str::parse::<u64>);
    let mut next = || anyhow::Ok(Duration::from_micros(micros.next().context("timing")??));
    Ok(Measured { count, took: next()?, cpu: next()?, peak_mib })
}

/// One row through the importer: when it is acknowledged, all is connected and ready.
pub(crate) fn warm_up(round: &Round) -> Result<()> {
    let row = "00000000-0000-4000-8000-000000000000,incoming,2026-01-01T00:00:00Z,1,1,1";
    let staged = round.directory.join("warm.csv");
    std::fs::write(&staged, format!("{}\n{row}\n", events::stock::CSV.header_line()))?;
    std::fs::rename(&staged, round.directory.join("input/warm.csv"))?;
    let receipt = round.directory.join("done/warm.csv.receipt.json");
    wait::until(wait::PAUSE, || Ok(receipt.exists()))
}

/// The importer, in this process.
pub(crate) async fn service() -> Result<()> {
    let mut env = Environment::of_process();
    logs::start(&mut env);
    let settings = importer::Settings::read(&mut env);
    env.finish()?;
    importer::run(settings, Health::default(), lifecycle::shutdown_on_signals()?).await
}

/// The bare producer, in this process. Writes how long it took, and its processor time meanwhile.
pub(crate) fn produce(file: &Path) -> Result<()> {
    let mut env = Environment::of_process();
    let settings = KafkaSettings::read(&mut env);
    let timing = env.required("BENCH_TIMING", "file");
    env.finish()?;
    let records = rows::records(file)?;
    let producer: BaseProducer = kafka::producer(&settings, "bench").create()?;
    let topic = settings.topic_of(&events::stock::EVENT_TYPE);
    producer.client().fetch_metadata(Some(topic), kafka::TIMEOUT)?;
    let (began, cpu) = (Instant::now(), cpu_time());
    for (number, (key, payload)) in records.iter().enumerate() {
        rows::send(&producer, topic, key, payload)?;
        if number % 1_000 == 0 {
            producer.poll(Duration::ZERO);
        }
    }
    producer.flush(Duration::from_secs(600))?;
    std::fs::write(timing, format!("{} {}", began.elapsed().as_micros(), (cpu_time() - cpu).as_micros()))?;
    Ok(())
}

fn cpu_time() -> Duration {
    // SAFETY: getrusage fills what it is given.
    let usage = unsafe {
        let mut usage = std::mem::zeroed::<libc::rusage>();
        libc::getrusage(libc::RUSAGE_SELF, &mut usage);
        usage
    };
    let time = |time: libc::timeval| Duration::new(time.tv_sec as u64, time.tv_usec as u32 * 1_000);
    time(usage.ru_utime) + time(usage.ru_stime)
}
