//! Which system a command talks to: what the environment says, else what an `onhand up` or
//! `onhand demo` has running on the data directory, else the defaults.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use clap::Args;
use runtime::Environment;

/// In the data directory, while servers run: `NAME=value` lines.
const FILE: &str = "environment";
/// Settings that belong together: where the environment has the first, it has them all.
const GROUPS: [(&str, &str); 2] = [("KAFKA_BROKER_URL", "KAFKA_"), ("POSTGRES_HOSTNAME", "POSTGRES_")];

/// For every command that talks to a running system.
#[derive(Debug, Clone, Args)]
pub(crate) struct DataDirectory {
    /// Where the private servers keep their data
    #[arg(long = "data", value_name = "DIR", env = "ONHAND_DATA", default_value = ".onhand", hide_env_values = true)]
    pub(crate) path: PathBuf,
}

/// The settings of the system that is meant: the environment's own, and for what it leaves open
/// those of a running `up`, else of a running `demo`, on this data directory.
pub(crate) fn environment(data: &Path) -> Environment {
    let mut environment = Environment::of_process();
    let running = [data.to_owned(), demo(data)].iter().find_map(|root| running(root)).unwrap_or_default();
    let given: Vec<_> = GROUPS.iter().filter(|(name, _)| environment.text(name).is_some()).collect();
    for (name, value) in running {
        if !given.iter().any(|(_, group)| name.starts_with(group)) && environment.text(&name).is_none() {
            environment.set(&name, value);
        }
    }
    environment
}

/// Where the demo keeps its own data.
pub(crate) fn demo(data: &Path) -> PathBuf {
    data.join("demo")
}

/// The note of what runs on a data directory; gone when dropped.
#[derive(Debug)]
pub(crate) struct Note(PathBuf);

impl Note {
    /// Writes the variables down, for this user only, since a password is among them.
    pub(crate) fn leave(root: &Path, variables: &[(String, String)]) -> io::Result<Note> {
        let path = root.join(FILE);
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path)?;
        for (name, value) in variables {
            writeln!(file, "{name}={value}")?;
        }
        Ok(Note(path))
    }
}

impl Drop for Note {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// What was noted by a process that still runs. A killed one leaves its note behind.
fn running(root: &Path) -> Option<Vec<(String, String)>> {
    let text = fs::read_to_string(root.join(FILE)).ok()?;
    let pid: libc::pid_t = fs::read_to_string(root.join("lock")).ok()?.trim().parse().ok()?;
    // SAFETY: signal 0 only asks whether the process is there.
    let there = unsafe { libc::kill(pid, 0) } == 0 || io::Error::last_os_error().raw_os_error() == Some(libc::EPERM);
    let variables = text.lines().filter_map(|line| line.split_once('='));
    there.then(|| variables.map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
}
