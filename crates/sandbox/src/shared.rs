//! One Kafka and one Postgres for all tests of a process.

use std::env;
use std::fs::{self, DirBuilder, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};

use crate::account::is_ours;
use crate::process::is_running;
use crate::start::{KAFKA, POSTGRES, configured, start_servers};
use crate::{Kafka, PgAddress, Postgres, kafka, postgres, sql};

/// What the names of temporary data directories start with; the process id follows.
const PREFIX: &str = "onhand-test-";

/// The servers that the tests of this process use.
#[derive(Debug, Clone)]
pub struct Shared {
    /// The broker's `host:port`.
    pub broker: String,
    /// The Postgres server, where databases may be created.
    pub postgres: PgAddress,
}

/// The servers that the environment names, else private ones, started at the first call. Their
/// data is removed when the process ends, or, if it is killed, by the next one.
///
/// # Panics
/// If they cannot be started: no test could continue.
pub fn shared() -> &'static Shared {
    static SHARED: LazyLock<Shared> = LazyLock::new(|| match connect() {
        Ok(shared) => shared,
        Err(error) => panic!("cannot start the servers for tests: {error:#}"),
    });
    &SHARED
}

impl Shared {
    /// Creates an empty database and returns its name.
    pub fn fresh_database(&self) -> Result<String> {
        let name = self.fresh_name("test").replace('-', "_");
        sql::create_database(&self.postgres, &name)?;
        Ok(name)
    }

    /// A name that no other call returns, in any process: for topics, consumer groups and so on.
    pub fn fresh_name(&self, prefix: &str) -> String {
        unique(prefix)
    }

    /// The variables by which a service finds these servers and `database`.
    pub fn environment(&self, database: &str) -> Vec<(String, String)> {
        let at = &self.postgres;
        [
            (KAFKA, self.broker.clone()),
            (POSTGRES, format!("{}:{}", at.host, at.port)),
            ("POSTGRES_USER", at.user.clone()),
            ("POSTGRES_PASSWORD", at.password.clone()),
            ("POSTGRES_DB", database.to_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into()
    }
}

/// `prefix-PID-STARTED-CALL`: this process, the time of its first call, the number of the call.
fn unique(prefix: &str) -> String {
    static CALLS: AtomicU32 = AtomicU32::new(0);
    static STARTED: LazyLock<u128> = LazyLock::new(|| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        now.map_or(0, |since| since.as_micros())
    });
    let call = CALLS.fetch_add(1, Ordering::Relaxed);
    format!("{prefix}-{}-{:x}-{call}", std::process::id(), *STARTED)
}

/// The servers that this process started itself, for [`clean_up`].
struct Private {
    kafka: Option<Kafka>,
    postgres: Option<Postgres>,
    root: PathBuf,
    _lock: File,
}

static PRIVATE: Mutex<Option<Private>> = Mutex::new(None);

fn connect() -> Result<Shared> {
    let broker = configured(KAFKA);
    let postgres = configured(POSTGRES).map(|host| from_environment(&host)).transpose()?;
    if let (Some(broker), Some(postgres)) = (broker.clone(), postgres.clone()) {
        return Ok(Shared { broker, postgres });
    }
    remove_stale_data();
    let root = env::temp_dir().join(unique(PREFIX.trim_end_matches('-')));
    // Accessible to the user that Postgres runs as, unlike what mktemp makes.
    DirBuilder::new().mode(0o755).create(&root)?;
    let lock = File::create(root.join("lock"))?;
    lock.lock()?;
    let started = start_servers(&root, &mut |line| tracing::info!("{line}"));
    let (own_kafka, own_postgres) = started.inspect_err(|_| drop(remove(&root)))?;
    let shared = Shared {
        broker: broker.or(own_kafka.as_ref().map(Kafka::broker)).context("no Kafka")?,
        postgres: postgres.or(own_postgres.as_ref().map(Postgres::address)).context("no Postgres")?,
    };
    let private = Private { kafka: own_kafka, postgres: own_postgres, root, _lock: lock };
    *PRIVATE.lock().unwrap_or_else(PoisonError::into_inner) = Some(private);
    // SAFETY: clean_up takes nothing, returns nothing and does not unwind.
    unsafe { libc::atexit(clean_up) };
    Ok(shared)
}

/// The server of POSTGRES_HOSTNAME, as services read it.
fn from_environment(host: &str) -> Result<PgAddress> {
    let (host, port) = host.rsplit_once(':').unwrap_or((host, "5432"));
    let port = port.parse().with_context(|| format!("{POSTGRES}: {port} is not a port"))?;
    Ok(PgAddress {
        host: host.to_owned(),
        port,
        user: configured("POSTGRES_USER").unwrap_or_else(|| "postgres".into()),
        password: configured("POSTGRES_PASSWORD").unwrap_or_default(),
    })
}

/// Runs when the process exits. Statics are not dropped, and data that is removed needs no clean
/// shutdown.
extern "C" fn clean_up() {
    let Some(mut private) = PRIVATE.try_lock().ok().and_then(|mut private| private.take()) else {
        return;
    };
    if let Some(kafka) = &mut private.kafka {
        kafka.kill();
    }
    if let Some(postgres) = &mut private.postgres {
        postgres.kill();
    }
    let _ = remove(&private.root);
}

/// Removes the data of test processes that were killed.
fn remove_stale_data() {
    for entry in fs::read_dir(env::temp_dir()).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| {
            let (pid, _) = name.strip_prefix(PREFIX)?.split_once('-')?;
            pid.parse().ok()
        }) else {
            continue;
        };
        let lock = File::open(entry.path().join("lock"));
        let unlocked = lock.as_ref().map_or(true, |lock| lock.try_lock().is_ok());
        if unlocked && !is_running(pid) && is_ours(&entry.path()).unwrap_or(false) {
            let _ = remove(&entry.path());
        }
    }
}

fn remove(root: &Path) -> Result<()> {
    kafka::stop_stale_server(&root.join("kafka"))?;
    postgres::remove_data_for(root)?;
    Ok(fs::remove_dir_all(root)?)
}
