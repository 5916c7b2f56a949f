//! `onhand tail`: the records of a topic, as they come.

use std::{
    io::{self, BufWriter, Write},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, Result};
use clap::Args;
use runtime::KafkaSettings;

use crate::{
    output::{
        record_line::Style,
        terminal::{self, Paint},
    },
    system::{
        target::{self, DataDirectory},
        topic_reader::{From, TopicReader, to_json},
    },
};

/// Show the records of a topic as they come
#[derive(Args)]
#[command(after_help = "\
A line a record: when it was written (UTC), partition:offset, key, and its fields; for a refusal the \
reason, and what was refused. With --json a line is an object with topic, partition, offset, \
timestamp, key, headers and value.

Reads from the broker of KAFKA_BROKER_URL, else from that of a running `onhand up` or `onhand demo`, \
else from localhost:9092.

Examples: what is refused from now on; the reasons of all refusals so far, counted
  onhand tail errors
  onhand tail errors --from start --no-follow --json | jq -r .value.error | sort | uniq -c")]
pub(crate) struct Arguments {
    /// The topic: events, errors or any other
    topic: String,
    /// One JSON object a line, for programs
    #[arg(long)]
    json: bool,
    /// Begin with the oldest record there is, or with what comes next
    #[arg(long, value_enum, default_value = "end")]
    from: From,
    /// End when all that is there has been shown
    #[arg(long)]
    no_follow: bool,
    /// End after so many records
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    #[command(flatten)]
    data: DataDirectory,
}

pub(crate) fn run(arguments: Arguments) -> Result<ExitCode> {
    let mut env = target::environment(&arguments.data.path);
    let settings = KafkaSettings::read(&mut env);
    env.finish()?;
    let mut reader = TopicReader::open(&settings, &[&arguments.topic], arguments.from)?;
    let style = Style { paint: Paint::of_stdout(), width: terminal::width(), time: true };
    let mut out = BufWriter::new(io::stdout().lock());
    let mut left = arguments.count.unwrap_or(u64::MAX);
    let mut away = false;
    while left > 0 && !(arguments.no_follow && reader.is_at_end()) {
        let next = match reader.next(Duration::ZERO) {
            Ok(None) => {
                // nothing at hand: what was written so far can be looked at
                out.flush().context("writing to stdout")?;
                if terminal::is_gone() {
                    return Err(io::Error::from(io::ErrorKind::BrokenPipe)).context("writing to stdout");
                }
                reader.next(Duration::from_millis(200))
            }
            next => next,
        };
        match next {
            Ok(None) => {}
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
