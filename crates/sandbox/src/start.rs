//! Starts both servers on one data directory, except those that the environment names.

use std::env;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;

use anyhow::{Context, Result, anyhow};

use crate::{Kafka, Postgres};

/// The variable that names a Kafka; unset or empty, a private one is started.
pub(crate) const KAFKA: &str = "KAFKA_BROKER_URL";
/// The variable that names a Postgres (`host:port`); unset or empty, a private one is started.
pub(crate) const POSTGRES: &str = "POSTGRES_HOSTNAME";
/// The database that services use by default.
const DATABASE: &str = "onhand";

/// Why a sandbox could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Another process holds the same data directory.
    #[error(
        "another onhand is running on {} (pid {pid}); stop it or choose another data directory",
        root.display()
    )]
    Busy {
        /// The data directory.
        root: PathBuf,
        /// The id of the process that holds it, read from its lock file.
        pid: String,
    },
    /// Anything else, in words for a user.
    #[error(transparent)]
    Failed(#[from] anyhow::Error),
}

/// The servers that were started privately; stopped when dropped, Kafka first.
#[derive(Debug)]
pub struct Sandbox {
    /// The private Kafka, unless `KAFKA_BROKER_URL` names one.
    pub kafka: Option<Kafka>,
    /// The private Postgres, unless `POSTGRES_HOSTNAME` names one.
    pub postgres: Option<Postgres>,
    /// Held to the end, after the servers: fields are dropped in order.
    _lock: File,
}

impl Sandbox {
    /// Starts what the environment does not configure, with its data under `root`, and creates the
    /// database `onhand`. `progress` gets a line before each slow step. `root` is locked while the
    /// sandbox lives.
    pub fn start(root: &Path, progress: &mut dyn FnMut(&str)) -> Result<Self, StartError> {
        fs::create_dir_all(root).with_context(|| format!("cannot create {}", root.display()))?;
        let lock = lock(root)?;
        let (kafka, postgres) = start_servers(root, progress)?;
        if let Some(postgres) = &postgres {
            postgres.create_database(DATABASE)?;
        }
        Ok(Self { kafka, postgres, _lock: lock })
    }

    /// The variables by which services find what was started privately. What the environment
    /// configures is left as it is.
    pub fn environment(&self) -> Vec<(String, String)> {
        let mut variables = Vec::new();
        let mut set = |name: &str, value: String| variables.push((name.to_owned(), value));
        if let Some(kafka) = &self.kafka {
            set(KAFKA, kafka.broker());
        }
        if let Some(postgres) = &self.postgres {
            let at = postgres.address();
            set(POSTGRES, format!("{}:{}", at.host, at.port));
            set("POSTGRES_USER", at.user);
            set("POSTGRES_PASSWORD", at.password);
            set("POSTGRES_DB", DATABASE.into());
        }
        variables
    }

    /// Stops Kafka, then Postgres.
    pub fn stop(self) {}
}

/// The value of a variable that is set and not empty.
pub(crate) fn configured(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

/// Starts, in parallel, what the environment does not name.
pub(crate) fn start_servers(root: &Path, progress: &mut dyn FnMut(&str)) -> Result<(Option<Kafka>, Option<Postgres>)> {
    let (lines, received) = mpsc::channel::<String>();
    let send = move |lines: &mpsc::Sender<String>, line: &str| {
        // The receiver outlives the servers' start.
        let _ = lines.send(line.to_owned());
    };
    thread::scope(|scope| {
        let to = lines.clone();
        let kafka =
            configured(KAFKA).is_none().then(|| scope.spawn(move || Kafka::launch(root, &|line| send(&to, line))));
        let postgres = configured(POSTGRES)
            .is_none()
            .then(|| scope.spawn(move || Postgres::launch(root, &[], &|line| send(&lines, line))));
        for line in received {
            progress(&line);
        }
        let panicked = |_| anyhow!("the thread that starts a server panicked");
        let kafka = kafka.map(|thread| thread.join().map_err(panicked)).transpose()?.transpose();
        let postgres = postgres.map(|thread| thread.join().map_err(panicked)).transpose()?.transpose();
        Ok((kafka?, postgres?))
    })
}

/// Locks the data directory for this process; the kernel releases it however this process ends.
fn lock(root: &Path) -> Result<File, StartError> {
    let path = root.join("lock");
    let failed = || format!("cannot lock {}", path.display());
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    let mut file = options.open(&path).with_context(failed)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            file.read_to_string(&mut pid).with_context(failed)?;
            let pid = pid.trim().to_owned();
            return Err(StartError::Busy { root: root.to_owned(), pid });
        }
        Err(TryLockError::Error(error)) => return Err(anyhow!(error).context(failed()).into()),
    }
    file.set_len(0).with_context(failed)?;
    writeln!(file, "{}", std::process::id()).with_context(failed)?;
    Ok(file)
}
