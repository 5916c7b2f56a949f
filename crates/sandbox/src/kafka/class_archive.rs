//! Java's archive of the classes that Kafka loads.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use crate::{java, short_hash};

/// Java's archive of the classes that Kafka loads, which halves the processor time of a start. The
/// first broker that shuts down cleanly writes it, for this Java and these jars.
#[derive(Debug)]
pub(crate) struct ClassArchive {
    file: PathBuf,
    /// What this broker writes; renamed to `file` when it is complete.
    part: PathBuf,
}

impl ClassArchive {
    /// `port` separates what brokers write at the same time.
    pub(crate) fn next_to(jars: &Path, port: u16) -> Self {
        let key = short_hash(identity_of_java().as_bytes());
        let file = PathBuf::from(format!("{}-{key}.jsa", jars.display()));
        let part = file.with_extension(format!("{port}.part"));
        Self { file, part }
    }

    /// The option that uses it, once it is there.
    pub(crate) fn read_option(&self) -> Option<OsString> {
        self.file.exists().then(|| option("-XX:SharedArchiveFile=", &self.file))
    }

    /// The option that writes it when Java ends.
    pub(crate) fn write_option(&self) -> OsString {
        option("-XX:ArchiveClassesAtExit=", &self.part)
    }

    /// Keeps what a broker wrote until it ended; `complete` unless it was killed.
    pub(crate) fn keep(&self, complete: bool) {
        // A failure only makes the next start slower.
        let _ = match complete {
            true => fs::rename(&self.part, &self.file),
            false => fs::remove_file(&self.part),
        };
    }
}

fn option(name: &str, path: &Path) -> OsString {
    let mut option = OsString::from(name);
    option.push(path);
    option
}

/// Identifies a Java installation, and its update: each rejects the archives of others.
fn identity_of_java() -> String {
    let path = env::var_os("PATH").unwrap_or_default();
    let java = env::split_paths(&path).map(|dir| dir.join(java::program())).find(|java| java.is_file());
    let java = java.and_then(|java| fs::canonicalize(java).ok()).unwrap_or_default();
    let modified = fs::metadata(&java).and_then(|of| of.modified());
    format!("{} {:?}", java.display(), modified.ok())
}
