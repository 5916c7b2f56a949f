//! Fetching artifacts with the `mvn` client, which brings the user's own settings: mirrors,
//! proxies, credentials.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Result, anyhow, bail};

use crate::{cache, spawner};

/// The directory of all jars that a POM depends on, in the user's cache under `name`, which is to
/// change with the POM. Fetched at the first call on this machine, after a line to `report`. Errors
/// name `what` could not be fetched and an `alternative` that needs no download.
pub fn jars(name: &str, pom: &str, what: &str, alternative: &str, report: &dyn Fn(&str)) -> Result<PathBuf> {
    cache::entry(&cache::user_dir()?, name, |into| {
        report(&format!("fetching {what}, once"));
        let file = into.join("pom.xml");
        fs::write(&file, pom)?;
        run(
            &[
                "-f".into(),
                file.display().to_string(),
                "dependency:copy-dependencies".into(),
                "-DincludeScope=runtime".into(),
                format!("-DoutputDirectory={}", into.display()),
            ],
            what,
            alternative,
        )
    })
}

/// Runs `mvn` quietly. Errors name `what` could not be fetched and an `alternative` that needs no
/// download.
pub(crate) fn run(arguments: &[String], what: &str, alternative: &str) -> Result<()> {
    let mut mvn = Command::new("mvn");
    mvn.args(["-B", "-q"]).args(arguments).current_dir("/");
    mvn.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let output = spawner::spawn(mvn, libc::SIGKILL).and_then(|child| child.wait_with_output());
    let output = output.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => anyhow!(
            "Maven is needed to fetch {what}: apt-get install maven (dnf install maven, brew \
             install maven), or {alternative}"
        ),
        _ => anyhow!(error).context("cannot run mvn"),
    })?;
    if !output.status.success() {
        let mut output_text = String::from_utf8_lossy(&output.stdout).into_owned();
        output_text.push_str(&String::from_utf8_lossy(&output.stderr));
        let first_lines: Vec<&str> = output_text.lines().filter(|l| !l.trim().is_empty()).take(8).collect();
        bail!("mvn could not fetch {what} ({}):\n{}", output.status, first_lines.join("\n"));
    }
    Ok(())
}
