//! `onhand tail`: the records of a topic, as they come or from an earlier one on.

use std::{
    io::{self, BufWriter, Write},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use clap::Args;
use rdkafka::Message;
use runtime::KafkaSettings;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::{
    output::{
        record_line::Style,
        terminal::{self, Paint},
    },
    system::{
        target::{self, DataDirectory},
        topic_reader::{From, Selection, TopicReader, to_json},
    },
};

/// Show the records of a topic: as they come, or from an earlier one on
#[derive(Args)]
#[command(after_help = "\
A line per record: when it was written (UTC), partition:offset, key, and its fields; for a refusal the \
reason, and what was refused. With --json a line is an object with topic, partition, offset, \
timestamp, key, headers and value. Records of one partition are in order; partitions are not in \
order among each other.

Reads from the broker of KAFKA_BROKER_URL, else from that of a running `onhand up` or `onhand demo`, \
else from localhost:9092.

Examples: what is refused from now on; what was in the last hour; everything of item 12 in store 4; \
one record; the reasons of all refusals, counted
  onhand tail errors
  onhand tail errors --since 1h --no-follow
  onhand tail events --key 4-12 --from beginning
  onhand tail events --partition 3 --offset 1200 --limit 1
  onhand tail errors --from beginning --no-follow --json | jq -r .value.error | sort | uniq -c")]
pub(crate) struct Arguments {
    /// The topic: events, errors or any other
    topic: String,
    /// One JSON object per line, for programs
    #[arg(long)]
    json: bool,
    /// Where to start: beginning (the oldest record), end (the next one), or an offset, which needs
    /// --partition or --key
    #[arg(long, visible_alias = "offset", value_name = "beginning|end|OFFSET", default_value = "end", value_parser = parse_from)]
    from: From,
    /// Start with the first record written since: a time (2026-05-04T06:30:00Z), or how long ago
    /// (30s, 10m, 2h, 1d)
    #[arg(long, value_name = "TIME", conflicts_with = "from", value_parser = parse_since)]
    since: Option<From>,
    /// Read this partition only
    #[arg(long, value_name = "N")]
    partition: Option<i32>,
    /// Show only records with exactly this key; only the partition of the key is read
    #[arg(long, value_name = "KEY", conflicts_with = "partition")]
    key: Option<String>,
    /// With --key: read all partitions, for producers that choose partitions otherwise, and topics
    /// whose number of partitions was changed
    #[arg(long, requires = "key")]
    all_partitions: bool,
    /// End when all that is there has been shown
    #[arg(long)]
    no_follow: bool,
    /// End after N records
    #[arg(long, visible_alias = "count", value_name = "N")]
    limit: Option<u64>,
    #[command(flatten)]
    data: DataDirectory,
}

fn parse_from(text: &str) -> Result<From, String> {
    match text {
        "beginning" | "start" => Ok(From::Beginning),
        "end" => Ok(From::End),
        _ => match text.parse() {
            Ok(offset @ 0..) => Ok(From::Offset(offset)),
            _ => Err("expected beginning, end, or an offset".to_owned()),
        },
    }
}

fn parse_since(text: &str) -> Result<From, String> {
    let ago = || {
        let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
        let unit = match unit {
            "s" => 1,
            "m" => 60,
            "h" => 3_600,
            "d" => 86_400,
            _ => return None,
        };
        let seconds = number.parse::<u32>().ok()?;
        OffsetDateTime::now_utc().checked_sub(time::Duration::seconds(i64::from(seconds) * unit))
    };
    let time = ago().or_else(|| OffsetDateTime::parse(text, &Rfc3339).ok());
    let time = time.ok_or("expected a time (2026-05-04T06:30:00Z), or how long ago (30s, 10m, 2h, 1d)")?;
    // Kafka knows no time before 1970
    Ok(From::Time(i64::try_from(time.unix_timestamp_nanos() / 1_000_000).unwrap_or(0).max(0)))
}

pub(crate) fn run(arguments: Arguments) -> Result<ExitCode> {
    let mut env = target::environment(&arguments.data.path);
    let settings = KafkaSettings::read(&mut env);
    env.finish()?;
    let key = arguments.key.as_ref().map(String::as_bytes);
    let selection = match (arguments.partition, key) {
        (Some(partition), _) => Selection::One(partition),
        (None, Some(key)) if !arguments.all_partitions => Selection::OfKey(key),
        _ => Selection::All,
    };
    let from = arguments.since.unwrap_or(arguments.from);
    if matches!((from, selection), (From::Offset(_), Selection::All)) {
        bail!("an offset belongs to one partition: name it with --partition or --key");
    }
    let mut reader = TopicReader::open_selected(&settings, &[(&arguments.topic, selection)], from)?;
    let style = Style { paint: Paint::of_stdout(), width: terminal::width(), time: true };
    let mut out = BufWriter::new(io::stdout().lock());
    let mut left = arguments.limit.unwrap_or(u64::MAX);
    let mut away = false;
    while left > 0 && !(arguments.no_follow && reader.is_at_end()) {
        let next = match reader.next(Duration::ZERO) {
            Ok(None) => {
                // nothing to read now: show what was written so far
                out.flush().context("writing to stdout")?;
                if terminal::is_closed() {
                    return Err(io::Error::from(io::ErrorKind::BrokenPipe)).context("writing to stdout");
                }
                reader.next(Duration::from_millis(200))
            }
            next => next,
        };
        match next {
            Ok(None) => {}
            Ok(Some(message)) if key.is_some() && message.key() != key => away = false,
            Ok(Some(message)) => {
                let line = if arguments.json { to_json(&message).to_string() } else { style.line(&message) };
                writeln!(out, "{line}").context("writing to stdout")?;
                left -= 1;
                away = false;
            }
            Err(error) => {
                if !std::mem::replace(&mut away, true) {
                    eprintln!("onhand: waiting for Kafka at {}: {error}", settings.broker_url);
                }
            }
        }
    }
    out.flush().context("writing to stdout")?;
    Ok(ExitCode::SUCCESS)
}
