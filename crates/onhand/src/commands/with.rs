//! `onhand with`: runs a command with private servers.

mod signals;

use std::{
    env,
    ffi::OsString,
    fs::{self, DirBuilder, File},
    io,
    os::unix::{
        fs::{DirBuilderExt, MetadataExt},
        process::ExitStatusExt,
    },
    path::{Path, PathBuf},
    process::{Command, ExitCode, ExitStatus},
};

use anyhow::{Context, Result};
use clap::Args;

use crate::system::private_servers;

/// Run a command with a private Kafka and Postgres
#[derive(Args)]
#[command(after_help = "\
Starts the servers that KAFKA_BROKER_URL and POSTGRES_HOSTNAME do not name, runs the command with \
these variables, POSTGRES_USER, POSTGRES_PASSWORD and POSTGRES_DB in its environment, and stops the \
servers. SIGINT, SIGTERM and SIGHUP are passed on to the command.

Exit status: the command's, or 128 + n when signal n ended it; 126 or 127 when it could not be run; 2 \
when the servers could not be started.

Example: the tests of a project that needs a Kafka and a Postgres
  onhand with -- cargo test --workspace")]
pub(crate) struct Arguments {
    /// Keep the servers' data here for the next run [default: a temporary directory]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// The command and its arguments
    #[arg(required = true, last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

pub(crate) fn run(Arguments { data, command }: Arguments) -> Result<ExitCode> {
    signals::pass_on();
    match data {
        Some(root) => run_at(&root, &command),
        None => {
            sweep();
            let temporary = Temporary::create()?;
            run_at(&temporary.0, &command)
        }
    }
}

fn run_at(root: &Path, command: &[OsString]) -> Result<ExitCode> {
    let servers = private_servers::start(root)?;
    let ended = match signals::received() {
        // a signal arrived before the command was started
        Some(signal) => Ok(ExitCode::from(128 + signal)),
        None => run_command(command, servers.environment()),
    };
    servers.stop();
    ended
}

fn run_command(command: &[OsString], environment: Vec<(String, String)>) -> Result<ExitCode> {
    let program = Path::new(&command[0]).display();
    let spawned = Command::new(&command[0]).args(&command[1..]).envs(environment).spawn();
    let mut child = match spawned {
        Ok(child) => child,
        Err(error) => {
            eprintln!("onhand: cannot run {program}: {error}");
            // as shells do
            let status = if error.kind() == io::ErrorKind::NotFound { 127 } else { 126 };
            return Ok(ExitCode::from(status));
        }
    };
    signals::to(child.id());
    let status = child.wait().with_context(|| format!("waiting for {program}"))?;
    signals::to(0);
    Ok(ExitCode::from(code_of(status)))
}

fn code_of(status: ExitStatus) -> u8 {
    let code = status.code().or(status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}

/// In the temporary directory; a pid follows.
const PREFIX: &str = "onhand-with-";

/// Removes directories of killed processes: owned by this user, no such process, the lock is free. On
/// Linux their servers have died with them; elsewhere these may still write there.
fn sweep() {
    if !cfg!(target_os = "linux") {
        return;
    }
    for entry in fs::read_dir(env::temp_dir()).into_iter().flatten().flatten() {
        let pid = entry.file_name().to_str().and_then(|name| name.strip_prefix(PREFIX)?.parse().ok());
        let lock = || File::open(entry.path().join("lock"));
        if pid.is_some_and(|pid| !is_running(pid))
            && is_ours(&entry.path())
            // missing: killed before the servers were started
            && lock().map_or_else(|error| error.kind() == io::ErrorKind::NotFound, |lock| lock.try_lock().is_ok())
        {
            // what can't be removed now is tried again next time
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

fn is_running(pid: libc::pid_t) -> bool {
    // SAFETY: signal 0 only asks whether the process is there.
    let there = unsafe { libc::kill(pid, 0) } == 0;
    there || io::Error::last_os_error().raw_os_error() == Some(libc::EPERM)
}

fn is_ours(path: &Path) -> bool {
    // SAFETY: geteuid cannot fail.
    let us = unsafe { libc::geteuid() };
    fs::symlink_metadata(path).is_ok_and(|of| of.is_dir() && of.uid() == us)
}

/// A directory that is removed when dropped.
struct Temporary(PathBuf);

impl Temporary {
    /// Open to the user that Postgres runs as.
    fn create() -> Result<Temporary> {
        let path = env::temp_dir().join(format!("{PREFIX}{}", std::process::id()));
        DirBuilder::new().mode(0o755).create(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Temporary(path))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("onhand: cannot remove {}: {error}", self.0.display());
        }
    }
}
