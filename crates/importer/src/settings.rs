//! The importer's settings.

use std::{path::PathBuf, time::Duration};

use runtime::{Environment, KafkaSettings};

use crate::{finish::stability::QuietPeriods, read::source::Links};

/// The importer's settings, from its environment.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The broker and the topics.
    pub kafka: KafkaSettings,
    /// `IMPORT_DIRECTORY`: holds `input/`, `done/`, `rejected/` and `progress/`.
    pub directory: PathBuf,
    /// `IMPORT_SCAN_MS`: how often `input/` is listed, with or without a watcher.
    pub scan: Duration,
    /// `IMPORT_QUIET_MS`: how long a file must be unchanged before it counts as complete.
    pub quiet: Duration,
    /// `IMPORT_UNSURE_MS`: how long a file must be unchanged where its writers cannot be detected, or
    /// where it may end mid-line.
    pub unsure: Duration,
    /// `IMPORT_FOLLOW_LINKS`: whether a symbolic link in `input/` is followed.
    pub follow_links: bool,
    /// `IMPORT_WATCH`: whether changes of `input/` are watched (inotify), in addition to listing it.
    pub watch: bool,
}

impl Settings {
    pub(crate) fn quiet_periods(&self) -> QuietPeriods {
        QuietPeriods { known: self.quiet, unsure: self.unsure }
    }

    pub(crate) fn links(&self) -> Links {
        if self.follow_links { Links::Follow } else { Links::Refuse }
    }

    /// Reads `KAFKA_*` and `IMPORT_*`; errors are collected in `env`.
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
