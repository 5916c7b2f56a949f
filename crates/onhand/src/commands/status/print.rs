//! The status for people: a line for each thing, problems in red.

use std::io::{self, Write};

use anyhow::{Context, Result};
use indicatif::{HumanBytes, HumanCount};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::{Status, files::InProgress, services::ServiceStatus};
use crate::{
    output::terminal::Paint,
    system::lag::{self, PartitionLag},
};

/// Files that are listed by name.
const FILES: usize = 10;

pub(super) fn print(status: &Status, partitions: bool) -> Result<()> {
    let mut out = io::stdout().lock();
    for line in lines(status, partitions, Paint::of_stdout()) {
        writeln!(out, "{line}").context("writing to stdout")?;
    }
    Ok(())
}

fn lines(status: &Status, partitions: bool, paint: Paint) -> Vec<String> {
    let line = |what: &str, text: String| format!("{}  {text}", paint.bold(format!("{what:13}")));
    let unknown = || paint.yellow("unknown");
    let mut lines = vec![
        line("Kafka", status.kafka.clone()),
        line("Postgres", status.postgres.clone()),
        line("directory", status.import_directory.display().to_string()),
        String::new(),
    ];
    for service in &status.services {
        lines.push(line(service.service, of_service(service, paint)));
        for problem in &service.problems {
            lines.push(line("", paint.red(format!("{}: {} (since {})", problem.part, problem.reason, problem.since))));
        }
    }
    let mut rest = status.partitions.as_deref().unwrap_or_default();
    while let Some(first) = rest.first() {
        let is_other = |of: &PartitionLag| (&of.service, &of.topic) != (&first.service, &first.topic);
        let (same, others) = rest.split_at(rest.iter().position(is_other).unwrap_or(rest.len()));
        let behind = lag::in_words(lag::sum(same));
        lines.push(line("lag", format!("{} in {}: {behind}", first.service, first.topic)));
        for of in same.iter().filter(|of| partitions || of.problem.is_some()) {
            let problem = of.problem.as_ref().map(|problem| format!(": {}", paint.red(problem))).unwrap_or_default();
            let lag = of.lag.map_or("?".to_owned(), |lag| lag.to_string());
            lines.push(line("", format!("partition {}: {lag}, next offset {}{problem}", of.partition, of.next_offset)));
        }
        rest = others;
    }
    match &status.partitions {
        None => lines.push(line("lag", unknown())),
        Some(none) if none.is_empty() => lines.push(line("lag", "no service has read anything yet".to_owned())),
        Some(_) => {}
    }
    let waiting = status.database.waiting_sales.as_ref().map(|waiting| match &waiting.oldest {
        None => "none".to_owned(),
        Some(sale) => format!(
            "{}; the oldest: {} of {}-{} at {}, tried again at {}",
            HumanCount(waiting.count as u64),
            sale.amount,
            sale.store_number,
            sale.item_number,
            rfc3339(sale.timestamp),
            rfc3339(sale.next_try_at)
        ),
    });
    lines.push(line("waiting sales", waiting.unwrap_or_else(unknown)));
    let outbox = status.database.outbox.as_ref().map(|outbox| match &outbox.oldest {
        None => "empty".to_owned(),
        Some(next) => format!(
            "{} not published yet; next: number {} of {} to {}",
            HumanCount(outbox.count as u64),
            next.id,
            next.service,
            next.topic
        ),
    });
    lines.push(line("outbox", outbox.unwrap_or_else(unknown)));
    let in_progress = &status.files.in_progress;
    let files =
        status.files.not_begun.map(|not_begun| format!("{} in progress, {not_begun} not begun", in_progress.len()));
    lines.push(line("files", files.unwrap_or_else(unknown)));
    lines.extend(in_progress.iter().take(FILES).map(|file| line("", of_file(file))));
    if in_progress.len() > FILES {
        lines.push(line("", format!("and {} more", in_progress.len() - FILES)));
    }
    if !status.unknown.is_empty() {
        lines.push(String::new());
        lines.extend(status.unknown.iter().map(|why| paint.yellow(format!("could not check {why}"))));
    }
    lines
}

fn of_service(service: &ServiceStatus, paint: Paint) -> String {
    let running = match (service.running, &service.started_at[..]) {
        (Some(false), _) => return paint.red("not running"),
        (None, _) => return paint.yellow("unknown"),
        (Some(true), []) => "running".to_owned(),
        (Some(true), [one]) => format!("running since {one}"),
        (Some(true), several) => format!("{} processes, running since {}", several.len(), several.join(", ")),
    };
    match service.healthy {
        Some(true) => format!("{}, {running}", paint.green("healthy")),
        Some(false) => format!("{}, {running}", paint.red("unhealthy")),
        None => format!("{running}, health {}", paint.yellow("unknown")),
    }
}

fn of_file(file: &InProgress) -> String {
    let InProgress { file: name, accepted, refused, byte, bytes, started_at } = file;
    let size = match bytes {
        Some(bytes) if name.ends_with(".csv") => format!(", {} of {}", HumanBytes(*byte), HumanBytes(*bytes)),
        _ => String::new(),
    };
    format!("{name:?}: {} rows accepted, {refused} refused{size}, since {started_at}", HumanCount(*accepted))
}

fn rfc3339(time: OffsetDateTime) -> String {
    time.truncate_to_second().format(&Rfc3339).unwrap_or_default()
}
