//! `onhand demo`: example.csv through the whole house, shown as it happens.

mod expected;
mod found;
mod fresh;
mod screen;
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

use self::{expected::Outcome, found::Seen, fresh::Place, screen::Screen};
use crate::{
    address::{self, DataDirectory, Note},
    exit,
    guide::Guide,
    servers, services,
};

/// Rows of every fate.
const EXAMPLE: &str = include_str!("../../../example.csv");
/// More than the waiting sales' clock and a slow machine take together.
const PATIENCE: Duration = Duration::from_secs(90);

/// See it work: a small file through Kafka into Postgres, every step of it shown
#[derive(Args)]
#[command(after_help = "\
Starts a private Kafka and Postgres, unless KAFKA_BROKER_URL and POSTGRES_HOSTNAME name others, and \
all services; drops example.csv into the import directory; shows what the services say, the records \
of both topics and the items table; and stays up to be tried. It has topics, a database and a \
directory of its own (.onhand/demo/), and begins afresh each time.

Example: as a check of an installation, for its exit status
  onhand demo --once && echo it works here")]
pub(crate) struct Arguments {
    /// End when all is there: exit status 0 only if it is what the rows of example.csv must lead to
    #[arg(long)]
    once: bool,
    #[command(flatten)]
    data: DataDirectory,
}

pub(crate) fn run(Arguments { once, data }: Arguments) -> Result<ExitCode> {
    exit::block_on(demo(once, address::demo(&data.path)))
}

async fn demo(once: bool, root: std::path::PathBuf) -> Result<ExitCode> {
    let mut env = Environment::of_process();
    let screen = Screen::new();
    screen.take_logs(&env);
    services::check(&services::ALL)?;
    let shutdown = lifecycle::shutdown_on_signals()?;
    let servers = servers::start_async(root.clone(), |line| tracing::info!("{line} ...")).await?;
    if shutdown.is_cancelled() {
        servers::stop(servers).await?;
        bail!("stopped before all was there");
    }
    let place = fresh::make(&servers, &root, &mut env, &shutdown).await?;
    let note = Note::leave(&root, &place.variables).context("noting what runs")?;
    let seen = found::watch(&place.kafka, &screen, &shutdown)?;

    let mut running = tokio::spawn(services::start(&services::ALL, &mut env, &shutdown)?.join());
    let shown = tokio::select! {
        ended = &mut running => match ended? {
            Ok(()) if once => Err(anyhow!("stopped before all was there")),
            ended => ended,
        },
        shown = show(&screen, &place, &seen, &servers, once) => shown,
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
    servers::stop(servers).await?;
    shown.map(|()| ExitCode::SUCCESS)
}

/// The file, what becomes of it, and how to go on. An error names what is not as it must be.
async fn show(screen: &Screen, place: &Place, seen: &Seen, servers: &Sandbox, once: bool) -> Result<()> {
    let expected = expected::of_file(EXAMPLE).context("example.csv")?;
    let bold = |text: &str| screen.plain(&format!("\n{}\n", screen.paint.bold(text)));
    bold("example.csv, as it is dropped into the import directory:");
    for line in table::of_csv(EXAMPLE) {
        screen.plain(&line);
    }
    bold("what becomes of it:");
    fresh::drop_file(&place.input, "example.csv", EXAMPLE)?;
    let checked = check(screen, place, seen, &expected).await;
    screen.check()?;

    bold("select * from items order by id;");
    let mut connection = connect(&place.postgres).await?;
    for line in table::of_numbers(&["id", "item_id", "store_id", "amount"], &found::items(&mut connection).await?) {
        screen.plain(&line);
    }
    screen.plain("");
    match &checked {
        Ok(()) => screen.plain(&screen.paint.green(summary(&expected))),
        Err(error) => screen.plain(&screen.paint.red(format!("{error:#}"))),
    }
    if once {
        return checked;
    }
    bold("it stays up; go on with:");
    let guide = Guide { servers, kafka: &place.kafka, postgres: &place.postgres, input: &place.input };
    for line in guide.lines(screen.paint) {
        screen.plain(&line);
    }
    screen.plain("");
    screen.check()
}

/// Waits until all is as it must be.
async fn check(screen: &Screen, place: &Place, seen: &Seen, expected: &Outcome) -> Result<()> {
    let started = Instant::now();
    loop {
        screen.check()?;
        let found = look(place, seen).await;
        let differences = match found {
            Ok(found) => expected.differences(&found),
            Err(error) => vec![format!("{error:#}")],
        };
        if differences.is_empty() {
            return Ok(());
        }
        if started.elapsed() > PATIENCE {
            bail!("not as it must be, after {} s:\n  {}", PATIENCE.as_secs(), differences.join("\n  "));
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

async fn look(place: &Place, seen: &Seen) -> Result<Outcome> {
    let mut connection = connect(&place.postgres).await?;
    found::now(seen, &mut connection).await
}

async fn connect(settings: &PostgresSettings) -> Result<PgConnection> {
    let options = postgres::options(settings, "onhand-demo");
    PgConnection::connect_with(&options).await.with_context(|| format!("Postgres at {settings}"))
}

fn summary(expected: &Outcome) -> String {
    let rows = EXAMPLE.lines().count() - 1;
    let (accepted, applied) = (expected.events.len(), expected.transactions.len());
    let (refused, given_up) = (rows - accepted, expected.errors.len() - (rows - accepted));
    let twice = accepted - applied - given_up;
    format!(
        "All is as it must be: of {rows} rows the importer accepted {accepted} and refused {refused};\n\
         of these {accepted} events the stock service applied {applied}, knew {twice} already and refused {given_up} in the end."
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
