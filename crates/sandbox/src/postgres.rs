//! A private Postgres server: created, started, stopped, killed, paused, restarted.

mod binaries;
mod data_dir;
mod stale_server;

use std::env;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::account::Account;
use crate::process::{Process, tail, wait_until};
use crate::{ports, spawner, sql};
use binaries::Binaries;

pub(crate) use data_dir::remove_for as remove_data_for;

/// The superuser of a private server.
const USER: &str = "postgres";
/// Recovery after a crash may have to replay as much as max_wal_size.
const READY_WITHIN: Duration = Duration::from_secs(120);
const STOPPED_WITHIN: Duration = Duration::from_secs(15);

/// Fast on one machine without risking data: fsync stays on.
const SETTINGS: [&str; 11] = [
    "listen_addresses=127.0.0.1",
    // No socket: no limit on its path's length, no stale lock of a killed run.
    "unix_socket_directories=",
    "max_connections=200",
    "shared_buffers=256MB",
    "huge_pages=off",
    "max_wal_size=2GB",
    "checkpoint_timeout=15min",
    // Nothing replicates from a private server.
    "wal_level=minimal",
    "max_wal_senders=0",
    "jit=off",
    "timezone=UTC",
];

/// How to reach a Postgres server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PgAddress {
    /// Name or address of its machine.
    pub host: String,
    /// Its TCP port.
    pub port: u16,
    /// The user to connect as, who may create databases.
    pub user: String,
    /// That user's password.
    pub password: String,
}

/// A private Postgres server on 127.0.0.1, stopped when dropped.
#[derive(Debug)]
pub struct Postgres {
    /// Its TCP port on 127.0.0.1, the same at the next start if it is still free.
    pub port: u16,
    /// The directory that holds `psql`, if there is one on this machine.
    pub bin: Option<PathBuf>,
    password: String,
    binaries: Binaries,
    account: Account,
    data: PathBuf,
    log: PathBuf,
    /// Beside [`SETTINGS`].
    settings: Vec<String>,
    process: Option<Process>,
}

impl Postgres {
    /// Starts a server with its data in `root/postgres`, which is created at the first start and
    /// reused later. Returns when it takes connections.
    pub fn start(root: &Path) -> Result<Self> {
        Self::start_with(root, &[])
    }

    /// The same with further settings, such as `shared_buffers=1GB`.
    pub fn start_with(root: &Path, settings: &[&str]) -> Result<Self> {
        Self::launch(root, settings, &|line| tracing::info!("{line}"))
    }

    pub(crate) fn launch(root: &Path, settings: &[&str], report: &dyn Fn(&str)) -> Result<Self> {
        fs::create_dir_all(root).with_context(|| format!("cannot create {}", root.display()))?;
        let root = fs::canonicalize(root)?;
        let account = Account::for_postgres()?;
        let binaries = Binaries::find(&account, report)?;
        let dir = data_dir::prepare(&root, &account, report)?;
        let password_file = dir.join("password");
        let password = password(&password_file)?;
        account.give_ownership(&password_file)?;
        // Another major version cannot read it, so each gets its own.
        let data = dir.join(binaries.major.to_string());
        let port_file = dir.join("port");
        if data.join("postmaster.pid").exists() {
            stale_server::stop(&data)?;
            ports::await_release(&port_file);
        }
        if !data.exists() {
            report("creating a private Postgres");
            create(&data, &password_file, &binaries, &account)?;
        }
        let [port] = ports::stable(&port_file)?;
        let log = dir.join("postgres.log");
        File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let bin = binaries.psql_dir();
        let settings = settings.iter().map(|setting| (*setting).to_owned()).collect();
        let mut server = Self { port, bin, password, binaries, account, data, log, settings, process: None };
        server.run()?;
        Ok(server)
    }

    /// Where it listens and who may do everything there.
    pub fn address(&self) -> PgAddress {
        PgAddress { host: "127.0.0.1".into(), port: self.port, user: USER.into(), password: self.password.clone() }
    }

    /// Creates an empty database, unless it exists.
    pub fn create_database(&self, name: &str) -> Result<()> {
        sql::create_database(&self.address(), name)
    }

    /// The server's process id; none while it is stopped or killed.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Process::pid)
    }

    /// Shuts it down without waiting for clients to disconnect.
    pub fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.resume();
            process.end(&[libc::SIGINT, libc::SIGQUIT], STOPPED_WITHIN);
            process.kill();
        }
    }

    /// SIGKILL for the server and all its backends: a crash.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
    }

    /// Starts it again on the same port and data, after stopping it if it runs. Returns when it
    /// takes connections.
    pub fn restart(&mut self) -> Result<()> {
        self.stop();
        stale_server::stop(&self.data)?;
        self.run()
    }

    /// Freezes the server and all its backends: connections stay open and nothing answers.
    pub fn pause(&self) {
        if let Some(process) = &self.process {
            process.pause();
        }
    }

    /// Undoes [`Postgres::pause`].
    pub fn resume(&self) {
        if let Some(process) = &self.process {
            process.resume();
        }
    }

    fn run(&mut self) -> Result<()> {
        let log = OpenOptions::new().append(true).open(&self.log)?;
        let mut postgres = command(&self.binaries, "postgres", &self.account);
        postgres.arg("-D").arg(&self.data).args(["-p", &self.port.to_string()]);
        let further = self.settings.iter().map(String::as_str);
        postgres.args(SETTINGS.into_iter().chain(further).flat_map(|setting| ["-c", setting]));
        postgres.stdout(log.try_clone()?).stderr(log);
        // SIGINT is its fast shutdown; SIGTERM would wait for clients to disconnect.
        let child = spawner::spawn(postgres, libc::SIGINT).context("cannot run postgres")?;
        let process = self.process.insert(Process::new(child));
        let mut ended = None;
        let ready = wait_until(READY_WITHIN, || {
            ended = process.exit_status().transpose();
            ended.is_some() || is_ready(&self.data, process.pid())
        });
        if let Some(status) = ended.transpose()? {
            self.process = None;
            bail!("Postgres ended ({status}):\n{}", tail(&self.log));
        }
        ensure!(ready, "Postgres is not ready after 2 minutes; see {}", self.log.display());
        Ok(())
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.stop();
    }
}

/// One of the server's programs, run as a user that it accepts.
fn command(binaries: &Binaries, program: &str, account: &Account) -> Command {
    let mut command = Command::new(binaries.dir.join(program));
    command.current_dir("/").stdin(Stdio::null()).env("LC_ALL", "C").env("TZ", "UTC");
    // PGDATA, PGPORT and similar variables would change the server's settings.
    for (name, _) in env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"PG")) {
        command.env_remove(name);
    }
    account.run(&mut command);
    command
}

/// Creates the data directory. It gets its final name only when it is complete.
fn create(data: &Path, password: &Path, binaries: &Binaries, account: &Account) -> Result<()> {
    let part = data.with_extension("part");
    if part.exists() {
        fs::remove_dir_all(&part)?;
    }
    fs::create_dir(&part)?;
    account.give_ownership(&part)?;
    let mut initdb = command(binaries, "initdb", account);
    initdb.arg("-D").arg(&part).arg("--pwfile").arg(password);
    initdb.args(["-U", USER, "-A", "scram-sha-256", "-E", "UTF8", "--locale=C"]);
    initdb.arg("--no-instructions").stdout(Stdio::null()).stderr(Stdio::piped());
    let child = spawner::spawn(initdb, libc::SIGKILL).context("cannot run initdb")?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "initdb failed ({}):\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    Ok(fs::rename(&part, data)?)
}

/// A random password, kept in a file that only the server's user may read. Any user of the machine
/// can reach 127.0.0.1, and a superuser of Postgres can run programs.
fn password(file: &Path) -> Result<String> {
    if let Ok(known) = fs::read_to_string(file)
        && !known.trim().is_empty()
    {
        return Ok(known.trim().to_owned());
    }
    let mut random = [0; 12];
    File::open("/dev/urandom")?.read_exact(&mut random)?;
    let password: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut private = OpenOptions::new();
    private.write(true).create(true).truncate(true).mode(0o600);
    let mut out = private.open(file).with_context(|| format!("cannot write {}", file.display()))?;
    writeln!(out, "{password}")?;
    Ok(password)
}

/// From the pid file: the first line is the server's pid, the eighth its state.
fn is_ready(data: &Path, pid: u32) -> bool {
    let text = fs::read_to_string(data.join("postmaster.pid")).unwrap_or_default();
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    lines.first() == Some(&pid.to_string().as_str()) && lines.get(7) == Some(&"ready")
}
