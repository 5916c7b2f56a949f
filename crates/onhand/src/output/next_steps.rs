//! What a user may do next, once everything runs.

use std::{env, path::Path};

use runtime::{KafkaSettings, PostgresSettings};
use sandbox::Sandbox;

use crate::output::terminal::Paint;

/// What the steps refer to.
pub(crate) struct NextSteps<'a> {
    pub(crate) servers: &'a Sandbox,
    pub(crate) kafka: &'a KafkaSettings,
    pub(crate) postgres: &'a PostgresSettings,
    /// Where the importer looks for files.
    pub(crate) input: &'a Path,
}

impl NextSteps<'_> {
    /// A line for each thing one may want to do next.
    pub(crate) fn lines(&self, paint: Paint) -> Vec<String> {
        let event_topics: Vec<_> =
            events::EVENT_TYPES.iter().map(|event_type| self.kafka.topic_of(event_type)).collect();
        let line = |what: &str, how: String| format!("  {}  {how}", paint.bold(format!("{what:10}")));
        vec![
            line("drop files", format!("into {}/", self.input.display())),
            line(
                "Kafka",
                format!(
                    "{}, topics {} and {}",
                    self.kafka.broker_url,
                    event_topics.join(", "),
                    self.kafka.errors_topic
                ),
            ),
            line("Postgres", self.psql()),
            line("watch", format!("{} tail {}", onhand(), self.kafka.errors_topic)),
            line("stop", "Ctrl-C".to_owned()),
        ]
    }

    /// The command that connects psql, if this machine has one; else the address.
    fn psql(&self) -> String {
        let PostgresSettings { host, port, user, password, database } = self.postgres;
        let Some(private) = &self.servers.postgres else {
            // never show a password that the user has set
            return format!("psql -h {host} -p {port} -U {user} {database}");
        };
        let url = format!("postgresql://{user}:{}@{host}:{port}/{database}", password.expose());
        match &private.bin {
            None => format!("{url} (any client; this machine has no psql)"),
            Some(_) if is_on_path("psql") => format!("psql {url}"),
            Some(bin) => format!("{} {url}", bin.join("psql").display()),
        }
    }
}

fn is_on_path(program: &str) -> bool {
    env::var_os("PATH").is_some_and(|path| env::split_paths(&path).any(|dir| dir.join(program).is_file()))
}

/// This program as it was called: `cargo run` puts it nowhere on PATH.
fn onhand() -> String {
    let called = env::args_os().next().unwrap_or_else(|| "onhand".into());
    called.to_string_lossy().into_owned()
}
