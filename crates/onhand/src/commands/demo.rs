//! `onhand demo`: example.csv through the whole system, shown as it happens.

mod observed;
mod screen;
mod setup;
mod table;

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use runtime::{Environment, PostgresSettings, lifecycle, postgres};
use sandbox::Sandbox;
use sqlx::{Connection, PgConnection};
use tokio_util::sync::CancellationToken;

use self::{screen::Screen, setup::Setup};
use crate::{
    commands::verify::{self, Report, Scratch},
    exit,
    output::next_steps::NextSteps,
    system::{
        private_servers, services,
        target::{self, DataDirectory, RunningSystem},
    },
};

/// Rows with every outcome.
const EXAMPLE: &str = include_str!("../../../../example.csv");
/// More than the waiting sales' clock and a slow machine take together.
const ENDS_WITHIN: Duration = Duration::from_secs(90);
/// Between two looks at the system.
const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// Far more than the example takes; a user's files may follow.
const VERIFY_MEMORY: usize = 16 << 20;

/// See it work: a small file through Kafka into Postgres, every step of it shown
#[derive(Args)]
#[command(after_help = "\
Starts a private Kafka and Postgres, unless KAFKA_BROKER_URL and POSTGRES_HOSTNAME name others, and \
all services; drops example.csv into the import directory; shows what the services say, the records \
of both topics and the items table; and stays up to be tried. It has topics, a database and a \
directory of its own (.onhand/demo/), and begins afresh each time. On servers of yours these are \
called onhand-demo-... and onhand_demo; it deletes none that it did not create.

Example: as a check of an installation, for its exit status
  onhand demo --once && echo it works here")]
pub(crate) struct Arguments {
    /// End when all is there: exit status 0 only if `onhand verify` finds that everything holds
    #[arg(long)]
    once: bool,
    #[command(flatten)]
    data: DataDirectory,
}

pub(crate) fn run(Arguments { once, data }: Arguments) -> Result<ExitCode> {
    exit::block_on(demo(once, target::demo(&data.path)))
}

async fn demo(once: bool, root: std::path::PathBuf) -> Result<ExitCode> {
    let mut env = Environment::of_process();
    let screen = Screen::new();
    screen.take_logs(&env);
    services::check(&services::ALL)?;
    let shutdown = lifecycle::shutdown_on_signals()?;
    let servers = private_servers::start_async(root.clone(), |line| tracing::info!("{line} ...")).await?;
    if shutdown.is_cancelled() {
        private_servers::stop(servers).await?;
        bail!("stopped before all was there");
    }
    let setup = setup::create(&servers, &root, &mut env, &shutdown).await?;
    let listener = services::listen(&mut env)?;
    let note = RunningSystem::record(&root, &setup.variables, &listener).context("noting what runs")?;
    observed::watch(&setup.kafka, &screen, &shutdown)?;

    let mut running = tokio::spawn(services::start(&services::ALL, Some(listener), &mut env, &shutdown)?.join());
    let shown = tokio::select! {
        ended = &mut running => match ended? {
            Ok(()) if once => Err(anyhow!("stopped before all was there")),
            ended => ended,
        },
        shown = show(&screen, &setup, &servers, once) => shown,
    };
    if !running.is_finished() {
        if once || shown.is_err() {
            shutdown.cancel();
        } else {
            stay(&screen, &shutdown).await?;
        }
        running.await??;
    }
    drop(note);
    private_servers::stop(servers).await?;
    shown.map(|()| ExitCode::SUCCESS)
}

/// The file, what becomes of it, and how to go on. An error names what differs.
async fn show(screen: &Screen, setup: &Setup, servers: &Sandbox, once: bool) -> Result<()> {
    let bold = |text: &str| screen.plain(&format!("\n{}\n", screen.paint.bold(text)));
    bold("example.csv, as it is dropped into the import directory:");
    for line in table::of_csv(EXAMPLE) {
        screen.plain(&line);
    }
    bold("what becomes of it:");
    setup::drop_file(&setup.input, "example.csv", EXAMPLE)?;
    let checked = until_it_holds(screen, setup).await;
    screen.check()?;

    bold("select * from items order by id;");
    let mut connection = connect(&setup.postgres).await?;
    for line in table::of_numbers(&["id", "item_id", "store_id", "amount"], &observed::items(&mut connection).await?) {
        screen.plain(&line);
    }
    screen.plain("");
    match &checked {
        Ok(report) => screen.plain(&screen.paint.green(summary(report))),
        Err(error) => screen.plain(&screen.paint.red(format!("{error:#}"))),
    }
    if once {
        return checked.map(|_| ());
    }
    bold("it stays up; go on with:");
    let guide = NextSteps { servers, kafka: &setup.kafka, postgres: &setup.postgres, input: &setup.input };
    for line in guide.lines(screen.paint) {
        screen.plain(&line);
    }
    screen.plain("");
    screen.check()
}

/// Waits until nothing of the file is on its way any longer, and everything holds.
async fn until_it_holds(screen: &Screen, setup: &Setup) -> Result<Report> {
    let started = Instant::now();
    loop {
        screen.check()?;
        let scratch = Scratch::new(None, VERIFY_MEMORY);
        let missing = match verify::check(&setup.kafka, &setup.postgres, &setup.directory, scratch).await {
            Ok(report) if !report.holds() => bail!("this differs:\n  {}", report.differences.lines().join("\n  ")),
            Ok(report) => match missing(&report) {
                None => return Ok(report),
                Some(what) => what,
            },
            // the service may not have made its tables yet
            Err(error) => format!("{error:#}"),
        };
        if started.elapsed() > ENDS_WITHIN {
            bail!("not done after {} s: {missing}", ENDS_WITHIN.as_secs());
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// What is still to come of the file.
fn missing(report: &Report) -> Option<String> {
    let accepted = report.receipts.filter(|receipts| receipts.count > 0).map(|receipts| receipts.accepted);
    let Some(accepted) = accepted else { return Some("the file has no receipt yet".into()) };
    let (rows, found) = (rows(), accepted + report.refused_rows);
    if found != rows {
        return Some(format!("{found} of {rows} rows were accepted or refused"));
    }
    match (report.not_applied, report.waiting) {
        (0, 0) => None,
        (0, waiting) => Some(format!("{waiting} sales wait")),
        (records, _) => Some(format!("{records} records are not applied")),
    }
}

/// Rows of the example.
fn rows() -> u64 {
    EXAMPLE.lines().count() as u64 - 1
}

async fn connect(settings: &PostgresSettings) -> Result<PgConnection> {
    let options = postgres::options(settings, "onhand-demo");
    PgConnection::connect_with(&options).await.with_context(|| format!("Postgres at {settings}"))
}

fn summary(report: &Report) -> String {
    let Report { records, journal, duplicates, refused, refused_rows, .. } = report;
    format!(
        "Of {} rows the importer accepted {records} and refused {refused_rows}; of these {records} events the stock\n\
         service applied {journal}, knew {duplicates} already and refused {refused} in the end. onhand verify has\n\
         compared the tables with the events: everything holds.",
        rows()
    )
}

/// Until Ctrl-C, or until nobody reads the screen any longer.
async fn stay(screen: &Screen, shutdown: &CancellationToken) -> Result<()> {
    while !shutdown.is_cancelled() {
        screen.check()?;
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
        }
    }
    Ok(())
}
