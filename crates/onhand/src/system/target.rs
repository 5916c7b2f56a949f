//! Which system a command works with: what the environment says, else what an `onhand up` or
//! `onhand demo` has running on the data directory, else the defaults.

use std::{
    collections::BTreeMap,
    env,
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Write},
    net::TcpListener,
    os::unix::fs::OpenOptionsExt,
    path::{self, Path, PathBuf},
};

use anyhow::Context;
use clap::Args;
use runtime::{Environment, KafkaSettings, PostgresSettings, env_file};

/// In the data directory while services run: a JSON object of variables.
const FILE: &str = "environment";
/// In that object: the process that wrote it.
const PID: &str = "PID";
/// Settings that belong together: when the environment names another server than the running system's
/// (the first), none of the group (by prefix) is taken from it. Files, groups and the health of services belong to a Kafka.
const GROUPS: [(&str, &str); 5] = [
    ("KAFKA_BROKER_URL", "KAFKA_"),
    ("POSTGRES_HOSTNAME", "POSTGRES_"),
    ("KAFKA_BROKER_URL", "IMPORT_"),
    ("KAFKA_BROKER_URL", "STOCK_GROUP"),
    ("KAFKA_BROKER_URL", "METRICS_ADDRESS"),
];

/// For every command that talks to a running system.
#[derive(Debug, Clone, Args)]
pub(crate) struct DataDirectory {
    /// Where the private servers keep their data
    #[arg(long = "data", value_name = "DIR", env = "ONHAND_DATA", default_value = ".onhand", hide_env_values = true)]
    pub(crate) path: PathBuf,
}

/// The settings of the system that is meant: the environment's own; for what it leaves open, those of
/// a running `up`, else of a running `demo`, on this data directory; and for what is left then, those
/// of `.env`. (A running `up` has taken these into account, and a demo must not.)
pub(crate) fn environment(data: &Path) -> Environment {
    let running = [data.to_owned(), demo(data)].iter().find_map(|root| running(root)).unwrap_or_default();
    let file = env_file::applied();
    let of_file = |name: &String| file.iter().any(|(of_file, _)| of_file == name);
    let own = Environment::of(process_variables().filter(|(name, _)| !of_file(name)));
    let (environment, used) = before_file(beside(own, &running), &running, &file);
    if used {
        eprintln!("onhand: settings from .env");
    }
    environment
}

/// Adds what a file says to settings that go before it. What belongs to a running system is complete
/// as it is. Also returns whether a server's setting was taken.
fn before_file(mut environment: Environment, running: &Variables, file: &[(String, String)]) -> (Environment, bool) {
    let is_running =
        |first: &str| running.get(first).is_some_and(|value| environment.text(first).as_ref() == Some(value));
    let complete: Vec<_> = GROUPS.iter().filter(|(first, _)| is_running(first)).map(|(_, group)| *group).collect();
    let mut used = false;
    for (name, value) in file {
        if environment.text(name).is_none() && !complete.iter().any(|group| name.starts_with(group)) {
            environment.set(name, value.as_str());
            used |= GROUPS.iter().any(|(_, group)| name.starts_with(group));
        }
    }
    (environment, used)
}

fn process_variables() -> impl Iterator<Item = (String, String)> {
    env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
}

/// The broker and the database of a command that needs a running system. An error says what is wrong
/// with the settings, and that no system runs on this data directory.
pub(crate) fn servers(environment: &mut Environment, data: &Path) -> anyhow::Result<(KafkaSettings, PostgresSettings)> {
    let servers = (KafkaSettings::read(environment), PostgresSettings::read(environment));
    let none = || format!("no `onhand up` or `onhand demo` runs on {} (--data names another)", data.display());
    environment.finish().with_context(none)?;
    Ok(servers)
}

fn beside(mut environment: Environment, running: &Variables) -> Environment {
    let is_other = |first: &str| environment.text(first).is_some_and(|own| running.get(first) != Some(&own));
    let others: Vec<_> = GROUPS.iter().filter(|(first, _)| is_other(first)).map(|(_, group)| *group).collect();
    for (name, value) in running {
        if !others.iter().any(|group| name.starts_with(group)) && environment.text(name).is_none() {
            environment.set(name, value.as_str());
        }
    }
    environment
}

/// Where the demo keeps its own data.
pub(crate) fn demo(data: &Path) -> PathBuf {
    data.join("demo")
}

/// Settings, by name.
type Variables = BTreeMap<String, String>;

/// The record of what runs on a data directory, for other commands; removed when dropped.
#[derive(Debug)]
pub(crate) struct RunningSystem(PathBuf);

impl RunningSystem {
    /// Records the settings in force: these variables, the process's own, and where its health is served.
    /// Readable by this user only, since there are passwords among them.
    pub(crate) fn record(
        root: &Path,
        variables: &[(String, String)],
        health: &TcpListener,
    ) -> io::Result<RunningSystem> {
        let path = root.join(FILE);
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path)?;
        let mut noted = settings_in_force(process_variables(), variables)?;
        noted.insert("METRICS_ADDRESS".to_owned(), health.local_addr()?.to_string());
        noted.insert(PID.to_owned(), std::process::id().to_string());
        file.write_all(&serde_json::to_vec_pretty(&noted)?)?;
        Ok(RunningSystem(path))
    }
}

impl Drop for RunningSystem {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// The settings of all groups that are in force. Paths are made absolute, since commands may run in
/// other directories.
fn settings_in_force(own: impl Iterator<Item = (String, String)>, set: &[(String, String)]) -> io::Result<Variables> {
    let in_force = own.map(|(name, value)| (name, value.trim().to_owned())).filter(|(_, value)| !value.is_empty());
    let mut noted = Variables::from([("IMPORT_DIRECTORY".to_owned(), "importer".to_owned())]);
    noted.extend(in_force.chain(set.iter().cloned()));
    noted.retain(|name, _| GROUPS.iter().any(|(_, group)| name.starts_with(group)));
    for (name, value) in &mut noted {
        // KAFKA_SSL_CA_LOCATION may be a word that is no path
        if name == "IMPORT_DIRECTORY" || (name.ends_with("_LOCATION") && Path::new(&*value).exists()) {
            *value = path::absolute(&*value)?.display().to_string();
        }
    }
    Ok(noted)
}

/// The record of the process that holds the lock. A killed process leaves its record, and the next one
/// writes its own only once its servers run.
fn running(root: &Path) -> Option<Variables> {
    let mut noted: Variables = serde_json::from_slice(&fs::read(root.join(FILE)).ok()?).ok()?;
    let holder = fs::read_to_string(root.join("lock")).ok()?;
    // released at once if nobody holds it
    let lock = File::open(root.join("lock")).ok()?.try_lock_shared();
    let is_there = matches!(lock, Err(TryLockError::WouldBlock)) && noted.remove(PID)? == holder.trim();
    is_there.then_some(noted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables(of: &[(&str, &str)]) -> Vec<(String, String)> {
        of.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn every_setting_in_force_is_noted_with_the_import_directory_as_an_absolute_path() {
        let own = variables(&[("KAFKA_EVENTS_TOPIC", " mine "), ("KAFKA_ERRORS_TOPIC", ""), ("HOME", "/root")]);
        let noted = settings_in_force(own.into_iter(), &variables(&[("POSTGRES_DB", "d")])).expect("noted");
        let here = env::current_dir().expect("a directory").join("importer").display().to_string();
        let expected = [("IMPORT_DIRECTORY", here.as_str()), ("KAFKA_EVENTS_TOPIC", "mine"), ("POSTGRES_DB", "d")];
        assert_eq!(noted.into_iter().collect::<Vec<_>>(), variables(&expected));
    }

    #[test]
    fn a_note_counts_as_long_as_the_lock_is_held() {
        let dir = tempfile::tempdir().expect("a directory");
        // a killed process's, whose pid is another's now
        fs::write(dir.path().join("lock"), std::process::id().to_string()).expect("written");
        let health = TcpListener::bind("127.0.0.1:0").expect("a port");
        let running_system =
            RunningSystem::record(dir.path(), &variables(&[("POSTGRES_DB", "two\nlines")]), &health).expect("left");
        assert_eq!(running(dir.path()), None);
        let lock = File::open(dir.path().join("lock")).expect("the lock");
        lock.try_lock().expect("nobody holds it");
        assert_eq!(running(dir.path()).expect("a note")["POSTGRES_DB"], "two\nlines");
        fs::write(dir.path().join("lock"), "1").expect("written");
        assert_eq!(running(dir.path()), None, "the next one has the lock");
        drop(running_system);
        assert!(!dir.path().join(FILE).exists());
    }

    #[test]
    fn the_environment_goes_before_what_runs_and_another_broker_has_its_own_settings() {
        let running = variables(&[
            ("IMPORT_DIRECTORY", "/i"),
            ("KAFKA_BROKER_URL", "b:1"),
            ("KAFKA_EVENTS_TOPIC", "e"),
            ("POSTGRES_HOSTNAME", "p:1"),
        ]);
        let running: Variables = running.into_iter().collect();
        let names = ["IMPORT_DIRECTORY", "KAFKA_BROKER_URL", "KAFKA_EVENTS_TOPIC", "POSTGRES_HOSTNAME"];
        let found = |own: &[(&str, &str)]| {
            let environment = beside(Environment::of(variables(own)), &running);
            names.map(|name| environment.text(name).unwrap_or_default())
        };
        assert_eq!(found(&[]), ["/i", "b:1", "e", "p:1"]);
        assert_eq!(found(&[("KAFKA_BROKER_URL", "b:1")]), ["/i", "b:1", "e", "p:1"]);
        assert_eq!(found(&[("KAFKA_EVENTS_TOPIC", "o")]), ["/i", "b:1", "o", "p:1"]);
        assert_eq!(found(&[("KAFKA_BROKER_URL", "b:2")]), ["", "b:2", "", "p:1"]);
    }

    #[test]
    fn a_file_fills_what_is_left_and_nothing_of_a_running_system() {
        let file = variables(&[
            ("KAFKA_BROKER_URL", "f:1"),
            ("KAFKA_SASL_USERNAME", "u"),
            ("POSTGRES_HOSTNAME", "f"),
            ("POSTGRES_DB", "d"),
        ]);
        let running: Variables = variables(&[("KAFKA_BROKER_URL", "b:1")]).into_iter().collect();
        let names = ["KAFKA_BROKER_URL", "KAFKA_SASL_USERNAME", "POSTGRES_HOSTNAME", "POSTGRES_DB"];
        let found = |own: &[(&str, &str)], running: &Variables| {
            let (environment, used) = before_file(beside(Environment::of(variables(own)), running), running, &file);
            (names.map(|name| environment.text(name).unwrap_or_default()), used)
        };
        let none = Variables::new();
        assert_eq!(found(&[], &none), (["f:1", "u", "f", "d"].map(str::to_owned), true));
        assert_eq!(found(&[("KAFKA_BROKER_URL", "o:1")], &none).0, ["o:1", "u", "f", "d"]);
        assert_eq!(found(&[("POSTGRES_HOSTNAME", "o")], &running).0, ["b:1", "", "o", "d"]);
        let all = [("POSTGRES_HOSTNAME", "o"), ("POSTGRES_DB", "o")];
        assert_eq!(found(&all, &running), (["b:1", "", "o", "o"].map(str::to_owned), false));
    }
}
