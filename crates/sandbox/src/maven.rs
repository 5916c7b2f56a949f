//! Fetching artifacts with the `mvn` client, which brings the user's own settings: mirrors,
//! proxies, credentials.

use std::io;
use std::process::{Command, Stdio};

use anyhow::{Result, anyhow, bail};

use crate::nursery;

/// Runs `mvn` quietly; `what` names in an error what could not be fetched, `instead` what the user
/// may do to not need it.
pub(crate) fn run(arguments: &[String], what: &str, instead: &str) -> Result<()> {
    let mut mvn = Command::new("mvn");
    mvn.args(["-B", "-q"]).args(arguments).current_dir("/");
    mvn.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let output = nursery::spawn(mvn, libc::SIGKILL).and_then(|child| child.wait_with_output());
    let output = output.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => anyhow!(
            "Maven is needed to fetch {what}: apt-get install maven (dnf install maven, brew \
             install maven), or {instead}"
        ),
        _ => anyhow!(error).context("cannot run mvn"),
    })?;
    if !output.status.success() {
        let mut said = String::from_utf8_lossy(&output.stdout).into_owned();
        said.push_str(&String::from_utf8_lossy(&output.stderr));
        let first: Vec<&str> = said.lines().filter(|l| !l.trim().is_empty()).take(8).collect();
        bail!("mvn could not fetch {what} ({}):\n{}", output.status, first.join("\n"));
    }
    Ok(())
}
