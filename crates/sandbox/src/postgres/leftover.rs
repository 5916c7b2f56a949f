//! A server that a killed run left behind on a data directory, and its pid file.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::process::{names, pid_in, signal, wait_until, works_in};

/// Stops the server that still uses `data`, then removes a pid file over which Postgres would
/// refuse to start if its pid is by now another program's. Only when no backend is left: each has
/// the data directory as its working directory, and would write beside a new server's.
pub(crate) fn stop(data: &Path) -> Result<()> {
    let file = data.join("postmaster.pid");
    let postmaster = pid_in(&file).filter(|&pid| names(pid, data));
    let in_use = || postmaster.is_some_and(|pid| names(pid, data)) || works_in(data);
    for (how, seconds) in [(libc::SIGINT, 15), (libc::SIGQUIT, 5), (libc::SIGKILL, 5)] {
        if !in_use() {
            break;
        }
        if let Some(pid) = postmaster {
            signal(pid, libc::SIGCONT);
            signal(pid, how);
        }
        wait_until(Duration::from_secs(seconds), || !in_use());
    }
    ensure!(!in_use(), "another Postgres still uses {}: stop it", data.display());
    if file.exists() {
        fs::remove_file(&file).with_context(|| format!("cannot remove {}", file.display()))?;
    }
    Ok(())
}
