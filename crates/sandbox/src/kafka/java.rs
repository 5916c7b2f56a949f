//! The machine's Java and Apache Kafka's jars.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use crate::{cache, maven, short_hash};

const POM: &str = include_str!("../../../../dev/kafka/pom.xml");
/// The version that the POM fetches.
const VERSION: &str = "4.3.1";
const OLDEST_JAVA: u32 = 17;
const ALTERNATIVE: &str = "set KAFKA_BROKER_URL to a broker of yours";

/// The directory of Kafka's jars, fetched at the first call on this machine.
pub(crate) fn jars(report: &dyn Fn(&str)) -> Result<PathBuf> {
    cache::entry(&cache::user_dir()?, &format!("kafka-{VERSION}"), |into| {
        report("fetching Apache Kafka (54 MB, once)");
        let pom = into.join("pom.xml");
        fs::write(&pom, POM)?;
        maven::run(
            &[
                "-f".into(),
                pom.display().to_string(),
                "dependency:copy-dependencies".into(),
                format!("-Dkafka.version={VERSION}"),
                format!("-DoutputDirectory={}", into.display()),
            ],
            "Apache Kafka",
            ALTERNATIVE,
        )
    })
}

/// `java` with Kafka's jars, its log at `level` on its standard output.
pub(crate) fn command(jars: &Path, level: &str) -> Command {
    let mut class_path = OsString::from(jars);
    class_path.push("/*");
    let mut java = Command::new(program());
    // Against G1: the same rate (150-200K records/s of 180 bytes on 2 cores) with 90 MB less.
    java.args(["-XX:+UseSerialGC", "-Xshare:auto"]);
    java.arg("-cp").arg(class_path).arg(format!("-Dlog4j2.level={level}"));
    java.current_dir("/").stdin(Stdio::null());
    java
}

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

/// Tells one Java from another, or from itself after an update, whose archives it would not use.
fn identity_of_java() -> String {
    let path = env::var_os("PATH").unwrap_or_default();
    let java = env::split_paths(&path).map(|dir| dir.join(program())).find(|java| java.is_file());
    let java = java.and_then(|java| fs::canonicalize(java).ok()).unwrap_or_default();
    let modified = fs::metadata(&java).and_then(|of| of.modified());
    format!("{} {:?}", java.display(), modified.ok())
}

/// Fails, in plain words, unless there is a Java that can run Kafka.
pub(crate) fn check() -> Result<()> {
    let missing = || {
        format!(
            "Java {OLDEST_JAVA} or newer is needed for the private Kafka: \
             apt-get install openjdk-17-jre-headless (dnf install java-17-openjdk-headless, \
             brew install openjdk@17), or {ALTERNATIVE}"
        )
    };
    let version = Command::new(program()).arg("-version").output().with_context(missing)?;
    let text = String::from_utf8_lossy(&version.stderr);
    major_of(&text).filter(|&major| major >= OLDEST_JAVA).with_context(missing)?;
    Ok(())
}

fn program() -> PathBuf {
    let home = env::var_os("JAVA_HOME").map(|home| PathBuf::from(home).join("bin/java"));
    home.filter(|java| java.is_file()).unwrap_or_else(|| "java".into())
}

/// From `openjdk version "17.0.15" 2025-04-15`; versions before 9 call themselves 1.8 and the like.
fn major_of(text: &str) -> Option<u32> {
    let (_, version) = text.split_once("version \"")?;
    version.split(['.', '-', '"']).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_jars_are_of_the_version_that_the_pom_names() {
        assert!(POM.contains(&format!("<kafka.version>{VERSION}</kafka.version>")));
    }

    #[test]
    fn a_version_of_java_is_read_from_what_java_prints() {
        let debian = "openjdk version \"17.0.15\" 2025-04-15\nOpenJDK Runtime Environment";
        let read = [debian, "java version \"1.8.0_292\"", "openjdk version \"25\" 2025-09-16", ""];
        assert_eq!(read.map(major_of), [Some(17), Some(1), Some(25), None]);
    }
}
