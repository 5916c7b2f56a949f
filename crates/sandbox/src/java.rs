//! The machine's Java, and programs in jars.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

/// The oldest version that runs Kafka.
const OLDEST: u32 = 17;

/// `java` with all jars of a directory on its class path. Log lines of `log_level` and above go to
/// its standard output.
pub fn command(jars: &Path, log_level: &str) -> Command {
    let mut class_path = OsString::from(jars);
    class_path.push("/*");
    let mut java = Command::new(program());
    java.arg("-cp").arg(class_path).arg(format!("-Dlog4j2.level={log_level}"));
    java.current_dir("/").stdin(Stdio::null());
    java
}

/// Fails unless there is a Java that can run Kafka; the error says how to install one.
pub(crate) fn check() -> Result<()> {
    let missing = || {
        format!(
            "Java {OLDEST} or newer is needed for the private Kafka: \
             apt-get install openjdk-17-jre-headless (dnf install java-17-openjdk-headless, \
             brew install openjdk@17), or set KAFKA_BROKER_URL to a broker of yours"
        )
    };
    let version = Command::new(program()).arg("-version").output().with_context(missing)?;
    let text = String::from_utf8_lossy(&version.stderr);
    major_of(&text).filter(|&major| major >= OLDEST).with_context(missing)?;
    Ok(())
}

pub(crate) fn program() -> PathBuf {
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
    fn a_version_of_java_is_read_from_what_java_prints() {
        let debian = "openjdk version \"17.0.15\" 2025-04-15\nOpenJDK Runtime Environment";
        let read = [debian, "java version \"1.8.0_292\"", "openjdk version \"25\" 2025-09-16", ""];
        assert_eq!(read.map(major_of), [Some(17), Some(1), Some(25), None]);
    }
}
