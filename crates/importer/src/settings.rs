//! The importer's settings.

use std::{path::PathBuf, time::Duration};

use runtime::{Environment, KafkaSettings};

use crate::{finish::stability::QuietPeriods, read::source::Links};

/// What the importer is told by its environment.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Which Kafka, and which topics.
    pub kafka: KafkaSettings,
    /// `IMPORT_DIRECTORY`: holds `input/`, `done/`, `rejected/` and `progress/`.
    pub directory: PathBuf,
    /// `IMPORT_SCAN_MS`: how often `input/` is listed, whatever the watcher says.
    pub scan: Duration,
    /// `IMPORT_QUIET_MS`: how long a file must be unchanged before it counts as complete.
    pub quiet: Duration,
    /// `IMPORT_UNSURE_MS`: how long a file must be unchanged where the system cannot tell whether
    /// somebody is still writing it, or where it seems to be cut.
    pub unsure: Duration,
    /// `IMPORT_FOLLOW_LINKS`: whether a symbolic link in `input/` stands for the file it names.
    pub follow_links: bool,
    /// `IMPORT_WATCH`: whether the system is asked to tell of changes at once.
    pub watch: bool,
}

impl Settings {
    pub(crate) fn quiet_periods(&self) -> QuietPeriods {
        QuietPeriods { known: self.quiet, unsure: self.unsure }
    }

    pub(crate) fn links(&self) -> Links {
        if self.follow_links { Links::Follow } else { Links::Refuse }
    }

    /// Reads `KAFKA_*` and `IMPORT_*`; what is wrong is kept in `env`.
    pub fn read(env: &mut Environment) -> Settings {
        Settings {
            kafka: KafkaSettings::read(env),
            directory: env.text_or("IMPORT_DIRECTORY", "importer").into(),
            scan: env.millis_or("IMPORT_SCAN_MS", 500),
            quiet: env.millis_or("IMPORT_QUIET_MS", 250),
            unsure: env.millis_or("IMPORT_UNSURE_MS", 5000),
            follow_links: env.parse_or("IMPORT_FOLLOW_LINKS", false, "true or false", |_| true),
            watch: env.parse_or("IMPORT_WATCH", true, "true or false", |_| true),
        }
    }
}
